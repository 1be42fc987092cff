"""Tokens as text: as the tokenizer decodes them, none empty, none glued to the next."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from fastexplain.text.vocabulary import Texts, texts, token_bytes

WORDS = [
    *["the", "river", "stone", "gardens", "don't", "12.5%", "Größe", "naïve", "stop!", "a,b"],
    *["река", "камень", "письмо", "число", "медь"],
    *["川石庭冬", "手紙", "🙂", "🎈🎈", "e\u0301", "क्षि"],
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = ["\u2581", *sorted(set("".join(WORDS)))[::2]]
SPACE = decoders.Replace("\u2581", " ")


def trained(model, pre_tokenizer, decoder, trainer):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def byte_level(decoder):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=290, show_progress=False)
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained(models.BPE(), pre_tokenizer, decoder, trainer)


def word_pieces(decoder):
    trainer = trainers.WordPieceTrainer(
        vocab_size=170, special_tokens=["<unk>"], show_progress=False
    )
    model = models.WordPiece(unk_token="<unk>")
    return trained(model, pre_tokenizers.BertPreTokenizer(), decoder, trainer)


def ended_words(decoder):
    trainer = trainers.BpeTrainer(
        end_of_word_suffix="</w>", vocab_size=170, special_tokens=["<unk>"], show_progress=False
    )
    model = models.BPE(end_of_word_suffix="</w>", unk_token="<unk>")
    return trained(model, pre_tokenizers.Whitespace(), decoder, trainer)


def sentence_pieces(decoder):
    """With every other character in the vocabulary, and bytes for the others."""
    trainer = trainers.BpeTrainer(
        initial_alphabet=ALPHABET,
        limit_alphabet=len(ALPHABET),
        vocab_size=330,
        special_tokens=["<unk>", *BYTES],
        show_progress=False,
    )
    model = models.BPE(byte_fallback=True, unk_token="<unk>")
    state = json.loads(trained(model, pre_tokenizers.Metaspace(), decoder, trainer).to_str())
    state["added_tokens"] = state["added_tokens"][:1]  # a byte is an ordinary token
    return Tokenizer.from_str(json.dumps(state))


def whole_words(decoder):
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    model = models.WordLevel(unk_token="<unk>")
    return trained(model, pre_tokenizers.Whitespace(), decoder, trainer)


def in_turn(*steps):
    return decoders.Sequence(list(steps))


FUSE, STRIP = decoders.Fuse(), decoders.Strip(" ", 1, 0)
KINDS = {
    "ByteLevel": (byte_level, decoders.ByteLevel()),
    "ByteLevel, Replace": (byte_level, in_turn(decoders.ByteLevel(), decoders.Replace("g", "G"))),
    "WordPiece": (word_pieces, decoders.WordPiece(cleanup=False)),
    "WordPiece with cleanup": (word_pieces, decoders.WordPiece()),
    "WordPiece, Fuse": (word_pieces, in_turn(decoders.WordPiece(), FUSE)),
    "BPEDecoder": (ended_words, decoders.BPEDecoder(suffix="</w>")),
    "BPEDecoder, Fuse": (ended_words, in_turn(decoders.BPEDecoder(suffix="</w>"), FUSE)),
    "Replace </w>": (ended_words, in_turn(decoders.Replace("</w>", " "), FUSE)),
    "ByteFallback, Metaspace": (
        sentence_pieces,
        in_turn(decoders.ByteFallback(), decoders.Metaspace()),
    ),
    "Replace, ByteFallback, Fuse, Strip": (
        sentence_pieces,
        in_turn(SPACE, decoders.ByteFallback(), FUSE, STRIP),
    ),
    "ByteFallback, Fuse, Replace": (
        sentence_pieces,
        in_turn(decoders.ByteFallback(), FUSE, SPACE),
    ),
    "no decoder": (whole_words, None),
}


@cache
def tokenizer_of(kind):
    if kind == "ByT5":
        return ByT5Tokenizer()
    make, decoder = KINDS[kind]
    backend = make(decoder)
    unknown = "<unk>" if backend.token_to_id("<unk>") is not None else None
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown)


@cache
def bytes_of(kind):
    return token_bytes(tokenizer_of(kind))


def read(kind, text):
    """The ids of a text, and the texts of its tokens."""
    ids = tokenizer_of(kind)(text, add_special_tokens=False)["input_ids"]
    return ids, texts(ids, bytes_of(kind).__getitem__)


TEXTS = st.lists(
    st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
).map(" ".join)


@pytest.mark.parametrize("kind", [*KINDS, "ByT5"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_the_texts_of_tokens_join_to_what_the_tokenizer_decodes(kind, text):
    ids, found = read(kind, text)
    assert len(found) == len(ids) and all(found)
    decoded = tokenizer_of(kind).decode(ids)
    joined = "".join(found)
    # A character that is cut has marks in front of it, which are not text.
    assert joined.replace("\ufffd", "").strip() == decoded.replace("\ufffd", "").strip()


@pytest.mark.parametrize("kind", [*KINDS, "ByT5"])
def test_words_of_a_text_stay_apart(kind):
    _, found = read(kind, "the river, the river")
    words = "".join(found).split()
    assert words[0] == "the" and words[-2:] == ["the", "river"]


def test_a_character_over_several_tokens_stands_with_the_last_and_is_marked_on_the_others():
    assert read("ByT5", "ж €")[1] == ["\ufffd", "ж", " ", "\ufffd", "\ufffd", "€"]
    for tokens, expected in [
        ([b" \xd0", b"\xb6a"], [" \ufffd", "жa"]),
        ([b"\xf0\x9f", b"\x99\x82!"], ["\ufffd", "🙂!"]),
        ([b"\x80", b"a"], ["\ufffd", "a"]),  # an excerpt may begin within a character
        ([b"a", b"\xf0\x9f"], ["a", "\ufffd"]),
        ([b"\xd1", b"b", b"\xff\xfe"], ["\ufffd", "b", "\ufffd"]),
        (["€".encode() * 2, b"\xe2\x82"], ["€€", "\ufffd"]),
    ]:
        assert texts(range(len(tokens)), tokens.__getitem__) == expected


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=4), max_size=8))
def test_any_bytes_have_texts(tokens):
    found = texts(range(len(tokens)), tokens.__getitem__)
    assert len(found) == len(tokens) and all(found)
    named = b"".join(own or f"<token {id_}>".encode() for id_, own in enumerate(tokens))
    whole = named.decode(errors="replace")
    assert "".join(found).replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_byte_level_tokens_that_look_like_bytes_are_text():
    backend = Tokenizer(models.BPE({"<0x41>": 0, "\u0120": 1, "\u00d1": 2}, []))
    backend.decoder = decoders.ByteLevel()
    known = token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert known == [b"<0x41>", b" ", b"\xd1"]


def test_an_id_without_a_token_reads_as_its_number():
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    known = token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert texts([7, 3], known.__getitem__) == [" b", "<token 3>"]


@pytest.mark.parametrize("kind", ["WordPiece", "BPEDecoder", "ByteLevel", "no decoder"])
def test_added_tokens_read_as_they_are_written(kind):
    make, decoder = KINDS[kind]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(decoder))
    tokenizer.add_tokens(["<tool>", "größer\u2581"])
    known = token_bytes(tokenizer)
    for content in ("<tool>", "größer\u2581"):
        assert known[tokenizer.convert_tokens_to_ids(content)].decode().strip() == content


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=3), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6),
)
def test_texts_that_are_kept_are_those_that_are_not(tokens, asked):
    def bytes_of(id_: int) -> bytes:
        return tokens[id_] if id_ < len(tokens) else b""

    kept = Texts(bytes_of)
    for ids in (*asked, *asked):
        assert kept(iter(ids)) == texts(ids, bytes_of)
