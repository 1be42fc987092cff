"""Interventions give what a whole pass with a hook gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from architectures import LAYERS, MOST_IN_SCALE, model_of, some_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from fastexplain import Subject
from fastexplain.errors import SubjectError, UsageError
from fastexplain.subject import interventions
from fastexplain.subject.divergence import jensen_shannon
from fastexplain.subject.interventions import Intervention, intervene

TOKENS = 7


def visited(subject, layer, token_ids, wanted):
    """Log-probabilities before and after each intervention, `[tokens, V]`."""
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(place: int, before: Tensor, after: Tensor) -> None:
        assert place not in found
        found[place] = before.clone(), after.clone()

    intervene(subject, layer, token_ids, wanted, keep)
    return [found[place] for place in range(len(wanted))]


def hooked(subject: Subject, layer: int, ids: Tensor, neuron: int, values: np.ndarray) -> Tensor:
    """The same by a whole pass: log-probabilities `[tokens, V]` of one excerpt."""
    new = torch.from_numpy(values)

    def replace(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        acts = inputs[0].clone()
        own = acts.view(-1, acts.shape[-1])[len(subject.lead) :, neuron]
        own[~new.isnan()] = new[~new.isnan()]
        return (acts,)

    hook = subject.mlps[layer].down.register_forward_pre_hook(replace)
    with torch.inference_mode():
        logits = subject.model(input_ids=subject.with_lead(ids[None]), use_cache=False).logits[0]
    hook.remove()
    return logits[len(subject.lead) :].float().log_softmax(-1)


def some_interventions(neurons: int = 3, excerpts: int = 2) -> list[Intervention]:
    """Large changes, at some tokens none; in an order that is not that of excerpts."""
    rng = np.random.default_rng(0)
    found = []
    for neuron in range(neurons):
        for excerpt in range(excerpts):
            values = rng.normal(0, 20, TOKENS).astype(np.float32)
            values[rng.random(TOKENS) < 0.3] = np.nan
            found.append(Intervention(5 * neuron, excerpt, values))
    return found


@pytest.mark.parametrize("architecture", MOST_IN_SCALE)
def test_equal_to_a_hook(architecture, make_tokenizer) -> None:
    model = model_of(architecture)
    subject = Subject.from_model(model, make_tokenizer(), lead=(3,))
    ids, wanted = some_tokens(tokens=TOKENS), some_interventions()
    for layer in range(LAYERS):
        for each, (before, after) in zip(wanted, visited(subject, layer, ids, wanted), strict=True):
            own = ids[each.excerpt]
            nothing = np.full(TOKENS, np.nan, np.float32)
            torch.testing.assert_close(
                before, hooked(subject, layer, own, each.neuron, nothing), atol=1e-4, rtol=0
            )
            expected = hooked(subject, layer, own, each.neuron, each.values)
            torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)
            assert (after - before).abs().max() > 1e-3
    assert all("forward" not in vars(module) for module in model.modules())


def test_what_changes_nothing_is_the_same_distribution(make_model, make_tokenizer) -> None:
    subject = Subject.from_model(make_model(), make_tokenizer())
    ids, seen = some_tokens(tokens=TOKENS), {}
    subject.trunk(ids, lambda _, acts: seen.update(acts=acts.clone()), [2])
    own = [Intervention(9, excerpt, seen["acts"][excerpt, :, 9].numpy()) for excerpt in (1, 0)]
    nothing = Intervention(9, 1, np.full(TOKENS, np.nan, np.float32))
    found = []

    def visit(place: int, before: Tensor, after: Tensor) -> None:
        assert after is before
        found.append(float(jensen_shannon(before, after).sum()))

    intervene(subject, 2, ids, [*own, nothing], visit)
    assert found == [0.0] * 3
    intervene(subject, 2, ids, [], visit)
    assert len(found) == 3


def test_a_changed_token_changes_nothing_before_it(make_model, make_tokenizer) -> None:
    subject = Subject.from_model(make_model(), make_tokenizer())
    values = np.full(TOKENS, np.nan, np.float32)
    values[4] = 30
    [(before, after)] = visited(
        subject, 1, some_tokens(tokens=TOKENS), [Intervention(0, 1, values)]
    )
    moved = (after - before).abs().amax(-1)
    assert (moved[:4] < 1e-5).all() and (moved[4:] > 1e-3).all()


def test_batches_are_of_a_fixed_size(make_model, make_tokenizer, monkeypatch) -> None:
    """However many neurons there are, no batch is larger, and the head sees a row at a time."""
    subject = Subject.from_model(make_model(), make_tokenizer())
    monkeypatch.setattr(interventions, "_TOKENS_CPU", 4 * TOKENS)
    ids, wanted = some_tokens(tokens=TOKENS), some_interventions(neurons=9)
    whole = visited(subject, 1, ids, wanted)
    layers: list[int] = []
    heads: list[int] = []
    hooks = [
        subject.model.get_submodule("model.layers.3").register_forward_pre_hook(
            lambda _, args: layers.append(len(args[0]))
        ),
        subject.model.lm_head.register_forward_pre_hook(lambda _, args: heads.append(len(args[0]))),
    ]
    again = visited(subject, 1, ids, wanted)
    for hook in hooks:
        hook.remove()
    assert max(layers) == 4 and sum(layers) == len(ids) + len(wanted)
    assert set(heads) == {1} and len(heads) == len(ids) + len(wanted)
    for one, other in zip(whole, again, strict=True):
        torch.testing.assert_close(one, other)


def test_the_layers_below_run_once_an_excerpt(make_model, make_tokenizer) -> None:
    subject = Subject.from_model(make_model(), make_tokenizer())
    rows: list[int] = []
    hook = subject.model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]))
    )
    visited(subject, 2, some_tokens(tokens=TOKENS), some_interventions())
    hook.remove()
    assert sum(rows) == 2


def test_a_hook_of_the_users_takes_part(make_model, make_tokenizer) -> None:
    """One that changes what the layer below gives is not applied to what is kept once more."""
    subject = Subject.from_model(make_model(), make_tokenizer())
    hook = subject.model.get_submodule("model.layers.1").register_forward_hook(
        lambda _, args, out: out + 0.5
    )
    ids, wanted = some_tokens(tokens=TOKENS), some_interventions()
    for each, (_, after) in zip(wanted, visited(subject, 2, ids, wanted), strict=True):
        expected = hooked(subject, 2, ids[each.excerpt], each.neuron, each.values)
        torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)
    hook.remove()


def test_what_there_is_not(make_model, make_tokenizer) -> None:
    subject = Subject.from_model(make_model(), make_tokenizer(), name="tiny")
    values = np.zeros(TOKENS, np.float32)
    for layer, change, message in (
        (4, Intervention(0, 0, values), "layer 4 does not exist; 'tiny' has layers 0 to 3"),
        (1, Intervention(48, 0, values), "no neuron 1:48; layer 1 has neurons 1:0 to 1:47"),
        (1, Intervention(0, 2, values), r"has \[7\] values for excerpt 2; there are 2 excerpts"),
        (1, Intervention(0, 0, values[1:]), r"has \[6\] values .* excerpts of 7 tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            visited(subject, layer, some_tokens(tokens=TOKENS), [change])


def test_a_layer_that_is_passed_over(make_model, make_tokenizer) -> None:
    """A model that leaves a layer out at some texts has no stream to keep for it."""
    subject = Subject.from_model(make_model(), make_tokenizer())
    layers = subject.model.model.layers
    kept = list(layers)
    subject.model.model.layers = nn.ModuleList([kept[0], kept[2], kept[3]])
    whole = dataclasses.replace(subject, model=_WithPath(subject.model, kept))
    with pytest.raises(SubjectError, match=r"does not run model\.layers\.1 once a text"):
        visited(whole, 1, some_tokens(tokens=TOKENS), some_interventions())


class _WithPath:
    """A model whose modules are found by the paths that they had before."""

    def __init__(self, model: nn.Module, layers: list[nn.Module]) -> None:
        self._model, self._layers = model, layers

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def __call__(self, **named: object) -> object:
        return self._model(**named)

    def get_submodule(self, path: str) -> nn.Module:
        return self._layers[int(path.rpartition(".")[2])]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    arrays(np.float32, (2, 3, 9), elements=st.floats(-60, 60, width=32)),
    st.sampled_from([1e-3, 1.0]),
)
def test_divergence_is_that_of_its_definition(logits, share) -> None:
    """In float64 from entropies: JSD = H(m) - (H(p) + H(q)) / 2."""
    one, other = torch.from_numpy(logits)
    before, after = one.log_softmax(-1), (one + share * (other - one)).log_softmax(-1)
    p, q = before.double().exp(), after.double().exp()

    def entropy(x: Tensor) -> Tensor:
        return torch.special.entr(x).sum(-1)

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    found = jensen_shannon(before, after)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-4)
    assert (found >= 0).all() and (found <= np.log(2) + 1e-6).all()
    torch.testing.assert_close(found, jensen_shannon(after, before), atol=1e-6, rtol=1e-4)


def test_a_small_divergence_is_not_rounding() -> None:
    """d = 1e-4: p d^2 / 8 is far below what float32 tells of an entropy."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(4, 5000, generator=generator).double()
    after = before + 1e-4 * torch.randn(4, 5000, generator=generator)
    before, after = before.log_softmax(-1), after.log_softmax(-1)
    exact = (before.exp() * (after - before) ** 2).sum(-1) / 8
    torch.testing.assert_close(
        jensen_shannon(before.float(), after.float()).double(), exact, rtol=5e-3, atol=0
    )
