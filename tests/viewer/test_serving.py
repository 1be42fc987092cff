"""Listening."""

import socket

import numpy as np
import pytest
import uvicorn
from threadpoolctl import threadpool_info, threadpool_limits

from fastexplain import Run
from fastexplain.errors import UsageError
from fastexplain.viewer.serving import listen, serve


def test_connections_are_ones_whose_answers_asyncio_sends_at_once() -> None:
    with listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
        with pytest.raises(UsageError, match=r"can't listen on 127\.0\.0\.1"):
            listen("127.0.0.1", listening.getsockname()[1])


def test_products_wake_no_threads_while_it_serves(
    planted_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> set[int]:
        np.ones((2, 2)) @ np.ones((2, 2))  # of a library that is loaded
        return {own["num_threads"] for own in threadpool_info() if own["user_api"] == "blas"}

    seen = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: seen.append(threads()))
    with threadpool_limits(2, "blas"):
        serve(planted_run, "127.0.0.1", 0, None, seen.append)
        assert threads() == {2}
    address, within = seen
    assert address.startswith("http://127.0.0.1:") and within == {1}
