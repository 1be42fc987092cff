"""The vectors of a model's weights, all in terms of the stream, float32 `[..., d]`.

A neuron writes a vector to the stream at each unit of its activation and reads one from it, or two
in a gated MLP; a token puts its embedding there, and its logit reads a vector. Norms between these
are folded in, but for the factor by which they divide, which depends on the text: a product of two
of the vectors is what one adds to the other while that factor is 1. Of the tokens' vectors the mean
over the vocabulary is taken away: what all logits rise by together changes no probability, and what
all embeddings have in common tells no tokens apart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fastexplain.errors import SubjectError
from fastexplain.subject.fusion import Stub, exchanged
from fastexplain.subject.mlps import LINEAR, Mlp
from fastexplain.subject.model import Subject
from fastexplain.subject.stream import embedded, find_stream

INPUT, GATE, UP = "input", "gate", "up"
"""What an MLP reads: one vector a neuron, or two, of which the gate has the nonlinearity."""


class Vectors:
    """The vectors of a subject's weights.

    Args:
        subject: in float32.
        tokens: how many there are, from id 0 on: a model may have rows for more.

    Raises:
        UsageError: the subject is not in float32.
        SubjectError: it is of a kind whose weights can't be read, or they are not finite.
    """

    def __init__(self, subject: Subject, tokens: int) -> None:
        self._subject, self._tokens = subject, tokens
        self._stream = find_stream(subject)
        self.parts = self._readers(0).keys()

    def written(self, layer: int) -> Tensor:
        """What the neurons of a layer write, `[F, d]`."""
        return self._finite(self._stream.out[layer].of_written(_rows(self._down(layer)).t()))

    def read(self, layer: int) -> dict[str, Tensor]:
        """What they read, `[F, d]` each: `input`, or `gate` and `up`."""
        into, width = self._stream.into[layer], self._subject.widths[layer]
        return {
            part: self._finite(into.of_reading(_rows(linear)[start : start + width]))
            for part, (linear, start) in self._readers(layer).items()
        }

    @property
    def logits(self) -> Tensor:
        """What the tokens' logits read, `[V, d]`; made anew each time, as it is large."""
        head = self._subject.model.get_output_embeddings().weight[: self._tokens]
        rows = self._stream.final.of_reading(self._stream.scale * (head - head.mean(0)))
        return self._finite(rows)

    @property
    def embeddings(self) -> Tensor:
        """What the tokens put into the stream, `[V, d]`; made anew each time."""
        rows = embedded(self._subject, self._tokens)
        return self._finite(rows - rows.mean(0))

    def _down(self, layer: int) -> nn.Module:
        return self._subject.mlps[layer].down

    def _readers(self, layer: int) -> dict[str, tuple[nn.Module, int]]:
        mlp = self._subject.mlps[layer]
        return readers(self._subject.model.get_submodule(mlp.path), mlp)

    def _finite(self, rows: Tensor) -> Tensor:
        if not bool(torch.isfinite(rows).all()):
            raise SubjectError(
                f"weights of '{self._subject.name}' are not finite; load them again, from a whole "
                "checkpoint"
            )
        return rows


def readers(module: nn.Module, mlp: Mlp) -> dict[str, tuple[nn.Module, int]]:
    """The linear layers that neurons read by: each with the row of the first neuron in its weight.

    Of a gated MLP's two, `up` is the one with which the activations change their sign, found by
    trying; the other is `gate`.

    Raises:
        SubjectError: neither does, or both do.
    """
    linears = {
        name: child for name, child in module.named_children()
        if isinstance(child, LINEAR) and child is not mlp.down
    }  # fmt: skip
    places = [(name, start) for name in linears
              for start in ((0, mlp.width) if mlp.kind == "fused" else (0,))]  # fmt: skip
    if len(places) == 1:
        [(name, start)] = places
        return {INPUT: (linears[name], start)}
    ups = [place for place in places if _is_odd(module, mlp, list(linears), place)]
    if len(ups) != 1:
        raise SubjectError(
            f"which of {', '.join(linears)} is the gate of {mlp.path} can't be told; its weights "
            "can't be read"
        )
    [gate] = [place for place in places if place not in ups]
    [up] = ups
    return {GATE: (linears[gate[0]], gate[1]), UP: (linears[up[0]], up[1])}


def _is_odd(module: nn.Module, mlp: Mlp, names: list[str], place: tuple[str, int]) -> bool:
    """Whether activations change their sign, and nothing else, with what is read at a place."""
    halves = 2 if mlp.kind == "fused" else 1
    random = torch.Generator().manual_seed(0)
    preset = {name: torch.randn(1, halves * mlp.width, generator=random) for name in names}
    turned = {name: values.clone() for name, values in preset.items()}
    name, start = place
    turned[name][:, start : start + mlp.width] *= -1
    one, other = (_activations(module, mlp, values) for values in (preset, turned))
    return torch.allclose(one, -other, atol=1e-6)


def _activations(module: nn.Module, mlp: Mlp, preset: dict[str, Tensor]) -> Tensor:
    """What the down projection is given, `[1, F]`, where the other linear layers give `preset`."""
    device = next(mlp.down.parameters()).device
    x = torch.zeros(1, 1, device=device)
    down = Stub(x)
    stubs: dict[str, nn.Module] = {name: Stub(value.to(device)) for name, value in preset.items()}
    stubs |= {name: down for name, child in module.named_children() if child is mlp.down}
    with exchanged(module, stubs), torch.inference_mode():
        module.forward(x)
    return down.seen[0]


def _rows(linear: nn.Module) -> Tensor:
    """A linear layer's weight, its outputs along the first axis; Conv1D has them along the last."""
    assert isinstance(linear.weight, Tensor)
    weight = linear.weight.detach()
    return weight.t() if isinstance(linear, Conv1D) else weight
