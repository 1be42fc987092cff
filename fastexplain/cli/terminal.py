"""The terminal: results on standard output, messages and progress on standard error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# In a file or a pipe there is no width to keep to, unless COLUMNS gives one.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160

# Between two lines where the output is no terminal, so that a log shows life but stays short.
SECONDS = 10.0

out = Console(highlight=False, width=_WIDTH)
messages = Console(stderr=True, highlight=False)


def print_line(line: str) -> None:
    """Print a message as it stands, on one line."""
    messages.print(line, markup=False, soft_wrap=True)


@contextlib.contextmanager
def working(title: str) -> Iterator[None]:
    """Show what is being done: beside a spinner on a terminal, else as a line."""
    if messages.is_terminal:
        with messages.status(escape(title)):
            yield
    else:
        print_line(title)
        yield


@contextlib.contextmanager
def progress(
    title: str, total: int, *, tokens: int = 0, percent: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show how much is done, how fast, and the time left: a bar, or a line every ten seconds.

    Gives the function to call with the number of things that are done.

    Args:
        total: the number of things.
        tokens: in each of them, to show tokens a second; 0 shows none.
        percent: the things are hundredths.
    """
    rate = _Rate(title, total, tokens, percent)
    if not messages.is_terminal:
        print_line(title)
        with changing_line(rate.line):
            yield lambda done: rate.advance(done, time.perf_counter())
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(),
        TaskProgressColumn() if percent else MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=messages, transient=True,
    )  # fmt: skip
    task = bar.add_task(escape(title), total=total, speed="")

    def advance(done: int) -> None:
        rate.advance(done, time.perf_counter())
        bar.update(task, completed=done, speed=rate.speed())

    with bar:
        yield advance


class _Rate:
    """What is done of a job, and how fast."""

    def __init__(self, title: str, total: int, tokens: int, percent: bool) -> None:
        self._title, self._total, self._tokens, self._percent = title, total, tokens, percent
        self._done = 0
        self._first: tuple[int, float] | None = None
        self._seconds = 0.0

    def advance(self, done: int, now: float) -> None:
        """Note that so much is done at this time, in seconds."""
        self._first = self._first or (done, now)  # what was done before is not our speed
        self._done, self._seconds = done, now - self._first[1]

    def speed(self) -> str:
        """Tokens a second, or nothing where they are not known."""
        new = self._new()
        return f"{new * self._tokens / self._seconds:,.0f} tokens/s" if self._tokens and new else ""

    def line(self) -> str:
        """All of it, on one line."""
        done = f"{self._done}%" if self._percent else f"{self._done:,} of {self._total:,}"
        parts = [f"{self._title}: {done}", self.speed()]
        if new := self._new():
            left = (self._total - self._done) * self._seconds / new
            parts.append(f"{duration(left)} left")
        return "; ".join(filter(None, parts))

    def _new(self) -> int:
        return self._done - self._first[0] if self._first and self._seconds else 0


@contextlib.contextmanager
def changing_line(line: Callable[[], str], *, seconds: float = SECONDS) -> Iterator[None]:
    """Show a line that changes: in its place on a terminal, else printed now and then.

    Args:
        seconds: between two lines where standard error is no terminal.
    """
    if messages.is_terminal:
        with Live(get_renderable=lambda: Text(line()), console=messages, refresh_per_second=4,
                  transient=True):  # fmt: skip
            yield
        return
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


def duration(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any: `3:10`, `6:06:20`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Set an event at the first Ctrl-C, for a good moment to stop; the second one stops at once.

    In the middle of a sweep's batch it would leave some layers ahead of others, and Numba may
    swallow it while it compiles; requests in flight would be paid for and lost. Only the main
    thread can handle signals; in others nothing is changed.
    """
    event = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    with _handler(signal.SIGINT, note):
        yield event


@contextlib.contextmanager
def terminations() -> Iterator[threading.Event]:
    """Handle SIGTERM, which schedulers and containers send, as Ctrl-C; set an event at each.

    Whatever handles Ctrl-C at that moment is called. Where Ctrl-C is ignored, as in a shell
    script's background job, SIGTERM still raises KeyboardInterrupt.
    """
    event = threading.Event()

    def interrupt(_: int, frame: FrameType | None) -> None:
        event.set()
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            handler = signal.default_int_handler
        handler(signal.SIGINT, frame)

    with _handler(signal.SIGTERM, interrupt):
        yield event


@contextlib.contextmanager
def _handler(number: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle a signal so while the block runs, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
