"""What lies between the stream and each MLP's weights, found by trying.

A neuron reads the stream through a norm, writes to it through another in some models, and what it
wrote is read by the final norm and the head; some scale the stream, the logits or what is added.
All of these are, token by token, one of three maps of a vector x `[d]`, up to a constant vector:

    plain  g * x        rms  g * x / rms(x)        layer  g * (x - mean x) / std(x)

with gains g `[d]`. `find_stream` runs the model with vectors drawn by chance in the place of each
layer's stream and of each MLP's output, one token a row, and fits these maps to what comes out. So
it needs no names of modules; a model that is otherwise is refused. The factors 1 / rms(x) and
1 / std(x), which depend on the text, are left out of all that is read here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from fastexplain.errors import SubjectError, UsageError
from fastexplain.models.loading import find_trunk
from fastexplain.subject.interventions import patched, stream_of
from fastexplain.subject.mlps import LINEAR
from fastexplain.subject.model import Subject

# Vectors that are tried; a map has two unknowns in each dimension.
_ROWS = 12

# Far above what norms add to the variance (1e-5), so that it plays no part.
_SPREAD = 30.0

# The largest part of what comes out that a map may leave unexplained. Rounding leaves 1e-7 to 1e-6,
# a wrong map of vectors by chance at least 0.1 (benches/NOTES.md).
_TOLERANCE = 1e-3

# Logits at which a soft cap is not felt yet.
_SMALL = 1e-2

# Tokens that are embedded at once.
_TOKENS = 4096


@dataclass(frozen=True)
class Map:
    """One of the three maps above.

    Attributes:
        kind: which one.
        gain: g, float32 `[d]`.
    """

    kind: Literal["plain", "rms", "layer"]
    gain: Tensor

    def of_written(self, rows: Tensor) -> Tensor:
        """What becomes of vectors `[n, d]` that go through it, but for its factor."""
        return (rows - rows.mean(1, keepdim=True) if self.kind == "layer" else rows) * self.gain

    def of_reading(self, rows: Tensor) -> Tensor:
        """What vectors `[n, d]` that multiply its output do to its input, but for its factor."""
        scaled = rows * self.gain
        return scaled - scaled.mean(1, keepdim=True) if self.kind == "layer" else scaled


@dataclass(frozen=True)
class Stream:
    """The maps of a subject.

    Attributes:
        into: by layer, from the stream to the MLP's input.
        out: by layer, from the down projection's output to what is added to the stream.
        final: from the stream above the highest layer to the head's input.
        scale: of the logits, beside the head's weight times its input. Where they are capped, it
            is their slope at 0, since a cap keeps their order.
    """

    into: tuple[Map, ...]
    out: tuple[Map, ...]
    final: Map
    scale: float


def find_stream(subject: Subject) -> Stream:
    """Find the maps of a subject; nothing of it is changed.

    Raises:
        UsageError: its weights are not in float32; in 16 bits rounding hides the maps.
        SubjectError: something in it is none of the three maps.
    """
    if subject.dtype != torch.float32:
        raise UsageError(
            f"the weights of '{subject.name}' are {str(subject.dtype).removeprefix('torch.')}; "
            "load the subject with dtype='float32'"
        )
    hidden = subject.model.config.get_text_config().hidden_size
    random = torch.Generator().manual_seed(0)

    def vectors() -> Tensor:
        # Not around 0, so that taking the mean away shows.
        drawn = torch.randn(_ROWS, 1, hidden, generator=random) + 0.5
        return (_SPREAD * drawn).to(subject.device)

    stream, outputs = vectors(), vectors()
    without, inputs, above = _run(subject, stream, torch.zeros_like(outputs))
    with_, _, _ = _run(subject, stream, outputs)
    into, out = [], []
    for layer, mlp in enumerate(subject.mlps):
        name = f"{mlp.path} of {type(subject.model).__name__}"
        # Above attention, or beside it where both read what the layer is given.
        sources = [without[layer], stream]
        into.append(_fit(sources, inputs[layer], f"what goes into {name}"))
        added = with_[layer] - without[layer]
        out.append(_fit([outputs], added, f"what comes out of {name}"))
    final = _fit([without[-1]], above, f"what {type(subject.model).__name__} gives its head")
    return Stream(tuple(into), tuple(out), final, _scale_of_logits(subject))


def _run(
    subject: Subject, stream: Tensor, outputs: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Run the trunk with each layer's stream and each down projection's output replaced.

    Returns:
        By layer what it gives, and its MLP's input, `[rows, 1, d]`; what the trunk gives.
    """
    given: list[Tensor] = []
    inputs: list[Tensor] = []

    def enter(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        stream_of(subject, args, named)
        own = stream.clone()  # a layer may change what it is given, as Falcon's do
        if args:
            out = forward(own, *args[1:], **named)
        else:
            out = forward(**{**named, "hidden_states": own})
        given.append(out[0] if isinstance(out, tuple) else out)
        return out

    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0].reshape(stream.shape).clone())

    def replace(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return outputs.reshape(out.shape).clone()

    ids = torch.zeros(len(stream), 1, dtype=torch.long, device=subject.device)
    with contextlib.ExitStack() as undo:
        for mlp in subject.mlps:
            undo.enter_context(patched(subject.model.get_submodule(mlp.layer), enter))
            module = subject.model.get_submodule(mlp.path)
            reader = next(
                c for c in module.children() if isinstance(c, LINEAR) and c is not mlp.down
            )
            undo.callback(reader.register_forward_pre_hook(see).remove)
            undo.callback(mlp.down.register_forward_hook(replace).remove)
        undo.enter_context(torch.inference_mode())
        above = find_trunk(subject.model)(input_ids=ids, use_cache=False)[0]
    if not len(given) == len(inputs) == len(subject.mlps):
        raise SubjectError(
            f"{type(subject.model).__name__} does not run each of its layers once a text; its "
            "weights can't be read"
        )
    return given, inputs, above


def _fit(sources: Sequence[Tensor], result: Tensor, what: str) -> Map:
    """The map from one of the sources to the result, all `[rows, 1, d]`, that explains it best."""
    y = result.squeeze(1).double()
    best, least = None, float("inf")
    for source in sources:
        x = source.squeeze(1).double()
        centred = x - x.mean(1, keepdim=True)
        for kind, z in (
            ("plain", x),
            ("rms", x / x.square().mean(1, keepdim=True).sqrt()),
            ("layer", centred / centred.square().mean(1, keepdim=True).sqrt()),
        ):
            if z.shape != y.shape:
                continue
            around, deviation = z - z.mean(0), y - y.mean(0)
            gain = (around * deviation).sum(0) / around.square().sum(0)
            rest = float((deviation - gain * around).norm() / deviation.norm().clamp_min(1e-30))
            if rest < least:
                best, least = Map(kind, gain.float()), rest  # type: ignore[arg-type]
    if best is None or not least <= _TOLERANCE:
        raise SubjectError(
            f"{what} is no norm of the stream and no multiple of it; its weights can't be read"
        )
    return best


def _scale_of_logits(subject: Subject) -> float:
    """What the logits are, over the head's weight times its input, where both are small."""
    name = type(subject.model).__name__
    head = subject.model.get_output_embeddings()
    if head is None:
        raise SubjectError(f"{name} names no output embeddings; its weights can't be read")
    weight = head.weight
    random = torch.Generator().manual_seed(1)
    h = torch.randn(1, weight.shape[1], generator=random).to(subject.device)
    h = h * (_SMALL / (h @ weight.t()).abs().max())
    both = torch.cat([h, -h])[:, None]
    ids = torch.zeros(2, 1, dtype=torch.long, device=subject.device)

    def give(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=both)

    with patched(find_trunk(subject.model), give), torch.inference_mode():
        up, down = subject.model(input_ids=ids, use_cache=False).logits.squeeze(1).double()
    expected = (both[0] @ weight.t())[0].double()
    found = (up - down) / 2
    if found.shape == expected.shape:
        scale = float((found @ expected) / (expected @ expected))
        if scale > 0 and float((found - scale * expected).norm()) <= _TOLERANCE * float(
            found.norm()
        ):
            return scale
    raise SubjectError(
        f"the logits of {name} are no multiple of its output embeddings times what they are given; "
        "its weights can't be read"
    )


class _StopError(Exception):
    """Ends a pass that has seen what it was for."""


@contextlib.contextmanager
def _ended_at(subject: Subject, seen: list[Tensor]) -> Iterator[None]:
    """Have the lowest layer's stream kept, and the pass ended there."""

    def stop(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        seen.append(stream_of(subject, args, named).clone())
        raise _StopError

    with patched(subject.model.get_submodule(subject.mlps[0].layer), stop):
        yield


def embedded(subject: Subject, tokens: int) -> Tensor:
    """What each of the first tokens puts into the stream as a text's only one, float32 `[V, d]`.

    It holds what all tokens have in common there too, such as the embedding of the position.
    """
    seen: list[Tensor] = []
    with _ended_at(subject, seen), torch.inference_mode():
        for ids in torch.arange(tokens, device=subject.device).split(_TOKENS):
            with contextlib.suppress(_StopError):
                find_trunk(subject.model)(input_ids=ids[:, None], use_cache=False)
    return torch.cat([each.squeeze(1) for each in seen])
