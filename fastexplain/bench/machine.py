"""What a machine can do: its copy, its matrix products, the capture kernel, and how to time them.

A device works behind the host's back: every time here is from a synchronised start to a
synchronised end. Inputs are random, since zeros are copied and multiplied faster.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastexplain.kernels.summary import Batch, Preactivations, Summary
from fastexplain.models.onednn import OneDnnLinear
from fastexplain.sweeping.summaries import Exemplars, for_kernels, kernel_dtype, on_device
from fastexplain.version import __version__, installed

TOKENS = 64
"""Tokens of an excerpt."""

# Bytes of a copied array, far above any cache; the side of a square matrix, large enough that
# products reach their rate, small enough that a CPU takes well under a second.
_COPY_BYTES = {"cuda": 2**31, "mps": 2**28, "cpu": 2**27}
_MATRIX_SIDE = {"cuda": 8192, "mps": 4096, "cpu": 2048}
# Inputs that a kernel is timed on in turn: together beyond the caches.
_ROTATED_BYTES = {"cuda": 2**29, "mps": 2**28, "cpu": 2**27}
_LEAST_REPEATS, _MOST_REPEATS = 5, 200


def machine() -> dict[str, Any]:
    """The machine and the versions that a measurement was made with; plain data."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cpu": _cpu(),
        "instructions": _instructions(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "fastexplain": __version__,
        **{name: installed(name) for name in ("torch", "transformers", "numba", "numba-cuda",
                                             "triton", "numpy")},
    }  # fmt: skip


def commit() -> str | None:
    """The commit of the checkout that runs, with a + where files were changed since.

    None where it runs from a package, or without git.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # or it is another's repository
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _instructions() -> str:
    """The widest vector instructions that torch uses on this CPU: avx512, avx2, neon, ..."""
    found = torch.backends.cpu.get_cpu_capability().lower()
    # On ARM torch names only what is beyond NEON, which all of 64 bits have.
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return "neon" if arm and found == "default" else found


def _driver() -> str | None:
    """The NVIDIA driver's version, as its kernel module reports it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    return next((word for word in text.split() if word[:1].isdigit() and "." in word), None)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what was queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Wall time of a step, the device's part included."""
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started


def median_seconds(step: Callable[[], object], device: torch.device) -> float:
    """The median time of a step, after two of warm-up."""
    return statistics.median(_times(step, device, 0.5))


def _least_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Fastest run on a CPU, where other work must not lower a rate; else the median."""
    times = _times(step, device, 1.5)
    return min(times) if device.type == "cpu" else statistics.median(times)


def _times(step: Callable[[], object], device: torch.device, budget: float) -> list[float]:
    """Seconds of repeated steps, after two of warm-up.

    On CUDA, steps are timed by events, so that the host's time between them does not count.

    Args:
        budget: seconds to spend; there are at least 5 repeats, and at most 200.
    """
    step()
    once = seconds_of(step, device)
    repeats = min(max(int(budget / max(once, 1e-9)), _LEAST_REPEATS), _MOST_REPEATS)
    if device.type != "cuda":
        return [seconds_of(step, device) for _ in range(repeats)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    synchronize(device)
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy on the device, counting those read and those written."""
    size = _COPY_BYTES[device.type]
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _least_seconds(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product."""
    product = MatrixProduct(device, dtype)
    return product.operations / _least_seconds(product, device)


class MatrixProduct:
    """A large square matrix product; on a CPU by the faster of the two libraries PyTorch has."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        side = _MATRIX_SIDE[device.type]
        self.operations = 2 * side**3
        self._left, self._right = (
            torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)
        )

    def __call__(self) -> None:
        with torch.inference_mode(), OneDnnLinear():
            nn.functional.linear(self._left, self._right)


@dataclass(frozen=True)
class CaptureForm:
    """A batch that `capture` is timed on, of random activations.

    Attributes:
        excerpts, lead, neurons: its shape, `[excerpts, lead + 64, neurons]`.
        nonlinearity: None to read activations, or f to make them of pre-activations and write them.
        gated: whether these are f(gate) * up.
        table_rows: V, P and Q; of the tokens, which are drawn by Zipf's law, those are in them.
    """

    excerpts: int
    neurons: int
    dtype: torch.dtype
    device: torch.device
    lead: int = 0
    nonlinearity: str | None = None
    gated: bool = False
    table_rows: tuple[int, int, int] = (0, 0, 0)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.excerpts, self.lead + TOKENS, self.neurons)

    @property
    def bytes(self) -> int:
        """Those of activations and pre-activations, read and written, of one batch."""
        arrays = 1 if self.nonlinearity is None else 2 + self.gated
        return arrays * math.prod(self.shape) * self.dtype.itemsize

    def exemplars(self, worst: float = -math.inf) -> Exemplars:
        """Those of no excerpts yet; only what is larger than `worst` is taken."""
        summary = Summary.empty(
            self.neurons, TOKENS, kernel_dtype(self.dtype), top=20, bottom=0,
            random_ids=_RANDOM_IDS, table_rows=self.table_rows, seed=0,
        )  # fmt: skip
        summary.top_keys[:] = worst
        return Exemplars(summary, self.device)

    def batches(self, count: int) -> list[tuple[torch.Tensor, Batch, Preactivations | None]]:
        """What `Exemplars.update` takes, a few times."""
        tokens = zipf_tokens(count * self.excerpts, max(sum(self.table_rows), 1) * 4, seed=0)
        families, before = [], 0
        for known in self.table_rows:
            inside = (tokens >= before) & (tokens < before + known)
            families.append(np.where(inside, tokens - before, -1).astype(np.int32))
            before += known
        made: list[tuple[torch.Tensor, Batch, Preactivations | None]] = []
        for start in range(0, count * self.excerpts, self.excerpts):
            rows = slice(start, start + self.excerpts)
            batch = Batch.make(
                np.arange(rows.start, rows.stop, dtype=np.int32),
                *(each[rows] for each in families),
                skip=1 - self.lead, random_ids=_RANDOM_IDS, table_rows=self.table_rows,
            )  # fmt: skip
            acts, gate, up = (
                torch.randn(self.shape, device=self.device, dtype=self.dtype) if needed else None
                for needed in (True, self.nonlinearity is not None, self.gated)
            )
            assert acts is not None
            pre = None if self.nonlinearity is None else Preactivations(self.nonlinearity, gate, up)
            made.append((acts, for_kernels(on_device(batch, self.device)), pre))
        return made


# Far from the ids of the batches that are timed: a sweep hardly ever meets one.
_RANDOM_IDS = np.arange(25, dtype=np.int32) + 2**30


def capture_bandwidth(form: CaptureForm) -> dict[str, float]:
    """Time `capture` alone, once the exemplars are so good that none changes.

    So it is in a sweep past its first batches: of N excerpts a neuron takes 20 (1 + ln(N / 20)).

    Returns:
        `seconds` of a batch, its `bytes`, and `bytes_per_second`.
    """
    kept = form.exemplars(worst=float(np.finfo(np.float32).max))
    work = form.batches(max(1, -(-_ROTATED_BYTES[form.device.type] // form.bytes)))

    def cycle() -> None:
        for acts, batch, pre in work:
            kept.update(acts, batch, pre)

    seconds = median_seconds(replayed(cycle, form.device), form.device) / len(work)
    return {"seconds": seconds, "bytes": form.bytes, "bytes_per_second": form.bytes / seconds}


def first_captures(form: CaptureForm, *, batches: int = 4, repeats: int = 3) -> list[float]:
    """Seconds of `capture` for each of the first batches of a sweep, which insert the most.

    Every repeat starts from no exemplars; a batch's time is the least of its repeats'. On CUDA the
    host's launches, which would hide it, are not in it.
    """
    work = form.batches(batches)
    kept = form.exemplars()
    steps = [replayed(partial(kept.update, *each), form.device) for each in work]
    times = []
    for _ in range(repeats):
        kept.restart(form.exemplars())
        times.append([seconds_of(step, form.device) for step in steps])
    return [min(each) for each in zip(*times, strict=True)]


def replayed(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The step as a CUDA graph, without the host's time for its launches.

    Off CUDA, and where a graph can't hold what it does, the step as it is.
    """
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        step()  # compiles and allocates, neither of which a graph can hold
    synchronize(device)
    gc.collect()  # what Numba frees meanwhile would break the graph off
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            step()
    except Exception as error:  # CUDA's, torch's or Numba's
        warnings.warn(f"timed with the host's launches: {error}", stacklevel=2)
        return step
    return graph.replay


def zipf_tokens(excerpts: int, vocabulary: int, *, seed: int) -> np.ndarray:
    """Token ids int32 `[excerpts, 64]`, as frequent and as repetitive as a text's.

    Frequencies follow Zipf and Mandelbrot, 1 / (rank + 2.7). Every third token is the fixed
    successor of the one before it, so that there are frequent pairs too.
    """
    rng = np.random.default_rng(seed)
    cumulated = np.cumsum(1 / (np.arange(vocabulary) + 2.7))
    cumulated /= cumulated[-1]

    def draw(*shape: int) -> np.ndarray:
        return np.searchsorted(cumulated, rng.random(shape)).astype(np.int32)

    tokens, successors = draw(excerpts, TOKENS), draw(vocabulary)
    follows = rng.random((excerpts, TOKENS)) < 1 / 3
    for t in range(1, TOKENS):
        tokens[:, t] = np.where(follows[:, t], successors[tokens[:, t - 1]], tokens[:, t])
    return tokens


def peak_memory(step: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a step needs at its worst beyond those in use before it; None if not knowable.

    On CUDA that is what torch's allocator hands out; on a CPU, the process's resident memory, of
    which Linux can keep the peak.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "cpu" and platform.system() == "Linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)  # else what was freed would still count as in use
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        except (OSError, AttributeError):  # a kernel or a C library without it
            step()
            return None
        before = _resident("VmRSS")
        step()
        return max(_resident("VmHWM") - before, 0)
    step()
    return None


def _resident(name: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
