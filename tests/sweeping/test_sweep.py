"""The sweep, from text to a run, on a planted subject and on a real one."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch._dynamo.utils import counters

import fastexplain
from fastexplain import Corpus, Subject, load_subject, open_run
from fastexplain.errors import RunError, SubjectError, SweepError, UsageError
from fastexplain.explainers.lookup import explain_by_lookup
from fastexplain.kernels import capture, reference
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.summary import (
    KEPT_A_BIN,
    Batch,
    Preactivations,
    Summary,
    smallest_hashes,
)
from fastexplain.run.pieces import hash_of, hashes_of
from fastexplain.run.sealed import sealed, unsealed
from fastexplain.run.tables import Tables
from fastexplain.run.writing import RunWriter
from fastexplain.sweeping import batch_size, loop, manifest, settings
from fastexplain.sweeping.summaries import Exemplars, kernel_dtype

ROOT = Path(__file__).resolve().parents[2]


def words_of(exemplar) -> list[str]:
    return [planted.WORDS[token] for token in exemplar.token_ids]


@pytest.mark.parametrize(
    ("neuron", "fires"),
    [
        (planted.CAT, lambda previous, word: word == "cat"),
        (planted.DIGIT, lambda previous, word: word.isdigit()),
        (planted.MOON_AFTER_BRIGHT, lambda previous, word: (previous, word) == ("bright", "moon")),
        (planted.RIVER_OR_STONE, lambda previous, word: word in ("river", "stone")),
        (planted.RARE, lambda previous, word: word == "rare"),
    ],
)
def test_exemplars_fire_where_the_neuron_was_planted_and_nowhere_else(
    planted_run, neuron, fires
) -> None:
    record = planted_run.neuron(f"0:{neuron}")
    for exemplar in [*record.top, *record.random]:
        words = words_of(exemplar)
        expected = [fires(words[max(t - 1, 0)], words[t]) for t in range(1, 64)]
        assert (exemplar.activations[1:] > 1).tolist() == expected
        assert (exemplar.activations[1:] > 0).tolist() == expected


def test_the_rare_neuron_finds_exactly_the_excerpts_with_its_word(planted_run) -> None:
    record = planted_run.neuron(f"0:{planted.RARE}")
    strong = {e.excerpt for e in record.top if e.activations[record.skip :].max() > 0}
    assert strong == set(range(0, 400, 50))
    assert [e.excerpt for e in record.top[8:]] == [e for e in range(400) if e % 50][:12]


def test_equal_activations_rank_by_lower_excerpt_id(planted_run) -> None:
    for neuron in (planted.ALWAYS, planted.NEVER):
        assert [e.excerpt for e in planted_run.neuron(f"0:{neuron}").top] == list(range(20))


def test_statistics_are_those_of_all_counted_tokens(
    planted_run, planted_subject, planted_corpus
) -> None:
    seen: list[np.ndarray] = []
    planted_subject.trunk(
        torch.from_numpy(np.array(planted_corpus.tokens)), lambda _, acts: seen.append(acts.numpy())
    )
    acts = seen[0][:, 1:].astype(np.float64)
    for neuron in (planted.CAT, planted.DIGIT, planted.RARE):
        own, found = acts[..., neuron].ravel(), planted_run.neuron(f"0:{neuron}").statistics
        centred = own - own.mean()
        assert found.count == own.size
        assert found.mean == pytest.approx(own.mean())
        assert found.variance == pytest.approx(own.var())
        assert found.skewness == pytest.approx((centred**3).mean() / own.std() ** 3)
        assert found.kurtosis == pytest.approx((centred**4).mean() / own.std() ** 4)
        assert found.fraction_positive == (own > 0).mean()
        assert found.mean_positive == pytest.approx(np.maximum(own, 0).mean())
        assert (found.minimum, found.maximum) == (own.min(), own.max())
        largest = acts[..., neuron].max(axis=1)
        places = np.searchsorted(found.histogram_edges, largest, side="right")
        assert found.histogram.tolist() == np.bincount(places, minlength=96).tolist()
        for place, kept in enumerate(found.histogram_excerpts):
            members = np.flatnonzero(places == place).astype(np.int32)
            first = smallest_hashes(members, KEPT_A_BIN, planted_corpus.seed)
            np.testing.assert_array_equal(kept, np.where(first == NO_ID, -1, first))
    never = planted_run.neuron(f"0:{planted.NEVER}").statistics
    assert never.variance == 0 and np.isnan(never.skewness) and np.isnan(never.kurtosis)


def test_tables_hold_each_words_sum(planted_run) -> None:
    tables, sums = planted_run.tables, planted_run.array(0, "tables.tokens")
    corpus = planted_run.excerpts[:, 1:]
    for row, (token, count) in enumerate(zip(tables.tokens, tables.token_counts, strict=True)):
        assert count == (corpus == token).sum()
        strength = sums[row, planted.CAT] / count
        assert (strength > 1) == (planted.WORDS[token] == "cat")
    bright, moon = planted.WORDS.index("bright"), planted.WORDS.index("moon")
    row = tables.pairs.tolist().index([bright, moon])
    pairs = planted_run.array(0, "tables.pairs")[:, planted.MOON_AFTER_BRIGHT]
    assert pairs[row] > 1 and (np.delete(pairs, row) == 0).all()


def bits_of(acts: torch.Tensor) -> np.ndarray:
    return (acts.view(torch.uint16) if acts.dtype == torch.bfloat16 else acts).numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sweep_equals_the_reference(dtype, planted_run, planted_corpus, tmp_path) -> None:
    """Ids exactly and activations to the last bit, also in 16 bits, with the negative side."""
    source = planted_run.manifest["subject"]["name"]
    subject = load_subject(source, dtype=dtype)
    run = fastexplain.sweep(
        subject, planted_corpus, tmp_path / "run", bottom=True, top_k=7, random=3, batch_size=96
    )
    width, tables = subject.widths[0], run.tables
    random_ids = smallest_hashes(np.arange(400, dtype=np.int32), 3, 0)
    summary = Summary.empty(
        width, 64, kernel_dtype(subject.dtype), top=7, bottom=7, random_ids=random_ids,
        table_rows=tables.size, seed=0,
    )  # fmt: skip
    for start in range(0, 400, 96):  # as large as the sweep's: float32 matmuls depend on the shape
        token_ids = np.array(planted_corpus.tokens[start : start + 96])
        ids = np.arange(start, start + len(token_ids), dtype=np.int32)
        batch = Batch.make(
            ids, *tables.rows(token_ids), skip=1, random_ids=random_ids, table_rows=tables.size
        )

        def fold(
            _: int, acts: torch.Tensor, pre: Preactivations | None, batch: Batch = batch
        ) -> None:
            assert pre is not None and pre.nonlinearity == "relu"  # exact in any precision
            pre = pre._replace(gate=bits_of(pre.gate))
            reference.capture(bits_of(acts), batch, summary, pre)

        subject.trunk(torch.from_numpy(token_ids), fold=fold)
    for end in ("top", "bottom"):
        keys, ids = getattr(summary, f"{end}_keys"), getattr(summary, f"{end}_ids")
        order = np.lexsort((ids, -keys), axis=1)
        assert (run.array(0, f"{end}.ids") == np.take_along_axis(ids, order, 1)).all()
        acts = np.take_along_axis(getattr(summary, f"{end}_acts"), order[..., None], 1)
        assert (run.array(0, f"{end}.activations") == acts).all()
    assert (run.array(0, "random.ids") == random_ids).all()
    assert (run.array(0, "random.activations") == summary.random_acts).all()
    np.testing.assert_allclose(run.array(0, "sums"), summary.sums, rtol=1e-9)
    record = run.neuron("0:3")
    assert len(record.bottom) == 7 and len(record.random) == 3
    assert record.bottom[0].activations.dtype == np.float32


@pytest.mark.scale
def test_top_excerpts_are_those_of_plain_transformers(smollm2, stdlib_run) -> None:
    """50 random neurons of SmolLM2 on 200 excerpts, recomputed with nothing of ours."""
    token_ids = np.array(stdlib_run.excerpts, dtype=np.int64)
    rng = np.random.default_rng(0)
    chosen = {(int(rng.integers(30)), int(rng.integers(1536))) for _ in range(50)}
    largest: dict[tuple[int, int], list[float]] = {neuron: [] for neuron in chosen}

    def remember(layer: int):
        def hook(_module, inputs) -> None:
            maxima = inputs[0][:, 1:].amax(dim=1)
            for neuron in chosen:
                if neuron[0] == layer:
                    largest[neuron] += maxima[:, neuron[1]].tolist()

        return hook

    layers = smollm2.model.model.layers
    hooks = [
        layers[layer].mlp.down_proj.register_forward_pre_hook(remember(layer))
        for layer in range(30)
    ]
    with torch.no_grad():
        for start in range(0, 200, 50):
            smollm2.model.model(input_ids=torch.from_numpy(token_ids[start : start + 50]))
    for hook in hooks:
        hook.remove()
    for layer, index in chosen:
        values = np.array(largest[layer, index])
        record = stdlib_run.neuron(f"{layer}:{index}")
        ids = [e.excerpt for e in record.top]
        # In order but for ties to rounding, which oneDNN and MKL may break either way.
        assert len(set(ids)) == 20
        np.testing.assert_allclose(values[ids], np.sort(values)[:-21:-1], rtol=1e-4)
        for exemplar in record.top:
            assert exemplar.activations[1:].max() == pytest.approx(
                values[exemplar.excerpt], rel=1e-4
            )


@pytest.mark.scale
def test_run_shows_the_text_of_its_excerpts(stdlib_run, smollm2) -> None:
    for exemplar in stdlib_run.neuron("3:17").top:
        text = smollm2.tokenizer.decode(exemplar.token_ids)
        # A character may be split over tokens, none of which can show it.
        assert "".join(exemplar.tokens) == text or not text.isascii()


@pytest.mark.scale
def test_manifest_tells_what_was_swept(stdlib_run) -> None:
    manifest = json.loads((stdlib_run.path / "manifest.json").read_text())
    assert manifest["subject"]["name"] == "smollm2"
    assert manifest["subject"]["dtype"] == "float32"
    assert manifest["sweep"]["neurons"] == 46_080
    assert manifest["sweep"]["tokens"] == 200 * 64
    assert manifest["sweep"]["tokens_per_second"] == pytest.approx(
        manifest["sweep"]["tokens"] / manifest["sweep"]["seconds"]
    )
    assert manifest["corpus"]["sources"] == ["stdlib"]
    assert {"fastexplain", "torch", "transformers", "numba"} <= set(manifest["versions"])


def test_our_own_version_is_known_where_it_was_never_installed(monkeypatch) -> None:
    version = importlib.metadata.version

    def installed(name: str) -> str:
        if name == "fastexplain":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    versions = manifest._versions()
    assert versions["fastexplain"] == fastexplain.__version__


def test_a_layer_subset_leaves_the_others_out(tiny_subject, planted_corpus, tmp_path) -> None:
    run = fastexplain.sweep(tiny_subject, planted_corpus, tmp_path / "run", layers=[3, 1])
    assert run.layers == [1, 3] and run.manifest["sweep"]["neurons"] == 96
    assert [layer[0].neuron.layer for layer in explain_by_lookup(run)] == [1, 3]
    assert len(run.neuron("3:7").top) == 20
    with pytest.raises(UsageError, match="has layers 1, 3"):
        run.neuron("2:7")


def test_a_layer_that_is_not_there_is_refused(planted_subject, planted_corpus, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"layer 1 is not there; .* has layers 0 to 0"):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "a", layers=[1])
    assert not (tmp_path / "a").exists()


def test_neurons_that_are_not_there_are_named(planted_run) -> None:
    with pytest.raises(UsageError, match="layer 3 was not swept"):
        planted_run.neuron("3:1")
    with pytest.raises(UsageError, match="0:0 to 0:119"):
        planted_run.neuron("0:120")
    with pytest.raises(UsageError, match="layer:index"):
        planted_run.neuron("cat")


def test_a_bos_token_goes_before_every_excerpt_and_counts_for_nothing(
    make_model, make_tokenizer, planted_corpus, tmp_path
) -> None:
    subject = Subject.from_model(make_model(), make_tokenizer(bos=True, prepend=True), name="bos")
    run = fastexplain.sweep(subject, planted_corpus, tmp_path / "run", batch_size=400)
    assert run.skip == 0 and run.sites["2"].counted_tokens == 400 * 64
    with_bos = np.pad(
        np.array(planted_corpus.tokens), ((0, 0), (1, 0)), constant_values=subject.lead[0]
    )
    seen: dict[int, np.ndarray] = {}
    plain = Subject.from_model(subject.model, make_tokenizer(), name="plain")
    plain.trunk(torch.from_numpy(with_bos), lambda layer, acts: seen.update({layer: acts.numpy()}))
    acts = seen[2][:, 1:, 5]
    top = run.neuron("2:5").top
    assert [e.excerpt for e in top] == np.argsort(-acts.max(axis=1), kind="stable")[:20].tolist()
    for exemplar in top:  # products of 48 weights, added in another order, and silu to 2 ulp
        np.testing.assert_allclose(
            exemplar.activations, acts[exemplar.excerpt], rtol=2e-6, atol=2e-6 * abs(acts).max()
        )


def test_nearly_constant_neurons_have_no_higher_moments(tmp_path) -> None:
    """Raw power sums can't tell them; a kurtosis below 1 would be no kurtosis."""
    rng = np.random.default_rng(0)
    counted = np.stack([np.full(6300, 0.1), 10 + 0.001 * rng.standard_normal(6300),
                        10 + rng.standard_normal(6300)], axis=1).astype(np.float32)  # fmt: skip
    acts = np.concatenate([np.zeros((100, 1, 3), np.float32), counted.reshape(100, 63, 3)], axis=1)
    summary = Summary.empty(
        3, 64, np.dtype(np.float32), top=1, bottom=0, random_ids=np.zeros(0, np.int32),
        table_rows=(0, 0, 0), seed=0,
    )  # fmt: skip
    rows = np.full((100, 64), -1, np.int32)
    ids = np.arange(100, dtype=np.int32)
    batch = Batch.make(
        ids, rows, rows, rows, skip=1, random_ids=summary.random_ids, table_rows=(0, 0, 0)
    )
    capture(acts, batch, summary)
    corpus = Corpus.from_excerpts(rows + 1)
    writer = RunWriter(tmp_path / "run")
    writer.write_excerpts(corpus, Tables.choose(corpus.tokens, skip=1, rows=0), [b"a"])
    writer.write_site("0", Exemplars(summary, torch.device("cpu")).finalize(0))
    writer.write_manifest(
        {
            "subject": {"name": "none"},
            "settings": {"skip": 1, "table_rows": 0},
            "sweep": {
                "neurons": 3, "tokens": 6400, "excerpts": 100, "seconds": 1, "tokens_per_second": 1
            },
            "sites": [{"name": "0", "kind": "mlp", "units": 3, "counted_tokens": 6300}],
        }
    )  # fmt: skip
    writer.close()
    constant, near, wide = (
        open_run(tmp_path / "run").neuron(f"0:{n}").statistics for n in range(3)
    )
    assert constant.variance == 0 and np.isnan(constant.kurtosis)
    assert near.variance == pytest.approx(1e-6, rel=0.1) and np.isnan(near.kurtosis)
    assert wide.kurtosis == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("top_k", 0),
        ("random", -1),
        ("batch_size", 0),
        ("table_bytes", -1),
        ("skip", 64),
        ("top_k", 2**70),
        ("random", 2**70),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    planted_subject, planted_corpus, tmp_path, option, value
) -> None:
    with pytest.raises(UsageError, match=f"`{option}` is {value}"):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", **{option: value})


def test_a_corpus_of_another_tokenizer_is_refused(planted_subject, tmp_path) -> None:
    for token in (1000, -1):
        corpus = Corpus.from_excerpts(np.full((2, 64), token, np.int32))
        with pytest.raises(UsageError, match="own tokenizer"):
            fastexplain.sweep(planted_subject, corpus, tmp_path / "run")


def test_a_token_that_the_tokenizer_lacks_is_shown_as_its_number(planted_run) -> None:
    assert planted_run.token_text(planted.TOKENS - 1) == "bird"
    assert planted_run.token_text(planted.TOKENS) == f"<token {planted.TOKENS}>"


def test_activations_that_are_not_finite_stop_the_sweep(planted_run, planted_corpus, tmp_path):
    subject = load_subject(planted_run.manifest["subject"]["name"])
    subject.model.transformer.wte.weight.data[planted.WORDS.index("rare")] = float("nan")
    with pytest.raises(SweepError, match=r"layer 0 .* excerpt 0"):
        fastexplain.sweep(subject, planted_corpus, tmp_path / "run")
    with pytest.raises(RunError, match="not a finished run"):
        open_run(tmp_path / "run")


def _interrupted_at(excerpts: int):
    def progress(done: int) -> None:
        if done >= excerpts:
            raise KeyboardInterrupt

    return progress


def _files(run: fastexplain.Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.rglob("*.safetensors")}


def test_an_interrupted_sweep_goes_on_to_the_same_result(
    planted_subject, planted_corpus, tmp_path
) -> None:
    whole = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "whole", batch_size=48)
    options = {"batch_size": 48, "checkpoint_seconds": 0}
    for excerpts in (100, 250):
        with pytest.raises(KeyboardInterrupt):
            fastexplain.sweep(
                planted_subject, planted_corpus, tmp_path / "run",
                progress=_interrupted_at(excerpts), **options,
            )  # fmt: skip
        names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
        assert names == {"lock", str(-(-excerpts // 48) * 48)}
    done: list[int] = []
    run = fastexplain.sweep(
        planted_subject, planted_corpus, tmp_path / "run", progress=done.append, **options
    )
    assert done[0] == 288 + 48
    assert _files(run) == _files(whole)
    assert not (run.path / "checkpoints").exists()


def test_a_sweep_that_a_version_before_began_goes_on_with_one_excerpt_a_bin(
    planted_subject, planted_corpus, planted_run, tmp_path
) -> None:
    arguments = planted_subject, planted_corpus, tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fastexplain.sweep(*arguments, progress=_interrupted_at(100), batch_size=48)
    [file] = (tmp_path / "run").rglob("00.safetensors")
    arrays = load_file(file)
    arrays["histogram_ids"] = arrays["histogram_ids"][0].copy()
    save_file(arrays, file)
    state = file.with_name("state.json")
    written, _ = unsealed(state.read_bytes())
    written["files"][file.name] = hash_of(hashes_of(file))
    state.write_bytes(sealed(written))
    run = fastexplain.sweep(*arguments)
    expected = planted_run.array(0, "histogram.excerpts")[..., :1]
    np.testing.assert_array_equal(run.array(0, "histogram.excerpts"), expected)
    np.testing.assert_array_equal(run.array(0, "top.ids"), planted_run.array(0, "top.ids"))


@pytest.mark.parametrize("table_bytes", [0, 2**20])
def test_a_sweep_that_a_version_without_triples_began_goes_on_if_it_has_no_tables(
    planted_subject, planted_corpus, planted_run, tmp_path, table_bytes: int
) -> None:
    arguments = planted_subject, planted_corpus, tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fastexplain.sweep(
            *arguments, progress=_interrupted_at(100), batch_size=48, table_bytes=table_bytes
        )
    [file] = (tmp_path / "run").rglob("00.safetensors")
    arrays = load_file(file)
    del arrays["triple_sums"]
    save_file(arrays, file)
    state = file.with_name("state.json")
    written, _ = unsealed(state.read_bytes())
    written["files"][file.name] = hash_of(hashes_of(file))
    state.write_bytes(sealed(written))
    if table_bytes:
        with pytest.raises(
            RunError, match="of a version whose tables had no triples\\); remove it"
        ):
            fastexplain.sweep(*arguments, table_bytes=table_bytes)
        return
    run = fastexplain.sweep(*arguments, table_bytes=table_bytes)
    np.testing.assert_array_equal(run.array(0, "top.ids"), planted_run.array(0, "top.ids"))


def test_a_sweep_goes_on_with_its_own_batch_size(
    planted_subject, planted_corpus, tmp_path, monkeypatch
) -> None:
    """Whatever memory is free by then; only a size that is asked for is another sweep's."""
    arguments = planted_subject, planted_corpus, tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fastexplain.sweep(*arguments, progress=_interrupted_at(1), batch_size=48)
    with pytest.raises(RunError, match="unfinished sweep with other settings"):
        fastexplain.sweep(*arguments, batch_size=47)
    monkeypatch.setattr(batch_size, "_free_bytes", lambda device: 0)
    done: list[int] = []
    run = fastexplain.sweep(*arguments, progress=done.append)
    assert done[:2] == [96, 144]
    assert run.manifest["settings"]["batch_size"] == 48


@pytest.mark.scale
def test_memory_does_not_grow_with_the_corpus(tiny_subject, planted_corpus, tmp_path) -> None:
    sizes: dict[int, int] = {}

    def measure(done: int) -> None:
        batch = done // 4
        if batch == 10:
            tracemalloc.start()
        # What is made anew in each batch takes other places at first: some 40 KB in 50 batches.
        if batch in (60, 100):
            gc.collect()
            ours = [
                tracemalloc.Filter(True, f"{ROOT}/{name}/*") for name in ("fastexplain", "kernels")
            ]
            traces = tracemalloc.take_snapshot().filter_traces(ours).traces
            sizes[batch] = sum(trace.size for trace in traces)

    try:
        fastexplain.sweep(tiny_subject, planted_corpus, tmp_path / "run", batch_size=4,
                          progress=measure)  # fmt: skip
    finally:
        tracemalloc.stop()
    # Were a batch's token ids kept, it would be 1 KB a batch.
    assert sizes[100] - sizes[60] < 40 * 4 * 64 * 4


def test_compiled_layers_sweep_to_the_same_result(tiny_subject, planted_corpus, tmp_path) -> None:
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = (
        fastexplain.sweep(
            tiny_subject, planted_corpus, tmp_path / str(compile), batch_size=96, compile=compile
        )
        for compile in (False, True)
    )
    # One for all layers; the last batch, of 16 excerpts, runs as it is.
    assert counters["stats"]["unique_graphs"] == 1
    assert compiled.manifest["settings"]["compile"] is True
    for layer in range(4):
        random, top, ids = (
            [run.array(layer, name) for run in (compiled, plain)]
            for name in ("random.activations", "top.activations", "top.ids")
        )
        np.testing.assert_allclose(*random, rtol=1e-5, atol=1e-6)
        # Rank by rank; two that are even but for rounding may change places.
        largest = [acts[:, :, 1:].max(axis=2) for acts in top]
        np.testing.assert_allclose(*largest, rtol=1e-5, atol=1e-6)
        assert (ids[0] == ids[1]).mean() > 0.95


def test_a_compiled_sweep_is_another_sweep(planted_subject, planted_corpus, tmp_path) -> None:
    arguments = planted_subject, planted_corpus, tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fastexplain.sweep(*arguments, progress=_interrupted_at(1), batch_size=48)
    with pytest.raises(RunError, match="unfinished sweep with other settings"):
        fastexplain.sweep(*arguments, compile=True)


def test_kernels_on_the_cpu_take_activations_from_any_device(
    planted_subject, planted_corpus, planted_run, tmp_path, monkeypatch
) -> None:
    """As with a subject on mps: nothing is fused, and compile is refused."""
    for module in (loop, settings):
        monkeypatch.setattr(module, "fuses", lambda subject: False)
    with pytest.raises(UsageError, match="`compile` is for a subject on the CPU, or on a GPU that"):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "a", compile=True)
    run = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", batch_size=48)
    assert (run.array(0, "top.ids") == planted_run.array(0, "top.ids")).all()


def test_a_checkpoint_of_another_sweep_is_refused(
    planted_subject, planted_corpus, tmp_path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fastexplain.sweep(
            planted_subject, planted_corpus, tmp_path / "run",
            progress=_interrupted_at(1), checkpoint_seconds=0,
        )  # fmt: skip
    with pytest.raises(RunError, match="unfinished sweep with other settings"):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", top_k=3)
    subject = load_subject(planted_subject.name)
    subject.model.transformer.h[0].mlp.c_fc.weight.data *= 3
    with pytest.raises(RunError, match="other settings"):
        fastexplain.sweep(subject, planted_corpus, tmp_path / "run")
    [state] = tmp_path.rglob("state.json")
    state.write_text("{")
    with pytest.raises(RunError, match=r"can't be used .* remove it"):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run")


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_sweep(
    planted_subject, planted_corpus, tmp_path
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "384.tmp").write_text("in the way")
    with pytest.warns(UserWarning, match=r"can't write a checkpoint .* the sweep goes on"):
        run = fastexplain.sweep(
            planted_subject, planted_corpus, tmp_path / "run", checkpoint_seconds=0, batch_size=48
        )
    assert len(run.neuron("0:0").top) == 20


def test_what_a_killed_write_leaves_is_no_obstacle(
    planted_subject, planted_corpus, tmp_path
) -> None:
    (tmp_path / "layers").mkdir()
    (tmp_path / "excerpts.safetensors.tmp").write_bytes(b"half")
    fastexplain.sweep(planted_subject, planted_corpus, tmp_path)


def test_fewer_excerpts_than_exemplars(planted_subject, planted_corpus, tmp_path) -> None:
    few = Corpus.from_excerpts(np.array(planted_corpus.tokens[:5]))
    run = fastexplain.sweep(planted_subject, few, tmp_path / "run", table_bytes=0)
    record = run.neuron(f"0:{planted.CAT}")
    assert sorted(e.excerpt for e in record.top) == list(range(5))
    assert sorted(e.excerpt for e in record.random) == list(range(5))
    assert record.bottom == []


def test_what_is_there_is_not_overwritten(planted_subject, planted_corpus, planted_run, tmp_path):
    with pytest.raises(RunError, match="holds a run already"):
        fastexplain.sweep(planted_subject, planted_corpus, planted_run.path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path)
    with pytest.raises(RunError, match="can't write a run"):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "notes.txt" / "run")


def test_damaged_runs_are_refused(planted_run, tmp_path) -> None:
    with pytest.raises(RunError, match="not a finished run"):
        open_run(tmp_path)
    manifest = {**planted_run.manifest, "schema": 99}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="schema 99"):
        open_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="can't be used"):
        open_run(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(planted_run.manifest))
    with pytest.raises(RunError, match="its hash is missing"):
        open_run(tmp_path)
    shutil.copy(planted_run.path / "manifest.json", tmp_path)
    with pytest.raises(RunError, match=r"hashes\.safetensors is missing or damaged"):
        open_run(tmp_path).neuron("0:0")
    shutil.copy(planted_run.path / "hashes.safetensors", tmp_path)
    with pytest.raises(RunError, match=r"\.safetensors is missing"):
        open_run(tmp_path).neuron("0:0")


def test_tables_choose_the_most_frequent_and_nothing_that_occurs_once() -> None:
    token_ids = np.array([[5, 1, 2, 1, 2], [5, 1, 2, 3, 3]], np.int32)
    tables = Tables.choose(token_ids, skip=1, rows=100)
    assert tables.tokens.tolist() == [1, 2, 3]
    assert tables.token_counts.tolist() == [3, 3, 2]
    assert tables.pairs.tolist() == [[1, 2], [5, 1]]
    assert tables.pair_counts.tolist() == [3, 2]
    # Of the three [1, 2] two come after 5.
    assert tables.triples.tolist() == [[5, 1, 2]]
    assert tables.triple_counts.tolist() == [2]
    token_rows, pair_rows, triple_rows = tables.rows(token_ids)
    assert token_rows.tolist() == [[-1, 0, 1, 0, 1], [-1, 0, 1, 2, 2]]
    assert pair_rows.tolist() == [[-1, 1, 0, -1, 0], [-1, 1, 0, -1, -1]]
    assert triple_rows.tolist() == [[-1, -1, 0, -1, -1], [-1, -1, 0, -1, -1]]


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 120])
def test_tables_keep_to_their_memory(rows: int) -> None:
    token_ids = np.random.default_rng(0).integers(0, 9, (30, 64)).astype(np.int32)
    tables = Tables.choose(token_ids, skip=1, rows=rows)
    assert sum(tables.size) == rows
    assert len(tables.tokens) == min(9, rows - rows // 4)
    all_counts = (tables.token_counts, tables.pair_counts, tables.triple_counts)
    for token_rows, counts in zip(tables.rows(token_ids), all_counts, strict=True):
        known = token_rows[:, 1:]
        assert np.bincount(known[known >= 0], minlength=len(counts)).tolist() == counts.tolist()


def test_records_are_frozen(planted_run) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        planted_run.neuron("0:0").skip = 5
    assert isinstance(planted_run.path, Path)


def test_more_exemplars_than_a_gpu_can_keep_are_refused(
    tiny_subject: Subject, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Subject, "device", torch.device("cuda"))
    monkeypatch.setattr("fastexplain.sweeping.settings.kernel_device", lambda device: device)
    corpus = Corpus.from_excerpts(np.zeros((2, 64), np.int32))
    with pytest.raises(UsageError, match="`top_k` is 2049; on a GPU it can be 2048 at most"):
        fastexplain.sweep(tiny_subject, corpus, tmp_path / "run", top_k=2049)


@pytest.mark.parametrize("layers", [1, "0-1"])
def test_layers_are_numbers(planted_subject, planted_corpus, tmp_path, layers) -> None:
    with pytest.raises(UsageError, match="give numbers, such as"):
        fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", layers=layers)


def test_a_list_of_texts_is_no_corpus(planted_subject, tmp_path) -> None:
    with pytest.raises(UsageError, match="make one, for example by Corpus"):
        fastexplain.sweep(planted_subject, ["the cat"], tmp_path / "run")


def test_a_context_shorter_than_the_excerpts_is_said_before_the_sweep(
    make_tokenizer, planted_corpus, tmp_path
) -> None:
    config = transformers.GPT2Config(vocab_size=257, n_positions=48, n_embd=32, n_layer=1, n_head=4)
    model = transformers.GPT2LMHeadModel(config)
    subject = Subject.from_model(model, make_tokenizer(), name="short")
    with pytest.raises(UsageError, match="excerpts have 64 tokens, but short takes 48 at most;"):
        fastexplain.sweep(subject, planted_corpus, tmp_path / "run")
    led = Subject.from_model(model, make_tokenizer(), name="short", lead=[1, 2])
    with pytest.raises(UsageError, match="takes 46 at most after the 2 that go before them"):
        fastexplain.sweep(led, planted_corpus, tmp_path / "run")
    fits = Corpus.from_excerpts(np.array(planted_corpus.tokens[:, :46]))
    assert fastexplain.sweep(led, fits, tmp_path / "run").manifest["sweep"]["tokens"] == 400 * 46


def test_tokens_past_the_embeddings_are_named(make_model, make_tokenizer, tmp_path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["harbour", "lantern"])
    subject = Subject.from_model(make_model(), tokenizer, name="tiny")
    ids = np.full((2, 64), 258, np.int32)
    ids[0, 3] = 257
    message = r"embeddings of 0 to 256 \('harbour' is 257, 'lantern' is 258\); .* resize"
    with pytest.raises(UsageError, match=message):
        fastexplain.sweep(subject, Corpus.from_excerpts(ids), tmp_path / "run")


def test_weights_in_a_dtype_that_the_kernels_lack_are_refused(make_model, make_tokenizer) -> None:
    with pytest.raises(SubjectError, match="'tiny' are float64; load them in one of float32,"):
        Subject.from_model(make_model().double(), make_tokenizer(), name="tiny")


def test_an_mlp_in_another_dtype_than_the_model_is_refused(
    make_model, make_tokenizer, planted_corpus, tmp_path
) -> None:
    model = make_model()
    model.model.layers[2].mlp.act_fn.register_forward_hook(
        lambda _module, _inputs, out: out.double()
    )
    model.model.layers[2].mlp.down_proj.double()
    model.model.layers[2].mlp.register_forward_hook(lambda _module, _inputs, out: out.float())
    subject = Subject.from_model(model, make_tokenizer())
    with pytest.raises(SubjectError, match=r"activations are float64, .* load all in one dtype"):
        fastexplain.sweep(subject, planted_corpus, tmp_path / "run", batch_size=8)
