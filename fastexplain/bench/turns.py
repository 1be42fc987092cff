"""How fast a sweep is on this machine, beside what the same model takes without it.

The floor, counted first: the linear layers of a trunk take 2 * inputs * outputs operations a
position, in a sweep all but the last down projection, and attention over 64 tokens adds under 1%,
which is left out. As many operations in large matrix products, at whatever rate this machine has
for them, take the least time there can be. They are one of the ways.

1. Measure the machine: its copy, its matrix products, and the capture kernel alone.
2. Make the ways: transformers' own trunk, eager and compiled, the whole model with its head, the
   sweep (eager and compiled layers, with and without tables), what is commonly done in its
   place, and the floor. All run one model on the same batches in the same dtype in one process;
   those that are not ours as PyTorch comes, so that on a CPU part of a sweep's gain is oneDNN's.
3. Warm up, then let the ways take turns, batch by batch, starting with another one each turn.
   Machines are noisy: a ratio is the median, over turns, of the ratio within a turn.

Compiled layers are `torch.compile`'s, decoder layer by decoder layer, which transformers calls
regional compilation: one graph serves all layers. `compile="trunk"` compiles the bare trunk as one
graph instead, which takes minutes, for a comparison with the most that a user could have.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
import torch.compiler.config

from fastexplain.bench.geometries import GEOMETRIES
from fastexplain.bench.machine import (
    TOKENS,
    CaptureForm,
    capture_bandwidth,
    commit,
    copy_bandwidth,
    first_captures,
    machine,
    matrix_rate,
    peak_memory,
    seconds_of,
    synchronize,
    zipf_tokens,
)
from fastexplain.bench.ways import (
    REFERENCES,
    WAYS,
    Compile,
    Sweeper,
    Way,
    floor_operations,
    make_ways,
)
from fastexplain.errors import UsageError
from fastexplain.subject.fusion import find_elementwise
from fastexplain.subject.model import Subject
from fastexplain.sweeping.settings import TABLE_BYTES
from fastexplain.sweeping.summaries import kernel_device

BATCH = {"cpu": 64, "mps": 64, "cuda": 512}
"""Excerpts of a batch, by the kind of device: a sweep's defaults."""

_WARM_UP = 2  # turns: the first compiles, the second shows what memory is needed
_LEAST_TURNS = 3
_NEEDED = ("trunk", "sweep")  # of the ways
# Batches that a way runs in a turn, without waiting in between, as no loop does on a GPU.
_BATCHES_A_TURN = {"cpu": 1, "mps": 2, "cuda": 2}


def measure(
    subject: Subject,
    *,
    batch_size: int | None = None,
    batches: int = 16,
    seconds: float = 120.0,
    compile: Compile = "layers",
    seed: int = 0,
    report: Callable[[str], None] = lambda what: None,
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure a subject's sweep beside the other ways, and what the machine allows.

    Args:
        batch_size: excerpts of a batch; `BATCH` by default.
        batches: of each way, at least; a turn may have several.
        seconds: for the turns; past that no other begins. There are three in any case.
        compile: how the bare trunk is compiled, see above; `off` leaves out all compiled ways.
        seed: of the tokens.
        report: called with a line on each step as it begins.
        save: called after warming up and after every turn with the result so far: whoever stops a
            measurement has it.

    Returns:
        Plain data: `machine`, `commit`, what was run, the `copy` in bytes a second, `matrix`
        products in operations a second, `capture` alone, `ways` (for each its `tokens_per_second`,
        and in bytes what it keeps and needs besides; or why it was `left_out`, which costs the
        others nothing), `ratios` (of speeds, by way and by the way compared with), and bytes
        `on_disk` a neuron.

    Raises UsageError for numbers that make no sense; what goes wrong in the uncompiled sweep or in
    the bare trunk passes through.
    """
    device, dtype = subject.device, subject.dtype
    batch_size = BATCH[device.type] if batch_size is None else batch_size
    for name, value in (("batch_size", batch_size), ("batches", batches)):
        if value < 1:
            raise UsageError(f"`{name}` is {value}; it must be at least 1")
    report("Measuring the machine")
    copied, multiplied = copy_bandwidth(device), matrix_rate(device, dtype)
    capture = _capture(subject, batch_size, copied)

    a_turn = _BATCHES_A_TURN[device.type]
    turns = max(-(-batches // a_turn), _LEAST_TURNS)
    count = (_WARM_UP + turns) * a_turn * batch_size
    tokens = zipf_tokens(count, subject.vocabulary_size, seed=seed)
    # Dynamo keeps 8 compiled forms of a function, and every layer of every model is the same one.
    torch.compiler.reset()
    strict = {"fail_on_recompile_limit_hit": True}
    with torch.compiler.config.patch(strict):  # type: ignore[attr-defined]
        tables = table_bytes(subject)
        contest = _Contest(
            *make_ways(subject, tokens, batch_size=batch_size, table_bytes=tables, compile=compile),
            device,
            a_turn,
        )
        contest.warm_up(report)
        sweep = contest.ways["sweep"]
        assert isinstance(sweep, Sweeper)
        file = sweep.layer_file()
        setting = {
            "kind": "bench",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            "geometry": subject.name,
            "layers": len(subject.mlps),
            "layers_of_geometry": _layers_of_geometry(subject),
            "neurons": sum(subject.widths),
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "positions": len(subject.lead) + TOKENS,
            "batches_a_turn": a_turn,
            "copy": copied,
            "matrix": multiplied,
            "capture": capture,
            "operations_a_token": floor_operations(subject) / TOKENS,
            "on_disk": sum(
                array.nbytes for name, array in file.items() if not name.startswith("tables.")
            ) / subject.widths[0],
            "tables_bytes": tables,
        }  # fmt: skip
        result = setting | contest.result(a_turn * batch_size * TOKENS)
        save(result)
        started = time.perf_counter()
        while contest.turns < turns:
            if contest.turns >= _LEAST_TURNS and time.perf_counter() - started > seconds:
                break
            report(f"Turn {contest.turns + 1} of {turns}")
            contest.take_turn()
            result = setting | contest.result(a_turn * batch_size * TOKENS)
            save(result)
    return result


class _Contest:
    """The ways that take turns, and what is known of them.

    A way that fails is left out from then on. What goes wrong in one that nothing could be said
    without is raised.

    Attributes:
        ways: those still in it.
        turns: that they have taken.
    """

    def __init__(
        self, ways: dict[str, Way], left_out: dict[str, str], device: torch.device, a_turn: int
    ) -> None:
        self.ways = ways
        self.turns = 0
        self._left_out = left_out
        self._device = device
        self._a_turn = a_turn
        self._times: dict[str, list[float]] = {name: [] for name in ways}
        self._memory: dict[str, dict[str, int | None]] = {}

    def warm_up(self, report: Callable[[str], None]) -> None:
        """Run the two untimed turns; see what memory each way takes in the second."""
        before = _outside(self._device)

        def compiles(name: str, way: Way) -> None:
            report(f"Warming up: {WAYS[name]}")
            self._steps(way, self._a_turn)

        self._each(compiles)
        outside = _outside(self._device) - before

        def look(name: str, way: Way) -> None:
            needed = peak_memory(way.step, self._device)
            if needed is not None and isinstance(way, Sweeper):
                needed += outside
            self._memory[name] = {"kept_bytes": way.kept_bytes, "needed_bytes": needed}
            self._steps(way, self._a_turn - 1)

        self._each(look)

    def take_turn(self) -> None:
        """Time every way, beginning with another one each turn."""

        def timed(name: str, way: Way) -> None:
            steps = functools.partial(self._steps, way, self._a_turn)
            self._times[name].append(seconds_of(steps, self._device) * way.share)

        self._each(timed, first=self.turns)
        self.turns += 1

    def result(self, tokens: int) -> dict[str, Any]:
        """Speeds and their ratios, from turns of `tokens` tokens; no ways before the first."""
        times = {name: self._times[name] for name in WAYS if name in self.ways and self.turns}
        return {
            "turns": self.turns,
            "ways": {
                name: {"tokens_per_second": tokens / statistics.median(times[name])}
                | self._memory[name]
                for name in times
            },
            "ratios": {
                name: {
                    other: statistics.median(
                        b / a for a, b in zip(seconds, times[other], strict=True)
                    )
                    for other in REFERENCES if other in times
                }
                for name, seconds in times.items()
            },
            "left_out": dict(self._left_out),
        }  # fmt: skip

    def _each(self, act: Callable[[str, Way], None], first: int = 0) -> None:
        names = list(self.ways)
        first %= len(names)
        for name in names[first:] + names[:first]:
            way = self.ways[name]
            try:
                with way.prepared():
                    act(name, way)
                    synchronize(self._device)
            except Exception as error:  # a compiler's, say, or memory that is not there
                if name in _NEEDED:
                    raise
                self._left_out[name] = (str(error).strip() or repr(error)).splitlines()[0]
                del self.ways[name]

    @staticmethod
    def _steps(way: Way, count: int) -> None:
        for _ in range(count):
            way.step()


def _capture(subject: Subject, batch_size: int, copied: float) -> dict[str, Any]:
    """The capture kernel alone on a layer's shape: reading activations, and making them."""
    mlp = subject.mlps[0]
    part = find_elementwise(subject.model.get_submodule(mlp.path), mlp)
    forms: dict[str, dict[str, Any]] = {"plain": {}}
    if part is not None:
        forms["fused"] = {"nonlinearity": part.nonlinearity, "gated": part.up is not None}
    device = kernel_device(subject.device)
    found = {}
    for name, more in forms.items():
        form = CaptureForm(
            batch_size, mlp.width, subject.dtype, device, lead=len(subject.lead), **more
        )
        one = capture_bandwidth(form)
        of_copy = one["bytes_per_second"] / copied
        found[name] = {**one, "of_copy": of_copy, "first_seconds": first_captures(form)}
    return found


def _outside(device: torch.device) -> int:
    """Bytes of a GPU's memory that torch's allocator knows nothing of: what the kernels take."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _layers_of_geometry(subject: Subject) -> int:
    geometry = GEOMETRIES.get(subject.name)
    return len(subject.mlps) if geometry is None else geometry.layers


def table_bytes(subject: Subject) -> int:
    """A sweep's memory for tables: of a geometry's lowest layers alone, their part of it."""
    return TABLE_BYTES * len(subject.mlps) // _layers_of_geometry(subject)
