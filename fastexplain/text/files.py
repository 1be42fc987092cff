"""A file of a corpus, read as what it is: its content tells the format, then its name.

1. gzip, bzip2, xz and Zstandard are unpacked as they are read.
2. Parquet has rows. Archives and the like, which hold no text as such, are refused by name.
3. `.jsonl` and `.ndjson` have a JSON object a line, and so has any text whose first line is a JSON
   object with the column; `.json` may also be a list of objects; `.csv` and `.tsv` have a row of
   column names first.
4. All else must be text: UTF-8, or UTF-16 and UTF-32 with a byte order mark.

Of a file, memory holds at most a row of `LONGEST` characters, whatever the file unpacks to.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from fastexplain.errors import CorpusError
from fastexplain.text.pieces import LONGEST, SIZE, Piece, names, shortened, text_of, too_long

_HEAD = 2**18  # bytes that tell the format, the first line among them
_ROWS = 16  # of a parquet file decoded at a time, each of which may be of the greatest length

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BLANK = "\ufeff \t\r\n"
_ROWS_BY_NAME = (".jsonl", ".ndjson", ".jsonlines")
_REFUSED = {
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a": "a RAR archive",
    b"ARROW1": "an Arrow file",
    b"Obj\x01": "an Avro file",
    b"%PDF": "a PDF file",
    b"SQLite format 3\0": "an SQLite database",
    b"version https://git-lfs": "a Git LFS pointer instead of the file",
}
_MARKS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class NotTextError(CorpusError):
    """A file holds no text, or none that can be read.

    Attributes:
        reason: without the file's name, alike for files alike.
    """

    def __init__(self, name: str, reason: str, advice: str = "") -> None:
        super().__init__(f"{shortened(name)} {reason}{advice}")
        self.reason = reason


def documents(path: Path | None, column: str, *, whole: bool = False) -> Iterator[Piece]:
    """The documents of a file; without a path, of standard input.

    Args:
        column: that holds the text of rows.
        whole: of a file that has no rows, yield nothing before all of it has proved to be text.

    Raises:
        NotTextError: the file is not text and has no rows, or is damaged.
        CorpusError: it can't be read, or a row is malformed, too long or without text.
    """
    name = "standard input" if path is None else str(path)
    with reading(name), _opened(path) as file:
        size = path.stat().st_size if path else 0  # 0 for a pipe, which has no place to tell either

        def done() -> float:
            return min(file.tell() / size, 1.0) if size else 0.0

        head, stream = _begun(file)
        suffixes = [suffix.lower() for suffix in path.suffixes[-2:]] if path else []
        for magic, kind in _REFUSED.items():
            if head.startswith(magic):
                raise NotTextError(name, f"is {kind}", ", which is not read: unpack or convert it")
        if suffixes and not head.startswith(_MAGIC.get(suffixes[-1], b"")):
            raise NotTextError(name, f"is no {suffixes[-1]} file")
        if head.startswith(b"PAR1"):
            yield from _parquet(path, column)
            return
        for magic, unpack in _PACKED.values():
            if head.startswith(magic):
                head, stream = _begun(unpack(stream))
                break
        if head[257:262] == b"ustar":
            raise NotTextError(name, "is a tar archive", ", which is not read: unpack it")
        if head.startswith(tuple(_MAGIC.values())):
            raise NotTextError(name, "holds a packed file", ": unpack it")
        encoding = next((_MARKS[mark] for mark in _MARKS if head.startswith(mark)), "utf-8-sig")
        text = io.TextIOWrapper(io.BufferedReader(stream, 2**16), encoding)
        rows = _rows(head, encoding, name, suffixes, column)
        if rows is not None:
            for place, row in rows(text, name):
                yield Piece(text_of(row, column, f"{shortened(name)}, {place}"), done())
        elif whole and len(head) == _HEAD:
            for _ in _plain(text, name):
                pass
            yield from documents(path, column)
        else:
            pieces = list(_plain(text, name)) if whole else _plain(text, name)
            for number, piece in enumerate(pieces):
                yield Piece(piece, done(), number == 0)


@contextmanager
def reading(name: object) -> Iterator[None]:
    """Turn what goes wrong while reading a file into a CorpusError that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        encoding = error.encoding.upper().removesuffix("-LE").removesuffix("-BE")
        byte = f"; it has the byte 0x{error.object[error.start]:02x}"
        advice = f"{byte}: convert it, for example with iconv -f ENCODING -t UTF-8"
        raise NotTextError(str(name), f"is not {encoding} text", advice) from None
    except (EOFError, zlib.error, lzma.LZMAError):
        raise NotTextError(str(name), "is damaged or cut short") from None
    except OSError as error:
        reason = error.strerror or error
        raise CorpusError(f"can't read {shortened(str(name))}: {reason}") from error


def _opened(path: Path | None) -> Any:
    return path.open("rb", buffering=0) if path else nullcontext(sys.stdin.buffer)


class _Rest(io.RawIOBase):
    """A stream of which the head was read already, from its beginning."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._stream.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def _begun(stream: Any) -> tuple[bytes, _Rest]:
    """The head of a stream, and all of it."""
    head = b""
    while len(head) < _HEAD and (more := stream.read(_HEAD - len(head))):
        head += more
    return head, _Rest(head, stream)


def _zstandard(stream: Any) -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    class File(zstd.ZstdFile):
        def read(self, size: int | None = -1) -> bytes:
            try:
                return super().read(size)
            except zstd.ZstdError:
                raise EOFError from None

    return File(stream)


# By the suffix of their names: how packed files begin, and what unpacks them.
_PACKED: dict[str, tuple[bytes, Callable[[Any], Any]]] = {
    ".gz": (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    ".bz2": (b"BZh", bz2.BZ2File),
    ".xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
    ".zst": (b"\x28\xb5\x2f\xfd", _zstandard),
}
_MAGIC = {suffix: magic for suffix, (magic, _) in _PACKED.items()} | {".parquet": b"PAR1"}

_Rows = Callable[[io.TextIOWrapper, str], Iterator[tuple[str, dict[str, Any]]]]


def _rows(head: bytes, encoding: str, name: str, suffixes: list[str], column: str) -> _Rows | None:
    """What reads the rows of a text (each with its place), if it has rows.

    `.json`, `.csv` and `.tsv` have any content: without the column they are refused as no text.
    """
    if any(suffix in _ROWS_BY_NAME for suffix in suffixes):
        return _lines
    delimiter = next((_DELIMITERS[suffix] for suffix in suffixes if suffix in _DELIMITERS), None)
    if delimiter is not None:
        header = head.decode(encoding, "replace").lstrip(_BLANK).split("\n", 1)[0].rstrip()
        _check_column(next(csv.reader([header], delimiter=delimiter), []), column, name)
        return partial(_table, delimiter=delimiter)
    if not head[:32].decode(encoding, "replace").lstrip(_BLANK).startswith(("{", "[")):
        return None
    text = head.decode(encoding, "replace").lstrip(_BLANK)
    is_list = ".json" in suffixes and text.startswith("[")
    first = text[1:].lstrip() if is_list else text.partition("\n")[0]
    try:
        row, end = json.JSONDecoder().raw_decode(first) if first.startswith("{") else (None, 0)
    except (ValueError, RecursionError):
        cut = len(head) == _HEAD and "\n" not in first
        if cut and ".json" in suffixes:
            return _list if is_list else _lines
        return None
    if row is None or (first[end:].strip() and not is_list):
        return None
    if ".json" in suffixes:
        _check_column(row, column, name)
    return (_list if is_list else _lines) if column in row else None


def _check_column(columns: Collection[str], column: str, name: str) -> None:
    if column not in columns:
        advice = f"; there are {names(columns)}"
        raise NotTextError(name, f"has rows with no column {column!r}", advice)


def _table(
    text: io.TextIOWrapper, name: str, delimiter: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    lines = iter(lambda: text.readline(LONGEST).lstrip("\ufeff"), "")
    reader = csv.DictReader(lines, delimiter=delimiter)
    try:
        for row in reader:
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        place = f"line {reader.line_num}"
        raise _no_rows(name, place, f"can't be read as a table ({error})") from None


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    while line := text.readline(LONGEST + 1):
        number += 1
        place = f"line {number}"
        if len(line) > LONGEST:
            raise too_long(f"{shortened(name)}, {place}")
        # Files with byte order marks may have been put together.
        if line := line.lstrip("\ufeff").strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _no_rows(
                    name, place, f"can't be read as JSON ({getattr(error, 'msg', error)})"
                ) from None
            if not isinstance(row, dict):
                raise _no_rows(name, place, "not a JSON object")
            yield place, row


def _list(text: io.TextIOWrapper, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, which is never held as a whole."""
    decode = json.JSONDecoder().raw_decode
    buffer, start, number = text.read(SIZE).lstrip(_BLANK), 1, 1
    while True:
        while start < len(buffer) and buffer[start] in " \t\r\n,":
            start += 1
        place = f"row {number}"
        try:
            row, start = decode(buffer, start)
        except (ValueError, RecursionError) as error:
            if buffer[start : start + 1] == "]":
                return
            # Perhaps it goes on. The more there is, the more is read, so that time stays linear.
            buffer, start = buffer[start:], 0
            if len(buffer) > LONGEST:
                raise too_long(f"{shortened(name)}, {place}") from None
            more = text.read(max(len(buffer), SIZE))
            if not more:
                reason = f"can't be read as JSON ({getattr(error, 'msg', error)})"
                raise _no_rows(name, place, reason) from None
            buffer += more
            continue
        if not isinstance(row, dict):
            raise _no_rows(name, place, "not a JSON object")
        yield place, row
        number += 1


def _plain(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    while piece := text.read(SIZE) + text.readline(SIZE):
        if "\0" in piece:  # decodes, but no text has it
            raise NotTextError(name, "is not text: it has null bytes")
        yield piece.replace("\ufeff", "")


def _parquet(path: Path | None, column: str) -> Iterator[Piece]:
    name = shortened(str(path))
    if path is None:
        raise CorpusError("standard input is a parquet file; give its path")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        advice = "pip install 'fastexplain[parquet]'"
        raise CorpusError(f"reading {name} needs pyarrow ({error}): {advice}") from None
    try:
        with pq.ParquetFile(path) as file:
            text_of(dict.fromkeys(file.schema_arrow.names), column, name)
            number = 0
            for index in range(file.num_row_groups):
                group = file.metadata.row_group(index)
                columns = [group.column(place) for place in range(group.num_columns)]
                held = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)
                if held > 4 * LONGEST * group.num_rows:  # before it is unpacked as a whole
                    raise too_long(f"{name}, a row from row {number + 1} on")
                for batch in file.iter_batches(_ROWS, row_groups=[index], columns=[column]):
                    for text in batch.column(0):
                        number += 1
                        place = f"{name}, row {number}"
                        row = text_of({column: text.as_py()}, column, place)
                        yield Piece(row, number / file.metadata.num_rows)
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise CorpusError(f"can't read {name}: {reason}") from error


def _no_rows(name: str, place: str, reason: str) -> CorpusError:
    return CorpusError(f"{shortened(name)}, {place}: {reason}")
