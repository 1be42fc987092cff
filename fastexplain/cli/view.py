"""The neuron viewer, in a browser on this machine."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastexplain.cli.common import RunPath, SubjectPlace, Trust
from fastexplain.cli.terminal import out

if TYPE_CHECKING:
    from fastexplain.run.directory import Run

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
    subject: SubjectPlace = None,
    trust_remote_code: Trust = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER", help="A run of a model with the same neurons, to compare with."
        ),
    ] = None,
) -> None:
    """Look at a run in the browser, until Ctrl-C.

    It needs Starlette and uvicorn: pip install 'fastexplain[viewer]'. Nothing leaves this machine.
    """
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    other = None if compare is None else open_run(compare)
    secret = None
    if password:
        secret = os.environ.get(PASSWORD) or typer.prompt("Password", hide_input=True, err=True)
    serve_until_ended(
        opened,
        host=host,
        port=port,
        password=secret,
        browser=browser,
        subject=subject,
        trust_remote_code=trust_remote_code,
        other=other,
    )


def serve_until_ended(
    run: Run,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    password: str | None = None,
    browser: bool = False,
    subject: str | None = None,
    trust_remote_code: bool = False,
    other: Run | None = None,
) -> None:
    """Serve the viewer and print its address; see `viewer.serving.serve`."""
    from fastexplain.viewer.serving import serve

    def ready(address: str) -> None:
        out.print(f"The viewer is at {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        if browser:
            webbrowser.open(address)

    serve(
        run,
        host,
        port,
        password,
        ready,
        subject=subject,
        trust_remote_code=trust_remote_code,
        other=other,
    )
