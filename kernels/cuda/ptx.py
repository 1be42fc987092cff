"""Instructions of NVIDIA GPUs that Numba has no name for, for use in CUDA kernels.

Source: "Parallel Thread Execution ISA", sections on `ex2`, `rcp`, `cvt`, `max`, `min`, `set` and
`add`. Numba's simulator runs Python, where the same is done by NumPy's arithmetic.

A pair is two 16-bit numbers in one uint32, the first in its low half.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import config, types

from fastexplain.kernels.summary import narrow

SIMULATED = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
"""Whether CUDA kernels run in Numba's simulator, because NUMBA_ENABLE_CUDASIM is set."""

PACKING_SINCE = (8, 0)
"""The least compute capability that rounds and packs two float32 in one instruction."""

PAIRS_SINCE = (9, 0)
"""The least one that compares and adds pairs of bfloat16."""

if SIMULATED:

    def exp2(x):
        return np.exp2(np.float32(x))

    def reciprocal(x):
        return np.float32(1) / x

    def _halves(pair):
        """The two bfloat16 of a pair as float32 `[2]`."""
        return np.array([pair << 16, pair & 0xFFFF0000], np.uint32).view(np.float32)

    def _paired(low, high):
        """Two float32 that bfloat16 can express, as a pair."""
        bits = np.array([low, high], np.float32).view(np.uint32)
        return np.uint32(bits[0] >> 16 | bits[1] & 0xFFFF0000)

    def pack_bfloat16(high, low):
        low, high = (int(x) for x in narrow(np.array([low, high], np.float32), np.dtype("u2")))
        return np.uint32(low | high << 16)

    def pack_float16(high, low):
        with np.errstate(over="ignore"):
            low, high = (int(np.float16(x).view(np.uint16)) for x in (low, high))
        return np.uint32(low | high << 16)

    def low_float16(pair):
        return np.float32(np.uint16(pair & 0xFFFF).view(np.float16))

    def high_float16(pair):
        return np.float32(np.uint16(pair >> 16).view(np.float16))

    def max_bfloat16(a, b):
        return _paired(*np.fmax(_halves(a), _halves(b)))

    def min_bfloat16(a, b):
        return _paired(*np.fmin(_halves(a), _halves(b)))

    def above_zero_bfloat16(a):
        return _paired(*(_halves(a) > 0))

    def add_bfloat16(a, b):
        return pack_bfloat16(*(_halves(a) + _halves(b))[::-1])

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    def _instruction(code, constraints, result, *operands):
        """One instruction on float32 and uint32 operands, as a function that kernels call."""

        def codegen(_context, builder, signature, values):
            kinds = [
                ir.FloatType() if each == types.float32 else ir.IntType(32)
                for each in (signature.return_type, *signature.args)
            ]
            assembly = ir.InlineAsm(ir.FunctionType(kinds[0], kinds[1:]), code, constraints)
            return builder.call(assembly, values)

        if len(operands) == 1:
            return intrinsic(lambda _context, x: (result(*operands), codegen))
        return intrinsic(lambda _context, x, y: (result(*operands), codegen))

    _F, _U = types.float32, types.uint32

    exp2 = _instruction("ex2.approx.ftz.f32 $0, $1;", "=f,f", _F, _F)
    """Two to the power of a float32, to 2 ulp; 0 below the least normal number."""

    reciprocal = _instruction("rcp.approx.ftz.f32 $0, $1;", "=f,f", _F, _F)
    """1 / x of a float32, to 1 ulp; 0 below the least normal number."""

    pack_bfloat16 = _instruction("cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f", _U, _F, _F)
    pack_float16 = _instruction("cvt.rn.f16x2.f32 $0, $1, $2;", "=r,f,f", _U, _F, _F)
    """(high, low), two float32, as a pair, rounded to nearest, ties to even."""

    low_float16 = _instruction(
        "{ .reg .b16 low, high; mov.b32 {low, high}, $1; cvt.f32.f16 $0, low; }", "=f,r", _F, _U
    )
    high_float16 = _instruction(
        "{ .reg .b16 low, high; mov.b32 {low, high}, $1; cvt.f32.f16 $0, high; }", "=f,r", _F, _U
    )
    """The first and the second float16 of a pair as float32."""

    max_bfloat16 = _instruction("max.bf16x2 $0, $1, $2;", "=r,r,r", _U, _U, _U)
    min_bfloat16 = _instruction("min.bf16x2 $0, $1, $2;", "=r,r,r", _U, _U, _U)
    """The larger and the smaller of each half of two pairs; of NaN and a number, the number."""

    above_zero_bfloat16 = _instruction(
        "{ .reg .b32 z; mov.b32 z, 0; set.gt.bf16x2.bf16x2 $0, $1, z; }", "=r,r", _U, _U
    )
    """The pair of bfloat16 that are 1 where those of a pair are above 0, and 0 elsewhere."""

    add_bfloat16 = _instruction("add.rn.bf16x2 $0, $1, $2;", "=r,r,r", _U, _U, _U)
    """The sums of each half of two pairs of bfloat16, rounded to nearest."""
