"""The simulator's prompts for chats: whole texts repeated with numbers, as JSON, and one token.

The examples are turns of the chat. In those for JSON the tokens stand as JSON strings, so that
they can be repeated as they are; in the others as everywhere, escaped, one a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fastexplain.llm.requests import Chat, Message
from fastexplain.prompts.lines import END, START, block, escape, json_string
from fastexplain.prompts.simulator import EXAMPLE_SETS, STANDARD, single_examples, so_far

# The scale of numbers that are read as text, so that no tokenizer matters.
LARGEST = 10

# More tokens than the JSON around a token and its value has, spread over lines.
_JSON_TOKENS = 24

_ROLE = """\
You predict how strongly single neurons of a language model react to the tokens of a text. \
For each neuron you are told what it reacts to."""

_REPEAT = """\
{role} The text stands between {start} and {end}, one token a line. Repeat it line by line, both \
markers included, and put a tab and a number behind each token: 0 where the neuron does not react \
to the token there, up to {largest} where it reacts as strongly as it ever does. Most numbers are \
0. Leave no token out and write nothing else."""

_JSON = """\
{role} The text is a JSON list of tokens. Answer with a JSON object whose "activations" are the \
same tokens in the same order, each with its value: 0 where the neuron does not react to the token \
there, up to {largest} where it reacts as strongly as it ever does. Most values are 0. Leave no \
token out and write nothing else."""

_SINGLE = """\
{role} You are shown a text and once more its last token. Answer with one number: 0 where the \
neuron does not react to that token there, up to {largest} where it reacts as strongly as it ever \
does. Write nothing else."""

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "activations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "token": {"type": "string"},
                    "value": {"type": "integer", "enum": list(range(LARGEST + 1))},
                },
                "required": ["token", "value"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["activations"],
    "additionalProperties": False,
}


def repeating(
    explanation: str, tokens: Sequence[str], largest: int, examples: str = STANDARD
) -> Chat:
    """Has the tokens repeated with values on the scale 0..`largest`, and their probabilities.

    The examples are one of `simulator.EXAMPLE_SETS`.
    """
    text = "\n".join([START, *map(escape, tokens), END])
    # No tokenizer makes more tokens of a text than it has bytes.
    most = len(text.encode()) + 3 * len(tokens)
    question = _question(explanation, text)
    return Chat((*_repeat_examples(largest, examples), question), max_tokens=most, integers=True)


def structured(
    explanation: str, tokens: Sequence[str], *, held: bool = True, examples: str = STANDARD
) -> Chat:
    """Has a JSON object of tokens and values on the scale 0..10 written.

    Args:
        held: hold the answer to the schema; else the examples alone show the form.
        examples: one of `simulator.EXAMPLE_SETS`.
    """
    text = _json_list(tokens)
    most = len(text.encode()) + _JSON_TOKENS * (len(tokens) + 1)
    question = _question(explanation, text)
    schema = _SCHEMA if held else None
    return Chat((*_json_examples(examples), question), max_tokens=most, schema=schema)


def single_chat(explanation: str, tokens: Sequence[str], largest: int) -> Chat:
    """Has the value of the last of `tokens` named, on the scale 0..`largest`."""
    question = _question(explanation, _single_text(tokens))
    # A space or a newline may come before the number.
    return Chat((*_single_examples(largest), question), max_tokens=4, integers=True)


def _question(explanation: str, text: str) -> Message:
    return {"role": "user", "content": f"The neuron reacts to: {escape(explanation)}\n\n{text}"}


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _task(task: str, largest: int) -> Message:
    content = task.format(role=_ROLE, largest=largest, start=START, end=END)
    return {"role": "system", "content": content}


@cache
def _repeat_examples(largest: int, examples: str) -> tuple[Message, ...]:
    chat = [_task(_REPEAT, largest)]
    for example in EXAMPLE_SETS[examples]:
        lines = [(token, value * largest // 10) for token, value in example.texts[0]]
        text = "\n".join([START, *(escape(token) for token, _ in lines), END])
        chat += [_question(example.explanation, text), _answer(block(lines))]
    return tuple(chat)


@cache
def _json_examples(examples: str) -> tuple[Message, ...]:
    chat = [_task(_JSON, LARGEST)]
    for example in EXAMPLE_SETS[examples]:
        lines = example.texts[0]
        items = ", ".join(f'{{"token": {json_string(t)}, "value": {value}}}' for t, value in lines)
        text = _json_list([token for token, _ in lines])
        chat += [
            _question(example.explanation, text),
            _answer(f'{{"activations": [{items}]}}'),
        ]
    return tuple(chat)


@cache
def _single_examples(largest: int) -> tuple[Message, ...]:
    chat = [_task(_SINGLE, largest)]
    for example, tokens, value in single_examples(largest):
        chat += [_question(example.explanation, _single_text(tokens)), _answer(str(value))]
    return tuple(chat)


def _single_text(tokens: Sequence[str]) -> str:
    return f"Text: {so_far(tokens)}\nLast token: {escape(tokens[-1])}"


def _json_list(tokens: Sequence[str]) -> str:
    return f"[{', '.join(map(json_string, tokens))}]"
