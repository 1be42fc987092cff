"""What token ids read as: bytes of each id, and texts of consecutive tokens.

1. Where every token is decoded alone (byte-level BPE, SentencePiece), its bytes follow from the
   way in which it is written in the vocabulary.
2. Elsewhere an id's text is what it adds to another token when the tokenizer decodes both, behind
   it or in front of it: " the" and "ing" in WordPiece, "the " and "in" where words have an end
   mark. Which of the two is seen from sequences that the tokenizer decodes.
3. A character may be cut over several tokens. In the text of consecutive tokens it stands once,
   with the token that ends it; the others have U+FFFD in its place.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEQUENCES, _LENGTH = 32, 8  # decoded to see what a token's text depends on

_CUT = "\ufffd"
_HEXADECIMAL = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def texts(ids: Iterable[int], bytes_of: Callable[[int], bytes]) -> list[str]:
    """The texts of consecutive tokens, none of them empty.

    A token without any bytes reads as its id, such as `<token 7>`.

    Args:
        bytes_of: the bytes of an id, as from `token_bytes`; none for one that it doesn't know.
    """
    tokens = [bytes_of(id_) or _unknown(id_) for id_ in ids]
    try:
        return [token.decode() for token in tokens]
    except UnicodeDecodeError:
        return _joined(tokens)


class Texts:
    """The same of one vocabulary, for tokens that are read again and again.

    The texts of those that are whole characters by themselves are kept: looking one up takes a
    tenth of the time.

    Args:
        bytes_of: see `texts`.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._alone: dict[int, str] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        """See `texts`."""
        wanted, alone = list(ids), self._alone
        for id_ in wanted:
            if id_ not in alone:
                try:
                    alone[id_] = (self._bytes_of(id_) or _unknown(id_)).decode()
                except UnicodeDecodeError:
                    return texts(wanted, self._bytes_of)
        return [alone[id_] for id_ in wanted]


def _unknown(id_: int) -> bytes:
    return f"<token {id_}>".encode()


def _joined(tokens: list[bytes]) -> list[str]:
    """The texts of tokens that are not all whole characters."""
    result = [""] * len(tokens)
    owners = [place for place, token in enumerate(tokens) for _ in token]  # of each byte
    # A byte that belongs to no character becomes a lone surrogate.
    text = b"".join(tokens).decode("utf-8", "surrogateescape")
    sizes = [1 if "\ud800" <= char <= "\udfff" else len(char.encode()) for char in text]
    for char, size, end in zip(text, sizes, accumulate(sizes), strict=True):
        first, last = owners[end - size], owners[end - 1]
        for place in range(first, last):
            result[place] = result[place].removesuffix(_CUT) + _CUT
        if "\ud800" <= char <= "\udfff":
            result[last] = result[last].removesuffix(_CUT) + _CUT
        else:
            result[last] += char
    return result


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes of every id, from 0 to the tokenizer's largest; none for an id without a token.

    A single token need not be whole UTF-8. Special and added tokens stand for their literal text.
    """
    size = max(tokenizer.get_vocab().values()) + 1  # more than there are tokens, if ids have gaps
    tokens = tokenizer.convert_ids_to_tokens(list(range(size)))
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
    known = [id_ for id_, token in enumerate(tokens) if token is not None]
    result = [b""] * size
    if (read := _reader(tokenizer)) is not None:
        for id_ in known:
            result[id_] = added[id_].encode() if id_ in added else read(tokens[id_])
        return result
    characters = {chr(byte): byte for byte in range(256)} | _byte_alphabet()
    for id_, text in zip(known, _in_context(tokenizer, known, added), strict=True):
        if id_ in added and added[id_] not in text:
            text = added[id_]
        result[id_] = text.encode()
        if not text or _CUT in text:
            token = tokens[id_]
            result[id_] = _hexadecimal(token) or _spelled(token, characters) or result[id_]
    return result


def _in_context(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], added: dict[int, str]
) -> list[str]:
    """What each id adds to the text of another token."""

    def behind(ids: list[int]) -> list[str]:
        return [text.removeprefix(alone) for text in decode([[word, id_] for id_ in ids])]

    def in_front(ids: list[int]) -> list[str]:
        return [text.removesuffix(alone) for text in decode([[id_, word] for id_ in ids])]

    def decode(rows: list[list[int]]) -> list[str]:
        return [str(tokenizer.decode(row)) for row in rows]

    ordinary = [id_ for id_ in ids if id_ not in added] or ids
    word = next((id_ for id_ in ordinary if decode([[id_]])[0].strip().isalpha()), ordinary[0])
    [alone] = decode([[word]])
    draw = random.Random(0)
    rows = [[draw.choice(ordinary) for _ in range(_LENGTH)] for _ in range(_SEQUENCES)]

    def agreeing(add: Callable[[list[int]], list[str]]) -> int:
        """How many of the sequences read as their tokens do."""
        joined = ["".join(add(row)).strip() for row in rows]
        return sum(text == whole.strip() for text, whole in zip(joined, decode(rows), strict=True))

    return in_front(ids) if agreeing(in_front) > agreeing(behind) else behind(ids)


def _reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes] | None:
    """How to read one token, or None if the tokenizer doesn't decode each token alone."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return None
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        alphabet = _byte_alphabet()
        # A character outside the alphabet comes from a token that was added as text.
        return lambda token: _spelled(token, alphabet) or token.encode()
    # What follows `Fuse` is done to the whole text: SentencePiece takes its first space off.
    alone = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    if set(kinds[alone + 1 :]) - {"Strip"}:
        return None
    replaced = []
    for step in steps[:alone]:
        if step["type"] == "Metaspace":
            replaced.append((step["replacement"], " "))
        elif step["type"] == "Replace" and "String" in step["pattern"]:
            replaced.append((step["pattern"]["String"], step["content"]))
        elif step["type"] != "ByteFallback":
            return None
    byte_tokens = "ByteFallback" in kinds

    def read(token: str) -> bytes:
        if byte_tokens and (own := _hexadecimal(token)):
            return own
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return read


def _hexadecimal(token: str) -> bytes | None:
    match = _HEXADECIMAL.fullmatch(token)
    return bytes.fromhex(match[1]) if match else None


def _spelled(token: str, characters: dict[str, int]) -> bytes | None:
    """The bytes of a token that has a character for each."""
    if all(char in characters for char in token):
        return bytes(characters[char] for char in token)
    return None


def _byte_alphabet() -> dict[str, int]:
    """Bytes by the character with which byte-level BPE writes them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {char: byte for byte, char in bytes_to_unicode().items()}
