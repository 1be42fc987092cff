"""The bottom of a neuron, explained and scored by itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from knowing_server import Knowing
from programmed import programmed

import fastexplain
from fastexplain import Corpus, NeuronId, Run, open_run
from fastexplain.errors import UsageError
from fastexplain.report.columns import score_columns
from fastexplain.results import Explanation
from fastexplain.run.sides import of_side
from fastexplain.run.splits import samples

WORDS = ["a", "cat", "moon", "river", "stone", "tower", "field", "bird"]
BOTH, ABOVE, BELOW = range(3)  # above 0 on cat and below on moon; the one alone; the other alone
ABOVE_ON, BELOW_ON = WORDS.index("cat"), WORDS.index("moon")


def program(text: list[str]) -> np.ndarray:
    cat, moon = (np.array([word == name for word in text], float) for name in ("cat", "moon"))
    silent = np.zeros((9, len(text)))
    return np.concatenate([[2 * cat - 5 * moon, 2 * cat, -3 * moon - 0.25], silent])


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory) -> Run:
    rng = np.random.default_rng(0)
    shares = np.array([38, 1, 1, 12, 12, 12, 12, 12]) / 100
    ids = rng.choice(len(WORDS), (200, 64), p=shares).astype(np.int32)
    return fastexplain.sweep(
        programmed(WORDS, program, 12),
        Corpus.from_excerpts(ids),
        tmp_path_factory.mktemp("sides") / "run",
        bottom=True,
    )


@pytest.fixture
def swept(swept_once, tmp_path) -> Run:
    """A copy, to be written to."""
    return open_run(shutil.copytree(swept_once.path, tmp_path / "run"))


def named_by_what_is_shown(asked: list[str], seed: int) -> str:
    """The word that the last message shows with the value 10; of a probe none."""
    lines = (line.rpartition("\t") for line in asked[-1].splitlines())
    words = {token.strip() for token, _, value in lines if value == "10"}
    assert len(words) < 2
    return " ".join(["the", *words])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    serving = Knowing(named_by_what_is_shown)
    serving.judge = lambda explanation, text: explanation.removeprefix("the ") in text
    yield serving
    serving.close()


@pytest.fixture
def explain(cli, swept, server):
    def call(*more, neurons=(f"0:{BOTH}",)):
        place = ["--explainer", "m", "--base-url", server.url, "--simulation", "json", "--json"]
        code, out, err = cli("explain", swept.path, *neurons, *place, *more)
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return call


def test_each_side_has_an_explanation_and_a_score_of_its_own(explain, swept, cli, server) -> None:
    both = "correlation,simulation,detection"
    code, top, err = explain("--scorers", both)
    assert code == 0, err
    code, bottom, err = explain("--side", "bottom", "--scorers", both)
    assert code == 0, err
    [above], [below] = top["explanations"], bottom["explanations"]
    assert (above["explanation"], above["side"], above["method"]) == ("the cat", "top", "model")
    assert (below["explanation"], below["side"]) == ("the moon", "bottom")
    assert below["method"] == "model_bottom"
    for row in (above, below):
        assert row["top_and_random"] == pytest.approx(1.0)
        assert row["random_only"] == pytest.approx(1.0)
        assert (row["excerpts_top"], row["excerpts_random"]) == (5, 5)
        raw = [s for s in row["scores"] if s["measure"] == "raw_correlation"]
        assert raw and all(0 < s["value"] < 0.999 for s in raw)  # of both signs

    # The excerpts that it was written from are the bottom ones, and none of them scores it.
    record = swept.neuron(f"0:{BOTH}")
    written = below["parameters"]["exemplars"]
    assert written == [record.bottom[rank].excerpt for rank in range(0, 20, 4)]
    with swept.database(read_only=True) as database:
        simulated = database.simulated(below["id"], below["simulator"], below["simulation"])
        [*rows] = database.explanations(NeuronId(0, BOTH))
    seen = of_side(record, "bottom")
    wanted = {each.excerpt for split in ("test", "calibration") for each in samples(seen, split)}
    assert set(simulated) == wanted and not wanted & set(written)
    # Asked again, both are found.
    sent = len(server.requests)
    assert explain("--side", "bottom")[1]["explanations"][0]["id"] == below["id"]
    assert len(server.requests) == sent and len(rows) == 2

    code, shown, _ = cli("show", swept.path, f"0:{BOTH}")
    assert "m, bottom" in shown and "bottom excerpt of the test split, by -activation" in shown
    assert "top excerpt of the test split\n" in shown
    code, found, _ = cli("top", swept.path, "--json")
    assert {row["side"] for row in json.loads(found)["explanations"]} == {"top", "bottom"}
    code, found, _ = cli("show", swept.path, f"0:{BOTH}", "--json")
    judged = json.loads(found)["judged"]
    assert {each["explanation"] for each in judged} == {above["id"], below["id"]}
    assert all(each["correct"] for each in judged)

    # What speaks of "the" score of a neuron speaks of the top's.
    code, found, err = cli("score", swept.path, "--json")
    assert code == 0 and json.loads(found)["scored"] == 2, err
    with open_run(swept.path).database(read_only=True) as database:
        again = {s.measured[:3] for s in database.scores(below["id"]) if s.scorer == "simulation"}
    assert again == {
        (s["split"], s["measure"], s["value"])
        for s in below["scores"]
        if s["scorer"] == "simulation"
    }


def test_only_the_bottom_explained_is_not_taken_for_the_top(explain, swept, cli) -> None:
    code, found, err = explain("--side", "bottom", neurons=[f"0:{BELOW}"])
    assert code == 0 and found["explanations"][0]["explanation"] == "the moon", err
    table = swept.table()
    assert np.isnan(table["model_top_and_random"][BELOW])
    assert table["model_bottom_top_and_random"][BELOW] == pytest.approx(1.0)
    with pytest.raises(UsageError, match="none has"):
        fastexplain.run.selection.select_neurons(swept, [f"0:{BELOW}"], where="score > 0.5")
    with swept.database(read_only=True) as database:
        assert score_columns(swept, database).ids["other"][BELOW] == 0
        assert database.other_explanation(NeuronId(0, ABOVE)) in (None, "the cat")
    code, _, err = cli("ablate", swept.path, f"0:{BELOW}", "--explainer", "m")
    assert "have no explanation by m that was simulated" in err + _


def test_a_neuron_that_is_never_below_0_has_nothing_to_explain(explain) -> None:
    code, _, err = explain("--side", "bottom", neurons=[f"0:{ABOVE}"])
    assert code == 1 and "below 0 on none of its bottom exemplars" in err


def test_batches_of_candidates_are_rehearsed_as_they_are_asked(explain, server) -> None:
    code, estimate, err = explain("--side", "bottom", "--dry-run", "--candidates", "2")
    assert code == 0 and server.requests == [], err
    assert estimate["purposes"]["explanation"]["requests"] == 2
    code, found, err = explain("--side", "bottom", "--candidates", "2")
    [row] = found["explanations"]
    assert (row["explanation"], row["side"]) == ("the moon", "bottom")


def test_seen_from_below_twice_a_record_is_itself(swept) -> None:
    record = swept.neuron(f"0:{BOTH}")
    below = of_side(record, "bottom")
    assert of_side(record, "top") is record
    acts = np.concatenate([each.activations for each in record.random])
    turned = np.concatenate([each.activations for each in below.random])
    np.testing.assert_array_equal(turned, -acts)
    found, other = record.statistics, below.statistics
    assert (other.minimum, other.maximum) == (-found.maximum, -found.minimum) == (-2, 5)
    again = of_side(below, "bottom")
    assert again.statistics.mean_positive == pytest.approx(found.mean_positive)
    for mine, its in zip(again.top, record.top, strict=True):
        np.testing.assert_array_equal(mine.activations, its.activations)


@pytest.mark.parametrize(
    "more, says",
    [
        (["--side", "left"], "there is no --side 'left'; choose from top, bottom"),
        (["--side", "bottom", "--scorers", "corpus"], "the scorer 'corpus' is for the top"),
        (["--side", "bottom", "--scorers", "ablation"], "the scorer 'ablation' is for the top"),
        (["--side", "bottom", "--revise", "1"], "--revise is for the top; leave it out, or --side"),
        (["--side", "bottom", "--exemplars", "quantiles"], "--exemplars is for the top"),
        (["--side", "bottom", "--by-need"], "--by-need goes by lookup's scores"),
        (["--side", "bottom", "--prompt", "list"], "puts the tokens of a sweep's tables"),
    ],
)
def test_what_is_of_the_top_alone_is_said(explain, server, more, says) -> None:
    code, _, err = explain(*more)
    assert code == 2 and says in " ".join(err.split()), err
    assert not [body for path, body, _ in server.requests if body.get("max_tokens") == 60]


def test_by_lookup_the_bottom_is_not_explained(cli, swept) -> None:
    code, _, err = cli("explain", swept.path, "--side", "bottom")
    assert code == 2 and "lookup explains the top alone" in err
    with pytest.raises(UsageError, match="sums of max"):
        fastexplain.explain(swept, "0:0", side="bottom")


class Says:
    method, model, version = "rule_bottom", "says", "1"

    def explain(self, record) -> Explanation:
        return Explanation("moon")

    def simulate(self, explanation, tokens) -> list[float]:
        return [float(token.strip() == explanation) for token in tokens]


def test_from_python_with_an_explainer_of_ones_own(swept, planted_run) -> None:
    with pytest.raises(UsageError, match="methods that end in '_bottom' are of that `side`"):
        fastexplain.explain(swept, "0:0", explainer=Says(), simulator=Says())
    own = Says()
    own.method = "own"
    found = fastexplain.explain(swept, "0:0", explainer=own, simulator=own, side="bottom")
    [row] = found.explanations
    assert (row.method, row.side, row.text) == ("own_bottom", "bottom", "moon")
    assert row.scores.top_and_random == pytest.approx(1.0)
    with pytest.raises(UsageError, match="has no bottom exemplars, which that side is explained"):
        fastexplain.explain(planted_run, "0:0", explainer=own, simulator=own, side="bottom")
