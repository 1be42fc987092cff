"""What searches give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from fastexplain.records import NeuronId


class LayerFound(NamedTuple):
    """What a search says of the N neurons of a layer.

    Attributes:
        values: float64 `[N]`, what results are sorted by, the highest first; NaN where the neuron
            is none of this kind.
        details: by name, more of each neuron, `[N]`: numbers, or text.
    """

    values: np.ndarray
    details: Mapping[str, np.ndarray]


class Search(Protocol):
    """A search of one kind through one run."""

    def layer(self, layer: int) -> LayerFound:
        """Search one layer's neurons."""
        ...


@dataclass(frozen=True)
class Evidence:
    """Where a neuron shows what it was found for.

    Attributes:
        excerpt: its id.
        place: the token of the largest activation.
        activation: that value.
        tokens: the excerpt's, as text.
    """

    excerpt: int
    place: int
    activation: float
    tokens: list[str] = field(repr=False)


@dataclass(frozen=True)
class Hit:
    """A neuron that was found.

    Attributes:
        neuron: which one.
        value: what results are sorted by; None where it was not searched for by a kind.
        details: more of it, by name.
        evidence: exemplars; those that show it first, then the strongest.
        explanation: the best one that is stored; None if there is none.
        score: the correlation of that text over top and random excerpts; None if undefined.
    """

    neuron: NeuronId
    value: float | None
    details: Mapping[str, float | int | str]
    evidence: list[Evidence] = field(repr=False)
    explanation: str | None = None
    score: float | None = None
