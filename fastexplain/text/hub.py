"""Hugging Face data sets as sources of a corpus: `hf:NAME[@REVISION][#CONFIG][:SPLIT]`.

NAME is a data set on the hub, or a directory: of data files, or one that `save_to_disk` wrote.
SPLIT may be a part of one, by rows: `train[:1000]`, `train[1000:2000]`. Rows are streamed, so that
a large data set needs no disk. The `datasets` package is an extra, imported where it is needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastexplain.errors import CorpusError

PREFIX = "hf:"
_ROWS = 256  # decoded at a time

_ADDRESS = re.compile(
    r"hf:(?P<name>[^@#:]+)(@(?P<revision>[^#:]+))?(#(?P<config>[^:]+))?"
    r"(:(?P<split>[^\[]+)(\[(?P<first>\d*):(?P<end>\d*)\])?)?"
)


class Address(NamedTuple):
    """What a source `hf:...` names; None for what it leaves out.

    Attributes:
        first: the row to begin with.
        end: the row to stop before; None for all.
    """

    name: str
    revision: str | None
    config: str | None
    split: str | None
    first: int
    end: int | None


def parse(source: str) -> Address:
    """Read a source `hf:...`.

    Raises:
        CorpusError: it has another form.
    """
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise CorpusError(
            f"{source!r} is not of the form hf:NAME[@REVISION][#CONFIG][:SPLIT];"
            " a part of a split is given by its rows, as in train[:1000]"
        )
    first, end = match["first"], match["end"]
    return Address(
        match["name"], match["revision"], match["config"], match["split"],
        int(first) if first else 0, int(end) if end else None,
    )  # fmt: skip


class DataSet:
    """A split of a data set, or a part of it, of which nothing is read yet.

    Attributes:
        size: bytes, 0 where unknown.
    """

    size: int

    def __init__(self, data_set: Any, name: str, first: int = 0, end: int | None = None) -> None:
        """Choose the rows to read.

        Args:
            data_set: a `datasets.Dataset` or `datasets.IterableDataset`.
            name: for messages.
            first: the row to begin with.
            end: the row to stop before; None for all.
        """
        recorded = (data_set.info.splits or {}).get(str(data_set.split))  # by the data set's author
        count = recorded.num_examples if recorded else None
        if hasattr(data_set, "__len__"):  # not a stream
            count = len(data_set)
        if count is not None:
            end = count if end is None else min(end, count)
        self._rows = None if end is None else max(end - first, 0)
        self.size = (
            (recorded.num_bytes or 0) * (self._rows or 0) // count if recorded and count else 0
        )
        self._data_set = data_set.skip(first) if first else data_set
        if self._rows is not None and self._rows != count:
            self._data_set = self._data_set.take(self._rows)
        self._first = first
        self._name = name

    def documents(self, column: str) -> Iterator[tuple[float, str]]:
        """Yield (fraction done once it is read, text) for every row, in order.

        The fraction stays 0 where the number of rows is unknown; a row without text (null) is "".

        Args:
            column: that holds the text.

        Raises:
            CorpusError: the column is missing (the message lists those there are) or holds
                something other than text, or a row can't be read.
        """
        data_set = self._data_set.with_format(None)
        if data_set.column_names is not None:  # else a stream must be read to know them
            self._check(column, data_set.column_names)
            data_set = data_set.select_columns([column])  # so that images and such aren't decoded
        done = 0
        for batch in self._batches(data_set):
            self._check(column, batch)
            for text in batch[column]:
                if not isinstance(text, str | None):
                    place = f"{self._name}, row {self._first + done}"
                    raise CorpusError(f"{place}: {column!r} is {type(text).__name__}, not a string")
                done += 1
                yield min(done / self._rows, 1.0) if self._rows else 0.0, text or ""

    def _check(self, column: str, columns: Iterable[str]) -> None:
        if column not in columns:
            raise CorpusError(f"{self._name}: no column {column!r}; there are {_names(columns)}")

    def _batches(self, data_set: Any) -> Iterator[dict[str, list[Any]]]:
        try:
            yield from data_set.iter(_ROWS)
        except Exception as error:  # a host's, a file's or a decoder's: there is no common base
            raise CorpusError(f"can't read {self._name}: {_reason(error)}") from error


def open_data_set(source: str) -> DataSet:
    """Open the split of a data set that a source `hf:...` names, without reading its rows.

    A split that is left out is `train`, or the only one.

    Raises:
        CorpusError: `datasets` is not installed, or there is no such data set, configuration or
            split; the message lists those there are.
    """
    address = parse(source)
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise CorpusError(
            f"reading {source!r} needs datasets: pip install 'fastexplain[datasets]'"
        ) from None
    with _without_bars(), _opening(source):
        splits = _splits(source, address)
    if not isinstance(splits, dict):  # saved without splits
        if address.split is not None:
            raise CorpusError(f"{source!r}: this data set has no splits; leave out ':SPLIT'")
        return DataSet(splits, repr(source))
    if address.split is not None:
        split = address.split
    else:
        split = "train" if len(splits) > 1 else next(iter(splits), "train")
    if split not in splits:
        wrong = f"no split {split!r}" if address.split else "choose a split with ':SPLIT'"
        raise CorpusError(f"{source!r}: {wrong}; there are {_names(splits)}")
    return DataSet(splits[split], repr(source), address.first, address.end)


def is_data_set(texts: object) -> bool:
    """Whether this is a data set of the `datasets` package, which need not be installed."""
    module = sys.modules.get("datasets")
    return module is not None and isinstance(texts, (module.Dataset, module.IterableDataset))


def _splits(source: str, address: Address) -> Any:
    """Every split by its name, or the one data set where it was saved without splits."""
    import datasets

    name, revision, config = address[:3]
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise CorpusError(f"{source!r}: a directory has no revisions; leave out '@{revision}'")
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            if config is not None:
                raise CorpusError(f"{source!r}: no configuration {config!r}; there are none")
            return datasets.load_from_disk(name)
    try:
        return datasets.load_dataset(name, config, revision=revision, streaming=True)
    except ValueError:
        # Which configurations there are takes more requests, so it is asked after an error only.
        configs = datasets.get_dataset_config_names(name, revision=revision)
        if config is None and len(configs) > 1:
            wrong = "choose a configuration with '#CONFIG'"
        elif config is not None and config not in configs:
            wrong = f"no configuration {config!r}"
        else:
            raise
        raise CorpusError(f"{source!r}: {wrong}; there are {_names(configs)}") from None


@contextmanager
def _opening(source: str) -> Iterator[None]:
    """Turn any error into a CorpusError: those of the package have no common base."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:
        raise CorpusError(f"can't open {source!r}: {_reason(error)}") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep `datasets` from drawing progress bars: a library draws nothing."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"
