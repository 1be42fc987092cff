"""The terminal: results on standard output, messages and progress on standard error.

Texts come from servers, files and models: what would steer the terminal is shown as an escape.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

LAID_OUT = sys.stdout.isatty() or "COLUMNS" in os.environ
"""Whether the output has a width to keep to: a terminal's, or what COLUMNS says for a pipe."""

_WIDTH = None if LAID_OUT else 160

# See no-color.org. Rich would leave out colours alone, and with them what they say.
_COLOURS: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"

# Between two lines where the output is no terminal, so that a log shows life but stays short.
SECONDS = 10.0

# Control characters, marks and overrides of the direction of writing, separators of lines, and
# halves of characters, which can't be encoded. Line ends and tabs are dealt with by `visible`.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """A text on one line; what steers a terminal is shown by signs and escapes: `⏎`, `\\x1b`."""
    return _escaped("".join(_SIGNS.get(character, character) for character in text))


def _escaped(text: str) -> str:
    return _STEERING.sub(lambda match: ascii(match[0])[1:-1], text)


class _SafeConsole(Console):
    """Escapes what steers a terminal in all texts that are printed.

    In a string that is done before it is laid out. `render` then is what everything goes through.
    Where there is no terminal, the spaces that fill up lines are left out: files, mails and
    comparisons have no use for them. What is not laid out has none, and stays as it is.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        shown = [_escaped(o) if isinstance(o, str) else o for o in objects]
        if self.is_terminal or options.get("soft_wrap"):
            super().print(*shown, **options)
            return
        with self.capture() as captured:
            super().print(*shown, **options)
        lines = Text(re.sub(r" +(?=\n)", "", captured.get()))
        super().print(lines, end="", soft_wrap=True)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if not segment.control:
                segment = Segment(_escaped(segment.text), segment.style)
            yield segment


out = _SafeConsole(highlight=False, emoji=False, width=_WIDTH, color_system=_COLOURS)
messages = _SafeConsole(stderr=True, highlight=False, emoji=False, color_system=_COLOURS)


def print_line(line: str) -> None:
    """Print a message as it stands, on one line."""
    messages.print(visible(line), markup=False, soft_wrap=True)


def print_json(data: dict[str, Any]) -> None:
    """Print JSON on one line, in ASCII; DEL, which JSON allows, is escaped too."""
    print(json.dumps(data, allow_nan=False).replace("\x7f", "\\u007f"))


def accept_all_text() -> None:
    """Escape what a stream's encoding lacks, as in an ASCII locale, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def working(title: str) -> Iterator[None]:
    """Show what is being done: beside a spinner on a terminal, else as a line."""
    if messages.is_terminal:
        with messages.status(escape(visible(title))):
            yield
    else:
        print_line(title)
        yield


@contextlib.contextmanager
def progress(
    title: str, total: int, *, tokens: int = 0, percent: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show how much is done, how fast, and the time left: on a terminal with a bar.

    Gives the function to call with the number of things that are done.

    Args:
        total: the number of things.
        tokens: in each of them, to show tokens a second; 0 shows none.
        percent: the things are hundredths.
    """
    if not messages.is_terminal:
        print_line(title)
    rate = _Rate(title, total, tokens, percent)
    with changing_line(rate.line, share=lambda: rate.done / max(total, 1)):
        yield lambda done: rate.advance(done, time.perf_counter())


class _Rate:
    """What is done of a job, and how fast."""

    def __init__(self, title: str, total: int, tokens: int, percent: bool) -> None:
        self._title, self._total, self._tokens, self._percent = title, total, tokens, percent
        self.done = 0
        self._first: tuple[int, float] | None = None
        self._seconds = 0.0

    def advance(self, done: int, now: float) -> None:
        """Note that so much is done at this time, in seconds."""
        self._first = self._first or (done, now)  # what was done before is not our speed
        self.done, self._seconds = done, now - self._first[1]

    def line(self) -> str:
        done = f"{self.done}%" if self._percent else f"{self.done:,} of {self._total:,}"
        parts = [f"{self._title}: {done}"]
        new = self.done - self._first[0] if self._first and self._seconds else 0
        if new and self._tokens:
            parts.append(f"{new * self._tokens / self._seconds:,.0f} tokens/s")
        if new:
            parts.append(f"{duration((self._total - self.done) * self._seconds / new)} left")
        return "; ".join(parts)


@contextlib.contextmanager
def changing_line(
    line: Callable[[], str],
    *,
    share: Callable[[], float] | None = None,
    seconds: float = SECONDS,
) -> Iterator[None]:
    """Show a line that changes: in its place on a terminal, else printed now and then.

    Args:
        share: how much is done, from 0 to 1, for a bar before the line on a terminal.
        seconds: between two lines where standard error is no terminal.
    """
    if messages.is_terminal:

        def shown() -> Table:
            row = Table.grid(padding=(0, 1))
            bar = [] if share is None else [ProgressBar(1.0, share(), width=30)]
            row.add_row(*bar, Text(visible(line())))
            return row

        with Live(get_renderable=shown, console=messages, refresh_per_second=4, transient=True):
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
