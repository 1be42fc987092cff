"""What people said of explanations, in the run's database.

A rating is never changed or deleted: one that is undone, or that its rater replaced, is marked as
withdrawn. It holds the texts that were shown and whose they were, so that it keeps its meaning when
an explanation is replaced later.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastexplain.errors import UsageError
from fastexplain.records import NeuronId
from fastexplain.run.database import Database, now
from fastexplain.run.rows import hash_rows

RANKING, GRADES, SKIPPED = "ranking", "grades", "skipped"
LOWEST_GRADE, HIGHEST_GRADE = 1, 5

_LONGEST_NAME = 64  # characters

_COLUMNS = (
    "id, site, unit, rater, kind, judgement, shown, excerpts, seed, created, replaces, withdrawn"
)


class Source(NamedTuple):
    """Whose an explanation is, as the stored one had it.

    Attributes:
        id: of the explanation; never used again, even where it was replaced since.
        method, model, version: as in `ExplanationRow`.
    """

    id: int
    method: str
    model: str
    version: str


class ShownText(NamedTuple):
    """A text that was shown, and all that it is from: explainers may say the same."""

    text: str
    sources: tuple[Source, ...]


class Judgement(NamedTuple):
    """What a person said of the texts shown.

    Attributes:
        kind: `RANKING`, `GRADES` or `SKIPPED`.
        values: for each text, as it was shown: its rank, 1 for the best, and the same for equally
            good ones; or its grade, 5 for the best. Empty where it was skipped.
    """

    kind: str
    values: tuple[int, ...] = ()

    def liking(self) -> tuple[int, ...]:
        """The same with the larger number for the better text."""
        return tuple(-value for value in self.values) if self.kind == RANKING else self.values

    def checked(self, texts: int) -> Judgement:
        """The same, of so many texts; ranks are made 1 + the number of better texts.

        Raises:
            UsageError: it is no judgement of so many texts.
        """
        values = tuple(self.values)
        if self.kind == SKIPPED and not values:
            return self
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        if self.kind not in (RANKING, GRADES) or not whole or len(values) != texts:
            raise UsageError(
                f"a judgement of {texts} texts is a ranking or grades, with {texts} whole numbers; "
                f"this is {self.kind!r:.30} with {list(values)!r:.60}"
            )
        lowest, highest = (1, texts) if self.kind == RANKING else (LOWEST_GRADE, HIGHEST_GRADE)
        if wrong := [value for value in values if not lowest <= value <= highest]:
            what = "rank" if self.kind == RANKING else "grade"
            raise UsageError(f"{wrong[0]} is no {what}; give {lowest} to {highest}")
        if self.kind == RANKING:
            values = tuple(1 + sum(other < value for other in values) for value in values)
        return Judgement(self.kind, values)


@dataclass(frozen=True)
class Rating:
    """A person's judgement of one neuron's explanations, with all that was shown.

    Attributes:
        neuron: which one.
        rater: the person's name.
        judgement: what was said.
        shown: the texts, in the order shown.
        excerpts: ids of the excerpts shown, by "top" and "random".
        seed: of the order.
        id: of the row; 0 before it is stored.
        created: UTC, ISO 8601.
        replaces: id of this rater's former judgement of the neuron, if it was changed.
        withdrawn: when it was replaced or undone, UTC; None if it counts.
    """

    neuron: NeuronId
    rater: str
    judgement: Judgement
    shown: tuple[ShownText, ...]
    excerpts: dict[str, list[int]]
    seed: int
    id: int = 0
    created: str = ""
    replaces: int | None = None
    withdrawn: str | None = None


def rater_name(text: str) -> str:
    """A rater's name without white space around it. Raises UsageError for what is none."""
    name = text.strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise UsageError(
            f"{text[:80]!r} is no name of a rater; give 1 to {_LONGEST_NAME} printable characters"
        )
    return name


class Ratings:
    """The ratings of a database.

    All methods raise RunError where it can't be used, or where a row is not what was stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rating: Rating) -> Rating:
        """Store a rating, in place of what its rater said of the neuron before; as stored."""
        neuron, judgement = rating.neuron, rating.judgement
        with self._database.transaction() as sqlite:
            before = self.current(rating.rater, neuron)
            created = now("milliseconds")
            if before is not None:
                self._mark(before.id, created)
            added = sqlite.execute(
                f"INSERT INTO ratings VALUES (NULL, {', '.join('?' * 10)}, NULL, NULL)",
                (
                    *(neuron.site, neuron.index, rating.rater, judgement.kind),
                    *(json.dumps(judgement.values), json.dumps(rating.shown)),
                    *(json.dumps(rating.excerpts), rating.seed, created),
                    before and before.id,
                ),
            )
            sqlite.execute(hash_rows("ratings", "id = ?"), (added.lastrowid,))
            [stored] = self._read("id = ?", (added.lastrowid,))
        return stored

    def undo(self, rater: str) -> Rating | None:
        """Withdraw a rater's last rating, which is returned; None where there is none.

        Where it replaced another one, that counts again.
        """
        with self._database.transaction():
            last = self.before(rater)
            if last is not None:
                self._mark(last.id, now("milliseconds"))
                if last.replaces is not None:
                    [_] = self._read("id = ?", (last.replaces,))
                    self._mark(last.replaces, None)
        return last

    def current(self, rater: str, neuron: NeuronId) -> Rating | None:
        """What a rater says of a neuron; None if nothing."""
        values = (rater, neuron.site, neuron.index)
        found = self._read("rater = ? AND site = ? AND unit = ? AND withdrawn IS NULL", values)
        return found[0] if found else None

    def before(self, rater: str, id_: int | None = None) -> Rating | None:
        """A rater's last rating that counts, or the last one before another; None if none is."""
        found = self._read(
            "rater = ?1 AND withdrawn IS NULL AND (?2 IS NULL OR id < ?2) ORDER BY id DESC LIMIT 1",
            (rater, id_),
        )
        return found[0] if found else None

    def rated(self, rater: str) -> set[tuple[str, int]]:
        """Sites and units that a rater has rated or skipped."""
        return set(
            self._database.query(
                "SELECT site, unit FROM ratings WHERE rater = ? AND withdrawn IS NULL", (rater,)
            )
        )

    def candidates(self) -> list[tuple[NeuronId, int]]:
        """Neurons with two explanations or more that differ, and how many different texts each."""
        rows = self._database.query(
            """SELECT site, unit, count(DISTINCT text) FROM explanations WHERE text IS NOT NULL
            GROUP BY site, unit HAVING min(text) < max(text)"""
        )
        with self._database.understood():
            return [(NeuronId.of(site, operator.index(unit)), count) for site, unit, count in rows]

    def all(self) -> list[Rating]:
        """Every rating, withdrawn ones too, oldest first."""
        return self._read("1 ORDER BY id")

    def _mark(self, id_: int, withdrawn: str | None) -> None:
        """Withdraw a rating that was read just now, or have it count again."""
        with self._database.transaction() as sqlite:
            sqlite.execute("UPDATE ratings SET withdrawn = ? WHERE id = ?", (withdrawn, id_))
            sqlite.execute(hash_rows("ratings", "id = ?"), (id_,))

    def _read(self, condition: str, values: Sequence[Any] = ()) -> list[Rating]:
        rows = self._database.stored("ratings", _COLUMNS, condition, values)
        with self._database.understood():
            return [_rating(*row) for row in rows]


def _rating(id_: int, site: str, unit: int, *row: Any) -> Rating:
    rater, kind, judgement, shown, excerpts, seed, created, replaces, withdrawn = row
    return Rating(
        NeuronId.of(site, unit),
        rater,
        Judgement(kind, tuple(json.loads(judgement))),
        tuple(
            ShownText(text, tuple(Source(*source) for source in sources))
            for text, sources in json.loads(shown)
        ),
        json.loads(excerpts),
        *(seed, id_, created, replaces, withdrawn),
    )
