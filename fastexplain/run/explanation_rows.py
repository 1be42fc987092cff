"""Explanations as the run's database selects them: SQL in which e is one and s a score of it."""

from __future__ import annotations

import json
import operator
from typing import Any

from fastexplain.records import NeuronId
from fastexplain.results import CORRELATION, LIST, Scores, StoredExplanation
from fastexplain.run.rows import whole

# An explanation e is one of this package's rules: another explainer may have their method, "rule",
# but not with their model. And it is by neither rules nor lookup, which ask no model.
BY_RULES = "(e.method = 'rule' AND e.model = 'rule')"
ASKED = f"NOT (e.method = 'lookup' OR {BY_RULES})"
OF_TOP = "e.method NOT GLOB '*_bottom'"  # as `results.method_of` has it

SPLITS = ("random_only", "top_and_random", "top_only")

# The scores by which explanations are listed; they stand as s beside an explanation e. Those of a
# lookup explanation's text stand beside its table's.
EVERY_CORRELATION = (
    f"scores s ON s.explanation = e.id AND s.scorer = '{CORRELATION}' "
    f"AND s.measure = '{CORRELATION}'"
)
OF_TEXT = f"(e.method = 'lookup' AND s.judge = '{LIST}')"
CORRELATIONS = f"{EVERY_CORRELATION} AND NOT {OF_TEXT}"
HEADLINES = f"{CORRELATIONS} AND s.split = 'top_and_random'"
TEXTS = f"{EVERY_CORRELATION} AND {OF_TEXT} AND s.split = 'top_and_random'"

# A column of the row that has the same judge's correlation over another split.
OTHER = (
    "(SELECT {} FROM scores WHERE explanation = e.id AND scorer = s.scorer AND judge = s.judge "
    "AND version = s.version AND measure = s.measure AND split = '{}')"
)

# The same of a lookup explanation's text, whose headline stands as l beside it.
TEXT_HEADLINES = (
    f"scores l ON e.method = 'lookup' AND l.explanation = e.id AND l.scorer = '{CORRELATION}' "
    f"AND l.judge = '{LIST}' AND l.version = e.version AND l.measure = '{CORRELATION}' "
    "AND l.split = 'top_and_random'"
)


def _of_text(column: str, split: str) -> str:
    return OTHER.format(column, split).replace(" s.", " l.")


# An explanation's scores by one judge are three rows, which make one `Scores`.
_SCORES = 8
SELECT = f"""
    SELECT e.site, e.unit, e.method, e.model, e.version, e.text, e.data, e.parameters, e.failure,
        e.parent, e.id, e.created, s.judge, s.version,
        iif(json_type(e.parameters, '$.spent') IS NULL, r.cost,
            json_extract(e.parameters, '$.spent.cost')),
        {OTHER.format("value", "random_only")}, s.value, {OTHER.format("value", "top_only")},
        s.excerpts - {OTHER.format("excerpts", "top_only")},
        {OTHER.format("excerpts", "top_only")},
        iif(s.value IS NULL, NULL, s.reason), s.low, s.high,
        l.judge, {_of_text("value", "random_only")}, l.value, {_of_text("value", "top_only")},
        l.excerpts - {_of_text("excerpts", "top_only")}, {_of_text("excerpts", "top_only")},
        iif(l.value IS NULL, NULL, l.reason), l.low, l.high,
        {whole("explanations", "e")}
    FROM explanations e LEFT JOIN {HEADLINES}
        LEFT JOIN {TEXT_HEADLINES}
        LEFT JOIN responses r ON r.request = json_extract(e.parameters, '$.request')
"""


def explanation_of(site: str, unit: int, *row: Any) -> StoredExplanation:
    """A row of `SELECT`."""
    method, model, version, text, data, parameters, failure, parent, *own = row
    key, created, judge, simulation, cost, *found = own
    scores, (of_text, *text_scores) = found[:_SCORES], found[_SCORES:]
    return StoredExplanation(
        NeuronId.of(site, operator.index(unit)),
        *(method, model, version, text),
        *(json.loads(data), json.loads(parameters), failure),
        None if judge is None else Scores(*scores),
        parent,
        None if of_text is None else Scores(*text_scores),
        *(key, created, judge, simulation, cost),
    )
