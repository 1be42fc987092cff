"""Prompts that test an explanation and have it revised: sentences to try, and what they showed.

The wording is our own; the way is that of Bills et al. 2023, where explanations are improved by
iterating on them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from fastexplain.prompts.examples import EXAMPLES
from fastexplain.prompts.lines import block

VERSION = "revision-1"

SENTENCES = 3  # of each kind
LONGEST = 400  # characters of a sentence; what is longer is cut

_INSTRUCTIONS = f"""\
You test what is said of single neurons of a language model. For each neuron you are told what it \
is said to react to. Write {SENTENCES} short sentences in which it should then react strongly, \
behind "yes:", and {SENTENCES} that resemble them but in which it should not react at all, behind \
"no:". Let them differ in words and in form. Write one sentence a line and nothing else."""

TYPICAL = """\
yes: The mill burned down in 1874 and was never rebuilt.
yes: Please answer before 12 March 2026.
yes: invoice_date = "2019-11-30"
no: The mill burned down long ago and was never rebuilt.
no: Please answer within three weeks.
no: invoice_number = "40-118-7"
"""
"""An answer as it should be, to the example of the prompt."""

_EXAMPLE = EXAMPLES[1].explanation  # "years and dates"

_SENTENCE = re.compile(r"""[\W\d]*(yes|no)\W*?[:\-\u2013][\s"*]*(.+)""", re.IGNORECASE)

_CLAIMS = {
    "silent": "It was expected to react in these texts, but these are its true values:",
    "active": "It was expected not to react in these texts, but these are its true values:",
    "predicted": "In these texts its values differ most from what was expected; the true ones are:",
    "random": "These are its values in more texts, which were chosen at random:",
}

_LINES = Sequence[tuple[str, int]]


class Case(NamedTuple):
    """A text with true values.

    Attributes:
        kind: "silent" or "active", against what an explanation says; "predicted" for one that was
            predicted badly; "random" for one chosen without regard to the explanation.
        lines: its tokens with values from 0 to 10.
    """

    kind: str
    lines: _LINES


def sentences_chat(explanation: str) -> list[dict[str, str]]:
    """The chat that asks for sentences to test an explanation with."""
    return [
        {"role": "system", "content": _INSTRUCTIONS},
        {"role": "user", "content": _said(_EXAMPLE)},
        {"role": "assistant", "content": TYPICAL.rstrip()},
        {"role": "user", "content": _said(explanation)},
    ]


def parse_sentences(answer: str) -> list[tuple[str, bool]]:
    """The sentences of an answer, and whether the neuron should react; at most three of each.

    Lines that have no "yes:" or "no:" are passed over, and so is a sentence that came before.
    """
    found: dict[str, bool] = {}
    for line in answer.splitlines():
        if match := _SENTENCE.fullmatch(line.strip()):
            text = match[2].strip().removesuffix("**").strip()
            text = text.removesuffix('"') if text.count('"') % 2 else text
            should = match[1].lower() == "yes"
            if text and list(found.values()).count(should) < SENTENCES:
                found.setdefault(text[:LONGEST], should)
    return list(found.items())


def messages(
    asked: Sequence[dict[str, str]], explanation: str, cases: Sequence[Case]
) -> list[dict[str, str]]:
    """The chat that asks for a better explanation.

    Args:
        asked: the chat by which an explainer was asked for one.
        explanation: what is said of the neuron so far.
        cases: what there is to know beyond that chat.
    """
    parts = [f"Suppose that the answer is: this neuron reacts to {explanation}. It was tested."]
    for kind, claim in _CLAIMS.items():
        texts = [block(case.lines) for case in cases if case.kind == kind]
        if texts:
            parts.append("\n".join([claim, *texts]))
    parts.append(
        "What does this neuron react to? Take all of it into account, what came before the test "
        "too, and answer in the form that was asked for, without a word on the test."
    )
    *before, last = asked
    # One message of the user's, not two in a row: some chat templates refuse these.
    return [*before, {**last, "content": "\n\n".join([last["content"], *parts])}]


def _said(explanation: str) -> str:
    return f"The neuron is said to react to: {explanation}"
