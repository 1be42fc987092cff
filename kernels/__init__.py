"""The hot loops: six names, one contract each, three implementations; and four of scores.

`reference.py` (NumPy, obvious) is the truth. `cpu/` (Numba) and `cuda/` (Numba CUDA) hold the same:
`capture.py` and `signs.py` the first two, `neurons.py` the others, which work on all neurons at
once. A call goes
where its arrays live: device arrays (anything with `__cuda_array_interface__`) to the device, NumPy
arrays to the CPU. What is returned lives there too, as NumPy's or Numba's arrays.

What scores are made of (`excerpt_sums`, `measures`, `bootstrap`, `best_threshold`; the truth is
`reference_measures.py`) is on the CPU alone, in `cpu/sums.py` and `cpu/measures.py`, and takes host
arrays.

Letters in shapes: B excerpts in a batch, T tokens in an excerpt (64), L = T plus the positions
before them that are not counted (a BOS token), F neurons of one layer, K top exemplars, R random
exemplars, H histogram bins, D excerpts that a bin keeps, V tokens, P pairs and Q triples in the
tables, N neurons, E excerpts that a neuron is scored on. Activations are float32, float16, or
bfloat16 as uint16 views, for which NumPy has no type.

On a device nothing waits for it: all is queued on `stream`, the handle of a CUDA stream (0 is the
default one; the CPU ignores it).

Apart from these, `cpu/ahead.py` compiles what a sweep needs on the CPU before it is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastexplain.kernels.checks import (
    check_bootstrap,
    check_capture,
    check_excerpts,
    check_floating,
    check_lookup,
    check_merge,
    check_signs,
    check_weights,
)

if TYPE_CHECKING:
    import numpy as np

    from fastexplain.kernels.measuring import Binary, Bootstrap, ExcerptSums
    from fastexplain.kernels.signs import Signs
    from fastexplain.kernels.summary import (
        Agreement,
        Batch,
        HeldOut,
        LookupTables,
        Preactivations,
        Summary,
    )

__all__ = [
    "best_threshold",
    "bootstrap",
    "capture",
    "capture_signs",
    "correlate",
    "discretize",
    "excerpt_sums",
    "lookup",
    "measures",
    "merge",
]


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
    from `batch.skip` on; equal values by lower excerpt id. Sums are over counted tokens; on a
    device they are float32 within an excerpt, so that fourth powers overflow above 4e9. Excerpts
    that the batch names as random are kept whole, and the tables take max(activation, 0) by the
    batch's segments. An excerpt with NaN or infinity leaves its id in `summary.fault` (of
    several, one); the summary is then of no further use. Nothing here waits for a device: all is
    queued on `stream`, the handle of a CUDA stream (0 is the default one; the CPU ignores it).

    `acts` must be contiguous, and its dtype the one that `summary` was made for.

    Raises:
        ValueError: shapes do not fit together, an index of the batch points outside (on a device
            `Batch.make` alone looks), no position is counted, or, on a device, K is above 2,048.
        TypeError: the dtype is another.
    """
    check_capture(acts, batch, summary, pre)
    _run("capture.capture", acts, (acts, batch, summary, pre), stream)


def capture_signs(
    acts: Any, batch: Batch, signs: Signs, pre: Preactivations, *, stream: int = 0
) -> None:
    """Fold one gated layer's activations of one batch into its sign classes, in place.

    To be called after `capture`, which has made `acts` `[B, L, F]` of `pre`; of `pre` only the
    factor, up, is read. Counted tokens enter their class's count and sums, and of each class the E
    excerpts with the largest |activation| above 0 on such a token are kept; equal ones by lower
    excerpt id. On a device sums are float32 within an excerpt. Activations that are not finite are
    `capture`'s to report. Nothing here waits for a device.

    Raises:
        ValueError: shapes do not fit together, `pre` has no factor, or no position is counted.
        TypeError: the dtype is another than the one that `signs` was made for.
    """
    check_signs(acts, batch, signs, pre)
    _run("signs.capture_signs", acts, (acts, batch, signs, pre), stream)


def merge(a: Summary, b: Summary, *, stream: int = 0) -> Summary:
    """The summary of the excerpts of `a` and of `b`, which must be disjoint; both are left as is.

    Commutative and associative: bit for bit in keys, ids, activations, counts and extremes, to
    rounding in the sums. Exemplars come out in order, best first.

    Raises:
        ValueError: the summaries were made for different neurons, settings or seeds.
    """
    check_merge(a, b)
    return _run("neurons.merge", a.top_keys, (a, b), stream)


def discretize(activations: Any, scale: Any, *, stream: int = 0) -> Any:
    """Activations `[N, ...]` to integers 0..10, uint8: min(10, floor(10 * max(x, 0) / m)).

    m is the neuron's entry in `scale`, float `[N]`. Evaluated as (10 * x) / m in float64; 0 where
    m <= 0. Source: Bills et al. 2023, "Explaining neurons", on the explainer's input.

    Raises:
        ValueError: `scale` has another shape than `[N]`.
        TypeError: the activations are no floating numbers.
    """
    check_floating(activations)
    if tuple(scale.shape) != tuple(activations.shape[:1]):
        raise ValueError(
            f"expected a scale for each row, got {tuple(scale.shape)} for activations "
            f"{tuple(activations.shape)}"
        )
    return _run("neurons.discretize", activations, (activations, scale), stream)


def correlate(true: Any, simulated: Any, *, stream: int = 0) -> Agreement:
    """How well simulated activations follow the true ones, for every neuron.

    A linear calibration on other excerpts is two calls: with the first one's `intercept` and
    `slope` the second compares `true` to intercept + slope * simulated.

    Args:
        true, simulated: floating, `[N, E, T]`, or `[N, T]` for one excerpt; 16-bit integers are
            bfloat16. Tokens at which either is NaN are left out. On a device, contiguous.

    Returns:
        An `Agreement`. Its sums are float64, in two passes: first the means, then what deviates
        from them.

    Raises:
        ValueError: the arrays have different shapes, or others than these.
        TypeError: they are no floating numbers.
    """
    check_floating(true)
    check_floating(simulated)
    if tuple(true.shape) != tuple(simulated.shape) or len(true.shape) not in (2, 3):
        raise ValueError(
            f"expected two arrays [N, E, T] or [N, T], got {tuple(true.shape)} and "
            f"{tuple(simulated.shape)}"
        )
    return _run("neurons.correlate", true, (true, simulated), stream)


def lookup(
    tables: LookupTables, excerpts: HeldOut, signed: bool = False, *, stream: int = 0
) -> Any:
    """Predict activations from the tables, each neuron's excerpts held out.

    Args:
        tables: one layer's sums and counts.
        excerpts: per neuron E excerpts to predict, with their true activations. On a device,
            E * T is 3,072 at most: a neuron's tokens have to fit into a block's shared memory.
        signed: the values are any numbers, not activations: all count, not only those above 0, and
            a sum within rounding of 0 stays what it is.

    Returns:
        float32 `[F, E, T]`: the triple's estimate, backing off to the pair's, the token's and the
        neuron's mean; NaN at tokens that are not counted and in missing excerpts. With g the mean
        of max(activation, 0), these are e = (S_t + 0.5 g) / (C_t + 0.5) for a token,
        p = (S_p + 2 e) / (C_p + 2) for a pair and (S_q + 2 p) / (C_q + 2) for a triple, where what
        the neuron's E excerpts put into S, C and g has been subtracted; a sum whose remaining count
        is 0, or that is within rounding of 0, is exactly 0.

    Raises:
        ValueError: shapes do not fit together, an index points outside of what it is an index of
            (on a device nobody looks), or E * T is too large for a device.
    """
    check_lookup(tables, excerpts)
    return _run("neurons.lookup", excerpts.activations, (tables, excerpts, signed), stream)


def excerpt_sums(
    true: np.ndarray, simulated: np.ndarray, binary: Binary | None = None
) -> ExcerptSums:
    """What all measures of agreement are made of, by excerpt; see `measuring.ExcerptSums`.

    Args:
        true, simulated: floating, `[N, E, T]`. Tokens at which either is NaN are left out; so is an
            excerpt that shall not count for a neuron, by NaN. Host arrays.
        binary: without it `correlation` and `raw_correlation` alone are known, and nothing is
            sorted.

    Raises:
        ValueError: the arrays have different shapes, or E is above 8,000.
        TypeError: they are no floating numbers.
    """
    check_excerpts(true, simulated, binary)
    return _run("sums.excerpt_sums", None, (true, simulated, binary), 0)


def measures(sums: ExcerptSums, weights: np.ndarray | None = None) -> np.ndarray:
    """The measures of each neuron over all its excerpts pooled, float64 `[N, len(MEASURES)]`.

    In the order of `measuring.MEASURES`, NaN where undefined:

    - `correlation`: Pearson's of max(true, 0) and the simulated value; as `correlate` of these.
    - `raw_correlation`: the same of the true activation itself, negative ones included.
    - `spearman`: of max(true, 0) and the simulated value; ties have their mean rank.
    - `r_squared`: 1 - sum (x - c)**2 / sum (x - mean x)**2, c the calibrated value.
    - `deviation_explained`: 1 - sum |x - c| / sum |x - mean x|.
    - `auprc`: average precision of the simulated value for whether a token is active: over falling
      thresholds, sum of precision times what recall gains (scikit-learn's definition).
    - `f1`, `iou`, `cosine`: of active tokens and those predicted to be: 2 H / (A + P),
      H / (A + P - H), H / sqrt(A P). As `auprc`, undefined where no token is active; cosine also
      where none is predicted to be.

    Args:
        weights: floating `[N, E]`, at least 0: how often each excerpt counts, for samples drawn
            by stratum. 1 for each if None. With others `spearman` and `deviation_explained` are
            approximate, as in `bootstrap`.

    Raises:
        ValueError: the weights have another shape.
    """
    check_weights(sums, weights)
    return _run("measures.measures", None, (sums, weights), 0)


def bootstrap(
    sums: ExcerptSums, top: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> Bootstrap:
    """95% intervals of the measures, by drawing excerpts again; see `measuring.Bootstrap`.

    As many excerpts as there are of each kind, top and random, are drawn with replacement from
    those of that kind. Draws are of places among these, the same for all neurons. The ends are
    quantiles (linear) of the resamples in which a measure is defined, further out where excerpts
    are few; see `measuring.interval_share`. There is no interval where
    the measure itself is undefined, where there is only one excerpt of a kind, or where
    more than half of the resamples are undefined.

    `spearman` keeps the ranks among all tokens. `deviation_explained` takes it that no activation
    lies between the mean of all and that of the drawn. The others are exactly those of the drawn.

    Args:
        top: bool `[N, E]`, whether an excerpt is a top one. Those without a known token are not
            drawn.

    Raises:
        ValueError: `top` has another shape, or there is no resample.
    """
    check_bootstrap(sums, top, resamples)
    return _run("measures.bootstrap", None, (sums, top, resamples, seed), 0)


def best_threshold(true: np.ndarray, simulated: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The simulated value from which on to predict tokens active, so that F1 is best; `[N]`.

    Of several the highest; NaN where no token is active, or `scale` is unknown.

    Args:
        true, simulated: floating `[N, E, T]`, as for `excerpt_sums`: of the calibration split.
        scale: floating `[N]`, as in `measuring.Binary`.

    Raises:
        ValueError: shapes do not fit together.
        TypeError: they are no floating numbers.
    """
    check_excerpts(true, simulated, None, scale)
    return _run("sums.best_threshold", None, (true, simulated, scale), 0)


def _run(name: str, array: Any, arguments: tuple[Any, ...], stream: int) -> Any:
    """Call `MODULE.FUNCTION` of `cuda/` or of `cpu/`, by where an array lives."""
    module, function = name.split(".")
    on_device = hasattr(array, "__cuda_array_interface__")
    place = importlib.import_module(f"{__name__}.{'cuda' if on_device else 'cpu'}.{module}")
    queue = {"stream": stream} if on_device else {}
    return getattr(place, function)(*arguments, **queue)
