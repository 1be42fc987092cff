"""The version of fastexplain; `pyproject.toml` reads it from here."""

import importlib.metadata

__version__ = "0.1.0"


def installed(distribution: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
