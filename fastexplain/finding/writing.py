"""Neurons that fire for one token and write another, by their exemplars and output weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.finding.results import LayerFound
from fastexplain.finding.single_tokens import form
from fastexplain.kernels.summary import widen
from fastexplain.run.directory import Run
from fastexplain.run.weights import stored_weights

SHARE = 0.8
"""Of the top exemplars whose largest activation is on forms of one token."""
DEVIATIONS = 6.0
"""Of the token written most, in standard deviations over the vocabulary: of 50,000 normally
distributed ones the largest is at 4.3."""
_WRITTEN = 3  # forms that are shown


class WritingSearch:
    """The search through a run's weights; raises UsageError where it has none."""

    def __init__(self, run: Run) -> None:
        stored = stored_weights(run)
        if stored is None:
            raise UsageError(
                f"{run.path} does not know yet what its neurons write; run: fastexplain weights "
                f"{run.path}"
            )
        self._run, self._stored = run, stored
        self._forms: dict[int, str] = {}

    def layer(self, layer: int) -> LayerFound:
        """Search one layer's neurons."""
        run, file = self._run, self._stored.file(layer)
        ids = run.array(layer, "top.ids")
        acts = widen(run.array(layer, "top.activations"))[:, :, run.skip :]
        places = acts.argmax(axis=2) + run.skip
        fires = run.excerpts[np.maximum(ids, 0), places]
        used = (ids >= 0) & (acts.max(axis=2) > 0)
        tokens, values = (file.read(f"output.{name}")[:, 0] for name in ("tokens", "values"))
        spread = file.read("output.spread")
        known = np.unique(np.concatenate([fires.ravel(), tokens.ravel()]))
        names, numbers = np.unique(self._named(known.tolist()), return_inverse=True)
        return fires_and_writes(
            numbers[np.searchsorted(known, fires)],
            used,
            numbers[np.searchsorted(known, tokens)],
            np.divide(values[:, 0], spread, out=np.zeros_like(spread), where=spread > 0),
            names,
        )

    def _named(self, tokens: Iterable[int]) -> list[str]:
        """The forms of tokens, in their order."""
        for token in tokens:
            if token not in self._forms:
                self._forms[token] = form(self._run.token_text(token), token)
        return [self._forms[token] for token in tokens]


def fires_and_writes(
    fires: np.ndarray,
    used: np.ndarray,
    writes: np.ndarray,
    deviations: np.ndarray,
    names: np.ndarray,
) -> LayerFound:
    """Of N neurons those that fire for one form and write another, by deviations.

    Args:
        fires: int `[N, K]`, the form that each top exemplar is strongest on.
        used: bool `[N, K]`, whether there is such an exemplar, above 0.
        writes: int `[N, C]`, the forms whose logits rise most, most first.
        deviations: floating `[N]`, how far the first of these rises, in standard deviations.
        names: of the forms.
    """
    alike = (fires[:, :, None] == fires[:, None, :]) & used[:, :, None] & used[:, None, :]
    counts = alike.sum(axis=2)
    first = counts.argmax(axis=1)
    rows = np.arange(len(fires))
    own = fires[rows, first]
    share = counts[rows, first] / np.maximum(used.sum(axis=1), 1)
    found = (share >= SHARE) & (deviations >= DEVIATIONS) & (writes[:, 0] != own)
    written = [
        " ".join(f"'{names[each]}'" for each in list(dict.fromkeys(row))[:_WRITTEN])
        for row in writes.tolist()
    ]
    details = {"fires for": names[own], "share": share, "writes": np.array(written, dtype=object)}
    return LayerFound(np.where(found, deviations, np.nan).astype(np.float64), details)
