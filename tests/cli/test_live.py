"""What is shown while requests are under way."""

import asyncio
import io
import signal
import threading

import pytest
from rich.console import Console

from fastexplain.cli import live, terminal
from fastexplain.cli.terminal import (
    duration,
    interrupts,
    progress,
    terminations,
    working,
)
from fastexplain.ledger.stored import Meter
from fastexplain.pipeline.explaining import Progress


def line(meter, done=10, before=0, seconds=20.0, retried=0):
    progress = Progress(100, "Explaining by m", done, before, 11, meter, retried)
    return live.progress_line(progress, seconds)


def test_a_line_says_what_is_done_how_fast_and_for_how_much():
    meter = Meter(100, 4, 6, 40_000, 2_000, 0.1234)
    assert line(meter, retried=3) == (
        "Explaining by m: 10 of 100 neurons; requests 100 answered, 6 stored before, 4 failed, "
        "3 retries; 5.0 requests/s; 2,100 tokens/s; $0.1234; 3:10 left"
    )


def test_a_line_says_nothing_that_is_not_known():
    assert line(Meter(), done=0, seconds=0.0) == (
        "Explaining by m: 0 of 100 neurons; requests 0 answered"
    )
    assert "left" not in line(Meter(1100), done=100)
    assert "left" not in line(Meter(stored=50))
    assert "left" not in line(Meter(), done=1)


def test_the_time_left_is_that_of_the_requests_to_come():
    assert line(Meter(1), done=0, seconds=20.0).endswith("6:06:20 left")
    # Of 50 neurons 40 were done before: the other 10 took 110 requests.
    assert line(Meter(110), done=50, before=40, seconds=110.0).endswith("9:10 left")
    # Of some that are not done yet half is done.
    assert line(Meter(550), done=0, seconds=55.0).endswith("0:55 left")


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(monkeypatch, capsys):
    printed = threading.Event()
    lines = []

    class Lines:
        is_terminal = False

        def print(self, text, **options):
            lines.append(text)
            printed.set()

    monkeypatch.setattr(terminal, "messages", Lines())
    progress = Progress(2, "Explaining", requests_a_neuron=11)
    with live.display(progress, seconds=0.01):
        progress.done = 1
        assert printed.wait(30)
    assert lines[0].startswith("Explaining: 1 of 2 neurons")
    assert lines[-1].startswith("Explaining: 1 of 2 neurons")


def test_a_line_says_that_it_is_stopping():
    progress = Progress(100, "Explaining", 3, requests_a_neuron=11, meter=Meter(1))
    progress.interrupted.set()
    shown = live.progress_line(progress, 1.0)
    assert shown.endswith(
        "stopping when the requests in flight are answered; Ctrl-C again stops now"
    )


def test_only_the_main_thread_notes_ctrl_c():
    before, found = signal.getsignal(signal.SIGINT), []

    def elsewhere():
        with interrupts() as event:
            found.extend([event.is_set(), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False, before]
    with interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_does_what_ctrl_c_does():
    """To an event, to what asyncio runs, and to anything else."""

    async def forever():
        signal.raise_signal(signal.SIGTERM)
        await asyncio.Event().wait()

    before = signal.getsignal(signal.SIGTERM)
    with terminations() as terminated:
        assert not terminated.is_set()
        with interrupts() as interrupted:
            signal.raise_signal(signal.SIGTERM)
            assert interrupted.is_set() and terminated.is_set()
            with pytest.raises(KeyboardInterrupt):  # the second one
                signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(forever())
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3600, "1:00:00")])
def test_times_are_rounded_to_seconds(seconds, text):
    assert duration(seconds) == text


def test_a_job_without_a_terminal_is_reported_in_lines(monkeypatch, capsys):
    with progress("Sweeping", 400, tokens=64) as advance:
        advance(400)
    assert capsys.readouterr().err == "Sweeping\n"
    with working("Loading [x]"):
        pass
    assert capsys.readouterr().err == "Loading [x]\n"


def test_a_line_of_a_job_has_its_speed_and_the_time_left():
    rate = terminal._Rate("Sweeping", 1400, 64, False)
    assert rate.line() == "Sweeping: 0 of 1,400"
    rate.advance(100, 10.0)  # from a checkpoint
    assert rate.line() == "Sweeping: 100 of 1,400"
    rate.advance(200, 12.0)
    assert rate.line() == "Sweeping: 200 of 1,400; 3,200 tokens/s; 0:24 left"
    rate = terminal._Rate("Reading", 100, 0, True)
    rate.advance(0, 0.0)
    rate.advance(25, 3.0)
    assert rate.line() == "Reading: 25%; 0:09 left"


@pytest.mark.parametrize("percent", [False, True])
def test_a_job_on_a_terminal_has_a_bar(monkeypatch, percent):
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "messages", Console(file=shown, force_terminal=True, width=120))
    with progress("Reading [x]", 100, percent=percent) as advance:
        advance(0)
        advance(34)
    assert "Reading [x]" in shown.getvalue() and "━" in shown.getvalue()
    assert ("34%" if percent else "34 of 100") in shown.getvalue()
    with working("Loading [x]"):
        pass
    assert "Loading [x]" in shown.getvalue()
