"""A language model explains: it is shown a neuron's exemplars and names what they share."""

from __future__ import annotations

from dataclasses import dataclass

from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Chat, Usage, key
from fastexplain.prompts import explainer as explainer_prompt
from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.run.splits import EXPLANATION_RANKS

# A phrase of some 20 words; what goes on for longer is cut off.
MAX_TOKENS = 60
TEMPERATURE = 0.0
SEED = 0


@dataclass(frozen=True)
class Explanation:
    """What an explainer says of a neuron.

    Attributes:
        neuron: which one.
        text: a short phrase.
        model: the explainer.
        version: of its prompt.
        exemplars: ids of the excerpts that it was shown.
        request: the name of the response in the store, a hash of the request.
        usage: tokens of prompt and answer.
    """

    neuron: NeuronId
    text: str
    model: str
    version: str
    exemplars: tuple[int, ...]
    request: str
    usage: Usage


async def explain(record: NeuronRecord, connection: Connection) -> Explanation:
    """Have a neuron explained from the top exemplars of its explanation split.

    Raises:
        LLMError: the explainer failed or gave no phrase, or the neuron is never above 0.
    """
    shown = [record.top[rank] for rank in EXPLANATION_RANKS if rank < len(record.top)]
    chat = explainer_prompt.messages(shown, record.skip)
    request = Chat(tuple(chat), MAX_TOKENS, TEMPERATURE, SEED)
    answer = await connection.ask(request)
    assert isinstance(answer, Answer)
    return Explanation(
        record.id,
        explainer_prompt.parse(answer.text),
        connection.model,
        explainer_prompt.VERSION,
        tuple(exemplar.excerpt for exemplar in shown),
        key(connection.model, request),
        answer.usage,
    )
