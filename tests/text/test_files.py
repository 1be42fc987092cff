"""Formats of files: each is told by its content and its name, and read, or refused by name."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from documents import held, random_ids, spelled, windows, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.errors import CorpusError
from fastexplain.text.corpus import Corpus
from fastexplain.text.pieces import LONGEST
from fastexplain.text.sources import Sources

DOCUMENTS = [random_ids(200, seed) for seed in range(3)]
ROWS = [{"text": spelled(ids), "id": number} for number, ids in enumerate(DOCUMENTS)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()
TABLE = io.StringIO()
csv.DictWriter(TABLE, ["id", "text"]).writerows([{"id": "id", "text": "text"}, *ROWS])
PLAIN = spelled(DOCUMENTS[0]).encode()
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress}


def texts_of(path, column="text"):
    documents: list[str] = []
    for piece in Sources([path]).pieces(column):
        if piece.first:
            documents.append("")
        documents[-1] += piece.text
    return documents


def refused(path, **settings) -> str:
    with pytest.raises(CorpusError) as caught:
        list(Sources([path]).pieces(settings.get("column", "text")))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("packed", ["", *PACK])
@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("rows.jsonl", LINES, DOCUMENTS),
        ("rows.ndjson", LINES, DOCUMENTS),
        ("ROWS.JSONL", LINES, DOCUMENTS),
        ("rows.json", LINES, DOCUMENTS),
        ("list.json", LIST, DOCUMENTS),
        ("rows", LINES, DOCUMENTS),  # by its first line
        ("rows.txt", codecs.BOM_UTF8 + LINES, DOCUMENTS),
        ("utf16.jsonl", LINES.decode().encode("utf-16"), DOCUMENTS),
        ("table.csv", TABLE.getvalue().encode(), DOCUMENTS),
        ("table.tsv", TABLE.getvalue().replace(",", "\t").encode("utf-16"), DOCUMENTS),
        ("plain.txt", PLAIN, DOCUMENTS[:1]),
        ("plain", PLAIN, DOCUMENTS[:1]),
        ("utf16.txt", PLAIN.decode().encode("utf-16"), DOCUMENTS[:1]),
        ("utf16be.txt", codecs.BOM_UTF16_BE + PLAIN.decode().encode("utf-16-be"), DOCUMENTS[:1]),
        ("utf32.md", PLAIN.decode().encode("utf-32"), DOCUMENTS[:1]),
        ("twice.txt", codecs.BOM_UTF8 * 2 + PLAIN, DOCUMENTS[:1]),
    ],
)
def test_each_format_is_read_packed_or_not(words, tmp_path, name, content, documents, packed):
    path = tmp_path / (f"{name}.{packed}" if packed else name)
    path.write_bytes(PACK[packed](content) if packed else content)
    assert held(Corpus([path], words)) == windows(documents)
    misnamed = tmp_path / f"misnamed-{name}"  # the content tells that it is packed
    misnamed.write_bytes(path.read_bytes())
    assert held(Corpus([misnamed], words)) == windows(documents)


@pytest.mark.parametrize("content", [LINES, PACK["zst"](LINES)], ids=["lines", "packed"])
def test_standard_input_may_have_rows(words, monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert held(Corpus(["-"], words)) == windows(DOCUMENTS)


def test_standard_input_that_is_parquet_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(parquet(text=["w1"]))))
    assert "standard input is a parquet file; give its path" in refused("-")


def test_files_with_byte_order_marks_may_be_put_together(tmp_path):
    (tmp_path / "a.jsonl").write_bytes((codecs.BOM_UTF8 + LINES) * 2)
    (tmp_path / "a.txt").write_bytes((codecs.BOM_UTF8 + b"one\n") * 2)
    assert texts_of(tmp_path / "a.jsonl") == [row["text"] for row in ROWS] * 2
    assert texts_of(tmp_path / "a.txt") == ["one\none\n"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{\n "text": 1\n}\n'),
        ("numbers.json", b"[1, 2]"),
        ("package.txt", b'{"name": "x"}\n{"name": "y"}\n'),
        ("braces.c", b"{ return 0; }\n"),
        ("deep.json", b'{"text":' + b"[" * 100_000),
        ("links.md", b"[text](x)\n"),
    ],
)
def test_text_that_only_looks_like_rows_is_text(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert texts_of(tmp_path / name) == [content.decode()]


def test_a_first_row_longer_than_what_tells_the_format_is_a_row(tmp_path):
    text = "w1 " * 100_000
    (tmp_path / "lines.json").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "list.json").write_text(json.dumps([{"text": text}]))
    assert texts_of(tmp_path) == [text] * 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"text": st.text(st.characters(exclude_categories=["Cs"]), min_size=1)},
            optional={"n": st.integers() | st.lists(st.text())},
        ),
        min_size=1,
    ),
    indent=st.none() | st.integers(0, 2),
    size=st.integers(1, 40),
)
def test_a_list_is_read_as_its_rows_wherever_it_is_cut(tmp_path_factory, rows, indent, size):
    path = tmp_path_factory.mktemp("list") / "list.json"
    path.write_text(json.dumps(rows, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastexplain.text.files.SIZE", size)
        assert texts_of(path) == [row["text"] for row in rows]


def archive(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("a.txt", "w1 " * 99)
    else:
        with tarfile.open(fileobj=file, mode=kind) as packed:
            packed.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def parquet(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.zip", archive("zip"), ["a zip archive"]),
        ("a.txt", archive("zip"), ["a zip archive"]),
        ("a.tar", archive("w"), ["a tar archive"]),
        ("a.tar.gz", archive("w:gz"), ["a tar archive"]),
        ("a.pdf", b"%PDF-1.7 text\n", ["a PDF"]),
        ("a.arrow", b"ARROW1\0\0", ["an Arrow file"]),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer"]),
        ("a.parquet", b"w1 w2", ["no .parquet file"]),
        ("a.txt.zst", b"w1 w2", ["no .zst file"]),
        ("a.parquet.gz", gzip.compress(parquet(text=["w1"])), ["packed file"]),
        ("a.txt.gz", gzip.compress(gzip.compress(b"w1")), ["packed file"]),
        ("a.txt", "café".encode("cp1252"), ["not UTF-8 text", "0xe9", "iconv"]),
        ("a.txt", codecs.BOM_UTF16_LE + b"a", ["not UTF-16 text"]),
        ("a.txt", "w1 ".encode("utf-16-le") * 9, ["null bytes"]),
        ("a.txt.gz", gzip.compress(PLAIN)[:-9], ["damaged or cut short"]),
        ("a.txt.zst", zstd.compress(PLAIN)[:-9], ["damaged or cut short"]),
        ("a.txt.zst", zstd.compress(PLAIN)[:60] + b"\xff" * 60, ["damaged or cut short"]),
        ("a.txt.xz", lzma.compress(PLAIN)[:60] + b"\xff" * 60, ["damaged or cut short"]),
        ("a.txt.bz2", bz2.compress(PLAIN)[:60] + b"\xff" * 60, ["a.txt.bz2"]),
        ("a.json", b'{"body": 1}\n{"body": 2}\n', ["no column 'text'", "'body'"]),
        ("a.json", b'[{"body": 1}]', ["no column 'text'", "'body'"]),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", ["line 1", "can't be read as JSON"]),
        ("a.json", b'[{"text": "w1"}, 3]', ["row 2", "not a JSON object"]),
        ("a.json", b'[{"text": "w1"}, {"text"', ["row 2", "can't be read as JSON"]),
        ("a.csv", b"id,body\n1,w1\n", ["no column 'text'", "'id', 'body'"]),
        ("a.csv", b"", ["no column 'text'", "none"]),
        ("a.jsonl", b'{"text": ["w1", "w2"]}', ["line 1", "'text' is list"]),
        ("a.jsonl", b'{"messages": []}', ["line 1", "no column 'text'", "'messages'"]),
        ("a.parquet", parquet(text=[["w1"]]), ["row 1", "'text' is list"]),
        ("a.parquet", parquet(text=[None, 3]), ["row 2", "'text' is int"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_read_is_refused_in_one_line_and_passed_over_in_a_directory(
    tmp_path, name, content, parts
):
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    path.write_bytes(content)
    message = refused(path)
    assert name in message and all(part in message for part in parts), message
    if parts[0].startswith(("row", "line")):  # a column may be misspelled
        assert refused(path.parent) == message
    else:
        found = Sources([path.parent])
        assert list(found.pieces("text")) == []
        [(passed, reason)] = found.passed_over.items()
        assert passed == str(path) and reason in message


def test_rows_that_turn_out_damaged_are_not_passed_over(tmp_path):
    """What was read of them can't be taken back."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "w1"}\n\xff\n' + b"x" * 2**17)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "w1"}\n' * 2**15 + b"\xff\n")
    assert "not UTF-8" in refused(tmp_path)


def test_the_reasons_of_files_that_are_passed_over_are_counted(words, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_bytes(b"\xe9")
    (tmp_path / "c.zip").write_bytes(archive("zip"))
    write_rows(tmp_path / "rows.jsonl", DOCUMENTS)
    corpus = Corpus([tmp_path], words)
    line = "files passed over: 3 (not UTF-8 text: 2; a zip archive: 1)"
    assert corpus.passed_over_line() == line
    assert list(corpus.passed_over) == [
        str(tmp_path / name) for name in ("a.txt", "b.txt", "c.zip")
    ]


# Bounds


def test_a_row_has_a_greatest_length(tmp_path, monkeypatch):
    monkeypatch.setattr("fastexplain.text.pieces.LONGEST", 100)
    monkeypatch.setattr("fastexplain.text.files.LONGEST", 100)
    long, short = {"text": "w1 " * 40}, {"text": "w1 " * 20}
    for name, content in [
        ("a.jsonl", json.dumps(long).encode()),
        ("a.json", json.dumps([long]).encode()),
        ("a.parquet", parquet(**{"text": [long["text"]]})),
        ("b.parquet", parquet(**{"text": [*["w"] * 99, long["text"]]})),
    ]:
        (tmp_path / name).write_bytes(content)
        assert "longer than 100 characters" in refused(tmp_path / name), name
    (tmp_path / "a.jsonl").write_text(json.dumps(short))
    assert texts_of(tmp_path / "a.jsonl") == [short["text"]]


def test_a_quotation_mark_that_is_never_closed_ends_at_the_greatest_length(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"' + "w1 " * (LONGEST // 3 + 9))
    message = refused(tmp_path / "a.csv")
    assert "can't be read as a table (field larger than field limit (33554432))" in message


PEAK = """
import resource, sys
from fastexplain.errors import CorpusError
from fastexplain.text.sources import Sources
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
characters = 0
try:
    for piece in Sources([sys.argv[1]]).pieces("text"):
        characters += len(piece.text)
except CorpusError as error:
    print(error, file=sys.stderr)
print(characters, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
BIG = 120_000_000  # characters


@pytest.mark.parametrize("name", ["row.jsonl.gz", "list.json.gz", "text.gz", "row.parquet"])
def test_a_small_file_that_unpacks_to_much_takes_little_memory(tmp_path, name):
    if sys.platform != "linux":
        pytest.skip("the unit of ru_maxrss is Linux's")
    path, text = tmp_path / name, "w1 " * (BIG // 3)
    if name == "row.parquet":
        pq.write_table(pa.table({"text": [text]}), path, compression="zstd")
    else:
        row = {"row": f'{{"text": "{text}"}}', "list": f'[{{"text": "{text}"}}]'}
        path.write_bytes(gzip.compress(row.get(name.partition(".")[0], text).encode(), 1))
    assert path.stat().st_size < BIG // 100
    command = [sys.executable, "-c", PEAK, str(path)]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    characters, peak = map(int, child.stdout.split())
    if name == "text.gz":
        assert characters == BIG  # a text of any length is read piece by piece
    else:
        assert characters == 0 and "longer than 33,554,432 characters" in child.stderr
    assert peak < 250_000_000


def test_a_directory_may_be_deep(tmp_path):
    """Deeper than Python nests calls; a path has at most 4,096 bytes."""
    folders = [tmp_path]
    while len(folders) < 1_200:
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    (folders[-1] / "a.txt").write_text("deep")
    assert texts_of(tmp_path) == ["deep"]
    (folders[-1] / "a.txt").unlink()
    for folder in reversed(folders[1:]):  # shutil.rmtree nests calls
        folder.rmdir()


def test_links_in_a_loop_end(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "folder" / "pipe")
    found = Sources([tmp_path])
    assert [piece.text for piece in found.pieces("text")] == ["text"]
    assert {path.rpartition("/")[2] for path in found.passed_over} == {"self", "up", "pipe"}
    assert set(found.passed_over.values()) == {"is no file, or a link to none"}
    assert "self' is a link to nothing" in refused(tmp_path / "self")


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    for name in ("b/c.txt", "b/a/z.txt", "a.txt", "z.txt", "B.txt", "a/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    read = texts_of(tmp_path)
    assert read == ["B.txt", "a.txt", "z.txt", "a/a.txt", "b/c.txt", "b/a/z.txt"]
    done = [piece.done for piece in Sources([tmp_path]).pieces("text")]
    assert all(one < other for one, other in pairwise(done)) and done[-1] == 1


def test_a_directory_has_a_greatest_number_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr("fastexplain.text.sources._FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("text")
    assert "more than 3 files" in refused(tmp_path)
    (tmp_path / "0.txt").unlink()
    assert texts_of(tmp_path) == ["text"] * 3


def test_a_long_path_is_quoted_in_part(tmp_path):
    message = refused("x" * 5000)
    assert "too long" in message and len(message) < 400
