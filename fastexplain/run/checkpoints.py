"""Unfinished sweeps: what was kept of the excerpts done so far, so that a sweep can go on.

    RUN/checkpoints/1024/
        state.json                 the settings, by which a sweep knows its own, how far it has got,
                                   and the hashes of the other files; the last line is its own
        00.safetensors ...         each layer's summary, and what is kept by sign classes

A checkpoint is written under a temporary name, synced and renamed, and only then the one before is
removed: there is always a whole one. The last may be of the end of the pass, where some layers'
files are written already and the disk was full for the others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fastexplain.errors import RunError
from fastexplain.kernels.signs import Signs
from fastexplain.kernels.summary import Summary
from fastexplain.run.manifest import is_count
from fastexplain.run.pieces import hash_of, hashes_of
from fastexplain.run.sealed import sealed, unsealed

DIRECTORY = "checkpoints"
_STATE = "state.json"
_SIGNS = "signs."  # before the names of a `Signs`'s arrays
_KEYS = {"settings", "done", "seconds", "batch_size", "layers", "files", "seed", "written"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A sweep that got part of the way.

    Attributes:
        done: excerpts folded in, those with ids below this.
        seconds: spent on them.
        batch_size: excerpts in each of its forward passes, and in those to come.
        summaries: by layer; without those whose file is written.
        signs: by layer, where they are kept.
        written: the run's files that are written, each with its hash; see `RunWriter.written`.
    """

    done: int
    seconds: float
    batch_size: int
    summaries: dict[int, Summary]
    signs: dict[int, Signs] = dataclasses.field(default_factory=dict)
    written: dict[str, str] = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        run: the directory.
        settings: all that the summaries depend on but the batch size; plain data.
        former: what versions before wrote for the same settings.
    """

    def __init__(self, run: str | Path, settings: dict[str, Any], *former: dict[str, Any]) -> None:
        self._directory = Path(run) / DIRECTORY
        self._settings, *self._former = json.loads(json.dumps([settings, *former]))

    def load(self, batch_size: int | None = None) -> Checkpoint | None:
        """The furthest checkpoint, None if there is none; its batch size must be the one given.

        Raises:
            RunError: it is from a sweep with other settings, or not as it was written.
        """
        whole = [path for path in self._directory.glob("*") if path.name.isdigit()]
        if not whole:
            return None
        states = {path: _state(path) for path in whole}
        directory, state = max(states.items(), key=lambda item: item[1]["done"])
        known = state["settings"] in (self._settings, *self._former)
        if not known or batch_size not in (None, state["batch_size"]):
            raise RunError(
                f"{self._directory.parent} holds an unfinished sweep with other settings; "
                "repeat its command to finish it, or remove the directory"
            )
        summaries, signs = {}, {}
        for layer, (name, hash) in zip(state["layers"], state["files"].items(), strict=True):
            file = directory / name
            try:
                if hash is not None and hash_of(hashes_of(file)) != hash:
                    raise _damaged(directory, f"{name} is not what was written")
                arrays = load_file(file)
                own = {each: arrays.pop(each) for each in list(arrays) if each.startswith(_SIGNS)}
                if own:
                    signs[layer] = Signs(**{k.removeprefix(_SIGNS): v for k, v in own.items()})
                if arrays["histogram_ids"].ndim == 2:
                    # A version before kept one excerpt a bin; so does the rest of its sweep.
                    arrays["histogram_ids"] = arrays["histogram_ids"][None]
                if "triple_sums" not in arrays:
                    if len(arrays["token_sums"]):
                        raise _damaged(directory, "it is of a version whose tables had no triples")
                    arrays["triple_sums"] = arrays["pair_sums"].copy()
                summaries[layer] = Summary(**arrays, seed=state["seed"])
            except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
                raise _damaged(directory, f"{name}: {error}") from error
        return Checkpoint(
            state["done"],
            state["seconds"],
            state["batch_size"],
            summaries,
            signs,
            state["written"],
        )

    def save(
        self,
        done: int,
        seconds: float,
        batch_size: int,
        summaries: Iterable[tuple[int, Summary, Signs | None]],
        written: dict[str, str] | None = None,
    ) -> None:
        """Save a checkpoint in place of the one before; summaries are taken one by one.

        Raises:
            RunError: it can't be written; the one before is still there.
        """
        if (self._directory / str(done)).exists():  # this sweep's own, of a moment ago
            return
        temporary = self._directory / f"{done}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            layers, files, seed = [], {}, 0
            for layer, summary, signs in summaries:
                arrays = summary._asdict()
                seed = arrays.pop("seed")
                if signs is not None:
                    arrays |= {f"{_SIGNS}{name}": array for name, array in signs._asdict().items()}
                file = temporary / f"{layer:02}.safetensors"
                save_file(arrays, file)
                layers.append(layer)
                files[file.name] = hash_of(hashes_of(file))
            state = {
                "settings": self._settings,
                "done": done,
                "seconds": seconds,
                "batch_size": batch_size,
                "layers": layers,
                "files": files,
                "seed": seed,
                "written": written or {},
            }
            (temporary / _STATE).write_bytes(sealed(state))
            for path in temporary.iterdir():
                with path.open("rb+") as handle:
                    os.fsync(handle.fileno())
            temporary.rename(self._directory / str(done))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunError(f"can't write a checkpoint to {self._directory}: {error}") from error
        for path in self._directory.iterdir():
            if path.is_dir() and path.name != str(done):
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove them all: the sweep is finished."""
        shutil.rmtree(self._directory, ignore_errors=True)


def _state(directory: Path) -> dict[str, Any]:
    """A checkpoint's state, verified; of an earlier version, which had no hashes, as far as known.

    There the directory's name says how far it has got.
    """
    try:
        state, hashed = unsealed((directory / _STATE).read_bytes())
        if not hashed and "files" not in state:
            files = {f"{layer:02}.safetensors": None for layer in state["layers"]}
            state |= {"done": int(directory.name), "files": files, "written": {}}
        elif not hashed:
            raise ValueError("it has no hash")
        if lacking := _KEYS - state.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        numbers = [(state["done"], 0), (state["batch_size"], 1)]
        numbers += [(layer, 0) for layer in state["layers"]]
        fits = isinstance(state["seed"], int)
        fits &= all(is_count(value, least) for value, least in numbers)
        if not fits or not is_count(state["seconds"], 0, fraction=True):
            raise ValueError("it has a number that can't be")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, f"{_STATE}: {error}") from error
    return state


def _damaged(directory: Path, what: str) -> RunError:
    return RunError(f"the checkpoint {directory} can't be used ({what}); remove it")
