"""Listening: a socket of its own, and uvicorn on it until it is interrupted."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fastexplain.errors import RunError, UsageError
from fastexplain.report.comparing import check_comparable
from fastexplain.run.directory import Run

if TYPE_CHECKING:
    from fastexplain.pipeline.models import Settings

# Connections at once, and seconds that an idle one is kept.
_MOST_CONNECTIONS, _KEPT = 200, 5


def serve(
    run: Run,
    host: str,
    port: int,
    password: str | None,
    ready: Callable[[str], None],
    *,
    subject: str | None = None,
    trust_remote_code: bool = False,
    other: Run | None = None,
    simulator: Settings | None = None,
) -> None:
    """Serve the viewer until Ctrl-C or SIGTERM, at which it returns.

    Args:
        run: what is viewed.
        host: the address to listen on; beyond this machine's own it needs a password.
        port: 0 takes any that is free.
        password: asked of everyone, if not None.
        ready: called with the viewer's address once it listens.
        subject, trust_remote_code, other, simulator: see `viewed.Beside`.

    Raises:
        UsageError: the extra `viewer` is not installed, the address can't be listened on, it is
            not this machine's own and there is no password, the other run has other neurons, or
            the simulator's settings make no sense.
    """
    needed = ("orjson", "starlette", "threadpoolctl", "uvicorn")
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(
            f"the viewer needs {' and '.join(missing)}: pip install 'fastexplain[viewer]'"
        )
    import uvicorn
    from threadpoolctl import threadpool_limits

    from fastexplain.viewer.application import application
    from fastexplain.viewer.guard import Door, is_loopback
    from fastexplain.viewer.viewed import Beside

    if password is None and not is_loopback(host):
        raise UsageError(
            f"'{host}' can be reached from other machines; give a `password`, or leave the host out"
        )
    if other is not None:
        check_comparable(run, other)
    runs = [own for own in (run, other) if own is not None]
    # Of a database by an older version every reading makes a new copy: it is brought to this one.
    _write_nothing(runs)
    # A page's products are small, and each has a thread: one that wakes others waits for them.
    with threadpool_limits(1, "blas"), listen(host, port) as listening:
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            application(
                run,
                Door.of(host, port, password),
                Beside(subject, trust_remote_code, other, simulator),
            ),
            log_level="warning",
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_KEPT,
            lifespan="on",
        )
        server = uvicorn.Server(config)
        try:
            ready(address_of(host, port))
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # in which uvicorn ends: so was it told to
            pass
        finally:
            # Who wrote meanwhile left its log behind, for the viewer had the database open.
            _write_nothing(runs)


def address_of(host: str, port: int) -> str:
    """The address to open on this machine; one that stands for all of its own names none."""
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{named}]' if ':' in named else named}:{port}/"


def _write_nothing(runs: Iterable[Run]) -> None:
    """Open and close databases as a writer, where they are and may be written."""
    for run in runs:
        if (run.path / "run.sqlite").exists():
            with contextlib.suppress(RunError), run.database():
                pass


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UsageError where that can't be."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Only of sockets that say TCP does asyncio turn Nagle's algorithm off; with it every answer
        # waited 40 ms for the client's acknowledgement of its headers.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"can't listen on {host}, `port` {port} ({error}); give another, or 0 for any"
        ) from error
    return listening
