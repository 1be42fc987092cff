"""What users put into a model's forward pass takes part in a sweep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from architectures import some_tokens
from test_fusion import assert_same, collect_folded
from test_subject import collect
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import fastexplain
from fastexplain import Corpus, Subject
from fastexplain.kernels.summary import Preactivations
from fastexplain.subject.interception import intercepted

LAYER = 1  # of four


def halve_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (0.5 * inputs[0], *inputs[1:])


def halve_output(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return 0.5 * output


def replace_forward(module: nn.Module) -> Callable[[], None]:
    """Have a module's forward go on with half of its first input; returns what undoes it."""
    plain = module.forward
    module.forward = lambda x, *rest, **options: plain(0.5 * x, *rest, **options)

    def undo() -> None:
        del module.forward

    return undo


def replace_layer(layer: nn.Module) -> Callable[[], None]:
    """A forward without attention, which has kept hold of the layer's MLP."""
    mlp = layer.mlp
    layer.forward = lambda hidden, *_, **__: hidden + mlp(hidden)

    def undo() -> None:
        del layer.forward

    return undo


WAYS: dict[str, Callable[[nn.Module], Callable[[], None]]] = {
    "the MLP's input": lambda layer: layer.mlp.register_forward_pre_hook(halve_input).remove,
    "the MLP's output": lambda layer: layer.mlp.register_forward_hook(halve_output).remove,
    "the MLP's forward": lambda layer: replace_forward(layer.mlp),
    "the activation function": lambda layer: (
        layer.mlp.act_fn.register_forward_hook(halve_output).remove
    ),
    "the gate": lambda layer: layer.mlp.gate_proj.register_forward_hook(halve_output).remove,
    "the neurons": lambda layer: layer.mlp.down_proj.register_forward_pre_hook(halve_input).remove,
    "the layer's input": lambda layer: layer.register_forward_pre_hook(halve_input).remove,
    "the layer's forward": replace_layer,
    "attention": lambda layer: layer.self_attn.o_proj.register_forward_pre_hook(halve_input).remove,
    "every module": lambda layer: (
        register_module_forward_hook(
            lambda module, _, output: 0.5 * output if module is layer.mlp else None
        ).remove
    ),
}


COMPILED = ("the MLP's output", "the layer's forward", "attention")  # one takes seconds


@pytest.mark.parametrize(
    ("way", "compiled"), [*((way, False) for way in WAYS), *((way, True) for way in COMPILED)]
)
def test_it_takes_part_and_no_longer_once_it_is_gone(
    way: str, compiled: bool, tiny_subject: Subject
) -> None:
    def folded() -> dict[int, Tensor]:
        return collect_folded(tiny_subject, some_tokens(), compiled=compiled)

    plain = folded()  # what is compiled or found out here must not be all that is used later
    undo = WAYS[way](tiny_subject.model.model.layers[LAYER])
    try:
        expected = collect(tiny_subject, some_tokens())
        found = folded()
    finally:
        undo()
    assert_same(found, expected)
    assert not torch.allclose(found[LAYER + 1], plain[LAYER + 1], atol=1e-4)
    assert_same(folded(), plain)


def test_only_the_layer_that_has_it_is_read_and_not_folded(tiny_subject: Subject) -> None:
    read: list[int] = []

    def fold(layer: int, acts: Tensor, pre: Preactivations | None) -> None:
        if pre is None:
            read.append(layer)
        else:
            acts.fill_(0.0)

    mlp = tiny_subject.model.model.layers[LAYER].mlp
    with mlp.register_forward_hook(lambda *_: None):
        tiny_subject.trunk(some_tokens(), fold=fold)
        assert tiny_subject.nonlinearities() == ["silu", None]
    assert read == [LAYER]
    tiny_subject.trunk(some_tokens(), fold=fold)
    assert read == [LAYER] and tiny_subject.nonlinearities() == ["silu"]


def test_a_hook_is_called_for_every_batch_of_a_sweep(tiny_subject: Subject, tmp_path) -> None:
    shapes = []
    corpus = Corpus.from_excerpts(some_tokens(6, 64).numpy().astype("int32"))
    mlp = tiny_subject.model.model.layers[LAYER].mlp

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        shapes.append(tuple(inputs[0].shape[:2]))
        return torch.zeros_like(output)

    with mlp.register_forward_hook(hook):
        run = fastexplain.sweep(tiny_subject, corpus, tmp_path / "run", batch_size=2)
        expected = collect(tiny_subject, torch.from_numpy(corpus.tokens.copy()))
    # Before the sweep, it takes part in the look for a model that looks ahead.
    assert [shape for shape in shapes if shape[1] == 64][:3] == [(2, 64)] * 3
    best = run.neuron("3:7").top[0]
    of_model = expected[3][best.excerpt, :, 7].numpy()
    assert abs(best.activations - of_model).max() < 1e-5 * abs(of_model).max() + 1e-7


def test_an_mlp_is_found_whatever_hooks_it_has(make_model, make_tokenizer) -> None:
    """What tells activation functions apart is not shown to hooks, which may not take it."""
    model, seen = make_model(), []
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_hook(lambda *given: seen.append(given))
    subject = Subject.from_model(model, make_tokenizer())
    assert subject.widths == (48,) * 4 and not seen
    assert subject.nonlinearities() == [None] and not seen


@pytest.mark.parametrize("name", ["act_fn", "gate_proj"])
def test_a_module_that_took_anothers_place_takes_part(name: str, tiny_subject: Subject) -> None:
    plain = collect_folded(tiny_subject, some_tokens())
    mlp = tiny_subject.model.model.layers[LAYER].mlp
    former = getattr(mlp, name)
    setattr(mlp, name, nn.Sequential(former, nn.Tanh()))
    found = collect_folded(tiny_subject, some_tokens())
    assert_same(found, collect(tiny_subject, some_tokens()))
    assert not torch.allclose(found[LAYER], plain[LAYER], atol=1e-4)
    setattr(mlp, name, former)
    assert_same(collect_folded(tiny_subject, some_tokens()), plain)


def test_hooks_on_gradients_do_not_count() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_full_backward_hook(lambda *_: None)
    assert not intercepted(module)
    module[0].register_forward_hook(lambda *_: None)
    assert intercepted(module)
