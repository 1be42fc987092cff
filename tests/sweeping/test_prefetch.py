"""Batches are made one ahead, by a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fastexplain.kernels.summary import Batch
from fastexplain.sweeping.prefetch import ahead, prefetched


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    used = []
    for item in ahead(items()):
        used.append(item)
        if item < 3:
            assert made[item + 1].wait(timeout=10)
        if item < 2:
            assert not made[item + 2].is_set()
    assert used == [0, 1, 2, 3]
    assert list(ahead(iter([]))) == []


def test_what_making_a_batch_raises_comes_out_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("from a batch")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(KeyError, match="from a batch"):
        next(coming)


def test_the_thread_ends_with_the_loop() -> None:
    before = threading.active_count()
    coming = ahead(iter(range(1, 100)))
    assert next(coming) == 1
    assert threading.active_count() == before + 1
    coming.close()
    assert threading.active_count() == before


def test_on_the_cpu_batches_are_made_when_asked_for() -> None:
    made: list[int] = []
    rows = np.full((2, 64), -1, np.int32)
    ids = np.arange(2, dtype=np.int32)
    batch = Batch.make(ids, rows, rows, rows, skip=1, random_ids=ids[:0], table_rows=(0, 0, 0))

    def batches() -> Iterator[tuple[np.ndarray, Batch]]:
        for number in range(3):
            made.append(number)
            yield rows, batch

    coming = prefetched(batches(), torch.device("cpu"))
    token_ids, same = next(coming)
    assert made == [0] and same is batch
    assert token_ids.data_ptr() == rows.ctypes.data
