"""`capture` on a GPU: Numba CUDA, threads side by side along the neurons.

It is a handful of launches on one stream, none of which waits for another on the host:
1. `fold` reads every activation once, or the pre-activations, of which it then makes activations
   and writes them out. A thread has the neurons of one machine word and a chunk of the excerpts. It
   leaves the chunk's sums in scratch, each excerpt's bin of the histogram, and marks the excerpts
   that pass the gate as it stood before the batch, with their keys.
2. `add_up` adds the chunks' sums in order, so that they don't depend on how the device schedules.
3. `sort_into_bins`, a thread a neuron, counts the histogram and keeps excerpts of each bin.
4. `insert`, a block a neuron, takes the marked excerpts and copies the activations of those that
   are still among the K best. Past the first batches hardly any are marked.
5. `add_to_tables`, a block per 8 table rows and 32 words of neurons, and `copy` of random
   excerpts.

All launches depend on shapes alone, so that a capture can be part of a CUDA graph, once it has run
outside.

Bytes and operations, for bfloat16 through one nonlinearity: 2 bytes in and 2 out. An H200 moves
4.3 TB/s (measured by a copy) with 132 multiprocessors at 1.75 GHz, each of which issues 128
instructions a cycle: in the time that an activation takes in memory there is room for 27 of them.
So sums are float32 within an excerpt, and float64 only from excerpt to excerpt: at 7 float64
operations an activation (half rate, and conversions at an eighth) these alone would take as long.
For the same reason bfloat16 are compared and counted by twos, as they lie in memory. As compiled
for compute capability 9.0 the loop has 21 instructions an activation with gelu_tanh, 22 with silu
and a gate, which has 6 bytes to move, 11 of the 14 there is room for where activations are only
read, and 33 with gelu, which will not keep up (`benches/sass.py` counts them).

A word waits for memory once in eight (four with a factor): 64 tokens are 8 waits.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastexplain.kernels.cuda import ptx
from fastexplain.kernels.cuda.after_fold import add_up, copy, insert_kernel, tables_kernel
from fastexplain.kernels.cuda.bins import bins_kernel
from fastexplain.kernels.cuda.fold import fold_kernel
from fastexplain.kernels.cuda.queue import kept_scratch, queue_of, view
from fastexplain.kernels.cuda.words import MOST_PAIRED, lanes_of
from fastexplain.kernels.summary import (
    MOMENTS,
    MOST_ON_DEVICE,
    Batch,
    Preactivations,
    Summary,
    moved,
)

_THREADS = 128
"""Threads of a block."""
_NEURON_THREADS = 64
"""The same where there is a thread a neuron: few threads, which smaller blocks spread wider."""
_INSERT_THREADS = 32
"""The same where there is a block a neuron: a warp, as threads that wait for each other."""
_TABLE_THREADS = (32, 8)
"""The same for table rows: along their neurons, and along the rows and the tokens of a long one."""
_ALONE = 16
"""Tokens of a segment, at most, that one row of these threads adds up alone."""
_BINS_BLOCK = (64, 256, 256)
"""Neurons and threads of a block that sorts into bins, and the excerpts that it takes at a time."""
_COPY_BLOCKS = 8
"""Blocks that copy one random excerpt; all but a few of a batch's have nothing to copy."""
_WORD_BYTES = 8
"""What a thread loads at once: 4 neurons of 16 bits, 2 of 32; a warp's load is 256 bytes."""
_REGISTERS = 128
"""Of a `fold` thread, so that a multiprocessor holds 512. What doesn't fit is spilled once an
excerpt, not in the loop over its tokens (seen in the machine code for compute capability 9.0)."""
_WANTED_THREADS = 61_000
"""Threads that fill a large GPU once and leave little of it empty: on an H200, 132 multiprocessors
of 512 at `fold`'s 128 registers are 528 blocks, of which GPT-2 XL's layer takes 520 and Llama-8B's
504. Excerpts are cut into chunks by this number, not by the device's, so that every device
adds in the same order."""
_CHUNK = (4, 32)
"""Fewest and most excerpts of a chunk. A chunk's sums are 52 bytes a neuron, a tenth of what 4
excerpts of 64 tokens have in bfloat16; 32 is the number of bits of a mark."""


class _Scratch(NamedTuple):
    """What `fold` leaves for the launches that follow it.

    Attributes:
        powers: float64 `[chunks, 5, F]`, in the order of `Summary.sums`.
        positive: int32 `[chunks, F]`.
        minimum, maximum: float32 `[chunks, F]`.
        top_marks, bottom_marks: uint32 `[chunks, F]`, a bit for each excerpt that passed the gate.
        top_keys, bottom_keys: float32 `[B, F]`, written where there is a mark.
        bins: uint8 `[B, F]`, the bin of each excerpt's largest activation.
    """

    powers: Any
    positive: Any
    minimum: Any
    maximum: Any
    top_marks: Any
    bottom_marks: Any
    top_keys: Any
    bottom_keys: Any
    bins: Any

    @classmethod
    def make(
        cls, empty: Callable[..., Any], excerpts: int, chunks: int, neurons: int, bottom: bool
    ) -> _Scratch:
        """Allocate by `empty(shape, dtype)`."""
        below = (excerpts if bottom else 0, neurons)
        return cls(
            powers=empty((chunks, MOMENTS, neurons), np.float64),
            positive=empty((chunks, neurons), np.int32),
            minimum=empty((chunks, neurons), np.float32),
            maximum=empty((chunks, neurons), np.float32),
            top_marks=empty((chunks, neurons), np.uint32),
            bottom_marks=empty((chunks, neurons), np.uint32),
            top_keys=empty((excerpts, neurons), np.float32),
            bottom_keys=empty(below, np.float32),
            bins=empty((excerpts, neurons), np.uint8),
        )


def capture(
    acts: Any,
    batch: Batch,
    summary: Summary,
    pre: Preactivations | None = None,
    *,
    stream: int = 0,
) -> None:
    """See `fastexplain.kernels.capture`. All arrays are on the current device.

    Kernels run on the device that is current in the calling thread, where Numba finds what PyTorch
    has set, with scratch for each device: captures of two threads with a GPU each may overlap,
    those on several streams of one GPU must not. Arrays that are Numba's already (see `view`) are
    taken as they are.
    """
    acts, batch, summary = view(acts), moved(batch, view), moved(summary, view)
    pre = None if pre is None else moved(pre, view)
    arrays, starts = [acts, summary.random_acts], 0
    if pre is not None:
        arrays += [pre.gate] if pre.up is None else [pre.gate, pre.up]
        starts = pre.gate_start | pre.up_start
    lanes = lanes_of(acts.shape[2] | starts, arrays, _WORD_BYTES)
    queue = queue_of(stream)
    launches = _launches(
        acts, batch, summary, pre, lanes, _capability(), functools.partial(kept_scratch, _Scratch)
    )
    for kernel, blocks, threads, arguments in launches:
        kernel[blocks, threads, queue](*arguments)


def _flat(array: Any) -> Any:
    return array.reshape(math.prod(array.shape))


def _capability() -> tuple[int, int]:
    """The device's compute capability; in the simulator, one that has all that there is."""
    return ptx.PAIRS_SINCE if ptx.SIMULATED else cuda.get_current_device().compute_capability


def _launches(
    acts: Any,
    batch: Batch,
    summary: Summary,
    pre: Preactivations | None,
    lanes: int,
    capability: tuple[int, int],
    scratch_of: Callable[..., _Scratch],
) -> Iterator[tuple[Any, Any, Any, tuple[Any, ...]]]:
    """The launches of a capture in their order: kernel, blocks, threads a block, arguments."""
    excerpts, length, neurons = acts.shape
    tokens = summary.top_acts.shape[2]
    lead = length - tokens
    if summary.top_keys.shape[1] > MOST_ON_DEVICE:
        raise ValueError(f"on a device, capture keeps {MOST_ON_DEVICE} exemplars a neuron at most")
    if excerpts == 0:
        return
    name = acts.dtype.name
    bits = np.dtype(f"u{acts.dtype.itemsize}")
    word = np.dtype(f"u{acts.dtype.itemsize * lanes}")
    words = acts.view(word)
    width = words.shape[2]
    nonlinearity, gate, up, gate_start, up_start = None, words, None, 0, 0
    if pre is not None:
        nonlinearity = pre.nonlinearity
        gate, gate_start = pre.gate.view(word), pre.gate_start // lanes
        if pre.up is not None:
            up, up_start = pre.up.view(word), pre.up_start // lanes
    chunk = min(max(excerpts * width // _WANTED_THREADS, _CHUNK[0]), _CHUNK[1])
    chunks = -(-excerpts // chunk)
    scratch = scratch_of(excerpts, chunks, neurons, summary.bottom_keys.shape[1] > 0)
    wide, narrow = -(-width // _THREADS), -(-neurons // _NEURON_THREADS)

    ends = summary.top_keys.shape[1] > 0, summary.bottom_keys.shape[1] > 0
    paired = (
        name == "uint16" and lanes > 1 and length <= MOST_PAIRED and capability >= ptx.PAIRS_SINCE
    )
    yield (
        fold_kernel(
            name, lanes, nonlinearity, up is not None, ends,
            capability >= ptx.PACKING_SINCE, paired, _THREADS, _REGISTERS,
        ),
        (wide, chunks), _THREADS,
        (
            _flat(gate), gate.shape[2], gate_start,
            _flat(gate if up is None else up), (gate if up is None else up).shape[2], up_start,
            _flat(words), width, length,
            batch.ids, lead + batch.skip, chunk,
            summary.top_keys, summary.top_ids, summary.bottom_keys, summary.bottom_ids,
            summary.fault, _flat(scratch.bins.view(np.dtype(f"u{lanes}"))), *scratch[:-1],
        ),
    )  # fmt: skip
    totals = summary.sums, summary.positive, summary.minimum, summary.maximum
    yield add_up, (narrow, MOMENTS + 1), _NEURON_THREADS, (*scratch[:4], *totals)
    columns, threads, tile = _BINS_BLOCK
    yield (
        bins_kernel(columns, threads, tile), -(-neurons // columns), threads,
        (
            scratch.bins, batch.ids, np.uint64(summary.seed),
            summary.histogram, summary.histogram_ids,
        ),
    )  # fmt: skip
    for marks, passed_keys, keys, ids, rows in (
        (scratch.top_marks, scratch.top_keys,
         summary.top_keys, summary.top_ids, summary.top_acts),
        (scratch.bottom_marks, scratch.bottom_keys,
         summary.bottom_keys, summary.bottom_ids, summary.bottom_acts),
    ):  # fmt: skip
        if keys.shape[1]:
            yield (
                insert_kernel(keys.shape[1], _INSERT_THREADS), neurons, _INSERT_THREADS,
                (
                    acts.view(bits), batch.ids, lead, chunk, marks, passed_keys,
                    keys, ids, rows.view(bits),
                ),
            )  # fmt: skip
    if summary.random_acts.shape[0]:
        yield (
            copy, (excerpts, _COPY_BLOCKS), _THREADS,
            (words, lead, batch.random_slots, summary.random_acts.view(word)),
        )  # fmt: skip
    if batch.segment_rows.shape[0]:
        across, along = _TABLE_THREADS
        yield (
            tables_kernel(name, lanes, tokens, _TABLE_THREADS, _ALONE),
            (-(-batch.segment_rows.shape[0] // along), -(-width // across)), _TABLE_THREADS,
            (
                words, lead, batch.positions, batch.segment_starts, batch.segment_rows,
                summary.token_sums, summary.pair_sums, summary.triple_sums,
            ),
        )  # fmt: skip
