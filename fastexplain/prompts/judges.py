"""The judges' prompts: excerpts in, a JSON object with a word for each, or a number, out.

Three questions, of which the first two name an explanation: do these texts drive the neuron
(`detection`)? Are the marked tokens those that drive it (`fuzzing`)? Which of these texts with
marks does not belong to the others (`intruder`)? An answer names each text by its number, so that
nothing depends on order; the examples show its form, and a schema holds a model to it where the
server can.

Source: the scores of Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large
Language Models". The wording and the examples are our own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from fastexplain.errors import LLMError
from fastexplain.llm.requests import Answer, Chat, Message
from fastexplain.prompts.examples import EXAMPLES
from fastexplain.prompts.lines import escape, quote

YES, NO = "yes", "no"
OPEN, CLOSE = "<<", ">>"

# More tokens than an answer has for one text, spread over lines, and around them all.
_TOKENS_EACH, _TOKENS_AROUND = 16, 32

# What a text has of the marks itself, and a single one that would stand beside a mark.
_OWN_MARKS = re.compile(r"<{2,}|>{2,}|\A[<>]|[<>]\Z")
_OBJECT = re.compile(r"\{[^{}]*\}")

_ROLE = "You judge what single neurons of a language model react to."

_DETECTION = """\
{role} You are told what a neuron is said to react to, and shown numbered texts. Say of each text \
whether something in it would make such a neuron react. Answer with a JSON object that has "yes" \
or "no" for the number of every text. Write nothing else."""

_FUZZING = """\
{role} You are told what a neuron is said to react to, and shown numbered texts in which tokens \
are marked, as in {open}this{close}. The marks may be right or misplaced. Say of each text whether \
the marked tokens are those at which such a neuron would react. Answer with a JSON object that \
has "yes" or "no" for the number of every text. Write nothing else."""

_INTRUDER = """\
{role} You are shown numbered texts in which tokens are marked, as in {open}this{close}. In all \
but one of them the marks show where one and the same neuron reacts; the other one, the intruder, \
comes from elsewhere. Find what the marked tokens, or the words around them, have in common, and \
name the text that lacks it. Answer with a JSON object that has the number of that text under \
"intruder". Write nothing else."""

# The examples: the neuron that is asked about, and five texts by neuron and place; for fuzzing also
# by how many tokens the marks are moved.
_DETECTED = (
    (2, ((0, 0), (2, 1), (1, 0), (2, 0), (1, 1))),
    (0, ((0, 1), (1, 1), (2, 0), (0, 0), (1, 0))),
)
_FUZZED = (
    (1, ((1, 0, 0), (2, 0, 0), (1, 1, 7), (0, 1, 0), (1, 1, 0))),
    (0, ((0, 0, 2), (0, 1, 0), (1, 1, 0), (0, 0, 0), (2, 1, 4))),
)
# Values of the examples that are marked: over three tenths of the largest, as in the scorer.
_MARKED = 3

_INTRUDERS = (
    (
        (
            "We stayed in because of the<< storm>>.",
            "After the<< rain>> the paths were<< mud>>dy.",
            "A choir sang<< while>> the boats came in.",
            "<<Fog>> lay on the harbour all week.",
            "Nobody had seen so much<< snow>> in April.",
        ),
        3,
    ),
    (
        (
            "He<< asked>> for the bill, and paid.",
            "The<< cheese>> was kept in the cellar.",
            "“Come in,” she<< said>>.",
            "They<< told>> us nothing of it.",
            "The mayor<< replied>> that it was too late.",
        ),
        2,
    ),
)


def detection(explanation: str, texts: Sequence[str], *, held: bool) -> Chat:
    """Asks which of the texts drive a neuron of this explanation.

    Args:
        texts: from `plain`.
        held: hold the answer to a schema; else the examples alone show the form.
    """
    question = _question(_said(explanation), texts)
    return _chat((*_detection_examples(), question), _yes_or_no(len(texts)), len(texts), held)


def fuzzing(explanation: str, texts: Sequence[str], *, held: bool) -> Chat:
    """Asks in which of the texts, from `marked`, the right tokens are marked; see `detection`."""
    question = _question(_said(explanation), texts)
    return _chat((*_fuzzing_examples(), question), _yes_or_no(len(texts)), len(texts), held)


def intruder(texts: Sequence[str], *, held: bool) -> Chat:
    """Asks which of the texts, from `marked`, does not belong to the others; see `detection`."""
    schema = _object({"intruder": {"type": "integer", "enum": list(range(1, len(texts) + 1))}})
    return _chat((*_intruder_examples(), _question("", texts)), schema, 1, held)


def plain(tokens: Sequence[str]) -> str:
    """A text as it stands in a question, on one line."""
    return escape("".join(tokens))


def marked(tokens: Sequence[str], marks: Iterable[bool]) -> str:
    """The same with marks around tokens; adjacent ones share a pair. Its own `<<` are escaped."""
    parts = []
    for mark, run in groupby(zip(tokens, marks, strict=True), key=lambda pair: bool(pair[1])):
        text = _OWN_MARKS.sub(_hex, plain([token for token, _ in run]))
        parts.append(f"{OPEN}{text}{CLOSE}" if mark else text)
    return "".join(parts)


def _hex(own: re.Match[str]) -> str:
    return "".join(f"\\x{ord(character):02x}" for character in own[0])


def read_yes_or_no(answer: Answer, count: int) -> list[bool]:
    """Read an answer to `detection` or `fuzzing` about so many texts.

    Raises:
        LLMError: it does not say yes or no of each text, once.
    """
    found = _read(answer)
    said = [_word(found, str(place), answer) for place in range(1, count + 1)]
    if len(found) > count:
        raise LLMError(f"the answer is about more than {count} texts: {quote(answer.text)}")
    return said


def read_intruder(answer: Answer, count: int) -> int:
    """Read an answer to `intruder` about so many texts: the number of one, from 1 on.

    Raises:
        LLMError: it names none of them.
    """
    value = _read(answer).get("intruder")
    text = value.strip() if isinstance(value, str) else str(value)
    if isinstance(value, str | int) and not isinstance(value, bool):
        for number in range(1, count + 1):
            if text == str(number):
                return number
    raise LLMError(f"the answer names none of the {count} texts: {quote(answer.text)}")


def _word(found: dict[str, Any], number: str, answer: Answer) -> bool:
    value = found.get(number)
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else None
    if word not in (YES, NO):
        raise LLMError(f"the answer has no yes or no for text {number}: {quote(answer.text)}")
    return word == YES


def _read(answer: Answer) -> dict[str, Any]:
    """The one JSON object in an answer; what stands around it, as a code fence, is passed over."""
    objects = _OBJECT.findall(answer.text)
    try:
        [text] = objects
        return json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        pass
    if answer.finish == "length":
        raise LLMError("the answer was cut off")
    raise LLMError(f"the answer is not a JSON object: {quote(answer.text)}")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where a name comes twice: which one holds?"""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _chat(messages: tuple[Message, ...], schema: dict[str, Any], items: int, held: bool) -> Chat:
    most = _TOKENS_AROUND + _TOKENS_EACH * items
    return Chat(messages, max_tokens=most, schema=schema if held else None)


def _yes_or_no(count: int) -> dict[str, Any]:
    words = {"type": "string", "enum": [YES, NO]}
    return _object({str(number): words for number in range(1, count + 1)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _said(explanation: str) -> str:
    return f"The neuron reacts to: {escape(explanation)}\n\n"


def _question(said: str, texts: Sequence[str]) -> Message:
    lines = "\n".join(f"Text {number}: {text}" for number, text in enumerate(texts, start=1))
    return {"role": "user", "content": said + lines}


def _answer(found: dict[str, Any]) -> Message:
    return {"role": "assistant", "content": json.dumps(found)}


def _words(said: Sequence[bool]) -> Message:
    return _answer({str(i): YES if yes else NO for i, yes in enumerate(said, start=1)})


def _task(task: str) -> Message:
    content = task.format(role=_ROLE, open=OPEN, close=CLOSE)
    return {"role": "system", "content": content}


@cache
def _detection_examples() -> tuple[Message, ...]:
    chat = [_task(_DETECTION)]
    for asked, places in _DETECTED:
        texts = [plain([token for token, _ in EXAMPLES[of].texts[at]]) for of, at in places]
        chat += [
            _question(_said(EXAMPLES[asked].explanation), texts),
            _words([of == asked for of, _ in places]),
        ]
    return tuple(chat)


@cache
def _fuzzing_examples() -> tuple[Message, ...]:
    chat = [_task(_FUZZING)]
    for asked, shown in _FUZZED:
        texts = []
        for of, place, moved in shown:
            tokens, values = zip(*EXAMPLES[of].texts[place], strict=True)
            marks = [value > _MARKED for value in values]
            texts.append(marked(tokens, marks[-moved:] + marks[:-moved] if moved else marks))
        chat += [
            _question(_said(EXAMPLES[asked].explanation), texts),
            _words([(of, moved) == (asked, 0) for of, _, moved in shown]),
        ]
    return tuple(chat)


@cache
def _intruder_examples() -> tuple[Message, ...]:
    chat = [_task(_INTRUDER)]
    for texts, number in _INTRUDERS:
        chat += [_question("", texts), _answer({"intruder": number})]
    return tuple(chat)
