"""What a regression knows of a token: numbers made of text alone, the same for all neurons.

Of a token in an excerpt they are, in this order:

1. `OWN` principal components of its embedding, over the corpus's tokens by how often each occurs,
   each with variance 1 there.
2. The first components of the tokens before it, `BEFORE[i]` of the (i + 1)th; 0 where none is.
3. Of each of `DECAYS` the first components averaged over all tokens before it, a token further
   back counting exp(-1 / decay) times as much; times the square root of the tokens averaged, so
   that variances stay about 1.
4. The position: log(1 + t) / 2, t over the excerpt's length, 1 / t; and 1, for the intercept.

All are rounded to 8 bits of mantissa, so that products in 16 bits take them as they are. What is in
the lead or before the excerpt is not seen.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

OWN = 64
BEFORE = (48, 32)
DECAYS = ((3.0, 48), (12.0, 32), (40.0, 16))
"""Tokens after which one counts 1/e, and the components averaged."""

_PLACE = 4
# A component with less than this part of the first one's variance is noise of rounding.
_LEAST_VARIANCE = 1e-9
# float16 holds numbers of 8 bits between these exactly.
SMALLEST, LARGEST = 2.0**-14, 2.0**15


def count(components: int) -> int:
    """How many numbers there are, where the embeddings have so many components."""
    parts = (OWN, *BEFORE, *(size for _, size in DECAYS))
    return sum(min(part, components) for part in parts) + _PLACE


@dataclass(frozen=True, eq=False)
class Regressors:
    """How numbers are made of tokens.

    Attributes:
        components: float32 `[vocabulary, components]`, each token's principal components.
    """

    components: np.ndarray

    @classmethod
    def fit(cls, embeddings: np.ndarray, token_ids: np.ndarray) -> Regressors:
        """Those of a corpus.

        Args:
            embeddings: float32 `[vocabulary, width]`.
            token_ids: int, of any shape, each below `vocabulary`.
        """
        tokens, counts = np.unique(token_ids, return_counts=True)
        share = counts / counts.sum()
        mean = share @ embeddings[tokens].astype(np.float64)
        centred = embeddings[tokens] - mean
        variances, axes = np.linalg.eigh((centred * share[:, None]).T @ centred)
        largest = np.argsort(-variances, kind="stable")[:OWN]
        variances, axes = variances[largest], axes[:, largest]
        known = variances > _LEAST_VARIANCE * max(variances[0], np.finfo(float).tiny)
        scale = np.where(known, 1 / np.sqrt(np.where(known, variances, 1)), 0)
        projection = (axes * scale).astype(np.float32)
        return cls(rounded(embeddings @ projection - (mean @ projection).astype(np.float32)))

    @classmethod
    def of_bits(cls, bits: np.ndarray) -> Regressors:
        """From what `bits` gave."""
        return cls((bits.astype(np.uint32) << 16).view(np.float32))

    @property
    def bits(self) -> np.ndarray:
        """The components as bfloat16, exactly: uint16 `[vocabulary, components]`."""
        return (self.components.view(np.uint32) >> 16).astype(np.uint16)

    @property
    def count(self) -> int:
        """d, how many numbers `of` gives for a token."""
        return count(self.components.shape[1])

    def of(self, token_ids: np.ndarray) -> np.ndarray:
        """The numbers of every token, float32 `[excerpts, tokens, d]`.

        An excerpt's do not depend, to the last bit, on those beside it.

        Args:
            token_ids: int `[excerpts, tokens]`.
        """
        from fastexplain.kernels.cpu.regressors import fill

        result = np.zeros((*token_ids.shape, self.count), np.float32)
        length = token_ids.shape[1]
        steps, roots = decaying(length)
        fill(
            result, np.ascontiguousarray(token_ids), self.components, np.array(BEFORE),
            steps, roots, np.array([size for _, size in DECAYS]), places(length),
            np.float32(SMALLEST), np.float32(LARGEST),
        )  # fmt: skip
        return result


@functools.cache
def decaying(length: int) -> tuple[np.ndarray, np.ndarray]:
    """How decaying means are made: a token's sum is the one before it times the step, plus x.

    Returns:
        The steps, float32 `[means]`, and by which a sum is divided, float32 `[means, length]`: the
        root of what all steps from a text's begin to the token add up to.
    """
    steps = np.array([np.exp(-1 / decay) for decay, _ in DECAYS], np.float32)
    weights = np.zeros((len(steps), length), np.float32)
    for t in range(1, length):
        weights[:, t] = weights[:, t - 1] * steps + np.float32(1)
    return steps, np.sqrt(weights)


def places(length: int) -> np.ndarray:
    """The numbers of positions, float32 `[length, 4]`."""
    t = np.arange(length, dtype=np.float32)
    named = (np.log1p(t) / 2, t / np.float32(length), 1 / np.maximum(t, 1), np.ones_like(t))
    return np.stack(named, axis=1).astype(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 numbers rounded to 8 bits of mantissa, ties to even, and to 0 below 2**-14.

    bfloat16 and float16 hold each of them exactly.
    """
    bits = np.clip(values, -LARGEST, LARGEST).view(np.int32)
    numbers = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(np.float32)
    return numbers * (np.abs(numbers) >= SMALLEST)
