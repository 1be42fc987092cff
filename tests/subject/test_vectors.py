"""The vectors of the weights are what hooks in a whole pass find."""

from __future__ import annotations

import pytest
import torch
from architectures import LAYERS, MOST_IN_SCALE, VOCABULARY, model_of, some_tokens
from torch import Tensor, nn

from fastexplain import Subject
from fastexplain.errors import SubjectError, UsageError
from fastexplain.subject.ends import Ends, Rows, fold, fold_both, fold_exact
from fastexplain.subject.mlps import LINEAR
from fastexplain.subject.vectors import Vectors

POST_NORMS = {"Gemma2", "Gemma3", "Olmo2"}


def subject_of(architecture: str) -> Subject:
    """With gains and biases of norms by chance, which a new model has all alike."""
    model = model_of(architecture)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return Subject.from_model(model, None, name=architecture, lead=())


def replaced(module: nn.Module, value: Tensor):
    """A hook that puts a value in the place of what a module gives, or of a tuple's first."""
    return module.register_forward_hook(
        lambda _, args, out: (value, *out[1:]) if isinstance(out, tuple) else value.view_as(out)
    )


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def rms(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt()


def around(w: Tensor) -> Tensor:
    """A vector whose length, and that of what is left of it without its mean, w does not change."""
    r = centred(torch.randn(w.shape, generator=torch.Generator().manual_seed(5)))
    w = centred(w)
    return 3 * (r - w * (r @ w) / (w @ w))


@pytest.mark.parametrize("architecture", MOST_IN_SCALE)
def test_the_vectors_are_what_hooks_find(architecture) -> None:
    subject = subject_of(architecture)
    vectors = Vectors(subject, VOCABULARY)
    check_logits(subject, vectors)
    check_written(subject, vectors)
    check_read(subject, vectors)


def check_logits(subject: Subject, vectors: Vectors) -> None:
    """The change of logits, with the norm's factor frozen, is the product with what is written.

    What a neuron writes is added to the stream above the highest layer, and taken from it; that
    stream is orthogonal to it, so that the norm's factor stays the same.
    """
    written = vectors.written(LAYERS - 1)[7]
    stream, step = around(written), 0.3 / float(written.norm())
    logits = []
    for sign in (1, -1):
        hook = replaced(
            subject.model.get_submodule(subject.mlps[-1].layer),
            (stream + sign * step * written)[None, None],
        )
        with torch.inference_mode():
            ids = torch.tensor([[1]])
            logits.append(subject.model(input_ids=ids, use_cache=False).logits[0, 0])
        hook.remove()
    change = (logits[0] - logits[1]) / (2 * step) * rms(stream)
    found = vectors.logits @ written
    torch.testing.assert_close(
        found, change - change.mean(), atol=2e-3 * float(found.abs().max()), rtol=0
    )
    assert found.std() > 1e-5


def check_written(subject: Subject, vectors: Vectors) -> None:
    """A column of the down projection, added to what that gives, changes the layer's output."""
    for layer, mlp in enumerate(subject.mlps):
        weight = mlp.down.weight if isinstance(mlp.down, nn.Linear) else mlp.down.weight.t()
        column = weight[:, 11].detach()
        given, step = around(column), 1e-2 / float(column.norm())
        seen: list[Tensor] = []
        module = subject.model.get_submodule(mlp.layer)
        for sign in (1, -1):
            hooks = [
                replaced(mlp.down, (given + sign * step * column)[None, None]),
                module.register_forward_hook(
                    lambda _, args, out, seen=seen: seen.append(
                        out[0] if isinstance(out, tuple) else out
                    )
                ),
            ]
            with torch.inference_mode():
                subject.model(input_ids=torch.tensor([[1]]), use_cache=False)
            for hook in hooks:
                hook.remove()
        change = (seen[0] - seen[1]).flatten() / (2 * step)
        change = change * (rms(given) if subject.name in POST_NORMS else 1)
        torch.testing.assert_close(
            vectors.written(layer)[11], change, atol=2e-3 * float(change.abs().max()), rtol=0
        )


def check_read(subject: Subject, vectors: Vectors) -> None:
    """In a whole pass of a text, what goes into the nonlinearity is the product with the stream.

    That is above attention or beside it, divided by its norm's factor; a bias may be added.
    """
    layer, mlp = 1, subject.mlps[1]
    module = subject.model.get_submodule(mlp.path)
    names = {
        name: child for name, child in module.named_children()
        if isinstance(child, LINEAR) and child is not mlp.down
    }  # fmt: skip
    streams: list[Tensor] = []
    outputs: dict[str, Tensor] = {}
    whole = subject.model.get_submodule(mlp.layer)
    hooks = [
        # New models embed so little that the constants of their norms would be felt.
        subject.model.get_input_embeddings().register_forward_hook(lambda _, args, out: 100 * out),
        whole.register_forward_pre_hook(
            lambda _, args, named: streams.append(args[0] if args else named["hidden_states"]),
            with_kwargs=True,
        ),
        whole.register_forward_hook(
            lambda _, args, out: streams.append(out[0] if isinstance(out, tuple) else out)
        ),
        mlp.down.register_forward_hook(lambda _, args, out: outputs.update(down=out)),
        *[
            child.register_forward_hook(lambda _, args, out, name=name: outputs.update({name: out}))
            for name, child in names.items()
        ],
    ]
    with torch.inference_mode():
        subject.model(input_ids=some_tokens(), use_cache=False)
    for hook in hooks:
        hook.remove()
    given, above = (each.flatten(0, 1) for each in streams)
    down = outputs.pop("down").reshape(given.shape)
    added = vectors._stream.out[layer].of_written(down)
    if subject.name in POST_NORMS:
        added = added / (rms(down) ** 2 + subject.model.config.rms_norm_eps).sqrt()
    before = torch.cat([out.reshape(len(given), -1) for out in outputs.values()], dim=1)
    kind = vectors._stream.into[layer].kind
    read = vectors.read(layer)
    assert list(read) in (["input"], ["gate", "up"])
    for rows in read.values():
        rests = []
        for stream in (given, above - added):
            factor = {"plain": 1, "rms": rms(stream), "layer": rms(centred(stream))}[kind]
            product = (stream / factor) @ rows.t()
            # Where this part lies among what the linear layers give, in any order.
            for start in range(0, before.shape[1], mlp.width):
                rest = before[:, start : start + mlp.width] - product
                rests.append(float((rest - rest.mean(0)).abs().max()))
        assert min(rests) < 1e-3 * float(before.abs().max()), rests


def test_embeddings_are_those_that_the_lowest_layer_gets() -> None:
    gpt2 = subject_of("GPT2")
    weight = gpt2.model.transformer.wte.weight
    torch.testing.assert_close(Vectors(gpt2, 200).embeddings, weight[:200] - weight[:200].mean(0))
    gemma = subject_of("Gemma")
    weight = gemma.model.model.embed_tokens.weight
    expected = (weight - weight.mean(0)) * 32**0.5
    torch.testing.assert_close(Vectors(gemma, VOCABULARY).embeddings, expected)
    bloom = subject_of("Bloom")
    trunk = bloom.model.transformer
    rows = trunk.word_embeddings_layernorm(trunk.word_embeddings.weight)
    expected = (rows - rows.mean(0)).detach()
    torch.testing.assert_close(Vectors(bloom, VOCABULARY).embeddings, expected)


def test_a_gate_is_told_by_its_nonlinearity_whatever_it_is_called() -> None:
    """Phi3 has the gate first, in one matrix with up; LFM2 calls them w1 and w3."""
    fused = subject_of("Phi3")
    whole = fused.model.model.layers[0].mlp.gate_up_proj.weight
    gain = fused.model.model.layers[0].post_attention_layernorm.weight
    read = Vectors(fused, VOCABULARY).read(0)
    torch.testing.assert_close(read["gate"], (whole[:80] * gain).detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(read["up"], (whole[80:] * gain).detach(), rtol=1e-3, atol=1e-5)
    lfm2 = subject_of("Lfm2")
    layer = lfm2.model.model.layers[0]
    expected = (layer.feed_forward.w1.weight * layer.ffn_norm.weight).detach()
    torch.testing.assert_close(Vectors(lfm2, VOCABULARY).read(0)["gate"], expected,
                               rtol=1e-3, atol=1e-5)  # fmt: skip


def test_what_is_none_of_the_maps_is_refused() -> None:
    subject = subject_of("Llama")
    trunk = subject.model.model
    for module, change, message in (
        (trunk.norm, torch.sinh, "what LlamaForCausalLM gives its head is no norm of the stream"),
        (
            trunk.layers[1].post_attention_layernorm,
            torch.sinh,
            r"goes into model\.layers\.1\.mlp of Llama",
        ),
        (trunk.layers[2].mlp, torch.abs, r"comes out of model\.layers\.2\.mlp of Llama"),
        (
            subject.model.lm_head,
            lambda out: out.cumsum(-1),
            "the logits of LlamaForCausalLM are no multiple",
        ),
    ):
        hook = module.register_forward_hook(lambda _, args, out, change=change: change(out))
        with pytest.raises(SubjectError, match=message) as caught:
            Vectors(subject, VOCABULARY)
        hook.remove()
        assert "\n" not in str(caught.value)


def test_other_subjects_whose_weights_cannot_be_read() -> None:
    subject = subject_of("Llama")
    subject.model.model.layers[1].mlp.act_fn = nn.Identity()
    with pytest.raises(SubjectError, match=r"which of gate_proj, up_proj is the gate of model"):
        Vectors(subject, VOCABULARY).read(1)
    broken = subject_of("Llama")
    broken.model.model.layers[0].mlp.down_proj.weight[3, 5] = torch.nan
    with pytest.raises(SubjectError, match="weights of 'Llama' are not finite"):
        Vectors(broken, VOCABULARY).written(0)
    half = subject_of("Llama")
    half.model.bfloat16()
    with pytest.raises(UsageError, match="are bfloat16; load the subject with dtype='float32'"):
        Vectors(half, VOCABULARY)


def test_the_same_ends_on_any_device_and_from_both_sides() -> None:
    """As a device takes them, in float32 by topk, and as the CPU does, from rough products."""
    random = torch.Generator().manual_seed(0)
    one, other = torch.randn(70, 16, generator=random), torch.randn(90, 16, generator=random)
    products = one @ other.t()
    for side, count in ((products, 10), (products[:, :6], 10)):
        device, cpu = (Ends(70, count, torch.device("cpu")) for _ in range(2))
        fold_exact(side[:, :3], device.ids, device.values, 0)
        fold_exact(side[:, 3:], device.ids, device.values, 3)
        fold(Rows(one), Rows(other[: side.shape[1]]), cpu)
        assert torch.equal(device.ids, cpu.ids)
        torch.testing.assert_close(device.values, cpu.values)
    of_one, of_other = Ends(70, 10, one.device), Ends(90, 10, one.device)
    fold_both(Rows(one), Rows(other), of_one, of_other, 1000, 2000)
    turned = Ends(90, 10, one.device)
    fold_exact(products.t(), turned.ids, turned.values, 2000)
    assert torch.equal(of_other.ids, turned.ids) and int(of_one.ids.min()) >= 1000
