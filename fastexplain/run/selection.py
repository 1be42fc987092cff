"""Which neurons and layers a command means: `5:131`, `0-3,8:*`, a sample, those where ..."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.kernels.scalars import excerpt_hash
from fastexplain.records import NeuronId, plain_name
from fastexplain.run.conditions import Condition
from fastexplain.run.directory import Run
from fastexplain.run.signs import COLUMNS, named_columns

if TYPE_CHECKING:
    from fastexplain.run.database import Database

ALL = "all"

_RANGES = r"[0-9]{1,9}(?:-[0-9]{1,9})?"
_LIST = rf"{_RANGES}(?:\s*,\s*{_RANGES})*"
_NAME = re.compile(rf"({_LIST}):(\*|{_LIST})")

# No model has as many; so a range is bounded before it is known what model it is of.
_HIGHEST_LAYER = 9999

# Of a file with names: a million lines of 64 bytes.
_MOST_BYTES = 2**26

# A neuron as one number, for sets and hashes: its layer in the bits above its index.
_INDEX_BITS = 32

_STATISTICS = (
    "mean", "variance", "skewness", "kurtosis", "fraction_positive", "mean_positive", "minimum",
    "maximum",
)  # fmt: skip
_LOOKUP = ("lookup_score", "lookup_random_score")
_TEXT = ("text_score", "text_random_score")
_MODEL = ("score", "random_score", "explained")

CONDITION_NAMES = ("layer", "index", *_STATISTICS, *_LOOKUP, *_TEXT, *_MODEL)
"""What `where` may speak of.

`lookup_score` and `lookup_random_score` are the correlations of the lookup's tables on top and
random and on random excerpts, `text_score` and `text_random_score` those of its text, `score` and
`random_score` those of the newest explanation by a language model, and `explained` is whether there
is one. The others are the statistics of `Statistics`. In a run with sign classes it may speak of
`signs.COLUMNS` too.
"""


def parse_layers(text: str) -> list[int]:
    """Layers of a list of numbers and ranges such as `0-5,8`, ascending.

    Raises:
        UsageError: it is no such list.
    """
    if not re.fullmatch(_LIST, text.strip()):
        raise UsageError(f"'{text}' names no layers; write numbers and ranges, as in 0-5,8")
    return sorted(
        {layer for part in dict.fromkeys(text.split(",")) for layer in _expand(part, _check_layer)}
    )


def select_neurons(
    run: Run,
    names: Sequence[str],
    *,
    sample: int | None = None,
    seed: int = 0,
    where: str | None = None,
) -> list[NeuronId]:
    """The neurons of a run that are meant; each once, in the order in which they were named.

    Args:
        run: the run.
        names: `5:131`, `5:*` for a layer, `0-3,8:*` and `5:0-99` for lists and ranges of both,
            `all`, and `@file` for a file with one of these a line. For a layer's number may stand
            TransformerLens' name, as in `blocks.5.mlp.hook_post:131`; see `plain_name`.
        sample: draw at most so many of them, all alike; of all neurons where none is named. They
            come by layer and index, whatever the order of names, and a larger sample has all
            of a smaller one's neurons.
        seed: of the sample.
        where: only those that fulfil this condition, of all neurons where none is named; see
            `CONDITION_NAMES`.

    Returns:
        Nothing where nothing is asked for.

    Raises:
        UsageError: a name or the condition can't be read, the run has no such neuron, or
            nothing is left.
    """
    if sample is not None and sample < 1:
        raise UsageError(f"a sample of {sample} neurons is none; `sample` takes 1 or more")
    if not names:
        if sample is None and where is None:
            return []
        names = [ALL]
    codes = _codes(run, names)
    if not len(codes):
        raise UsageError(f"{', '.join(names)} names no neurons")
    if where is not None:
        columns = (*CONDITION_NAMES, *(COLUMNS if run.has_signs else ()))
        codes = _fulfilling(run, codes, Condition(where, columns))
    if sample is not None:
        codes = _sample(codes, sample, seed)
    layers, indices = codes >> np.uint64(_INDEX_BITS), codes & np.uint64(2**_INDEX_BITS - 1)
    return list(map(NeuronId, layers.tolist(), indices.tolist()))


def _lines(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The names, with those in files in the files' place; and where each is from, as `file:3: `."""
    for name in names:
        if not name.startswith("@"):
            yield name.strip(), ""
            continue
        file = Path(name[1:])
        try:
            content = bytearray()
            with file.open("rb") as opened:
                while part := opened.read(2**16):
                    content += part
                    if len(content) > _MOST_BYTES:
                        raise UsageError(
                            f"{file} is larger than {_MOST_BYTES:,} bytes; a list of neurons is not"
                        )
            text = content.decode("utf-8-sig")
        except (OSError, ValueError) as error:  # ValueError of a name with NUL
            why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else None
            why = why or f"can't be read: {getattr(error, 'strerror', None) or error}"
            raise UsageError(f"{file} {why}") from error
        for number, line in enumerate(io.StringIO(text), start=1):
            if found := line.partition("#")[0].strip():
                yield found, f"{file}:{number}: "


def _codes(run: Run, names: Iterable[str]) -> np.ndarray:
    """What the names stand for, in their order and each once, uint64 `[neurons]`."""
    left = {layer: np.ones(run.width(layer), dtype=bool) for layer in run.layers}
    found = [np.empty(0, np.uint64)]
    for name, place in _lines(names):
        try:
            for layer, numbers in _named(run, name):
                own = slice(numbers.start, numbers.stop)
                if left[layer][own].any():
                    new = np.flatnonzero(left[layer][own]) + ((layer << _INDEX_BITS) + own.start)
                    left[layer][own] = False
                    found.append(new.astype(np.uint64))
        except UsageError as error:
            raise UsageError(f"{place}{error}") from error
    return np.concatenate(found)


def _named(run: Run, name: str) -> Iterator[tuple[int, range]]:
    """The layers and ranges of indices that a name stands for; each is checked first."""
    layers: Iterable[int] = run.layers
    indices = "*"
    if name != ALL:
        match = _NAME.fullmatch(plain_name(name))
        if match is None:
            raise UsageError(
                f"'{name}' does not name neurons; write layer:index, as in 5:131, or 5:*, 0-3:*, "
                "5:0-99, all or @file"
            )
        layers, indices = _expand(match[1], run.width), match[2]
    for layer in layers:
        if indices == "*":
            yield layer, range(run.width(layer))
        else:
            check = partial(_check, run, layer)
            yield from ((layer, numbers) for numbers in _ranges(indices, check))


def _check(run: Run, layer: int, index: int) -> None:
    run.check(NeuronId(layer, index))


def _check_layer(layer: int) -> None:
    if layer > _HIGHEST_LAYER:
        raise UsageError(f"layer {layer} is higher than any model's")


def _ranges(text: str, check: Callable[[int], object]) -> Iterator[range]:
    """The ranges of `0-3,8`; both ends of each are checked."""
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise UsageError(f"the range {part.strip()} ends before it begins")
        check(numbers[-1])
        check(numbers[0])
        yield numbers


def _expand(text: str, check: Callable[[int], object]) -> Iterator[int]:
    """The numbers of `0-3,8`."""
    return (number for numbers in _ranges(text, check) for number in numbers)


def _sample(codes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The `count` neurons with the smallest hashes, ascending."""
    codes = np.sort(codes)
    with np.errstate(over="ignore"):
        hashes = excerpt_hash(codes, np.uint64(seed % 2**64))
    return np.sort(codes[np.argsort(hashes, kind="stable")[:count]])


def _fulfilling(run: Run, codes: np.ndarray, condition: Condition) -> np.ndarray:
    """Those neurons for which a condition holds, in the same order.

    Raises:
        UsageError: there are none.
    """
    layers = codes >> np.uint64(_INDEX_BITS)
    indices = (codes & np.uint64(2**_INDEX_BITS - 1)).astype(np.int64)
    holds = np.zeros(len(codes), dtype=bool)
    defined: set[str] = set()
    with run.database(read_only=True) as database:
        for layer in np.unique(layers).tolist():
            values = _values(run, database, layer, condition.names)
            chosen = layers == layer
            holds[chosen] = condition.select(values)[indices[chosen]]
            defined |= {name for name in values if not np.isnan(values[name]).all()}
    if not holds.any():
        raise UsageError(
            f"of {len(codes):,} neurons none has {condition.text}{_hint(condition.names - defined)}"
        )
    return codes[holds]


def _values(run: Run, database: Database, layer: int, names: set[str]) -> dict[str, np.ndarray]:
    """What a condition speaks of, for a layer, and the index: float64 `[neurons]` by name."""
    width = run.width(layer)
    values = {"layer": np.full(width, float(layer)), "index": np.arange(width, dtype=np.float64)}
    if not names.isdisjoint(_STATISTICS):
        values |= run.statistics(layer)
    if not names.isdisjoint(COLUMNS):
        values |= named_columns(run, str(layer))
    for columns, of in (
        (_LOOKUP, {"lookup": True}),
        (_TEXT, {"lookup": True, "text": True}),
        (_MODEL, {"lookup": False}),
    ):
        if not names.isdisjoint(columns):
            # `explained` is the third: the lookup explains all or none.
            scores = _scores(database.layer_scores(layer, **of), database, width)
            values |= dict(zip(columns, scores, strict=False))
    return {name: values[name] for name in {"index", *names}}


def _scores(rows: list[Any], database: Database, width: int) -> np.ndarray:
    """Both correlations, NaN where undefined, and 1 where explained, else 0: `[3, neurons]`.

    Args:
        rows: of `Database.layer_scores`.
    """
    values = np.full((3, width), np.nan)
    values[2] = 0
    if rows:
        with database.understood():
            units, *scores = np.array(rows, dtype=np.float64).T  # None becomes NaN
            # Of a neuron's rows the last one counts: its newest explanation's newest scores.
            places = np.ravel_multi_index([units.astype(np.int64)], (width,))  # refuses others
            values[:, places] = [*scores, np.ones(len(rows))]
    return values


def _hint(undefined: set[str]) -> str:
    if not undefined.isdisjoint((*_LOOKUP, *_TEXT)):
        return "; by lookup none is scored yet: fastexplain explain RUN does that"
    if not undefined.isdisjoint(("score", "random_score")):
        return "; by a language model none is scored yet"
    return ""
