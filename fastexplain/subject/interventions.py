"""Neurons' activations replaced by other values, and the next-token distributions that follow.

For neurons of one layer, on any number of excerpts:

1. The excerpts run once, as they are. The stream that enters the neurons' layer is kept, and what
   the trunk gives the head.
2. Interventions of many neurons make a batch, a row each. The trunk runs on the tokens of these
   rows, so that masks, positions and rotary inputs are the model's own; but the layers below only
   pass on, the neurons' layer takes up the kept stream, and its down projection gets the
   replaced activations.
3. The head runs on one row at a time, so that no more than two distributions are in memory.

Results are those of a whole pass with a hook on the down projection, to rounding. What a batch
costs is the neurons' layer, those above it and the head.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from fastexplain.errors import SubjectError, UsageError
from fastexplain.models.loading import find_trunk
from fastexplain.models.onednn import OneDnnLinear
from fastexplain.subject.fusion import by_position
from fastexplain.subject.model import Subject

# Tokens of a batch: a CPU gains nothing by more, a GPU needs them to be busy.
_TOKENS_CPU, _TOKENS_GPU = 1024, 16384


class Intervention(NamedTuple):
    """What a neuron is made to do on one excerpt.

    Attributes:
        neuron: its index in the layer.
        excerpt: its place among the excerpts.
        values: floating `[tokens]`, what its activations become; NaN leaves the model's own.
    """

    neuron: int
    excerpt: int
    values: np.ndarray


Visit = Callable[[int, Tensor, Tensor], None]
"""Gets an intervention's place, and the log-probabilities before and after it, float32
`[tokens, V]`, on the subject's device; they are one tensor where the intervention changes no
activation. They are to be read before it returns, not to be changed or kept."""


def intervene(
    subject: Subject,
    layer: int,
    token_ids: Tensor,
    interventions: Sequence[Intervention],
    visit: Visit,
) -> None:
    """Replace activations of a layer's neurons, and show the distributions before and after.

    Each intervention is on its own: a row replaces one neuron. They are visited excerpt by excerpt.

    Args:
        layer: of the neurons.
        token_ids: int `[excerpts, tokens]`, without the lead, which is added.
        interventions: in any order.
        visit: see `Visit`.

    Raises:
        UsageError: there is no such layer, neuron or excerpt, or values are of another length.
        SubjectError: the model does not run its layers on one stream of all tokens.
    """
    _check(subject, layer, token_ids, interventions)
    if not interventions:
        return
    ids = subject.with_lead(token_ids)
    lead = len(subject.lead)
    with contextlib.ExitStack() as stack:
        if subject.device.type == "cpu":
            stack.enter_context(OneDnnLinear())
        stack.enter_context(torch.inference_mode())
        neurons = torch.tensor([each.neuron for each in interventions], device=ids.device)
        excerpts = torch.tensor([each.excerpt for each in interventions], device=ids.device)
        values = np.full((len(interventions), ids.shape[1]), np.nan, np.float32)
        values[:, lead:] = np.stack([each.values for each in interventions])
        wanted = torch.from_numpy(values).to(subject.device, subject.dtype)

        kept = _run_as_is(subject, layer, ids, neurons)
        own = kept.activations[excerpts, :, torch.unique(neurons, return_inverse=True)[1]]
        idle = (wanted.isnan() | (wanted == own)).all(dim=1).tolist()

        order = sorted(range(len(interventions)), key=lambda i: interventions[i].excerpt)
        changed = [i for i in order if not idle[i]]
        size = _rows(subject, ids)
        batches = [changed[i : i + size] for i in range(0, len(changed), size)]
        outputs = itertools.chain.from_iterable(
            _run_replaced(
                subject, layer, ids[excerpts[rows]], kept, excerpts[rows], neurons[rows],
                wanted[rows],
            )
            for rows in batches
        )  # fmt: skip
        for excerpt, group in itertools.groupby(order, lambda i: interventions[i].excerpt):
            own_ids = ids[excerpt, None]
            before = _log_probabilities(subject, own_ids, kept.outputs[excerpt, None])[lead:]
            for place in group:
                after = before
                if not idle[place]:
                    after = _log_probabilities(subject, own_ids, next(outputs)[None])[lead:]
                visit(place, before, after)


@dataclass(frozen=True)
class _Kept:
    """What excerpts leave that run as they are.

    Attributes:
        stream: `[excerpts, positions, d]`, what enters the neurons' layer.
        activations: `[excerpts, positions, distinct neurons]`, those by ascending index.
        outputs: `[excerpts, positions, d]`, what the trunk gives the head.
        forms: of each layer below, what its forward gives beside the stream; None for nothing.
    """

    stream: Tensor
    activations: Tensor
    outputs: Tensor
    forms: list[int | None]


def _run_as_is(subject: Subject, layer: int, ids: Tensor, neurons: Tensor) -> _Kept:
    """Run excerpts whole; `neurons` may hold some several times."""
    distinct = torch.unique(neurons)
    streams: list[Tensor] = []
    acts: list[Tensor] = []
    forms: dict[int, int | None] = {}

    def enter(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        streams.append(stream_of(subject, args, named))
        return forward(*args, **named)

    def note(below: int, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        out = forward(*args, **named)
        forms[below] = len(out) if isinstance(out, tuple) else None
        return out

    outputs = []
    for part in ids.split(_rows(subject, ids)):

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], part: Tensor = part) -> None:
            shaped = by_position(inputs[0], tuple(part.shape), subject.mlps[layer].path)
            acts.append(shaped[..., distinct])

        with contextlib.ExitStack() as undo:
            for below in range(layer):
                undo.enter_context(patched(_layer(subject, below), note, below))
            undo.enter_context(patched(_layer(subject, layer), enter))
            hook = subject.mlps[layer].down.register_forward_pre_hook(keep)
            undo.callback(hook.remove)
            outputs.append(_trunk(subject, part))
        if not len(streams) == len(acts) == len(outputs) or len(forms) < layer:
            raise SubjectError(
                f"{type(subject.model).__name__} does not run {subject.mlps[layer].layer} once a "
                "text; its neurons can't be replaced"
            )
    return _Kept(
        torch.cat(streams), torch.cat(acts), torch.cat(outputs), [forms[i] for i in range(layer)]
    )


def _run_replaced(
    subject: Subject,
    layer: int,
    ids: Tensor,
    kept: _Kept,
    excerpts: Tensor,
    neurons: Tensor,
    values: Tensor,
) -> Tensor:
    """What the trunk gives the head for a batch of interventions, `[rows, positions, d]`.

    Args:
        ids: `[rows, positions]`.
        excerpts, neurons: `[rows]`.
        values: `[rows, positions]`, NaN for the model's own.
    """
    rows = torch.arange(len(ids), device=ids.device)

    def pass_on(form: int | None, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        stream = stream_of(subject, args, named)
        return stream if form is None else (stream, *[None] * (form - 1))

    def enter(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        stream = kept.stream[excerpts]
        if args:
            return forward(stream, *args[1:], **named)
        return forward(**{**named, "hidden_states": stream})

    def replace(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shaped = by_position(inputs[0], tuple(ids.shape), subject.mlps[layer].path).clone()
        own = shaped[rows, :, neurons]
        shaped[rows, :, neurons] = torch.where(values.isnan(), own, values)
        return (shaped.view(inputs[0].shape), *inputs[1:])

    with contextlib.ExitStack() as undo:
        for below, form in enumerate(kept.forms):
            undo.enter_context(patched(_layer(subject, below), pass_on, form))
        undo.enter_context(patched(_layer(subject, layer), enter))
        undo.callback(subject.mlps[layer].down.register_forward_pre_hook(replace).remove)
        return _trunk(subject, ids)


def _trunk(subject: Subject, ids: Tensor) -> Tensor:
    return find_trunk(subject.model)(input_ids=ids, use_cache=False)[0]


def _log_probabilities(subject: Subject, ids: Tensor, outputs: Tensor) -> Tensor:
    """The model's own head, and all it does around it, on one row: float32 `[positions, V]`."""

    def give(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=outputs)

    with patched(find_trunk(subject.model), give):
        logits = subject.model(input_ids=ids, use_cache=False).logits
    return torch.log_softmax(logits[0].float(), dim=-1)


def stream_of(subject: Subject, args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The stream among a decoder layer's arguments."""
    found = args[0] if args else named.get("hidden_states")
    if not isinstance(found, Tensor):
        raise SubjectError(
            f"the layers of {type(subject.model).__name__} take no stream of hidden states; its "
            "neurons can't be replaced"
        )
    return found


def _layer(subject: Subject, layer: int) -> nn.Module:
    return subject.model.get_submodule(subject.mlps[layer].layer)


def _rows(subject: Subject, ids: Tensor) -> int:
    """Rows of a batch."""
    tokens = _TOKENS_CPU if subject.device.type == "cpu" else _TOKENS_GPU
    return max(1, tokens // ids.shape[1])


@contextlib.contextmanager
def patched(module: nn.Module, function: Callable[..., Any], *first: Any) -> Iterator[None]:
    """Have `function(*first, forward, *args, **named)` called in place of a module's forward."""
    before = vars(module).get("forward")  # such as accelerate's
    forward = module.forward

    def call(*args: Any, **named: Any) -> Any:
        return function(*first, forward, *args, **named)

    module.forward = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _check(
    subject: Subject, layer: int, token_ids: Tensor, interventions: Sequence[Intervention]
) -> None:
    """Raise UsageError for what the subject or the excerpts don't have."""
    if not 0 <= layer < len(subject.mlps):
        raise UsageError(
            f"layer {layer} does not exist; '{subject.name}' has layers 0 to "
            f"{len(subject.mlps) - 1}"
        )
    excerpts, tokens = token_ids.shape
    width = subject.widths[layer]
    for each in interventions:
        if not 0 <= each.neuron < width:
            raise UsageError(
                f"there is no neuron {layer}:{each.neuron}; layer {layer} has neurons {layer}:0 to "
                f"{layer}:{width - 1}"
            )
        if not 0 <= each.excerpt < excerpts or np.shape(each.values) != (tokens,):
            raise UsageError(
                f"an intervention has {list(np.shape(each.values))} values for excerpt "
                f"{each.excerpt}; there are {excerpts} excerpts of {tokens} tokens"
            )
