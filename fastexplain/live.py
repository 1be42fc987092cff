"""How a command with requests is getting on: a live line on a terminal, else one now and then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.live import Live
from rich.text import Text

from fastexplain.ledger.stored import Meter
from fastexplain.terminal import messages

# Between two lines where the output is no terminal, so that a log shows life but stays short.
SECONDS = 10.0


@dataclass
class Progress:
    """How many neurons are done.

    Attributes:
        total: in all.
        done: of those.
        before: of those done, the ones that were done before.
        interrupted: set when the user wants to stop.
    """

    total: int
    done: int = 0
    before: int = 0
    interrupted: threading.Event = field(default_factory=threading.Event)


def progress_line(
    title: str, neurons: Progress, meter: Meter, each: int, seconds: float, retried: int
) -> str:
    """One line on what is done, how fast, for how much, and how long it will take.

    Args:
        title: what is being done.
        neurons: how many are done.
        meter: counts of requests.
        each: requests of a neuron, about.
        seconds: since the beginning.
        retried: requests that had to be sent once more.
    """
    parts = [f"{title}: {neurons.done:,} of {neurons.total:,} neurons"]
    counts = [f"{meter.answered:,} answered"]
    counts += [f"{meter.stored:,} stored before"] * bool(meter.stored)
    counts += [f"{meter.failed:,} failed"] * bool(meter.failed)
    counts += [f"{retried:,} retries"] * bool(retried)
    parts.append("requests " + ", ".join(counts))
    if meter.answered and seconds > 0:
        tokens = meter.prompt_tokens + meter.completion_tokens
        parts.append(f"{meter.answered / seconds:,.1f} requests/s")
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
    if meter.cost:
        parts.append(f"${meter.cost:,.4f}")
    sent = meter.answered + meter.failed
    if sent and neurons.done < neurons.total:
        begun = max(meter.done - each * (neurons.done - neurons.before), 0)
        left = max(each * (neurons.total - neurons.done) - begun, 0)
        parts.append(f"{_duration(left * seconds / sent)} left")
    if neurons.interrupted.is_set():
        parts.append("stopping when what is in flight is answered; Ctrl-C again: at once")
    return "; ".join(parts)


@contextlib.contextmanager
def display(
    title: str,
    neurons: Progress,
    meter: Meter,
    each: int,
    *,
    retried: Callable[[], int] = lambda: 0,
    seconds: float = SECONDS,
) -> Iterator[None]:
    """Show how requests get on, on standard error.

    Args:
        title, neurons, meter, each: as for `progress_line`; what they hold may change.
        retried: gives the number of retries.
        seconds: between two lines where standard error is no terminal.
    """
    began = time.perf_counter()

    def line() -> str:
        passed = time.perf_counter() - began
        return progress_line(title, neurons, meter, each, passed, retried())

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: messages.print(line(), markup=False, soft_wrap=True))
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
    """Print a line every so many seconds, from a thread of its own."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(seconds):
            messages.print(line(), markup=False, soft_wrap=True)

    thread = threading.Thread(target=tell, daemon=True)
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
