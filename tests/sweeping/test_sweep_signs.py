"""`sweep(signs=True)`: from a gated subject to four classes of each neuron in a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import planted_gates
import pytest
import torch
from safetensors.numpy import load_file, save_file

import fastexplain
from fastexplain import Corpus, Run, Subject, load_subject, open_run
from fastexplain.errors import RunError, UsageError
from fastexplain.run.checking import damages
from fastexplain.run.selection import select_neurons
from fastexplain.sweeping import manifest, settings

WORDS = planted_gates.WORDS


@pytest.fixture(scope="module")
def gated() -> Subject:
    return planted_gates.gated_subject()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return planted_gates.gated_corpus()


@pytest.fixture(scope="module")
def signs_run(gated: Subject, corpus: Corpus, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("signs") / "run"
    return fastexplain.sweep(gated, corpus, out, signs=True, bottom=True, batch_size=64)


def factors_of(neuron: int, word: str) -> tuple[float, float]:
    return planted_gates.FACTORS[neuron].get(word, (0.0, 0.0))


def silu(x: float) -> float:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("neuron", [0, 1, 2])
def test_a_neurons_classes_are_those_it_was_planted_with(signs_run: Run, neuron: int) -> None:
    words = [WORDS[token] for token in signs_run.excerpts[:, 1:].ravel()]
    classes = signs_run.signs(f"0:{neuron}")
    assert classes is not None and [each.name for each in classes] == ["++", "+-", "-+", "--"]
    acts = {word: silu(factors_of(neuron, word)[0]) * factors_of(neuron, word)[1] for word in WORDS}
    named = {}
    for word in WORDS:
        gate, up = factors_of(neuron, word)
        named[word] = ("+" if gate > 0 else "-") + ("+" if up > 0 else "-")
    for each in classes:
        own = np.array([acts[word] for word in words if named[word] == each.name])
        side = [a for a in map(acts.get, words) if (a > 0 if each.above else a < 0)]
        assert each.tokens == len(own) and each.share == len(own) / len(words)
        if len(own) and own.any():
            assert each.mean == pytest.approx(own.mean(), rel=1e-5)
            assert each.variance == pytest.approx(own.var(), rel=1e-4, abs=1e-9)
            assert each.mass == pytest.approx(own.sum() / sum(side), rel=1e-5)
            assert each.extreme == pytest.approx(max(own, key=abs), rel=1e-5)
            assert len(each.exemplars) == 5  # a quarter of the top's
        else:
            assert each.extreme == 0 and each.exemplars == [] == each.members
        for exemplar, members in zip(each.exemplars, each.members, strict=True):
            own_words = [WORDS[token] for token in exemplar.token_ids]
            assert members.tolist() == [named[word] == each.name for word in own_words]
            expected = [acts[word] for word in own_words]
            np.testing.assert_allclose(exemplar.activations, expected, rtol=1e-5, atol=1e-6)


def test_the_classes_tell_two_meanings_of_a_top_apart(signs_run: Run) -> None:
    """The top has "cat" alone, which is stronger than "dog", and says nothing of the other."""
    top = {WORDS[token] for each in signs_run.neuron("0:0").top for token in each.token_ids}
    assert "cat" in top and "dog" not in top
    classes = {each.name: each for each in signs_run.signs("0:0") or []}
    for name, word in {"++": "cat", "--": "dog", "+-": "sun", "-+": "wall"}.items():
        for exemplar, members in zip(classes[name].exemplars, classes[name].members, strict=True):
            strong = members & (np.abs(exemplar.activations) > 0.1)
            assert {WORDS[token] for token in exemplar.token_ids[strong]} == {word}
    assert [each.excerpt for each in classes["++"].exemplars] == list(range(5))
    assert [each.excerpt for each in classes["--"].exemplars] == list(range(150, 155))


def test_all_else_is_as_without(signs_run: Run, gated: Subject, corpus: Corpus, tmp_path) -> None:
    plain = fastexplain.sweep(gated, corpus, tmp_path / "run", bottom=True, batch_size=64)
    with_signs, without = (
        load_file(run.path / "layers/00.safetensors") for run in (signs_run, plain)
    )
    assert {name for name in with_signs if name not in without} == {
        f"signs.{name}" for name in ("ids", "activations", "ups", "tokens", "sums", "extremes")
    }
    for name, array in without.items():
        np.testing.assert_array_equal(array, with_signs[name], err_msg=name)
    assert plain.signs("0:0") is None and not plain.has_signs
    assert plain.manifest["settings"]["signs"] is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_signs_in_16_bits_are_those_of_each_class(dtype, corpus: Corpus, tmp_path) -> None:
    subject = planted_gates.gated_subject()
    subject = Subject.from_model(subject.model.to(dtype), subject.tokenizer, name="half")
    run = fastexplain.sweep(subject, corpus, tmp_path / "run", signs=True)
    classes = {each.name: each for each in run.signs("0:0") or []}
    assert [each.excerpt for each in classes["--"].exemplars] == list(range(150, 155))
    expected = silu(3.0) * 2.0
    assert classes["++"].extreme == pytest.approx(expected, rel=0.02)
    assert classes["++"].tokens == 150


def test_batches_do_not_matter(signs_run: Run, gated, corpus, tmp_path) -> None:
    other = fastexplain.sweep(gated, corpus, tmp_path / "run", signs=True, batch_size=37)
    for name in ("ids", "ups", "tokens"):
        ours, theirs = (run.array(0, f"signs.{name}") for run in (signs_run, other))
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    for name in ("activations", "sums", "extremes"):
        ours, theirs = (run.array(0, f"signs.{name}") for run in (signs_run, other))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_interrupted_sweep_goes_on_to_the_same_classes(signs_run, gated, corpus, tmp_path):
    def stop(done: int) -> None:
        if done >= 100:
            raise KeyboardInterrupt

    options = {"signs": True, "bottom": True, "batch_size": 64}
    with pytest.raises(KeyboardInterrupt):
        fastexplain.sweep(gated, corpus, tmp_path / "run", progress=stop, **options)
    with pytest.raises(RunError, match="other settings"):
        fastexplain.sweep(gated, corpus, tmp_path / "run", bottom=True, batch_size=64)
    done: list[int] = []
    run = fastexplain.sweep(gated, corpus, tmp_path / "run", progress=done.append, **options)
    assert done[0] > 128
    ours, whole = ((each.path / "layers/00.safetensors").read_bytes() for each in (run, signs_run))
    assert ours == whole


def test_mlps_without_a_gate_are_refused(planted_subject, planted_corpus, tmp_path) -> None:
    message = r"`signs` is for MLPs .* has others: in each layer, there is no gate; leave `signs`"
    with pytest.raises(UsageError, match=message):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", signs=True)
    assert not (tmp_path / "run").exists()


def test_layers_with_a_hook_are_named(tiny_subject: Subject, planted_corpus, tmp_path) -> None:
    for layer in (1, 2):
        mlp = tiny_subject.model.model.layers[layer].mlp
        mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match="in layers 1, 2, what is between the linear layers is"):
        fastexplain.sweep(tiny_subject, planted_corpus, tmp_path / "run", signs=True)
    run = fastexplain.sweep(
        tiny_subject, planted_corpus, tmp_path / "run", signs=True, layers=[0, 3]
    )
    assert all(run.signs(f"{layer}:5") for layer in (0, 3))


def test_signs_want_the_kernels_where_the_subject_is(gated, corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(settings, "kernel_device", lambda _: torch.device("cuda"))
    with pytest.raises(UsageError, match="`signs` is for a subject on the CPU, or on a GPU"):
        fastexplain.sweep(gated, corpus, tmp_path / "run", signs=True)


def copied(run: Run, directory: Path, change) -> Path:
    """The run with its layer's arrays changed, as a run of a version without hashes."""
    arrays = load_file(run.path / "layers/00.safetensors")
    change(arrays)
    (directory / "layers").mkdir(parents=True)
    save_file(arrays, directory / "layers/00.safetensors")
    (directory / "excerpts.safetensors").write_bytes(
        (run.path / "excerpts.safetensors").read_bytes()
    )
    manifest = {k: v for k, v in run.manifest.items() if k != "files"} | {"schema": 2}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("signs.ids", lambda a: a + 500, "signs.ids has values from"),
        ("signs.tokens", lambda a: a - 10**6, "signs.tokens has values from"),
        ("signs.tokens", lambda a: a[:3].copy(), r"signs.tokens is I64 \[3, 16\] and must be"),
        ("signs.ups", lambda a: a[..., :7].copy(), "signs.ups is U8"),
        ("signs.extremes", None, "it has no signs.extremes"),
    ],
)
def test_damaged_classes_are_named_in_one_line(signs_run, tmp_path, name, change, message) -> None:
    def damage(arrays: dict[str, np.ndarray]) -> None:
        array = arrays.pop(name)
        if change is not None:
            arrays[name] = change(array)

    run = open_run(copied(signs_run, tmp_path / "run", damage))
    with pytest.raises(RunError, match=message) as raised:
        run.signs("0:0")
    assert "\n" not in str(raised.value)
    assert any(name in line for line in damages(run))


def test_a_whole_run_has_no_damages_and_one_with_a_changed_byte_has(signs_run, tmp_path) -> None:
    assert damages(signs_run) == []
    path = shutil.copytree(signs_run.path, tmp_path / "run")
    file = path / "layers/00.safetensors"
    content = bytearray(file.read_bytes())
    place = open_run(path).file("0").arrays["signs.activations"].start
    content[place + 5] ^= 1
    file.write_bytes(content)
    [line] = damages(open_run(path))
    assert "00.safetensors is damaged" in line


def test_show_prints_the_classes_and_their_excerpts_on_request(signs_run, cli) -> None:
    code, shown, _ = cli("show", signs_run.path, "0:0")
    assert code == 0 and "By the signs of f(gate) and up" in shown and "signs ++" not in shown
    code, shown, _ = cli("show", signs_run.path, "0:0", "--signs", "--count", 2)
    assert code == 0
    dog = shown[shown.index("signs --") :]
    assert "dog" in dog and "cat" not in dog.split("Colours")[0]


def test_classes_as_json(signs_run, cli) -> None:
    code, text, _ = cli("show", signs_run.path, "0:0", "--json", "--count", 2)
    assert code == 0
    classes = json.loads(text)["signs"]
    assert [each["signs"] for each in classes] == ["++", "+-", "-+", "--"]
    assert [len(each["exemplars"]) for each in classes] == [2, 2, 2, 2]
    assert sum(each["tokens"] for each in classes) == 300 * 63


def test_show_says_where_there_are_no_classes(planted_run, cli) -> None:
    code, _, said = cli("show", planted_run.path, "0:0", "--signs")
    assert code != 0 and "has no sign classes; sweep again with --signs" in said


def test_the_command_line_sweeps_with_signs(tmp_path, cli, gated) -> None:
    gated.model.save_pretrained(tmp_path / "model")
    gated.tokenizer.save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("the cat sees the dog near the old wall " * 200)
    out = tmp_path / "run"
    code, _, said = cli("sweep", tmp_path / "model", "--corpus", text, "--out", out, "--signs")
    assert code == 0, said
    assert open_run(out).manifest["settings"]["signs"] is True
    classes = open_run(out).signs("0:0")
    assert classes is not None and classes[0].tokens > 0


def test_settings_without_signs_are_those_of_versions_before() -> None:
    """So that a sweep that one of these began goes on."""
    kept = settings.Settings([0], [8], 20, 25, False, 4, 1, 3, False)

    class Named:
        dtype, device, lead = "float32", "cpu", ()
        fingerprint, seed = "x", 0

    identity = manifest._identity("f", [], Named, Named, kept)  # type: ignore[arg-type]
    assert "signs" not in identity["settings"]
    with_signs = dataclasses.replace(kept, signs=True)
    identity = manifest._identity("f", [], Named, Named, with_signs)  # type: ignore[arg-type]
    assert identity["settings"]["signs"] is True


def test_a_model_from_disk_is_the_same(gated: Subject, tmp_path) -> None:
    gated.model.save_pretrained(tmp_path)
    gated.tokenizer.save_pretrained(tmp_path)
    assert load_subject(str(tmp_path)).why_no_factors(0) is None


def test_the_classes_are_columns_and_conditions(signs_run: Run, planted_run: Run) -> None:
    table = signs_run.table()
    for neuron in (0, 1, 2):
        classes = signs_run.signs(f"0:{neuron}") or []
        for prefix, each in zip(("pp", "pm", "mp", "mm"), classes, strict=True):
            for name in ("share", "mean", "mass", "extreme"):
                found = table[f"{prefix}_{name}"][neuron]
                np.testing.assert_equal(found, getattr(each, name))
    mixed = select_neurons(signs_run, [], where="pp_mass > 0.1 and mm_mass > 0.1")
    assert [str(each) for each in mixed] == ["0:0"]
    assert "pp_mass" not in planted_run.table().columns
    with pytest.raises(UsageError, match="there is no 'pp_mass'"):
        select_neurons(planted_run, [], where="pp_mass > 0.1")
