"""The hot loops: five names, one contract each, three implementations.

`reference.py` (NumPy, obvious) is the truth; `cpu.py` (Numba) holds the same functions in the same
order, and `cuda.py` (Numba CUDA) what a sweep runs while its arrays are on a device: `capture`.
That goes where the activations live: device arrays (anything with `__cuda_array_interface__`) to
`cuda`, NumPy arrays to `cpu`. The other four take host arrays, for a finished summary is copied
there once.

Letters in shapes: B excerpts in a batch, T tokens in an excerpt (64), L = T plus the positions
before them that are not counted (a BOS token), F neurons of one layer, K top exemplars, R random
exemplars, H histogram bins, V tokens and P pairs in the tables, N neurons, M pooled tokens.
Activations are float32, float16, or bfloat16 as uint16 views, for which NumPy has no type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastexplain.kernels.summary import Batch, Preactivations, Summary

__all__ = ["capture", "correlate", "discretize", "lookup", "merge"]


def capture(
    acts: Any,
    batch: Batch,
    summary: Summary,
    pre: Preactivations | None = None,
    *,
    stream: int = 0,
) -> None:
    """Fold one layer's activations `[B, L, F]` of one batch into that layer's summary, in place.

    With `pre` the activations are computed in the same pass, in float32 and rounded once, and
    written to `acts`, at the positions that are not counted too. `acts` may be the memory of the
    gate, where that is as wide; else the two must not overlap.

    Excerpts are ranked by their largest (bottom: smallest) activation over counted tokens, those
    from `batch.skip` on; equal values by lower excerpt id. Sums are over counted tokens. Excerpts
    that the batch names as random are kept whole, and the tables take max(activation, 0) by the
    batch's segments. An excerpt with NaN or infinity leaves its id in `summary.fault` (of
    several, one); the summary is then of no further use. Nothing here waits for a device: all is
    queued on `stream`, the handle of a CUDA stream (0 is the default one; the CPU ignores it).

    `acts` must be contiguous, and its dtype the one that `summary` was made for.
    """
    if hasattr(acts, "__cuda_array_interface__"):
        from fastexplain.kernels import cuda

        cuda.capture(acts, batch, summary, pre, stream=stream)
    else:
        from fastexplain.kernels import cpu

        cpu.capture(acts, batch, summary, pre)


def merge(a: Summary, b: Summary) -> Summary:
    """The summary of the excerpts of `a` and of `b`, which must be disjoint.

    Commutative and associative: bit for bit in keys, ids, activations, counts and extremes, to
    rounding in the sums. Exemplars come out in order, best first. Takes host arrays.
    """
    from fastexplain.kernels import cpu_neurons

    return cpu_neurons.merge(a, b)


def discretize(activations: Any, scale: Any) -> Any:
    """Activations `[N, ...]` to integers 0..10, uint8: min(10, floor(10 * max(x, 0) / m)).

    m is the neuron's entry in `scale` `[N]`. Evaluated as (10 * x) / m in float64; 0 where m <= 0.
    Source: Bills et al. 2023, "Explaining neurons", on the explainer's input. Takes host arrays.
    """
    from fastexplain.kernels import cpu_neurons

    return cpu_neurons.discretize(activations, scale)


def correlate(true: Any, simulated: Any) -> Any:
    """Pearson's correlation of each row of `true` and `simulated`, `[N, M]`; float64 `[N]`.

    Tokens at which either side is NaN are left out. NaN where the correlation is undefined: fewer
    than two tokens, or a side that does not vary. Accumulators are float64. Takes host arrays.
    """
    from fastexplain.kernels import cpu_neurons

    return cpu_neurons.correlate(true, simulated)


def lookup(tables: Any, excerpts: Any) -> Any:
    """Predict activations from the tables, each neuron's own excerpts held out. Takes host arrays.

    Args:
        tables: a `LookupTables`; one layer's sums and counts.
        excerpts: a `HeldOut`; per neuron E excerpts to predict, with their true activations.

    Returns:
        float32 `[F, E, T]`: the pair's estimate, backing off to the token's and to the neuron's
        mean; NaN at tokens that are not counted and in missing excerpts. With g the mean of
        max(activation, 0), e = (S_t + 0.5 g) / (C_t + 0.5) and (S_p + 2 e) / (C_p + 2), where what
        the neuron's own E excerpts put into S, C and g has been subtracted; a sum whose
        remaining count is 0, or that is within rounding of 0, is exactly 0.
    """
    from fastexplain.kernels import cpu_neurons

    return cpu_neurons.lookup(tables, excerpts)
