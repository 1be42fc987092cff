"""What is printed fits 80 columns, whole, and has no escape codes where none are wanted."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

import fastexplain
from fastexplain import Run
from fastexplain.cli import terminal
from fastexplain.cli.neuron import print_neuron
from fastexplain.cli.tables import excerpt_text
from fastexplain.records import Exemplar, NeuronRecord, Statistics
from fastexplain.records import NeuronId as Id

Command = Callable[..., tuple[int, str, str]]

HOSTILE = [
    "<script>", "[bold]", "\x1b[31m", "\u202e", "\n", "\t", "x" * 300, "\u4e2d\u6587", "\U0001f600",
    "\ud800", " ", "\\", "[/]",
]  # fmt: skip


@pytest.fixture(scope="module")
def explained(planted_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from shutil import copytree

    run = fastexplain.open_run(copytree(planted_run.path, tmp_path_factory.mktemp("wide") / "run"))
    fastexplain.explain(run, ["0:0-6"])
    return run


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


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
def test_a_pipe_of_80_columns(
    arguments: list[str], explained: Run, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *rest = arguments
    whole = cli(command, explained.path, *rest)[1]
    monkeypatch.setattr(terminal.out, "width", 80)
    monkeypatch.setattr(terminal, "LAID_OUT", True)
    code, shown, _ = cli(command, explained.path, *rest)
    assert code == 0 and "\x1b" not in shown
    assert max(map(cell_len, shown.splitlines())) <= 80
    # Columns fold in another order, but nothing is cut.
    assert sorted(squeezed(shown).replace("─", "")) == sorted(squeezed(whole).replace("─", ""))


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
    numbered = re.sub(r"\[\d+\]", "", squeezed(text))
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
    assert (b"[10]" in shown) == (set_to is not None)  # what colours say stands in numbers
