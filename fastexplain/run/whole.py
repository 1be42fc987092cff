"""Files that are whole or absent: written under a temporary name, synced and renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from fastexplain.errors import RunError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written by a function that gets the temporary path.

    Raises:
        RunError: it can't be written; what was there before is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors gives its files to the owner alone
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"can't write {path}: {error}") from error
