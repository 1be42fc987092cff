"""Text in: the sources of a corpus, read as a stream of pieces of documents.

A document is a text file, standard input, a row of a `.jsonl` or `.parquet` file or of a Hugging
Face data set, a document of the built-in corpus, or a string. It comes in pieces of bounded size,
so that neither a giant file nor a giant row is ever held, or tokenised, as a whole.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from fastexplain.errors import CorpusError, UsageError
from fastexplain.text import hub, stdlib

# Characters; a piece ends at the first line end after so many, or within a line of twice as many.
# About 5,000 tokens: few enough that a batch keeps many cores busy, enough that cuts are rare, as
# the tokens right at a cut may be others than in the whole text.
PIECE = 16_384

BUILT_IN = "stdlib"
_BYTES = 10_000_000  # the share of progress of what has no size, such as the built-in corpus
_ROWS = 256  # rows of a parquet file decoded at a time


class Piece(NamedTuple):
    """Consecutive text of one document.

    Attributes:
        text: not empty.
        first: whether it begins a document.
        done: the fraction of all documents that is read once this is.
    """

    text: str
    first: bool
    done: float


class Sources:
    """All documents of some sources, in a fixed order.

    Attributes:
        passed_over: files found in directories that are not UTF-8 text; complete once all is read.

    Raises CorpusError, here for what isn't there and on reading for what can't be read.
    """

    passed_over: int

    def __init__(self, names: Sequence[str | Path]) -> None:
        self.passed_over = 0
        self._parts: list[_Part] = []
        for name in names:
            with _reading(name):
                self._parts.extend(self._find(name))

    def pieces(self, column: str) -> Iterator[Piece]:
        """The pieces of all documents; `column` holds the text where they are rows."""
        total = sum(part.size for part in self._parts) or 1
        before = 0
        for part in self._parts:
            for piece in part.read(column):
                yield piece._replace(done=(before + piece.done * part.size) / total)
            before += part.size

    def _find(self, name: str | Path) -> Iterator[_Part]:
        if name == "-":
            yield _Part(_BYTES, lambda _: _read_text(None))
        elif name == BUILT_IN:
            yield _Part(_BYTES, lambda _: _read_rows(stdlib.documents()))
        elif isinstance(name, str) and name.startswith(hub.PREFIX):
            documents = hub.open_data_set(name)
            yield _Part(_BYTES, lambda column: _read_rows(documents(column)))
        elif not (path := Path(name)).exists():
            raise CorpusError(
                f"no file or directory {str(path)!r}; a corpus is a text file, a directory, a"
                f" .jsonl or .parquet file, '{hub.PREFIX}NAME' for a Hugging Face data set, '-' for"
                f" standard input, or the built-in '{BUILT_IN}'"
            )
        elif path.is_dir():
            for file in _walk(path):
                yield _Part(file.stat().st_size, partial(self._read, file, found=True))
        else:
            yield _Part(path.stat().st_size, partial(self._read, path))

    def _read(self, path: Path, column: str, *, found: bool = False) -> Iterator[Piece]:
        """A file; one found in a directory only if all of it is text, which may turn out late."""
        name = path.name.lower()
        if name.endswith((".jsonl", ".jsonl.gz")):
            yield from _read_jsonl(path, column)
        elif name.endswith(".parquet"):
            yield from _read_parquet(path, column)
        else:
            try:
                for _ in _read_text(path) if found else ():
                    pass
            except _NotTextError:
                self.passed_over += 1
            else:
                yield from _read_text(path)


class Texts:
    """Documents that are strings already, in their order."""

    passed_over = 0

    def __init__(self, texts: Iterable[Any]) -> None:
        """Take the texts, unread: an iterable of strings, or a data set of `datasets`.

        Raises:
            UsageError: it holds no documents.
        """
        if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
            advice = "; choose one of its splits" if isinstance(texts, Mapping) else ""
            raise UsageError(
                "texts must be an iterable of strings or a data set, not one"
                f" {type(texts).__name__}{advice}"
            )
        self._texts = texts

    def pieces(self, column: str) -> Iterator[Piece]:
        """The pieces of all documents; `column` of a data set holds the text.

        Raises:
            CorpusError: a document is no string.
        """
        if hub.is_data_set(self._texts):
            return _read_rows(hub.documents(self._texts, column))
        return _read_rows(_numbered(self._texts))


def _numbered(texts: Iterable[Any]) -> Iterator[tuple[float, str]]:
    total = len(texts) if isinstance(texts, Sized) else 0
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise CorpusError(f"texts[{place}] is {type(text).__name__}, not a string")
        yield (place + 1) / total if total else 0.0, text


class _Part(NamedTuple):
    """One readable thing; the `done` of its pieces counts from 0 to 1 within it."""

    size: int  # bytes, its share of the progress
    read: Callable[[str], Iterator[Piece]]  # takes the column that holds the text of rows


class _NotTextError(CorpusError):
    """A file is not UTF-8 text."""


def _walk(root: Path) -> Iterator[Path]:
    """The files below a directory, hidden ones and links to directories aside, in sorted order."""

    def refuse(error: OSError) -> None:
        raise CorpusError(f"can't read {error.filename!r}: {error.strerror}")

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while reading a file into a CorpusError that names it."""
    try:
        yield
    except UnicodeDecodeError:
        raise _NotTextError(f"{str(path)!r} is not UTF-8 text") from None
    except (EOFError, zlib.error):
        raise CorpusError(f"{str(path)!r} is damaged or cut short") from None
    except OSError as error:
        raise CorpusError(f"can't read {str(path)!r}: {error.strerror or error}") from error


def _cut(stream: TextIO) -> Iterator[str]:
    while text := stream.read(PIECE) + stream.readline(PIECE):
        yield text


def _row(text: str, done: float) -> Iterator[Piece]:
    # A string, in JSON too, may hold half of a surrogate pair, which can't be tokenised.
    text = text.encode("utf-8", "replace").decode()
    for place, piece in enumerate(_cut(io.StringIO(text))):
        yield Piece(piece, place == 0, done)


def _read_text(path: Path | None) -> Iterator[Piece]:
    """A text file; without a path, standard input."""
    name = "standard input" if path is None else str(path)
    with _reading(name), path.open("rb") if path else nullcontext(sys.stdin.buffer) as file:
        size = path.stat().st_size if path else 0  # 0 for a pipe, which has no place to tell either
        stream = io.TextIOWrapper(file, encoding="utf-8-sig")
        try:
            for place, text in enumerate(_cut(stream)):
                if "\0" in text:  # decodes, but no text has it
                    raise _NotTextError(f"{name!r} is not text: it has null bytes")
                yield Piece(text, place == 0, file.tell() / size if size else 0.0)
        finally:
            stream.detach()  # standard input is not ours to close


def _read_jsonl(path: Path, column: str) -> Iterator[Piece]:
    with _reading(path), path.open("rb") as file:
        size = path.stat().st_size
        rows: Any = gzip.GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file
        with io.TextIOWrapper(rows, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    text = _field(line, column, f"{str(path)!r}, line {number}")
                    yield from _row(text, file.tell() / size if size else 0.0)


def _field(line: str, column: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: not a JSON object, which should have {column!r}")
    if column not in row:
        raise CorpusError(f"{where}: no column {column!r}; there are {hub.names(row)}")
    text = row[column]
    if not isinstance(text, str | None):
        raise CorpusError(f"{where}: {column!r} is not a string")
    return text or ""


def _read_parquet(path: Path, column: str) -> Iterator[Piece]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise CorpusError(
            f"reading {str(path)!r} needs pyarrow: pip install 'fastexplain[parquet]'"
        ) from None
    try:
        with _reading(path), pq.ParquetFile(path) as file:
            _check_column(file.schema_arrow, column, path)
            for group in range(file.num_row_groups):
                done = (group + 1) / file.num_row_groups
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[column]):
                    for text in batch.column(0).to_pylist():
                        yield from _row(text or "", done)
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise CorpusError(f"can't read {str(path)!r}: {reason}") from error


def _check_column(schema: Any, column: str, path: Path) -> None:
    if column not in schema.names:
        there = hub.names(schema.names)
        raise CorpusError(f"{str(path)!r}: no column {column!r}; there are {there}")
    kind = schema.field(column).type
    if str(getattr(kind, "value_type", kind)) not in ("string", "large_string", "string_view"):
        raise CorpusError(f"{str(path)!r}: column {column!r} holds {kind}, not text")


def _read_rows(documents: Iterable[tuple[float, str]]) -> Iterator[Piece]:
    for done, text in documents:
        yield from _row(text, done)
