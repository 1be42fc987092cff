"""The neuron viewer, in a browser on this machine."""

from __future__ import annotations

import os
import webbrowser
from typing import Annotated

import typer

from fastexplain.cli.common import RunPath
from fastexplain.cli.terminal import out

PASSWORD = "FASTEXPLAIN_PASSWORD"


def view(
    run: RunPath,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8484,
    browser: Annotated[bool, typer.Option(help="Open the viewer in the browser.")] = True,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen on this address of the machine.")
    ] = "127.0.0.1",
    password: Annotated[
        bool,
        typer.Option(
            "--password",
            help=f"Ask for a password, which {PASSWORD} holds or is typed here; "
            "needed with an address that other machines reach.",
        ),
    ] = False,
) -> None:
    """Look at a run in the browser, until Ctrl-C.

    It needs Starlette and uvicorn: pip install 'fastexplain[viewer]'. Nothing leaves this machine.
    """
    from fastexplain.run.directory import open_run
    from fastexplain.viewer.serving import serve

    opened = open_run(run)
    secret = None
    if password:
        secret = os.environ.get(PASSWORD) or typer.prompt("Password", hide_input=True, err=True)

    def ready(address: str) -> None:
        out.print(f"The viewer is at {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        if browser:
            webbrowser.open(address)

    serve(opened, host, port, secret, ready)
