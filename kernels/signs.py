"""What a sweep keeps of a gated layer's neurons by the signs of their two factors, where asked.

A gated MLP's neuron is f(gate) * up. Where both factors have the same sign the activation is above
0, else below: so what a neuron's largest activations have in common may be two things.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastexplain.kernels.scalars import NO_ID

CLASSES = ("++", "+-", "-+", "--")
"""The classes in the order of their axis: whether f(gate) is above 0, then whether up is."""

TOP_A_CLASS = 4
"""The top's exemplars for each one of a class: all four together have as many as the top."""


class Signs(NamedTuple):
    """What is kept of one layer by sign class; a mergeable summary of the excerpts seen.

    A token's class follows from its activation and from up: f(gate) is above 0 where these two are
    on the same side of 0. A token whose activation is 0, as after relu or by underflow, counts as
    one whose f(gate) is not. The four classes are in the order of `CLASSES`.

    Letters in shapes are those of `fastexplain.kernels`; E are the exemplars of a class, and
    W = ceil(T / 8).

    Attributes:
        keys: float32 `[F, 4, E]`, an exemplar's largest |activation| on a counted token of the
            class, above 0; -inf where empty. Slot 0 holds the worst, the others are in no order.
        ids: int32 `[F, 4, E]`, excerpt ids; `NO_ID` where empty.
        acts: `[F, 4, E, T]`, all activations of the exemplar, in the subject's dtype.
        ups: uint8 `[F, 4, E, W]`, a bit for each of its tokens: whether up is above 0. Token t is
            bit t % 8 of byte t // 8.
        tokens: int64 `[4, F]`, counted tokens.
        sums: float64 `[2, 4, F]`, over these: x and x**2.
    """

    keys: Any
    ids: Any
    acts: Any
    ups: Any
    tokens: Any
    sums: Any

    @classmethod
    def empty(cls, neurons: int, tokens: int, dtype: np.dtype, *, exemplars: int) -> Signs:
        """That of no excerpts, in host memory; `dtype` as for `Summary.empty`."""
        slots = (neurons, len(CLASSES), exemplars)
        return cls(
            keys=np.full(slots, -np.inf, np.float32),
            ids=np.full(slots, NO_ID, np.int32),
            acts=np.zeros((*slots, tokens), dtype),
            ups=np.zeros((*slots, -(-tokens // 8)), np.uint8),
            tokens=np.zeros((len(CLASSES), neurons), np.int64),
            sums=np.zeros((2, len(CLASSES), neurons)),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in self)


def classes_of(acts: np.ndarray, ups: np.ndarray) -> np.ndarray:
    """Places in `CLASSES` of tokens, uint8, by activations and by whether up is above 0.

    Both are of one shape; `ups` is bool.
    """
    gate = (acts != 0) & ((acts > 0) == ups)
    return (2 * ~gate + ~ups).astype(np.uint8)


def unpacked(ups: np.ndarray, tokens: int) -> np.ndarray:
    """The bits of `Signs.ups`, uint8 `[..., W]`, as bool `[..., tokens]`."""
    return np.unpackbits(ups, axis=-1, count=tokens, bitorder="little").astype(bool)
