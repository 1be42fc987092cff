"""The ways to run a corpus through a model that a benchmark compares, a batch at a time.

Every way has `step()`, which runs its next batch and returns before a device is done with it,
`prepared()`, what it wants of the process meanwhile, `kept_bytes`, what it holds on to from batch
to batch, and `share`, the part of what `step` does that was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastexplain.bench.machine import TOKENS, MatrixProduct
from fastexplain.kernels.summary import smallest_hashes
from fastexplain.models.loading import find_trunk
from fastexplain.subject.compilation import CompiledLayer, compiled
from fastexplain.subject.mlps import LINEAR
from fastexplain.subject.model import Subject
from fastexplain.sweeping import loop
from fastexplain.sweeping.prefetch import prefetched
from fastexplain.sweeping.products import TokenNumbers
from fastexplain.sweeping.regression import choose_tables
from fastexplain.sweeping.settings import check_settings
from fastexplain.sweeping.summaries import Exemplars, kernel_device
from fastexplain.text.corpus import Corpus
from fastexplain.text.kinds import TokenKinds

Compile = Literal["layers", "trunk", "off"]

_TOP, _RANDOM = 20, 25  # a sweep's defaults

# In turn the tokens of a subject without a tokenizer, so that there are situations of all kinds.
_WORDS = (b" the", b"ing", b" Anna", b",", b" 12", b"(", b")", b"\n", b'"', b".", b" USA", b" = x1")


def _vocabulary(subject: Subject) -> list[bytes]:
    """The bytes of every token; made up where the subject is of a geometry alone."""
    if subject.tokenizer is not None:
        return subject.token_bytes()
    return [_WORDS[token % len(_WORDS)] for token in range(subject.vocabulary_size)]


class Sweeper:
    """A sweep's functions, from which a caller takes one batch after another.

    Args:
        tokens: int32 `[excerpts, 64]`, all that will be swept.
        layers: those to capture; all by default.
        table_bytes: memory for the tables; 0 for a sweep without.
        compile: whether decoder layers run through torch.compile.
    """

    share = 1.0

    def __init__(
        self,
        subject: Subject,
        tokens: np.ndarray,
        *,
        layers: Sequence[int] | None = None,
        batch_size: int,
        table_bytes: int,
        compile: bool = False,
    ) -> None:
        corpus = Corpus.from_excerpts(tokens)
        settings = check_settings(
            subject, corpus, top_k=_TOP, random=_RANDOM, bottom=False, layers=layers,
            batch_size=batch_size, skip=None, table_bytes=table_bytes, compile=compile,
        )  # fmt: skip
        kinds = TokenKinds(_vocabulary(subject))
        tables, regressors = choose_tables(subject, corpus, settings, kinds)
        random_ids = smallest_hashes(np.arange(len(corpus), dtype=np.int32), _RANDOM, corpus.seed)
        summaries = loop.empty_start(subject, corpus, settings, tables, random_ids).summaries
        self.kept_bytes = sum(summary.nbytes for summary in summaries.values())
        device = kernel_device(subject.device)
        batches = loop.batches_from(corpus, tables, kinds, settings, random_ids, 0)
        self._batches = prefetched(batches, device)
        self._exemplars = {layer: Exemplars(each, device) for layer, each in summaries.items()}
        self._numbers = None if regressors is None else TokenNumbers(regressors, device)
        self._subject, self._settings, self._tables = subject, settings, tables

    def step(self) -> None:
        batch = next(self._batches)
        loop.fold_batch(self._subject, *batch, self._exemplars, self._settings, self._numbers)

    def prepared(self) -> contextlib.AbstractContextManager[object]:
        return loop.prepared(self._subject.device)

    def layer_file(self) -> dict[str, np.ndarray]:
        """The arrays of the lowest layer's file."""
        return self._exemplars[self._settings.layers[0]].finalize(
            self._tables.size[1], self._tables.regressors
        )


class Peer:
    """Capture as it is commonly done: concatenate with what was kept, `topk`, gather.

    It keeps the top exemplars alone: no random ones, statistics or tables.
    """

    prepared = contextlib.nullcontext
    share = 1.0

    def __init__(
        self,
        subject: Subject,
        tokens: np.ndarray,
        *,
        layers: Sequence[int] | None = None,
        batch_size: int,
    ) -> None:
        self._subject, self._batches = subject, _uploaded(subject, tokens, batch_size)
        self._layers = range(len(subject.widths)) if layers is None else layers
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def _capture(self, layer: int, acts: Tensor) -> None:
        lead = len(self._subject.lead)
        acts = acts[:, lead:].transpose(1, 2)  # [excerpts, neurons, tokens]
        maxima = acts[:, :, 1 - lead :].amax(dim=2)
        if layer in self._kept:
            values, kept = self._kept[layer]
            maxima, acts = torch.cat([values, maxima]), torch.cat([kept, acts])
        values, places = maxima.topk(min(_TOP, len(maxima)), dim=0)
        self._kept[layer] = values, acts.gather(0, places[..., None].expand(-1, -1, acts.shape[2]))

    def step(self) -> None:
        self._subject.trunk(next(self._batches), self._capture, self._layers)

    @property
    def kept_bytes(self) -> int:
        return sum(tensor.nbytes for kept in self._kept.values() for tensor in kept)


class Bare:
    """transformers' own forward pass, on what the sweep would run it on; keeps nothing.

    Args:
        forward: the trunk or the whole model, as a user calls it.
        layers: decoder layers to run compiled, where there are any.
    """

    prepared = contextlib.nullcontext
    share = 1.0
    kept_bytes = 0

    def __init__(
        self,
        subject: Subject,
        tokens: np.ndarray,
        forward: Callable[..., object],
        *,
        batch_size: int,
        layers: Sequence[CompiledLayer] = (),
    ) -> None:
        self._subject, self._batches = subject, _uploaded(subject, tokens, batch_size)
        self._forward, self._layers = forward, layers

    def step(self) -> None:
        ids = next(self._batches)
        if self._subject.lead:
            lead = ids.new_tensor(self._subject.lead).expand(len(ids), -1)
            ids = torch.cat([lead, ids], dim=1)
        with compiled(self._layers), torch.inference_mode():
            self._forward(input_ids=ids, use_cache=False)


class Floor:
    """As many operations as a sweep's matrix products take, in large matrix products alone.

    Args:
        operations: of a batch.
    """

    prepared = contextlib.nullcontext
    kept_bytes = 0

    def __init__(self, subject: Subject, operations: float) -> None:
        self._product = MatrixProduct(subject.device, subject.dtype)
        self._count = max(round(operations / self._product.operations), 1)
        self.share = operations / (self._count * self._product.operations)

    def step(self) -> None:
        for _ in range(self._count):
            self._product()


def _uploaded(subject: Subject, tokens: np.ndarray, batch_size: int) -> Iterator[Tensor]:
    """The token ids of each batch, on the device from the start: what is not a sweep waits for no
    copy, as a sweep, whose batches come from another thread, does not."""
    return iter(torch.from_numpy(tokens).to(subject.device, torch.long).split(batch_size))


Way = Sweeper | Peer | Bare | Floor

WAYS = {
    "trunk": "bare trunk",
    "trunk_compiled": "bare trunk, compiled",
    "model": "model with head",
    "peer": "concatenate, topk, gather",
    "floor": "matrix products alone",
    "sweep": "sweep",
    "sweep_tables": "sweep with tables",
    "sweep_compiled": "sweep, compiled",
    "sweep_compiled_tables": "sweep with tables, compiled",
}
"""What is measured, by the name that results give it, with what it is called on screen."""

REFERENCES = ("trunk", "trunk_compiled", "model", "peer", "floor")
"""Those that the others are compared with."""


def make_ways(
    subject: Subject,
    tokens: np.ndarray,
    *,
    batch_size: int,
    table_bytes: int,
    compile: Compile = "layers",
) -> tuple[dict[str, Way], dict[str, str]]:
    """The ways of `WAYS`, ready to take turns; and why others are left out, by name."""
    trunk = find_trunk(subject.model)

    def bare(forward: Callable[..., object], layers: Sequence[CompiledLayer] = ()) -> Bare:
        return Bare(subject, tokens, forward, batch_size=batch_size, layers=layers)

    def sweeper(size: int, compile: bool) -> Sweeper:
        return Sweeper(subject, tokens, batch_size=batch_size, table_bytes=size, compile=compile)

    ways: dict[str, Way] = {
        "trunk": bare(trunk),
        "model": bare(subject.model),
        "peer": Peer(subject, tokens, batch_size=batch_size),
        "floor": Floor(subject, batch_size * floor_operations(subject)),
        "sweep": sweeper(0, False),
        "sweep_tables": sweeper(table_bytes, False),
    }
    if compile == "off":
        return ways, dict.fromkeys(WAYS.keys() - ways, "it was asked not to compile")
    if compile == "trunk":
        ways["trunk_compiled"] = bare(torch.compile(trunk, dynamic=False))
    else:
        layers = [CompiledLayer(subject.model.get_submodule(mlp.layer)) for mlp in subject.mlps]
        ways["trunk_compiled"] = bare(trunk, layers)
    if kernel_device(subject.device).type != subject.device.type:
        return ways, dict.fromkeys(WAYS.keys() - ways, "the kernels don't run on this device")
    ways["sweep_compiled"] = sweeper(0, True)
    ways["sweep_compiled_tables"] = sweeper(table_bytes, True)
    return ways, {}


def floor_operations(subject: Subject) -> float:
    """Operations that no sweep can do without, for the tokens of one excerpt.

    A linear layer takes 2 * inputs * outputs for each position. The last down projection is not
    needed; attention over 64 tokens adds under 1% and is left out.
    """
    linear = [each for each in find_trunk(subject.model).modules() if isinstance(each, LINEAR)]
    needed = [each for each in linear if each is not subject.mlps[-1].down]
    weights = sum(each.get_parameter("weight").numel() for each in needed)
    return 2 * weights * (len(subject.lead) + TOKENS)
