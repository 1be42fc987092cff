"""The subject's activations on sentences, of all neurons that ask at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastexplain.records import Exemplar, NeuronId
from fastexplain.subject.activations import exemplars_on
from fastexplain.subject.model import Subject


class _Asked(NamedTuple):
    neuron: NeuronId
    texts: Sequence[str]
    answer: asyncio.Future[list[Exemplar]]


class Sentences:
    """Gives activations; see `explainers.revise.Activate`.

    While the subject runs, what is asked for is gathered, and is run together next.

    Args:
        load: gives the subject, when it is first wanted.
        longest: tokens of a text.
    """

    def __init__(self, load: Callable[[], Subject], longest: int) -> None:
        self._load, self._longest = load, longest
        self._subject: Subject | None = None
        self._waiting: list[_Asked] = []
        self._running = asyncio.Lock()

    async def __call__(self, neuron: NeuronId, texts: Sequence[str]) -> list[Exemplar]:
        """A neuron's activations on each text.

        Raises:
            SubjectError: the subject can't be loaded, or is not the one that was swept.
        """
        asked = _Asked(neuron, texts, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        async with self._running:
            if not asked.answer.done():
                part, self._waiting = self._waiting, []
                try:
                    found = iter(await asyncio.to_thread(self._run, part))
                    for each in part:
                        each.answer.set_result([next(found) for _ in each.texts])
                except BaseException as error:
                    for each in part:
                        if isinstance(error, Exception):
                            each.answer.set_exception(error)
                        else:  # nobody is to wait for what was called off
                            each.answer.cancel()
                    if not isinstance(error, Exception):
                        raise
        return await asked.answer

    def _run(self, part: Sequence[_Asked]) -> list[Exemplar]:
        if self._subject is None:
            self._subject = self._load()
        texts = [text for each in part for text in each.texts]
        units = [each.neuron for each in part for _ in each.texts]
        return exemplars_on(self._subject, texts, units, self._longest)
