"""RMS norms and rotary embeddings in one pass each, for float32 on the CPU.

transformers writes both as a handful of operations, each of which reads and writes whole tensors.
For 64 texts of 64 tokens of SmolLM2, ms on two cores: a norm 1.0 and 0.6 in one pass, a layer's
rotary embeddings 3.9 and 0.6. Compiled layers have it from Inductor.

Models are many, so what they compute is not told by its name alone: it is tried on random numbers,
and replaced where the kernel gives the same.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastexplain.kernels.cpu import trunk as cpu_trunk

# Two ways to the same function differ by 1e-6; a weight that is off by one, as Gemma's, by 1.
_TOLERANCE = 1e-5

_ROTARY = "apply_rotary_pos_emb"


@dataclass(frozen=True)
class OnePass:
    """What of a model may run in one pass.

    Attributes:
        norms: RMS norms.
        modules: of Python, whose function for rotary embeddings is ours too.
    """

    norms: tuple[RmsNorm, ...]
    modules: tuple[ModuleType, ...]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have it run so."""
        with contextlib.ExitStack() as undo:
            for norm in self.norms:
                if "forward" in vars(norm.module):  # somebody else's, such as accelerate's
                    continue
                norm.module.forward = norm  # type: ignore[method-assign]
                undo.callback(delattr, norm.module, "forward")
            for module in self.modules:
                plain = getattr(module, _ROTARY)
                setattr(module, _ROTARY, Rotary(plain))
                undo.callback(setattr, module, _ROTARY, plain)
            yield


def find(model: nn.Module) -> OnePass:
    """Find by trying what of a model may run in one pass."""
    norms = []
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            norms += [norm for norm in _forms(module) if _same(norm, module)][:1]
    names = {type(m).__module__ for m in model.modules() if type(m).__name__.endswith("Attention")}
    with_rotary = (sys.modules[name] for name in sorted(names))
    return OnePass(
        tuple(norms), tuple(m for m in with_rotary if _rotates(getattr(m, _ROTARY, None)))
    )


class RmsNorm:
    """The forward of an RMS norm.

    Args:
        module: the norm.
        weight: float32 `[d]`, by which it multiplies.
        eps: what it adds to the mean of the squares.
    """

    def __init__(self, module: nn.Module, weight: Tensor, eps: float) -> None:
        self.module = module
        self._weight = weight.numpy()
        self._eps = np.float32(eps)
        self._plain = module.forward

    def __call__(self, x: Tensor) -> Tensor:
        if not (_suits(x) and x.is_contiguous() and x.shape[-1] == len(self._weight)):
            return self._plain(x)
        out = torch.empty_like(x)
        rows = (-1, x.shape[-1])
        cpu_trunk.rms_norm(x.view(rows).numpy(), self._weight, self._eps, out.view(rows).numpy())
        return out


class Rotary:
    """`apply_rotary_pos_emb` of transformers' models.

    Args:
        plain: a model's own, for what is not `[texts, heads, positions, d]` behind a transposition.
    """

    def __init__(self, plain: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._plain = plain

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        angles = all(
            _suits(x) and x.dim() == 3 and x.is_contiguous() and x.shape[2] == q.shape[-1]
            for x in (cos, sin)
        )
        heads = all(
            _suits(x) and x.dim() == 4 and x.transpose(1, 2).is_contiguous() for x in (q, k)
        )
        if others or more or not (angles and heads and q.shape[-1] % 2 == 0):
            return self._plain(q, k, cos, sin, *others, **more)
        return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    given = x.transpose(1, 2)
    out = torch.empty_like(given)
    cpu_trunk.rotate(given.numpy(), cos.numpy(), sin.numpy(), out.numpy())
    return out.transpose(1, 2)


def _suits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _forms(module: nn.Module) -> list[RmsNorm]:
    """What a norm with these numbers might be."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (isinstance(weight, Tensor) and weight.dim() == 1 and _suits(weight)):
        return []
    if not isinstance(eps, float):
        return []
    own = weight.detach()
    return [RmsNorm(module, own, eps), RmsNorm(module, 1 + own, eps)]


def _same(norm: RmsNorm, module: nn.Module) -> bool:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, len(norm._weight), generator=random)
    with torch.inference_mode():
        return _close(norm(x), norm._plain(x))


def _rotates(function: Any) -> bool:
    """Whether a model's function for rotary embeddings is the one that the kernel computes."""
    if function is None:
        return False
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, heads, 8, generator=random).transpose(1, 2) for heads in (4, 2))
    cos, sin = (torch.randn(1, 3, 8, generator=random) for _ in range(2))
    try:
        with torch.inference_mode():
            expected = function(q, k, cos, sin)
            return all(map(_close, Rotary(function)(q, k, cos, sin), expected))
    except Exception:  # one that wants other arguments fails in its own way
        return False


def _close(a: object, b: object) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape):
        return False
    return torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE)
