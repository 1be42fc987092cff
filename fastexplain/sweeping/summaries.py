"""What a sweep keeps of one layer: update with a batch, finalize into the layer's file."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from fastexplain.errors import SubjectError
from fastexplain.kernels import capture, capture_signs
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.signs import Signs
from fastexplain.kernels.summary import Batch, Preactivations, Summary, moved
from fastexplain.models.gpu import why_no_kernels
from fastexplain.sweeping.products import add_products


def kernel_dtype(dtype: torch.dtype) -> np.dtype:
    """The NumPy type in which the kernels take a torch dtype: bfloat16 goes as its 16 bits."""
    return np.dtype(
        {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}[dtype]
    )


def kernel_device(device: torch.device) -> torch.device:
    """Where the kernels run: on the subject's GPU if they can, else on the CPU.

    A CUDA device on which they can't run is warned of: a sweep is far slower then.
    """
    if device.type != "cuda":
        return torch.device("cpu")
    reason = why_no_kernels(torch.cuda.get_device_capability(device))
    if reason is None:
        return device
    warnings.warn(
        f"kernels run on the CPU, far slower than on the GPU: {reason}; see fastexplain doctor",
        stacklevel=1,  # once for all callers
    )
    return torch.device("cpu")


class Exemplars:
    """One layer's exemplars, statistics and tables while the sweep goes on.

    Args:
        summary: an empty or a partly filled summary, in host memory.
        device: where the activations will be, and the kernels run: the CPU or a CUDA device.
        signs: the same of its sign classes, where these are kept.
    """

    def __init__(self, summary: Summary, device: torch.device, signs: Signs | None = None) -> None:
        def there(record: Any) -> Any:
            # Not by way of pinned memory: PyTorch keeps that, and this is gigabytes in all.
            return moved(record, lambda array: torch.from_numpy(array).to(device))

        on_gpu = device.type == "cuda"
        self._summary = there(summary) if on_gpu else summary
        self._signs = there(signs) if on_gpu and signs is not None else signs
        self._arrays = for_kernels(self._summary)
        self._sign_arrays = None if signs is None else for_kernels(self._signs)

    def update(self, acts: torch.Tensor, batch: Batch, pre: Preactivations | None = None) -> None:
        """Fold in a batch's activations `[B, L, F]`; returns before a device is done with it.

        With `pre`, tensors as the activations are, they are computed first, into `acts`, which must
        be contiguous. `batch` must be on the same device: see `on_device`, and `for_kernels` where
        it serves many layers. On a GPU all is queued on PyTorch's current stream.

        Raises SubjectError if the activations are in another dtype than the summary.
        """
        if pre is not None:
            pre = pre._replace(gate=_array(pre.gate), up=_array(pre.up))
        array = _array(acts)
        if array.dtype != self._arrays.top_acts.dtype:
            raise SubjectError(
                f"an MLP's activations are {str(acts.dtype).removeprefix('torch.')}, those of a "
                "sweep are in the dtype of the model's first weights; load all in one dtype"
            )
        stream = 0
        if acts.device.type == "cuda":
            stream = torch.cuda.current_stream(acts.device).cuda_stream
        capture(array, batch, self._arrays, pre, stream=stream)
        if self._sign_arrays is not None:
            assert pre is not None  # as `check_settings` has seen
            capture_signs(array, batch, self._sign_arrays, pre, stream=stream)

    def add_products(self, acts: torch.Tensor, numbers: torch.Tensor) -> None:
        """Fold in a regression's part of a batch, once its activations are computed.

        Args:
            acts: `[B, L, F]`.
            numbers: float32 `[B, counted, d]`; their sums are the second table's last d rows.
        """
        sums = self._summary.pair_sums
        sums = torch.from_numpy(sums) if isinstance(sums, np.ndarray) else sums
        add_products(sums[-numbers.shape[2] :], acts, numbers)

    def restart(self, other: Exemplars) -> None:
        """Keep what another of the same shape keeps, in the memory that there is.

        So a CUDA graph of updates goes on from there.
        """
        ours, theirs = ((*each._summary, *(each._signs or ())) for each in (self, other))
        for own, new in zip(ours, theirs, strict=True):
            if not isinstance(own, int):
                own[...] = new

    def faulty_excerpt(self) -> int | None:
        """The id of an excerpt whose activations were not finite; waits for the device."""
        fault = int(self._summary.fault[0])
        return None if fault == NO_ID else fault

    def summary(self) -> Summary:
        """What is kept so far, in host memory; waits for the device."""
        return on_host(self._summary)

    def signs(self) -> Signs | None:
        """The same of the sign classes; None where they are not kept."""
        return None if self._signs is None else on_host(self._signs)

    def finalize(self, pairs: int, regressors: int = 0) -> dict[str, np.ndarray]:
        """The layer's file: arrays by name, exemplars in order, best first.

        Args:
            pairs: rows of the second table that are pairs'; those behind are situations'.
            regressors: rows of it that are a regression's, behind these.
        """
        summary = self.summary()
        arrays = {
            "random.ids": summary.random_ids,
            "random.activations": summary.random_acts,
            "sums": summary.sums,
            "positive": summary.positive,
            "minimum": summary.minimum,
            "maximum": summary.maximum,
            "histogram": summary.histogram,
            "histogram.excerpts": np.moveaxis(summary.histogram_ids, 0, -1),
            "tables.tokens": summary.token_sums,
            "tables.pairs": summary.pair_sums[:pairs],
            "tables.situations": summary.pair_sums[pairs : len(summary.pair_sums) - regressors],
            "tables.triples": summary.triple_sums,
        }
        if regressors:
            arrays["tables.regression"] = summary.pair_sums[-regressors:]
        for end in ("top", "bottom"):
            keys, ids, acts = (
                getattr(summary, f"{end}_{what}") for what in ("keys", "ids", "acts")
            )
            order = np.lexsort((ids, -keys), axis=1)
            arrays[f"{end}.ids"] = np.take_along_axis(ids, order, axis=1)
            arrays[f"{end}.activations"] = np.take_along_axis(acts, order[..., None], axis=1)
        for name in ("top.ids", "bottom.ids", "random.ids", "histogram.excerpts"):
            arrays[name] = np.where(arrays[name] == NO_ID, np.int32(-1), arrays[name])
        signs = self.signs()
        return arrays if signs is None else arrays | _signs_arrays(signs)


def _signs_arrays(signs: Signs) -> dict[str, np.ndarray]:
    """What a layer's file has of its sign classes, by name, exemplars best first."""
    order = np.lexsort((signs.ids, -signs.keys), axis=2)
    ids, keys = (np.take_along_axis(own, order, axis=2) for own in (signs.ids, signs.keys))
    acts, ups = (
        np.take_along_axis(own, order[..., None], axis=2) for own in (signs.acts, signs.ups)
    )
    # The best exemplar has the class's extreme; the second and third class are below 0.
    extremes = np.maximum(keys[..., 0], 0) * np.array([1, -1, -1, 1], np.float32)
    return {
        "signs.ids": np.where(ids == NO_ID, np.int32(-1), ids),
        "signs.activations": acts,
        "signs.ups": ups,
        "signs.tokens": signs.tokens,
        "signs.sums": signs.sums,
        "signs.extremes": extremes.T,
    }


def on_device(record: Any, device: torch.device) -> Any:
    """A `Summary` or `Batch` with its arrays on a device; host memory keeps NumPy arrays."""
    if device.type != "cuda":
        return record
    return moved(
        record, lambda array: torch.from_numpy(array).pin_memory().to(device, non_blocking=True)
    )


def on_host(record: Any) -> Any:
    """The same with NumPy arrays; waits for the device."""
    return moved(
        record, lambda array: array.cpu().numpy() if isinstance(array, torch.Tensor) else array
    )


def for_kernels(record: Any) -> Any:
    """The same memory as arrays that the kernels take as they are.

    On a GPU they would wrap each of a record's tensors at every call, layer by layer.
    """
    return moved(record, _array)


def _array(values: Any) -> Any:
    """A tensor's memory as an array of NumPy's or, on a GPU, of Numba's; arrays as they are."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().contiguous()
    if values.dtype == torch.bfloat16:
        values = values.view(torch.uint16)
    if values.device.type == "cpu":
        return values.numpy()
    from numba import cuda

    return cuda.as_cuda_array(values, sync=False)  # queued on the stream that wrote it
