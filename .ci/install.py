"""`pip install` with one line that shows what it is doing, in place of all that pip prints.

    python .ci/install.py TITLE ARGUMENT...

The arguments are those of `pip install`, for the Python that runs this. On a terminal the line has
the download's bar; in a file there are plain lines for what takes long. pip's warnings are dropped;
if it fails, all that it printed is shown, and its exit code is ours. Standard library only, since
nothing else is there yet.
"""

from __future__ import annotations

import importlib.metadata
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

_BAR = 16  # characters; the whole line fits 80 columns for most packages
_TICK = 0.5  # seconds between two drawings while pip is silent
_LARGE = 10_000_000  # bytes of a download that gets a line where there is no terminal

_FILE = re.compile(r"\s*(?:Downloading|Using cached|Processing) (?:\S*/)?([^-\s/]+)-([^-\s]+)")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_UNPACKING = "Installing collected packages: "
_INSTALLED = "Successfully installed "


class Activity:
    """What pip is doing, from the lines that it prints."""

    def __init__(self) -> None:
        self.text = "starting"
        self.done = 0  # bytes of a download
        self.size = 0  # 0 where nothing is downloaded
        self.installed = 0  # packages

    def read(self, line: str) -> None:
        """Take the next line of pip's output, when its option is `--progress-bar raw`."""
        if match := _PROGRESS.fullmatch(line.strip()):
            self.done, self.size = int(match[1]), int(match[2])
            return
        self.done = self.size = 0
        if match := _FILE.match(line):
            self.text = f"{match[1]} {match[2]}"
        elif line.startswith("Collecting "):
            self.text = f"looking up {line.split()[1]}"
        elif line.startswith(_UNPACKING):
            self.text = f"unpacking {_packages(line.count(',') + 1)}"
        elif line.startswith(_INSTALLED):
            self.installed = len(line[len(_INSTALLED) :].split())

    def line(self) -> str:
        """What is being done, with a bar where it is a download."""
        if not self.size:
            return self.text
        filled = _BAR * self.done // self.size
        return f"{self.text} [{'#' * filled:<{_BAR}}] {_amount(self.done, self.size)}"


def install(title: str, arguments: list[str]) -> int:
    """Run `pip install`, showing its activity on standard error; returns its exit code."""
    # Without it pip, which writes to a pipe here, would keep its lines back.
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    began = time.perf_counter()
    activity, output = Activity(), []
    show = _draw if sys.stderr.isatty() else _Plain(title)
    with subprocess.Popen(
        [sys.executable, "-m", "pip", "install", *_raw_progress(), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        text=True, encoding="utf-8", errors="replace",
    ) as pip:  # fmt: skip
        for line in _lines(pip):
            if line:
                activity.read(line)
                if not _PROGRESS.match(line):
                    output.append(line)
            show(f"{title}: {activity.line()}", time.perf_counter() - began, activity.size)
    _clear()
    if pip.returncode:
        sys.stderr.write("".join(output))
        print(f"{title}: pip failed, for the reason above", file=sys.stderr)
    else:
        seconds = time.perf_counter() - began
        count = activity.installed
        what = f"installed {_packages(count)}" if count else "already there"
        print(f"{title}: {what}, {seconds:.0f} s", file=sys.stderr)
    return pip.returncode


def _raw_progress() -> list[str]:
    """The option for progress that a program can read, which pip has from 24.1."""
    version = importlib.metadata.version("pip").split(".")
    return ["--progress-bar", "raw"] if (int(version[0]), int(version[1])) >= (24, 1) else []


def _lines(pip: subprocess.Popen[str]) -> Iterator[str]:
    """The lines of pip's output as they come, and "" after every tick without one."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in pip.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_TICK)
        except queue.Empty:
            line = ""
        if line is None:
            return
        yield line


def _draw(text: str, seconds: float, _: int) -> None:
    width = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # 0 where it is not known
    sys.stderr.write(f"\r\x1b[K{f'{text}, {seconds:.0f} s'[: width - 1]}")
    sys.stderr.flush()


class _Plain:
    """Prints a line for the start, for each large download and for the unpacking."""

    def __init__(self, title: str) -> None:
        print(f"{title}: starting", file=sys.stderr, flush=True)
        self._printed = ""

    def __call__(self, text: str, _: float, size: int) -> None:
        what = text.partition(" [")[0]
        if what != self._printed and (size >= _LARGE or ": unpacking" in what):
            self._printed = what
            print(f"{what} ({_amount(size)})" if size else what, file=sys.stderr, flush=True)


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


def _packages(count: int) -> str:
    return f"{count} package{'s' if count != 1 else ''}"


def _amount(*counts: int) -> str:
    return f"{' of '.join(f'{count / 1e6:,.1f}' for count in counts)} MB"


if __name__ == "__main__":
    try:
        sys.exit(install(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
