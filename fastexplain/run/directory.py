"""The run directory: what a sweep writes, and everything later reads and adds to.

    manifest.json                    what was swept, how, with which versions; its presence makes
                                     the directory a run
    excerpts.safetensors             the corpus's tokens, the vocabulary, the tables' rows
    layers/00.safetensors ...        exemplars, statistics and tables of each site; one that is not
                                     a layer's MLP has its place in the name, as in 05.e17
    checkpoints/                     only while a sweep is unfinished
    run.sqlite                       explanations, simulations, scores

A file is written under a temporary name, synced and renamed, so that it is whole or absent.
Reading is lazy: only the slices that are asked for leave the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fastexplain.errors import RunError, UsageError
from fastexplain.kernels.scalars import histogram_edges
from fastexplain.kernels.summary import widen
from fastexplain.records import Exemplar, NeuronId, NeuronRecord, Site, Statistics
from fastexplain.run.checkpoints import DIRECTORY as CHECKPOINTS
from fastexplain.run.statistics import SUMMED, moments_of
from fastexplain.run.table import NeuronTable, neuron_table
from fastexplain.run.tables import Tables

if TYPE_CHECKING:
    from fastexplain.run.database import Database
    from fastexplain.text.corpus import Corpus

SCHEMA = 2
_MANIFEST = "manifest.json"
_EXCERPTS = "excerpts.safetensors"

# Arrays of a site's file with neurons along the first axis; in the others they are along the last.
_NEURONS_FIRST = ("top.", "bottom.", "histogram")


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
        self._write_arrays(_EXCERPTS, arrays)

    def write_site(self, site: str, arrays: dict[str, np.ndarray]) -> None:
        """One site's file, from `Exemplars.finalize`."""
        self._write_arrays(_file_of(site), arrays)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """The manifest; the directory is a run from here on."""
        text = json.dumps({"schema": SCHEMA, **manifest}, indent=2) + "\n"
        self._write(_MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))

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
    return (Path(path) / _MANIFEST).exists()


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
    present -= {"layers", CHECKPOINTS, _EXCERPTS, f"{_EXCERPTS}.tmp", f"{_MANIFEST}.tmp"}
    if present:
        raise RunError(f"{path} holds other files; choose a new or an empty directory")


def open_run(path: str | Path) -> Run:
    """Open a run directory; takes milliseconds, whatever its size.

    Raises:
        RunError: there is no run, or one that this version can't read.
    """
    return Run(path)


class Run:
    """A finished sweep, and what was made of it since.

    Attributes:
        path: the directory.
        manifest: what was swept, how, and with which versions.
        sites: what was swept, by name, in ascending order.
        layers: those whose MLP neurons were swept, ascending.
        skip: the first counted token of every excerpt.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.manifest = json.loads((self.path / _MANIFEST).read_text(encoding="utf-8"))
            schema = self.manifest["schema"]
            if schema not in (1, SCHEMA):
                raise RunError(
                    f"{path} has schema {schema}, this version reads {SCHEMA}; "
                    "use the version of fastexplain that the manifest names, or sweep again"
                )
            self.skip: int = self.manifest["settings"]["skip"]
            self.sites = {site.name: site for site in _sites(self.manifest)}
        except (FileNotFoundError, NotADirectoryError):
            if (self.path / "layers").is_dir():
                raise RunError(
                    f"{path} is not a finished run; its sweep is under way, or goes on when its "
                    "command is repeated"
                ) from None
            raise RunError(
                f"{path} is not a finished run; make one with: fastexplain sweep SUBJECT "
                f"--corpus CORPUS --out {path}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path / _MANIFEST} can't be read: {error}") from error
        self.layers = [site.layer for site in self.sites.values() if site.kind == "mlp"]
        self._files: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.manifest['subject']['name']}, layers {self.layers})"

    def width(self, layer: int) -> int:
        """Neurons of a layer. Raises UsageError for a layer that was not swept."""
        if layer not in self.layers:
            swept = f"{self.layers[0]} to {self.layers[-1]}"
            if len(self.layers) != self.layers[-1] - self.layers[0] + 1:
                swept = ", ".join(map(str, self.layers))
            raise UsageError(f"layer {layer} was not swept; {self.path} has layers {swept}")
        return self.sites[str(layer)].units

    def check(self, neuron: NeuronId) -> NeuronId:
        """The same neuron. Raises UsageError if the run doesn't have it."""
        if neuron.place and neuron.site not in self.sites:
            raise UsageError(
                f"there is no neuron {neuron}; {self.path} has the sites {', '.join(self.sites)}"
            )
        width = self.sites[neuron.site].units if neuron.place else self.width(neuron.layer)
        if neuron.index >= width:
            raise UsageError(
                f"there is no neuron {neuron}; {'site' if neuron.place else 'layer'} "
                f"{neuron.site} has neurons {neuron.site}:0 to {neuron.site}:{width - 1}"
            )
        return neuron

    def array(self, site: int | str, name: str, neurons: slice = slice(None)) -> np.ndarray:
        """One array of a site's file; bfloat16 as its 16 bits.

        Args:
            site: a layer's number, or a site's name.
            neurons: those to read; what is not asked for does not leave the disk.
        """
        file = _file_of(str(site))
        if neurons == slice(None):
            return self._whole(file, name)
        found = self._slice(file, name)
        if name.startswith(_NEURONS_FIRST):
            return found[neurons]
        return np.ascontiguousarray(found[(..., neurons)])

    def statistics(self, site: int | str) -> dict[str, np.ndarray]:
        """The numbers of `Statistics` for a whole site, by name, float64 `[neurons]` each."""
        count = self.sites[str(site)].counted_tokens
        return moments_of({name: self.array(site, name) for name in SUMMED}, count)

    def table(self) -> NeuronTable:
        """Statistics and scores of all neurons as NumPy columns; see `NeuronTable`.

        Raises:
            RunError: a file is missing or damaged.
        """
        return neuron_table(self)

    def neuron(self, name: str | NeuronId) -> NeuronRecord:
        """All that the run holds of one neuron, such as `"5:131"`.

        Raises:
            UsageError: the name is no neuron's, or no neuron of this run.
            RunError: a file is missing or damaged.
        """
        neuron = self.check(NeuronId.parse(name) if isinstance(name, str) else name)
        file, index = _file_of(neuron.site), neuron.index
        kept = {
            end: self._exemplars(
                self._slice(file, f"{end}.ids")[index],
                self._slice(file, f"{end}.activations")[index],
            )
            for end in ("top", "bottom")
        }
        random_ids = self._whole(file, "random.ids")
        random = []
        if len(random_ids):
            random = self._exemplars(
                random_ids, self._slice(file, "random.activations")[:, :, index]
            )
        return NeuronRecord(
            neuron, self.skip, kept["top"], kept["bottom"], random, self._statistics(neuron)
        )

    def token_text(self, token: int) -> str:
        """A token as text; bytes that are not UTF-8 on their own show as U+FFFD."""
        blob, ends = self._vocabulary
        if not 0 <= token < len(ends) - 1:  # a model may have more rows than its tokenizer tokens
            return ""
        return bytes(blob[ends[token] : ends[token + 1]]).decode("utf-8", errors="replace")

    def excerpt(self, excerpt: int) -> np.ndarray:
        """An excerpt's token ids, int32 `[tokens]`."""
        return self._slice(_EXCERPTS, "tokens")[excerpt]

    @cached_property
    def excerpts(self) -> np.ndarray:
        """All excerpts' token ids, int32 `[excerpts, tokens]`."""
        return self._whole(_EXCERPTS, "tokens")

    @cached_property
    def tables(self) -> Tables:
        """Which tokens and pairs the layers' tables have rows for."""
        names = ("tokens", "pairs", "token_counts", "pair_counts")
        return Tables(*(self._whole(_EXCERPTS, f"tables.{name}") for name in names))

    @property
    def counted_tokens(self) -> int:
        """Tokens that the statistics of MLP neurons are over."""
        sweep = self.manifest["sweep"]
        return sweep["tokens"] - sweep["excerpts"] * self.skip

    def database(self, *, read_only: bool = False) -> Database:
        """The run's explanations, simulations and scores; close it, or use it in a `with`.

        Read-only, it also serves a run in a place that can't be written.
        """
        from fastexplain.run.database import Database

        return Database(self.path / "run.sqlite", read_only=read_only)

    def _exemplars(self, ids: np.ndarray, acts: np.ndarray) -> list[Exemplar]:
        found = []
        for excerpt, own in zip(ids, widen(acts), strict=True):
            if excerpt >= 0:
                token_ids = self.excerpt(int(excerpt))
                tokens = [self.token_text(int(token)) for token in token_ids]
                found.append(Exemplar(int(excerpt), token_ids, tokens, own))
        return found

    def _statistics(self, neuron: NeuronId) -> Statistics:
        file, index = _file_of(neuron.site), neuron.index
        count = self.sites[neuron.site].counted_tokens
        one_neuron = slice(index, index + 1)
        sums = {name: self.array(neuron.site, name, one_neuron) for name in SUMMED}
        moments = moments_of(sums, count)

        def one(name: str) -> Any:
            return self._slice(file, name)[index]

        return Statistics(
            count=count,
            **{name: float(values[0]) for name, values in moments.items()},
            histogram=one("histogram").astype(np.int64),
            histogram_edges=histogram_edges().astype(np.float64),
            histogram_excerpts=one("histogram.excerpts"),
        )

    @cached_property
    def _vocabulary(self) -> tuple[np.ndarray, np.ndarray]:
        names = ("vocabulary.bytes", "vocabulary.ends")
        blob, ends = (self._whole(_EXCERPTS, name) for name in names)
        return blob, ends

    def _whole(self, file: str, name: str) -> np.ndarray:
        return self._read(file, lambda handle: handle.get_tensor(name))

    def _slice(self, file: str, name: str) -> Any:
        return self._read(file, lambda handle: handle.get_slice(name))

    def _read(self, file: str, read: Callable[[Any], Any]) -> Any:
        path = self.path / file
        try:
            if file not in self._files:
                self._files[file] = safe_open(path, framework="np")
            return read(self._files[file])
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} is missing or damaged ({error}); sweep again") from error


def _sites(manifest: dict[str, Any]) -> list[Site]:
    """A run's sites; up to schema 1 it had layers and their widths only."""
    if "sites" in manifest:
        return [Site(**fields) for fields in manifest["sites"]]
    settings, sweep = manifest["settings"], manifest["sweep"]
    counted = sweep["tokens"] - sweep["excerpts"] * settings["skip"]
    layers = zip(settings["layers"], settings["widths"], strict=True)
    return [Site(str(layer), "mlp", width, counted) for layer, width in layers]


def _file_of(site: str) -> str:
    layer, dot, place = site.partition(".")
    return f"layers/{int(layer):02}{dot}{place}.safetensors"
