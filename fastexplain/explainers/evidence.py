"""What a language model is shown of a neuron: gathered from its record, tables and weights.

Nothing of it has seen what scores the explanation. Exemplars and contrasts are of the explanation
and calibration splits; from the tables, the excerpts of the test and validation splits are
subtracted first, exactly, as for the lookup's predictions. Weights know of no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from fastexplain.explainers.lists import entry_maker, second_rows, shortened
from fastexplain.explainers.lookup import layer_tables, split_excerpts
from fastexplain.explainers.meanings import Peak, driver_of
from fastexplain.kernels.cpu.lists import choose
from fastexplain.kernels.summary import HeldOut
from fastexplain.prompts.evidence import Entry, Evidence
from fastexplain.prompts.explainer import Text, discretised
from fastexplain.records import Exemplar, NeuronRecord
from fastexplain.run.directory import Run
from fastexplain.run.splits import samples

ENTRIES, RAISED = 12, 10
_GAIN = 1.5

# A token drives a neuron where it has half of the largest value, and doesn't below a tenth.
_STRONG = 5
_CONTRASTS, _WINDOW = 4, 10


class Source(Protocol):
    """Where that part of the evidence comes from which is not in a neuron's record.

    Attributes:
        has_entries: whether there are tables at all.
    """

    has_entries: bool

    def entries(self, record: NeuronRecord) -> list[dict[str, Any]]:
        """The tokens that drive a neuron most, strongest first.

        Each has `token`, `previous` (of a pair, else None), `mean` and `count`, held out from the
        test split.
        """
        ...

    def raised(self, record: NeuronRecord) -> list[str]:
        """The tokens that a neuron's output makes likelier, most first; none if that is unknown."""
        ...


class NoSource:
    """The source of records that belong to no run."""

    has_entries = False

    def entries(self, record: NeuronRecord) -> list[dict[str, Any]]:
        return []

    def raised(self, record: NeuronRecord) -> list[str]:
        return []


class RunSource:
    """A run's tables, as lists (`lists.py`) with the strongest first, and its weights.

    Args:
        run: whose neurons are explained.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.has_entries = len(run.tables.tokens) > 0
        self._second = second_rows(run.tables) if self.has_entries else None
        self._entries_of = entry_maker(run)

    def entries(self, record: NeuronRecord) -> list[dict[str, Any]]:
        """See `Source`. Raises RunError where a file is missing or damaged."""
        if self._second is None or record.id.place:
            return []
        run, layer = self._run, record.id.layer
        one = slice(record.id.index, record.id.index + 1)
        splits = [split_excerpts(run, layer, one, split) for split in ("test", "validation")]
        ids, activations = (
            np.concatenate([own[part] for own in splits], axis=1) for part in (0, 1)
        )
        # The rows of these few excerpts alone, so that places take the part of ids; what is in both
        # splits is forgotten once.
        rows = run.tables.rows(np.stack([run.excerpt(max(int(i), 0)) for i in ids[0]]))
        places = np.full(ids.shape, -1, np.int32)
        first = np.unique(ids[0], return_index=True)[1]
        places[0, first] = np.where(ids[0, first] >= 0, first, -1)
        excerpts = HeldOut(places, activations, *rows, run.skip)
        chosen = choose(layer_tables(run, layer, one), excerpts, self._second, count=ENTRIES)
        [found] = self._entries_of(shortened(chosen, ENTRIES))
        return _telling(found)

    def raised(self, record: NeuronRecord) -> list[str]:
        """See `Source`; none where the run's weights were not looked at (`Run.weights`).

        Raises RunError where a file is missing or damaged.
        """
        found = self._run.weights(record.id)
        return [] if found is None else [token.token for token in found.output.most[:RAISED]]


def _telling(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of a list that tell a reader something, strongest first.

    Not those that round to nothing beside the strongest, nor pairs that are hardly stronger than
    their token alone, if that is listed: these make a list a better predictor only.
    """
    best = sorted(entries, key=lambda entry: -entry["mean"])
    alone = {entry["token"]: entry["mean"] for entry in best if entry["previous"] is None}
    return [
        entry
        for entry in best
        if 10 * entry["mean"] >= best[0]["mean"]
        and (entry["previous"] is None or entry["mean"] >= _GAIN * alone.get(entry["token"], 0))
    ]


def gather(
    record: NeuronRecord, exemplars: Sequence[Exemplar], source: Source, shows: frozenset[str]
) -> Evidence:
    """What a prompt shows of a neuron.

    Args:
        record: the neuron.
        exemplars: those to show, best first.
        source: of entries and raised tokens.
        shows: names of `Evidence`'s fields; others stay empty.

    Raises:
        LLMError: exemplars are to be shown, and the neuron is above 0 in none.
    """
    if "texts" not in shows:
        return Evidence(entries=_scaled(source.entries(record)))
    texts, largest = discretised(exemplars, record.skip)
    return Evidence(
        texts,
        _scaled(source.entries(record)) if "entries" in shows else (),
        contrasts(record, texts, largest) if "contrasts" in shows else (),
        source.raised(record) if "raised" in shows else (),
    )


def of_meaning(evidence: Evidence, exemplars: Sequence[Exemplar], skip: int) -> Evidence:
    """Evidence for one of several meanings: without the entries that drive the neuron by others.

    Args:
        evidence: with the meaning's texts.
        exemplars: of the meaning; entries are left whose token is like that at one of their peaks.
        skip: their first counted token.
    """
    drivers = {Peak(each, skip).driver for each in exemplars}
    kept = [each for each in evidence.entries if driver_of(each.token) in drivers]
    return replace(evidence, entries=kept)


def contrasts(record: NeuronRecord, texts: Sequence[Text], largest: float) -> list[list[str]]:
    """Texts of the calibration split that end in a token which drives the neuron elsewhere.

    The last token's activation is below a tenth of `largest`, and it has half of it in the shown
    `texts`. A token comes once, the strongest first, with up to ten tokens before it.
    """
    strength: dict[str, int] = {}
    for token, value in (pair for text in texts for pair in text):
        if value >= _STRONG and token.strip():
            strength[token] = max(strength.get(token, 0), value)
    found: dict[str, list[str]] = {}
    # A top excerpt of one split may be a random one of another.
    held_out = {sample.excerpt for sample in samples(record, "validation")}
    for sample in samples(record, "calibration"):
        if sample.excerpt in held_out:
            continue
        for place, token in enumerate(sample.tokens):
            silent = 10 * sample.true[place] < largest
            if token in strength and token not in found and silent:
                found[token] = list(sample.tokens[max(place - _WINDOW, 0) : place + 1])
    order = sorted(found, key=lambda token: -strength[token])
    return [found[token] for token in order[:_CONTRASTS]]


def _scaled(entries: Sequence[dict[str, Any]]) -> list[Entry]:
    """Entries with their means from 0 to 10, where the strongest has 10."""
    largest = max((entry["mean"] for entry in entries), default=1.0)
    return [
        Entry(
            entry["token"], entry["previous"], round(10 * entry["mean"] / largest), entry["count"]
        )
        for entry in entries
    ]
