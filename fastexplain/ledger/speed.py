"""How fast a run's requests were answered, by what it has of former commands."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from fastexplain.run.database import Database

# Of commands with fewer answers the probes and the first answers' waiting take most of the time.
_ENOUGH = 30


def requests_a_minute(database: Database, models: Collection[str]) -> float | None:
    """Answers a minute in the last command that had enough from these models; None without one.

    Its time ends with the last answer before the next command; that is known to the second.

    Args:
        models: their names; answers by others in the same command count too.
    """
    answered: dict[str, int] = {}
    asked: dict[str, set[str]] = {}
    for command, model, count in database.query(
        "SELECT command, model, sum(answered) FROM ledger GROUP BY command, model"
    ):
        answered[command] = answered.get(command, 0) + count
        asked.setdefault(command, set()).add(model)
    following: str | None = None
    for command in sorted(answered, reverse=True):
        if answered[command] >= _ENOUGH and set(models) <= asked[command]:
            [(last,)] = database.query(
                "SELECT max(created) FROM responses WHERE ?1 IS NULL OR created < ?1", (following,)
            )
            if last is not None:
                with database.understood():
                    ended, began = map(datetime.fromisoformat, (last, command))
                seconds = (ended - began.replace(microsecond=0)).total_seconds() + 1
                if seconds > 0:
                    return 60 * answered[command] / seconds
        following = command
    return None
