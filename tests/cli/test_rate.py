"""The commands by which people judge explanations, and that show what they said."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fastexplain import Run
from fastexplain.cli import rate
from fastexplain.cli.rate import judgement_line, parse_judgement
from fastexplain.cli.ratings import _explainers_table, _scores_table
from fastexplain.cli.terminal import out as screen
from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.rating.scores import ITSELF
from fastexplain.rating.session import RatingSession
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.run.ratings import GRADES, RANKING, Judgement, Ratings

TEXTS = {"gpt-x": "words for animals", "gpt-y": "[bold]\x1b[2J digits"}
HOSTILE = "Ada [red]"


@pytest.fixture(scope="module")
def explained(planted_run: Run, tmp_path_factory) -> Path:
    path = shutil.copytree(planted_run.path, tmp_path_factory.mktemp("rate") / "run")
    run = Run(path)
    store_lookup(run)
    with run.database() as database:
        for index in range(3):
            for number, (model, text) in enumerate(TEXTS.items()):
                row = ExplanationRow(NeuronId(0, index), "model", model, "v1", text)
                [id_] = database.add_explanations([row])
                measured = Scores(None, 0.2 + number / 2, None, 5, 5).measured()
                database.add_scores("correlation", "judge", "v1", {id_: measured})
    return path


@pytest.fixture
def path(explained, tmp_path) -> Path:
    return shutil.copytree(explained, tmp_path / "run")


@pytest.fixture
def say(cli, path, monkeypatch):
    """Run `fastexplain rate` with these lines as standard input."""

    def run(*lines, rater="Ada", arguments=()):
        raw = b"".join(
            (line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines
        )
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        return cli("rate", path, *arguments, "--rater", rater)

    return run


def stored(path, *, withdrawn=False):
    with Run(path).database(read_only=True) as database:
        return [each for each in Ratings(database).all() if withdrawn or each.withdrawn is None]


def test_a_pipe_judges_one_neuron_after_another(say, path) -> None:
    code, out, err = say("2 1 3", "  g 1  5 3 ", "3=1 2")
    assert (code, err) == (0, "")
    assert [each.judgement for each in stored(path)] == [
        Judgement(RANKING, (2, 1, 3)), Judgement(GRADES, (1, 5, 3)), Judgement(RANKING, (1, 3, 1)),
    ]  # fmt: skip
    assert re.findall(r"Stored for (0:\d): (.*)", out) == [
        (str(each.neuron), line)
        for each, line in zip(stored(path), ("2 1 3", "g 1 5 3", "1=3 2"), strict=True)
    ]
    assert "Nothing is left: all neurons are judged or skipped." in out
    assert "By Ada: 3 rated, 0 skipped, 0 undone; left: 0 neurons." in out
    assert len({each.neuron for each in stored(path)}) == 3


def test_a_neuron_is_shown_blind_with_its_activations_and_nothing_steers_the_terminal(say) -> None:
    code, out, _ = say("q", arguments=["0:0"])
    assert code == 0 and "neuron 0:0" in out
    assert "top excerpts of the test split" in out and "cat⟦10⟧" in out
    assert "random excerpts of the test split" in out
    assert "words for animals" in out and "[bold]\\x1b[2J digits" in out and "\x1b" not in out
    assert not any(name in out for name in ("gpt-x", "gpt-y", "lookup", "v1"))


def test_what_is_said_can_be_skipped_changed_and_undone(say, path) -> None:
    code, out, err = say("s", "2 1 3", "b", "b", "g 5 5 1", "u", "n", "u", "?", "u", "u")
    assert code == 0 and err.strip() == "there is nothing to undo"
    assert "So far: 2 1 3" in out and "So far: skipped" in out
    assert re.findall(r"Undone for 0:\d: (.*)", out) == ["g 5 5 1", "2 1 3", "skipped"]
    assert stored(path) == [] and len(stored(path, withdrawn=True)) == 3
    assert "2=1 3    the same with a tie" in out


def test_bad_lines_are_said_and_asked_again(say, path) -> None:
    lines = ["1 2", "1 2 2", "0 1 2", "x", "", "1,2,3", "g 1 2", "g 1 2 6", "=", "g", "b", "u"]
    code, out, err = say(*lines, b"\xff\xfe", "1 2 3")
    assert code == 0 and len(err.splitlines()) == len(lines) + 1
    assert "'1 2 2' is no ranking of 3 explanations; name each once, best first, as in 2 1 3" in err
    assert "'g 1 2 6' is not 3 grades; write g and a number from 1 to 5" in err
    assert [each.judgement.values for each in stored(path)] == [(1, 2, 3)]
    assert out.count("neuron 0:") == 2  # nothing is shown again for a bad line


def test_where_all_are_judged_there_is_still_a_way_back(say, path) -> None:
    say("1 2 3", arguments=["0:1"])
    code, out, err = say("1 2 3", "b", "3 2 1", arguments=["0:1"])
    assert code == 0 and err.strip() == "nothing is left to judge; b goes back, u undoes, q quits"
    assert [each.judgement.values for each in stored(path)] == [(3, 2, 1)]
    assert out.count("Nothing is left") == 2


def test_explanations_that_change_meanwhile_are_shown_again(say, path, monkeypatch) -> None:
    store, changed = RatingSession.store, []

    def change_once(self, *arguments):
        if not changed:
            changed.append(True)
            row = ExplanationRow(NeuronId(0, 1), "model", "gpt-x", "v1", "another text")
            with self.run.database() as database:
                database.add_explanations([row])
        return store(self, *arguments)

    monkeypatch.setattr(RatingSession, "store", change_once)
    code, out, err = say("1 2 3", "1 2 3", arguments=["0:1"])
    assert code == 0 and "the explanations of 0:1 have changed since they were shown" in err
    assert "another text" in out and len(stored(path)) == 1
    assert "another text" in [shown.text for shown in stored(path)[0].shown]


def test_the_result_as_json(say) -> None:
    _, out, _ = say("1 2 3", "s", "u", rater=HOSTILE, arguments=["--json", "--texts", "3"])
    result = json.loads(out.splitlines()[-1])
    del result["run"]
    assert result == {"rater": HOSTILE, "rated": 1, "skipped": 1, "undone": 1, "left": 2}


def test_named_neurons_that_cant_be_compared_are_left_out(say) -> None:
    code, out, err = say("q", arguments=["0:0", "0:119", "0:7"])
    assert code == 0 and err.strip().startswith("Left out: 2 neurons without two explanations")
    assert "neuron 0:0" in out


@pytest.mark.parametrize(
    "rater, arguments, said",
    [
        (" ", [], "no name of a rater"),
        ("x" * 80, [], f"'{'x' * 80}' is no name of a rater; give 1 to"),
        ("Ada", ["0:119"], "no neuron of the 1 named has two explanations that differ"),
        ("Ada", ["0:120"], "there is no neuron 0:120"),
        ("Ada", ["--texts", "1"], "1 explanations can't be compared; --texts takes 2 or more"),
    ],
)
def test_what_cant_begin_says_why(say, rater, arguments, said) -> None:
    code, _, err = say(rater=rater, arguments=arguments)
    assert code == 2 and said in err


@pytest.mark.parametrize(
    "line, judgement",
    [
        ("3 1 2", Judgement(RANKING, (2, 3, 1))),
        ("3=1 = 2", Judgement(RANKING, (1, 1, 1))),
        ("2 3=1", Judgement(RANKING, (2, 1, 2))),
        ("g 1 1 5", Judgement(GRADES, (1, 1, 5))),
    ],
)
def test_lines(line, judgement) -> None:
    assert parse_judgement(line, 3) == judgement
    assert parse_judgement(judgement_line(judgement), 3) == judgement


def test_help_names_neurons_as_other_commands_do(cli, path) -> None:
    usages = [cli(command, "--help")[1].split("\n")[0] for command in ("rate", "explain")]
    assert all(usage.endswith(" {RUN} [NEURON]...") for usage in usages)


def test_a_line_for_two_is_explained_with_two() -> None:
    with pytest.raises(UsageError, match=r"as in 2 1, or 2=1 for a tie"):
        parse_judgement("3", 2)


def test_ratings_show_what_people_said(say, cli, path) -> None:
    for rater in ("Ada", HOSTILE, "Cy"):
        say(*["g 3 3 3"] * 3, rater=rater)
    code, out, err = cli("ratings", path, "--json")
    data = json.loads(out)
    assert (code, err, data["neurons"], data["missing"]) == (0, "", 3, 0)
    assert [(row["rater"], row["grades"]) for row in data["raters"]] == [
        ("Ada", 3), (HOSTILE, 3), ("Cy", 3),
    ]  # fmt: skip
    assert data["between_raters"]["grades"]["units"] == 9
    assert {row["model"] for row in data["explainers"]} == {"gpt-x", "gpt-y", "lookup"}
    assert all(row["strength"] == pytest.approx(0) for row in data["explainers"])
    [score] = [each for each in data["scores"] if each["split"] == "top_and_random"]
    assert score["alike"] is None and score["pairs"] == 27
    code, out, _ = cli("ratings", path)
    assert code == 0 and HOSTILE in out and "undefined" in out


def test_preferences_are_counted_with_whose_they_are(say, cli, path) -> None:
    """Two raters, who order the texts by what they say, whatever their order on the screen."""
    liked = ["[bold]\x1b[2J digits", "words for animals"]
    run = Run(path)
    for rater in ("Ada", "Bob"):
        session = RatingSession(run, rater)
        while task := session.next_task():
            ranks = [1 + (liked.index(text) if text in liked else 2) for text in task.texts]
            session.store(task.neuron, task.key, Judgement(RANKING, tuple(ranks)))
    data = json.loads(cli("ratings", path, "--json")[1])
    assert [row["model"] for row in data["explainers"]] == ["gpt-y", "gpt-x", "lookup"]
    assert [row["preferred"] for row in data["explainers"]] == [1, 0.5, 0]
    assert data["between_raters"]["order"]["alpha"] == pytest.approx(1)
    [score] = [e for e in data["scores"] if (e["split"], e["judge"]) == ("top_and_random", "judge")]
    assert score["scorer"] == "correlation" and score["pairs"] >= 6
    code, out, _ = cli("ratings", path)
    assert code == 0 and "1.00, from 9 comparisons of 3 neurons by two raters or more" in out
    assert "gpt-y" in out and "correlation, top and random, by judge" in out


def test_ratings_as_csv(say, cli, path, tmp_path) -> None:
    say("2 1 3", "s", "1 2 3", "u")
    code, _, err = cli("ratings", path, "--csv", tmp_path / "out.csv")
    assert code == 0 and err.startswith("Wrote 3 ratings to ")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 + 1 + 3
    first = [row for row in rows if row["rating"] == "1"]
    assert [row["value"] for row in first] == ["2", "1", "3"] and first[0]["withdrawn"] == ""
    assert [row["place"] for row in first] == ["1", "2", "3"]
    shown = stored(path)[0].shown
    assert [row["text"] for row in first] == [each.text for each in shown]
    assert {row["method"] for row in first} == {"lookup", "model"}
    assert [row["kind"] for row in rows if row["rating"] == "2"] == ["skipped"]
    assert all(row["withdrawn"] for row in rows if row["rating"] == "3")
    code, _, err = cli("ratings", path, "--csv", tmp_path)
    assert code == 1 and "can't write" in err and "Is a directory" in err


def test_nothing_is_rated_yet(cli, path) -> None:
    code, out, _ = cli("ratings", path)
    assert code == 0 and f"fastexplain rate {path} --rater NAME" in out.replace("\n", "")
    data = json.loads(cli("ratings", path, "--json")[1])
    assert data["raters"] == data["explainers"] == data["scores"] == []


def test_a_score_of_texts_alone_says_so(path, capsys) -> None:
    row = {"scorer": "correlation", "version": "", "split": "random_only", "tau": 0.5,
           "measure": "correlation", "alike": 0.5, "alike_low": None, "alike_high": None,
           "pairs": 3, "neurons": 1}  # fmt: skip
    screen.print(_scores_table([row | {"judge": ITSELF}, row | {"judge": "m"}]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "correlation, random only, without a simulator 0.50" in shown
    assert "correlation, random only, by m 0.50" in shown and "itself" not in shown


def test_explainers_that_were_never_compared_are_said_to_be_apart(cli, path, capsys) -> None:
    row = {"method": "model", "version": "1", "strength_low": None, "strength_high": None,
           "preferred": 0.5, "wins": 1, "ties": 0, "losses": 1, "neurons": 1}  # fmt: skip
    rows = [
        row | {"model": name, "strength": 0.0, "group": n // 2} for n, name in enumerate("abcd")
    ]
    screen.print(_explainers_table(rows))
    shown = capsys.readouterr().out
    assert "2 groups that were never compared" in " ".join(shown.split())


def test_a_terminal_is_asked_and_ctrl_d_ends_it(cli, path, monkeypatch) -> None:
    class Typed(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Typed("2 1 3\n"))
    code, out, err = cli("rate", path, "0:1", "--rater", "Ada")
    assert code == 0 and "1 rated" in out
    assert err == "Rank, best first (? helps): b or q: \n"


def test_colours_are_for_terminals(path, monkeypatch) -> None:
    """As `show` does: backgrounds in place of numbers."""
    coloured = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    monkeypatch.setattr(rate, "out", coloured)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    rate._Dialogue(RatingSession(Run(path), "Ada", [NeuronId(0, 0)])).run()
    shown = coloured.file.getvalue()
    assert "\x1b[30;48;2;" in shown and "cat⟦10⟧" not in shown
    assert np.max([len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).split("\n")]) <= 80
