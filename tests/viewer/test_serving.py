"""Listening."""

import socket

import pytest

from fastexplain.errors import UsageError
from fastexplain.viewer.serving import listen


def test_connections_are_ones_whose_answers_asyncio_sends_at_once() -> None:
    with listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
        with pytest.raises(UsageError, match=r"can't listen on 127\.0\.0\.1"):
            listen("127.0.0.1", listening.getsockname()[1])
