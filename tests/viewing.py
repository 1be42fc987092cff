"""The viewer, served for a test."""

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn

from fastexplain import Run
from fastexplain.viewer.application import application
from fastexplain.viewer.guard import Door
from fastexplain.viewer.serving import listen


@contextlib.contextmanager
def serving(run: Run) -> Iterator[str]:
    """The address of a viewer of a run, in a thread of this process."""
    with listen("127.0.0.1", 0) as socket:
        port = socket.getsockname()[1]
        config = uvicorn.Config(
            application(run, Door.of("127.0.0.1", port)), log_level="warning", lifespan="on"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)  # uvicorn has nothing to wait on
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.should_exit = True
            thread.join()
