"""What neurons do by their weights: found, stored, read, checked, shown."""

from __future__ import annotations

import json
import shutil

import numpy as np
import planted
import pytest
import torch

import fastexplain
from fastexplain import Corpus, Run, Subject, open_run
from fastexplain.errors import RunError, SubjectError, UsageError
from fastexplain.pipeline.weighing import steps
from fastexplain.records import NeuronId
from fastexplain.run import weights as stored
from fastexplain.run.checking import damages
from fastexplain.run.locking import DirectoryLock
from fastexplain.run.sealed import sealed, unsealed
from fastexplain.subject.vectors import Vectors


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Subject:
    """Four layers, saved, so that its run can find it again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=20, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("subjects") / "tiny"
    LlamaForCausalLM(config).save_pretrained(out)
    # 256 tokens of a byte each: the model has rows for more.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_).save_pretrained(out)
    return fastexplain.load_subject(str(out))


@pytest.fixture(scope="module")
def swept(tiny, tmp_path_factory):
    tokens = np.random.default_rng(0).integers(0, 256, (30, 64)).astype(np.int32)
    out = tmp_path_factory.mktemp("tiny") / "run"
    fastexplain.sweep(tiny, Corpus.from_excerpts(tokens), out, layers=[0, 1, 3])
    run = open_run(out)
    done: list[int] = []
    fastexplain.weights(run, subject=tiny, progress=done.append)
    assert done == list(range(1, steps(run) + 1)) and steps(run) == 6
    return run


@pytest.fixture
def copied(swept, tmp_path):
    return open_run(shutil.copytree(swept.path, tmp_path / "run"))


def best(products: torch.Tensor, count: int = 10) -> list[int]:
    return products.argsort(descending=True)[:count].tolist()


def test_tokens_are_those_of_all_products(swept, tiny) -> None:
    """Of 256 tokens: those that the tokenizer lacks are left out."""
    vectors = Vectors(tiny, 256)
    for name in ("0:3", "1:19", "3:0"):
        neuron, found = NeuronId.parse(name), swept.weights(name)
        assert found == swept.weights(neuron) and list(found.inputs) == ["gate", "up"]
        read = vectors.read(neuron.layer)
        for side, products in (
            (found.output, vectors.logits @ vectors.written(neuron.layer)[neuron.index]),
            (found.inputs["gate"], vectors.embeddings @ read["gate"][neuron.index]),
            (found.inputs["up"], vectors.embeddings @ read["up"][neuron.index]),
        ):
            assert [token.token_id for token in side.most] == best(products)
            assert [token.token_id for token in side.least] == best(-products)
            for token in side.most + side.least:
                assert token.value == pytest.approx(float(products[token.token_id]), rel=1e-4)
                assert token.token == swept.token_text(token.token_id)
            assert side.spread == pytest.approx(float(products.std(correction=0)), rel=1e-4)


def test_neighbours_are_those_of_all_cosines_in_other_layers(swept, tiny) -> None:
    """By magnitude, lower layers feed a neuron's gate, and gates of higher ones read it."""
    vectors = Vectors(tiny, 256)
    written = {layer: vectors.written(layer) for layer in swept.layers}
    gates = {layer: vectors.read(layer)["gate"] for layer in swept.layers}

    def expected(own, others, layers):
        found = [
            (float(torch.cosine_similarity(own, row, dim=0)), f"{layer}:{index}")
            for layer in layers
            for index, row in enumerate(others[layer])
        ]
        return sorted(found, key=lambda pair: -abs(pair[0]))[:10]

    for layer in swept.layers:
        found = swept.weights(f"{layer}:7")
        below, above = (
            [each for each in swept.layers if each < layer],
            [each for each in swept.layers if each > layer],
        )
        for neighbours, wanted in (
            (found.similar, expected(written[layer][7], written, below + above)),
            (found.fed_by, expected(gates[layer][7], written, below)),
            (found.read_by, expected(written[layer][7], gates, above)),
        ):
            assert [str(each.neuron) for each in neighbours] == [name for _, name in wanted]
            np.testing.assert_allclose(
                [each.cosine for each in neighbours], [cosine for cosine, _ in wanted], atol=1e-5
            )
    assert swept.weights("0:7").fed_by == [] == swept.weights("3:7").read_by


def test_a_planted_neuron_reads_its_words(run, planted_subject, cli) -> None:
    """Neuron 0 reads "cat" alone; neuron 6 nothing, and none writes anything."""
    assert run.weights("0:0") is None
    assert json.loads(cli("show", run.path, "0:0", "--json")[1].splitlines()[-1])["weights"] is None
    code, shown, _ = cli("weights", run.path)
    assert code == 0 and f"fastexplain show {run.path} 0:0" in shown
    found = run.weights("0:0")
    assert found.inputs["input"].most[0].token == "cat"
    spread = found.inputs["input"].spread
    assert found.inputs["input"].most[0].value > 4 * spread > 0
    both = {
        token.token for token in run.weights(f"0:{planted.RIVER_OR_STONE}").inputs["input"].most[:2]
    }
    assert both == {"river", "stone"}
    silent = run.weights(f"0:{planted.NEVER}")
    assert silent.inputs["input"].most == silent.output.most == silent.output.least == []
    assert silent.similar == silent.fed_by == silent.read_by == []
    assert damages(run) == []


def test_show_prints_them(swept, cli) -> None:
    code, shown, _ = cli("show", swept.path, "1:4")
    assert code == 0
    for text in ("By its weights", "raises", "lowers", "gate: reads", "up: reads", "fed", "+0."):
        assert text.replace("fed", "lower neurons that") in shown
    data = json.loads(cli("show", swept.path, "1:4", "--json")[1].splitlines()[-1])["weights"]
    found = swept.weights("1:4")
    assert [each["token_id"] for each in data["output"]["most"]] == [
        token.token_id for token in found.output.most
    ]
    assert data["inputs"]["gate"]["least"][0]["value"] == found.inputs["gate"].least[0].value < 0
    assert data["fed_by"][0] == {
        "neuron": str(found.fed_by[0].neuron), "cosine": found.fed_by[0].cosine
    }  # fmt: skip


def test_what_is_stored_is_left_alone_unless_fresh_is_asked_for(copied, tiny, cli) -> None:
    path = copied.path / "weights" / "00.safetensors"
    before, there = path.stat().st_mtime_ns, path.read_bytes()
    code, shown, _ = cli("weights", copied.path, "--json")
    found = json.loads(shown.splitlines()[-1])
    assert code == 0 and (found["neurons"], found["seconds"]) == (60, None)
    code, shown, progress = cli("weights", copied.path, "--subject", "/nowhere")
    assert code == 0 and progress == "" and "--subject had no effect" in shown
    assert shown.startswith("Stored before, and left as it is: weights of 60 neurons")
    assert path.stat().st_mtime_ns == before
    assert repr(fastexplain.weights(copied, subject=tiny, fresh=True)) == (
        "weights of 60 neurons in 3 layers"
    )
    assert path.stat().st_mtime_ns > before and path.read_bytes() == there


def test_they_are_opened_once_for_all_neurons_and_again_when_stored_anew(
    copied, tiny, monkeypatch
) -> None:
    opened: list[Run] = []

    def counted(run: Run) -> stored.StoredWeights | None:
        opened.append(run)
        return stored.stored_weights(run)

    monkeypatch.setattr("fastexplain.run.directory.stored_weights", counted)
    first = [copied.weights(f"{layer}:{index}") for layer in (0, 1) for index in range(5)]
    assert len(opened) == 1 and None not in first
    fastexplain.weights(copied, subject=tiny, fresh=True)
    opened.clear()
    assert copied.weights("0:0") == first[0] and len(opened) == 1
    shutil.rmtree(copied.path / "weights")
    assert copied.weights("0:0") is None


@pytest.mark.parametrize("name", ["manifest.json", "hashes.safetensors", "03.safetensors"])
def test_damage_is_named_and_mended(copied, tiny, cli, name) -> None:
    path = copied.path / "weights" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), max(len(whole) // 40, 1)):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        found = damages(open_run(copied.path))
        assert found and all("weights" in line and "\n" not in line for line in found), place
    assert cli("check", copied.path)[0] == 1
    path.unlink()
    if name != "manifest.json":
        with pytest.raises(RunError, match="missing"):
            open_run(copied.path).weights("3:0")
    fastexplain.weights(copied, subject=tiny, fresh=True)
    assert damages(open_run(copied.path)) == []


def test_what_can_not_be_read(copied) -> None:
    path = copied.path / "weights" / "manifest.json"
    manifest, _ = unsealed(path.read_bytes())
    for change, message in (
        ({"schema": 2}, "schema is 2, 1 can be read; repeat: fastexplain weights"),
        ({"parts": ["../gate"]}, "it lacks a part; repeat: fastexplain weights"),
        ({"fingerprint": "another"}, "of another subject than the run's; repeat"),
    ):
        path.write_bytes(sealed(manifest | change))
        with pytest.raises(RunError, match=message) as caught:
            copied.weights("0:0")
        assert "\n" not in str(caught.value)
    path.write_bytes(sealed(manifest | {"parts": ["gate", "down"]}))
    with pytest.raises(RunError, match=r"00\.safetensors is damaged: it has no down\.tokens"):
        copied.weights("0:0")


def test_wrong_arguments(copied, tiny, planted_subject, cli) -> None:
    with pytest.raises(SubjectError, match="are not those that"):
        fastexplain.weights(copied, subject=planted_subject, fresh=True)
    with pytest.raises(UsageError, match="there is no neuron 0:20"):
        copied.weights("0:20")
    with pytest.raises(UsageError, match="layer 2 was not swept"):
        copied.weights("2:0")
    code, _, shown = cli("weights", copied.path, "--fresh", "--subject", "/nowhere")
    assert code == 1 and "there is no directory '/nowhere'" in shown
    device = "cuda:99"
    code, _, shown = cli("weights", copied.path, "--fresh", "--device", device)
    assert code == 1 and f"there is no device '{device}' on this machine; it has: cpu" in shown
    assert "--subject" not in shown
    assert copied.weights("0:0") is not None


def test_others_that_write_and_places_that_cannot_be_written(copied, tiny, tmp_path) -> None:
    directory = copied.path / "weights"
    lock = DirectoryLock(directory, directory / "lock", "command")
    with pytest.raises(RunError, match="another command is writing to"):
        fastexplain.weights(copied, subject=tiny, fresh=True)
    lock.close()
    shutil.rmtree(directory)
    directory.write_text("a file")
    with pytest.raises(RunError, match=r"can't write to .*weights: "):
        fastexplain.weights(copied, subject=tiny)
    directory.unlink()
    (directory / "01.safetensors").mkdir(parents=True)
    with pytest.raises(RunError, match=r"can't write .*01\.safetensors"):
        fastexplain.weights(copied, subject=tiny)
    assert copied.weights("0:0") is None
    assert stored.stored_weights(copied) is None
