"""Writing a run directory; see `run/directory.py` for what is in it.

A file is written under a temporary name, synced and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors.numpy import save_file

from fastexplain.errors import RunError
from fastexplain.run.checkpoints import DIRECTORY as CHECKPOINTS
from fastexplain.run.layout import CONTEXT, REGRESSION
from fastexplain.run.locking import DirectoryLock
from fastexplain.run.manifest import EXCERPTS, HASHES, MANIFEST, SCHEMA, site_file
from fastexplain.run.pieces import hash_of, hashes_of
from fastexplain.run.regression import Regression
from fastexplain.run.room import Room
from fastexplain.run.sealed import sealed
from fastexplain.run.tables import Tables
from fastexplain.run.whole import write_whole

if TYPE_CHECKING:
    from fastexplain.text.corpus import Corpus

_LOCK = "lock"
_ROOM = "room"


class RunWriter:
    """Writes a run's files; the manifest, written last, makes them a run.

    It has the directory for itself until it is closed: use it in a `with`. All methods that write
    raise RunError where a file can't be written, or others have changed the directory meanwhile.

    Raises:
        RunError: the directory can't be made, holds a run or other files already, or another
            process is writing to it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        _check_contents(self._path)
        try:
            (self._path / "layers").mkdir(parents=True, exist_ok=True)
            (self._path / CHECKPOINTS).mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"can't write a run to {path}: {error.strerror}") from error
        self._lock = DirectoryLock(self._path, self._path / CHECKPOINTS / _LOCK)
        self._room: Room | None = None
        self._hashes: dict[str, np.ndarray] = {}
        try:
            _check_contents(self._path)  # another may have finished meanwhile
        except RunError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write to the directory, and give up the room that was kept."""
        self.give_up_room()
        self._lock.close()

    def keep_room(self, size: int, files: int) -> None:
        """Keep room on the disk for `size` bytes in so many files; warns where there is less."""
        self._room = Room(self._path / CHECKPOINTS / _ROOM, size, files)

    def give_up_room(self) -> None:
        """Give up the room that was kept."""
        if self._room is not None:
            self._room.close()

    def write_excerpts(
        self,
        corpus: Corpus,
        tables: Tables,
        vocabulary: list[bytes],
        regression: Regression | None = None,
    ) -> None:
        """The corpus, each token id's bytes, the tables' rows, and a regression's sums."""
        ends = np.cumsum([0] + [len(token) for token in vocabulary], dtype=np.int64)
        arrays = {
            "tokens": corpus.tokens,
            "documents": corpus.documents,
            "offsets": corpus.offsets,
            **dict(zip(CONTEXT, corpus.context, strict=True)),
            "vocabulary.bytes": np.frombuffer(b"".join(vocabulary), np.uint8),
            "vocabulary.ends": ends,
            "tables.tokens": tables.tokens,
            "tables.pairs": tables.pairs,
            "tables.triples": tables.triples,
            "tables.token_counts": tables.token_counts,
            "tables.pair_counts": tables.pair_counts,
            "tables.triple_counts": tables.triple_counts,
            "tables.situations": tables.situations,
            "tables.situation_counts": tables.situation_counts,
        }
        if regression is not None:
            sums = (regression.products, regression.token_sums, regression.pair_sums)
            values = (regression.regressors.bits, *sums, regression.triple_sums)
            arrays |= dict(zip(REGRESSION, values, strict=True))
        self._write_arrays(EXCERPTS, arrays)

    def write_site(self, site: str, arrays: dict[str, np.ndarray]) -> None:
        """One site's file, from `Exemplars.finalize`."""
        self._write_arrays(site_file(site), arrays)

    def written(self) -> dict[str, str]:
        """The files of arrays that were written so far, each with its hash."""
        return {name: hash_of(hashes) for name, hashes in self._hashes.items()}

    def take_site(self, site: str, written: dict[str, str]) -> None:
        """Take a site's file as a former try wrote it, by what `written` gave then.

        Raises:
            RunError: it is another by now.
        """
        file = self._path / site_file(site)
        try:
            hashes = hashes_of(file)
        except OSError as error:
            raise RunError(f"{file} can't be read: {error.strerror}") from error
        if hash_of(hashes) != written.get(site_file(site)):
            raise RunError(f"{file} has changed since it was written; remove {self._path}")
        self._hashes[site_file(site)] = hashes

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """The manifest; the directory is a run from here on."""
        files = self.written()
        self._write(HASHES, lambda path: save_file(self._hashes, path))
        content = sealed({"schema": SCHEMA, **manifest, "files": files})
        self._write(MANIFEST, lambda path: path.write_bytes(content))

    def _write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        whole = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        if self._room is not None:
            self._room.use(sum(array.nbytes for array in whole.values()))

        def save(path: Path) -> None:
            save_file(whole, path)
            self._hashes[name] = hashes_of(path)

        self._write(name, save)

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        if is_run(self._path) or not self._lock.is_there():
            raise RunError(
                f"{self._path} was changed by others during the sweep; sweep again into another "
                "directory"
            )
        write_whole(self._path / name, write)


def is_run(path: str | Path) -> bool:
    """Whether there is a finished run."""
    # Unlike Path's, False for a name that is too long.
    return os.path.exists(Path(path) / MANIFEST)  # noqa: PTH110


def check_free(path: str | Path) -> None:
    """Make sure that a run may be written to a directory, which need not exist.

    Raises:
        RunError: it holds a run or other files already, another process is writing to it, or it
            is in a place that can't be written.
    """
    directory = Path(path).absolute()
    _check_contents(Path(path))
    nearest = next(place for place in (directory, *directory.parents) if place.exists())
    if not os.access(nearest, os.W_OK):
        raise RunError(f"can't write a run to {path}: you may not write to {nearest}")
    lock = Path(path) / CHECKPOINTS / _LOCK
    if lock.exists():
        DirectoryLock(Path(path), lock).close()


def _check_contents(directory: Path) -> None:
    """Raise RunError where there is a run, what no sweep has left, or no directory at all."""
    try:
        if directory.exists() and not directory.is_dir():
            raise RunError(f"{directory} is no directory; choose a new or an empty one")
    except OSError as error:
        raise RunError(f"{directory} can't be a directory: {error.strerror}") from error
    if is_run(directory):
        raise RunError(
            f"{directory} holds a run already, which is finished; look at it with: fastexplain "
            f"top {directory}; or choose another directory"
        )
    present = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    present -= {"layers", CHECKPOINTS, EXCERPTS, HASHES}
    present -= {f"{name}.tmp" for name in (EXCERPTS, HASHES, MANIFEST)}
    if present:
        raise RunError(f"{directory} holds other files; choose a new or an empty directory")
