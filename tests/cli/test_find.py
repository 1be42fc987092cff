"""The commands that find neurons and rank them on a text."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import planted
import pytest

from fastexplain import Run, open_run
from fastexplain.cli import terminal
from fastexplain.cli.find import _hits_table
from fastexplain.explainers.lookup import store_lookup
from fastexplain.explainers.rules import store_rules
from fastexplain.finding.results import Evidence, Hit
from fastexplain.records import NeuronId
from fastexplain.report.columns import score_columns, statistic_columns
from fastexplain.report.entries import whole_words
from fastexplain.report.search import TokenSearch, search_data
from fastexplain.results import ExplanationRow, Scores

TEXT = "the cat walks under a rare moon"


@pytest.fixture(scope="module")
def explained(planted_run: Run, tmp_path_factory) -> Path:
    path = shutil.copytree(planted_run.path, tmp_path_factory.mktemp("find") / "run")
    store_lookup(Run(path))
    return path


def test_find_by_words_is_search(cli, explained) -> None:
    code, out, _ = cli("find", explained, "moon", "bright")
    assert code == 0 and "0:2" in out and out == cli("search", explained, "moon", "bright")[1]
    _, out, _ = cli("find", explained, "moon", "--where", "index = 2", "--json")
    assert [row["neuron"] for row in json.loads(out.splitlines()[-1])["explanations"]] == ["0:2"]
    _, out, _ = cli("find", explained, "absent", "--where", "index < 2")
    assert out.strip() == "No explanation has: absent"


def test_words_find_the_same_order_as_in_the_viewer(cli, run) -> None:
    scored = {0: 0.2, 1: 0.9, 2: None, 3: 0.6, 4: 0.95, 5: -0.1}
    texts = {4: "rivers, and a long list of much else that nobody looks for or would look for"}
    with run.database() as database:
        rows = [
            ExplanationRow(
                NeuronId(0, index), "model", "m", "1", texts.get(index, "rivers"),
                scores=Scores(score, score, score, 5, 5),
            )
            for index, score in scored.items()
        ]  # fmt: skip
        database.add_explanations(rows)
    _, out, _ = cli("find", run.path, "river", "--json")
    found = [row["neuron"] for row in json.loads(out.splitlines()[-1])["explanations"]]
    with run.database(read_only=True) as database:
        tokens = TokenSearch(run, statistic_columns(run))
        headlines = score_columns(run, database).headlines
        viewed = search_data(run, database, tokens, headlines, "river", 20)["explanations"]
    assert found == [each["neuron"] for each in viewed]
    same_fit = [name for name in found if name != "0:4"]
    assert same_fit[:3] == ["0:1", "0:3", "0:0"] and len(found) == len(scored)
    _, out, _ = cli("find", run.path, "river", "--limit", 2, "--json")
    assert [row["neuron"] for row in json.loads(out.splitlines()[-1])["explanations"]] == found[:2]


def test_pieces_are_in_their_words_wherever_an_explanation_is_shown(
    cli, explained, planted_subject, monkeypatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 300)
    run = open_run(explained)
    with run.database(read_only=True) as database:
        [row] = database.explanations(NeuronId(0, planted.CAT))
    said = whole_words(run, [row])[row.id]
    assert "·" in said and "·" not in row.text  # the planted subject's words are one long one
    name = f"0:{planted.CAT}"
    index = ["--where", f"index = {planted.CAT}"]
    place = ["--subject", planted_subject.name]
    for command in (
        ["show", explained, name],
        ["find", explained, "cat"],
        ["find", explained, *index],
        ["find", explained, "--kind", "single-token", *index],
        ["activate", explained, TEXT, *place],
        ["top", explained],
    ):
        _, out, err = cli(*command)
        assert said in out and row.text not in out, (command, err)
        if command[0] == "activate":
            continue
        _, out, _ = cli(*command, "--json")
        found = json.loads(out.splitlines()[-1])
        each = found.get("explanations") or found["found"]
        texts = [own.get("in_words", own["explanation"]) for own in each]
        assert said in texts and row.text not in texts, command


@pytest.mark.parametrize("words", ['"', "'", "' \"", "*", "-"])
def test_what_has_no_word_is_an_error_whatever_the_sign(cli, run, words) -> None:
    code, out, err = cli("find", run.path, "--", words)
    assert code == 2 and out == "" and err == "fastexplain: name a word to search for\n"


def test_top_has_a_row_for_each_neuron_unless_a_method_is_named(cli, run) -> None:
    store_lookup(run)
    store_rules(run)
    _, out, _ = cli("top", run.path, "--json")
    rows = json.loads(out.splitlines()[-1])["explanations"]
    assert len({row["neuron"] for row in rows}) == len(rows) > 3
    methods = {}
    for method in ("lookup", "rule"):
        _, out, _ = cli("top", run.path, "--method", method, "--json")
        methods[method] = json.loads(out.splitlines()[-1])["explanations"]
    best = {}
    for row in [*methods["lookup"], *methods["rule"]]:
        score = row["text_top_and_random"]
        score = row["top_and_random"] if score is None else score
        best[row["neuron"]] = max(score, best.get(row["neuron"], -1))
    assert {row["neuron"] for row in rows} == best.keys()
    for row in rows:
        score = row["text_top_and_random"]
        assert best[row["neuron"]] == (row["top_and_random"] if score is None else score)
    assert {row["method"] for row in rows} == {"lookup", "rule"}


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_kind_that_there_is_not_is_said_before_the_search_begins(cli, run, more) -> None:
    code, out, err = cli("find", run.path, "--kind", "bogus", *more)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("fastexplain: ") and "bogus" in err and "Searching" not in err


def test_find_by_a_condition_shows_where_neurons_are_strongest(cli, explained) -> None:
    code, out, _ = cli("find", explained, "--where", "kurtosis > 3 and index < 6", "--limit", 2)
    assert code == 0 and "⟦cat⟧" in out and "neurons meet it" in out
    _, out, _ = cli("find", explained, "--where", "index = 0", "--json")
    [found] = json.loads(out.splitlines()[-1])["found"]
    assert found["neuron"] == "0:0" and found["value"] is None and found["score"] > 0.9
    best = found["evidence"][0]
    assert best["tokens"][best["place"]] == "cat" and best["activation"] > 0


def test_no_mark_is_lost_in_a_narrow_column(capsys, monkeypatch) -> None:
    """Words longer than their column are folded: in code, the peak is often at their end."""
    monkeypatch.setattr(terminal.out, "width", 80)
    tokens = [*"a_name_that_is_long_and_has_no_space", "_end", "_of", "_it"]
    evidence = Evidence(0, tokens.index("_end"), 1.0, tokens)
    details = {"share": 0.5, "token": " "}
    text = "' a_name_that_is_long_too' 0.5"
    terminal.out.print(_hits_table([Hit(NeuronId(1, 123), 0.5, details, [evidence], text, 0.5)]))
    lines = capsys.readouterr().out.splitlines()
    column = lines[0].index("explanation, and where")
    shown = "".join(line[column:].strip() for line in lines[2:])
    assert "space⟦_end⟧_of_it" in shown and "…" not in shown and "'␣a_name_that_is_long" in shown
    assert max(map(len, lines)) <= 80
    assert lines[2][:column].split() == [
        "1:123",
        "0.50",
        "0.50",
        "␣",
        "0.50",
    ]  # white space is seen


def test_find_by_kind(cli, explained) -> None:
    code, out, err = cli("find", explained, "--kind", "single-token")
    assert code == 0 and "Searching for single-token" in err
    assert "0:0" in out and "cat" in out and "0:4" in out and "rare" in out
    _, out, _ = cli("find", explained, "--kind", "single-token", "--json", "--limit", 1)
    [found] = json.loads(out.splitlines()[-1])["found"]
    assert {"value", "token", "count", "evidence", "explanation"} <= found.keys()
    code, out, _ = cli("find", explained, "--kind", "position")
    assert code == 0 and "No neuron is of the kind position" in out


def test_find_lists_its_kinds(cli) -> None:
    code, out, _ = cli("find", "--kinds")
    assert code == 0 and all(kind in out for kind in ("pattern-break", "simile", "beyond-lookup"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "say what to find"),
        (["--kind", "x"], "there is no kind 'x'"),
        (["moon", "--kind", "position"], "exclude each other"),
        (["--where", "mean >"], "can't be used"),
        (["--where", "index > 999"], "none has"),
        (["--kind", "beyond-lookup"], "no scores of other explanations"),
    ],
)
def test_find_says_what_it_lacks(cli, explained, arguments: list[str], message: str) -> None:
    code, _, err = cli("find", explained, *arguments)
    assert code == 2 and message in err


def test_activate_ranks_and_shows_tokens(cli, explained) -> None:
    code, out, err = cli("activate", explained, TEXT, "--top", 3)
    assert code == 0 and "Over the text" in out and "By token" in out and "not counted" in out
    assert "⟦rare⟧" in out and "0:4" in out and "Loading" in err
    _, out, _ = cli("activate", explained, TEXT, "--json", "--neuron", "0:0", "--neuron", "0:4")
    data = json.loads(out.splitlines()[-1])
    assert data["tokens"][1] == "cat" and len(data["by_token"]) == 7 and not data["by_token"][0]
    assert data["values"]["0:0"][0] is None and np.argmax(data["values"]["0:0"][1:]) == 0
    assert {each["neuron"] for each in data["over_text"][:4]} >= {f"0:{planted.RARE}"}


def test_activate_shows_one_neurons_values(cli, explained) -> None:
    code, out, _ = cli("activate", explained, TEXT, "--neuron", "0:0")
    assert code == 0 and "Activations" in out and "By token" not in out


def test_activate_reads_standard_input_and_files(cli, explained, tmp_path, monkeypatch) -> None:
    (tmp_path / "text").write_text(TEXT)
    shown = cli("activate", explained, TEXT)[1]
    assert cli("activate", explained, "--file", tmp_path / "text")[1] == shown
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode())))
    assert cli("activate", explained, "-")[1] == shown


def test_activate_leaves_a_long_texts_tokens_to_json(cli, explained, tmp_path) -> None:
    (tmp_path / "text").write_text("cat moon " * 100)
    code, out, _ = cli("activate", explained, "--file", tmp_path / "text")
    assert code == 0 and "The text has 200 tokens; --json has them one by one." in out


def test_activate_shows_hostile_text_by_signs(cli, explained) -> None:
    code, out, _ = cli("activate", explained, "cat \x1b[2J [bold] :smile: \u202emoon\n\t")
    assert code == 0 and "\x1b[2J" not in out and "\u202e" not in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give one text"),
        (["cat", "--file", "x"], "give one text"),
        (["cat"], "has 1 of the 2 tokens it needs"),
        (["a\udc80 b c"], "is not UTF-8"),
        (["--file", "/no/such"], "/no/such can't be read"),
        ([TEXT, "--neuron", "0:999"], "there is no neuron 0:999"),
        ([TEXT, "--subject", "/no/such"], "--subject"),
    ],
)
def test_activate_says_what_it_lacks(cli, explained, arguments: list[str], message: str) -> None:
    code, _, err = cli("activate", explained, *arguments)
    assert code in (1, 2) and message in err and "unexpected" not in err


@pytest.mark.parametrize(
    "content, message", [(b"\xff\xfe\x00", "is not UTF-8 text"), (b"cat " * 2**19, "more than")]
)
def test_activate_refuses_files_that_are_no_texts(
    cli, explained, tmp_path, content: bytes, message: str
) -> None:
    (tmp_path / "text").write_bytes(content)
    code, _, err = cli("activate", explained, "--file", tmp_path / "text")
    assert code == 2 and message in err


def test_a_score_that_is_a_detail_stands_once(capsys: pytest.CaptureFixture[str]) -> None:
    details = {"lookup": 0.1, "other": 0.9}
    shown = []
    for score in (0.9, 0.8):
        terminal.out.print(_hits_table([Hit(NeuronId(1, 123), 0.8, details, [], "x", score)]))
        shown.append(capsys.readouterr().out.splitlines())
    assert shown[0][0].split()[:5] == ["neuron", "value", "lookup", "other", "explanation,"]
    assert shown[0][2].split() == ["1:123", "0.80", "0.10", "0.90", "x"]
    assert shown[1][2].split() == ["1:123", "0.80", "0.10", "0.90", "0.80", "x"]
