"""What a model was asked for an explanation, and what it answered.

The store keeps answers under a hash of the request, not the request. So it is made once more from
the run, by the explainer's own code, and is shown only if its hash is the stored one: then it is
what was asked, to the letter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastexplain.errors import LLMError, UsageError
from fastexplain.explainers.evidence import RunSource
from fastexplain.explainers.exemplars import exemplars_of
from fastexplain.explainers.model import ModelExplainer
from fastexplain.ledger.recorded import Recorded
from fastexplain.ledger.responses import Responses
from fastexplain.llm.requests import Answer, Capabilities, Chat, key
from fastexplain.prompts.wordings import PROMPTS
from fastexplain.records import NeuronId
from fastexplain.results import StoredExplanation
from fastexplain.run.database import Database
from fastexplain.run.directory import Run

_LOST = "The request itself is not stored, and what this version would ask is not what was asked."


def request_data(run: Run, name: str | NeuronId, explanation: int) -> dict[str, Any]:
    """The request behind one of a neuron's explanations.

    Returns:
        `request`, its name in the store; `messages`, each with `role` and `content`, or null where
        they can't be made again (`why` says so); `answer`, the text as it came, or null.

    Raises:
        UsageError: the name is no neuron of this run, or it has no such explanation by a model.
        RunError: a file is missing or damaged.
    """
    neuron = run.check(NeuronId.parse(name) if isinstance(name, str) else name)
    with run.database(read_only=True) as database:
        rows = [row for row in database.explanations(neuron) if row.id == explanation]
        asked = rows[0].parameters.get("request") if rows else None
        if not isinstance(asked, str):
            raise UsageError(f"no model was asked for an explanation {explanation} of {neuron}")
        chat = _chat(run, database, rows[0])
        whole = chat is not None and key(rows[0].model, chat) == asked
        stored = Responses(database).find(asked, chat or Chat((), 0))
    return {
        "request": asked,
        "messages": list(chat.messages) if chat is not None and whole else None,
        "why": None if whole else _LOST,
        "answer": stored.text if isinstance(stored, Answer) else None,
    }


def _chat(run: Run, database: Database, row: StoredExplanation) -> Chat | None:
    """What this version would ask; None where it knows no such prompt."""
    prompt = PROMPTS.get(row.parameters.get("prompt"))
    if prompt is None:
        return None
    recorded = Recorded(row.model, Capabilities(), Responses(database))
    explainer = ModelExplainer(recorded, prompt, RunSource(run))
    try:
        record = run.neuron(row.neuron)
        chat = explainer.request_of(record, exemplars_of(record))
    except LLMError:
        return None
    settings = {name: row.parameters[name] for name in ("temperature", "seed", "max_tokens")
                if name in row.parameters}  # fmt: skip
    return replace(chat, **settings)
