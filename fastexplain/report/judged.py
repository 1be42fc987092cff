"""What judges said of each excerpt, from the stored answers to their questions."""

from __future__ import annotations

from collections.abc import Iterable

from fastexplain.ledger.recorded import Recorded
from fastexplain.ledger.responses import Responses
from fastexplain.llm import Connection
from fastexplain.llm.requests import Capabilities
from fastexplain.records import NeuronRecord
from fastexplain.results import Score
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.scorers import registry
from fastexplain.scorers.judging import SCHEMA, Judge, Judged


def judged_of(
    run: Run, database: Database, record: NeuronRecord, explanation: str, scores: Iterable[Score]
) -> dict[tuple[str, str, str], list[Judged]]:
    """The answers on which an explanation's scores rest, by scorer, judge and the judge's version.

    Those by scorers that ask no model are left out, and those by another version of a scorer, whose
    questions are not known here.
    """
    responses = Responses(database)
    found = {}
    for scorer, judge, version in dict.fromkeys((s.scorer, s.judge, s.version) for s in scores):
        if scorer not in registry.JUDGES:
            continue
        can = Capabilities(chat=True, schema="json_schema" if version.endswith(SCHEMA) else None)
        recorded = Recorded(judge, can, responses)
        [made] = registry.make([scorer], run, _giving(recorded))
        if not isinstance(made, Judge) or made.judge != (judge, version):
            continue
        answers = made.judged(record, explanation, recorded.find)
        if answers:
            found[scorer, judge, version] = answers
    return found


def _giving(connection: Connection) -> registry.Connect:
    """Gives this connection whatever for."""
    return lambda purpose: connection
