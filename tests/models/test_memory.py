"""Freed memory is kept by a process that asks for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fastexplain.models import memory

# Every page is written to, so each that the system has to hand out is a fault.
PROGRAM = """
import resource
import numpy as np
from fastexplain.models.memory import keep_freed_memory

{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**28, np.uint8)[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(call: str) -> int:
    """How often the system hands out pages for 256 MiB that were freed just before.

    A page has 4 KiB or, where the system has huge ones, 2 MiB.
    """
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again() -> None:
    assert 2 * faults("keep_freed_memory()") < faults("")


def test_nothing_happens_where_there_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "plan9")
    memory.keep_freed_memory()
