"""Where a model's MLPs are, read off its modules rather than a list of model names.

1. The decoder layers are the ModuleList that is as long as the config says there are layers.
2. In each, the MLP is the one module whose only linear children are a down projection F -> d and
   either up d -> F (*plain*), gate and up d -> F (*gated*) or both in one d -> 2F (*fused*), where
   d is the hidden size and F > d: narrower ones are adapters and low-rank gates. A plain or fused
   one needs an activation function as a child too: without, attention with queries, keys and
   values in one would pass.
3. Anything else, such as experts, a second such module or a layer without one, is refused: half
   of a model's MLPs would look like all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fastexplain.errors import SubjectError
from fastexplain.models.loading import find_trunk

Kind = Literal["plain", "gated", "fused"]

LINEAR = (nn.Linear, Conv1D)
"""What counts as a linear layer."""

# Distinct, of both signs, and on both sides of the kinks of ReLU-like functions.
_PROBE = (-3.0, -1.5, -0.5, 0.0, 0.5, 1.5, 3.0)

# Above what bfloat16 and vectorised error functions differ by, far below what a norm does.
_TOLERANCE = 0.03


@dataclass(frozen=True)
class Mlp:
    """One layer's MLP.

    Attributes:
        path: its module's name in the model, such as `model.layers.0.mlp`.
        layer: the decoder layer's, such as `model.layers.0`.
        kind: how its input becomes neurons.
        down: the down projection; its input is the layer's neurons.
        width: F, the number of neurons.
    """

    path: str
    layer: str
    kind: Kind
    down: nn.Module
    width: int


class _NotFoundError(Exception):
    """Why the search ended; becomes part of the one-line SubjectError."""


def find_mlps(model: PreTrainedModel) -> tuple[Mlp, ...]:
    """Find the MLP of every decoder layer, from the lowest layer up.

    Raises SubjectError, naming the model's class and what was looked for, unless there is exactly
    one in each.
    """
    try:
        if model.config.is_encoder_decoder:
            raise _NotFoundError("it is an encoder-decoder")
        config = model.config.get_text_config()
        hidden_size = getattr(config, "hidden_size", None)
        layers = getattr(config, "num_hidden_layers", None)
        if not isinstance(hidden_size, int) or not isinstance(layers, int):
            raise _NotFoundError("its config names no hidden_size or num_hidden_layers")
        found = _in_stacks(list(_stacks(find_trunk(model), layers)), layers, hidden_size)
        if len({id(down) for *_, down in found}) < layers:
            raise _NotFoundError("its layers share MLPs")
    except _NotFoundError as error:
        raise SubjectError(
            f"the MLPs of {type(model).__name__} can't be found: {error}; looked in each decoder "
            "layer for one module with an activation function and linear layers F -> d and "
            "d -> F (or two d -> F, or one d -> 2F), with d the hidden size and F > d"
        ) from error
    names = {module: name for name, module in model.named_modules()}
    return tuple(
        Mlp(names[module], names[layer], kind, down, _shape(down)[0])
        for module, layer, kind, down in found
    )


# The MLP, its decoder layer, its kind, its down projection.
_Found = tuple[nn.Module, nn.Module, Kind, nn.Module]


def _stacks(module: nn.Module, layers: int) -> Iterator[nn.ModuleList]:
    """The outermost lists of as many modules as there are layers; inner ones may hold experts."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) == layers:
            yield child
        else:
            yield from _stacks(child, layers)


def _in_stacks(stacks: list[nn.ModuleList], layers: int, hidden_size: int) -> list[_Found]:
    """The MLPs of the only list in which every member has one."""
    if not stacks:
        raise _NotFoundError(f"there is no list of {layers} layers")
    found, failures = [], []
    for stack in stacks:
        try:
            found.append([_in_layer(layer, hidden_size) for layer in stack])
        except _NotFoundError as error:
            failures.append(error)
    if not found:
        raise failures[0]
    if len(found) > 1:
        raise _NotFoundError(f"there are {len(found)} lists of {layers} layers with MLPs")
    return found[0]


def _in_layer(layer: nn.Module, hidden_size: int) -> _Found:
    """The layer's only MLP."""
    name = type(layer).__name__
    for module in layer.modules():
        if _holds_experts(module, hidden_size):
            raise _NotFoundError(f"{name} has experts ({type(module).__name__})")
    found = [
        match for module in layer.modules() if (match := _classify(module, layer, hidden_size))
    ]
    if not found:
        raise _NotFoundError(f"{name} has none")
    if len(found) > 1:
        kinds = ", ".join(sorted({type(module).__name__ for module, *_ in found}))
        raise _NotFoundError(f"{name} has {len(found)} ({kinds})")
    return found[0]


def _holds_experts(module: nn.Module, hidden_size: int) -> bool:
    """Whether a module's own parameters are a stack of matrices over the hidden state."""
    return not isinstance(module, nn.Conv1d) and any(
        parameter.dim() > 2 and hidden_size in parameter.shape and parameter.numel() > hidden_size
        for parameter in module.parameters(recurse=False)
    )


def _classify(module: nn.Module, layer: nn.Module, hidden_size: int) -> _Found | None:
    """The module as an MLP, or None."""
    linears = [child for child in module.children() if isinstance(child, LINEAR)]
    for down in linears:
        width, out = _shape(down)
        others = [_shape(linear) for linear in linears if linear is not down]
        kind: Kind
        if out != hidden_size or width <= hidden_size:
            continue
        if others == [(hidden_size, 2 * width)]:
            kind = "fused"
        elif others == [(hidden_size, width)]:
            kind = "plain"
        elif others == [(hidden_size, width)] * 2:
            kind = "gated"
        else:
            continue
        # LFM2 applies its gate's activation as a function. Three linear layers of these shapes
        # are an MLP even so; attention has four, or one with two. OPT's MLP lies in the layer
        # itself, so there the other weights say nothing.
        activated = kind == "gated" or any(_is_activation(child) for child in module.children())
        if activated and (module is layer or not _does_more(module)):
            return module, layer, kind, down
    return None


def _does_more(module: nn.Module) -> bool:
    """Whether a module has other weights than its linear layers' and norms', as recurrences do."""
    others = [child for child in module.children() if not isinstance(child, LINEAR)]
    own = list(module.parameters(recurse=False))
    return bool(own) or any(p.dim() > 1 for child in others for p in child.parameters())


def _is_activation(module: nn.Module) -> bool:
    """Whether a module acts on each element alone, and not linearly; found by trying.

    That leaves out dropout (the identity in evaluation), norms, softmax and position embeddings,
    and takes in activations with learned parameters.
    """
    if any(parameter.dim() > 1 for parameter in module.parameters()):
        return False
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    probe = torch.tensor([_PROBE], device=device)
    try:
        with torch.inference_mode():
            # Without its hooks, which are for the model's own numbers.
            whole = module.forward(probe)
            parts = torch.cat([module.forward(value) for value in probe.split(1, dim=-1)], dim=-1)
            scaled = module.forward(-2 * probe)
    except Exception:  # a module of another purpose fails in its own way on a lone tensor
        return False
    if not isinstance(whole, torch.Tensor) or whole.shape != probe.shape:
        return False
    elementwise = torch.allclose(whole, parts, atol=_TOLERANCE)
    linear = torch.allclose(scaled, -2 * whole, atol=_TOLERANCE)
    return elementwise and not linear


def _shape(linear: nn.Module) -> tuple[int, int]:
    """Input and output features; Conv1D stores its weight the other way round from nn.Linear."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    assert isinstance(linear, nn.Linear)
    return linear.in_features, linear.out_features
