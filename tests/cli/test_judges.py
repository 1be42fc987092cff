"""Scorers that ask a model about excerpts, as their user meets them; the server is a real one."""

from __future__ import annotations

import json
import re

import planted
import pytest

import fastexplain
from fastexplain.cli.terminal import out
from fastexplain.errors import UsageError

NEURON, LOUD = f"0:{planted.MOON_AFTER_BRIGHT}", f"0:{planted.CAT}"
ALL = "detection,fuzzing,intruder"
QUESTIONS = {"detection": 5, "fuzzing": 6, "intruder": 10}


def knows(explanation, text):
    """Whether "moon" after "bright" is what is marked, or is there where nothing is marked."""
    marked = re.findall(r"(\w*)<<(.*?)>>", text)
    if not marked:
        return "brightmoon" in text
    return all(before.endswith("bright") and here.startswith("moon") for before, here in marked)


@pytest.fixture
def explain(cli, run, server):
    """Run `explain` against the server; gives exit code, the last line read as JSON, and errors."""
    server.judge = knows

    def call(*arguments):
        options = ["--explainer", "m", "--base-url", server.url, "--json"]
        code, out, err = cli("explain", run.path, *arguments, *options)
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return call


def values(found, neuron):
    """A neuron's scores by scorer, split and measure."""
    [scores] = [row["scores"] for row in found["explanations"] if row["neuron"] == neuron]
    return {(row["scorer"], row["split"], row["measure"]): row for row in scores}


def test_a_judge_who_knows_scores_one_and_a_neuron_without_silence_says_why(explain, server, run):
    code, found, err = explain(NEURON, LOUD, "--scorers", ALL)
    assert code == 0, err
    own = values(found, NEURON)
    for scorer, measure in (("detection", "balanced_accuracy"), ("fuzzing", "f1"),
                            ("intruder", "accuracy")):  # fmt: skip
        row = own[scorer, "held_out", measure]
        assert (row["value"], row["high"], row["judge"]) == (1, 1, "m")
        assert 0.5 < row["low"] < 1 and row["version"] == f"{scorer}-1 schema"
    loud = values(found, LOUD)
    assert loud["detection", "held_out", "f1"]["value"] is None
    assert "silent on only" in loud["detection", "held_out", "f1"]["reason"]
    with run.database() as database:
        assert database.query("SELECT count(*) FROM simulations") == [(0,)]
    sent = len(server.requests)
    assert explain(NEURON, LOUD, "--scorers", ALL)[1] == found
    assert len(server.requests) == sent


def test_no_way_to_simulate_is_needed_where_nothing_is_simulated(explain, server):
    server.completes = server.chat_logprobs = False
    server.schemas = ()
    mode = ("--simulation", "prompt-logprobs")
    code, _, err = explain(NEURON, *mode)
    assert code == 1 and "the simulator gives no" in err
    code, found, err = explain(NEURON, *mode, "--scorers", "detection")
    assert code == 0, err
    row = values(found, NEURON)["detection", "held_out", "balanced_accuracy"]
    assert (row["value"], row["version"]) == (1, "detection-1 free")
    assert found["explanations"][0]["simulator"] is None


def test_a_model_that_answers_no_chats_cannot_judge(explain, cli, run, server):
    server.chats = False
    command = ["explain", run.path, NEURON, "--explainer", "m", "--base-url", server.url]
    code, _, err = cli(*command, "--scorers", "detection")
    assert code == 1 and "answers no chats, so it can't judge" in err


def test_correlation_and_judges_stand_beside_each_other(explain, cli, run, monkeypatch):
    monkeypatch.setattr(out, "_width", 160)
    code, found, err = explain(NEURON, "--scorers", "correlation,detection")
    assert code == 0, err
    assert {scorer for scorer, _, _ in values(found, NEURON)} == {"correlation", "detection"}
    assert found["explanations"][0]["excerpts_top"] == 5
    code, shown, _ = cli("show", run.path, NEURON)
    words = " ".join(shown.replace("│", " ").split())
    assert re.search(r"top and random.* detection accuracy 1.00 \(0\.\d\d to 1.00\)", words)
    assert re.search(r"recall by quantile 1.00 1.00 1.00 1.00 1.00; excerpts 25", words)


def test_show_gives_each_excerpts_answer(explain, cli, run, server):
    server.judge = lambda explanation, text: True
    assert explain(NEURON, "--scorers", ALL)[0] == 0
    code, out, _ = cli("show", run.path, NEURON, "--json")
    data = json.loads(out.splitlines()[-1])
    assert code == 0 and len(data["explanations"][0]["scores"]) == 2 * 11 + 1
    judged = [row for row in data["judged"] if row["scorer"] == "detection"]
    assert len(judged) == 25 and all(row["prediction"] is True for row in judged)
    assert sum(row["correct"] for row in judged) == 15
    assert {row["distance"] for row in judged} == {-1, 1, 2, 3, 4, 5}
    record = run.neuron(NEURON)
    tops = {each.excerpt for each in record.top}
    assert all(row["activating"] for row in judged if row["excerpt"] in tops)
    intruders = [row for row in data["judged"] if row["scorer"] == "intruder"]
    assert len(intruders) == 50
    assert sum(row["prediction"] is False for row in intruders) == 10


def test_a_dry_run_counts_the_questions_and_the_ledger_names_what_they_are_for(explain, cli, run):
    arguments = (NEURON, "--scorers", ALL)
    code, estimate, _ = explain(*arguments, "--dry-run")
    assert code == 0
    expected = {"explanation": 1, **QUESTIONS}
    found = {name: share["requests"] for name, share in estimate["purposes"].items()}
    assert found == expected and estimate["requests"] == 22
    assert explain(*arguments)[0] == 0
    assert explain(*arguments, "--dry-run")[1]["requests"] == 0
    rows = json.loads(cli("cost", run.path, "--json")[1].splitlines()[-1])["rows"]
    assert {row["purpose"]: row["answered"] for row in rows} == expected
    words = cli("cost", run.path)[1]
    assert re.search(r"explanations\b", words) and re.search(r"detection\b(?!s)", words)
    assert "fuzzings" not in words


def test_answers_of_no_use_fail_by_name_and_cost_no_other_score(explain, server):
    said = server.answer

    def answer(path, request):
        if "Text 5:" in str(request) and "<<" not in str(request):
            server.content = "I'd rather not say."
        try:
            return said(path, request)
        finally:
            server.content = None

    server.answer = answer
    code, found, err = explain(NEURON, "--scorers", "detection,fuzzing")
    assert code == 0
    reason = """detection: 5 of 5 questions have no answer: the answer is not a JSON object"""
    assert f"{NEURON}: {reason}" in err
    assert {scorer for scorer, _, _ in values(found, NEURON)} == {"fuzzing"}


def test_faults_that_pass_change_nothing(explain, server):
    server.script = [""] * 30
    found = explain(NEURON, "--scorers", "detection")[1]
    server.rate, server.kinds, server.script = 0.3, ("500", "429-after", "truncated"), []
    again = explain(NEURON, "--scorers", "detection", "--fresh")[1]
    assert values(again, NEURON) == values(found, NEURON)


def test_questions_go_into_batch_files_and_their_answers_come_back(
    explain, cli, run, server, tmp_path
):
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    arguments = (NEURON, "--scorers", "detection,intruder", "--batch-file", requests)
    rounds = []
    while True:
        requests.unlink(missing_ok=True)
        code, found, err = explain(*arguments)
        if not requests.exists():
            break
        assert code == 0, err
        lines = [json.loads(line) for line in requests.read_text().splitlines()]
        rounds.append(len(lines))
        with answers.open("w") as file:
            for line in lines:
                status, body = server.answer("/v1/chat/completions", line["body"])
                response = {"status_code": status, "body": body}
                print(json.dumps({"custom_id": line["custom_id"], "response": response}), file=file)
        code, out, err = cli("ingest", run.path, answers)
        assert code == 0 and f"answers stored: {len(lines)}" in out
    assert rounds == [1, 15] and server.requests == []
    own = values(found, NEURON)
    assert own["detection", "held_out", "balanced_accuracy"]["value"] == 1
    assert own["intruder", "held_out", "accuracy"]["value"] == 1
    rows = json.loads(cli("cost", run.path, "--json")[1].splitlines()[-1])["rows"]
    assert {row["purpose"]: row["answered"] for row in rows} == {
        "explanation": 1, "detection": 5, "intruder": 10,
    }  # fmt: skip


def test_from_python_a_judge_needs_a_language_model(run, server):
    server.judge = knows
    model = fastexplain.Model("m", base_url=server.url)
    result = fastexplain.explain(run, NEURON, explainer=model, scorers=["detection"])
    assert result.failures == {} and result.requests == 1 + QUESTIONS["detection"]
    [row] = result.explanations
    with run.database() as database:
        [value] = [
            score.measured.value
            for score in database.scores(row.id)
            if score.measured.measure == "balanced_accuracy"
        ]
    assert value == 1

    class Lengths:
        model, version = "lengths", "1"

        def simulate(self, explanation, tokens):
            return [float(len(token)) for token in tokens]

    with pytest.raises(UsageError, match="'detection' asks the `simulator`, which is no language"):
        fastexplain.explain(
            run, NEURON, explainer=model, simulator=Lengths(), scorers=["detection"]
        )
