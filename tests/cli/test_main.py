"""The command line, as a user types it."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import planted
import pytest
from rich.console import Console

import fastexplain
from fastexplain.cli import demo
from fastexplain.cli.common import size_of
from fastexplain.cli.neuron import print_neuron
from fastexplain.cli.terminal import out as out_console
from fastexplain.errors import RunError, UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.explainers.rules import store_rules
from fastexplain.results import ExplanationRow, Scores
from fastexplain.run.selection import parse_layers, select_neurons

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Text of the planted subject's words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(planted.WORDS, 20_000)))
    return path


@pytest.fixture(scope="module")
def swept(planted_subject, text, tmp_path_factory) -> Path:
    """A run of the planted subject, explained by lookup and by rules."""
    corpus = fastexplain.Corpus([text], planted_subject.tokenizer)
    run = fastexplain.sweep(planted_subject, corpus, tmp_path_factory.mktemp("cli") / "run")
    store_lookup(run)
    store_rules(run)
    return run.path


def test_files_that_are_passed_over_are_counted_and_listed_on_request(
    cli, planted_subject, text, tmp_path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "words.txt").write_text(text.read_text())
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    for number, option in enumerate([[], ["--verbose"]]):
        out = tmp_path / f"run{number}"
        sweep = ["sweep", planted_subject.name, "--corpus", folder, "--out", out, "--excerpts", 8]
        code, _, shown = cli(*sweep, *option)
        assert code == 0 and "Files passed over: 1 (not UTF-8 text: 1)" in shown
        assert (f"{folder / 'latin.txt'} is not UTF-8 text" in shown) == bool(option)
        assert ("--verbose lists them" in shown) != bool(option)


def test_help_imports_neither_torch_nor_transformers() -> None:
    """Nor do lookup and reports, which follow."""
    script = (
        "import sys; sys.argv = ['fastexplain', '--help']\n"
        "from fastexplain.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "print(sorted({'torch', 'transformers', 'numba', 'openai', 'numpy'} & set(sys.modules)))\n"
        "import fastexplain.cli.run_jobs\n"
        "print(sorted({'torch', 'transformers', 'openai'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert shown.stdout.splitlines()[-2:] == ["[]", "[]"]
    for command in ("sweep", "explain", "show", "top", "doctor", "bench", "demo", "report"):
        assert f"  {command} " in shown.stdout


def test_the_list_of_commands_fits_80_columns_whole(cli, monkeypatch) -> None:
    """Each line is the first sentence of that command's help, to its full stop."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli("--help")
    lines = out.partition("Commands:\n")[2].splitlines()
    assert code == 0 and len(lines) >= 9
    for line in lines:
        command, summary = line.strip().split(maxsplit=1)
        shown = " ".join(cli(command, "--help")[1].split())
        assert len(line) <= 80 and summary.endswith(".") and "..." not in summary, line
        assert f" {summary} " in shown, line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["swe"], ["sweep"]),
        (["sweep", "smollm2", "--trust"], ["--trust-remote-code"]),
    ],
)
def test_bash_completes_commands_and_options(tmp_path, words, expected) -> None:
    """The printed script, in a real bash that finds fastexplain on its path."""
    program = tmp_path / "fastexplain"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "cli.py"} "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(fastexplain --show-completion bash)"\n'
        f"COMP_WORDS=(fastexplain {' '.join(words)})\nCOMP_CWORD={len(words)}\n"
        "_fastexplain_completion fastexplain\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = subprocess.run(
        ["bash", "-c", script], check=True, capture_output=True, text=True, env=environment
    )
    assert shown.stdout.split() == expected


def test_lookup_explains_everything_and_shows_what_was_named(cli, swept) -> None:
    code, out, _ = cli("explain", swept, f"0:{planted.CAT}", "--json")
    rows = json.loads(out.splitlines()[-1])["explanations"]
    [row] = [each for each in rows if each["method"] == "lookup"]
    assert code == 0 and {each["neuron"] for each in rows} == {f"0:{planted.CAT}"}
    assert row["explanation"].startswith("'cat'") and row["top_and_random"] > 0.95
    assert (row["excerpts_top"], row["excerpts_random"]) == (5, 5)
    assert row["data"][0]["token"] == "cat"
    code, out, _ = cli("explain", swept, "0:*", "--json")
    rows = json.loads(out.splitlines()[-1])["explanations"]
    assert sum(each["method"] == "lookup" for each in rows) == planted.NEURONS


def test_top_shows_the_best(cli, swept) -> None:
    code, out, _ = cli("top", swept, "--limit", 3, "--json")
    rows = json.loads(out.splitlines()[-1])["explanations"]
    assert code == 0 and len(rows) == 3
    # Of lookup the text's; a rule is its text.
    scores = [row["text_top_and_random"] or row["top_and_random"] for row in rows]
    assert scores == sorted(scores, reverse=True) and scores[2] > 0.9
    code, out, _ = cli("top", swept, "--by", "random_only")
    assert code == 0 and "'cat'" in out


def test_show_puts_the_true_beside_the_simulated(cli, swept) -> None:
    code, out, _ = cli("show", swept, f"0:{planted.CAT}")
    assert code == 0
    assert "cat⟦10⟧" in out
    without = out.split("Without an explanation of it")[1].split("What the text")[0]
    rows = dict(re.findall(r"^(another .*?|the .*?)  +(\S+) +\S+ *$", without, re.MULTILINE))
    assert list(rows) == ["another neuron's table", "the token alone", "the place in the excerpt"]
    assert float(rows["the token alone"]) > 0.9 and rows["another neuron's table"] == "undefined"
    true = [line for line in out.splitlines() if line.lstrip().startswith("true ")]
    simulated = [line for line in out.splitlines() if line.lstrip().startswith("lookup ")]
    assert len(true) == len(simulated) == 5
    assert out.count("top excerpt of the test split") == 3
    assert out.count("random excerpt of the test split") == 2
    assert all("cat⟦" in line for line in [*true, *simulated])


def test_show_prints_a_rules_terms_and_what_it_predicts(cli, swept) -> None:
    code, out, _ = cli("show", swept, "0:2", "--count", 2)
    assert code == 0
    terms = out.split("What the rule says")[1].split("\n\n")[0].splitlines()
    assert terms[1].split() == ["term", "adds", "count", "where", "it", "stands", "from"]
    assert re.match(r"'moon' after 'bright' +\d.* \d+ .*bright«.?moon».*top 1", terms[3])
    assert terms[-1].startswith("everywhere")
    tested = out.split("of the test split")[1]
    by = dict(re.findall(r"^ *(true|rule|lookup)  (.*)$", tested, re.MULTILINE))
    # It is as high at the moon after the bright as the neuron is, and nowhere else.
    assert by["rule"].count("moon⟦") == by["true"].count("moon⟦") > 0


def test_show_says_that_a_rule_is_of_another_version(cli, swept, tmp_path) -> None:
    run = fastexplain.open_run(shutil.copytree(swept, tmp_path / "run"))
    scores = Scores(0.9, 0.9, 0.9, 5, 5)
    old = ExplanationRow(
        fastexplain.NeuronId(0, 2), "rule", "rule", "rule-1", "x", [{"term": "x"}], scores=scores
    )
    with run.database() as database:
        database.add_explanations([old])
    code, out, _ = cli("show", run.path, "0:2")
    assert code == 0 and "No terms: the rule of 0:2 is by another version" in out


def test_show_as_json_has_the_whole_neuron(cli, swept) -> None:
    code, out, _ = cli("show", swept, f"0:{planted.DIGIT}", "--json", "--count", 2)
    data = json.loads(out.splitlines()[-1])
    assert code == 0 and data["neuron"] == f"0:{planted.DIGIT}"
    assert len(data["top"]) == len(data["random"]) == 2
    assert len(data["top"][0]["activations"]) == 64
    assert data["statistics"]["fraction_positive"] > 0
    assert list(data["baselines"]) == ["mismatched", "token", "position"]
    # Five top ones and all random ones of the test split, by the table and by the text.
    assert [each["simulator"] for each in data["simulations"]] == ["lookup"] * 13 + ["list"] * 13
    assert data["simulations"][0]["activations"][0] is None  # not counted


def test_search_finds_explanations_by_their_words(cli, swept) -> None:
    code, out, _ = cli("search", swept, "moon", "bright")
    assert code == 0 and "0:2" in out
    _, out, _ = cli("search", swept, "Moon", "--limit", "1", "--json")
    [row] = json.loads(out.splitlines()[-1])["explanations"]
    assert "moon" in row["explanation"]
    code, out, _ = cli("search", swept, "absent", "[moon]")
    assert (code, out.strip()) == (0, "No explanation has: absent [moon]")
    code, _, err = cli("search", swept, '"')
    assert code == 2 and "name a word" in err


def test_show_keeps_explanations_apart(cli, swept, tmp_path) -> None:
    """Two explanations that one simulator simulated: each with its own predictions."""
    run = shutil.copytree(swept, tmp_path / "run")
    record = fastexplain.open_run(run).neuron("0:3")
    with fastexplain.open_run(run).database() as database:
        for value, version in ((1, "a"), (2, "b")):
            row = ExplanationRow(record.id, "model", "m", version, f"says {version}")
            [explanation] = database.add_explanations([row])
            values = np.full(64, value, np.float32)
            values[0] = np.inf
            database.add_simulation(explanation, "s", "1", record.top[3].excerpt, "test", values)
            measured = Scores(None, 0.5, None, 0, 1).measured()
            database.add_scores("correlation", "s", "1", {explanation: measured})
    code, out, _ = cli("show", run, "0:3", "--json")
    data = json.loads(out.splitlines()[-1])
    said = {row["id"]: row["explanation"] for row in data["explanations"]}
    shown = {
        said[one["explanation"]]: one["activations"][:2]
        for one in data["simulations"] if one["simulator"] == "s"
    }  # fmt: skip
    assert code == 0 and shown == {"says a": [None, 1.0], "says b": [None, 2.0]}
    code, out, _ = cli("show", run, "0:3")
    assert "m, simulated by s" in out and "1 + 0" in out


def test_what_counts_for_nothing_is_not_coloured(planted_subject, tmp_path) -> None:
    """An attention sink at the first token would drown all else."""
    corpus = fastexplain.Corpus.from_excerpts(
        np.random.default_rng(0).integers(0, planted.TOKENS, (50, 64)).astype(np.int32)
    )
    run = fastexplain.sweep(planted_subject, corpus, tmp_path / "run")
    store_lookup(run)
    record = run.neuron(f"0:{planted.CAT}")
    for exemplar in [*record.top, *record.random]:
        exemplar.activations[0] = 500
    shown = io.StringIO()
    print_neuron(Console(file=shown, width=400), run, record, 5)
    for line in shown.getvalue().splitlines():
        if line.lstrip().startswith(("true ", "lookup ")):
            # The words stand without spaces: the first mark must follow "cat".
            assert line.split("⟦")[0].endswith("cat"), line


def test_show_before_any_explanation_says_what_to_do(cli, planted_run) -> None:
    code, out, _ = cli("show", planted_run.path, "0:6")
    assert code == 0 and "fastexplain explain" in out


def test_looking_at_a_run_writes_nothing(cli, planted_run, tmp_path) -> None:
    run = shutil.copytree(
        planted_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("run.sqlite*")
    )
    assert cli("top", run)[0] == 0 and cli("show", run, "0:1")[0] == 0
    assert not (run / "run.sqlite").exists()


def test_a_run_that_cannot_be_written_can_be_looked_at(cli, swept, monkeypatch) -> None:
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    code, out, _ = cli("top", swept, "--limit", 1)
    assert code == 0 and re.search(r"^0:\d +(rule|lookup, text) +1\.00 ", out, re.MULTILINE)


def test_explain_fails_when_nothing_was_explained(cli, planted_run, make_model, make_tokenizer,
                                                   tmp_path) -> None:  # fmt: skip
    """A real model without a chat template can't explain; that is said, and the exit code tells."""
    model = tmp_path / "model"
    make_model().save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    run = shutil.copytree(planted_run.path, tmp_path / "run")
    code, _, err = cli("explain", run, f"0:{planted.CAT}", "--explainer", model, "--local")
    assert code == 1 and "chat template" in err


@pytest.mark.scale
def test_the_demo_goes_from_a_sweep_to_a_table(stdlib_run, monkeypatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(demo, "out", Console(file=shown, width=120))
    result = demo.run_demo(stdlib_run.path, excerpts=200, neurons=1, show=True)
    assert result["lookup_mean_top_and_random"] > 0.3 and len(result["layers"]) == 30
    by = sorted(row["explainer"] for row in result["explanations"])
    assert by == ["lookup", "rule", "smollm2"]
    table = shown.getvalue()
    assert "weak explainer" in table and "--base-url" in table and "46,080" in table
    assert "5 + 5" in table and "mismatched" in table and "Means over all neurons" in table
    for row in result["explanations"]:
        assert row["baselines"].keys() == {"mismatched", "token", "position"}
    assert (stdlib_run.path / "report" / "index.html").stat().st_size > 100_000


@pytest.mark.scale
def test_the_demo_does_not_take_another_run_for_its_own(planted_run, stdlib_run) -> None:
    for run, excerpts in ((planted_run, 400), (stdlib_run, 300)):
        with pytest.raises(RunError, match="not this demo's"):
            demo.run_demo(run.path, excerpts=excerpts, neurons=0, show=False)


def test_doctor_says_which_path_is_taken(cli, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    code, out, _ = cli("doctor", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert code == 0 and facts["torch"] and "kernels on the" in facts["path"]
    assert facts["openai_api_key"] == "set" and "a-secret" not in out
    code, out, _ = cli("doctor")
    assert code == 0 and "transformers" in out and "a-secret" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sweep", "SUBJECT"], 2, "--corpus"),
        (
            ["sweep", "SUBJECT", "--corpus", "x", "--out", "y", "--layers", "5-1"],
            2,
            "the range 5-1 ends",
        ),
        (["sweep", "SUBJECT", "--corpus", "x", "--out", "y", "--dtype", "int3"], 2, "float32"),
        (["sweep", "SUBJECT", "--corpus", "/no/such", "--out", "RUN/../new"], 1, "/no/such"),
        (["sweep", "/no/such/model", "--corpus", "stdlib", "--out", "y"], 1, "/no/such/model"),
        (["sweep", "SUBJECT", "--corpus", "TEXT", "--out", "RUN"], 1, "holds a run already"),
        (["sweep", "SUBJECT", "--corpus", "TEXT", "--out", "TEXT"], 1, "is no directory; choose"),
        (["demo", "--out", "TEXT"], 1, "is no directory; choose"),
        (["demo", "--out", "a" * 300], 1, "can't be a directory: File name too long"),
        (["sweep", "SUBJECT", "--corpus", "TEXT", "--out", "z", "--top-k", "0"], 2, "--top-k is 0"),
        (["explain", "/no/such/run"], 1, "not a finished run"),
        (["explain", "RUN", "cat"], 2, "layer:index"),
        (["explain", "RUN", "9:*"], 2, "was not swept"),
        (["explain", "RUN", "--local"], 2, "--local is for language models"),
        (["explain", "RUN", "--explainer", "m"], 2, "name the neurons"),
        (["explain", "RUN", "0:1", "--explainer", "m", "--local", "--base-url", "u"], 2, "exclude"),
        (["show", "RUN", "0:9999"], 2, "there is no neuron"),
        (["top", "RUN", "--method", "magic"], 2, "there are lookup"),
        (["top", "RUN", "--by", "luck"], 2, "top_and_random"),
        (["top", "RUN", "--limit", "0"], 2, "limit"),
        (["top", "RUN", "--limit", str(2**63)], 2, "larger than any in a database"),
        (["top", "RUN", "--layer", "3"], 2, "was not swept"),
        (["show", "RUN", "0:1", "--count", "-1"], 2, "count"),
        (["demo", "--neurons", "-1"], 2, "neurons"),
        (
            ["sweep", "SUBJECT", "--corpus", "TEXT", "--out", "z", "--layers", "0-9"],
            2,
            "layer 1 is",
        ),
        (["sweep", "SUBJECT", "--corpus", "TEXT", "--out", "z", "--seed", "-1"], 2, "the seed is"),
        (["fly"], 2, "fly"),
    ],
)
def test_errors_are_one_line(cli, swept, planted_subject, text, tmp_path, monkeypatch,
                             arguments, code, message) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {"SUBJECT": planted_subject.name, "RUN": str(swept), "TEXT": str(text)}
    filled = [argument.replace("RUN", names["RUN"]) for argument in arguments]
    got, _, err = cli(*(names.get(argument, argument) for argument in filled))
    lines = [line for line in err.splitlines() if line.strip()]
    assert got == code, err
    assert lines[-1].startswith("fastexplain: ") and message in lines[-1]
    assert "Traceback" not in err


def test_debug_shows_the_traceback(swept) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "show", str(swept), "0:9999", "--debug"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 1 and "Traceback" in shown.stderr


def test_an_unexpected_error_is_one_line_too(cli, swept, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug\nwith two lines")

    monkeypatch.setattr("fastexplain.run.directory.open_run", broken)
    code, _, err = cli("top", swept)
    assert code == 1 and err.count("\n") == 1
    assert "ZeroDivisionError: a bug" in err and "--debug" in err


def test_too_little_memory_is_said(cli, swept, monkeypatch) -> None:
    def large(*_: object) -> None:
        np.empty((2**40, 2**10))

    monkeypatch.setattr("fastexplain.run.directory.open_run", large)
    code, _, err = cli("top", swept)
    assert code == 1 and err.startswith("fastexplain: there is not enough memory: Unable to ")


def test_bare_and_version(cli) -> None:
    assert "Commands:" in cli()[1]
    assert cli("--version") == (0, f"fastexplain {fastexplain.__version__}\n", "")


def test_compile_is_a_setting_of_the_sweep(cli, planted_subject, text, tmp_path) -> None:
    arguments = [planted_subject.name, "--corpus", text, "--out", tmp_path / "run"]
    assert cli("sweep", *arguments, "--excerpts", "8", "--compile")[0] == 0
    assert fastexplain.open_run(tmp_path / "run").manifest["settings"]["compile"] is True


def test_explain_ends_with_the_best_of_each_layer(cli, swept, monkeypatch) -> None:
    monkeypatch.setattr(out_console, "_width", 80)
    code, out, _ = cli("explain", swept)
    assert code == 0 and "The best of layer 0" in out
    lines = [line.split() for line in out.splitlines() if line.lstrip().startswith("0:")]
    with fastexplain.open_run(swept).database() as database:
        lists = {str(row.neuron): row for row in database.best(10, "lookup")}
        rules = {str(row.neuron): row.scores.top_and_random for row in database.best(10, "rule")}
    assert lines and {neuron for neuron, *_ in lines} == lists.keys() | rules.keys()
    ruled = [line for line in lines if not re.fullmatch(r"-?\d\.\d\d", line[2])]
    assert 0 < len(ruled) < len(lines)  # rules stand among lists, where they are better
    for neuron, text, *_ in ruled:
        assert float(text) == pytest.approx(rules[neuron], abs=0.005)
        assert rules[neuron] > lists[neuron].text_scores.top_and_random
    for neuron, text, table, *_ in (line for line in lines if line not in ruled):
        scores = lists[neuron].text_scores.top_and_random, lists[neuron].scores.top_and_random
        assert (float(text), float(table)) == pytest.approx(scores, abs=0.005)
    assert max(map(len, out.splitlines())) <= 80


def test_a_list_has_the_entries_that_were_asked_for(cli, run) -> None:
    def entries() -> int:
        with run.database() as database:
            rows = database.explanations(fastexplain.NeuronId(0, planted.DIGIT))
            [found] = [row for row in rows if row.method == "lookup"]
            return len(found.data)

    assert cli("explain", run.path, "--entries", 4)[0] == 0 and entries() == 4
    assert cli("explain", run.path)[0] == 0 and entries() == 4  # what is there is shown
    code, _, err = cli("explain", run.path, "--entries", 5)
    assert code == 2 and "--entries is 5; choose one of 4, 8, 16, 32" in err and entries() == 4
    code, _, err = cli("explain", run.path, "0:1", "--entries", 8, "--explainer", "m")
    assert code == 2 and "--entries is for lookup" in err
    found = fastexplain.explain(run, "0:1", entries=8)
    assert entries() == 6 and "table 1.00" in repr(found)
    with pytest.raises(fastexplain.FastexplainError, match="`entries` is for lookup"):
        fastexplain.explain(run, "0:1", explainer=fastexplain.Model("m"), entries=8)


def test_show_names_both_scores_and_each_entrys_place(cli, swept) -> None:
    code, out, _ = cli("show", swept, f"0:{planted.MOON_AFTER_BRIGHT}")
    assert code == 0 and "lookup, text" in out and "lookup, table" in out
    assert "What the text of lookup says" in out and "«brightmoon»" in out
    assert "anything else" in out and "Scores rest on 5 + 5 excerpts" in out
    assert out.count("\nlookup, text  ") == 5  # simulations, beside the table's


def test_lookup_is_not_done_twice_unless_asked(cli, swept, monkeypatch) -> None:
    done: list[int] = []
    monkeypatch.setattr("fastexplain.cli.run_jobs.store_lookup", lambda *_, **__: done.append(1))
    assert cli("explain", swept)[0] == 0 and done == []
    assert cli("explain", swept, "--fresh")[0] == 0 and done == [1]


@pytest.mark.scale
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_in_a_sweep_loses_nothing(
    cli, planted_subject, text, tmp_path, name, code
) -> None:
    """A real signal to a real process, at the moment when its first batch is done."""
    script = (
        "import os, signal, sys\n"
        "from fastexplain.cli import main\n"
        "from fastexplain.sweeping import summaries\n"
        "update = summaries.Exemplars.update\n"
        "def once(*arguments):\n"
        "    summaries.Exemplars.update = update\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "    update(*arguments)\n"
        "summaries.Exemplars.update = once\n"
        "main.main()\n"
    )
    sweep = [
        "sweep", planted_subject.name, "--corpus", str(text), "--out", str(tmp_path / "run"),
        "--batch-size", "100", "--json",
    ]  # fmt: skip
    first = subprocess.run([sys.executable, "-c", script, *sweep], capture_output=True, text=True)
    assert first.returncode == code and "Stopped after 100 of" in first.stderr
    assert "Traceback" not in first.stderr
    assert (tmp_path / "run" / "checkpoints" / "100").is_dir()
    code, out, errors = cli(*sweep)
    assert code == 0, errors
    result = json.loads(out.splitlines()[-1])
    assert {"tokens", "seconds", "tokens_per_second"} <= set(result)
    assert (result["excerpts"], result["neurons"]) == (312, planted.NEURONS)


def test_sigterm_stops_a_process_that_ignores_ctrl_c(swept, monkeypatch, cli) -> None:
    """A shell script starts its background jobs so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)

    def terminated(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("fastexplain.run.directory.open_run", terminated)
    try:
        assert cli("top", swept) == (143, "", "fastexplain: interrupted\n")
        assert signal.getsignal(signal.SIGTERM) is before[1]
    finally:
        signal.signal(signal.SIGINT, before[0])


def test_ctrl_c_is_one_line_with_its_own_code(cli, swept, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastexplain.run.directory.open_run", interrupted)
    assert cli("top", swept) == (130, "", "fastexplain: interrupted\n")


def test_a_reader_that_stops_early_is_no_error(swept) -> None:
    command = f"{sys.executable} {ROOT / 'cli.py'} explain {swept} '0:*' | head -n 1"
    shown = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "Traceback" not in shown.stderr


@pytest.mark.scale
def test_several_sources_may_follow_corpus(cli, planted_subject, text, tmp_path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(" ".join(["cat sees river"] * 100))
    for out, sources in (
        ("a", ["--corpus", text, other]),
        ("b", ["--corpus", text, "--corpus", other]),
    ):
        code, _, err = cli("sweep", planted_subject.name, *sources, "--out", tmp_path / out)
        assert code == 0, err
    manifests = [fastexplain.open_run(tmp_path / out).manifest for out in ("a", "b")]
    assert manifests[0]["corpus"] == manifests[1]["corpus"]
    assert manifests[0]["corpus"]["sources"] == [str(text), str(other)]


@pytest.mark.scale
def test_a_data_set_is_a_corpus(cli, planted_subject, text, tmp_path) -> None:
    words = text.read_text()
    rows = [json.dumps({"id": number, "body": words}) for number in range(2)]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    sweep = ["sweep", planted_subject.name, "--out", tmp_path / "run", "--column", "body"]
    code, _, err = cli(*sweep, "--corpus", f"hf:{tmp_path}:train")
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("fastexplain: ") and "there are 'test'" in last
    code, _, err = cli(*sweep, "--corpus", f"hf:{tmp_path}:test[:1]", "--excerpts", 20)
    assert code == 0, err
    run = fastexplain.open_run(tmp_path / "run")
    assert run.manifest["corpus"]["sources"] == [f"hf:{tmp_path}:test[:1]"]
    assert len(run.excerpts) == 20


def test_sweep_options_reach_the_run(cli, planted_subject, text, tmp_path) -> None:
    code, _, err = cli(
        "sweep", planted_subject.name, "--corpus", text, "--out", tmp_path / "run",
        "--excerpts", 20, "--top-k", 3, "--random", 2, "--bottom", "--layers", "0",
        "--batch-size", 7, "--dtype", "bfloat16", "--skip-positions", 4, "--seed", 9, "--no-tables",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    run = fastexplain.open_run(tmp_path / "run")
    record = run.neuron("0:0")
    assert (len(record.top), len(record.bottom), len(record.random)) == (3, 3, 2)
    assert record.skip == 4 and len(run.excerpts) == 20 and len(run.tables.tokens) == 0
    assert run.manifest["subject"]["dtype"] == "bfloat16"
    assert run.manifest["corpus"]["seed"] == 9 and run.manifest["settings"]["batch_size"] == 7


@pytest.mark.parametrize(
    ("text", "layers"), [("3", [3]), ("0-2", [0, 1, 2]), ("8, 0-1", [0, 1, 8]), ("1,1-1", [1])]
)
def test_layers_are_numbers_and_ranges(text, layers) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "3-", "5-1", "1,,2", "-1"])
def test_other_layers_are_refused(text) -> None:
    with pytest.raises(UsageError, match=r"0-5,8|range 5-1 ends before it begins"):
        parse_layers(text)


def test_neurons_are_selected_once_each(planted_run) -> None:
    chosen = select_neurons(planted_run, ["0:5", "0:*", "0:5"])
    assert len(chosen) == planted.NEURONS and chosen[0].index == 5


def test_messages_of_the_library_name_no_options() -> None:
    """They name Python's arguments, in backticks, in whose place the command line has its options.

    What another program or a whole command of ours takes is meant as it stands.
    """
    found = []
    for path in sorted((ROOT / "fastexplain").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc]
        if "cli" not in path.parts:
            found += [
                (path.name, text.value)
                for node in raised for text in ast.walk(node)
                if isinstance(text, ast.Constant) and re.search(r"(?<!\w)--[a-z]", str(text.value))
                and not re.search(r"fastexplain \w+|pip install|--corpus|vLLM|llama", text.value)
            ]  # fmt: skip
    assert found == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 2**30), ("500MB", 500 * 2**20), ("1.5 gb", 3 * 2**29), ("2t", 2**41),
        ("123", 123), ("7B", 7), ("0", 0), (" 1KB ", 2**10),
    ],
)  # fmt: skip
def test_sizes_have_units(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 XB", "4GBB", "1e9", "nan", "4.GB", "٤GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size; give bytes, or a size such as 4GB"):
        size_of(text)


def test_table_memory_reaches_the_run(cli, planted_subject, text, tmp_path) -> None:
    sweep = ["sweep", planted_subject.name, "--corpus", text, "--layers", "0", "--excerpts", 20]
    width = planted_subject.widths[0]
    size = 12 * width * 4
    code, _, err = cli(*sweep, "--out", tmp_path / "run", "--table-memory", f"{size}B")
    assert code == 0, err
    assert sum(fastexplain.open_run(tmp_path / "run").tables.size) == 12
    code, _, err = cli(*sweep, "--out", tmp_path / "other", "--table-memory", "9B")
    assert code == 2 and not (tmp_path / "other").exists()
    assert err.splitlines()[-1] == (
        f"fastexplain: --table-memory is 9; a row of the tables takes {width * 4} bytes: give "
        "more, or 0 for no tables"
    )
    assert cli(*sweep, "--out", tmp_path / "other", "--table-memory", "much")[0] == 2


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`max_cost` is nan", "--max-cost is nan"),
        ("`table_bytes` is 9", "--table-memory is 9"),
        ("or `simulation='json'`", "or --simulation json"),
        ("without `table_bytes=0`", "without --no-tables"),
        ("`skip` is 99", "--skip-positions is 99"),
        ("run `hf auth login` or `colour`", "run `hf auth login` or `colour`"),
    ],
)
def test_arguments_are_shown_as_options(cli, swept, monkeypatch, message, shown) -> None:
    def fails(*_: object) -> None:
        raise UsageError(message)

    monkeypatch.setattr("fastexplain.run.directory.open_run", fails)
    assert cli("top", swept) == (2, "", f"fastexplain: {shown}\n")
