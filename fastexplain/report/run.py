"""What a run is: its subject, corpus, settings and sites."""

from __future__ import annotations

from typing import Any

from fastexplain.run.directory import Run
from fastexplain.version import __version__


def run_data(run: Run) -> dict[str, Any]:
    """A run as plain data.

    Returns:
        `name` (of its directory), `version` (of this package), `subject`, `corpus`, `settings`,
        `sweep` and `versions` as the manifest has them, `skip`, and `sites` (each with `name`,
        `layer`, `kind`, `units`, in ascending order).
    """
    manifest = run.manifest
    return {
        "name": run.path.resolve().name,
        "version": __version__,
        **{part: manifest[part] for part in ("subject", "corpus", "settings", "sweep", "versions")},
        "skip": run.skip,
        "sites": [
            {"name": site.name, "layer": site.layer, "kind": site.kind, "units": site.units}
            for site in run.sites.values()
        ],
    }
