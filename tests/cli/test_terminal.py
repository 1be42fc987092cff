"""What reaches the terminal: nothing that steers it, whoever wrote the text."""

import contextlib
import io
import json
import re
import sys

import numpy as np
import pytest
from faulty_server import Faulty
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastexplain.cli import main as app
from fastexplain.cli.cost_table import ledger_table
from fastexplain.cli.neuron import print_neuron
from fastexplain.cli.requests import Failures
from fastexplain.cli.tables import explanations_table
from fastexplain.cli.terminal import messages, out, print_line, progress, visible, working
from fastexplain.cli.token_text import excerpt_text
from fastexplain.errors import LLMError
from fastexplain.ledger.responses import LedgerRow
from fastexplain.records import NeuronId
from fastexplain.results import Scores, StoredExplanation

# C0 but tabs and line ends, DEL and C1, marks and overrides of direction, lone surrogates.
RAW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)
STEERING = st.sampled_from(
    ["\x1b[35;45m", "\x1b]0;x\x07", "\x9b2J", "\r", "\x08", "\x00", "\x7f", "\x85", "\u202e",
     "\u2066", "\u200f", "\u2028", "\udc80", "\ud83d", "\n", "\t", "[red]", ":smile:",
     "a", "é", "语"]
)  # fmt: skip
TEXTS = st.lists(STEERING, min_size=1, max_size=8).map("".join)


@contextlib.contextmanager
def shown():
    """What is printed meanwhile, on standard output and on standard error."""
    printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed[0]), contextlib.redirect_stderr(printed[1]):
        yield lambda: "".join(stream.getvalue() for stream in printed)


def row(text):
    return StoredExplanation(
        NeuronId(0, 1), "model", text, "1", text, scores=Scores(0.5, 0.5, 0.5, 5, 5), id=1,
        simulator=text + "s", simulation=f"1 {text} x",
    )  # fmt: skip


def fail(text):
    failures = Failures()
    for n in range(30):
        failures.add(NeuronId(0, n), f"explanation: {text}")
    failures.summary()


def run_progress(text):
    with progress(text, 10) as advance:
        advance(3)


def run_working(text):
    with working(text):
        pass


KINDS = {
    "a message": print_line,
    "a line of results": lambda text: out.print(text, markup=False),
    "a job": run_progress,
    "work": run_working,
    "failures": fail,
    "explanations": lambda text: out.print(explanations_table([row(text)], "The best")),
    "a failed explanation": lambda text: out.print(explanations_table([row("x"), row(text)])),
    "an excerpt": lambda text: out.print(
        excerpt_text(out, [text, "x"], np.array([1.0, 0.5]), 1.0), soft_wrap=True
    ),
    "the ledger": lambda text: out.print(
        ledger_table([LedgerRow(text, text, text, 1, 1, 1, 1, 1, 1.0, 0)])
    ),
}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@settings(max_examples=40, derandomize=True, deadline=None)
def test_nothing_steers_the_terminal(kind, terminal, text):
    with pytest.MonkeyPatch.context() as patch, shown() as printed:
        for console in (out, messages):
            patch.setattr(console, "_force_terminal", terminal)
        KINDS[kind](text)
    # On a terminal the console's own colours and movements are there.
    own = printed()
    if terminal:
        own = re.sub(r"\x1b\[(?!35;45)[0-9;?]*[a-zA-Z]|\r", "", own)
    assert RAW.search(own) is None, ascii(own)


@given(text=TEXTS)
@settings(max_examples=200, derandomize=True)
def test_what_steers_is_shown(text):
    assert RAW.search(visible(text)) is None
    for sign in ("a", "é", "语", ":smile:", "[red]"):
        assert visible(sign) == sign
    for character in set(RAW.findall(text)) - {"\r"}:
        assert ascii(character)[1:-1] in visible(text)


def command(*arguments):
    """Run a command line in this process: exit code, and all that it printed."""
    with pytest.MonkeyPatch.context() as patch, shown() as printed:
        patch.setattr(sys, "argv", ["fastexplain", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            app.main()
    return stopped.value.code, printed()


COMMANDS = {
    "a kind": lambda run, text, file: ["find", run, "--kind", text],
    "a text": lambda run, text, file: ["activate", run, "--file", f"/no/such{text}"],
    "search": lambda run, text, file: ["search", run, "zzz" + text],
    "an unknown method": lambda run, text, file: ["top", run, "--method", text],
    "a score": lambda run, text, file: ["top", run, "--by", text],
    "a neuron": lambda run, text, file: ["show", run, text],
    "a line of a file": lambda run, text, file: ["explain", run, f"@{file}"],
    "a condition": lambda run, text, file: ["explain", run, "--where", text],
    "a price": lambda run, text, file: ["ingest", run, file, "--price", text],
    "a file that is not there": lambda run, text, file: ["ingest", run, f"/no/such{text}"],
    "a run that is not there": lambda run, text, file: ["top", f"/no/such{text}"],
    "a model": lambda run, text, file: [
        "explain", run, "0:1", "--explainer", f"/no/such{text}", "--local"],
    "a mode": lambda run, text, file: [
        "explain", run, "0:1", "--explainer", "m", "--local", "--simulation", text],
    "a subject": lambda run, text, file: [
        "sweep", f"/no/such{text}", "--corpus", "stdlib", "--out", "/no/such/out"],
    "layers": lambda run, text, file: [
        "sweep", "smollm2", "--corpus", "stdlib", "--out", "/no/such/out", "--layers", text],
    "a command": lambda run, text, file: [f"fly{text}"],
    "an option": lambda run, text, file: ["top", run, f"--fly{text}"],
    "a number": lambda run, text, file: ["top", run, "--limit", text],
    "a geometry": lambda run, text, file: ["bench", "--geometry", text],
}  # fmt: skip


@pytest.mark.parametrize("kind", COMMANDS)
@given(text=TEXTS)
@settings(
    max_examples=12, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_nothing_of_an_argument_steers_the_terminal(kind, run, tmp_path, text):
    file = tmp_path / "names"
    file.write_bytes(text.encode("utf-8", errors="replace"))
    arguments = COMMANDS[kind](run.path, text.replace("\x00", ""), file)
    code, printed = command(*arguments)
    assert RAW.search(printed) is None, ascii(printed)
    assert code in (0, 1, 2) and "unexpected" not in printed, printed
    if code:
        assert printed.split("\n")[-2].startswith("fastexplain: "), printed
        assert printed.count("fastexplain: ") == 1, printed


@pytest.mark.parametrize("raw", ["\x1b[2J", "\x9b31m\u202e", "\r\x00"])
def test_nothing_of_a_server_steers_the_terminal(run, raw, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Faulty()
    server.status, server.body = 400, {"error": {"message": f"no{raw}thing"}}
    server.listing = 200, {"data": [{"id": f"x{raw}"}]}
    try:
        code, printed = command(
            "explain", run.path, "0:1", "--explainer", "m", "--base-url", server.url
        )
    finally:
        server.close()
    assert code == 1 and RAW.search(printed) is None, ascii(printed)


def test_nothing_of_a_broken_error_steers_the_terminal(run, monkeypatch):
    for error in (ValueError("\x1b[2J\ud800\nmore"), LLMError("template: \x9b\nline two\x07")):

        def broken(*_, error=error):
            raise error

        monkeypatch.setattr("fastexplain.run.directory.open_run", broken)
        code, printed = command("top", run.path)
        assert code == 1 and RAW.search(printed) is None and printed.count("\n") == 1


def test_json_holds_it_escaped(run):
    with run.database() as database:
        database.add_explanations([row("say \x1b \x7f \x9b \u202e")])
    code, printed = command("explain", run.path, "0:1", "--json")
    code, printed = command("show", run.path, "0:1", "--json")
    assert code == 0 and printed.isascii() and "\x7f" not in printed
    texts = [one["explanation"] for one in json.loads(printed)["explanations"]]
    assert any(text.startswith("say \x1b \x7f \x9b") for text in texts)


def test_a_terminal_of_few_characters_is_no_error(run, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["fastexplain", "show", str(run.path), "0:1"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert not stopped.value.code and raw.getvalue().isascii()


def test_a_neuron_is_shown_whole(run, capsys):
    print_neuron(out, run, run.neuron("0:1"), 3)
    assert "neuron 0:1" in capsys.readouterr().out
