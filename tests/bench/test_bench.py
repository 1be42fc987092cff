"""`fastexplain bench`: the command, what it measures with, and what it measures."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastexplain import Subject
from fastexplain.bench import turns as bench
from fastexplain.bench import ways
from fastexplain.bench.geometries import GEOMETRIES, random_subject
from fastexplain.bench.machine import TOKENS, CaptureForm, first_captures, peak_memory, zipf_tokens
from fastexplain.bench.ways import Bare, Peer, Sweeper
from fastexplain.cli import main as app
from fastexplain.cli.bench_table import bench_table
from fastexplain.errors import SubjectError, UsageError
from fastexplain.sweeping.summaries import Exemplars

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch) -> None:
    """A machine that is measured in no time."""
    for name, value in (("_COPY_BYTES", 2**16), ("_MATRIX_SIDE", 512), ("_ROTATED_BYTES", 2**10)):
        monkeypatch.setattr(f"fastexplain.bench.machine.{name}", {"cpu": value})


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `fastexplain bench ARGUMENTS`; gives exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastexplain", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            app.main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run


SHORT = ("--layers", 1, "--batch-size", 2, "--batches", 1, "--device", "cpu")


@pytest.mark.scale
@pytest.mark.usefixtures("small")
def test_the_command_measures_a_cut_geometry(cli, tmp_path: Path) -> None:
    record = tmp_path / "new" / "result.json"
    code, out, err = cli(*SHORT, "--no-compile", "--json", "--out", record)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result == json.loads(record.read_text())
    assert (result["geometry"], result["layers"], result["layers_of_geometry"]) == (
        "smollm2",
        1,
        30,
    )
    assert (result["neurons"], result["dtype"], result["positions"]) == (1536, "float32", 64)
    assert set(result["ways"]) == {"trunk", "model", "peer", "floor", "sweep", "sweep_tables"}
    assert set(result["left_out"]) == {"trunk_compiled", "sweep_compiled", "sweep_compiled_tables"}
    assert result["turns"] == 3 and result["batch_size"] == 2
    for name, way in result["ways"].items():
        assert way["tokens_per_second"] > 0
        assert set(result["ratios"][name]) == {"trunk", "model", "peer", "floor"}
        assert result["ratios"][name].get(name, 1) == 1
    assert set(result["capture"]) == {"plain", "fused"}
    # 20 exemplars of 64 float32 values and their share of the rest.
    assert 20 * 64 * 4 < result["on_disk"] < 2.8 * 20 * 64 * 4
    kept = {name: way["kept_bytes"] for name, way in result["ways"].items()}
    assert kept["trunk"] == kept["model"] == 0 < kept["peer"] < kept["sweep"]
    assert kept["sweep_tables"] - kept["sweep"] <= result["tables_bytes"] == 2**30 // 30
    assert "only 1 of 30 layers" in out and "412 tokens/s" in out and "25 TB" in out


@pytest.mark.scale
@pytest.mark.usefixtures("small")
def test_compiled_layers_are_measured_beside_the_others() -> None:
    """Two layers of the smallest shape: the highest one never runs compiled."""
    reported: list[str] = []
    result = bench.measure(
        random_subject("smollm2", layers=2, device="cpu"),
        batch_size=1,
        batches=1,
        report=reported.append,
    )
    assert list(result["ways"]) == list(ways.WAYS) and not result["left_out"]
    assert set(result["ratios"]["sweep_compiled"]) == set(ways.REFERENCES)
    assert reported[0] == "Measuring the machine" and "Turn 1 of 3" in reported
    assert [column.header for column in bench_table(result).columns][1] == "tokens/s"


@pytest.mark.scale
@pytest.mark.usefixtures("small")
def test_what_can_not_be_compiled_is_left_out_with_the_reason(monkeypatch) -> None:
    def compile(*_: object, **__: object) -> Callable[..., object]:
        def fails(*_: object, **__: object) -> None:
            raise SubjectError("there is no C++ compiler")

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    subject = random_subject("gpt2", layers=2, device="cpu")
    result = bench.measure(subject, batch_size=1, batches=1)
    assert set(result["left_out"].values()) == {"there is no C++ compiler"}
    assert len(result["left_out"]) == 3 and "sweep" in result["ways"]


@pytest.mark.scale
@pytest.mark.usefixtures("small")
def test_a_way_that_fails_later_costs_the_others_nothing(monkeypatch) -> None:
    """Whoever stops it after a turn has that turn."""
    steps, saved, fails_after = [], [], 4

    def step(self: Peer) -> None:
        steps.append(self)
        if len(steps) > fails_after:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(Peer, "step", step)
    monkeypatch.setattr(Peer, "kept_bytes", 0)
    subject = random_subject("gpt2", layers=1, device="cpu")
    result = bench.measure(subject, batch_size=1, batches=4, compile="off", save=saved.append)
    assert result["left_out"]["peer"] == "out of memory" and "peer" not in result["ways"]
    assert [one["turns"] for one in saved] == [0, 1, 2, 3, 4] and saved[-1] == result
    assert saved[0]["capture"] and "peer" in saved[1]["ways"]
    assert set(result["ratios"]["sweep"]) == {"trunk", "model", "floor"}
    steps.clear()
    fails_after = 1  # while memory is looked at
    result = bench.measure(subject, batch_size=1, batches=1, compile="off")
    assert result["left_out"]["peer"] == "out of memory" and "sweep" in result["ways"]
    monkeypatch.setattr(Bare, "step", step)
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.measure(subject, batch_size=1, batches=4, compile="off")


@pytest.mark.usefixtures("small")
def test_the_first_captures_are_of_a_sweep_that_has_no_exemplars(monkeypatch) -> None:
    form = CaptureForm(3, 5, torch.float32, CPU, lead=1, nonlinearity="silu", gated=True)
    assert form.bytes == 3 * 65 * 5 * 3 * 4
    kept: list[Exemplars] = []
    make = CaptureForm.exemplars
    monkeypatch.setattr(
        CaptureForm, "exemplars", lambda self, *given: kept.append(make(self, *given)) or kept[-1]
    )
    assert len(first_captures(form, batches=2, repeats=2)) == 2
    assert len(kept) == 3 and (kept[0].summary().histogram.sum(1) == 6).all()
    assert [(each.summary().top_ids < 6).sum(1).tolist() for each in kept] == [
        [6] * 5,
        *[[0] * 5] * 2,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--geometry", "gpt5"], "there is no geometry 'gpt5'; choose one of smollm2, llama-8b"),
        (["--layers", "31"], "smollm2 can't be cut to 31 layers; choose 1 to 30"),
        (["--layers", "0"], "smollm2 can't be cut to 0 layers; choose 1 to 30"),
        (["--device", "tpu"], "'tpu' is not a device; choose one of cpu, cuda, mps"),
        (["--dtype", "int8"], "'int8' is not a dtype; choose one of float32"),
        (["--layers", "1", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--layers", "1", "--batches", "0"], "--batches is 0; it must be at least 1"),
    ],
)
def test_errors_are_one_line(cli, arguments: list[str], message: str) -> None:
    code, out, err = cli(*arguments)
    assert code == 2 and not out
    assert err.startswith(f"fastexplain: {message}") and err.count("\n") == 1


@pytest.mark.usefixtures("small")
def test_a_file_that_can_not_be_written_is_named(cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = cli(*SHORT, "--no-compile", "--out", tmp_path / "file" / "result.json")
    assert code == 1 and "result.json can't be written" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries_have_the_parameters_of_the_real_models(name: str) -> None:
    parameters = {
        "smollm2": 134_515_008,
        "llama-8b": 8_030_261_248,
        "gpt2": 124_439_808,
        "gpt2-xl": 1_557_611_200,
        "pythia-1b": 1_011_781_632,
        "gemma-2b": 2_506_172_416,
        "qwen2.5-7b": 7_615_616_512,
        "phi-3-mini": 3_821_079_552,
    }
    with torch.device("meta"):
        model = GEOMETRIES[name].model(GEOMETRIES[name].layers, torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters[name]


def test_a_random_subject_is_seeded_and_its_activations_are_spread() -> None:
    subjects = [random_subject("gpt2", layers=1, device="cpu", seed=seed) for seed in (0, 0, 1)]
    prints = [subject.fingerprint() for subject in subjects]
    assert prints[0] == prints[1] != prints[2]
    seen: list[torch.Tensor] = []
    tokens = torch.from_numpy(zipf_tokens(2, subjects[0].vocabulary_size, seed=0))
    subjects[0].trunk(tokens, lambda layer, acts: seen.append(acts.clone()))
    assert seen[0].isfinite().all() and 0.05 < seen[0].std() < 10


@pytest.mark.scale
@pytest.mark.usefixtures("small")
def test_where_the_real_model_has_a_bos_every_way_runs_it_too(monkeypatch) -> None:
    with_bos = dataclasses.replace(GEOMETRIES["gpt2"], bos=7)
    monkeypatch.setitem(GEOMETRIES, "gpt2", with_bos)
    subject = random_subject("gpt2", layers=1, device="cpu")
    lengths: set[int] = set()
    hook = subject.model.transformer.register_forward_pre_hook(
        lambda _, args, given: lengths.add((*args, given.get("input_ids"))[0].shape[1]),
        with_kwargs=True,
    )
    result = bench.measure(subject, batch_size=1, batches=1, compile="off")
    hook.remove()
    assert lengths == {65} and result["positions"] == 65


def test_tokens_are_drawn_as_a_text_has_them() -> None:
    tokens = zipf_tokens(500, 10_000, seed=0)
    assert tokens.shape == (500, TOKENS) and tokens.dtype == np.int32
    assert (tokens == zipf_tokens(500, 10_000, seed=0)).all()
    counts = np.bincount(tokens.ravel(), minlength=10_000)
    assert len(counts) == 10_000 and counts.argmax() < 10 and counts.max() > 0.02 * tokens.size
    _, repeats = np.unique(tokens[:, :-1] * 10_000 + tokens[:, 1:], return_counts=True)
    assert repeats[repeats > 1].sum() > 0.3 * repeats.sum()


def test_the_common_way_and_the_sweep_keep_the_same_exemplars(tiny_subject: Subject) -> None:
    """Of the two, neither is let off any of the work."""
    tokens = zipf_tokens(48, tiny_subject.vocabulary_size, seed=0)
    sweeper = Sweeper(tiny_subject, tokens, batch_size=16, table_bytes=0)
    peer = Peer(tiny_subject, tokens, batch_size=16)
    for way in (sweeper, peer):
        for _ in range(3):
            way.step()
    values, acts = peer._kept[0]
    found = sweeper.layer_file()
    keys = found["top.activations"][:, :, 1:].max(-1)
    np.testing.assert_allclose(keys.T, values.numpy(), rtol=1e-4, atol=1e-6)
    assert acts.shape == (20, 48, 64)


def test_the_bare_way_is_the_models_own_forward(tiny_subject: Subject) -> None:
    tokens = zipf_tokens(4, tiny_subject.vocabulary_size, seed=0)
    seen: list[dict] = []
    way = Bare(tiny_subject, tokens, lambda **given: seen.append(given), batch_size=2)
    way.step()
    assert seen[0]["use_cache"] is False
    np.testing.assert_array_equal(seen[0]["input_ids"].numpy(), tokens[:2])


def test_the_floor_counts_linear_layers_but_the_last_down_projection() -> None:
    subject = random_subject("smollm2", layers=2, device="cpu")
    d, wide, keys = 576, 1536, 192
    layer = 2 * d * d + 2 * d * keys + 3 * d * wide
    assert ways.floor_operations(subject) == 64 * 2 * (2 * layer - d * wide)
    operations = 20.6 * ways.MatrixProduct(CPU, torch.float32).operations
    assert ways.Floor(subject, operations).share == pytest.approx(20.6 / 21)


def test_peak_memory_sees_what_a_step_takes_and_gives_back() -> None:
    found = peak_memory(lambda: torch.ones(50_000_000), CPU)
    assert found is None or 190e6 < found < 260e6


def test_a_batch_has_at_least_one_excerpt(tiny_subject: Subject) -> None:
    with pytest.raises(UsageError, match="`batch_size` is 0"):
        bench.measure(tiny_subject, batch_size=0)
