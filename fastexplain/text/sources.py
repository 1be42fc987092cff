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
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fastexplain.errors import CorpusError
from fastexplain.text import hub, stdlib
from fastexplain.text.pieces import SIZE, Piece, text_of

BUILT_IN = "stdlib"
_BYTES = 10_000_000  # the share of progress of what has no size, such as the built-in corpus
_ROWS = 256  # rows of a parquet file decoded at a time


class Sources:
    """All documents of some sources, in a fixed order.

    Attributes:
        passed_over: files found in directories that are not UTF-8 text; complete once all is read.

    Raises CorpusError, here for what isn't there and on reading for what can't be read.
    """

    passed_over: int

    def __init__(self, sources: Iterable[str | Path | Iterable[str]]) -> None:
        """Find them: files and the like by name, texts as iterables or data sets."""
        self.passed_over = 0
        self._parts: list[_Part] = []
        for source in sources:
            with _reading(source):
                self._parts.extend(self._find(source))

    def pieces(self, column: str) -> Iterator[Piece]:
        """The pieces of all documents; `column` holds the text where they are rows."""
        total = sum(part.size for part in self._parts) or 1
        before = 0
        for part in self._parts:
            for document in part.read(column):
                for piece in document.cut():
                    yield piece._replace(done=(before + piece.done * part.size) / total)
            before += part.size

    def _find(self, name: str | Path | Iterable[str]) -> Iterator[_Part]:
        if hub.is_data_set(name):
            yield _Part(_BYTES, partial(hub.documents, name))
        elif not isinstance(name, str | Path):
            yield _Part(_BYTES, lambda _: _strings(name))
        elif name == "-":
            yield _Part(_BYTES, lambda _: _read_text(None))
        elif name == BUILT_IN:
            yield _Part(_BYTES, lambda _: stdlib.documents())
        elif isinstance(name, str) and name.startswith(hub.PREFIX):
            yield _Part(_BYTES, hub.open_data_set(name))
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


def _strings(texts: Iterable[Any]) -> Iterator[Piece]:
    total = len(texts) if isinstance(texts, Sized) else 0
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise CorpusError(f"texts[{place}] is {type(text).__name__}, not a string")
        yield Piece(text, (place + 1) / total if total else 0.0)


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
def _reading(path: object) -> Iterator[None]:
    """Turn what goes wrong while reading a file into a CorpusError that names it."""
    try:
        yield
    except UnicodeDecodeError:
        raise _NotTextError(f"{str(path)!r} is not UTF-8 text") from None
    except (EOFError, zlib.error):
        raise CorpusError(f"{str(path)!r} is damaged or cut short") from None
    except OSError as error:
        raise CorpusError(f"can't read {str(path)!r}: {error.strerror or error}") from error


def _read_text(path: Path | None) -> Iterator[Piece]:
    """A text file; without a path, standard input."""
    name = "standard input" if path is None else str(path)
    with _reading(name), path.open("rb") if path else nullcontext(sys.stdin.buffer) as file:
        size = path.stat().st_size if path else 0  # 0 for a pipe, which has no place to tell either
        stream = io.TextIOWrapper(file, encoding="utf-8-sig")
        try:
            first = True
            while text := stream.read(SIZE) + stream.readline(SIZE):
                if "\0" in text:  # decodes, but no text has it
                    raise _NotTextError(f"{name!r} is not text: it has null bytes")
                yield Piece(text, file.tell() / size if size else 0.0, first)
                first = False
        finally:
            stream.detach()  # standard input is not ours to close


def _read_jsonl(path: Path, column: str) -> Iterator[Piece]:
    with _reading(path), path.open("rb") as file:
        size = path.stat().st_size
        rows: Any = gzip.GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file
        with io.TextIOWrapper(rows, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                place = f"{str(path)!r}, line {number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    reason = getattr(error, "msg", error)
                    raise CorpusError(f"{place}: not JSON ({reason})") from None
                if not isinstance(row, dict):
                    raise CorpusError(f"{place}: not a JSON object, which should have {column!r}")
                done = file.tell() / size if size else 0.0
                yield Piece(text_of(row, column, place), done)


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
            text_of(dict.fromkeys(file.schema_arrow.names), column, repr(str(path)))
            number = 0
            for batch in file.iter_batches(_ROWS, columns=[column]):
                for row in batch.to_pylist():
                    number += 1
                    text = text_of(row, column, f"{str(path)!r}, row {number}")
                    yield Piece(text, number / file.metadata.num_rows)
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise CorpusError(f"can't read {str(path)!r}: {reason}") from error
