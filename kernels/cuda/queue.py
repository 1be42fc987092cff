"""Streams, and device arrays as Numba takes them."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
from numba import cuda

from fastexplain.kernels.cuda import ptx

# Numba warns of every launch of fewer than 128 blocks; the small ones here follow a large one.
warnings.filterwarnings("ignore", "Grid size .* low occupancy")


def queue_of(stream: int) -> Any:
    """Numba's form of a CUDA stream's handle, one for each: it knows a launch again by that."""
    return _stream_of(current_device(), stream) if stream else 0


@functools.lru_cache(maxsize=256)
def _stream_of(device: int, handle: int) -> Any:
    return cuda.external_stream(handle)


def current_device() -> int:
    return 0 if ptx.SIMULATED else cuda.get_current_device().id


def view(array: Any) -> Any:
    """A device array as Numba's, without a copy; 16-bit integers of either sign are bfloat16."""
    if not getattr(array, "__cuda_ndarray__", False):
        # No synchronisation: whoever queued the work on the array is on this stream too.
        array = cuda.as_cuda_array(array, sync=False)
    return array.view(np.uint16) if array.dtype == np.int16 else array


def kept_scratch(kind: Any, *shape: Any) -> Any:
    """Scratch of some kind on the current device, made by its `make(empty, *shape)` and kept.

    Freeing device memory waits for the device, and a graph may use it.
    """
    return _made_scratch(kind, current_device(), *shape)


@functools.cache
def _made_scratch(kind: Any, device: int, *shape: Any) -> Any:
    return kind.make(cuda.device_array, *shape)


class Queue:
    """Work on one stream, and the arrays that it needs.

    Nothing waits for the device, but Numba does when it frees arrays, ten or more at a time.
    """

    def __init__(self, stream: int) -> None:
        self._stream = queue_of(stream)

    def empty(self, shape: Any, dtype: Any) -> Any:
        return cuda.device_array(shape, dtype, stream=self._stream)

    def run(self, kernel: Any, blocks: Any, threads: int, *arguments: Any) -> None:
        """Launch a kernel, unless there is nothing to do."""
        if np.prod(blocks) > 0:
            kernel[blocks, threads, self._stream](*arguments)
