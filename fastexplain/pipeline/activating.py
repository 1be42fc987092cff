"""Which neurons a text drives: the subject runs on it, and each is ranked in its own distribution.

1. The text is cut as a sweep cuts documents, into excerpts after the subject's lead. So values are
   those that a sweep would have seen, whatever the text's length. Each excerpt begins with the last
   tokens of the one before in the place of those that are not counted, so that only the text's
   own first ones are not.
2. As each layer's activations appear, each value's place in its neuron's distribution is found
   (`run/quantiles.py`); the highest of each token are kept, and each neuron's largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastexplain.errors import UsageError
from fastexplain.progress import Report, reported
from fastexplain.records import NeuronId
from fastexplain.run.directory import Run
from fastexplain.run.quantiles import Quantiles
from fastexplain.run.selection import select_neurons
from fastexplain.run.subjects import check_subject, load_subject_of
from fastexplain.subject.activations import Text, token_ids
from fastexplain.subject.model import Subject

_BATCH = 8  # excerpts in a forward pass
_MOST_FOLLOWED = 4096
"""Neurons whose values are given for every token."""


class Active(NamedTuple):
    """A neuron at a token of a text.

    Attributes:
        neuron: which one.
        place: the token, from 0.
        activation: its value there.
        quantile: the share of the sweep's excerpts that stay below that value at all of their
            counted tokens; 1 beyond the largest.
        of_largest: the value over the largest one of the sweep; above 1 where it passes that, and
            NaN where that is not above 0.
    """

    neuron: NeuronId
    place: int
    activation: float
    quantile: float
    of_largest: float


@dataclass(frozen=True, eq=False)
class Activated:
    """What a text does to a run's neurons.

    Attributes:
        tokens: the text's, without the lead, none empty.
        counted: the first token that counts, as of a sweep's excerpts.
        over_text: the neurons that stand highest at their best token, the highest first.
        by_token: for each token those that stand highest there; empty where it is not counted.
        values: of each neuron that was named, float32 `[tokens]`; NaN where one is not counted.
    """

    tokens: list[str]
    counted: int
    over_text: list[Active]
    by_token: list[list[Active]] = field(repr=False)
    values: dict[NeuronId, np.ndarray] = field(repr=False)


def activate(
    run: Run,
    text: Text,
    neurons: str | NeuronId | Iterable[str | NeuronId] = (),
    *,
    top: int = 10,
    subject: Subject | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    progress: bool | Report = False,
) -> Activated:
    """Rank all neurons of a run on a text, each by its own distribution.

    Args:
        run: from `sweep` or `open_run`.
        text: as for `Subject.activations`, but of any length.
        neurons: those whose values are given for every token.
        top: how many are given of the text, and of each token.
        subject: a loaded one, or where it is now, if not where it was swept from.
        device, dtype: of the subject; by default the best there is, and that of the sweep.
        trust_remote_code: run the subject's own code.
        progress: True shows a bar. A function is called with the number of excerpts done.

    Raises:
        UsageError: a neuron does not exist, or the text has no token that counts.
        SubjectError: the subject can't be loaded, or is not the one that was swept.
        RunError: a file is missing or damaged.
    """
    if top < 1:
        raise UsageError(f"`top` is {top}; give 1 or more")
    if not run.layers:
        raise UsageError(f"{run.path} has no layers' neurons, which a text is ranked by")
    names = [neurons] if isinstance(neurons, str | NeuronId) else neurons
    followed = select_neurons(run, [str(name) for name in names])
    if len(followed) > _MOST_FOLLOWED:
        raise UsageError(
            f"{len(followed):,} neurons are named, and values by token are given of "
            f"{_MOST_FOLLOWED:,} at most; name fewer, as all are ranked anyway"
        )
    if isinstance(subject, Subject):
        check_subject(run, subject)
    else:
        subject = load_subject_of(
            run, name=subject, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return Ranker(run, subject).rank(text, followed, top=top, progress=progress)


class Ranker:
    """Texts on a run's subject, one after another: what they are ranked by is read once.

    That takes longer than running a line of text: 1.8 s for the 46,080 neurons of SmolLM2 on one
    core, and 75 MiB of memory.

    Args:
        run: whose neurons.
        subject: of this run, checked.
    """

    def __init__(self, run: Run, subject: Subject) -> None:
        self._run, self._subject = run, subject
        self._quantiles: dict[int, Quantiles] = {}

    def rank(
        self,
        text: Text,
        followed: list[NeuronId],
        *,
        top: int = 10,
        progress: bool | Report = False,
    ) -> Activated:
        """Rank all neurons on a text; see `activate`."""
        ids = self._ids(text)
        ranking = _Ranking(self._run, len(ids), followed, top, self._quantiles)
        self._each(ids, self._run.layers, ranking.add, progress)
        return ranking.result(self._subject.token_texts(ids.tolist()))

    def follow(
        self, text: Text, neuron: NeuronId, progress: bool | Report = False
    ) -> tuple[list[str], np.ndarray]:
        """One neuron on a text, without the layers above its own and without any rank.

        Returns:
            The text's tokens, and float32 `[tokens]`, NaN where one is not counted.
        """
        ids = self._ids(text)
        values = np.full(len(ids), np.nan, np.float32)

        def keep(_: int, acts: np.ndarray, places: np.ndarray) -> None:
            values[places] = acts[:, neuron.index]

        self._each(ids, [neuron.layer], keep, progress)
        return self._subject.token_texts(ids.tolist()), values

    def _ids(self, text: Text) -> np.ndarray:
        ids, skip = token_ids(self._subject, text), self._run.skip
        if len(ids) <= skip:
            raise UsageError(
                f"the text has {len(ids)} of the {skip + 1} tokens it needs, as this run does not "
                f"count the first {skip} of an excerpt; give a longer one"
            )
        return ids

    def _each(
        self,
        ids: np.ndarray,
        layers: list[int],
        visit: Callable[[int, np.ndarray, np.ndarray], None],
        progress: bool | Report,
    ) -> None:
        """Call `visit` with layer, activations float32 `[n, neurons]` and their n places."""
        skip, lead = self._run.skip, len(self._subject.lead)
        batches = list(_batches(ids, self._run.excerpts.shape[1], skip))
        total = sum(len(tokens) for tokens, _ in batches)
        done = 0
        with reported(progress, "Running", total, "excerpts") as report:
            for tokens, places in batches:

                def seen(layer: int, acts: Tensor, places: np.ndarray = places) -> None:
                    counted = acts[:, lead + skip :].float().cpu().numpy()
                    visit(layer, counted.reshape(-1, acts.shape[2]), places.ravel())

                self._subject.trunk(torch.from_numpy(tokens), seen, layers)
                done += len(tokens)
                report(done)


def excerpts_of(run: Run, tokens: int) -> int:
    """How many excerpts a text of so many tokens is cut into."""
    return len(_starts(tokens, run.excerpts.shape[1], run.skip))


def _starts(tokens: int, width: int, skip: int) -> range:
    return range(0, max(tokens - skip, 1), width - skip)


def _batches(ids: np.ndarray, width: int, skip: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A text's excerpts, with the places in the text of their counted tokens, int `[n, tokens]`."""
    starts = list(_starts(len(ids), width, skip))
    whole = [start for start in starts if start + width <= len(ids)]
    parts = [whole[i : i + _BATCH] for i in range(0, len(whole), _BATCH)]
    parts += [[start] for start in starts[len(whole) :]]  # the last one is shorter
    for part in parts:
        length = min(width, len(ids) - part[0])
        places = np.array(part)[:, None] + np.arange(length)
        yield ids[places], places[:, skip:]


class _Ranking:
    """The highest of a text so far.

    Args:
        run: whose neurons.
        tokens: of the text.
        followed: neurons whose values are kept.
        top: how many are kept of each token.
        quantiles: by layer; those that are missing are added.
    """

    def __init__(
        self,
        run: Run,
        tokens: int,
        followed: list[NeuronId],
        top: int,
        quantiles: dict[int, Quantiles],
    ) -> None:
        self._run, self._top, self._quantiles = run, top, quantiles
        self._first = np.cumsum([0, *(run.width(layer) for layer in run.layers)])
        count = int(self._first[-1])
        self._maximum = np.full(count, np.nan, np.float32)
        self._largest = np.full(count, -np.inf, np.float32)
        self._place = np.zeros(count, np.int64)
        kept = min(top, count)
        self._ranks = np.full((tokens, kept), -np.inf, np.float32)
        self._units = np.full((tokens, kept), -1, np.int64)
        self._values = np.zeros((tokens, kept), np.float32)
        self._followed = {
            layer: [neuron for neuron in followed if neuron.layer == layer] for layer in run.layers
        }
        self._kept = {neuron: np.full(tokens, np.nan, np.float32) for neuron in followed}

    def add(self, layer: int, acts: np.ndarray, places: np.ndarray) -> None:
        """Add a layer's activations float32 `[n, neurons]` at n places of the text."""
        if layer not in self._quantiles:
            self._quantiles[layer] = Quantiles.of(self._run, layer)
        start = int(self._first[self._run.layers.index(layer)])
        own = slice(start, start + acts.shape[1])
        self._maximum[own] = self._quantiles[layer].maximum
        best = acts.argmax(axis=0)
        most = acts[best, np.arange(acts.shape[1])]
        higher = most > self._largest[own]
        self._largest[own] = np.where(higher, most, self._largest[own])
        self._place[own] = np.where(higher, places[best], self._place[own])
        for neuron in self._followed[layer]:
            self._kept[neuron][places] = acts[:, neuron.index]

        ranks = self._quantiles[layer].ranks(acts)
        count = min(self._ranks.shape[1], acts.shape[1])
        chosen = np.argpartition(-ranks, count - 1, axis=1)[:, :count]
        rows = np.arange(len(acts))[:, None]
        joined = [
            np.concatenate([kept[places], new], axis=1)
            for kept, new in (
                (self._ranks, ranks[rows, chosen]),
                (self._units, chosen + start),
                (self._values, acts[rows, chosen]),
            )
        ]
        order = np.lexsort((joined[1], -joined[0]), axis=1)[:, : self._ranks.shape[1]]
        self._ranks[places], self._units[places], self._values[places] = (
            np.take_along_axis(both, order, axis=1) for both in joined
        )

    def result(self, tokens: list[str]) -> Activated:
        """What was found."""
        ranks = np.concatenate(
            [
                self._quantiles[layer].ranks(
                    self._largest[None, start : start + self._run.width(layer)]
                )[0]
                for layer, start in zip(self._run.layers, self._first, strict=False)
            ]
        )
        highest = np.argsort(-ranks, kind="stable")[: self._top].tolist()
        over_text = [
            self._active(unit, int(self._place[unit]), float(self._largest[unit]), ranks[unit])
            for unit in highest
        ]
        by_token = [
            [
                self._active(unit, place, value, rank)
                for unit, value, rank in zip(*own, strict=True)
                if unit >= 0
            ]
            for place, own in enumerate(
                zip(self._units.tolist(), self._values.tolist(), self._ranks.tolist(), strict=True)
            )
        ]
        return Activated(tokens, self._run.skip, over_text, by_token, self._kept)

    def _active(self, unit: int, place: int, value: float, rank: float) -> Active:
        number = int(np.searchsorted(self._first, unit, side="right")) - 1
        neuron = NeuronId(self._run.layers[number], unit - int(self._first[number]))
        largest = float(self._maximum[unit])
        of_largest = value / largest if largest > 0 else float("nan")
        return Active(neuron, place, value, min(float(rank), 1.0), of_largest)
