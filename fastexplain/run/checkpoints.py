"""Unfinished sweeps: what was kept of the excerpts done so far, so that a sweep can go on.

    RUN/checkpoints/1024/          named by the excerpts done
        state.json                 the settings, by which a sweep knows its own, the batch size and
                                   the time taken
        00.safetensors ...         each layer's summary

A checkpoint is written under a temporary name, synced and renamed, and only then the one before is
removed: there is always a whole one.
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
from fastexplain.kernels.summary import Summary

DIRECTORY = "checkpoints"
_STATE = "state.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A sweep that got part of the way.

    Attributes:
        done: excerpts folded in, those with ids below this.
        seconds: spent on them.
        batch_size: excerpts in each of its forward passes, and in those to come.
        summaries: by layer.
    """

    done: int
    seconds: float
    batch_size: int
    summaries: dict[int, Summary]


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
            RunError: it is from a sweep with other settings, or can't be read.
        """
        whole = [int(path.name) for path in self._directory.glob("*") if path.name.isdigit()]
        if not whole:
            return None
        directory = self._directory / str(max(whole))
        try:
            state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
            same_size = batch_size in (None, state["batch_size"])
            known = state["settings"] in (self._settings, *self._former)
            if not known or not same_size:
                raise RunError(
                    f"{self._directory.parent} holds an unfinished sweep with other settings; "
                    "repeat its command to finish it, or remove the directory"
                )
            summaries = {
                layer: Summary(
                    **load_file(directory / f"{layer:02}.safetensors"), seed=state["seed"]
                )
                for layer in state["layers"]
            }
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RunError(f"{directory} can't be read ({error}); remove it") from error
        return Checkpoint(max(whole), state["seconds"], state["batch_size"], summaries)

    def save(
        self,
        done: int,
        seconds: float,
        batch_size: int,
        summaries: Iterable[tuple[int, Summary]],
    ) -> None:
        """Save a checkpoint in place of the one before; summaries are taken one by one."""
        if (self._directory / str(done)).exists():  # this sweep's own, of a moment ago
            return
        temporary = self._directory / f"{done}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            layers, seed = [], 0
            for layer, summary in summaries:
                arrays = summary._asdict()
                seed = arrays.pop("seed")
                save_file(arrays, temporary / f"{layer:02}.safetensors")
                layers.append(layer)
            state = {
                "settings": self._settings,
                "seconds": seconds,
                "batch_size": batch_size,
                "layers": layers,
                "seed": seed,
            }
            (temporary / _STATE).write_text(json.dumps(state), encoding="utf-8")
            for path in temporary.iterdir():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.rename(self._directory / str(done))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunError(f"can't write a checkpoint to {self._directory}: {error}") from error
        for path in self._directory.iterdir():
            if path.name != str(done):
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove them all: the sweep is finished."""
        shutil.rmtree(self._directory, ignore_errors=True)
