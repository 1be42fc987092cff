"""Which exemplars an explainer is shown: those by quantiles score nothing, and are true."""

import asyncio
import json
import shutil
from types import SimpleNamespace

import numpy as np
import planted
import pytest
from knowing_server import Knowing
from programmed import rare_and_heavy

import fastexplain
from fastexplain import Corpus, open_run
from fastexplain.explainers.exemplars import (
    QUANTILES,
    ByQuantile,
    choose_top,
    exemplars_of,
    quantile_excerpts,
)
from fastexplain.records import NeuronId
from fastexplain.run import subjects
from fastexplain.run.splits import samples
from fastexplain.run.strata import drawn
from fastexplain.subject.activations import activations_at

NEURONS = range(0, 12, 3)
NAME = "0:3"


@pytest.fixture(scope="module")
def subject():
    return rare_and_heavy(12, 100)[0]


@pytest.fixture(scope="module")
def swept(subject, tmp_path_factory):
    rng = np.random.default_rng(0)
    frequency = rare_and_heavy(12, 100)[1]
    corpus = Corpus.from_excerpts(rng.choice(100, (600, 64), p=frequency).astype(np.int32))
    return fastexplain.sweep(subject, corpus, tmp_path_factory.mktemp("quantiles") / "run")


@pytest.fixture(scope="module")
def largest(swept, subject):
    """The largest counted activation of each excerpt for each of some neurons, by neuron."""
    units = [NeuronId(0, neuron) for neuron in NEURONS]
    every = np.tile(np.arange(len(swept.excerpts)), (len(units), 1))
    acts = activations_at(subject, np.asarray(swept.excerpts), units, every)
    return dict(zip(NEURONS, acts[:, :, swept.skip :].max(axis=2), strict=True))


@pytest.mark.parametrize("neuron", NEURONS)
def test_they_score_nothing_and_go_from_weak_to_strong(swept, largest, neuron):
    record = swept.neuron(f"0:{neuron}")
    found = quantile_excerpts(swept, record)
    assert len(found) == len(set(found)) == QUANTILES
    splits = ("test", "validation", "calibration")
    held_out = {each.excerpt for split in splits for each in samples(record, split)}
    held_out |= set(drawn(swept, 0, np.array([neuron])).ids[0].tolist())
    assert not held_out & set(found)
    assert not {each.excerpt for each in exemplars_of(record)} & set(found)
    own = largest[neuron][found]
    assert (own > 0).all() and own[-1] > own[0]
    if neuron == NEURONS[0]:  # the middle one of a neuron whose bins have more than what scores it
        every = largest[neuron][largest[neuron] > 0]
        assert 0.25 < (every < own[2]).mean() < 0.75


def test_they_are_those_at_the_quantiles_where_every_bin_has_one_to_choose():
    histogram, kept = np.zeros(100, np.int64), np.full((100, 1), -1, np.int32)
    histogram[0], histogram[10:60] = 900, 2  # silent in most, then even
    kept[0], kept[10:60, 0] = 999, np.arange(10, 60)
    record = SimpleNamespace(
        statistics=SimpleNamespace(histogram=histogram, histogram_excerpts=kept),
        top=[SimpleNamespace(excerpt=24)],
        random=[],
    )
    assert quantile_excerpts(None, record) == [14, 25, 34, 44, 54]
    kept[1:] = -1
    assert quantile_excerpts(None, record) == []


def test_where_all_that_is_kept_scores_there_are_none_but_the_top_ones(planted_run):
    """A planted neuron's values are all alike, in one bin, and what that kept are random ones."""
    record = planted_run.neuron(f"0:{planted.CAT}")
    assert quantile_excerpts(planted_run, record) == []
    choose = ByQuantile(planted_run, lambda: pytest.fail("nothing has to be loaded"))
    assert asyncio.run(choose(record)) == exemplars_of(record)


def test_their_activations_are_the_subjects(swept, subject, largest):
    loads = []
    choose = ByQuantile(swept, lambda: loads.append(1) or subject)
    for neuron in NEURONS:
        record = swept.neuron(f"0:{neuron}")
        shown = asyncio.run(choose(record))
        assert len(shown) == 5 + QUANTILES
        assert len(asyncio.run(choose_top(record))) == 5
        strongest = [each.activations[swept.skip :].max() for each in shown]
        assert strongest == sorted(strongest, reverse=True)
        ids = [each.excerpt for each in shown]
        np.testing.assert_allclose(strongest, largest[neuron][ids], rtol=1e-5)
        for each in shown:
            np.testing.assert_array_equal(each.token_ids, swept.excerpts[each.excerpt])
            assert each.tokens == swept.token_texts(each.token_ids.tolist())
    assert loads == [1]


@pytest.fixture
def server():
    serving = Knowing(lambda asked, seed: "This neuron reacts to w1.")
    yield serving
    serving.close()


@pytest.fixture
def own_run(swept, tmp_path):
    return open_run(shutil.copytree(swept.path, tmp_path / "run"))


@pytest.fixture
def command(cli, own_run, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def call(server, *more):
        place = ["--explainer", "m", "--base-url", server.url, "--simulation", "json", "--json"]
        code, out, err = cli(
            "explain", own_run.path, NAME, *place, "--exemplars", "quantiles", *more
        )
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return call


def test_the_explainer_sees_them_and_a_plan_loads_nothing(
    command, server, own_run, subject, monkeypatch
):
    loaded = []
    monkeypatch.setattr(
        subjects, "load_subject_of", lambda run, name=None: loaded.append(name) or subject
    )
    code, estimate, err = command(server, "--dry-run")
    assert code == 0 and loaded == [] and server.requests == [], err
    code, found, err = command(server, "--subject", "elsewhere")
    assert code == 0 and loaded == ["elsewhere"], err
    [row] = found["explanations"]
    record = own_run.neuron(NAME)
    wanted = {each.excerpt for each in exemplars_of(record)}
    wanted |= set(quantile_excerpts(own_run, record))
    assert set(row["parameters"]["exemplars"]) == wanted and len(wanted) == 5 + QUANTILES
    assert row["parameters"]["chosen"] == "quantiles"
    [content] = [
        body["messages"][-1]["content"]
        for _, body, _ in server.requests
        if "What does this neuron react to?" in str(body.get("messages", ""))
    ]
    for excerpt in wanted:
        words = own_run.token_texts(own_run.excerpts[excerpt].tolist())[own_run.skip :]
        assert "\n".join(words) in re_values(content)
    asked = {name: each["requests"] for name, each in estimate["purposes"].items()}
    assert asked == {"explanation": 1, "simulation": 10}
    # Run again it asks nothing, and needs no subject.
    sent = len(server.requests)
    assert command(server)[1] == found
    assert len(loaded) == 1 and len(server.requests) == sent


def re_values(content):
    """A prompt's lines without their values."""
    return "\n".join(line.partition("\t")[0] for line in content.splitlines())


@pytest.mark.scale
def test_a_revision_and_meanings_go_by_the_same_texts(
    command, server, own_run, subject, monkeypatch
):
    monkeypatch.setattr(subjects, "load_subject_of", lambda run, name=None: subject)
    assert command(server, "--meanings", "3")[0] == 0
    assert command(server, "--revise", "1")[0] == 0
    with own_run.database(read_only=True) as database:
        rows = database.explanations(NeuronId.parse(NAME))
    assert {row.method for row in rows} == {"model", "revised"}
    assert all("quantiles" in row.version for row in rows)


def test_a_subject_that_has_gone_is_told_in_a_line(command, server):
    """The run's subject was never on a disk."""
    code, _, err = command(server)
    assert code == 1 and "can't be loaded" in err and "--subject" in err
    assert "Traceback" not in err
