"""What the run's database holds, read: explanations, simulations and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastexplain.records import NeuronId
from fastexplain.results import (
    CORRELATION,
    LIST,
    LayerMeans,
    Mean,
    Measured,
    Raised,
    Score,
    Steering,
    StoredExplanation,
)
from fastexplain.run.connections import Connections
from fastexplain.run.explanation_rows import (
    ASKED,
    BY_RULES,
    CORRELATIONS,
    EVERY_CORRELATION,
    HEADLINES,
    OF_TEXT,
    OF_TOP,
    OTHER,
    SELECT,
    SPLITS,
    TEXTS,
    explanation_of,
)
from fastexplain.run.rows import whole


class Reading(Connections):
    """The part of `Database` that reads."""

    def scores(self, explanation: int) -> list[Score]:
        """All scores of an explanation, in order of scorer, judge, version, split and measure."""
        rows = self.stored(
            "scores",
            "scorer, judge, version, split, measure, value, excerpts, low, high, reason",
            "explanation = ?",
            (explanation,),
        )
        return [
            Score(scorer, judge, version, Measured(*measured))
            for scorer, judge, version, *measured in rows
        ]

    def steering(self, neuron: NeuronId) -> list[Steering]:
        """What raising a neuron does, by ascending activation; empty where nobody looked."""
        rows = self.stored(
            "steering", "steps", "site = ? AND unit = ?", (neuron.site, neuron.index)
        )
        with self.understood():
            return [
                Steering(
                    tenths, activation, divergence, count, [Raised(*token) for token in tokens]
                )
                for (steps,) in rows
                for tenths, activation, divergence, count, tokens in json.loads(steps)
            ]

    def explanations(self, neuron: NeuronId) -> list[StoredExplanation]:
        """All explanations of a neuron: lookup and rule, the better one first, then newest first.

        A rule says itself whether it is better than the list; see `explainers/rules.py`.

        One whose simulations were scored in several ways, by simulator, mode or readout, comes once
        for each.
        """
        return self._read(
            "WHERE e.site = ? AND e.unit = ? "
            f"ORDER BY {BY_RULES} AND json_extract(e.parameters, '$.first') DESC, "
            f"e.method = 'lookup' DESC, {BY_RULES} DESC, e.id DESC, s.judge, s.version",
            (neuron.site, neuron.index),
        )

    def explanations_by_id(self, ids: Sequence[int]) -> list[StoredExplanation]:
        """The explanations of these ids that there are, each as often as `explanations` has it."""
        return self._read(f"WHERE e.id IN ({', '.join('?' * len(ids))})", tuple(ids))

    def explained(self, method: str, version: str, entries: int | None = None) -> int:
        """How many neurons are explained by a method, in this version of it.

        Args:
            entries: with this number of them as a parameter, if not None.
        """
        [(count,)] = self.query(
            """SELECT count(*) FROM (SELECT DISTINCT site, unit FROM explanations
            WHERE method = ?1 AND version = ?2 AND text IS NOT NULL
            AND (?3 IS NULL OR json_extract(parameters, '$.entries') = ?3))""",
            (method, version, entries),
        )
        return count

    def list_length(self, method: str, version: str) -> int | None:
        """The most entries of a text by lookup in this version; None where nothing is."""
        [(most,)] = self.query(
            """SELECT max(json_extract(parameters, '$.entries')) FROM explanations
            WHERE method = ? AND version = ?""",
            (method, version),
        )
        return most

    def layer_means(self, method: str) -> list[LayerMeans]:
        """Per layer the mean correlations of all neurons explained by a method."""
        means = ", ".join(f"avg(s.value) FILTER (WHERE s.split = '{name}')" for name in SPLITS)
        rows = self.query(
            f"""SELECT e.layer, count(DISTINCT e.site || ':' || e.unit), {means}
            FROM explanations e JOIN {CORRELATIONS}
            WHERE e.method = ? GROUP BY e.layer ORDER BY e.layer""",
            (method,),
        )
        return [LayerMeans(*row) for row in rows]

    def means(self, method: str, scorer: str = CORRELATION) -> list[Mean]:
        """Means over neurons of a method's explanations, in order of site, split and measure."""
        rows = self.query(
            """SELECT site, split, measure, neurons, value, low, high FROM means
            WHERE method = ? AND scorer = ? ORDER BY CAST(site AS INTEGER), site, split, measure""",
            (method, scorer),
        )
        return [Mean(*row) for row in rows]

    def layer_scores(
        self, layer: int, *, lookup: bool, text: bool = False
    ) -> list[tuple[int, float | None, float | None]]:
        """The correlations of a layer's MLP neurons, oldest first, so that the last one counts.

        Args:
            lookup: of explanations by lookup; else of the top's by others than this and rules.
            text: of lookup those of the text, not of the table.

        Returns:
            Index, correlation over top and random excerpts, and over random ones, for each
            explanation and judge; None where they are undefined or there are none.
        """
        return self.query(
            f"""SELECT e.unit, s.value, {OTHER.format("value", "random_only")}
            FROM explanations e LEFT JOIN {TEXTS if text else HEADLINES}
            WHERE e.site = ? AND {"e.method = 'lookup'" if lookup else f"{ASKED} AND {OF_TOP}"}
                AND e.text IS NOT NULL
            ORDER BY e.id, s.created, s.judge, s.version""",
            (str(layer),),
        )

    def correlations(self) -> list[tuple[str, str, int, float | None, float | None, float | None]]:
        """The correlations of all explanations, those with the best headline last.

        Returns:
            Method ("list" for the texts of lookup explanations), site, index, correlation over top
            and random excerpts, over random ones and over top ones, for each explanation and judge.
            None where they are undefined.
        """
        return self.query(
            f"""SELECT iif({OF_TEXT}, '{LIST}', e.method), e.site, e.unit, s.value,
                {OTHER.format("value", "random_only")}, {OTHER.format("value", "top_only")}
            FROM explanations e JOIN {EVERY_CORRELATION} AND s.split = 'top_and_random'
            ORDER BY s.value NULLS FIRST, s.created, e.id"""
        )

    def site_values(self, site: str) -> list[tuple[Any, ...]]:
        """All scores of a site's units, oldest explanation first.

        Returns:
            Unit, value, the ends of its interval, then method, model and version of the
            explanation, scorer, judge, version, split and measure.
        """
        rows = self.query(
            f"""SELECT e.unit, s.value, s.low, s.high, e.method, e.model, e.version, s.scorer,
                s.judge, s.version, s.split, s.measure, {whole("scores", "s")}
            FROM explanations e JOIN scores s ON s.explanation = e.id
            WHERE e.site = ? AND e.text IS NOT NULL ORDER BY e.id""",
            (site,),
        )
        self.check_whole("scores", rows)
        return [row[:-1] for row in rows]

    def other_explanation(self, neuron: NeuronId) -> str | None:
        """Another unit's explanation of its top, not by lookup or this package's rules; or None.

        It is that of the next unit of the same site, of the last one the first, else of the first
        of another site. Units are in no order that means anything, so it is as good as any.
        """
        for condition, values in (
            ("site = ? AND unit > ?", (neuron.site, neuron.index)),
            ("site = ? AND unit < ?", (neuron.site, neuron.index)),
            ("site <> ?", (neuron.site,)),
        ):
            rows = self.stored(
                "explanations",
                "text",
                f"{condition} AND {f'{ASKED} AND {OF_TOP}'.replace('e.', '')} "
                "AND text IS NOT NULL "
                "ORDER BY layer, site, unit, id DESC LIMIT 1",
                values,
            )
            if rows:
                return rows[0][0]
        return None

    def find_explanation(
        self, neuron: NeuronId, method: str, model: str, version: str
    ) -> tuple[int, str] | None:
        """Id and text of a neuron's explanation by one explainer, unless it failed."""
        rows = self.stored(
            "explanations",
            "id, text",
            """site = ? AND unit = ?
                AND method = ? AND model = ? AND version = ? AND text IS NOT NULL
            ORDER BY id DESC LIMIT 1""",
            (neuron.site, neuron.index, method, model, version),
        )
        return (rows[0][0], rows[0][1]) if rows else None

    def explanation_ids(self, site: str, method: str) -> list[tuple[int, int]]:
        """Index and id of a site's explanations by a method, in order of index."""
        return self.query(
            """SELECT unit, id FROM explanations WHERE site = ? AND method = ?
                AND text IS NOT NULL ORDER BY unit, id""",
            (site, method),
        )

    def simulations_of(self, site: str) -> list[tuple[int, int, str, str, str, str]]:
        """By which simulators the explanations of a site were simulated, in order of index.

        Returns:
            Index, explanation's id, method and text, simulator and version.
        """
        return self.query(
            """SELECT DISTINCT e.unit, e.id, e.method, e.text, s.simulator, s.version
            FROM explanations e JOIN simulations s ON s.explanation = e.id
            WHERE e.site = ? AND s.activations IS NOT NULL ORDER BY 1, 2, 5, 6""",
            (site,),
        )

    def unsimulated(self, site: str) -> list[int]:
        """Indices of a site's explanations without any simulation, lookup and rules left out."""
        rows = self.query(
            f"""SELECT e.unit FROM explanations e WHERE e.site = ? AND {ASKED}
                AND e.text IS NOT NULL AND NOT EXISTS (SELECT 1 FROM simulations
                WHERE explanation = e.id AND activations IS NOT NULL)""",
            (site,),
        )
        return [index for (index,) in rows]

    def simulated(
        self, explanation: int, simulator: str | None, version: str | None
    ) -> dict[int, np.ndarray]:
        """Values by excerpt id, float32 `[tokens]`, without those that failed.

        Args:
            simulator, version: as a `StoredExplanation` has them; None is no simulator.
        """
        rows = self.stored(
            "simulations",
            "excerpt, activations",
            "explanation = ? AND simulator = ? AND version = ? AND activations IS NOT NULL",
            (explanation, simulator, version),
        )
        with self.understood():
            return {excerpt: np.frombuffer(blob, dtype="<f4") for excerpt, blob in rows}

    def _read(self, rest: str, values: tuple[Any, ...]) -> list[StoredExplanation]:
        found = self.query(SELECT + rest, values)
        self.check_whole("explanations", found)
        with self.understood():
            return [explanation_of(*row[:-1]) for row in found]
