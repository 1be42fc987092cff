"""`fastexplain check`: whether a run is as it was written."""

from __future__ import annotations

import typer

from fastexplain.cli.common import AsJson, RunPath
from fastexplain.cli.terminal import out, print_json


def check(run: RunPath, as_json: AsJson = False) -> None:
    """Compare every file of a run with its hashes.

    The exit code is 1 if one is damaged.
    """
    from fastexplain.run.checking import damages
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    found = damages(opened)
    hashed = "files" in opened.manifest
    if as_json:
        print_json({"run": str(run), "damaged": found, "hashes": hashed})
    else:
        for line in found:
            out.print(line, markup=False, soft_wrap=True)
        if not hashed:
            out.print(
                f"{run} has no hashes, since an older version wrote it: only the structure of its "
                "files was looked at.",
                markup=False,
                soft_wrap=True,
            )
        if not found:
            out.print(f"No file of {run} is damaged.", markup=False, soft_wrap=True)
    if found:
        raise typer.Exit(1)
