"""The data of a neuron's page, and what it loads on demand."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from knowing_server import Knowing
from safetensors.numpy import load_file, save_file

from fastexplain import Corpus, Run, open_run, sweep
from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import simulate_by_lookup, store_lookup
from fastexplain.explainers.rules import store_rules
from fastexplain.records import NeuronId, Site
from fastexplain.report.asked import request_data
from fastexplain.report.excerpts import context_data, four_digits, histogram_data
from fastexplain.report.page import page_data, table_data
from fastexplain.report.similar import similar_data
from fastexplain.results import CORRELATION, ExplanationRow, Scores
from fastexplain.run.checking import damages

CAT = f"0:{planted.CAT}"


@pytest.fixture(scope="module")
def explained(planted_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = open_run(shutil.copytree(planted_run.path, tmp_path_factory.mktemp("page") / "run"))
    store_lookup(run)
    store_rules(run)
    return run


def test_a_page_has_all_that_is_known_of_a_neuron(explained: Run) -> None:
    data, record = page_data(explained, CAT), explained.neuron(CAT)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    for kind in ("top", "bottom", "random"):
        kept = getattr(record, kind)
        assert [row["excerpt"] for row in data["exemplars"][kind]] == [e.excerpt for e in kept]
        for row, exemplar in zip(data["exemplars"][kind], kept, strict=True):
            assert data["excerpts"][str(row["excerpt"])]["tokens"] == exemplar.tokens
            np.testing.assert_allclose(row["values"], exemplar.activations, rtol=5e-4)
    assert sorted(each["method"] for each in data["explanations"]) == ["lookup", "rule"]
    scored = {each["method"]: {score["judge"] for score in each["scores"]}
              for each in data["explanations"]}  # fmt: skip
    assert scored == {"lookup": {"lookup", "list"}, "rule": {"rule"}}
    assert data["rows"][0]["token"] == "cat" and data["rows"][0]["previous"] is None
    by_table = simulate_by_lookup(explained, record)
    values = {each["simulator"]: each["values"] for each in data["simulations"]}
    assert values.keys() == {"lookup", "list", "rule"} and values["rule"] is None
    for excerpt, own in by_table.items():
        shown = np.array(values["lookup"][str(excerpt)], float)
        np.testing.assert_allclose(shown, own, rtol=5e-4)
    assert (data["previous"], data["next"]) == (None, "0:1")
    assert page_data(explained, f"0:{planted.NEURONS - 1}")["next"] is None


def test_what_tables_predict_can_be_left_for_later(explained: Run) -> None:
    whole, rest = page_data(explained, CAT), page_data(explained, CAT, tables=False)
    [table] = [each for each in whole["simulations"] if each["simulator"] == "lookup"]
    [left] = [each for each in rest["simulations"] if each["simulator"] == "lookup"]
    later = table_data(explained, CAT)["values"]
    assert left["values"] is None and table["values"]
    assert table["values"] == {id_: own for id_, own in later.items() if id_ in whole["excerpts"]}
    left["values"] = table["values"]
    assert rest == whole


def test_excerpts_by_quantile_are_from_the_bins_that_are_named(explained: Run) -> None:
    data, record = page_data(explained, "0:1"), explained.neuron("0:1")
    top = {each.excerpt: each.activations[record.skip :].max() for each in record.top}
    assert data["exemplars"]["quantile"]
    for row in data["exemplars"]["quantile"]:
        assert str(row["excerpt"]) in data["excerpts"]
        if row["excerpt"] in top:
            low, high = row["low"] or 0, row["high"] or np.inf
            assert low <= top[row["excerpt"]] < high


def test_the_histogram_has_every_excerpt_and_its_marks_the_quantiles(explained: Run) -> None:
    record = explained.neuron(CAT)
    data = histogram_data(record.statistics)
    counts = [each["count"] for each in data["bins"]]
    assert sum(counts) == 400 and counts[0] and counts[-1]
    for mark in data["marks"]:
        assert sum(counts[: mark["bin"]]) < mark["share"] * 400 <= sum(counts[: mark["bin"] + 1])


def test_a_dead_neuron_has_a_page(explained: Run) -> None:
    data = page_data(explained, f"0:{planted.NEVER}")
    assert data["scale"]["highest"] == 0 and data["rows"] == []
    json.dumps(data, allow_nan=False)


def test_a_run_without_explanations_has_pages(planted_run: Run) -> None:
    data = page_data(planted_run, CAT)
    assert data["explanations"] == data["simulations"] == data["steering"] == []
    assert data["weights"] is None and data["exemplars"]["top"] and data["signs"] == []


def test_a_unit_of_another_site_has_a_page(run: Run) -> None:
    path = run.path
    shutil.copy(path / "layers" / "00.safetensors", path / "layers" / "00.e17.safetensors")
    manifest = {**run.manifest, "schema": 2}  # which had no hashes
    del manifest["files"]
    [mlp] = manifest["sites"]
    expert = Site("0.e17", "expert", mlp["units"], mlp["counted_tokens"])
    manifest["sites"] = [mlp, dataclasses.asdict(expert)]
    (path / "manifest.json").write_text(json.dumps(manifest))
    data = page_data(open_run(path), "0.e17:0")
    assert data["kind"] == "expert" and data["rows"] == [] and data["weights"] is None
    assert (data["previous"], data["next"]) == (f"0:{planted.NEURONS - 1}", "0.e17:1")
    with pytest.raises(UsageError, match="of others there are no tables"):
        table_data(open_run(path), "0.e17:0")


@pytest.mark.parametrize("name", ["0:999", "3:1", "cat"])
def test_what_is_no_neuron_has_no_page(planted_run: Run, name: str) -> None:
    with pytest.raises(UsageError, match=r"no neuron|was not swept|does not name"):
        page_data(planted_run, name)


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
@settings(max_examples=50)
def test_four_digits_are_those_that_python_writes(values: np.ndarray) -> None:
    for value, shown in zip(values.tolist(), four_digits(values), strict=True):
        if np.isfinite(value):
            assert shown == pytest.approx(value, rel=5.01e-4)
            assert shown == pytest.approx(float(f"{shown:.4g}"), rel=1e-12)
        else:
            assert shown is None


def test_numbers_below_all_powers_of_ten_are_0() -> None:
    assert four_digits(np.array([5e-324, -1.23456e-300, 1.23456e300])) == [
        0,
        -1.235e-300,
        1.235e300,
    ]


def test_similar_neurons_are_those_of_the_highest_correlations(explained: Run) -> None:
    acts = explained.array(0, "random.activations")[:, explained.skip :]
    flat = acts.reshape(-1, acts.shape[-1]).astype(np.float64)
    own = similar_data(explained, "0:1")
    assert own["tokens"] == len(flat) and own["neurons"]
    for each in own["neurons"]:
        other = NeuronId.parse(each["neuron"]).index
        exact = np.corrcoef(flat[:, 1], flat[:, other])[0, 1]
        assert each["correlation"] == pytest.approx(exact, abs=1e-3) and other != 1
    sizes = [abs(each["correlation"]) for each in own["neurons"]]
    varied = np.flatnonzero(flat.std(axis=0) > 1e-6)
    best = max(abs(np.corrcoef(flat[:, 1], flat[:, n])[0, 1]) for n in varied if n != 1)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == pytest.approx(best, abs=1e-3)
    assert similar_data(explained, f"0:{planted.NEVER}")["neurons"] == []


@pytest.fixture
def one_document(run: Run) -> Run:
    """The planted run, its excerpts 5, 3 and 9 one after another in one document."""
    file = run.path / "excerpts.safetensors"
    content = load_file(file)
    content["documents"][:] = np.arange(400) + 10
    content["offsets"][:] = 0
    for place, excerpt in enumerate((5, 3, 9)):
        content["documents"][excerpt], content["offsets"][excerpt] = 1, 64 * place
    save_file(content, file)
    manifest = {**run.manifest, "schema": 2}
    del manifest["files"]
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    return open_run(run.path)


def test_the_text_around_an_excerpt_is_that_of_its_document(one_document: Run) -> None:
    run = one_document
    around = context_data(run, 3)
    assert [each["excerpt"] for each in around["before"] + around["after"]] == [5, 9]
    assert around["before"][0]["tokens"] == run.token_texts(run.excerpt(5).tolist())
    assert [each["excerpt"] for each in context_data(run, 9, 8, 8)["before"]] == [5, 3]
    assert context_data(run, 7) == {"before": [], "after": []}
    shown = page_data(run, CAT)["excerpts"]
    assert all(each["before"] is None for id_, each in shown.items() if id_ not in ("3", "9"))
    for id_, before, after in (("5", None, 3), ("3", 5, 9), ("9", 3, None)):
        if id_ in shown:
            assert (shown[id_]["before"], shown[id_]["after"]) == (before, after)


def test_a_sample_of_a_corpus_keeps_the_text_beside_it(tiny_subject, tmp_path: Path) -> None:
    texts = ["".join(chr(97 + (place * 7 + own) % 26) for place in range(640)) for own in range(3)]
    corpus = Corpus.from_texts(texts, tiny_subject.tokenizer, excerpts=2, seed=1)
    assert corpus.available > 2
    run = sweep(tiny_subject, corpus, tmp_path / "run", top_k=2, random=1)
    for excerpt in range(2):
        document, offset = run.places[excerpt].tolist()
        around = context_data(run, excerpt, 1, 1)
        for side, back, start in (
            ("before", "after", offset - 64),
            ("after", "before", offset + 64),
        ):
            wanted = [texts[document][start : start + 64]] if 0 <= start < 640 else []
            assert ["".join(each["tokens"]) for each in around[side]] == wanted
            for each in around[side]:
                [other] = context_data(run, each["excerpt"])[back]
                assert other["excerpt"] == excerpt
    assert damages(run) == []


@pytest.mark.parametrize("asked", [(400, 1, 1), (-1, 1, 1), (3, 9, 1), (3, 1, -1)])
def test_what_is_not_there_has_no_context(planted_run: Run, asked: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="excerpt"):
        context_data(planted_run, *asked)


def test_the_request_is_shown_only_if_it_is_what_was_asked(run: Run, cli, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Knowing(lambda asked, seed: "This neuron reacts to the cat.")
    try:
        place = ("--explainer", "m", "--base-url", server.url, "--simulation", "json")
        assert cli("explain", run.path, CAT, *place)[0] == 0
        [asked] = [
            body["messages"]
            for path, body, _ in server.requests
            if "chat" in path and body["messages"][-1]["content"].endswith("react to?")
            and len(body["messages"]) > 2
        ]  # fmt: skip
    finally:
        server.close()
    [row] = [each for each in page_data(run, CAT)["explanations"] if each["method"] == "model"]
    data = request_data(run, CAT, row["id"])
    assert data["messages"] == asked and data["why"] is None
    assert data["answer"] == "This neuron reacts to the cat."
    other = row["parameters"] | {"seed": 7}  # as if another version had asked
    with run.database() as database:
        [id_] = database.add_explanations(
            [ExplanationRow(NeuronId(0, 0), "model", "m", "v9", "a cat", parameters=other)]
        )
    data = request_data(run, CAT, id_)
    assert data["messages"] is None and "not what was asked" in data["why"]
    assert data["answer"] == "This neuron reacts to the cat."
    with pytest.raises(UsageError, match="no model was asked for an explanation 999 of 0:0"):
        request_data(run, CAT, 999)


def test_a_simulation_of_the_bottom_is_of_what_is_below_zero(run: Run) -> None:
    record = run.neuron(CAT)
    values = np.full(len(record.random[0].tokens), 5, np.float32)
    rows = [ExplanationRow(record.id, method, "m", "1", method) for method in ("m", "m_bottom")]
    with run.database() as database:
        for id_ in database.add_explanations(rows):
            database.add_simulation(id_, "s", "1", record.random[0].excerpt, "test", values)
            measured = Scores(0.5, 0.25, None, 5, 5).measured()
            database.add_scores(CORRELATION, "s", "1", {id_: measured})
    page = page_data(run, CAT)
    signs = {each["explanation"]: each["sign"] for each in page["simulations"]}
    found = {each["method"]: signs[each["id"]] for each in page["explanations"]}
    assert found == {"m": 1, "m_bottom": -1}
