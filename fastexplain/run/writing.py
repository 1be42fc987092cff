"""Writing a run directory; see `run/directory.py` for what is in it.

A file is written under a temporary name, synced and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fastexplain.errors import RunError
from fastexplain.run.checkpoints import DIRECTORY as CHECKPOINTS
from fastexplain.run.tables import Tables

if TYPE_CHECKING:
    from fastexplain.text.corpus import Corpus

SCHEMA = 2
MANIFEST = "manifest.json"
EXCERPTS = "excerpts.safetensors"


def site_file(site: str) -> str:
    """The file of a site, such as `layers/05.e17.safetensors`."""
    layer, dot, place = site.partition(".")
    return f"layers/{int(layer):02}{dot}{place}.safetensors"


class RunWriter:
    """Writes a run's files; the manifest, written last, makes them a run.

    Raises:
        RunError: the directory can't be made, or holds a run or other files already.
    """

    def __init__(self, path: str | Path) -> None:
        check_free(path)
        self._path = Path(path)
        try:
            (self._path / "layers").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"can't write a run to {path}: {error.strerror}") from error

    def write_excerpts(self, corpus: Corpus, tables: Tables, vocabulary: list[bytes]) -> None:
        """The corpus, each token id's bytes, and which tokens and pairs the tables have."""
        ends = np.cumsum([0] + [len(token) for token in vocabulary], dtype=np.int64)
        arrays = {
            "tokens": corpus.tokens,
            "documents": corpus.documents,
            "offsets": corpus.offsets,
            "vocabulary.bytes": np.frombuffer(b"".join(vocabulary), np.uint8),
            "vocabulary.ends": ends,
            "tables.tokens": tables.tokens,
            "tables.pairs": tables.pairs,
            "tables.token_counts": tables.token_counts,
            "tables.pair_counts": tables.pair_counts,
        }
        self._write_arrays(EXCERPTS, arrays)

    def write_site(self, site: str, arrays: dict[str, np.ndarray]) -> None:
        """One site's file, from `Exemplars.finalize`."""
        self._write_arrays(site_file(site), arrays)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """The manifest; the directory is a run from here on."""
        text = json.dumps({"schema": SCHEMA, **manifest}, indent=2) + "\n"
        self._write(MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))

    def _write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        whole = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        self._write(name, lambda path: save_file(whole, path))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        final = self._path / name
        temporary = final.with_name(final.name + ".tmp")
        try:
            write(temporary)
            temporary.chmod(0o644)  # safetensors gives its files to the owner alone
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise RunError(f"can't write {final}: {error}") from error


def is_run(path: str | Path) -> bool:
    """Whether there is a finished run."""
    return (Path(path) / MANIFEST).exists()


def check_free(path: str | Path) -> None:
    """Make sure that a run may be written to a directory, which need not exist.

    Raises:
        RunError: it holds a run or other files already.
    """
    if is_run(path):
        raise RunError(
            f"{path} holds a run already, which is finished; look at it with: fastexplain top "
            f"{path}; or choose another directory"
        )
    directory = Path(path)
    present = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    # These an interrupted sweep may have left.
    present -= {"layers", CHECKPOINTS, EXCERPTS, f"{EXCERPTS}.tmp", f"{MANIFEST}.tmp"}
    if present:
        raise RunError(f"{path} holds other files; choose a new or an empty directory")
