"""Count what `fold` is compiled to, without a GPU: `python benches/sass.py --registers 128 96`.

For compute capability 9.0, each form and limit on registers: the registers that a thread takes,
bytes that are spilled, shared memory of a block, and instructions an activation in the two loops
over groups of tokens, the guarded one and the full one.

It needs numba-cuda with NVVM, `ptxas` and `nvdisasm` of CUDA 13 (a toolkit, or the packages
nvidia-cuda-nvcc and nvidia-cuda-nvdisasm), NVVM no newer than these.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401, first: it makes fastexplain importable
import numba
import numpy as np
from numba import cuda
from numba.cuda import dispatcher

from fastexplain.kernels.cuda import capture as kernels
from fastexplain.kernels.cuda.fold import LOADS
from fastexplain.kernels.summary import Batch, Preactivations, Summary

CAPABILITY = (9, 0)
_LANES = 4
# A name, the nonlinearity, whether there is a factor, and positions before the excerpt.
FORMS: tuple[tuple[str, str | None, bool, int], ...] = (
    ("plain", None, False, 0),
    ("gelu_tanh", "gelu_tanh", False, 0),
    ("silu gated", "silu", True, 1),
    ("gelu", "gelu", False, 0),
    ("relu2", "relu2", False, 1),
)


def fold_ptx(nonlinearity: str | None, gated: bool, lead: int) -> str:
    """The assembly of `fold` for bfloat16 excerpts of 64 tokens."""
    acts = np.zeros((3, lead + 64, 64), np.uint16)
    ids, rows = np.arange(3, dtype=np.int32), np.full((3, 64), -1, np.int32)
    summary = Summary.empty(64, 64, acts.dtype, top=20, bottom=0, random_ids=ids,
                            table_rows=(0, 0, 0), seed=1)  # fmt: skip
    batch = Batch.make(ids, rows, rows, rows, skip=1 - lead, random_ids=ids, table_rows=(0, 0, 0))
    pre = None
    if nonlinearity is not None:
        pre = Preactivations(nonlinearity, acts, acts.copy() if gated else None)

    def scratch(*shape: Any) -> Any:
        return kernels._Scratch.make(np.empty, *shape)

    kernel, _, _, arguments = next(
        kernels._launches(acts, batch, summary, pre, _LANES, CAPABILITY, scratch)
    )
    types = tuple(numba.typeof(argument) for argument in arguments)
    # Device functions are compiled for the device at hand, kernels for the one that is named.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CAPABILITY)
    return cuda.compile_ptx(kernel.py_func, types, cc=CAPABILITY)[0]


def machine_code(ptx: str, registers: int) -> tuple[str, str]:
    """What `ptxas` says of it, and the disassembly."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "fold.ptx"), Path(folder, "fold.cubin")
        source.write_text(ptx)
        target = f"-arch=sm_{CAPABILITY[0]}{CAPABILITY[1]}"
        command = ["ptxas", target, "-v", f"-maxrregcount={registers}", source, "-o", binary]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        command = ["nvdisasm", "-c", binary]
        return said, subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loops(code: str) -> list[list[str]]:
    """The instructions of each innermost loop."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1])
    ends = [
        (labels[to[1]], place)
        for place, each in enumerate(instructions)
        if (to := re.search(r"BRA.*`\((\.L_x_\d+)\)", each)) and labels[to[1]] <= place
    ]
    return [
        instructions[start : stop + 1]
        for start, stop in ends
        if not any(start <= a and b <= stop for a, b in ends if (a, b) != (start, stop))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--registers", nargs="+", type=int, default=[kernels._REGISTERS])
    arguments = parser.parse_args()
    missing = [name for name in ("ptxas", "nvdisasm") if shutil.which(name) is None]
    if missing:
        print(f"sass: {' and '.join(missing)} not found on the path", file=sys.stderr)
        return 2
    print(f"{'form':12} {'limit':>5} {'registers':>9} {'spilled':>8} {'shared':>7} an activation")
    for name, nonlinearity, gated, lead in FORMS:
        ptx = fold_ptx(nonlinearity, gated, lead)
        for registers in arguments.registers:
            said, code = machine_code(ptx, registers)
            used, shared, spilled = (
                sum(map(int, re.findall(pattern, said)))
                for pattern in (r"Used (\d+) reg", r"(\d+) bytes smem", r"(\d+) bytes spill")
            )
            # A loop over groups loads words; other loops are over chunks and bins.
            counts = [
                len(body) / (words / (1 + gated)) / _LANES
                for body in loops(code)
                if (words := sum("LDG.E.64" in each for each in body)) >= LOADS
            ]
            shown = " ".join(f"{count:6.2f}" for count in counts)
            print(f"{name:12} {registers:5} {used:9} {spilled:8} {shared:7} {shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
