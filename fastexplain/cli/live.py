"""Progress display for commands that send requests: a live line, or a line every ten seconds."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.live import Live
from rich.text import Text

from fastexplain.cli.terminal import messages, print_line
from fastexplain.pipeline.explaining import Progress

# Between two lines where the output is no terminal, so that a log shows life but stays short.
SECONDS = 10.0


def progress_line(progress: Progress, seconds: float) -> str:
    """One line on what is done, how fast, for how much, and how long it will take.

    Args:
        seconds: since the beginning.
    """
    if not progress.requests_a_neuron:
        return progress.stage
    meter = progress.meter
    parts = [f"{progress.stage}: {progress.done:,} of {progress.total:,} neurons"]
    counts = [f"{meter.answered:,} answered"]
    counts += [f"{meter.stored:,} stored before"] * bool(meter.stored)
    counts += [f"{meter.failed:,} failed"] * bool(meter.failed)
    counts += [f"{progress.retried:,} retries"] * bool(progress.retried)
    parts.append("requests " + ", ".join(counts))
    if meter.answered and seconds > 0:
        tokens = meter.prompt_tokens + meter.completion_tokens
        parts.append(f"{meter.answered / seconds:,.1f} requests/s")
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
    if meter.cost:
        parts.append(f"${meter.cost:,.4f}")
    sent = meter.answered + meter.failed
    if sent and progress.done < progress.total:
        each = progress.requests_a_neuron
        begun = max(meter.done - each * (progress.done - progress.before), 0)
        left = max(each * (progress.total - progress.done) - begun, 0)
        parts.append(f"{_duration(left * seconds / sent)} left")
    if progress.interrupted.is_set():
        parts.append("stopping when what is in flight is answered; Ctrl-C again: at once")
    return "; ".join(parts)


@contextlib.contextmanager
def display(progress: Progress, *, seconds: float = SECONDS) -> Iterator[None]:
    """Show the progress of requests on standard error, and a last line at the end.

    Args:
        seconds: between two lines where standard error is no terminal.
    """
    began = time.perf_counter()

    def line() -> str:
        return progress_line(progress, time.perf_counter() - began)

    with contextlib.ExitStack() as stack:

        def print_last() -> None:
            if progress.requests_a_neuron:
                print_line(line())

        stack.callback(print_last)
        if messages.is_terminal:
            live = Live(
                get_renderable=lambda: Text(line()),
                console=messages,
                refresh_per_second=4,
                transient=True,
            )
            stack.enter_context(live)
        else:
            stack.enter_context(_now_and_then(line, seconds))
        yield


@contextlib.contextmanager
def _now_and_then(line: Callable[[], str], seconds: float) -> Iterator[None]:
    """Print a line every so many seconds, from a separate thread."""
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.wait(seconds):
            print_line(line())

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
