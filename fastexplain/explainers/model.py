"""A language model explains: it is shown a neuron's exemplars and names what they share."""

from __future__ import annotations

from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Chat, key
from fastexplain.prompts import explainer as explainer_prompt
from fastexplain.records import Explanation, NeuronRecord
from fastexplain.run.splits import EXPLANATION_RANKS

# A phrase of some 20 words; what goes on for longer is cut off.
MAX_TOKENS = 60
TEMPERATURE = 0.0
SEED = 0


class ModelExplainer:
    """Explains by one language model.

    Args:
        connection: to the model.

    Attributes:
        method, model, version: as explanations by it are stored.
    """

    method = "model"
    version = explainer_prompt.VERSION

    def __init__(self, connection: Connection) -> None:
        self.model = connection.model
        self._connection = connection

    async def explain(self, record: NeuronRecord) -> Explanation:
        """Have a neuron explained from the top exemplars of its explanation split.

        Raises:
            LLMError: the explainer failed or gave no phrase, or the neuron is never above 0.
        """
        shown = [record.top[rank] for rank in EXPLANATION_RANKS if rank < len(record.top)]
        chat = explainer_prompt.messages(shown, record.skip)
        request = Chat(tuple(chat), MAX_TOKENS, TEMPERATURE, SEED)
        answer = await self._connection.ask(request)
        assert isinstance(answer, Answer)
        return Explanation(
            explainer_prompt.parse(answer.text),
            parameters={
                "max_tokens": MAX_TOKENS,
                "temperature": TEMPERATURE,
                "seed": SEED,
                "exemplars": [exemplar.excerpt for exemplar in shown],
                "request": key(self.model, request),
                "prompt_tokens": answer.usage.prompt_tokens,
                "completion_tokens": answer.usage.completion_tokens,
            },
        )
