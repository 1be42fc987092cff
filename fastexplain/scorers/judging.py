"""What the scorers that ask a model about excerpts have in common.

1. A neuron's held-out excerpts are told apart: those that activate it, by quantile of their
   strongest activation, and the random ones on which it is silent.
2. A scorer makes questions of them, each in an order that is drawn by the neuron and the version of
   the scorer alone (`order`), so that they are the same whenever and by whomever they are made.
3. They are asked together. An answer that can't be read, and a request that failed, are no wrong
   answers: a score rests on the other ones and says so; with fewer than half, it fails.

Answers are stored as all responses are, by the hash of the request. A scorer's `judged` makes the
same questions again and gives each excerpt's answer from the store, with what delphi's files of
scores have of it; `report.judged` calls it.

Source: Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large Language
Models", for what is asked; the choice of excerpts is our own.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from fastexplain.errors import Deferred, LLMError, UnusableError
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Capabilities, Chat, Response
from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.results import Measured, Sample
from fastexplain.run.splits import samples

# The split under which scores over all excerpts are stored.
HELD_OUT = "held_out"

QUANTILES = 5
SILENT = -1  # in place of a quantile

# Ends the version of a judge that is held to a schema.
SCHEMA = "schema"

# Excerpts of a quantile that are asked about, and excerpts in a question.
_FROM_EACH = 3
SHOWN = 5

# An excerpt activates a neuron where it rises over this share of its largest activation.
ACTIVATING = 0.1

# A token is marked from this share of the excerpt's largest activation on, as delphi does it.
_MARKED = 0.3

_Item = TypeVar("_Item")


class Judged(NamedTuple):
    """One excerpt as it was shown, and what the judge said of it.

    Attributes:
        excerpt: its id.
        activating: what is true: that the excerpt activates the neuron, that its marks are right,
            or that it is no intruder.
        distance: quantile of the excerpt's strongest activation, from 1, the weakest, to 5; -1
            where it does not activate the neuron.
        prediction: what the judge said; None where there is no answer that can be read.
        question: the number of the question that it was part of, from 0.
    """

    excerpt: int
    activating: bool
    distance: int
    prediction: bool | None = None
    question: int = 0

    @property
    def correct(self) -> bool | None:
        """Whether the judge was right; None without an answer."""
        return None if self.prediction is None else self.prediction == self.activating


class TooFewError(Exception):
    """A neuron can't be asked about; says why."""


def held_out(record: NeuronRecord) -> list[Sample]:
    """The excerpts of all splits but the explanation's: up to 15 top ones and 15 random ones.

    All of them, since a judge is not fitted to any: with the test split's ten alone, an accuracy
    would be known to a quarter.
    """
    found = [
        each for name in ("test", "validation", "calibration") for each in samples(record, name)
    ]
    return list({each.excerpt: each for each in found}.values())


def activating(excerpts: Sequence[Sample], order: np.random.Generator) -> list[tuple[Sample, int]]:
    """Excerpts that activate a neuron, as many of each quantile, and their quantiles.

    Raises:
        TooFewError: there are fewer than quantiles.
    """
    strongest, bar = _strongest(excerpts)
    over = [each for each in excerpts if strongest[each.excerpt] > bar]
    over.sort(key=lambda each: (strongest[each.excerpt], -each.excerpt))
    if len(over) < QUANTILES:
        raise TooFewError(f"only {len(over)} held-out excerpts activate it, of {QUANTILES} needed")
    most = min(_FROM_EACH, len(over) // QUANTILES)
    return [
        (over[place], quantile)
        for quantile, places in enumerate(np.array_split(np.arange(len(over)), QUANTILES), start=1)
        for place in order.choice(places, most, replace=False)
    ]


def silent(excerpts: Sequence[Sample], order: np.random.Generator) -> list[Sample]:
    """The random excerpts that don't activate a neuron, shuffled.

    Raises:
        TooFewError: they are fewer than an answer's worth.
    """
    strongest, bar = _strongest(excerpts)
    found = [each for each in excerpts if not each.top and strongest[each.excerpt] <= bar]
    if len(found) < SHOWN:
        raise TooFewError(f"it is silent on only {len(found)} random excerpts, of {SHOWN} needed")
    return [found[place] for place in order.permutation(len(found))]


def _strongest(excerpts: Sequence[Sample]) -> tuple[dict[int, float], float]:
    """By excerpt id the largest activation, and what an excerpt has to rise over."""
    strongest = {each.excerpt: float(np.max(each.true, initial=0)) for each in excerpts}
    largest = max(strongest.values(), default=0.0)
    if not largest > 0:
        raise TooFewError("it is above 0 on none of its held-out excerpts")
    return strongest, ACTIVATING * largest


def marks(excerpt: Sample) -> np.ndarray:
    """The tokens that a neuron reacts to: bool `[counted]`, over three tenths of the largest."""
    return np.asarray(excerpt.true) > _MARKED * np.max(excerpt.true)


def order(neuron: NeuronId, version: str) -> np.random.Generator:
    """By what is drawn and shuffled: a neuron's and a version's own generator of numbers."""
    digest = hashlib.blake2b(f"{neuron} {version}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


@dataclass(frozen=True)
class Question:
    """A request about some excerpts.

    Attributes:
        chat: what is asked.
        shown: the excerpts in order, without predictions.
        read: gives what an answer says of so many excerpts; raises LLMError if it can't be read.
    """

    chat: Chat
    shown: list[Judged]
    read: Callable[[Answer, int], Sequence[bool]]


class Judge(ABC):
    """A scorer that asks a model about excerpts.

    Args:
        connection: to the model that judges; it was probed before anything is asked.

    Attributes:
        name, measures: see `pipeline.protocols.Scorer`.
        version: of the choice of excerpts and the prompt.
        most_requests: for a neuron, at the most.
    """

    name: str
    measures: tuple[str, ...]
    version: str
    most_requests: int

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def judge(self) -> tuple[str, str]:
        """The model, and the version with how it is held to the form of its answers."""
        return self._connection.model, f"{self.version} {SCHEMA if self._held else 'free'}"

    def excerpts(self, record: NeuronRecord) -> list[Sample]:
        """See `held_out`."""
        return held_out(record)

    async def score(
        self, record: NeuronRecord, explanation: str, excerpts: Sequence[Sample]
    ) -> list[Measured]:
        """Score one explanation; a neuron without enough excerpts is undefined, with the reason.

        Raises:
            UnusableError, BudgetError, Deferred, LLMError: see `asked`.
        """
        try:
            questions = self._made(record, explanation, excerpts)
        except TooFewError as error:
            return [Measured(HELD_OUT, each, None, 0, reason=str(error)) for each in self.measures]
        return self.measured(*await asked(self._connection, questions))

    def judged(
        self,
        record: NeuronRecord,
        explanation: str,
        find: Callable[[Chat], Response | None],
    ) -> list[Judged]:
        """What was said of each excerpt that `score` asks about, from answers that were stored.

        Args:
            find: gives the stored answer to a chat, if there is one.
        """
        try:
            questions = self._made(record, explanation, self.excerpts(record))
        except TooFewError:
            return []
        missing = LLMError("no answer is stored")
        judged, _ = gathered(questions, [find(each.chat) or missing for each in questions])
        return judged

    @abstractmethod
    def questions(
        self,
        explanation: str,
        excerpts: Sequence[Sample],
        order: np.random.Generator,
        *,
        held: bool,
    ) -> list[Question]:
        """What is asked; the excerpts' `question` is set by the caller.

        Raises:
            TooFewError: there are not enough excerpts.
        """

    @abstractmethod
    def measured(self, judged: Sequence[Judged], lacks: str | None) -> list[Measured]:
        """The scores; `lacks` is what the answers lack, for the rows' reasons."""

    @property
    def _held(self) -> bool:
        return (self._connection.capabilities or Capabilities()).schema is not None

    def _made(
        self, record: NeuronRecord, explanation: str, excerpts: Sequence[Sample]
    ) -> list[Question]:
        own = order(record.id, self.version)
        return self.questions(explanation, excerpts, own, held=self._held)


def fives(items: list[_Item]) -> list[_Item]:
    """The first ones, as many as fill questions: small models answer for five, as in the examples,
    when they are asked about three."""
    return items[: len(items) // SHOWN * SHOWN]


def in_questions(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    """Items in their order, as many together as are shown in a question."""
    return [items[start : start + SHOWN] for start in range(0, len(items), SHOWN)]


async def asked(
    connection: Connection, questions: Sequence[Question]
) -> tuple[list[Judged], str | None]:
    """Ask all questions; returns what was said of each excerpt, and what is missing, if anything.

    Raises:
        UnusableError: the judge can answer nothing.
        BudgetError: the next request might pass the limit.
        Deferred: the questions were noted for a batch.
        LLMError: fewer than half of them have answers that can be read.
    """
    responses = await asyncio.gather(
        *(connection.ask(each.chat) for each in questions),
        return_exceptions=True,  # all are waited for: what was sent may have been paid for
    )
    ended = [each for each in responses if isinstance(each, BaseException)]
    ended.sort(key=lambda each: isinstance(each, Deferred))
    for error in ended:
        if not isinstance(error, LLMError) or isinstance(error, UnusableError):
            raise error
    judged, failures = gathered(questions, responses)
    if not failures:
        return judged, None
    lacks = f"{len(failures)} of {len(questions)} questions have no answer: {failures[0]}"
    if 2 * len(failures) > len(questions):
        raise LLMError(lacks)
    return judged, lacks


def gathered(
    questions: Sequence[Question], responses: Sequence[Response | BaseException]
) -> tuple[list[Judged], list[str]]:
    """What was said of each excerpt, and of each question that has no answer the reason."""
    result: list[Judged] = []
    failures: list[str] = []
    for number, (question, response) in enumerate(zip(questions, responses, strict=True)):
        said: Sequence[bool | None] = [None] * len(question.shown)
        try:
            if isinstance(response, BaseException):
                raise response
            assert isinstance(response, Answer)
            said = question.read(response, len(question.shown))
        except LLMError as error:
            failures.append(str(error))
        for shown, prediction in zip(question.shown, said, strict=True):
            result.append(shown._replace(prediction=prediction, question=number))
    return result, failures
