"""Text in, excerpts out.

1. `sources.py` reads documents, in pieces (`hub.py` those of a Hugging Face data set); a batch of
   pieces is tokenised at a time.
2. Every document's tokens are cut into excerpts, end to end from its start; what is left at its
   end, too short for one, is dropped. Excerpts go to a temporary file as they come.
3. Each excerpt has a 128-bit hash of its tokens, keyed with the seed. Equal hashes are duplicates
   and the first is kept; the order of the hashes is the shuffle. So the shuffle depends on the
   excerpts and the seed alone, not on the order of sources nor on a library's random generator,
   and the first N of it are a uniform sample.
4. The excerpts that are wanted are gathered in that order into a second file, which is mapped.
   Those that stand beside one of them in its document, and are left out, are gathered too: nothing
   is computed on them, but a reader wants to see more than 64 tokens.

Besides a batch, memory holds 28 bytes an excerpt while reading and about 80 while sorting: little
more than 1 byte for each token of the corpus. The files have no name, so nothing is left behind,
however the process ends. They are in the directory of temporary files (TMPDIR), at 4 bytes a token.
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from fastexplain.errors import CorpusError, UsageError
from fastexplain.text.pieces import Piece
from fastexplain.text.sources import Sources

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

_BATCH = 1_000_000  # characters tokenised at a time; the tokenizer's own records take about 60 MB
_BLOCK = 16_384  # excerpts copied at a time, 4 MB


class Placed(NamedTuple):
    """Excerpts and where they stand; see the attributes of the same names of `Corpus`."""

    tokens: np.ndarray
    documents: np.ndarray
    offsets: np.ndarray


class Corpus:
    """Excerpts of text, shuffled, without exact duplicates.

    Attributes:
        tokens: int32 `[excerpts, tokens]`, memory-mapped and read-only; the row is the excerpt's
            global id. No special tokens: whether a BOS goes before them is the subject's business.
        documents: int32 `[excerpts]`, the document of each, numbered as they were read.
        offsets: int64 `[excerpts]`, the place of its first token in that document, in tokens.
        seed: of the shuffle.
        sources: as given; none where the corpus was made from texts or excerpts.
        fingerprint: SHA-256, in hexadecimal, of `tokens`, and thus of their order.
        available: the distinct excerpts that there were before `excerpts` cut them.
        passed_over: files in directories that were passed over, by path, each with the reason.
        context: what stands directly before and behind the excerpts in their documents and is none
            of them.
    """

    tokens: np.ndarray
    documents: np.ndarray
    offsets: np.ndarray
    seed: int
    sources: tuple[str, ...] = ()
    fingerprint: str
    available: int
    passed_over: dict[str, str]
    context: Placed

    def __init__(
        self,
        sources: Sequence[str | Path | Iterable[str]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        excerpts: int | None = None,
        seed: int = 0,
        column: str = "text",
        tokens: int = 64,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Read, tokenise and shuffle the sources.

        Args:
            sources: text files; directories, of which every file is read that holds text and is not
                hidden, in sorted order; `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` and `.parquet`
                files, with a document a row; any of these packed by gzip, bzip2, xz or Zstandard;
                `hf:NAME[@REVISION][#CONFIG][:SPLIT]` for a data set on the Hugging Face hub or in
                a directory, streamed (needs the extra `datasets`; the split is `train`, or the only
                one, if left out, and `train[:1000]` is its first 1,000 rows); `-` for standard
                input; `stdlib` for the built-in corpus (`./stdlib` for a file of that name).
            tokenizer: a fast tokenizer. What spells a special token in a document is plain text.
            excerpts: keep so many of the shuffled excerpts, or all where there are fewer.
            seed: of the shuffle. With the same sources and seed, fewer excerpts are a prefix.
            column: that holds the text, in files of rows and in data sets.
            tokens: the length of an excerpt.
            progress: called with the fraction of the sources that is read, from time to time.

        Raises:
            UsageError: there are no sources, or a number or length below 1 is asked for.
            CorpusError: a source is missing, damaged or not text, a row has more than 33,554,432
                characters, a directory more than a million files, a data set's split or column is
                missing (the message lists those there are), no document is long enough for an
                excerpt, or there is no room for the temporary files.
        """
        if isinstance(sources, str | Path):
            sources = [sources]
        if not sources:
            raise UsageError("a corpus needs at least one source")
        self.sources = tuple(str(source) for source in sources if isinstance(source, str | Path))
        texts = Sources(sources)
        if excerpts is not None and excerpts < 1:
            raise UsageError(f"at least 1 excerpt is needed, not {excerpts}")
        if tokens < 1:
            raise UsageError(f"an excerpt has at least 1 token, not {tokens}")
        if not 0 <= seed < 2**63:
            raise UsageError(f"the seed is {seed}; it must be at least 0 and below 2**63")
        self.seed = seed
        with _temporary_file() as file:
            found = _Excerpts(file, tokens, seed)
            for batch in _batches(texts.pieces(column)):
                for piece, ids in zip(batch, _tokenised(batch, tokenizer), strict=True):
                    found.add(ids, piece.first)
                if progress is not None:
                    progress(batch[-1].done)
            order = found.shuffled()
            self.available = len(order)
            self.passed_over = texts.passed_over
            if not self.available:
                passed = f"; {self.passed_over_line()}" if self.passed_over else ""
                raise CorpusError(
                    f"no document has {tokens} tokens, the length of an excerpt (documents:"
                    f" {found.document + 1}; the longest: {found.longest} tokens{passed})"
                )
            kept = order[:excerpts]
            self.tokens, self.documents, self.offsets = found.gather(kept)
            self.context = found.gather(found.beside(kept))
        self.fingerprint = _fingerprint(self.tokens)
        if progress is not None:
            progress(1.0)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str] | datasets.Dataset | datasets.IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> Corpus:
        """Tokenise and shuffle texts; with the same documents it equals a corpus from files.

        Args:
            texts: any iterable of strings, a document each, which is read once (a generator is
                never held as a whole); or a `datasets.Dataset` or `datasets.IterableDataset`.
            tokenizer: a fast tokenizer. What spells a special token in a document is plain text.
            settings: `excerpts`, `seed`, `column`, `tokens` and `progress`, as for `Corpus`. A row
                whose column has no text (null) is empty. The fraction of progress is 0 until the
                end where the number of texts is not known.

        Raises:
            UsageError: `texts` is a single string or no iterable, or a number or length below 1 is
                asked for.
            CorpusError: a text is not a string (the message gives its place), a column is missing,
                no document is long enough for an excerpt, or there is no room for the temporary
                files. What the iterable itself raises is passed on.
        """
        if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
            advice = "; choose one of its splits" if isinstance(texts, Mapping) else ""
            raise UsageError(
                "texts must be an iterable of strings or a data set, not one"
                f" {type(texts).__name__}{advice}"
            )
        return cls([texts], tokenizer, **settings)

    @classmethod
    def from_excerpts(
        cls,
        tokens: np.ndarray,
        documents: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
        seed: int = 0,
    ) -> Corpus:
        """Excerpts that are already tokenised, all of them, in the order given.

        Args:
            tokens: integers `[excerpts, tokens]`; not copied where they are int32.
            documents: integers `[excerpts]`; without them every excerpt is a document.
            offsets: integers `[excerpts]`; 0 without them.
            seed: that the order given was made with, for the record.

        Raises:
            UsageError: a shape or type is another, or there are no excerpts.
        """
        tokens = np.asanyarray(tokens)
        if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
            raise UsageError(
                f"excerpts are integers [excerpts, tokens], not {tokens.dtype} {list(tokens.shape)}"
            )
        count = len(tokens)
        self = cls.__new__(cls)
        self.tokens = tokens.astype(np.int32, copy=False)
        self.documents = np.asarray(np.arange(count) if documents is None else documents, np.int32)
        self.offsets = np.asarray(np.zeros(count) if offsets is None else offsets, np.int64)
        if self.documents.shape != (count,) or self.offsets.shape != (count,):
            raise UsageError(f"documents and offsets must have one number for each of {count}")
        self.seed = seed
        self.fingerprint = _fingerprint(self.tokens)
        self.available = count
        self.passed_over = {}
        self.context = Placed(self.tokens[:0], self.documents[:0], self.offsets[:0])
        return self

    def __len__(self) -> int:
        return len(self.tokens)

    def passed_over_line(self) -> str:
        """How many files were passed over, and why, in one line."""
        reasons = Counter(self.passed_over.values()).most_common()
        why = "; ".join(f"{reason.removeprefix('is ')}: {count:,}" for reason, count in reasons)
        return f"files passed over: {len(self.passed_over):,} ({why})"


class _Excerpts:
    """Excerpts as they are cut: tokens on disk in reading order, the rest in memory."""

    def __init__(self, file: BinaryIO, length: int, seed: int) -> None:
        self.length = length
        self.document = -1  # the one being read
        self.longest = 0  # tokens of the longest document
        self._offset = 0  # of `_rest` in the document
        self._rest = np.empty(0, np.int32)
        self._file = file
        self._documents = array("i")
        self._offsets = array("q")
        self._digests = bytearray()
        self._hash = hashlib.blake2b(key=str(seed).encode(), digest_size=16)

    def add(self, ids: Sequence[int], first: bool) -> None:
        """Cut the tokens of the next piece, together with what the piece before left over."""
        if first:
            self.document += 1
            self._offset = 0
            self._rest = self._rest[:0]
        ids_and_rest = np.concatenate([self._rest, np.asarray(ids, np.int32)])
        count = len(ids_and_rest) // self.length
        end = count * self.length
        width = self.length * ids_and_rest.itemsize
        data = ids_and_rest[:end].tobytes()
        for start in range(0, len(data), width):
            digest = self._hash.copy()
            digest.update(data[start : start + width])
            self._digests += digest.digest()
        with _room():
            self._file.write(data)
        self._documents.extend([self.document] * count)
        self._offsets.extend(range(self._offset, self._offset + end, self.length))
        self._rest = ids_and_rest[end:]
        self._offset += end
        self.longest = max(self.longest, self._offset + len(self._rest))

    def shuffled(self) -> np.ndarray:
        """int64 `[distinct]`: the rows to keep, in their final order."""
        keys = np.frombuffer(self._digests, "<u8").reshape(-1, 2)
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal keys the first read leads
        keys = keys[order]
        repeats = (keys[1:] == keys[:-1]).all(axis=1)
        return np.concatenate([order[:1], order[1:][~repeats]])

    def beside(self, rows: np.ndarray) -> np.ndarray:
        """int64, ascending: the rows before and behind these in their documents, without these."""
        documents = np.frombuffer(self._documents, np.int32)
        there = np.zeros(len(documents), bool)
        for step in (-1, 1):
            own = rows[(rows + step >= 0) & (rows + step < len(documents))]
            there[own[documents[own] == documents[own + step]] + step] = True
        there[rows] = False
        return np.flatnonzero(there)

    def gather(self, rows: np.ndarray) -> Placed:
        """What these rows are, tokens in a mapped file of their own."""
        with _room(), tempfile.TemporaryFile() as file:
            every = _mapped(self._file, len(self._documents), self.length)
            for start in range(0, len(rows), _BLOCK):
                file.write(every[rows[start : start + _BLOCK]].tobytes())
            tokens = _mapped(file, len(rows), self.length)
        documents = np.frombuffer(self._documents, np.int32)[rows]
        return Placed(tokens, documents, np.frombuffer(self._offsets, np.int64)[rows])


@contextmanager
def _temporary_file() -> Iterator[BinaryIO]:
    """A file without a name; only what goes wrong with it, not in the block, is a CorpusError."""
    with _room():
        file = tempfile.TemporaryFile()  # noqa: SIM115, closed below
    try:
        yield file
    finally:
        with _room():
            file.close()


@contextmanager
def _room() -> Iterator[None]:
    """Turn what goes wrong with a temporary file into a CorpusError that says what to do."""
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"can't keep the excerpts in {tempfile.gettempdir()!r} ({error.strerror});"
            " set TMPDIR to another directory"
        ) from error


def _tokenised(batch: Sequence[Piece], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(
        [piece.text for piece in batch],
        add_special_tokens=False,
        split_special_tokens=True,  # "<|im_start|>" in a document is text, not that token
        padding=False,
        truncation=False,
        return_attention_mask=False,
        verbose=False,  # else it warns of texts longer than a subject's context
    )["input_ids"]


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _mapped(file: BinaryIO, rows: int, length: int) -> np.ndarray:
    if not rows:
        return np.empty((0, length), np.int32)  # an empty file can't be mapped
    file.flush()
    return np.memmap(file, np.int32, mode="r", shape=(rows, length))


def _fingerprint(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens).data).hexdigest()
