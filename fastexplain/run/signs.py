"""What a run has of neurons by the signs of their two factors, where its sweep kept that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastexplain.kernels.signs import CLASSES, classes_of, unpacked
from fastexplain.records import NeuronId, SignClass

if TYPE_CHECKING:
    from fastexplain.run.directory import Run


_PREFIXES = ("pp", "pm", "mp", "mm")  # the classes, where a name can't have their signs
_NAMED = ("share", "mean", "mass", "extreme")

COLUMNS = tuple(f"{prefix}_{name}" for prefix in _PREFIXES for name in _NAMED)
"""Of the classes' statistics those that are columns: `pp_share` is the `share` of `++`, `pm_` is of
`+-`, and so on."""


def signs_of(run: Run, neuron: NeuronId) -> list[SignClass]:
    """A neuron's four classes; see `Run.signs`."""
    site, index = neuron.site, neuron.index
    one = slice(index, index + 1)
    numbers = sign_columns(run, site, one)
    tokens = run.array(site, "signs.tokens", one)[:, 0]
    ids, acts, ups = (
        run.array(site, f"signs.{name}", index) for name in ("ids", "activations", "ups")
    )
    found = []
    for place, name in enumerate(CLASSES):
        exemplars = run.exemplars(ids[place], acts[place])
        members = [
            classes_of(each.activations, unpacked(bits, len(each.activations))) == place
            for each, bits in zip(exemplars, ups[place], strict=False)
        ]
        own = {key: float(values[place, 0]) for key, values in numbers.items()}
        found.append(
            SignClass(name, int(tokens[place]), **own, exemplars=exemplars, members=members)
        )
    return found


def named_columns(run: Run, site: str) -> dict[str, np.ndarray]:
    """`COLUMNS` of a site's neurons, float64 `[neurons]` each."""
    found = sign_columns(run, site)
    return {
        f"{prefix}_{name}": found[name][place]
        for place, prefix in enumerate(_PREFIXES)
        for name in _NAMED
    }


def sign_columns(run: Run, site: str, neurons: slice = slice(None)) -> dict[str, np.ndarray]:
    """By name the statistics of the classes of some neurons, float64 `[4, neurons]`."""
    tokens, sums, extremes = (
        run.array(site, f"signs.{name}", neurons) for name in ("tokens", "sums", "extremes")
    )
    total, squares = sums
    # Each class has one sign: the first and the last are above 0, the two between below.
    sides = total[[0, 1, 1, 0]] + total[[3, 2, 2, 3]]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / tokens
        return {
            "share": tokens / run.sites[site].counted_tokens,
            "mean": mean,
            "variance": np.maximum(squares / tokens - mean**2, 0.0),
            "mass": np.where(sides != 0, total / sides, np.nan),
            "extreme": extremes.astype(np.float64),
        }
