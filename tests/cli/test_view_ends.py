"""The viewer's end, by Ctrl-C and by SIGTERM: a real process."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import planted
import pytest
from viewing import asking

from fastexplain import Run

_MAIN = "import sys; from fastexplain.cli.main import main; sys.argv[0] = 'fastexplain'; main()"


@contextlib.contextmanager
def viewing(run: Run, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`fastexplain view` on a run, and its address."""
    command = [sys.executable, "-c", _MAIN, "view", str(run.path), "--port", "0", "--no-browser"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            assert found is not None
            yield process, found[0]
        finally:
            process.kill()  # nothing where it has ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_without_a_word(run: Run, number: signal.Signals) -> None:
    with viewing(run) as (process, address):
        assert asking(address)("neuron/0:1")["neuron"] == "0:1"
        process.send_signal(number)
        shown, errors = process.communicate()
    assert (process.returncode, shown, errors) == (0, "", "")


@pytest.mark.scale
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_so_it_does_while_a_model_in_the_process_simulates(
    run: Run, number: signal.Signals
) -> None:
    asked = {"neuron": f"0:{planted.CAT}", "explanation": "words about cats"}
    with viewing(run, "--simulator", "smollm2", "--local") as (process, address):
        ask = asking(address)
        while not (found := ask("simulate/model", asked))["reached"]:
            assert found["done"] == 0
        process.send_signal(number)
        shown, errors = process.communicate()
    assert (process.returncode, shown, errors) == (0, "", "")
