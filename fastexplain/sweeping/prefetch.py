"""Batches made and copied to a GPU while it works on the one before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fastexplain.kernels.summary import Batch, moved
from fastexplain.sweeping.summaries import for_kernels

_Item = TypeVar("_Item")


def prefetched(
    batches: Iterator[tuple[np.ndarray, Batch]], device: torch.device
) -> Iterator[tuple[Tensor, Batch]]:
    """Token ids `[B, T]` and the rest of each batch, on the device, as its kernels take them.

    For a GPU a thread makes the next batch meanwhile. On the CPU a batch is made when it is asked
    for: the cores are busy.
    """
    if device.type != "cuda":
        for token_ids, batch in batches:
            yield torch.from_numpy(token_ids), batch
        return
    for copied, there, tensors, done in ahead(_copied(batches, device)):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(done)
        for tensor in tensors:  # else a later batch would get its memory too early
            tensor.record_stream(stream)
        yield copied, for_kernels(there)


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, none of them None, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _copied(
    batches: Iterator[tuple[np.ndarray, Batch]], device: torch.device
) -> Iterator[tuple[Tensor, Batch, list[Tensor], torch.cuda.Event]]:
    """Batches copied on a stream of their own, from pinned memory: the host waits for neither.

    With each come all its tensors, and the event of their arrival.
    """
    side = torch.cuda.Stream(device)
    for token_ids, batch in batches:
        tensors: list[Tensor] = []

        def copy(array: np.ndarray, tensors: list[Tensor] = tensors) -> Tensor:
            tensors.append(torch.from_numpy(array).pin_memory().to(device, non_blocking=True))
            return tensors[-1]

        with torch.cuda.stream(side):
            made = copy(token_ids), moved(batch, copy)
            done = side.record_event()
        yield *made, tensors, done
