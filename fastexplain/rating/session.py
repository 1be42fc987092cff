"""A person at work on a run: which neuron comes next, and what is stored of it.

All raters get the same neurons in the same order, so that their judgements can be compared however
few they make: those with the most explanations first, and among these by a hash of the neuron and
the seed. What is judged, skipped or changed is in the database when a method returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.kernels.scalars import excerpt_hash
from fastexplain.rating.tasks import TEXTS, Task, former_task, new_task
from fastexplain.records import NeuronId
from fastexplain.run.directory import Run
from fastexplain.run.ratings import SKIPPED, Judgement, Rating, Ratings, rater_name

# A layer in the bits above its neurons' indices.
_INDEX_BITS = 32


class RatingSession:
    """One rater's session on a run.

    The order of neurons is that of the explanations there are when it begins. Several sessions of
    one rater may go on at once. Threads may share one.

    Args:
        run: an open one.
        rater: the person's name.
        neurons: to take these alone; all of the run if None.
        seed: of the neurons' order, and, with the rater's name, of the explanations'.
        texts: explanations of a neuron that are shown at the most.

    Attributes:
        neurons: those that have two explanations or more with different texts, in order.

    Raises:
        UsageError: the name or a number is none, or no neuron has two different explanations.
        RunError: the run is damaged, or its database can't be written.
    """

    def __init__(
        self,
        run: Run,
        rater: str,
        neurons: Sequence[NeuronId] | None = None,
        *,
        seed: int = 0,
        texts: int = TEXTS,
    ) -> None:
        if texts < 2:
            raise UsageError(f"{texts} explanations can't be compared; `texts` takes 2 or more")
        self.run, self.rater = run, rater_name(rater)
        self._seed, self._texts = seed, texts
        with run.database():  # of an older version it is brought to this one, once
            pass
        self.neurons = self._in_order(neurons)
        self._units = {(neuron.site, neuron.index) for neuron in self.neurons}
        if not self.neurons:
            of = f"of {run.path}" if neurons is None else f"of the {len(neurons):,} named"
            raise UsageError(
                f"no neuron {of} has two explanations that differ; explain some by another method "
                f"or model: fastexplain explain {run.path}"
            )

    def left(self) -> int:
        """How many neurons this rater has neither judged nor skipped."""
        return len(self._units) - len(self._units & self._rated())

    def next_task(self) -> Task | None:
        """The first neuron that this rater has neither judged nor skipped; None if all are.

        Raises:
            RunError: a file is missing or damaged.
        """
        rated = self._rated()
        for neuron in self.neurons:
            if (neuron.site, neuron.index) not in rated:
                try:
                    return self.task(neuron)
                except UsageError:  # its explanations were replaced since the session began
                    continue
        return None

    def task(self, neuron: NeuronId) -> Task:
        """One neuron, as it was shown if this rater has judged it.

        Raises:
            UsageError: there is no such neuron, or it has fewer than two different explanations.
            RunError: a file is missing or damaged.
        """
        with self.run.database(read_only=True) as database:
            rating = Ratings(database).current(self.rater, self.run.check(neuron))
            if rating is not None:
                return former_task(self.run, rating)
            return new_task(self.run, database, self.rater, neuron, self._seed, self._texts)

    def earlier(self, before: int | None = None) -> Task | None:
        """What this rater judged or skipped last, to be changed; None if there is nothing.

        Args:
            before: id of a rating: the last one before that.

        Raises:
            RunError: a file is missing or damaged.
        """
        with self.run.database(read_only=True) as database:
            rating = Ratings(database).before(self.rater, before)
        return None if rating is None else former_task(self.run, rating)

    def store(self, neuron: NeuronId, key: str, judgement: Judgement) -> Rating:
        """Store a judgement, in place of this rater's former one of the neuron.

        Args:
            neuron, key: of the task that was shown.
            judgement: of its texts, in their order.

        Returns:
            What is stored; it says whose the texts are.

        Raises:
            UsageError: it is no judgement of these texts, or the explanations have changed since
                they were shown; then nothing is stored.
            RunError: the database can't be written.
        """
        task = self.task(neuron)
        if task.key != key:
            raise UsageError(
                f"the explanations of {neuron} have changed since they were shown; nothing is "
                "stored: look at them again"
            )
        rating = replace(task.rating, judgement=judgement.checked(len(task.texts)))
        with self.run.database() as database:
            return Ratings(database).add(rating)

    def skip(self, neuron: NeuronId, key: str) -> Rating:
        """Leave a neuron out, which is stored; `earlier` and `undo` bring it back.

        Raises as `store` does.
        """
        return self.store(neuron, key, Judgement(SKIPPED))

    def undo(self) -> Rating | None:
        """Withdraw this rater's last judgement or skip, and return it; None if there is none.

        A judgement that was changed is as before the change; else the neuron comes again.

        Raises:
            RunError: the database can't be written.
        """
        with self.run.database() as database:
            return Ratings(database).undo(self.rater)

    def _rated(self) -> set[tuple[str, int]]:
        with self.run.database(read_only=True) as database:
            return Ratings(database).rated(self.rater)

    def _in_order(self, chosen: Sequence[NeuronId] | None) -> list[NeuronId]:
        with self.run.database(read_only=True) as database:
            counted = Ratings(database).candidates()
        if chosen is not None:
            named = set(chosen)
            counted = [row for row in counted if row[0] in named]
        neurons = [neuron for neuron, _ in counted]
        codes = [(neuron.layer << _INDEX_BITS) + neuron.index for neuron in neurons]
        with np.errstate(over="ignore"):
            hashes = excerpt_hash(np.array(codes, np.uint64), np.uint64(self._seed % 2**64))
        counts = np.array([-min(count, self._texts) for _, count in counted], np.int64)
        return [neurons[place] for place in np.lexsort((hashes, counts))]
