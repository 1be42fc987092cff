"""`capture_signs` on a device against the reference, beside the checks of `device_checks.py`."""

from __future__ import annotations

from collections.abc import Iterator

import device_checks as checks
import numpy as np

from fastexplain import kernels
from fastexplain.kernels import reference
from fastexplain.kernels.cuda import signs as cuda_signs
from fastexplain.kernels.signs import Signs
from fastexplain.kernels.summary import moved

if checks.SIMULATED:
    cuda_signs._THREADS, cuda_signs._INSERT_THREADS = 8, 4

_EXEMPLARS = 3
_SUM_RELATIVE, _SUM_OF_LARGEST = 1e-5, 1e-6  # terms are float32 before they are added


def signs_cases(rng: np.random.Generator) -> Iterator[checks.CaptureCase]:
    """Each dtype in each layout that has a factor."""
    for number, dtype in enumerate(checks.DTYPES):
        for layout in checks.LAYOUTS[1:]:
            neurons = [3, 4, 6][number] if checks.SIMULATED else [130, 256, 1537][number]
            seed = int(rng.integers(2**31))
            yield checks.CaptureCase(dtype, neurons, "silu", layout, "normal", seed=seed)


def check_signs(case: checks.CaptureCase) -> None:
    """Two batches into one record; the classes are those of the activations that came out."""
    rng = np.random.default_rng(case.seed)
    ids = rng.permutation(3 * case.excerpts)[: case.excerpts].astype(np.int32)
    dtype = np.dtype(checks.DTYPES[case.dtype])
    slow = Signs.empty(case.neurons, case.tokens, dtype, exemplars=_EXEMPLARS)
    fast = moved(slow, checks.to_device)
    summary = checks._empty(case, ids)
    device_summary = moved(summary, checks.to_device)
    capture_signs = cuda_signs.capture_signs if checks.SIMULATED else kernels.capture_signs
    for members in np.array_split(np.arange(case.excerpts), 2):
        batch = checks._batch(case, rng, ids[members], summary.random_ids)
        device_batch = moved(batch, checks.to_device)
        acts, pre = checks._inputs(case, rng, len(members))
        assert pre is not None
        place, device_pre = checks._on_device(acts, pre)
        checks.implementation("capture")(place, device_batch, device_summary, device_pre)
        capture_signs(place, device_batch, fast, device_pre)
        reference.capture_signs(checks.to_host(place), batch, slow, pre)
    _compare(moved(fast, checks.to_host), slow)


def _compare(fast: Signs, slow: Signs) -> None:
    """Equal bit for bit once exemplars are in order, sums to rounding; raises AssertionError."""
    orders = [np.lexsort((own.ids, -own.keys), axis=2) for own in (fast, slow)]
    for name in Signs._fields:
        found, expected = getattr(fast, name), getattr(slow, name)
        if name == "sums":
            np.testing.assert_allclose(
                found, expected, rtol=_SUM_RELATIVE,
                atol=_SUM_OF_LARGEST * np.abs(expected).max(initial=0), err_msg=name,
            )  # fmt: skip
            continue
        if name != "tokens":
            found, expected = (
                np.take_along_axis(own, order.reshape(*order.shape, *[1] * (own.ndim - 3)), axis=2)
                for own, order in zip((found, expected), orders, strict=True)
            )
        np.testing.assert_array_equal(found, expected, err_msg=name)
