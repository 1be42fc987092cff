"""Compile what a sweep will run on the CPU into Numba's cache; run as a separate process.

python -m fastexplain.kernels.cpu.ahead '{"dtype": "float32", "nonlinearities": ["silu"], ...}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np

from fastexplain.kernels.cpu import capture as cpu
from fastexplain.kernels.cpu.signs import compile_signs
from fastexplain.kernels.signs import Signs
from fastexplain.kernels.summary import Batch, Preactivations, Summary


def compile_kernels(
    *, dtype: str, nonlinearities: Sequence[str | None], tables: bool, signs: bool
) -> None:
    """Compile, or load what is in the cache; nothing is run.

    Args:
        dtype: NumPy's name for that of the activations.
        nonlinearities: that `capture` will compute; None where it reads activations.
        tables: whether there will be any.
        signs: whether `capture_signs` will be called.
    """
    # Compiled code knows the types of its arrays, not their shapes.
    one, rows = np.zeros(1, np.int32), (1, 1, 1) if tables else (0, 0, 0)
    none = np.full((1, 1), -1, np.int32)
    batch = Batch.make(one, none, none, none, skip=0, random_ids=one, table_rows=rows)
    acts = np.zeros((1, 1, 1), dtype)
    summary = Summary.empty(
        1, 1, acts.dtype, top=1, bottom=0, random_ids=one, table_rows=rows, seed=0
    )
    for name in nonlinearities:
        pre = None if name is None else Preactivations(name, acts)
        cpu.compile_capture(acts, batch, summary, pre)
    if signs:
        gated = Preactivations("silu", acts, acts)
        compile_signs(acts, batch, Signs.empty(1, 1, acts.dtype, exemplars=1), gated)


if __name__ == "__main__":
    compile_kernels(**json.loads(sys.argv[1]))
