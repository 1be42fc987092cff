"""A language model explains: it is shown what is known of a neuron, and names what it reacts to.

Of a neuron with several meanings it is asked for each by itself (`meanings.py`).
"""

from __future__ import annotations

from typing import Any

from fastexplain.errors import LLMError
from fastexplain.explainers.evidence import (
    NoSource,
    Source,
    gather,
    of_meaning,
)
from fastexplain.explainers.exemplars import TOP, Choose, choose_top
from fastexplain.explainers.meanings import clusters, joined
from fastexplain.explainers.validation import settled
from fastexplain.ledger.tally import tallied
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Chat, key
from fastexplain.prompts.evidence import Evidence
from fastexplain.prompts.wordings import PROMPTS, Prompt
from fastexplain.records import Exemplar, NeuronRecord
from fastexplain.results import Explanation

TEMPERATURE = 0.0
SEED = 0


class ModelExplainer:
    """Explains by one language model.

    Args:
        connection: to the model.
        prompt: the way it is asked.
        source: of what the prompt shows beside the record.
        choose: chooses the exemplars that are shown.
        exemplars: the name of that choice, part of the version where it is another than the top.
        meanings: of a neuron at the most.

    Attributes:
        method, model, version: as explanations by it are stored.
    """

    method = "model"

    def __init__(
        self,
        connection: Connection,
        prompt: Prompt = PROMPTS["exemplars"],
        source: Source | None = None,
        choose: Choose = choose_top,
        exemplars: str = TOP,
        meanings: int = 1,
    ) -> None:
        self.model, self.version = connection.model, prompt.version
        self.version += f" {exemplars}" if exemplars != TOP else ""
        self.version += f" {meanings} meanings" if meanings > 1 else ""
        self._connection, self._prompt = connection, prompt
        self._source = source or NoSource()
        self._choose, self._exemplars = choose, exemplars
        self._meanings = meanings

    async def request(self, record: NeuronRecord) -> Chat:
        """What asks for an explanation of all exemplars. Raises LLMError as `explain` does."""
        return self.request_of(record, await self._choose(record))

    def request_of(self, record: NeuronRecord, exemplars: list[Exemplar]) -> Chat:
        """What asks for an explanation of these exemplars. Raises LLMError as `explain` does."""
        return self._request(self._evidence(record, exemplars), TEMPERATURE, SEED)

    def parse(self, answer: str) -> str:
        """The explanation in an answer. Raises LLMError where there is none."""
        return self._prompt.parse(answer)

    async def explain(
        self, record: NeuronRecord, *, temperature: float = TEMPERATURE, seed: int = SEED
    ) -> Explanation:
        """Have a neuron explained from its explanation split, and from what else the prompt shows.

        Where it has several meanings, these are joined to the text; the data have each with its
        exemplars, the parameters as "spent" what all of them took.

        Args:
            temperature, seed: of the sampling; at 0 it is the likeliest answer.

        Raises:
            LLMError: the explainer failed or gave no phrase for one of the meanings, the neuron is
                never above 0, or nothing of what the prompt shows is known of it.
        """
        shown = await self._choose(record) if "texts" in self._prompt.shows else []
        groups = [shown]
        if self._meanings > 1:
            active = [each for each in shown if each.activations[record.skip :].max() > 0]
            groups = clusters(active, record.skip, self._meanings)
        if len(groups) < 2:  # in the order, and so with the request, in which one alone is asked
            groups = [shown]
        several = len(groups) > 1
        requests = []
        for group in groups:
            evidence = self._evidence(record, group)
            if several:
                evidence = of_meaning(evidence, group, record.skip)
            requests.append(self._request(evidence, temperature, seed))
        with tallied() as spent:
            outcomes = await settled(self._connection.ask(request) for request in requests)
        answers: list[Answer] = []
        for outcome in outcomes:
            if isinstance(outcome, LLMError):
                raise outcome
            assert isinstance(outcome, Answer)
            answers.append(outcome)
        phrases = [self._prompt.parse(answer.text) for answer in answers]
        found = [
            {"text": phrase, "exemplars": [each.excerpt for each in group]}
            for phrase, group in zip(phrases, groups, strict=True)
        ]
        parameters: dict[str, Any] = {
            "prompt": self._prompt.name,
            "max_tokens": self._prompt.max_tokens,
            "temperature": temperature,
            "seed": seed,
            "exemplars": [each.excerpt for each in shown],
            "request": key(self.model, requests[0]),
            "prompt_tokens": sum(answer.usage.prompt_tokens for answer in answers),
            "completion_tokens": sum(answer.usage.completion_tokens for answer in answers),
        }
        if self._exemplars != TOP:
            parameters["chosen"] = self._exemplars
        if self._meanings > 1:
            parameters["meanings"] = self._meanings
        if several:
            parameters["spent"] = spent.data()
        return Explanation(
            joined(phrases), data={"meanings": found} if several else {}, parameters=parameters
        )

    def _evidence(self, record: NeuronRecord, exemplars: list[Exemplar]) -> Evidence:
        return gather(record, exemplars, self._source, self._prompt.shows)

    def _request(self, evidence: Evidence, temperature: float, seed: int) -> Chat:
        chat = self._prompt.messages(evidence)
        return Chat(tuple(chat), self._prompt.max_tokens, temperature, seed)
