"""Explanations revised with the help of counter-examples.

1. The explainer writes sentences in which the neuron should and should not react if the explanation
   were right, and the subject's true activations on these are computed.
2. Those that contradict the explanation, and the excerpts of the validation split that it predicts
   worst, go back into the question, and the explainer answers again.
3. The answer is kept if it predicts the validation split better; then it is revised in its turn,
   for some rounds at most. The test split is not looked at.

Source: Bills et al. 2023, where explanations are improved by iterating on them; there only the
sentences are shown. As a control, texts chosen at random stand in the place of both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from fastexplain.errors import LLMError
from fastexplain.explainers.candidates import Sampling
from fastexplain.explainers.validation import Predict, Validation, rank
from fastexplain.kernels import discretize
from fastexplain.ledger.tally import tallied
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Chat
from fastexplain.prompts import revision
from fastexplain.prompts.revision import Case
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.results import Explanation
from fastexplain.run.splits import samples

METHOD, CONTROL = "revised", "control"

# Of the prompts' values from 0 to 10: from this on a neuron reacts.
_REACTS = 3

# Excerpts of the validation split that are shown, and a random sentence's tokens: about what
# explainers write.
_EXCERPTS, _RANDOM_TOKENS = 2, 16

_SENTENCES_TOKENS = 300  # for six sentences

Activate = Callable[[NeuronId, Sequence[str]], Awaitable[list[Exemplar]]]
"""Gives the subject's activations of a neuron on texts of one's own."""

Parent = Callable[[NeuronId], tuple[int, str] | None]
"""Finds the explanation that is to be revised: id and text."""


class Reviser:
    """Revises explanations.

    Args:
        first: explained the neurons; its question is asked again with more to go by.
        writing, revising: connections to the explainer, for sentences and for revisions.
        predict: simulates.
        simulator: a name for what simulates, and how; part of the version.
        activate: None for the control, which shows texts at random.
        parent: finds what `first` said.
        rounds: at the most.
        hopeful: goes on without a gain, and takes the last text whose score is undefined, to find
            out what it may cost.

    Attributes:
        method, model, version: see `pipeline.protocols.Explainer`.
    """

    def __init__(
        self,
        first: Sampling,
        writing: Connection,
        revising: Connection,
        predict: Predict,
        simulator: str,
        activate: Activate | None,
        parent: Parent,
        rounds: int,
        *,
        hopeful: bool = False,
    ) -> None:
        self.method = CONTROL if activate is None else METHOD
        self.model = first.model
        shown = "with random texts" if activate is None else "with counter-examples"
        self.version = (
            f"{revision.VERSION} {shown}, {rounds} rounds by {simulator}, of {first.version}"
        )
        self._first, self._writing, self._revising = first, writing, revising
        self._predict, self._activate, self._parent = predict, activate, parent
        self._rounds, self._hopeful = rounds, hopeful

    async def explain(self, record: NeuronRecord) -> Explanation:
        """The explanation that predicts the validation split best: the first one, or a revision.

        Its data are the rounds: each text with its score on the validation split, and what was
        tried to revise it: sentences with whether the neuron should react, their tokens and true
        activations, and the ids of the excerpts shown. Its parameters have as "spent" what all of
        it took beyond the first explanation.

        Raises:
            LLMError: there is no explanation to revise, or a request failed.
        """
        parent = self._parent(record.id)
        if parent is None:
            raise LLMError("there is no explanation to revise")
        key, best = parent
        with tallied() as spent:
            asked = await self._first.request(record)
            validation = Validation(record, self._predict)
            score = await validation.score(best, len(validation.excerpts))
            rounds: list[dict[str, Any]] = [{"explanation": best, "validation": score}]
            revised = best
            for number in range(self._rounds):
                cases, tried = await self._evidence(record, revised, validation, number)
                rounds[-1] |= tried
                if not cases:
                    break
                chat = revision.messages(asked.messages, revised, cases)
                answer = await _ask(self._revising, chat, asked.max_tokens)
                try:
                    revised = self._first.parse(answer)
                except LLMError as error:
                    rounds[-1]["failure"] = str(error)
                    break
                new = await validation.score(revised, len(validation.excerpts))
                rounds.append({"explanation": revised, "validation": new})
                if self._gains(new, score):
                    best, score = revised, new
                elif not self._hopeful:
                    break
        return Explanation(
            best,
            data={"rounds": rounds},
            parameters={"rounds": self._rounds, "spent": spent.data()},
            parent=key,
        )

    def _gains(self, new: float | None, score: float | None) -> bool:
        if self._hopeful and new is None:
            return True
        return rank(new, hopeful=self._hopeful) > rank(score, hopeful=self._hopeful)

    async def _evidence(
        self, record: NeuronRecord, explanation: str, validation: Validation, number: int
    ) -> tuple[list[Case], dict[str, Any]]:
        """The cases to show, and what they are to be stored as."""
        strongest = float(np.max(record.top[0].activations[record.skip :]))
        if self._activate is None:
            return _at_random(record, validation, number, strongest)
        chat = revision.sentences_chat(explanation)
        written = revision.parse_sentences(await _ask(self._writing, chat, _SENTENCES_TOKENS))
        tested = await self._activate(record.id, [text for text, _ in written]) if written else []
        cases, sentences = [], []
        for (text, should), found in zip(written, tested, strict=True):
            lines = _lines(found.tokens, found.activations, record.skip, strongest)
            reacts = any(value >= _REACTS for _, value in lines)
            if lines and reacts != should:
                cases.append(Case("silent" if should else "active", lines))
            sentences.append(
                {
                    "text": text,
                    "should": should,
                    "reacts": reacts,
                    "tokens": found.tokens,
                    "activations": found.activations.tolist(),
                }
            )
        values = await validation.simulate(explanation, len(validation.excerpts))
        worst = _worst([np.maximum(each.true, 0) for each in validation.excerpts], values)
        shown = [validation.excerpts[place] for place in worst[:_EXCERPTS]]
        cases += [Case("predicted", _lines(e.tokens, e.true, 0, strongest)) for e in shown]
        return cases, {"sentences": sentences, "excerpts": [each.excerpt for each in shown]}


def _at_random(
    record: NeuronRecord, validation: Validation, number: int, strongest: float
) -> tuple[list[Case], dict[str, Any]]:
    """As many texts as sentences and excerpts make, chosen without regard to the explanation.

    Parts of random excerpts of the calibration split, and whole ones of the validation split.
    """
    rng = np.random.default_rng([record.id.layer, record.id.index, number])
    own = [each for each in samples(record, "calibration") if not each.top]
    parts = []
    for place in rng.permutation(len(own))[: 2 * revision.SENTENCES].tolist():
        start = int(rng.integers(0, max(len(own[place].tokens) - _RANDOM_TOKENS, 0) + 1))
        part = slice(start, start + _RANDOM_TOKENS)
        parts.append(_lines(own[place].tokens[part], own[place].true[part], 0, strongest))
    drawn = rng.permutation(len(validation.excerpts))[:_EXCERPTS].tolist()
    shown = [validation.excerpts[place] for place in drawn]
    parts += [_lines(each.tokens, each.true, 0, strongest) for each in shown]
    cases = [Case("random", lines) for lines in parts if lines]
    return cases, {"excerpts": [each.excerpt for each in shown]}


def _worst(true: Sequence[np.ndarray], simulated: Sequence[np.ndarray | None]) -> list[int]:
    """Places of excerpts by how much they lower the correlation, those that lower it most first.

    It is 1 less half of the mean squared difference of the standardised values; an excerpt's part
    is its sum of these squares. Those that could not be simulated are left out.
    """
    known = [place for place, own in enumerate(simulated) if own is not None]
    pairs = [(true[place], np.asarray(simulated[place], np.float64)) for place in known]
    if not pairs:
        return []
    there = [~np.isnan(own) for _, own in pairs]
    sides = []
    for side in (0, 1):
        pooled = np.concatenate([pair[side][own] for pair, own in zip(pairs, there, strict=True)])
        spread = pooled.std() or 1.0
        sides.append([(pair[side] - pooled.mean()) / spread for pair in pairs])
    parts = [
        float(((a - b)[own] ** 2).sum()) for a, b, own in zip(*sides, there, strict=True)
    ]  # fmt: skip
    return [known[place] for place in np.argsort(-np.array(parts), kind="stable").tolist()]


def _lines(
    tokens: Sequence[str], activations: np.ndarray, skip: int, strongest: float
) -> list[tuple[str, int]]:
    """Counted tokens with values on the scale that the question has: 10 is `strongest`."""
    own = np.asarray(activations[skip:], np.float32)[None]
    if not own.size:
        return []
    values = discretize(own, np.array([strongest], np.float32))[0].tolist()
    return list(zip(tokens[skip:], values, strict=True))


async def _ask(connection: Connection, messages: Sequence[dict[str, str]], most: int) -> str:
    answer = await connection.ask(Chat(tuple(messages), most))
    assert isinstance(answer, Answer)
    return answer.text
