"""Lists of explanations over a whole run."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fastexplain.errors import UsageError
from fastexplain.records import NeuronId
from fastexplain.results import StoredExplanation
from fastexplain.run.explanation_rows import EVERY_CORRELATION, OF_TOP, SPLITS, TEXT_HEADLINES
from fastexplain.run.reading import Reading


class Listing(Reading):
    """The part of `Database` that lists explanations."""

    def with_best_scores(self, ids: Iterable[int]) -> list[StoredExplanation]:
        """The explanations of these ids that there are, in their order, with their best scores."""
        return [
            row
            for key in ids
            for row in self._read("WHERE e.id = ? ORDER BY s.value DESC NULLS LAST LIMIT 1", (key,))
        ]

    def methods(self) -> list[str]:
        """The methods by which there are explanations, in alphabetical order."""
        return [
            name for (name,) in self.query("SELECT DISTINCT method FROM explanations ORDER BY 1")
        ]

    def best(
        self,
        limit: int = 20,
        method: str | None = None,
        by: str = "top_and_random",
        layer: int | None = None,
        model: str | None = None,
        *,
        version: str | None = None,
        neurons: Iterable[NeuronId] | None = None,
        one_each: bool = False,
    ) -> list[StoredExplanation]:
        """The explanations whose texts have the highest correlations.

        A lookup explanation of an earlier version, whose text has none, is listed by its table's.

        Args:
            limit: how many at most.
            method: such as "lookup"; all if None.
            by: "top_and_random", "random_only" or "top_only". Undefined scores are left out.
            layer: only of this one; of all if None.
            model: only by this explainer; by all if None.
            version: only of this one; of all if None.
            neurons: only of these; of all if None.
            one_each: of each neuron its best one alone, of either side.

        Raises:
            UsageError: there is no such score.
        """
        if by not in SPLITS:
            raise UsageError(f"there is no score '{by}'; choose one of {', '.join(SPLITS)}")
        value, group = "s.value", ""
        if one_each:  # of a group SQLite takes the other columns from the row that has the maximum
            value, group = "max(s.value)", f"GROUP BY e.site, e.unit, {OF_TOP}"
        names = None if neurons is None else json.dumps([str(neuron) for neuron in neurons])
        return self._read(
            # They are chosen first: what is read of a row takes longer than to look at its score.
            f"""JOIN (SELECT e.id, s.judge, s.version, {value} AS value
                FROM explanations e JOIN {EVERY_CORRELATION} AND s.split = '{by}'
                    LEFT JOIN {TEXT_HEADLINES}
                WHERE s.value IS NOT NULL AND s.judge = coalesce(l.judge, s.judge)
                    AND (?1 IS NULL OR e.method = ?1) AND (?2 IS NULL OR e.layer = ?2)
                    AND (?3 IS NULL OR e.model = ?3) AND (?4 IS NULL OR e.version = ?4)
                    AND (?5 IS NULL
                        OR e.site || ':' || e.unit IN (SELECT value FROM json_each(?5)))
                {group} ORDER BY value DESC, e.layer, e.site, e.unit LIMIT ?6) b
                ON b.id = e.id AND b.judge = coalesce(l.judge, s.judge) AND b.version = s.version
            ORDER BY b.value DESC, e.layer, e.site, e.unit""",
            (method, layer, model, version, names, limit),
        )
