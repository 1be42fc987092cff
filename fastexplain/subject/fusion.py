"""An MLP's elementwise part, handed to whoever folds its activations.

Between its linear layers an MLP computes f(gate), times up where it is gated: memory traffic and
nothing else, for activations that a sweep reads anyway. `capture` does both in one pass.

1. `find_elementwise` tries what an MLP computes there, with numbers in place of its linear layers.
2. `FusedMlp` has the same linear layers, and between them the operator `fastexplain::fold`. That is
   opaque to torch.compile, and leaves the activations in place of the gate.
3. `replaced` puts it into the model for a while; what the operator is given goes to a function.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastexplain.errors import SubjectError
from fastexplain.kernels.summary import Preactivations
from fastexplain.subject.mlps import LINEAR, Mlp

Receive = Callable[[Tensor, Preactivations], None]

_NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
}

# Values tried: dense where the nonlinearities differ, and so far out that a clamp would show.
_FARTHEST = 100.0
# Two ways to the same function differ by 1e-6 in float32; gelu and its approximation by 5e-4.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Elementwise:
    """What an MLP computes between its linear layers: f(gate), times up where there is one.

    Attributes:
        nonlinearity: f; one of `kernels.scalars.NONLINEARITIES`.
        gate, up: names of the linear layers in the MLP; the same where one has both as halves.
        gate_start, up_start: the first neuron's column in what they return.
    """

    nonlinearity: str
    gate: str
    up: str | None = None
    gate_start: int = 0
    up_start: int = 0


def find_elementwise(module: nn.Module, mlp: Mlp) -> Elementwise | None:
    """Find by trying what an MLP computes between its linear layers; None if it is not known.

    The `module`'s own forward runs on one row, with its linear layers replaced by stubs.
    """
    children = dict(module.named_children())
    others = [child for child in module.children() if not isinstance(child, LINEAR)]
    takes = inspect.signature(module.forward).parameters
    if len(takes) != 1 or any(True for child in others for _ in child.parameters()):
        return None
    inputs = [name for name, child in children.items()
              if isinstance(child, LINEAR) and child is not mlp.down]  # fmt: skip

    halves = 2 if mlp.kind == "fused" else 1
    random = torch.Generator().manual_seed(0)
    preset = {
        name: _FARTHEST * (2 * torch.rand(1, halves * mlp.width, generator=random) - 1) ** 3
        for name in inputs
    }
    x, out = torch.rand(1, 1, generator=random), torch.rand(1, 1, generator=random)
    stubs = {name: Stub(value) for name, value in preset.items()}
    down = Stub(out)
    downs = {name: down for name, child in children.items() if child is mlp.down}
    try:
        with exchanged(module, stubs | downs), torch.inference_mode():
            result = module.forward(x)
    except Exception:  # a forward that wants more than stubs fails in its own way
        return None
    as_told = _equal(result, out) and all(
        len(stub.seen) == 1 and _equal(stub.seen[0], x) for stub in stubs.values()
    )
    if not as_told or len(down.seen) != 1:
        return None
    return _match(down.seen[0], preset, mlp.width)


@contextlib.contextmanager
def exchanged(module: nn.Module, children: Mapping[str, nn.Module]) -> Iterator[None]:
    """Have other children under these names."""
    own = {name: module.get_submodule(name) for name in children}
    try:
        for name, child in children.items():
            setattr(module, name, child)
        yield
    finally:
        for name, child in own.items():
            setattr(module, name, child)


class Stub(nn.Module):
    """Returns what it was made with, and remembers what it was called on."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.value.clone()


def _equal(a: object, b: Tensor, tolerance: float = 0.0) -> bool:
    """Whether `a` is a tensor with the values of `b`, to a tolerance relative and absolute."""
    if not isinstance(a, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def _match(acts: object, preset: dict[str, Tensor], neurons: int) -> Elementwise | None:
    """What makes activations, given as `[1, neurons]`, of what the linear layers return."""
    parts = {
        (name, start): values[:, start : start + neurons]
        for name, values in preset.items()
        for start in range(0, values.shape[1], neurons)
    }
    orders = list(itertools.permutations(parts, len(parts)))
    for nonlinearity, function in _NONLINEARITIES.items():
        for gate, *factors in orders:
            expected = function(parts[gate])
            for factor in factors:
                expected = expected * parts[factor]
            if _equal(acts, expected, _TOLERANCE):
                up, up_start = factors[0] if factors else (None, 0)
                return Elementwise(nonlinearity, gate[0], up, gate[1], up_start)
    return None


_receivers: dict[int, Callable[[Tensor, Tensor | None, Tensor | None], None]] = {}
_slots = itertools.count()


@torch.library.custom_op(
    "fastexplain::fold",
    mutates_args=("acts",),
    schema="(Tensor(a!) acts, Tensor? both, Tensor? up, Tensor slot) -> ()",
    tags=(torch.Tag.needs_exact_strides,),  # Inductor may lay out what it computes as it likes
)
def _fold(acts: Tensor, both: Tensor | None, up: Tensor | None, slot: Tensor) -> None:
    """Have activations computed: from `both`, or else from `up` and what is in `acts`, the gate.

    `slot` says by whom. It is a tensor on the CPU: reading it waits for no device, and what
    torch.compile makes of one layer takes the next one's as it takes other weights.
    """
    _receivers[int(slot)](acts, both, up)


@_fold.register_fake
def _(acts: Tensor, both: Tensor | None, up: Tensor | None, slot: Tensor) -> None:
    return None


class FusedMlp(nn.Module):
    """An MLP's linear layers around `fastexplain::fold`; works where `replaced` put it.

    Args:
        module: the MLP.
        mlp: where its parts are.
        elementwise: what it computes between them, from `find_elementwise`.
    """

    slot: Tensor

    def __init__(self, module: nn.Module, mlp: Mlp, elementwise: Elementwise) -> None:
        super().__init__()
        self.elementwise = elementwise
        self.neurons = mlp.width
        self.gate = module.get_submodule(elementwise.gate)
        separate = elementwise.up not in (None, elementwise.gate)
        self.up = module.get_submodule(elementwise.up or "") if separate else None
        self.down = mlp.down
        self.register_buffer("slot", torch.tensor(next(_slots), device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).contiguous()
        if self.up is None and self.elementwise.up is not None:
            acts = gate.new_empty(*gate.shape[:-1], self.neurons)
            torch.ops.fastexplain.fold(acts, gate, None, self.slot)
        else:
            acts = gate
            up = None if self.up is None else self.up(x).contiguous()
            torch.ops.fastexplain.fold(acts, None, up, self.slot)
        return self.down(acts)


def fuse(model: nn.Module, mlp: Mlp) -> FusedMlp | None:
    """The fused form of a model's MLP; None where its elementwise part is none of the kernels'."""
    module = model.get_submodule(mlp.path)
    elementwise = find_elementwise(module, mlp)
    return None if elementwise is None else FusedMlp(module, mlp, elementwise)


def by_position(acts: Tensor, shape: tuple[int, ...], path: str) -> Tensor:
    """What an MLP has for each position, as `[excerpts, positions, W]`; `shape` is the first two.

    OPT and others run their MLPs on `[excerpts * positions, d]`. Raises SubjectError for other
    positions than the text's.
    """
    if tuple(acts.shape[:-1]) not in (shape, (math.prod(shape),)):
        raise SubjectError(
            f"{path} runs on {list(acts.shape[:-1])} positions in place of {list(shape)}, such as "
            "several streams or a part of the tokens; such a model can't be captured"
        )
    return acts.reshape(*shape, acts.shape[-1])


@contextlib.contextmanager
def replaced(
    model: nn.Module, path: str, fused: FusedMlp, shape: tuple[int, ...], receive: Receive
) -> Iterator[None]:
    """Have the MLP at `path` replaced by its fused form, and `receive` do its elementwise part.

    It gets `acts` `[*shape, neurons]` to fill, and what to fill them from.
    """
    part = fused.elementwise

    def take(acts: Tensor, both: Tensor | None, up: Tensor | None) -> None:
        gate = acts if both is None else both
        up = up if both is None else both
        views = (None if array is None else by_position(array, shape, path) for array in (gate, up))
        receive(
            by_position(acts, shape, path),
            Preactivations(part.nonlinearity, *views, part.gate_start, part.up_start),
        )

    parent, _, name = path.rpartition(".")
    slot = int(fused.slot)
    _receivers[slot] = take
    try:
        with exchanged(model.get_submodule(parent), {name: fused}):
            yield
    finally:
        del _receivers[slot]
