"""The CPU's kernels compiled while something else is being done: by a process into Numba's cache.

Numba compiles a function where it is first called, and keeps it on disk; the first sweep on a
machine would begin with that. Half of it is Python's work, so a thread beside a busy one gains
nothing: see `benches/NOTES.md`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from fastexplain.subject.model import Subject
from fastexplain.sweeping.summaries import kernel_device, kernel_dtype

_MODULE = "fastexplain.kernels.cpu.ahead"


@contextlib.contextmanager
def compiled_beside(subject: Subject, *, tables: bool, signs: bool) -> Iterator[None]:
    """Have what a sweep of the subject will run compiled meanwhile; the end waits for it.

    If it fails, the sweep compiles for itself. An exception within ends it at once.

    Args:
        tables: whether the sweep will keep any.
        signs: whether it will keep sign classes.
    """
    process = None
    if kernel_device(subject.device).type == "cpu":
        command = [
            sys.executable,
            "-m",
            _MODULE,
            json.dumps(needs(subject, tables=tables, signs=signs)),
        ]
        nothing = subprocess.DEVNULL  # it is quiet, also where Ctrl-C reaches both
        with contextlib.suppress(OSError):
            process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        yield
        if process is not None:
            process.wait()
    finally:
        if process is not None:
            process.kill()  # does nothing to one that has ended
            process.wait()


def needs(subject: Subject, *, tables: bool, signs: bool) -> dict[str, Any]:
    """What a sweep of the subject runs on the CPU, for `kernels.cpu.ahead.compile_kernels`."""
    here = subject.device.type == "cpu"
    return {
        "dtype": kernel_dtype(subject.dtype).name,
        # Activations of another device come ready made.
        "nonlinearities": subject.nonlinearities() if here else [None],
        "tables": tables,
        "signs": signs,
    }
