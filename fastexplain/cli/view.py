"""The neuron viewer, in a browser on this machine."""

from __future__ import annotations

import getpass
import os
import sys
import warnings
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastexplain.cli.common import (
    BaseUrl,
    Concurrency,
    Local,
    MaxCost,
    MaxRequests,
    Readout,
    RequestsPerMinute,
    RunPath,
    Simulation,
    SubjectPlace,
    Timeout,
    TokensPerMinute,
    Trust,
    reject_together,
)
from fastexplain.cli.terminal import out
from fastexplain.errors import UsageError

if TYPE_CHECKING:
    from fastexplain.pipeline.models import Settings
    from fastexplain.run.directory import Run

PASSWORD = "FASTEXPLAIN_PASSWORD"


_UNENCRYPTED = (
    "Other machines reach it by this machine's address. Its password and all data go over the "
    "network unencrypted: use a tunnel, or a proxy with TLS."
)

# What has a meaning with a simulator only.
_FOR_SIMULATOR = {
    "base_url", "local", "simulation", "readout", "concurrency", "requests_per_minute",
    "tokens_per_minute", "timeout", "max_cost", "max_requests", "price",
}  # fmt: skip


def view(
    context: typer.Context,
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
            "needed with an address that other machines reach. It and all data go over the "
            "network unencrypted: use a tunnel, or a proxy with TLS.",
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
    simulator: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The language model that simulates the explanations typed on the page Try.",
        ),
    ] = None,
    base_url: BaseUrl = None,
    local: Local = False,
    simulation: Simulation = None,
    readout: Readout = None,
    concurrency: Concurrency = 64,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    timeout: Timeout = 120.0,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    price: Annotated[
        str | None,
        typer.Option(metavar="IN,OUT", help="The simulator's US dollars a million tokens."),
    ] = None,
) -> None:
    """Look at a run in the browser, until Ctrl-C.

    It needs an extra: pip install 'fastexplain[viewer]'. Nothing leaves this machine,
    but what a simulator's server is asked.
    """
    from fastexplain.run.directory import open_run

    simulating = None
    if simulator is None:
        _reject_without_simulator(context)
    else:
        from fastexplain.ledger.prices import parse_price
        from fastexplain.pipeline.models import Model, Settings

        reject_together({"--local": local, "--base-url": base_url})
        model = Model(simulator, base_url, local, None if price is None else parse_price(price))
        limits = {
            "concurrency": concurrency,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "timeout": timeout,
        }
        simulating = Settings(
            model, model, simulation, readout, limits, max_cost=max_cost, max_requests=max_requests
        )
    opened = open_run(run)
    other = None if compare is None else open_run(compare)
    secret = None
    if password:
        secret = os.environ.get(PASSWORD) or _typed_password()
    serve_until_ended(
        opened,
        host=host,
        port=port,
        password=secret,
        browser=browser,
        subject=subject,
        trust_remote_code=trust_remote_code,
        other=other,
        simulator=simulating,
    )


def _typed_password() -> str:
    """A password that is typed unseen. Raises UsageError where that can't be."""
    typed = ""
    with warnings.catch_warnings():
        # Without a terminal `getpass` warns, and reads what everybody sees.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            while not typed:
                typed = getpass.getpass("Password: ", sys.stderr)
        except getpass.GetPassWarning:
            raise UsageError(
                f"there is no terminal to type the password on; set {PASSWORD} to it"
            ) from None
        except (EOFError, KeyboardInterrupt):
            raise typer.Abort from None
    return typed


def _reject_without_simulator(context: typer.Context) -> None:
    """Raise UsageError where an option was given that only a simulator uses."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in _FOR_SIMULATOR and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{parameter.opts[0]} is for a simulator; name one with --simulator")


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
    simulator: Settings | None = None,
) -> None:
    """Serve the viewer and print its address; see `viewer.serving.serve`."""
    from fastexplain.viewer.serving import serve

    def ready(address: str) -> None:
        from fastexplain.viewer.guard import is_loopback

        out.print(f"The viewer is at {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        if not is_loopback(host):
            out.print(_UNENCRYPTED, markup=False, soft_wrap=True)
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
        simulator=simulator,
    )
