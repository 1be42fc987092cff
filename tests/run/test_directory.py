"""Run directories: those of schema 1, sites that are not a layer's MLP, and reading by slices."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastexplain
from fastexplain import NeuronId, Run
from fastexplain.errors import RunError, UsageError
from fastexplain.explainers.lookup import simulate_by_lookup
from fastexplain.records import Site
from fastexplain.run.writing import RunWriter

FORMER = Path(__file__).parents[1] / "data" / "run-schema-1"


def test_a_run_of_schema_1_is_read() -> None:
    run = fastexplain.open_run(FORMER)
    assert run.manifest["schema"] == 1
    assert run.layers == [0, 2] and run.width(2) == 24
    assert run.sites["2"] == Site("2", "mlp", 24, 3780)
    record = run.neuron("2:5")
    assert len(record.top) == len(record.bottom) == 8 and len(record.random) == 9
    assert record.statistics.count == 3780
    assert record.statistics.mean == run.statistics(2)["mean"][5]
    assert record.top[0].tokens[0] != ""
    histogram, kept = record.statistics.histogram, record.statistics.histogram_excerpts
    assert kept.shape == (96, 1)  # a bin kept one excerpt then
    np.testing.assert_array_equal(kept[:, 0] >= 0, histogram > 0)
    assert run.array(2, "histogram.excerpts").shape == (24, 96, 1)
    assert run.array(2, "histogram.excerpts", slice(5, 7)).shape == (2, 96, 1)
    with run.database(read_only=True) as database:
        [lookup] = [e for e in database.explanations(record.id) if e.method == "lookup"]
    assert lookup.data[0]["mean"] == pytest.approx(0.0030657148629)


def test_a_run_of_another_schema_is_refused(tmp_path: Path) -> None:
    manifest = json.loads((FORMER / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"schema": 6}))
    with pytest.raises(RunError, match="schema 6"):
        fastexplain.open_run(tmp_path)


def test_a_manifest_that_lacks_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(RunError, match="can't be used: subject is None"):
        fastexplain.open_run(tmp_path)


def test_a_run_says_what_it_is() -> None:
    assert repr(fastexplain.open_run(FORMER)).endswith("run-schema-1': tiny, layers [0, 2])")


@pytest.fixture
def with_expert(planted_run: Run, tmp_path: Path) -> Run:
    """The planted run with its MLP once more, as an expert that saw half of the tokens."""
    path = Path(shutil.copytree(planted_run.path, tmp_path / "run"))
    shutil.copy(path / "layers" / "00.safetensors", path / "layers" / "00.e17.safetensors")
    manifest = {**planted_run.manifest, "schema": 2}  # which had no hashes
    del manifest["files"]
    [mlp] = manifest["sites"]
    half = mlp["counted_tokens"] // 2
    expert = Site("0.e17", "expert", mlp["units"], half)
    manifest["sites"] = [mlp, dataclasses.asdict(expert)]
    (path / "manifest.json").write_text(json.dumps(manifest))
    return fastexplain.open_run(path)


def test_units_of_other_sites_are_named_by_their_place(with_expert: Run) -> None:
    assert with_expert.layers == [0] and list(with_expert.sites) == ["0", "0.e17"]
    expert, neuron = with_expert.neuron("0.e17:3"), with_expert.neuron("0:3")
    assert str(expert.id) == "0.e17:3" and expert.id == NeuronId(0, 3, "e17")
    assert expert.statistics.count == neuron.statistics.count // 2
    assert expert.statistics.mean == pytest.approx(2 * neuron.statistics.mean)
    np.testing.assert_array_equal(expert.top[0].activations, neuron.top[0].activations)
    with pytest.raises(UsageError, match=r"no neuron 0\.e18:3; .* has the sites 0, 0\.e17"):
        with_expert.neuron("0.e18:3")
    with pytest.raises(UsageError, match=r"site 0\.e17 has neurons 0\.e17:0 to 0\.e17:119"):
        with_expert.neuron("0.e17:120")


def test_files_of_sites_have_their_place_in_the_name(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    for site in ("3", "12", "12.e7", "100.resid"):
        writer.write_site(site, {"sums": np.zeros(2)})
    assert sorted(file.name for file in (tmp_path / "run" / "layers").iterdir()) == [
        "03.safetensors", "100.resid.safetensors", "12.e7.safetensors", "12.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["5", "5:", ":5", "5.:3", "5.e 1:3", "a:3", "5:3:1", "-1:3"])
def test_what_names_no_unit_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="does not name a neuron"):
        NeuronId.parse(name)


def test_units_are_ordered_by_layer_then_place_then_index() -> None:
    names = ["2:0", "2:10", "2.e1:3", "2.e1:4", "10:1"]
    units = [NeuronId.parse(name) for name in names]
    assert [str(unit) for unit in sorted([units[-1], *units[:-1]])] == names
    assert [NeuronId.of(unit.site, unit.index) for unit in units] == units


@pytest.mark.parametrize(
    "name",
    ["top.ids", "top.activations", "random.activations", "sums", "tables.tokens", "histogram"],
)
def test_slices_are_what_the_whole_array_has(planted_run: Run, name: str) -> None:
    axis = 0 if name.startswith(("top", "histogram")) else -1
    found = planted_run.array(0, name, slice(3, 7))
    whole = planted_run.array("0", name)
    np.testing.assert_array_equal(found, whole.take(range(3, 7), axis=axis))


def test_one_neuron_is_predicted_as_all_are_and_without_reading_whole_layers(
    planted_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = planted_run.neuron("0:3")
    expected = simulate_by_lookup(planted_run, record)
    read: list[str] = []
    all_of = Run._read

    def watched(self: Run, name: str, place: tuple = (), site: str = "") -> np.ndarray:
        if site and not place:
            read.append(f"{site} {name}")
        return all_of(self, name, place, site)

    monkeypatch.setattr(Run, "_read", watched)
    fresh = fastexplain.open_run(planted_run.path)
    found = simulate_by_lookup(fresh, fresh.neuron("0:3"))
    assert found.keys() == expected.keys()
    for excerpt, values in found.items():
        np.testing.assert_array_equal(values, expected[excerpt])
    assert set(read) == {"0 random.ids"}


def test_texts_of_an_excerpt_are_the_readers_own(planted_run: Run) -> None:
    expected = planted_run.token_texts(planted_run.excerpt(3).tolist())
    planted_run.excerpt_texts(3).clear()
    assert planted_run.excerpt_texts(3) == expected
    for _ in range(2):
        record = planted_run.neuron("0:1")
        for exemplar in (*record.top, *record.random):
            assert exemplar.tokens == planted_run.token_texts(exemplar.token_ids.tolist())
            exemplar.tokens.clear()
            exemplar.token_ids[:] = 0
