"""Revision with counter-examples: what is asked, what is shown, what is kept, and its controls."""

import asyncio
import json
import re

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knowing_server import Knowing

from fastexplain import Model, explain, open_run
from fastexplain.cli.terminal import out as console
from fastexplain.errors import LLMError, UsageError
from fastexplain.explainers.revise import Reviser, _worst
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Chat
from fastexplain.pipeline.sentences import Sentences
from fastexplain.prompts import revision
from fastexplain.prompts.explainer import parse
from fastexplain.records import NeuronId
from fastexplain.results import Explanation
from fastexplain.run.splits import samples

CAT = NeuronId(0, planted.CAT)
NEURONS = [CAT, NeuronId(0, planted.RIVER_OR_STONE)]

# Sentences of the planted subject's words, whatever is said of the neuron.
SENTENCES = """\
Sure! Here they are:
1. yes: the moon and the moon
**Yes:** "bright tower"
no: old cat sees the field
no: green river under stone
no: the tower
no: one too many
"""


def writes(asked, seed):
    """Knows nothing but what counter-examples tell: the words that are strong in them."""
    if asked[0].startswith("You test what is said"):
        return SENTENCES
    _, tested, evidence = asked[-1].partition("It was tested.")
    if tested:
        _, _, claims = evidence.partition("It was expected not to react")
        claims = claims.partition("In these texts its values differ most")[0]
        strong = re.findall(r"^(\w+)\t(?:[3-9]|10)$", claims, re.MULTILINE)
        return f"This neuron reacts to {' or '.join(sorted(set(strong))) or 'the tower'}."
    return f"This neuron reacts to {['the moon', 'a bird', 'the field'][seed % 3]}."


@pytest.fixture
def server():
    serving = Knowing(writes)
    yield serving
    serving.close()


@pytest.fixture(name="explain")
def explain_command(cli, run, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def call(server, *more, neurons=NEURONS):
        place = ["--explainer", "m", "--base-url", server.url, "--simulation", "json", "--json"]
        code, out, err = cli("explain", run.path, *map(str, neurons), *place, *more)
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return call


def test_counter_examples_make_the_explanation_right(explain, server, run):
    code, found, err = explain(server, "--revise", "2", "--price", "1,1")
    assert code == 0, err
    cat, river = found["explanations"]
    assert (cat["explanation"], river["explanation"]) == ("cat", "river or stone")
    assert (cat["method"], cat["explainer"]) == ("revised", "m")
    assert cat["top_and_random"] == pytest.approx(1.0)
    first, second, *third = cat["data"]["rounds"]
    assert first["explanation"] == "the moon" and first["validation"] < 0.5
    assert second["validation"] == pytest.approx(1.0)
    assert len(third) == 1  # the second round gains nothing
    tried = {each["text"]: each for each in first["sentences"]}
    assert list(tried) == ["the moon and the moon", "bright tower", "old cat sees the field",
                           "green river under stone", "the tower"]  # fmt: skip
    old_cat = tried["old cat sees the field"]
    assert (old_cat["should"], old_cat["reacts"]) == (False, True)
    assert np.argmax(old_cat["activations"]) == old_cat["tokens"].index("cat") == 1
    with open_run(run.path).database(read_only=True) as database:
        rows = database.explanations(CAT)
        [revised] = [row for row in rows if row.method == "revised"]
        [parent] = [row for row in rows if row.method == "model"]
    assert revised.parent == parent.id and parent.text == "the moon" and parent.scores is None
    spent = revised.parameters["spent"]
    count = len(samples(run.neuron(CAT), "validation"))
    assert spent["requests"] == 2 * 2 + 3 * count - count  # "cat" was simulated already
    assert revised.cost == spent["cost"] > 0


def test_the_test_split_is_for_the_winner_alone(explain, server, run):
    assert explain(server, "--revise", "2", neurons=[CAT])[0] == 0
    asked = [body["messages"][-1]["content"] for path, body, _ in server.requests if "chat" in path]
    on_test = [
        [content for content in asked if json.dumps(each.tokens)[1:-1] in content]
        for each in samples(run.neuron(CAT))
    ]
    assert [len(each) for each in on_test] == [1] * 10
    assert all("reacts to: cat\n" in content for [content] in on_test)


def test_the_gain_is_attributed_by_controls(explain, server, cli, run, monkeypatch):
    code, found, err = explain(server, "--revise", "2", "--controls", "--price", "1,1")
    assert code == 0, err
    first, fresh, chance, revised = found["comparison"]
    names = [each["name"] for each in found["comparison"]]
    assert names == ["first", "fresh samples", "random texts", "counter-examples"]
    assert first["gain"] == 0 and {each["neurons"] for each in found["comparison"]} == {2}
    assert revised["mean"] > 0.9 and revised["better"] == 2
    assert revised["gain"] == pytest.approx(revised["mean"] - first["mean"])
    # What learns from counter-examples alone has nothing of random texts, nor of more samples.
    assert max(fresh["mean"], chance["mean"]) < 0.5
    assert revised["spent"]["requests"] > chance["spent"]["requests"] > first["spent"]["requests"]
    assert first["spent"]["requests"] == 1 and fresh["spent"]["requests"] > 3
    sent = len(server.requests)
    place = ["--explainer", "m", "--base-url", server.url, "--simulation", "json"]
    options = ["--revise", "2", "--controls"]
    monkeypatch.setattr(console, "_width", 160)
    code, out, _ = cli("explain", run.path, *map(str, NEURONS), *place, *options)
    assert code == 0 and len(server.requests) == sent  # all of it is stored
    assert "counter-examples" in out and "± " in out
    monkeypatch.setattr(console, "_width", 80)
    code, out, _ = cli("explain", run.path, *map(str, NEURONS), *place, *options)
    assert code == 0 and "│ counter-examples │" in out and "…" not in out
    # Controls are no revisions: they are stored apart.
    with open_run(run.path).database(read_only=True) as database:
        assert database.methods() == ["control", "model", "revised"]


def rescuing(asked, seed):
    """Says nothing of one of two neurons at first: its score is undefined until it is revised."""
    if "It was tested." not in asked[-1] and not asked[0].startswith("You test what is said"):
        about_cat = "cat\t10" in asked[-1]
        return f"This neuron reacts to {'unicorns' if about_cat else 'the moon and stone'}."
    return writes(asked, seed)


@pytest.mark.parametrize("neurons", [[CAT], NEURONS], ids=["undefined alone", "one of two"])
def test_neurons_that_a_revision_rescues_are_not_dropped_without_a_word(
    explain, cli, run, monkeypatch, neurons
):
    serving = Knowing(rescuing)
    options = ["--revise", "1", "--controls"]
    place = ["--explainer", "m", "--base-url", serving.url, "--simulation", "json"]
    monkeypatch.setattr(console, "_width", 80)
    try:
        code, found, err = explain(serving, *options, neurons=neurons)
        _, out, _ = cli("explain", run.path, *map(str, neurons), *place, *options)
    finally:
        serving.close()
    assert code == 0, err
    *_, revised = found["comparison"]
    first = found["comparison"][0]
    count = len(neurons)
    assert revised["neurons"] == count - 1 and revised["as_zero"]["neurons"] == count
    assert (first["mean"] is None) == (count == 1) and revised["missing"] == 0
    # What it rescued counts: from 0 to nearly 1 for the one, beside what the other gained.
    gained = count * revised["as_zero"]["gain"] - (count - 1) * (revised["gain"] or 0)
    assert gained == pytest.approx(1.0, abs=0.05)
    assert revised["as_zero"]["better"] == count
    lines = out.splitlines()
    assert "1 more neurons have a score that is undefined" in " ".join(out.split())
    assert sum("undefined as 0" in line for line in lines) == 4 and "…" not in out
    assert max(map(len, lines)) <= 80


def test_stopped_in_the_middle_a_revision_goes_on(explain, server):
    stops = 0
    for _ in range(12):
        code, found, err = explain(server, "--revise", "2", "--max-requests", "25")
        stops += code == 1 and "--max-requests" in err
        if code == 0:
            break
    assert code == 0 and stops > 1
    bodies = [json.dumps(body) for path, body, _ in server.requests if "chat" in path]
    asked = [body for body in bodies if "neuron" in body]
    assert len(asked) == len(set(asked)) <= 25 * (stops + 1)
    assert [row["explanation"] for row in found["explanations"]] == ["cat", "river or stone"]


def test_faults_that_stop_a_revision_leave_it_resumable_and_nothing_is_asked_twice(explain):
    passing = ("500", "503", "truncated", "drop", "reset")
    refused = []

    def refusing(asked, seed):
        if "It was tested." in asked[-1] and not refused:  # the key is refused from then on
            refused.append(len(faulty.outcomes))
            faulty.status, faulty.body = 401, {"error": {"message": "no such key"}}
        return writes(asked, seed)

    def answered(first, end):
        """Digests of what was answered of some requests, but the probe's."""
        pairs = zip(faulty.requests[first:end], faulty.outcomes[first:end], strict=True)
        return [
            digest
            for (_, body, _), (digest, fault) in pairs
            if fault == "answered" and "neuron" in json.dumps(body)
        ]

    faulty = Knowing(refusing, rate=0.25, seed=5, kinds=passing)
    try:
        code, _, err = explain(faulty, "--revise", "2", neurons=[CAT])
        assert code == 1 and "no such key" in err
        before, stopped = answered(0, refused[0] + 1), len(faulty.requests)
        assert len(before) > 10 and stopped > refused[0] + 1
        faulty.status = 200
        code, found, err = explain(faulty, "--revise", "2", neurons=[CAT])
        after = answered(stopped, None)
    finally:
        faulty.close()
    assert code == 0, err
    assert sum(fault in passing for _, fault in faulty.outcomes) > 5
    assert len(after) > 10 and len(set(before + after)) == len(before + after)
    [cat] = found["explanations"]
    assert cat["explanation"] == "cat" and cat["top_and_random"] == pytest.approx(1.0)


@pytest.mark.scale
def test_a_dry_run_rehearses_all_rounds(explain, server):
    options = ["--revise", "2", "--controls", "--price", "1,1"]
    code, estimate, err = explain(server, *options, "--dry-run", neurons=[CAT])
    assert code == 0 and server.requests == [], err
    asked = {name: each["requests"] for name, each in estimate["purposes"].items()}
    assert (asked["explanation"], asked["sentences"], asked["revision"]) == (3, 2, 4)
    assert explain(server, *options, neurons=[CAT])[0] == 0
    sent = sum("neuron" in json.dumps(body) for path, body, _ in server.requests if "chat" in path)
    assert 0.4 * estimate["requests"] < sent <= estimate["requests"]


def gaining(asked, seed):
    """Writes explanations of which all that come later are better, and no two are alike."""
    if asked[0].startswith("You test what is said"):
        return SENTENCES
    _, tested, evidence = asked[-1].partition("It was tested.")
    if not tested:
        return f"This neuron reacts to {['the moon', 'cat moon tower', 'cat moon'][seed]}."
    return f"This neuron reacts to {'cat bird old' if 'at random' in evidence else 'a cat'}."


@pytest.mark.parametrize("more", [[], ["--candidates", "2"]], ids=["one first", "best of two"])
def test_a_dry_run_is_right_where_all_arms_gain(explain, cli, run, more):
    serving = Knowing(gaining)
    options = ["--revise", "1", "--controls", "--price", "1,1", *more]
    try:
        code, estimate, err = explain(serving, *options, "--dry-run", neurons=[CAT])
        assert code == 0 and serving.requests == [], err
        code, found, err = explain(serving, *options, neurons=[CAT])
    finally:
        serving.close()
    assert code == 0, err
    means = [each["mean"] for each in found["comparison"]]
    assert min(means[1:]) > means[0] and len(set(means)) == 4
    ledger = json.loads(cli("cost", run.path, "--json")[1])["rows"]
    asked = {row["purpose"]: row["answered"] for row in ledger}
    assert asked == {name: each["requests"] for name, each in estimate["purposes"].items()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--revise", "-1"], "--revise is -1"),
        (["--controls"], "--controls are those of a revision; give --revise too"),
        (["--revise", "1", "--batch"], "--revise takes many rounds"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(explain, server, options, said):
    code, _, err = explain(server, *options)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.scale
def test_a_subject_that_is_gone_is_named_and_nothing_is_lost(explain, server, tmp_path):
    gone = str(tmp_path / "gone")
    code, _, err = explain(server, "--revise", "1", "--subject", gone)
    assert code == 1 and gone in err.splitlines()[-1]
    sent = len(server.requests)
    assert explain(server, "--revise", "1")[0] == 0
    again = [json.dumps(body) for _, body, _ in server.requests[sent:]]
    assert not any("You test what is said" in body for body in again)


# Without a server


class Rule:
    method, model, version = "rule", "words", "1"

    def explain(self, record):
        return Explanation("words")


class Mentions:
    model, version = "mentions", "1"

    def simulate(self, explanation, tokens):
        return [float(token in explanation) for token in tokens]


@pytest.mark.parametrize(
    ("explainer", "settings", "said"),
    [
        (Rule(), {"candidates": 2}, "`candidates` is for language models that explain"),
        (Rule(), {"revise": 1}, "`revise` is for language models that explain"),
        (Model("m", "http://127.0.0.1:1/v1"), {"candidates": 1.5}, "`candidates` is 1.5"),
        (Model("m", "http://127.0.0.1:1/v1"), {"revise": "all"}, "`revise` is 'all'"),
    ],
)
def test_python_says_the_same_of_what_makes_no_sense(planted_run, explainer, settings, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        explain(planted_run, [CAT], explainer=explainer, simulator=Mentions(), **settings)


@pytest.mark.scale
def test_a_simulator_of_ones_own_chooses_too(server, run):
    found = explain(run, NEURONS, explainer=Model("m", server.url), simulator=Mentions(), revise=2)
    assert [each.text for each in found.explanations] == ["cat", "river or stone"]
    assert {each.method for each in found.explanations} == {"revised"}
    assert found.explanations[0].scores.top_and_random > 0.9


class Scripted(Connection):
    """Answers in turn."""

    model, address, concurrency = "scripted", "here", 1

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def probe(self):
        raise NotImplementedError

    async def ask(self, request):
        self.asked.append(request.messages[-1]["content"])
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Answer(answer, "stop")


class First:
    method, model, version = "model", "first", "1"

    async def request(self, record):
        return Chat(({"role": "user", "content": "QUESTION"},), 60)

    def parse(self, answer):
        return parse(answer)


async def words(explanation, tokens):
    return np.array([10.0 * (token in explanation.split()) for token in tokens])


@pytest.fixture
def revise(planted_run, planted_subject):
    def call(writing, revising, *, rounds=3, parent=(7, "moon"), controls=False):
        activate = Sentences(lambda: planted_subject, 64)
        reviser = Reviser(
            First(), writing, revising, words, "words 1", None if controls else activate,
            lambda neuron: parent, rounds,
        )  # fmt: skip
        return asyncio.run(reviser.explain(planted_run.neuron(CAT)))

    return call


def test_rounds_end_without_a_gain_and_the_best_is_kept(revise):
    revising = Scripted("tower cat", "moon cat river stone", "cat")
    found = revise(Scripted(*[SENTENCES] * 3), revising)
    assert (found.text, found.parent) == ("tower cat", 7)
    scores = [each["validation"] for each in found.data["rounds"]]
    assert len(scores) == 3 and scores[1] > scores[0] and scores[2] < scores[1]
    assert revising.answers == ["cat"]  # was not asked for any more


def test_an_answer_without_an_explanation_ends_the_rounds(revise):
    found = revise(Scripted(SENTENCES), Scripted("..."))
    assert found.text == "moon"
    assert "holds no explanation" in found.data["rounds"][0]["failure"]


def test_without_sentences_the_excerpts_are_shown(revise):
    revising = Scripted("cat", "cat")
    found = revise(Scripted("I can't.", "Sorry."), revising)
    assert found.text == "cat" and found.data["rounds"][0]["sentences"] == []
    assert revising.asked[0].count("<start>") == 2
    assert "In these texts its values differ most" in revising.asked[0]


def test_requests_that_fail_are_failures_of_the_neuron(revise):
    with pytest.raises(LLMError, match="timed out"):
        revise(Scripted(SENTENCES), Scripted(LLMError("timed out")))
    with pytest.raises(LLMError, match="no explanation to revise"):
        revise(Scripted(), Scripted(), parent=None)


def test_the_control_asks_for_no_sentences_and_shows_as_much(revise, planted_run):
    revising = Scripted("tower", "tower")
    found = revise(Scripted(), revising, rounds=1, controls=True)
    assert found.text in ("moon", "tower")
    [asked] = revising.asked
    random = [each for each in samples(planted_run.neuron(CAT), "calibration") if not each.top]
    assert asked.count("<start>") == 2 + len(random) and "at random" in asked
    assert "expected" not in asked


def test_the_worst_excerpts_lower_the_correlation_most():
    true = [np.array([0.0, 0, 8]), np.array([0.0, 8, 0]), np.array([0.0, 0, 0])]
    simulated = [np.array([0.0, 0, 8]), np.array([8.0, 0, 0]), np.array([0.0, np.nan, 0])]
    assert _worst(true, simulated)[0] == 1
    assert _worst(true, [None, *simulated[1:]]) == [1, 2]
    assert _worst(true, [None] * 3) == []
    assert _worst(true, [np.zeros(3)] * 3)[-1] == 2  # nothing was predicted


def test_neurons_that_ask_meanwhile_are_run_together(planted_subject):
    loads = []
    activating = Sentences(lambda: loads.append(1) or planted_subject, 4)
    parts = []
    run = activating._run
    activating._run = lambda part: parts.append(len(part)) or run(part)

    async def ask_all():
        digit = NeuronId(0, planted.DIGIT)
        asked = [
            (CAT, ["old cat", "the cat sees the old cat"]),
            (digit, ["3 cat"]),
            (CAT, ["moon"]),
        ]
        return await asyncio.gather(*(activating(neuron, texts) for neuron, texts in asked))

    [short, cut], [digits], [moon] = asyncio.run(ask_all())
    assert loads == [1] and parts == [1, 2]  # two asked while the first one's ran
    assert short.tokens == ["old", "cat"] and short.activations[1] > 1 > short.activations[0]
    assert cut.tokens == ["the", "cat", "sees", "the"]
    assert digits.activations[0] > 1 and digits.activations[1] == 0 and moon.activations[0] == 0
    expected = planted_subject.activations("old cat", [CAT])
    np.testing.assert_allclose(short.activations, expected.values[:, 0], rtol=1e-5, atol=1e-6)


def test_sentences_are_read_however_they_are_marked():
    found = revision.parse_sentences(SENTENCES)
    assert found[0] == ("the moon and the moon", True) and found[1] == ("bright tower", True)
    assert [should for _, should in found] == [True, True, False, False, False]
    typical = revision.parse_sentences(revision.TYPICAL)
    assert len(typical) == 6 and typical[2] == ('invoice_date = "2019-11-30"', True)
    assert revision.parse_sentences("Yes, of course.\nno\nyes:\n") == []


@settings(max_examples=40)
@given(st.text())
def test_any_answer_is_read(text):
    found = revision.parse_sentences(f"yes: {text}\nno: {text}")
    assert all(sentence.strip() and len(sentence) <= revision.LONGEST for sentence, _ in found)
    assert len({sentence for sentence, _ in found}) == len(found) <= 2 * revision.SENTENCES
