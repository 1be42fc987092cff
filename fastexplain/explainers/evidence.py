"""What a language model is shown of a neuron: gathered from its record and the sweep's tables.

Nothing of it has seen what scores the explanation. Exemplars and contrasts are of the explanation
and calibration splits; from the tables, the excerpts of the test and validation splits are
subtracted first, exactly, as for the lookup's predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fastexplain.explainers.lookup import layer_tables, split_excerpts
from fastexplain.kernels.cpu.strongest import strongest
from fastexplain.kernels.summary import LookupTables
from fastexplain.prompts.evidence import Entry, Evidence
from fastexplain.prompts.explainer import Text, discretised
from fastexplain.records import Exemplar, NeuronRecord
from fastexplain.run.directory import Run
from fastexplain.run.splits import EXPLANATION_RANKS, samples

ENTRIES = 12
_PAIR_GAIN = 1.5  # a pair is named where it is so much stronger than its token alone

# A token drives a neuron where it has half of the largest value, and doesn't below a tenth.
_STRONG = 5
_CONTRASTS, _WINDOW = 4, 10


class Source(Protocol):
    """Where the tables' part of the evidence comes from.

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


class NoTables:
    """The source of records that belong to no run."""

    has_entries = False

    def entries(self, record: NeuronRecord) -> list[dict[str, Any]]:
        return []


class RunTables:
    """The tables of a run's sweep.

    Args:
        run: whose neurons are explained.
    """

    def __init__(self, run: Run) -> None:
        self._run, known = run, run.tables
        self.has_entries = len(known.tokens) > 0
        self._second = known.rows(known.pairs[:, 1:])[0][:, 0] if self.has_entries else None

    def entries(self, record: NeuronRecord) -> list[dict[str, Any]]:
        """See `Source`. Raises RunError where a file is missing or damaged."""
        if self._second is None or record.id.place:
            return []
        tables, known = held_out_tables(self._run, record), self._run.tables
        counts = np.concatenate([tables.token_counts, tables.pair_counts])
        [rows], [means] = strongest(tables, self._second, count=ENTRIES, gain=_PAIR_GAIN)
        found = []
        for row, mean in zip(rows.tolist(), means.tolist(), strict=True):
            if row < 0:
                break
            if row < len(known.tokens):
                previous, token = None, self._run.token_text(int(known.tokens[row]))
            else:
                pair = known.pairs[row - len(known.tokens)].tolist()
                previous, token = self._run.token_texts(pair)
            found.append(
                {"token": token, "previous": previous, "mean": mean, "count": int(counts[row])}
            )
        return found


def held_out_tables(run: Run, record: NeuronRecord) -> LookupTables:
    """One neuron's tables without what its test and validation excerpts put into them.

    Raises:
        RunError: the sweep kept no tables.
    """
    one = slice(record.id.index, record.id.index + 1)
    tables = layer_tables(run, record.id.layer, one)
    splits = [split_excerpts(run, record.id.layer, one, split) for split in ("test", "validation")]
    ids = np.concatenate([own[0] for own in splits], axis=1)[0]
    activations = np.concatenate([own[1][0] for own in splits])
    ids, first = np.unique(ids, return_index=True)
    values = np.maximum(activations[first[ids >= 0], run.skip :], 0).astype(np.float64)
    ids = ids[ids >= 0]
    sums, counts = [], []
    for own_sums, own_counts, rows in zip(
        (tables.token_sums, tables.pair_sums),
        (tables.token_counts, tables.pair_counts),
        run.tables.rows(run.excerpts[ids]),
        strict=True,
    ):
        rows = rows[:, run.skip :]
        known = rows >= 0
        put = np.bincount(rows[known], values[known], minlength=len(own_counts))
        left = own_counts - np.bincount(rows[known], minlength=len(own_counts))
        # What is left of a row that only they have is rounding, which would leak the answer.
        sums.append(np.where(left > 0, np.maximum(own_sums[:, 0] - put, 0), 0)[:, None])
        counts.append(left)
    return tables._replace(
        token_sums=sums[0].astype(tables.token_sums.dtype),
        pair_sums=sums[1].astype(tables.pair_sums.dtype),
        token_counts=counts[0],
        pair_counts=counts[1],
        positive_sums=np.maximum(tables.positive_sums - values.sum(), 0),
        count=tables.count - values.size,
    )


def exemplars_of(record: NeuronRecord) -> list[Exemplar]:
    """The top exemplars of the explanation split, best first."""
    return [record.top[rank] for rank in EXPLANATION_RANKS if rank < len(record.top)]


def gather(
    record: NeuronRecord, exemplars: Sequence[Exemplar], source: Source, shows: frozenset[str]
) -> Evidence:
    """What a prompt shows of a neuron.

    Args:
        record: the neuron.
        exemplars: those to show, best first.
        source: of the entries.
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
    )


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
    for sample in samples(record, "calibration"):
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
