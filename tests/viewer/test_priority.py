"""Threads that give way to others."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import pytest

from fastexplain.viewer.priority import give_way


def own() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities")
def test_a_thread_gives_way_with_those_that_it_begins() -> None:
    before, found = own(), []

    def work() -> None:
        give_way()
        found.append(own())
        in_thread(lambda: found.append(own()))
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        give_way()  # one that gives way more already is left as it is
        found.append(own())

    in_thread(work)
    lower = max(before, 10)
    assert found == [lower, lower, 15]
    assert own() == before


def test_without_priorities_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    before, found = own(), []

    def work() -> None:
        give_way()
        found.append(own())

    in_thread(work)
    assert found == [before]
