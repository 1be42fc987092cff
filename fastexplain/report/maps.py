"""What the picture of a run can be coloured by, and the numbers of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastexplain.report.columns import KINDS, SPLITS, ScoreColumns
from fastexplain.run.directory import Run

# Statistics by name: label, what high values mean, and whether the colours go by the logarithm.
_STATISTICS = {
    "fraction_positive": ("Share of tokens above 0", "active on more tokens", True),
    "maximum": ("Largest activation", "stronger at its strongest", True),
    "minimum": ("Smallest activation", "closer to 0 at its lowest", False),
    "mean": ("Mean activation", "higher on average", False),
    "mean_positive": ("Mean of what is above 0", "more activation in all", True),
    "variance": ("Variance", "activations differ more", True),
    "skewness": ("Skewness", "rare large activations", False),
    "kurtosis": ("Kurtosis", "activations of few tokens", True),
}

_WHOSE = {
    "lookup": "Lookup table",
    "list": "Lookup's text",
    "rule": "Rule",
    "other": "Explanations by models",
}
_WHERE = {"top_and_random": "top and random", "random_only": "random only"}

BASELINES = {
    "token": "Tokens alone",
    "position": "Place alone",
    "mismatched": "Another neuron's table",
    "unrepeated": "Lookup table, without repeats",
}
"""Of `explainers.baselines.NAMES`, those that are not stored as scores."""

_OF_TABLES = BASELINES.keys() - {"position"}

DEFAULT = "fraction_positive"
"""What is shown first: statistics need no database."""


def score_key(kind: str, split: str) -> str:
    """The key of a column of scores, such as `lookup.random_only`."""
    return f"{kind}.{split}"


def baseline_key(name: str, split: str) -> str:
    """The key of a column of baselines, such as `baseline.token.random_only`."""
    return f"baseline.{name}.{split}"


def maps_data() -> dict[str, Any]:
    """What a map can show.

    Returns:
        `default` (a key) and `maps`, each with `key`, `label`, `group` ("Statistics" or "Scores"),
        `high` (what high values mean) and `logarithmic` (whether colours go by the logarithm).
    """
    statistics = [
        {"key": key, "label": label, "group": "Statistics", "high": high, "logarithmic": log}
        for key, (label, high, log) in _STATISTICS.items()
    ]
    scores = [
        {
            "key": score_key(kind, split),
            "label": f"{_WHOSE[kind]}, {_WHERE[split]}",
            "group": "Scores",
            "high": "predicted better",
            "logarithmic": False,
        }
        for kind in KINDS
        for split in SPLITS
    ]
    return {"default": DEFAULT, "maps": statistics + scores}


def baseline_maps(run: Run) -> list[dict[str, Any]]:
    """The maps of baselines that a run has, as in `maps_data`; the group is "Baselines"."""
    tables = len(run.tables.tokens) > 0
    return [
        {
            "key": baseline_key(name, split),
            "label": f"{label}, {_WHERE[split]}",
            "group": "Baselines",
            "high": "predicted better",
            "logarithmic": False,
        }
        for name, label in BASELINES.items()
        if tables or name not in _OF_TABLES
        for split in SPLITS
    ]


def is_statistic(key: str) -> bool:
    """Whether a key of `maps_data` is a statistic's."""
    return key in _STATISTICS


def is_baseline(key: str) -> bool:
    """Whether a key is one of `baseline_key`'s, of whatever name."""
    return key.startswith("baseline.")


def score_map(scores: ScoreColumns, key: str) -> np.ndarray:
    """A column of scores by its key, float32 `[neurons]`. Raises KeyError for another key."""
    kind, _, split = key.partition(".")
    return scores.values[kind, split]


def packed(column: np.ndarray) -> bytes:
    """A column as little-endian float32, in the order of the run's sites."""
    return column.astype("<f4").tobytes()
