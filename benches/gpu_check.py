"""Check and time everything on this machine's GPU: `python benches/gpu_check.py`.

1. Every CUDA kernel against `fastexplain.kernels.reference` on fresh random inputs, and against
   torch at full size; in a CUDA graph; inside compiled models.
2. Copy, matrix products and kernels; then whole sweeps beside transformers' own forward pass and
   the common way, on random weights of GPT-2 XL's and Llama-3.1-8B's shape.
3. If asked for, `fold` by registers and threads, and where a batch's time goes, kernel by kernel.
4. One JSON file with all of it, in $OUT or else in benches/results/.

Where a GPU is lent for minutes, `benches/gpu_parts.sh` runs it part by part.

It runs from a bare checkout and needs torch, transformers, numba and numba-cuda alone. Whatever
fails is noted and the rest goes on; the file is written anew after every step; the exit code is 1
if anything failed, 0 if not. `--only` does some of the parts: one fault of the device, such as an
address out of bounds, makes all later steps of a process fail, and a part may be wanted again. In
Numba's simulator (NUMBA_ENABLE_CUDASIM=1) the kernels are checked in tiny shapes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401, first: it makes fastexplain importable
import device_checks as checks
import device_signs
import numpy as np
import torch

from fastexplain.bench.machine import commit, machine

RESULTS = Path(__file__).resolve().parent / "results"

# Seconds of the whole, and of its parts; compiling a kernel takes a second or two.
_TOTAL = 460.0
_CAPTURE_CHECKS = 75.0
_SHOWN = 25  # failures that are printed again at the end
_GEOMETRIES = {"gpt2-xl": 40.0, "llama-8b": 40.0}
_DEFAULT = ("kernels", "torch", "rates", *_GEOMETRIES)
_PARTS = (*_DEFAULT, "tune", "profile")


class Record:
    """What was checked and timed so far; prints a line for each as it goes.

    Args:
        path: the file that it is written to after every step; None for no file.
    """

    def __init__(self, commit: str | None, seed: int, path: Path | None) -> None:
        self._started = time.perf_counter()
        self._path = path
        self.data: dict[str, Any] = {
            "kind": "gpu_check",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit,
            "machine": machine(),
            "seed": seed,
            "checks": [],
        }

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    def run(
        self, name: str, step: Callable[[], Any], keep: Callable[[Any], None] = lambda value: None
    ) -> Any:
        """Do a step; a failure is noted, and gives None.

        `keep` is given what came of it, before the file is written: a later step may never end.
        """
        began = self.elapsed
        failure = value = None
        try:
            value = step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # what failed on the device shows here
            keep(value)
        except Exception as error:  # whatever it is, the rest goes on
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
            traceback.print_exc()
        took = self.elapsed - began
        self.data["checks"].append({"name": name, "failure": failure, "seconds": round(took, 3)})
        mark = "ok" if failure is None else "FAILED"
        print(f"{self.elapsed:6.1f} s  {mark:6}  {name}  ({took:.2f} s)", flush=True)
        self.write()
        return value

    def write(self) -> None:
        """Write all that there is so far; whoever stops the process has the rest."""
        if self._path is not None:
            self.data["seconds"] = round(self.elapsed, 1)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.data, indent=1, default=str) + "\n")
            temporary.replace(self._path)


def check_kernels(record: Record, rng: np.random.Generator, seconds: float) -> None:
    """The kernels against the reference; captures go on for some seconds, or 60 in all."""

    def seed() -> int:
        return int(rng.integers(2**31))

    for dtype in checks.DTYPES:
        for bad in (np.nan, np.inf):
            for nonlinearity in (None, "silu"):
                record.run(
                    f"capture names the excerpt with {bad}, {dtype}, {nonlinearity or 'plain'}",
                    lambda f=nonlinearity, b=bad, d=dtype: checks.check_fault(d, f, b, seed()),
                )
    for number, dtype in enumerate(checks.DTYPES):
        shape = (130, 3, 7) if number else (5, 9)
        record.run(
            f"discretize {dtype}",
            lambda d=dtype, s=shape: checks.check_discretize(d, s, seed()),
        )
        case = checks.CaptureCase(dtype, 6 if checks.SIMULATED else 130, seed=seed())
        record.run(f"merge {dtype}", lambda c=case: checks.check_merge(c))
    for kind in ("normal", "ties", "constant", "large", "gaps"):
        record.run(
            f"correlate {kind}", lambda k=kind: checks.check_correlate(k, (7, 3, 33), seed())
        )
    for skip in (0, 1):
        record.run(f"lookup skip {skip}", lambda s=skip: checks.check_lookup((5, 3, 6), s, seed()))
    for case in device_signs.signs_cases(rng):
        record.run(f"signs, {case}", lambda c=case: device_signs.check_signs(c))
    began = record.elapsed
    for number, case in enumerate(itertools.islice(checks.capture_cases(rng), 80)):
        if record.elapsed - began > seconds and number >= (8 if checks.SIMULATED else 37):
            break
        record.run(str(case), lambda c=case: checks.check_capture(c))


def check_with_torch(record: Record, rng: np.random.Generator) -> None:
    """What needs torch on the GPU."""
    device_torch = record.run("import what compares with torch", _import_device_torch)
    if device_torch is None:
        return

    def seed() -> int:
        torch.cuda.empty_cache()
        return int(rng.integers(2**31))

    for nonlinearity, gated in ((None, False), ("gelu_tanh", False), ("silu", True)):
        record.run(
            f"capture [512, 64, 6400] bfloat16 against torch, {nonlinearity or 'plain'}",
            lambda f=nonlinearity, g=gated: device_torch.check_large(f, g, seed()),
        )
    for nonlinearity in (None, "gelu_tanh"):
        record.run(
            f"capture in a CUDA graph, {nonlinearity or 'plain'}",
            lambda f=nonlinearity: device_torch.check_graph(f, seed()),
        )
    for geometry in ("gpt2", "smollm2", "phi-3-mini"):
        record.run(
            f"capture in eager and compiled layers, {geometry}",
            lambda g=geometry: device_torch.check_compiled(g),
        )


def _import_device_torch() -> Any:
    import device_torch

    return device_torch


def measure_parts(record: Record, parts: list[str], whole_trunk: bool) -> None:
    """Machine, kernels and sweeps; what may not be reached goes last."""
    import device_timings as timings

    from fastexplain.bench.geometries import random_subject
    from fastexplain.bench.turns import measure
    from fastexplain.bench.ways import Compile

    def run_all(part: str, steps: timings.Steps) -> None:
        found = record.data[part] = {}
        for name, step in steps:
            record.run(f"{part} {name}", step, functools.partial(found.__setitem__, name))

    if "rates" in parts:
        record.run("copy and matrix products", timings.machine_rates, record.data.update)
        if "copy" in record.data:
            run_all("kernels", timings.kernel_steps(record.data["copy"]))
    for geometry, seconds in _GEOMETRIES.items():
        if geometry not in parts:
            continue

        def sweep(geometry: str = geometry, seconds: float = seconds) -> dict[str, Any]:
            if record.elapsed > _TOTAL - 100:
                raise TimeoutError(f"{record.elapsed:.0f} s have gone by; it was left out")
            torch.cuda.empty_cache()
            subject = random_subject(geometry, device="cuda", dtype="bfloat16")

            def show(what: str) -> None:
                print(f"{record.elapsed:6.1f} s          {geometry}: {what}", flush=True)

            def save(so_far: dict[str, Any], geometry: str = geometry) -> None:
                record.data[geometry] = so_far
                record.write()

            how: Compile = "trunk" if whole_trunk else "layers"
            return measure(
                subject, batches=24, seconds=seconds, compile=how, report=show, save=save
            )

        found = record.run(
            f"sweep {geometry}", sweep, functools.partial(record.data.__setitem__, geometry)
        )
        if found is not None:
            for way, why in found["left_out"].items():
                record.run(f"{geometry}: {way}", lambda w=why: _raise(w))
    for part, steps in (("tune", timings.tune_steps), ("profile", timings.profile_steps)):
        if part in parts:
            run_all(part, steps())
    record.data["bars"] = timings.bars(record.data)


def _raise(why: str) -> None:
    raise RuntimeError(why)


def report(data: dict[str, Any]) -> bool:
    """Print what was found, shortest last; whether all is well."""
    failures = [check for check in data["checks"] if check["failure"]]
    if "kernels" in data:
        from rich.console import Console

        from fastexplain.cli.bench_table import bench_table

        for geometry in _GEOMETRIES:
            if geometry in data:
                Console(width=150).print(bench_table(data[geometry]))
        if "copy" in data:
            print(f"\ncopy {data['copy'] / 1e12:.2f} TB/s, matrix products "
                  f"{data['matrix'] / 1e12:.0f} TFLOP/s")  # fmt: skip
        for name, one in data["kernels"].items():
            first = (f"{seconds * 1e3:.3f}" for seconds in one.get("first_seconds", []))
            print(f"{name:28} {one['seconds'] * 1e3:9.3f} ms {one['bytes_per_second'] / 1e12:6.2f} "
                  f"TB/s {one['of_copy']:6.1%} of copy  {', '.join(first)}")  # fmt: skip
    for name, one in data.get("tune", {}).items():
        print(f"{name:44} {one['seconds'] * 1e6:9.1f} us "
              f"{one['bytes_per_second'] / 1e12:6.2f} TB/s")  # fmt: skip
    missed = 0
    for bar in data.get("bars", []):
        met = bar["found"] is not None and bar["found"] >= bar["least"]
        missed += not met
        found = "not measured" if bar["found"] is None else f"{bar['found']:,.2f}"
        mark = "met" if met else "MISSED"
        print(f"{mark:6}  {bar['name']:40} {found:>14}  (at least {bar['least']:,})")
    for check in failures[:_SHOWN]:
        print(f"FAILED  {check['name']}: {check['failure'][:200]}")
    print(
        f"{len(data['checks'])} steps, {len(failures)} failed; "
        f"{len(data.get('bars', []))} bars, {missed} missed; {data.get('seconds', 0):.0f} s"
    )
    return not failures and not missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_DEFAULT, metavar="PART",
                        help=f"some of {', '.join(_PARTS)}; the first two are checks")  # fmt: skip
    parser.add_argument("--whole-trunk", action="store_true",
                        help="compile the bare trunk as one graph: some minutes more")  # fmt: skip
    parser.add_argument("--seed", type=int, help="of the inputs; the clock's if left out")
    parser.add_argument("--commit", help="to record, where there is no git")
    parser.add_argument("--seconds", type=float, default=_CAPTURE_CHECKS, help="of random captures")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or checks.SIMULATED):
        print("gpu_check: there is no CUDA device here; NUMBA_ENABLE_CUDASIM=1 checks the "
              "kernels in Numba's simulator", file=sys.stderr)  # fmt: skip
        return 2
    seed = time.time_ns() % 2**31 if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    parts = [part for part in _PARTS if part in arguments.only]
    path = _result_path(parts)
    record = Record(arguments.commit or commit(), seed, path)
    rng = np.random.default_rng(seed)
    if "kernels" in parts:
        check_kernels(record, rng, arguments.seconds)
    if not checks.SIMULATED:
        if "torch" in parts:
            check_with_torch(record, rng)
        measure_parts(record, parts, arguments.whole_trunk)
    record.write()
    well = report(record.data)
    if path is not None:
        print(f"written to {path}")
    return 0 if well else 1


def _result_path(parts: list[str]) -> Path | None:
    """The file for the results, named by GPU, parts and day; none for the simulator's, unasked."""
    out = os.environ.get("OUT")
    if checks.SIMULATED and not out:
        return None
    folder = Path(out) if out else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    name = "simulator" if checks.SIMULATED else torch.cuda.get_device_name()
    if tuple(parts) == _DEFAULT:
        parts = []
    return folder / file_name(name, parts, datetime.now(UTC).isoformat())


def file_name(gpu: str, parts: list[str], when: str) -> str:
    """That of the results of some parts, or of no part in particular, in ISO time."""
    words = [re.sub(r"\W+", "-", gpu).lower(), *parts]
    return f"gpu_check-{'-'.join(words)}-{when[:10]}.json"


if __name__ == "__main__":
    sys.exit(main())
