"""What is printed fits 80 columns, whole, and has no escape codes where none are wanted."""

import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

import fastexplain
from fastexplain import Run
from fastexplain.cli import terminal
from fastexplain.cli.neuron import print_neuron
from fastexplain.cli.token_text import excerpt_text
from fastexplain.records import Exemplar, NeuronRecord, Statistics
from fastexplain.records import NeuronId as Id
from fastexplain.results import ExplanationRow, Scores

Command = Callable[..., tuple[int, str, str]]

HOSTILE = [
    "<script>", "[bold]", "\x1b[31m", "\u202e", "\n", "\t", "x" * 300, "\u4e2d\u6587", "\U0001f600",
    "\ud800", " ", "\\", "[/]",
]  # fmt: skip


LONG_NAME = "accounts/fireworks/models/llama-v3p1-405b-instruct"
PROSE = (
    "words for the moon and what is seen of it, such as moonlight, in explanations that a language "
    "model wrote at length"
)


@pytest.fixture(scope="module")
def explained(planted_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from shutil import copytree

    run = fastexplain.open_run(copytree(planted_run.path, tmp_path_factory.mktemp("wide") / "run"))
    fastexplain.explain(run, ["0:0-6"])
    with run.database() as database:
        database.add_explanations(
            [
                ExplanationRow(
                    Id(0, index), "model", LONG_NAME, "1", PROSE, scores=Scores(1.0, 1.0, 1.0, 5, 5)
                )
                for index in range(3)
            ]
        )
    return run


def letters(text: str) -> Counter[str]:
    """How often each sign stands there, but for spaces and lines."""
    return Counter(squeezed(text).replace("─", ""))


def without_headers(text: str) -> str:
    """A text in which tables have no headers, which are a line above a line."""
    return re.sub(r"^.*\n─+$", "", text, flags=re.MULTILINE)


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "0:2"],
        ["top"],
        ["find", "moon"],
        ["find", "--where", "mean > 0"],
        ["find", "--kinds"],
    ],
    ids=" ".join,
)
def test_a_pipe_of_few_columns(
    arguments: list[str], width: int, explained: Run, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *rest = arguments
    whole = cli(command, explained.path, *rest)[1]
    monkeypatch.setattr(terminal.out, "width", width)
    monkeypatch.setattr(terminal, "LAID_OUT", True)
    code, shown, _ = cli(command, explained.path, *rest)
    assert code == 0 and "\x1b" not in shown
    assert max(map(cell_len, shown.splitlines())) <= width
    # Columns fold in another order, and headers stand once or in every row, but nothing is cut.
    assert not letters(without_headers(whole)) - letters(shown)
    # Nor is a line filled up: of excerpts spaces at the end may be the text's own.
    assert not re.search(r" $", shown, re.MULTILINE)


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize(
    "command", [["show", "0:2"], ["top", "--method", "model"], ["find", "moon"]]
)
def test_explanations_by_a_model_with_a_long_name_are_readable(
    command: list[str],
    width: int,
    explained: Run,
    cli: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(terminal.out, "width", width)
    monkeypatch.setattr(terminal, "LAID_OUT", True)
    lines = cli(command[0], explained.path, *command[1:])[1].splitlines()
    assert len(LONG_NAME) == 50 and LONG_NAME in "".join(line.strip() for line in lines)
    # The text's first words are on a line with as much of it as fits.
    [start] = [place for place, line in enumerate(lines) if "words for the" in line][:1]
    indent = lines[start].index("words for the")
    assert width - indent >= min(35, width - 8)
    count = next(
        count for count in range(1, 9)
        if " ".join(line[indent:].strip() for line in lines[start : start + count]) == PROSE
    )  # fmt: skip
    assert count <= len(PROSE) // (width - indent - 12) + 1


@pytest.mark.parametrize("width", [80, 40])
def test_a_find_by_kind_is_readable(
    width: int, run: Run, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastexplain.explain(run, ["0:0-6"])
    whole = cli("find", run.path, "--kind", "single-token")[1]
    monkeypatch.setattr(terminal.out, "width", width)
    shown = cli("find", run.path, "--kind", "single-token")[1]
    assert max(map(cell_len, shown.splitlines())) <= width
    assert not letters(without_headers(whole)) - letters(shown) and "⟦" in whole


@pytest.mark.parametrize("laid_out", [True, False])
def test_a_report_names_its_files(
    laid_out: bool, explained: Run, tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    monkeypatch.setattr(terminal, "LAID_OUT", laid_out)
    shown = cli("report", explained.path, "--out", tmp_path / "reports")[1]
    assert shown.startswith("Written:") and shown.count(".svg") > 3
    assert squeezed(shown).count(squeezed(f"{tmp_path}/reports/")) == shown.count(",") + 1
    # A file's lines are for programs, which a fold would break.
    assert (max(map(len, shown.splitlines())) <= 80) == laid_out and (
        shown.count("\n") == 1
    ) != laid_out


def hostile_record() -> NeuronRecord:
    acts = np.linspace(-1, 2, len(HOSTILE)).astype(np.float32)
    one = Exemplar(0, np.arange(len(HOSTILE)), HOSTILE, acts)
    numbers = [0.5, 0.25, 1.0, 3.0, 0.4, 0.6, -1.0, 2.0]
    statistics = Statistics(64, *numbers, *(np.zeros(1) for _ in range(3)))
    return NeuronRecord(Id(0, 119), 0, [one], [one], [], statistics)


@pytest.mark.parametrize("colours", [None, "truecolor", "standard"])
def test_hostile_tokens_fit_and_are_whole(colours: str | None, planted_run: Run) -> None:
    shown = io.StringIO()
    console = terminal._SafeConsole(
        file=shown,
        width=80,
        force_terminal=True,
        color_system=colours,
        highlight=False,
        emoji=False,
    )  # type: ignore[arg-type]
    print_neuron(console, planted_run, hostile_record(), 5)
    assert ("\x1b[" in shown.getvalue()) == (colours is not None)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    assert "\x1b" not in text and "\u202e" not in text and "\ud800" not in text
    assert max(map(cell_len, text.splitlines())) <= 80
    numbered = re.sub(r"⟦\d+⟧", "", squeezed(text))
    for token in HOSTILE:
        assert squeezed(terminal.visible(token)) in numbered


@pytest.mark.parametrize("value", range(1, 11))
def test_a_value_is_seen_on_light_and_dark_terminals(value: int) -> None:
    text = excerpt_text(Console(color_system="truecolor"), ["a"], np.array([value / 10]), 1.0)
    [span] = text.spans
    style = span.style

    def brightness(colour: str) -> float:
        red, green, blue = (
            channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
            for channel in (int(part) / 255 for part in re.findall(r"\d+", colour))
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    if style.bgcolor is None:  # on white and on black
        own = brightness(style.color.name)
        assert style.underline and 1.05 / (own + 0.05) > 3.5 and (own + 0.05) / 0.05 > 3.5
    else:  # black on it; and it differs from both pages
        own = brightness(style.bgcolor.name)
        assert style.color.name == "black" and (own + 0.05) / 0.05 > 4.5
        assert 1.05 / (own + 0.05) > 1.5


@pytest.mark.scale
@pytest.mark.parametrize("set_to", ["1", None])
def test_no_color_has_no_escape_codes_even_on_a_terminal(
    set_to: str | None, explained: Run
) -> None:
    pty = pytest.importorskip("pty")
    code = "import sys; from fastexplain.cli.main import main; sys.argv[0] = 'fastexplain'; main()"
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color"} | ({"NO_COLOR": set_to} if set_to else {})
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, "show", str(explained.path), "0:0"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as showing:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 2**16):
                shown += part
        except OSError:  # the other side is closed
            pass
    os.close(ours)
    assert showing.returncode == 0 and (b"\x1b" in shown) == (set_to is None)
    assert ("⟦10⟧".encode() in shown) == (set_to is not None)  # what colours say stands in numbers
