"""Instructions of NVIDIA GPUs that Numba has no name for, for use in CUDA kernels.

Source: "Parallel Thread Execution ISA", sections on `ex2`, `rcp` and `cvt`. Numba's simulator runs
Python, where the first two are done by arithmetic; the other two must not be called there.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import config, types

SIMULATED = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
"""Whether CUDA kernels run in Numba's simulator, because NUMBA_ENABLE_CUDASIM is set."""

PACKING_SINCE = (8, 0)
"""The least compute capability that rounds and packs two float32 in one instruction."""

if SIMULATED:

    def exp2(x):
        return np.exp2(np.float32(x))

    def reciprocal(x):
        return np.float32(1) / x

    def pack_bfloat16(high, low):
        raise NotImplementedError("not simulated")

    def pack_float16(high, low):
        raise NotImplementedError("not simulated")

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    # numba-cuda 0.30 asks for this alias at its first compilation, and NumPy 2.5 has dropped it.
    if not hasattr(np, "row_stack"):
        np.row_stack = np.vstack

    def _emit(code, constraints):
        """What puts one instruction on float32 operands into the code."""

        def codegen(_context, builder, signature, values):
            result = ir.FloatType() if signature.return_type == types.float32 else ir.IntType(32)
            function = ir.FunctionType(result, [ir.FloatType()] * len(values))
            return builder.call(ir.InlineAsm(function, code, constraints), values)

        return codegen

    @intrinsic
    def exp2(_context, x):
        """Two to the power of a float32, to 2 ulp; 0 below the least normal number."""
        return types.float32(types.float32), _emit("ex2.approx.ftz.f32 $0, $1;", "=f,f")

    @intrinsic
    def reciprocal(_context, x):
        """1 / x of a float32, to 1 ulp; 0 below the least normal number."""
        return types.float32(types.float32), _emit("rcp.approx.ftz.f32 $0, $1;", "=f,f")

    @intrinsic
    def pack_bfloat16(_context, high, low):
        """Two float32 as bfloat16, rounded to nearest, ties to even, in one uint32."""
        code = _emit("cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f")
        return types.uint32(types.float32, types.float32), code

    @intrinsic
    def pack_float16(_context, high, low):
        """Two float32 as float16, rounded to nearest, ties to even, in one uint32."""
        code = _emit("cvt.rn.f16x2.f32 $0, $1, $2;", "=r,f,f")
        return types.uint32(types.float32, types.float32), code
