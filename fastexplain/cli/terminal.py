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
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# In a file or a pipe there is no width to keep to, unless COLUMNS gives one.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160

out = Console(highlight=False, width=_WIDTH)
messages = Console(stderr=True, highlight=False)


def print_line(line: str) -> None:
    """Print a message as it stands, on one line."""
    messages.print(line, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress(title: str, total: int, tokens: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with the time left; gives the function to call with the number of things done.

    Args:
        tokens: in each of the things counted, to show tokens a second; 0 shows none.
    """
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=messages, transient=True,
    )  # fmt: skip
    task = bar.add_task(escape(title), total=total, speed="")
    first: tuple[int, float] | None = None

    def advance(done: int) -> None:
        nonlocal first
        now = time.perf_counter()
        first = first or (done, now)  # what was done before is not our speed
        speed = ""
        if tokens and done > first[0]:
            speed = f"{(done - first[0]) * tokens / (now - first[1]):,.0f} tokens/s"
        bar.update(task, completed=done, speed=speed)

    with bar:
        yield advance


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
