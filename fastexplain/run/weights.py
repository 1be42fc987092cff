"""What a run holds of its neurons' weights: tokens that they raise and read, and neighbours.

    weights/manifest.json        the subject's fingerprint and a hash of each file; written last,
                                 it makes the others count
    weights/hashes.safetensors   of each of them, piece by piece: see `pieces.py`
    weights/00.safetensors ...   by layer, the arrays below

For each side (`output`; `input`, or `gate` and `up`) `SIDE.tokens` int32 and `SIDE.values` float32
`[F, 2, C]` hold the C tokens with the largest and with the smallest values, and `SIDE.spread`
float32 `[F]` the values' standard deviation over the vocabulary. For each kind of neighbours
`KIND.neurons` int32 `[F, C, 2]` holds layers and indices, -1 where there are no more, and
`KIND.cosines` float32 `[F, C]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fastexplain.errors import RunError
from fastexplain.records import NeuronId
from fastexplain.run.arrays import ArrayFile
from fastexplain.run.layout import check_weights
from fastexplain.run.locking import DirectoryLock
from fastexplain.run.pieces import hash_of, hashes_of
from fastexplain.run.sealed import sealed, unsealed
from fastexplain.run.whole import write_whole

if TYPE_CHECKING:
    from fastexplain.run.directory import Run

DIRECTORY = "weights"
NEIGHBOURS = ("similar", "fed_by", "read_by")

_MANIFEST, _HASHES, _LOCK = "manifest.json", "hashes.safetensors", "lock"
_SCHEMA = 1


class TokenEffect(NamedTuple):
    """A token and what it has to do with a neuron's weights.

    Attributes:
        token_id: the token.
        token: the same, as text.
        value: see `Side`.
    """

    token_id: int
    token: str
    value: float


class Side(NamedTuple):
    """The tokens at one end of a neuron: those it writes, or those it reads.

    Values are relative to the mean over the vocabulary, and to a factor of the norms between,
    which depends on the text, of 1. Of the output they are what a unit of activation adds to the
    tokens' logits; of an input, what their embeddings add to what goes into the nonlinearity, or
    into the factor of a gated MLP's `up`.

    Attributes:
        most: the tokens with the largest values above 0, largest first.
        least: those with the smallest below 0, smallest first.
        spread: the values' standard deviation over the vocabulary.
    """

    most: list[TokenEffect]
    least: list[TokenEffect]
    spread: float


class Neighbour(NamedTuple):
    """Another neuron, and the cosine of its vector and the neuron's own, of either sign."""

    neuron: NeuronId
    cosine: float


@dataclass(frozen=True)
class NeuronWeights:
    """What a neuron's weights say of it.

    Attributes:
        output: the tokens whose logits it raises and lowers.
        inputs: by name, `input` or `gate` and `up`, the tokens whose embeddings it reads.
        similar: neurons of other layers that write most nearly the same, or its opposite.
        fed_by: neurons of lower layers that write what it (or its gate) reads.
        read_by: neurons of higher layers that (or whose gates) read what it writes.
    """

    output: Side
    inputs: dict[str, Side] = field(repr=False)
    similar: list[Neighbour] = field(repr=False)
    fed_by: list[Neighbour] = field(repr=False)
    read_by: list[Neighbour] = field(repr=False)


class StoredWeights:
    """A run's weights, opened.

    Raises:
        RunError: they are damaged, or of another subject than the run's.
    """

    def __init__(self, run: Run) -> None:
        self._run, self.path = run, run.path / DIRECTORY
        self._manifest = _read_manifest(self.path / _MANIFEST)
        if self._manifest["fingerprint"] != run.manifest["subject"].get("fingerprint"):
            raise RunError(
                f"{self.path} holds the weights of another subject than the run's; "
                f"{_again(self.path)}"
            )
        self.parts: list[str] = self._manifest["parts"]
        self._files: dict[int, ArrayFile] = {}

    def __repr__(self) -> str:
        neurons = sum(self._run.width(layer) for layer in self._run.layers)
        return f"weights of {neurons:,} neurons in {len(self._run.layers)} layers"

    def neuron(self, neuron: NeuronId) -> NeuronWeights:
        """What a neuron's weights say of it. Raises RunError where a file is damaged."""
        file, index = self.file(neuron.layer), neuron.index

        def side(name: str) -> Side:
            tokens, values = (
                file.read(f"{name}.{part}", (index,)) for part in ("tokens", "values")
            )
            ends = [
                [TokenEffect(t, self._run.token_text(t), v) for t, v in zip(ids, own, strict=True)
                 if v * sign > 0]
                for ids, own, sign in zip(tokens.tolist(), values.tolist(), (1, -1), strict=True)
            ]  # fmt: skip
            [spread] = file.read(f"{name}.spread", (slice(index, index + 1),)).tolist()
            return Side(ends[0], ends[1], spread)

        def neighbours(kind: str) -> list[Neighbour]:
            places = file.read(f"{kind}.neurons", (index,)).tolist()
            cosines = file.read(f"{kind}.cosines", (index,)).tolist()
            return [
                Neighbour(NeuronId(*place), cosine)
                for place, cosine in zip(places, cosines, strict=True) if cosine != 0
            ]  # fmt: skip

        return NeuronWeights(
            side("output"), {part: side(part) for part in self.parts}, *map(neighbours, NEIGHBOURS)
        )

    def file(self, layer: int) -> ArrayFile:
        """A layer's file; it has what it must have. Raises RunError where it is damaged."""
        if layer not in self._files:
            name = file_name(layer)
            hashes = self._hashes(name)
            file = ArrayFile(self.path / name, hashes)
            check_weights(file, self._run.width(layer), ["output", *self.parts], NEIGHBOURS)
            self._files[layer] = file
        return self._files[layer]

    def _hashes(self, name: str) -> np.ndarray:
        path = self.path / _HASHES
        try:
            with safe_open(path, framework="np") as file:
                hashes = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path} is missing or damaged ({error}); {_again(self.path)}"
            ) from error
        if hash_of(hashes) != self._manifest["files"].get(name):
            raise RunError(f"{path} is damaged: what it has of {name} is not what was written")
        return hashes


def stored_weights(run: Run) -> StoredWeights | None:
    """A run's weights; None where they were not looked at. Raises as `StoredWeights` does."""
    return StoredWeights(run) if (run.path / DIRECTORY / _MANIFEST).exists() else None


def written_weights(run: Run) -> tuple[int, int] | None:
    """What tells a run's weights from others stored in their place; None where there are none."""
    try:
        found = (run.path / DIRECTORY / _MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


def store_weights(
    run: Run, parts: list[str], layers: Iterable[tuple[int, dict[str, np.ndarray]]]
) -> None:
    """Store the weights' arrays by layer, in place of those there are.

    Raises:
        RunError: they can't be written, or another process is writing them. What was there before
            is there no more, and nothing is in its place until the same call succeeds.
    """
    directory = run.path / DIRECTORY
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"can't write to {directory}: {error.strerror}") from error
    lock = DirectoryLock(directory, directory / _LOCK, "command")
    try:
        (directory / _MANIFEST).unlink(missing_ok=True)
        hashes = {}
        for layer, arrays in layers:
            path = directory / file_name(layer)
            whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            write_whole(path, partial(save_file, whole))
            hashes[path.name] = hashes_of(path)
        write_whole(directory / _HASHES, partial(save_file, hashes))
        content = sealed(
            {
                "schema": _SCHEMA,
                "fingerprint": run.manifest["subject"].get("fingerprint"),
                "parts": parts,
                "files": {name: hash_of(own) for name, own in hashes.items()},
            }
        )
        write_whole(directory / _MANIFEST, lambda place: place.write_bytes(content))
    except OSError as error:
        raise RunError(f"can't write to {directory}: {error.strerror}") from error
    finally:
        lock.close()


def file_name(layer: int) -> str:
    """The file of a layer's weights, such as `05.safetensors`."""
    return f"{layer:02}.safetensors"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest, hashed = unsealed(path.read_bytes())
        if manifest.get("schema") != _SCHEMA:
            raise ValueError(f"schema is {manifest.get('schema')!r:.50}, {_SCHEMA} can be read")
        parts, files = manifest.get("parts"), manifest.get("files")
        fits = (
            hashed and isinstance(files, dict) and isinstance(parts, list)
            and all(isinstance(part, str) and re.fullmatch(r"\w+", part) for part in parts)
        )  # fmt: skip
        if not fits or "fingerprint" not in manifest:
            raise ValueError("it lacks a part")
    except OSError as error:
        raise RunError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path} can't be used: {error}; {_again(path.parent)}") from error
    return manifest


def _again(directory: Path) -> str:
    return f"repeat: fastexplain weights {directory.parent} --fresh"
