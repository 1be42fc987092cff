"""A run for others: as a site or a page that needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastexplain.cli.common import AsJson, RunPath, Seed, Where
from fastexplain.cli.terminal import duration, out, print_json, print_line, progress, working
from fastexplain.counting import counted
from fastexplain.errors import UsageError


def export(
    run: RunPath,
    neurons: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NEURON", help="Such as 5:131, 5:*, 0-3:0-99, all or @FILE; all if left out."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="PATH",
            help="A directory for a site, or FILE.html for a page of one neuron.",
        ),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Export N of the neurons, drawn at random.")
    ] = None,
    seed: Seed = 0,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Write a run, or some of its neurons, for others to look at.

    --html makes the viewer's pages without its server: a site opens from any web server and as a
    file, and a page of one neuron is a single file.
    """
    from fastexplain.run.directory import open_run
    from fastexplain.run.selection import ALL, select_neurons

    if html is None:
        raise UsageError("give the format and where to write: --html DIR, or --html FILE.html")
    opened = open_run(run)
    chosen = select_neurons(opened, neurons or [], sample=sample, seed=seed, where=where)
    chosen = chosen or select_neurons(opened, [ALL])
    if html.suffix.lower() in (".html", ".htm"):
        result = _export_page(opened, chosen, html)
    else:
        result = _export_site(opened, chosen, html)
    if as_json:
        print_json(result)
    else:
        of = "" if result["page"] == str(html) else f" in all of {html}"
        line = f"Written: {result['page']} ({_size(result['bytes'])}{of})"
        out.print(line, markup=False, soft_wrap=True)


def _export_page(run: Any, chosen: list[Any], file: Path) -> dict[str, Any]:
    from fastexplain.viewer.exporting import export_page

    if len(chosen) > 1:
        raise UsageError(
            f"{file} would be the page of one neuron, but {len(chosen):,} are chosen; name one, or "
            "give a directory for a site"
        )
    with working(f"Exporting {chosen[0]}"):
        size = export_page(run, chosen[0], file)
    return {"page": str(file), "neurons": 1, "bytes": size}


def _export_site(run: Any, chosen: list[Any], directory: Path) -> dict[str, Any]:
    from fastexplain.viewer.exporting import DATA, check_directory, export_site, plan_site

    check_directory(directory)
    with working("Estimating the size"):
        plan = plan_site(run, chosen)
    print_line(
        f"{counted(len(plan.neurons), 'neuron')}: about {_size(plan.size)}, in about "
        f"{duration(plan.seconds)}; Ctrl-C leaves {directory} as it is."
    )
    with progress("Exporting", len(plan.neurons)) as advance:
        page = export_site(run, plan, directory, advance)
    size = sum(file.stat().st_size for file in (page, *(directory / DATA).iterdir()))
    return {"page": str(page), "neurons": len(plan.neurons), "bytes": size}


def _size(count: int) -> str:
    """Bytes as people read them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
