"""A language model explains: it is shown what is known of a neuron, and names what it reacts to."""

from __future__ import annotations

from fastexplain.explainers.evidence import NoSource, Source, exemplars_of, gather
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Chat, key
from fastexplain.prompts.evidence import Evidence
from fastexplain.prompts.wordings import PROMPTS, Prompt
from fastexplain.records import NeuronRecord
from fastexplain.results import Explanation

TEMPERATURE = 0.0
SEED = 0


class ModelExplainer:
    """Explains by one language model.

    Args:
        connection: to the model.
        prompt: the way it is asked.
        source: of what the prompt shows beside the record.

    Attributes:
        method, model, version: as explanations by it are stored.
    """

    method = "model"

    def __init__(
        self,
        connection: Connection,
        prompt: Prompt = PROMPTS["exemplars"],
        source: Source | None = None,
    ) -> None:
        self.model, self.version = connection.model, prompt.version
        self._connection, self._prompt = connection, prompt
        self._source = source or NoSource()

    def request(self, record: NeuronRecord) -> Chat:
        """What asks for an explanation. Raises LLMError as `explain` does."""
        return self._request(self._evidence(record), TEMPERATURE, SEED)

    def parse(self, answer: str) -> str:
        """The explanation in an answer. Raises LLMError where there is none."""
        return self._prompt.parse(answer)

    async def explain(
        self, record: NeuronRecord, *, temperature: float = TEMPERATURE, seed: int = SEED
    ) -> Explanation:
        """Have a neuron explained from its explanation split, and from what else the prompt shows.

        Args:
            temperature, seed: of the sampling; at 0 it is the likeliest answer.

        Raises:
            LLMError: the explainer failed or gave no phrase, the neuron is never above 0, or
                nothing of what the prompt shows is known of it.
        """
        evidence = self._evidence(record)
        request = self._request(evidence, temperature, seed)
        answer = await self._connection.ask(request)
        assert isinstance(answer, Answer)
        return Explanation(
            self._prompt.parse(answer.text),
            parameters={
                "prompt": self._prompt.name,
                "max_tokens": self._prompt.max_tokens,
                "temperature": temperature,
                "seed": seed,
                "exemplars": (
                    [each.excerpt for each in exemplars_of(record)] if evidence.texts else []
                ),
                "request": key(self.model, request),
                "prompt_tokens": answer.usage.prompt_tokens,
                "completion_tokens": answer.usage.completion_tokens,
            },
        )

    def _evidence(self, record: NeuronRecord) -> Evidence:
        return gather(record, exemplars_of(record), self._source, self._prompt.shows)

    def _request(self, evidence: Evidence, temperature: float, seed: int) -> Chat:
        chat = self._prompt.messages(evidence)
        return Chat(tuple(chat), self._prompt.max_tokens, temperature, seed)
