"""Linear layers by oneDNN, for float32 on the CPU.

`nn.Linear` multiplies by MKL there, which on AMD's processors runs at less than half the speed of
oneDNN: 213 against 475 GFLOP/s for [512, 576] x [576, 1536] on two cores of an EPYC, 191 against
406 for 64 rows. oneDNN takes transposed weights, as `Conv1D` has them, without a copy: 214 and 482.
An operator of our own, because Inductor knows what PyTorch calls it with packed weights only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class OneDnnLinear(TorchFunctionMode):
    """While it is entered, linear layers of float32 on the CPU go to oneDNN, if PyTorch has it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not kwargs and _AVAILABLE:
            if func is functional.linear and _suits(*args):
                return _linear(*args)
            if func is torch.addmm and _suits(args[1], args[2], args[0]):  # how Conv1D multiplies
                return _linear(args[1], args[2].t(), args[0])
        return func(*args, **(kwargs or {}))


_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        for tensor in (x, weight)
    ) and (bias is None or bias.dim() == 1)


@torch.library.custom_op("fastexplain::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
