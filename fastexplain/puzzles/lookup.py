"""Explainer and simulator without any model: tables of words, as a baseline for those with one."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastexplain.errors import LLMError
from fastexplain.explainers.lists import text_of
from fastexplain.records import NeuronRecord
from fastexplain.results import Explanation
from fastexplain.run.splits import samples

NAME = "lookup"

_ENTRIES = 8
_PAIR_GAIN = 1.5  # a pair is named where it is so much stronger than its token alone
_MOST = 10.0

_TEXT = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ENTRY = re.compile(rf"{_TEXT}(?: after {_TEXT})? (\d[\d.e+-]*)(?:, |$)")
_NUMBER = re.compile(r"\d[\d.e+-]*")
_QUOTED = re.compile(r"“([^”]+)”")
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")

# Words of a description that has nothing in quotation marks; shorter ones are mostly grammar.
_SHORTEST = 4


class Lookup:
    """Explains by the tokens, and pairs of tokens, after which a neuron is strongest on average.

    The averages are those of the lookup explainer (`kernels.lookup`), over all texts of the neuron
    but the test split's. A token's mean activation is drawn to the neuron's, a pair's to its
    token's.

    It simulates by what a description says word for word: a listed token has the value that the
    list gives it; in other descriptions words in quotation marks have 10, and where there are none
    all words of four letters or more.

    Attributes:
        method, model, version: see `pipeline.protocols`.
    """

    method = "words"  # the method "lookup" is that of a run's tables
    model = NAME
    version = "lookup-words-1"
    has_entries = True  # as an `explainers.evidence.Source`

    def explain(self, record: NeuronRecord) -> Explanation:
        """List the strongest tokens and pairs.

        Raises:
            LLMError: the neuron is above 0 nowhere outside its test split.
        """
        entries = self.entries(record)
        if not entries:
            raise LLMError("the neuron is above 0 on none of its texts: nothing to explain")
        return Explanation(text_of(entries), data=entries)

    def entries(self, record: NeuronRecord) -> list[dict[str, Any]]:
        """The strongest tokens and pairs; none where the neuron is above 0 on none of its texts."""
        tested = {sample.excerpt for sample in samples(record)}
        sums: dict[tuple[str | None, str], float] = defaultdict(float)
        counts: dict[tuple[str | None, str], int] = defaultdict(int)
        for exemplar in (*record.top, *record.random):
            if exemplar.excerpt in tested:
                continue
            tokens = exemplar.tokens[record.skip :]
            values = np.maximum(exemplar.activations[record.skip :], 0).tolist()
            for previous, token, value in zip([None, *tokens], tokens, values, strict=False):
                for key in {(None, token), (previous, token)}:
                    sums[key] += value
                    counts[key] += 1
        singles = [key for key in counts if key[0] is None]
        total = sum(counts[key] for key in singles)
        mean = sum(sums[key] for key in singles) / max(total, 1)
        if not mean:
            return []
        estimates = {key: (sums[key] + 0.5 * mean) / (counts[key] + 0.5) for key in singles}
        for key in counts.keys() - singles:
            alone = estimates[None, key[1]]
            pair = (sums[key] + 2 * alone) / (counts[key] + 2)
            if pair > _PAIR_GAIN * alone:
                estimates[key] = pair
        best = sorted(
            (key for key in estimates if estimates[key] > mean and sums[key] > 0),
            key=lambda key: (-estimates[key], -counts[key], key[1], key[0] or ""),
        )
        return [
            {"token": token, "previous": before, "mean": estimates[before, token],
             "count": counts[before, token]}
            for before, token in best[:_ENTRIES]
        ]  # fmt: skip

    def raised(self, record: NeuronRecord) -> list[str]:
        """None: an invented neuron has no output."""
        return []

    def simulate(self, explanation: str, tokens: Sequence[str]) -> np.ndarray:
        """float64 `[tokens]`, what the explanation says of each word for word."""
        entries, default = _listed(explanation)
        if entries:
            listed = {(e["previous"], e["token"]): e["mean"] for e in entries}
            pairs = zip([None, *tokens], tokens, strict=False)
            return np.array([listed.get(p, listed.get((None, p[1]), default)) for p in pairs])
        quoted = [each.lower() for each in _QUOTED.findall(explanation)]
        words = _WORD.findall(explanation.lower())
        named = set(quoted or [word for word in words if len(word) >= _SHORTEST])
        return np.array([_MOST * (token.strip().lower() in named) for token in tokens])


def _listed(explanation: str) -> tuple[list[dict[str, Any]], float]:
    """The entries of a text that `explainers.lists.text_of` wrote, and its default.

    No entries if it is no such text.
    """
    listed, _, default = explanation.rpartition("; else ")
    if not _NUMBER.fullmatch(default) or not listed:
        listed, default = explanation, "0"
    matches = list(_ENTRY.finditer(listed))
    if "".join(match[0] for match in matches) != listed:
        return [], 0.0
    entries = [
        {
            "token": ast.literal_eval(token),
            "previous": None if previous is None else ast.literal_eval(previous),
            "mean": float(mean),
        }
        for token, previous, mean in (match.groups() for match in matches)
    ]
    return entries, float(default)
