"""Text in: the sources of a corpus, read as a stream of pieces of documents.

A document is a text file, standard input, a row of a file or of a Hugging Face data set, a
document of the built-in corpus, or a string. It comes in pieces of bounded size, so that neither a
giant file nor a giant row is ever tokenised as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fastexplain.errors import CorpusError
from fastexplain.text import hub, stdlib
from fastexplain.text.files import NotTextError, documents, reading
from fastexplain.text.pieces import Piece, shortened

BUILT_IN = "stdlib"
_BYTES = 10_000_000  # the share of progress of what has no size, such as the built-in corpus
_FILES = 1_000_000  # of a directory; their paths take about 200 MB


class Sources:
    """All documents of some sources, in a fixed order.

    Attributes:
        passed_over: files found in directories that hold no text, by path, each with the reason;
            complete once all is read.

    Raises CorpusError, here for what isn't there and on reading for what can't be read.
    """

    passed_over: dict[str, str]

    def __init__(self, sources: Iterable[str | Path | Iterable[str]]) -> None:
        """Find them: files and the like by name, texts as iterables or data sets."""
        self.passed_over = {}
        self._parts: list[_Part] = []
        for source in sources:
            with reading(source):
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
            yield _Part(_BYTES, partial(documents, None))
        elif name == BUILT_IN:
            yield _Part(_BYTES, lambda _: stdlib.documents())
        elif isinstance(name, str) and name.startswith(hub.PREFIX):
            yield _Part(_BYTES, hub.open_data_set(name))
        elif not (path := Path(name)).exists():
            seen = "is a link to nothing" if path.is_symlink() else "does not exist"
            raise CorpusError(
                f"{shortened(str(path))} {seen}; a corpus is a text file, a directory, a .jsonl or"
                f" .parquet file, '{hub.PREFIX}NAME' for a Hugging Face data set, '-' for standard"
                f" input, or the built-in '{BUILT_IN}'"
            )
        elif path.is_dir():
            files = list(islice(_walk(path, self.passed_over), _FILES + 1))
            if len(files) > _FILES:
                raise CorpusError(
                    f"{shortened(str(path))} has more than {_FILES:,} files, the most that are"
                    " read; put the texts into fewer, such as rows of a .jsonl file"
                )
            yield _Part(sum(size for size, _ in files), partial(self._read, files))
        else:
            yield _Part(path.stat().st_size, partial(documents, path))

    def _read(self, files: list[tuple[int, str]], column: str) -> Iterator[Piece]:
        """The files of a directory, of which those that hold no text are passed over."""
        total = sum(size for size, _ in files) or 1
        before = 0
        for size, path in files:
            begun = False
            try:
                for piece in documents(Path(path), column, whole=True):
                    begun = True
                    yield piece._replace(done=(before + piece.done * size) / total)
            except NotTextError as error:
                if begun:  # what was read can't be taken back
                    raise
                self.passed_over[path] = error.reason
            before += size


def _strings(texts: Iterable[Any]) -> Iterator[Piece]:
    total = len(texts) if isinstance(texts, Sized) else 0
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise CorpusError(f"texts[{place}] is {type(text).__name__}, not a string")
        yield Piece(text, (place + 1) / total if total else 0.0)


class _Part(NamedTuple):
    """One source; the `done` of its pieces counts from 0 to 1 within it."""

    size: int  # bytes, its share of the progress
    read: Callable[[str], Iterator[Piece]]  # takes the column that holds the text of rows


def _walk(root: Path, passed_over: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Size and path of the files below a directory, the hidden aside, in sorted order."""
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        with reading(folder), os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            with reading(path):
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif path.is_file():
                    yield path.stat().st_size, entry.path
                else:
                    passed_over[entry.path] = "is no file, or a link to none"
        folders += reversed(below)
