"""The run directory: what a sweep writes, and everything later reads and adds to.

    manifest.json                    what was swept, how, with which versions; its presence makes
                                     the directory a run
    hashes.safetensors               of each file of arrays, piece by piece: see `pieces.py`
    excerpts.safetensors             the corpus's tokens, the vocabulary, the tables' rows
    layers/00.safetensors ...        exemplars, statistics and tables of each site; one that is not
                                     a layer's MLP has its place in the name, as in 05.e17
    checkpoints/                     only while a sweep is unfinished
    weights/                         where the command `weights` was run: see `weights.py`
    run.sqlite                       explanations, simulations, scores

Reading is lazy: only the slices that are asked for leave the disk. `run/writing.py` writes it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fastexplain.errors import RunError, UsageError
from fastexplain.kernels.scalars import histogram_edges
from fastexplain.kernels.summary import widen
from fastexplain.records import Exemplar, NeuronId, NeuronRecord, SignClass, Statistics
from fastexplain.run.arrays import ArrayFile
from fastexplain.run.context import neighbours_of
from fastexplain.run.layout import (
    ADDED,
    CONTEXT,
    REGRESSION,
    check_excerpts,
    check_site,
    check_values,
    lacking,
)
from fastexplain.run.manifest import EXCERPTS, HASHES, read_manifest, site_file
from fastexplain.run.pieces import hash_of
from fastexplain.run.regression import Regression
from fastexplain.run.signs import signs_of
from fastexplain.run.statistics import SUMMED, moments_of
from fastexplain.run.table import NeuronTable, neuron_table
from fastexplain.run.tables import Tables
from fastexplain.run.weights import NeuronWeights, StoredWeights, stored_weights, written_weights
from fastexplain.text.regressors import Regressors
from fastexplain.text.vocabulary import Texts

if TYPE_CHECKING:
    from fastexplain.run.database import Database

# Arrays of a site's file with neurons along the first axis; in the others they are along the last.
_NEURONS_FIRST = (
    "top.", "bottom.", "histogram", "signs.ids", "signs.activations", "signs.ups",
)  # fmt: skip

# Arrays of the excerpts' file that say how many rows a site's tables have.
_ROWS = (
    "tables.tokens", "tables.pairs", "tables.triples", "tables.situations", "regression.products",
)  # fmt: skip

_KNOWN = 4096  # excerpts whose texts are kept, in 1 kB each


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
        has_signs: whether the sweep kept sign classes; see `signs`.
        derived: what is made of the run once and kept as long as it is open, by what made it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest, self.sites = read_manifest(self.path)
        self.skip: int = self.manifest["settings"]["skip"]
        self.layers = [site.layer for site in self.sites.values() if site.kind == "mlp"]
        self.has_signs: bool = self.manifest["settings"].get("signs") is True
        self.derived: dict[object, Any] = {}
        self._files: dict[str, ArrayFile] = {}
        # What was stored, and that opened; it may be stored anew while a run is open.
        self._weights: tuple[object, StoredWeights | None] = (None, None)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.manifest['subject']['name']}, layers {self.layers})"

    def width(self, layer: int) -> int:
        """Neurons of a layer. Raises UsageError for a layer that was not swept."""
        if not self.layers:
            raise UsageError(f"{self.path} has no layers, only the sites {', '.join(self.sites)}")
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

    def array(self, site: int | str, name: str, neurons: slice | int = slice(None)) -> np.ndarray:
        """One array of a site's file; bfloat16 as its 16 bits.

        `histogram.excerpts` has D excerpts a bin, in the order of their hashes; D is 1 in a run of
        an earlier version.

        Args:
            site: a layer's number, or a site's name.
            neurons: those to read; what is not asked for does not leave the disk. A number takes
                the axis of neurons away.

        Raises:
            RunError: the file is missing or damaged.
        """
        place = (neurons,) if name.startswith(_NEURONS_FIRST) else (..., neurons)
        values = self._read(name, place if neurons != slice(None) else (), str(site))
        if name == "histogram.excerpts" and values.ndim < 3 - isinstance(neurons, int):
            return values[..., None]
        return values

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
        site, index = neuron.site, neuron.index
        kept = {
            end: self.exemplars(
                self.array(site, f"{end}.ids", index), self.array(site, f"{end}.activations", index)
            )
            for end in ("top", "bottom")
        }
        random_ids, random = self.array(site, "random.ids"), []
        if len(random_ids):
            random = self.exemplars(random_ids, self.array(site, "random.activations", index))
        return NeuronRecord(
            neuron, self.skip, kept["top"], kept["bottom"], random, self._statistics(neuron)
        )

    def signs(self, name: str | NeuronId) -> list[SignClass] | None:
        """A neuron by the signs of its gate and its factor; None where the sweep kept no classes.

        They are `++`, `+-`, `-+` and `--`, in this order; see `SignClass` and `sweep`.

        Raises:
            UsageError: the name is no neuron's, or no neuron of this run.
            RunError: a file is missing or damaged.
        """
        neuron = self.check(NeuronId.parse(name) if isinstance(name, str) else name)
        return signs_of(self, neuron) if self.has_signs else None

    def weights(self, name: str | NeuronId) -> NeuronWeights | None:
        """What a neuron's weights say of it; None where nobody looked (`fastexplain.weights`).

        Raises:
            UsageError: the name is no neuron's, or no neuron of this run.
            RunError: a file is missing or damaged.
        """
        neuron = self.check(NeuronId.parse(name) if isinstance(name, str) else name)
        if neuron.place:
            return None
        if (written := written_weights(self)) != self._weights[0]:
            self._weights = (written, stored_weights(self))
        stored = self._weights[1]
        return None if stored is None else stored.neuron(neuron)

    def token_text(self, token: int) -> str:
        """One token as text, as in `token_texts`."""
        return self.token_texts([token])[0]

    def token_texts(self, tokens: Iterable[int]) -> list[str]:
        """Consecutive tokens as text, none empty; U+FFFD is a part of a character of later ones."""
        return self._texts(tokens)

    def excerpt_texts(self, excerpt: int) -> list[str]:
        """An excerpt's tokens as text, as in `token_texts`."""
        return self._known_excerpt(excerpt)[1].copy()

    @cached_property
    def vocabulary(self) -> list[bytes]:
        """The bytes of every id of the tokenizer; of a few they are none."""
        blob, ends = self._vocabulary
        return [blob[start:end] for start, end in itertools.pairwise(ends)]

    def excerpt(self, excerpt: int) -> np.ndarray:
        """An excerpt's token ids, int32 `[tokens]`; context alone has ids behind those swept."""
        swept = self.manifest["sweep"]["excerpts"]
        if excerpt >= swept:
            return self._read(CONTEXT[0], (excerpt - swept,))
        if "excerpts" in vars(self):  # all are in memory, and verified
            return self.excerpts[excerpt].copy()
        return self._read("tokens", (excerpt,))

    def excerpts_of(self, ids: Iterable[int]) -> np.ndarray:
        """A few excerpts' token ids, int32 `[n, tokens]`; what is not asked for is not read."""
        rows = [self.excerpt(int(each)) for each in ids]
        return np.stack(rows) if rows else np.zeros((0, self._tokens), np.int32)

    @cached_property
    def places(self) -> np.ndarray:
        """Where excerpts stand: `[excerpts]` of `document` int32 and `offset` int64, in tokens.

        Behind those that were swept are those of which the run has the text alone.
        """
        documents, offsets = self._read("documents"), self._read("offsets")
        if CONTEXT[0] in self.file().arrays:
            more = map(self._read, CONTEXT[1:])
            documents, offsets = map(np.concatenate, zip((documents, offsets), more, strict=True))
        places = np.empty(len(documents), [("document", "<i4"), ("offset", "<i8")])
        places["document"], places["offset"] = documents, offsets
        return places

    @cached_property
    def neighbours(self) -> np.ndarray:
        """See `context.neighbours_of`, for all of `places`."""
        return neighbours_of(self.places, self._tokens)

    @cached_property
    def excerpts(self) -> np.ndarray:
        """All excerpts' token ids, int32 `[excerpts, tokens]`."""
        return self._read("tokens")

    @cached_property
    def documents(self) -> np.ndarray:
        """The document that each excerpt is of, numbered as they were read, int32 `[excerpts]`."""
        return self._read("documents")

    @cached_property
    def tables(self) -> Tables:
        """Which tokens, pairs, triples and situations the layers' tables have rows for."""
        names = ["tokens", "pairs", "triples", "token_counts", "pair_counts", "triple_counts"]
        if ADDED[0] in self.file().arrays:
            names += ["situations", "situation_counts"]
        return Tables(*(self._read(f"tables.{name}") for name in names))

    @cached_property
    def regression(self) -> Regression | None:
        """What the layers' regressions under the tables share; None where there is none."""
        if REGRESSION[0] not in self.file().arrays:
            return None
        components, *sums = (self._read(name) for name in REGRESSION)
        found = Regression(Regressors.of_bits(components), *sums)
        found.check(self.path / EXCERPTS)
        return found

    def database(self, *, read_only: bool = False) -> Database:
        """The run's explanations, simulations and scores; close it, or use it in a `with`.

        Read-only, it also serves a run in a place that can't be written.
        """
        from fastexplain.run.database import Database

        return Database(self.path / "run.sqlite", read_only=read_only)

    def exemplars(self, ids: np.ndarray, acts: np.ndarray) -> list[Exemplar]:
        """Exemplars by their ids, int32 `[n]`, -1 for none, and activations `[n, tokens]`."""
        found = []
        for excerpt, own in zip(ids, widen(acts), strict=True):
            if excerpt >= 0:
                token_ids, tokens = self._known_excerpt(int(excerpt))
                found.append(Exemplar(int(excerpt), token_ids.copy(), tokens.copy(), own))
        return found

    def _statistics(self, neuron: NeuronId) -> Statistics:
        site, index = neuron.site, neuron.index
        count = self.sites[site].counted_tokens
        sums = {name: self.array(site, name, slice(index, index + 1)) for name in SUMMED}
        return Statistics(
            count=count,
            **{name: float(values[0]) for name, values in moments_of(sums, count).items()},
            histogram=self.array(site, "histogram", index).astype(np.int64),
            histogram_edges=histogram_edges().astype(np.float64),
            histogram_excerpts=self.array(site, "histogram.excerpts", index),
        )

    @cached_property
    def _known_excerpt(self) -> Callable[[int], tuple[np.ndarray, list[str]]]:
        """An excerpt's token ids, and their texts. Neurons share the random ones."""

        @functools.lru_cache(_KNOWN)
        def known(excerpt: int) -> tuple[np.ndarray, list[str]]:
            token_ids = self.excerpt(excerpt)
            return token_ids, self.token_texts(token_ids.tolist())

        return known

    @property
    def _tokens(self) -> int:
        """Tokens of an excerpt."""
        return self.manifest["sweep"]["tokens"] // self.manifest["sweep"]["excerpts"]

    @cached_property
    def _texts(self) -> Texts:
        blob, ends = self._vocabulary

        def bytes_of(token: int) -> bytes:
            # A model may have more rows than its tokenizer tokens.
            known = 0 <= token < len(ends) - 1
            return blob[ends[token] : ends[token + 1]] if known else b""

        return Texts(bytes_of)

    @cached_property
    def _vocabulary(self) -> tuple[bytes, list[int]]:
        blob, ends = self._read("vocabulary.bytes"), self._read("vocabulary.ends")
        if not len(ends) or (np.diff(ends) < 0).any() or ends[-1] != len(blob):
            raise RunError(f"{self.path / EXCERPTS} is damaged: its vocabulary has no such ends")
        return blob.tobytes(), ends.tolist()

    def _read(self, name: str, place: tuple[Any, ...] = (), site: str = "") -> np.ndarray:
        """An array of a site's file, or of the excerpts' one; or what is at a place in it."""
        file = self.file(site)
        if name not in file.arrays:
            return lacking(name, self.sites[site].units if site else 0)[place]
        values = file.read(name, place)
        return check_values(file, name, values, self.manifest["sweep"]["excerpts"])

    def file(self, site: str = "") -> ArrayFile:
        """A site's file, or without a site the excerpts' one; it has what it must have.

        Raises:
            RunError: it is missing or damaged.
        """
        if site not in self._files:
            self._files[site] = self._open(site)
        return self._files[site]

    def _open(self, site: str) -> ArrayFile:
        name = site_file(site) if site else EXCERPTS
        file = ArrayFile(self.path / name, self._hashes(name))
        schema, sweep, tokens = self.manifest["schema"], self.manifest["sweep"], self._tokens
        if site:
            # By the header alone: damage to the rows themselves must not hide a site's own.
            tables = self.file().arrays
            rows = [tables[name].shape[0] if name in tables else 0 for name in _ROWS]
            check_site(file, self.sites[site].units, tokens, rows, schema, self.has_signs)
        else:
            check_excerpts(file, sweep["excerpts"], tokens, schema)
        return file

    def _hashes(self, name: str) -> np.ndarray | None:
        """The hashes of a file's pieces; None in a run that has none."""
        if "files" not in self.manifest:
            return None
        path = self.path / HASHES
        try:
            with safe_open(path, framework="np") as file:
                hashes = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} is missing or damaged ({error}); copy the run again") from error
        if hash_of(hashes) != self.manifest["files"][name]:
            raise RunError(f"{path} is damaged: what it has of {name} is not what was written")
        return hashes
