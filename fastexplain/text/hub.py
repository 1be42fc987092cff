"""Hugging Face data sets as sources of a corpus: `hf:NAME[@REVISION][#CONFIG][:SPLIT]`.

NAME is a data set on the hub, or a directory: of data files, or one that `save_to_disk` wrote.
SPLIT may be a part of one, by rows: `train[:1000]`, `train[1000:2000]`. Rows are streamed, so that
a large data set needs no disk. The `datasets` package is an extra, imported where it is needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastexplain.errors import CorpusError
from fastexplain.text.pieces import Piece, names, text_of

PREFIX = "hf:"
_ROWS = 16  # decoded at a time, each of which may be of the greatest length

_FORM = "hf:NAME[@REVISION][#CONFIG][:SPLIT]"
_ADDRESS = re.compile(
    r"hf:(?P<name>[^@#:]+)(@(?P<revision>[^#:]+))?(#(?P<config>[^:]+))?"
    r"(:(?P<split>[^\[]+)(\[(?P<first>\d*):(?P<end>\d*)\])?)?"
)


def parse(source: str) -> dict[str, str | None]:
    """The parts of a source `hf:...` by name: name, revision, config, split, first and end row.

    Raises:
        CorpusError: it has another form.
    """
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise CorpusError(
            f"{source!r} is not of the form {_FORM};"
            " a part of a split is given by its rows, as in train[:1000]"
        )
    return match.groupdict()


def documents(
    data_set: Any, column: str, name: str = "the data set", first: int = 0, end: int | None = None
) -> Iterator[Piece]:
    """Every row, in order.

    The fraction done stays 0 where the number of rows is unknown.

    Args:
        data_set: a `datasets.Dataset` or `datasets.IterableDataset`.
        column: that holds the text.
        name: for messages.
        first: the row to begin with.
        end: the row to stop before; None for all.

    Raises:
        CorpusError: the column is missing (the message lists those there are) or holds
            something other than text, or a row can't be read.
    """
    if hasattr(data_set, "__len__"):  # not a stream
        count: int | None = len(data_set)
    else:
        recorded = (data_set.info.splits or {}).get(str(data_set.split))  # by its author
        count = recorded.num_examples if recorded else None
    if count is not None:
        end = count if end is None else min(end, count)
    rows = None if end is None else max(end - first, 0)
    data_set = data_set.skip(first) if first else data_set
    if rows is not None and rows != count:
        data_set = data_set.take(rows)
    data_set = data_set.with_format(None)
    columns = data_set.column_names  # None where a stream must be read to know them
    if columns is not None and column in columns:
        data_set = data_set.select_columns([column])  # so that images and such aren't decoded
    row = first
    for batch in _batches(data_set, name):
        text_of(dict.fromkeys(columns or batch), column, name)
        for text in batch[column]:
            row += 1
            done = min((row - first) / rows, 1.0) if rows else 0.0
            yield Piece(text_of({column: text}, column, f"{name}, row {row - 1}"), done)


def _batches(data_set: Any, name: str) -> Iterator[dict[str, list[Any]]]:
    try:
        yield from data_set.iter(_ROWS)
    except Exception as error:  # a host's, a file's or a decoder's: there is no common base
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CorpusError(f"can't read {name}: {reason}") from error


def open_data_set(source: str) -> Callable[[str], Iterator[Piece]]:
    """Open the split of a data set that a source `hf:...` names, without reading its rows.

    A split that is left out is `train`, or the only one.

    Returns:
        What reads it, given the column: `documents` of this split.

    Raises:
        CorpusError: `datasets` is not installed, or there is no such data set, configuration or
            split; the message lists those there are.
    """
    address = parse(source)
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        advice = "pip install 'fastexplain[datasets]'"
        raise CorpusError(f"reading {source!r} needs datasets ({error}): {advice}") from None
    splits = _splits(source, address)
    split = address["split"]
    if not isinstance(splits, dict):  # saved without splits
        if split is not None:
            raise CorpusError(f"{source!r}: this data set has no splits; leave out ':SPLIT'")
        return partial(documents, splits, name=repr(source))
    if split is None:
        split = "train" if len(splits) > 1 else next(iter(splits), "train")
    if split not in splits:
        wrong = f"no split {split!r}" if address["split"] else "choose a split with ':SPLIT'"
        raise CorpusError(f"{source!r}: {wrong}; there are {names(splits)}")
    first, end = int(address["first"] or 0), int(address["end"] or 0) or None
    return partial(documents, splits[split], name=repr(source), first=first, end=end)


def is_data_set(texts: object) -> bool:
    """Whether this is a data set of the `datasets` package, which need not be installed."""
    module = sys.modules.get("datasets")
    return module is not None and isinstance(texts, (module.Dataset, module.IterableDataset))


def _splits(source: str, address: dict[str, str | None]) -> Any:
    """Every split by its name, or the one data set where it was saved without splits."""
    import datasets

    name, revision, config = address["name"], address["revision"], address["config"]
    folder = Path(str(name))
    if folder.is_dir() and revision is not None:
        raise CorpusError(f"{source!r}: a directory has no revisions; leave out '@{revision}'")
    try:
        with _without_bars():
            if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
                if config is not None:
                    raise ValueError(f"no configuration {config!r}; there are none")
                return datasets.load_from_disk(name)
            return datasets.load_dataset(name, config, revision=revision, streaming=True)
    except Exception as error:  # those of the package have no common base
        # A configuration that is missing or unknown is named with a list of those there are.
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise CorpusError(
            f"can't open {source!r}, of the form {_FORM}: {reason or type(error).__name__}"
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep `datasets` from drawing progress bars: a library draws nothing."""
    from datasets import utils

    drawn = not utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            utils.enable_progress_bars()
