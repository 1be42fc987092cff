"""MLPs without their elementwise part: found by trying, replaced for a while, compiled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from architectures import ARCHITECTURES, LAYERS, NEURONS, model_of, some_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from test_subject import collect
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers.pytorch_utils import Conv1D

from fastexplain.errors import SubjectError, UsageError
from fastexplain.kernels import reference
from fastexplain.kernels.scalars import NONLINEARITIES
from fastexplain.kernels.summary import Preactivations
from fastexplain.models.onednn import OneDnnLinear
from fastexplain.subject import compilation
from fastexplain.subject.fusion import Elementwise, FusedMlp, find_elementwise, fuse, replaced
from fastexplain.subject.mlps import Mlp
from fastexplain.subject.model import Subject

GATED = {"gate": "gate_proj", "up": "up_proj"}
HALVES = {"gate": "gate_up_proj", "up": "gate_up_proj", "up_start": NEURONS}

# Apertus' activation has weights of its own, BitNet has a norm behind it; Bloom's and MPT's MLPs
# add the residual stream, and those of OPT and XGLM lie in the decoder layer itself.
ELEMENTWISE: dict[str, Elementwise | None] = {
    "Apertus": None,
    "BitNet": None,
    "Bloom": None,
    "CodeGen": Elementwise("gelu_tanh", "fc_in"),
    "Cohere": Elementwise("silu", **GATED),
    "CTRL": Elementwise("relu", "0"),
    "Falcon": Elementwise("gelu", "dense_h_to_4h"),
    "Gemma": Elementwise("gelu_tanh", **GATED),
    "Gemma2": Elementwise("gelu_tanh", **GATED),
    "Gemma3": Elementwise("gelu_tanh", **GATED),
    "Glm": Elementwise("silu", **HALVES),
    "GPT2": Elementwise("gelu_tanh", "c_fc"),
    "GPTBigCode": Elementwise("gelu_tanh", "c_fc"),
    "GPTJ": Elementwise("gelu_tanh", "fc_in"),
    "GPTNeo": Elementwise("gelu_tanh", "c_fc"),
    "GPTNeoX": Elementwise("gelu", "dense_h_to_4h"),
    "Granite": Elementwise("silu", **GATED),
    "Lfm2": Elementwise("silu", "w1", "w3"),
    "Llama": Elementwise("silu", **GATED),
    "Mistral": Elementwise("silu", **GATED),
    "Mpt": None,
    "Olmo": Elementwise("silu", **GATED),
    "Olmo2": Elementwise("silu", **GATED),
    "OPT": None,
    "Persimmon": Elementwise("relu2", "dense_h_to_4h"),
    "Phi": Elementwise("gelu_tanh", "fc1"),
    "Phi3": Elementwise("silu", **HALVES),
    "Qwen2": Elementwise("silu", **GATED),
    "Qwen3": Elementwise("silu", **GATED),
    "RecurrentGemma": Elementwise("gelu_tanh", **GATED),
    "SmolLM3": Elementwise("silu", **GATED),
    "StableLm": Elementwise("silu", **GATED),
    "Starcoder2": Elementwise("gelu_tanh", "c_fc"),
    "XGLM": None,
}


def fill(acts: Tensor, pre: Preactivations) -> None:
    """Compute activations as the reference does: in float64, rounded once."""
    up = None if pre.up is None else pre.up.numpy()
    arrays = pre._replace(gate=pre.gate.numpy(), up=up)
    acts.copy_(torch.from_numpy(reference.activations(arrays, acts.shape[2])))


def collect_folded(
    subject: Subject, token_ids: Tensor, layers: list[int] | None = None, compiled: bool = False
) -> dict[int, Tensor]:
    seen: dict[int, Tensor] = {}

    def fold(layer: int, acts: Tensor, pre: Preactivations | None) -> None:
        assert acts.is_contiguous()
        if pre is not None:
            assert pre.gate.is_contiguous() and (pre.up is None or pre.up.is_contiguous())
            fill(acts, pre)
        seen[layer] = acts.clone()

    subject.trunk(token_ids, None, layers, fold=fold, compiled=compiled)
    return seen


def assert_same(found: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    """To the rounding of a few float32 operations, relative to the layer's own size."""
    assert list(found) == list(expected)
    for layer, acts in expected.items():
        scale = acts.abs().max().item()
        torch.testing.assert_close(found[layer], acts, rtol=2e-6, atol=2e-6 * scale)


# What an MLP computes between its linear layers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_elementwise_parts_are_found_by_trying(architecture: str, make_tokenizer) -> None:
    subject = Subject.from_model(model_of(architecture), make_tokenizer(), name=architecture)
    for mlp in subject.mlps:
        module = subject.model.get_submodule(mlp.path)
        assert find_elementwise(module, mlp) == ELEMENTWISE[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_sees_the_models_own_activations(architecture: str, make_tokenizer) -> None:
    """With a BOS, without, and of some layers only."""
    model = model_of(architecture)
    for tokenizer in (make_tokenizer(bos=True, prepend=True), make_tokenizer()):
        subject = Subject.from_model(model, tokenizer, name=architecture)
        for layers in (None, [1], [0, 2]):
            assert_same(collect_folded(subject, some_tokens(), layers),
                        collect(subject, some_tokens(), layers))  # fmt: skip


class Plain(nn.Module):
    """An MLP with any function between its linear layers; `inputs` are their outputs' widths."""

    def __init__(self, function: Callable[..., Tensor], *widths: int, neurons: int = 48) -> None:
        super().__init__()
        self.function = function
        self.inputs = [f"in_{i}" for i in range(len(widths))]
        for name, width in zip(self.inputs, widths, strict=True):
            self.add_module(name, nn.Linear(32, width))
        self.out = Conv1D(32, neurons)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(*(getattr(self, name)(x) for name in self.inputs)))

    def mlp(self) -> Mlp:
        kind = "gated" if len(self.inputs) == 2 else "plain"
        if self.in_0.out_features == 2 * self.out.nx:
            kind = "fused"
        return Mlp("", "", kind, self.out, self.out.nx)


def elementwise_of(module: Plain) -> Elementwise | None:
    return find_elementwise(module, module.mlp())


FUNCTIONS = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(inplace=True),
    "relu": nn.ReLU(),
    "relu2": lambda x: torch.relu(x) ** 2,
}
LAYOUTS: dict[str, Callable[[Callable[[Tensor], Tensor]], Plain]] = {
    "plain": lambda f: Plain(f, 48),
    "gate first": lambda f: Plain(lambda a, b: f(a) * b, 48, 48),
    "up first": lambda f: Plain(lambda a, b: a * f(b), 48, 48),
    "halves, gate first": lambda f: Plain(lambda c: f(c[..., :48]) * c[..., 48:], 96),
    "halves, up first": lambda f: Plain(lambda c: c[..., :48] * f(c[..., 48:]), 96),
}
WHERE = {
    "plain": ("in_0", None, 0, 0),
    "gate first": ("in_0", "in_1", 0, 0),
    "up first": ("in_1", "in_0", 0, 0),
    "halves, gate first": ("in_0", "in_0", 0, 48),
    "halves, up first": ("in_0", "in_0", 48, 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@settings(max_examples=10, deadline=None)
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 9)), seed=st.integers(0, 2**31))
def test_a_fused_mlp_does_what_its_module_did(
    layout: str, nonlinearity: str, shape: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    module = LAYOUTS[layout](FUNCTIONS[nonlinearity])
    found = elementwise_of(module)
    assert found == Elementwise(nonlinearity, *WHERE[layout])
    holder = nn.ModuleDict({"mlp": module})
    x = 3 * torch.randn(*shape, 32)
    with torch.inference_mode():
        expected = module(x)
        with replaced(holder, "mlp", FusedMlp(module, module.mlp(), found), shape, fill):
            assert holder["mlp"] is not module
            result = holder["mlp"](x)
    assert holder["mlp"] is module
    torch.testing.assert_close(result, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "function",
    [
        nn.Hardswish(), nn.Sigmoid(), nn.Identity(), lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: nn.functional.silu(x).clamp(max=10), lambda x: nn.functional.silu(x) * 1.001,
        lambda x: nn.functional.silu(x).flip(-1), lambda x: (x, x), lambda x: x @ torch.ones(2, 2),
        nn.PReLU(), nn.Sequential(nn.SiLU(), nn.LayerNorm(48)), nn.Dropout(0.5),
    ],
)  # fmt: skip
def test_any_other_function_is_not_known(function: Callable[[Tensor], Tensor]) -> None:
    assert elementwise_of(Plain(function, 48)) is None


def test_gates_that_share_or_lack_a_nonlinearity_are_not_known() -> None:
    silu = nn.functional.silu
    for function in (lambda a, b: a * b, lambda a, b: silu(a) * silu(b), lambda a, b: silu(a)):
        assert elementwise_of(Plain(function, 48, 48)) is None
    # Halves that take turns, as those of gpt-oss.
    assert elementwise_of(Plain(lambda c: silu(c[..., ::2]) * c[..., 1::2], 96)) is None


class Residual(Plain):
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Scaled(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Normed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.norm())


class ByWeight(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.function(self.in_0(x)), self.out.weight.T, self.out.bias)


class Cast(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.in_0.weight.dtype))


class Twice(Plain):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return super().forward(x)


@pytest.mark.parametrize("kind", [Residual, Scaled, Normed, ByWeight, Cast, Twice])
def test_a_forward_that_does_more_is_not_known(kind: type[Plain]) -> None:
    assert elementwise_of(Plain(nn.functional.silu, 48)) is not None
    assert elementwise_of(kind(nn.functional.silu, 48)) is None


def test_weights_are_not_touched_and_half_precision_does_not_matter() -> None:
    module = Plain(nn.functional.gelu, 48).to("meta", torch.bfloat16)
    assert elementwise_of(module) == Elementwise("gelu", "in_0")
    assert module.in_0.weight.is_meta and set(module._modules) == {"in_0", "out"}


# The model around it


def parts_of(subject: Subject) -> list[tuple[str, int, bool]]:
    return [
        (name, id(module), "forward" in vars(module))
        for name, module in subject.model.named_modules()
    ]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_is_left_as_it_was(tiny_subject: Subject, compiled: bool) -> None:
    before = parts_of(tiny_subject)
    expected = collect(tiny_subject, some_tokens())
    collect_folded(tiny_subject, some_tokens(), compiled=compiled)
    assert parts_of(tiny_subject) == before

    def fold(layer: int, acts: Tensor, pre: Preactivations | None) -> None:
        assert pre is not None
        fill(acts, pre)
        if layer == 1:
            raise KeyError("from fold")

    with pytest.raises(KeyError, match="from fold"):
        tiny_subject.trunk(some_tokens(), fold=fold, compiled=compiled)
    assert parts_of(tiny_subject) == before
    assert not any(mlp.down._forward_pre_hooks for mlp in tiny_subject.mlps)
    after = collect(tiny_subject, some_tokens())
    assert all(torch.equal(after[layer], expected[layer]) for layer in expected)


def test_what_fold_leaves_is_what_the_model_goes_on_with(tiny_subject: Subject) -> None:
    seen: list[Tensor] = []
    tiny_subject.mlps[0].down.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    tiny_subject.trunk(some_tokens(), fold=lambda layer, acts, pre: acts.fill_(layer + 0.5))
    assert len(seen) == 1 and (seen[0] == 0.5).all()


def test_activations_take_the_gates_memory_where_they_fit(make_tokenizer) -> None:
    for architecture, shares in (("Llama", True), ("GPT2", True), ("Phi3", False)):
        subject = Subject.from_model(model_of(architecture), make_tokenizer(), name=architecture)
        found: list[bool] = []
        subject.trunk(
            some_tokens(),
            fold=lambda layer, acts, pre, found=found: found.append(
                acts.data_ptr() == pre.gate.data_ptr()
            ),
        )
        assert found == [shares] * LAYERS


def test_folding_stops_where_visiting_does(tiny_subject: Subject) -> None:
    ran: list[int] = []
    for number, mlp in enumerate(tiny_subject.mlps):
        mlp.down.register_forward_hook(lambda *_, number=number: ran.append(number))
    collect_folded(tiny_subject, some_tokens(), [0, 2])
    assert ran == [0, 1]


def test_a_folded_layer_that_does_not_run_is_an_error(tiny_subject: Subject) -> None:
    last = tiny_subject.model.model.layers[3]
    collect_folded(tiny_subject, some_tokens())
    last.forward = lambda hidden_states, **_: hidden_states
    with pytest.raises(SubjectError, match=r"ran the MLPs of layers \[0, 1, 2\] when asked for"):
        collect_folded(tiny_subject, some_tokens())


def test_arguments_of_trunk_that_exclude_each_other(tiny_subject: Subject) -> None:
    for arguments in (
        {"visit": lambda *_: None, "fold": lambda *_: None},
        {"visit": lambda *_: None, "compiled": True},
        {"compiled": True},
    ):
        with pytest.raises(UsageError, match="trunk takes visit or fold, and compiled with fold"):
            tiny_subject.trunk(some_tokens(), **arguments)


# Compiled layers


@pytest.fixture
def graphs() -> Iterator[Callable[[], int]]:
    """How many graphs were compiled since it was last asked."""
    torch._dynamo.reset()
    counters.clear()

    def since() -> int:
        count = counters["stats"]["unique_graphs"]
        counters.clear()
        return count

    yield since
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Phi3"])
def test_one_compiled_layer_serves_all(architecture: str, graphs, make_tokenizer) -> None:
    model = model_of(architecture, layers=6)
    subject = Subject.from_model(model, make_tokenizer(bos=True, prepend=True), name=architecture)
    for _ in range(3):
        assert_same(collect_folded(subject, some_tokens(), compiled=True),
                    collect(subject, some_tokens()))  # fmt: skip
    assert graphs() == 1
    small = some_tokens(excerpts=1)
    for token_ids in (small, some_tokens(), small):  # a smaller batch once more, and not again
        assert_same(collect_folded(subject, token_ids, compiled=True), collect(subject, token_ids))
    assert graphs() == 1
    # A layer that is not wanted keeps its own MLP.
    assert_same(collect_folded(subject, some_tokens(), [1, 4], compiled=True),
                collect(subject, some_tokens(), [1, 4]))  # fmt: skip
    assert graphs() == 1


def test_the_highest_layer_and_those_seen_by_hooks_are_not_compiled(graphs, make_tokenizer) -> None:
    subject = Subject.from_model(model_of("OPT"), make_tokenizer(), name="opt")
    assert_same(collect_folded(subject, some_tokens(), compiled=True),
                collect(subject, some_tokens()))  # fmt: skip
    subject = Subject.from_model(model_of("Llama"), make_tokenizer(), name="llama")
    collect_folded(subject, some_tokens(), [0], compiled=True)
    assert graphs() == 0


def test_without_a_compiler_it_says_what_to_do(graphs, tiny_subject: Subject) -> None:
    before = parts_of(tiny_subject)
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler"),
                                      "fx_graph_cache": False}),
        pytest.raises(SubjectError) as caught,
    ):  # fmt: skip
        collect_folded(tiny_subject, some_tokens(), compiled=True)
    message = str(caught.value)
    assert re.match(r"the model can't be compiled \(.*\); torch.compile needs a C\+\+", message)
    assert "\n" not in message and "no-such-compiler" in message
    assert parts_of(tiny_subject) == before


def test_a_layer_gets_its_own_forward_back(graphs) -> None:
    plain, changed = nn.Linear(2, 2), nn.Linear(2, 2)
    changed.forward = theirs = lambda x: nn.Linear.forward(changed, 2 * x)
    x = torch.randn(3, 2)
    expected = plain(x), nn.Linear.forward(changed, x)
    layers = [compilation.CompiledLayer(layer) for layer in (plain, changed)]
    with pytest.raises(KeyError), compilation.compiled(layers):
        assert (plain.forward, changed.forward) == tuple(each.forward for each in layers)
        torch.testing.assert_close((plain(x), changed(x)), expected)
        raise KeyError
    assert "forward" not in vars(plain) and changed.forward is theirs
    assert graphs() == 1


# The operators


def test_the_operators_keep_torchs_rules(monkeypatch) -> None:
    from fastexplain.models import onednn
    from fastexplain.subject import fusion

    def take(acts: Tensor, both: Tensor | None, up: Tensor | None) -> None:
        acts.copy_(both[..., : acts.shape[-1]] if both is not None else acts * up)

    monkeypatch.setitem(fusion._receivers, 0, take)
    slot = torch.tensor(0)
    rows, other = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.library.opcheck(fusion._fold, (rows, None, other, slot))
    torch.library.opcheck(fusion._fold, (rows, torch.randn(2, 3, 8), None, slot))
    if onednn._AVAILABLE:
        weight = torch.randn(5, 4)
        torch.library.opcheck(onednn._linear, (rows, weight, None))
        torch.library.opcheck(onednn._linear, (rows, weight, torch.randn(5)))


@pytest.mark.parametrize("bias", [False, True])
def test_onednn_multiplies_as_mkl_does(bias: bool, monkeypatch) -> None:
    from fastexplain.models import onednn

    if not onednn._AVAILABLE:
        pytest.skip("PyTorch was built without oneDNN")
    calls: list[int] = []
    linear = onednn._linear
    monkeypatch.setattr(onednn, "_linear", lambda *given: calls.append(1) or linear(*given))
    torch.manual_seed(0)
    x = torch.randn(3, 7, 64)
    modules: list[nn.Module] = [nn.Linear(64, 33, bias=bias)]
    if bias:
        modules.append(Conv1D(33, 64))
    with torch.inference_mode():
        for module in modules:
            expected = module(x)
            with OneDnnLinear():
                found = module(x)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert found.is_contiguous() and found.shape == expected.shape
    assert len(calls) == len(modules)


def test_onednn_leaves_all_else_alone(monkeypatch) -> None:
    from fastexplain.models import onednn

    def refuse(*_: object) -> None:
        raise AssertionError("not for oneDNN")

    monkeypatch.setattr(onednn, "_linear", refuse)
    x, weight, bias = torch.randn(3, 4), torch.randn(4, 4), torch.randn(4)
    with torch.inference_mode():
        for dtype in (torch.float64, torch.bfloat16):
            own = [tensor.to(dtype) for tensor in (x, weight, bias)]
            expected = nn.functional.linear(*own)
            with OneDnnLinear():
                assert torch.equal(nn.functional.linear(*own), expected)
        with OneDnnLinear():
            torch.addmm(bias, x, weight, beta=2)
            torch.addmm(torch.randn(3, 4), x, weight)
        monkeypatch.setattr(onednn, "_AVAILABLE", False)
        with OneDnnLinear():
            nn.functional.linear(x, weight, bias)


def test_slots_are_never_shared(tiny_subject: Subject) -> None:
    forms = [fuse(tiny_subject.model, mlp) for mlp in tiny_subject.mlps for _ in range(2)]
    assert len({int(form.slot) for form in forms if form is not None}) == 2 * len(tiny_subject.mlps)
