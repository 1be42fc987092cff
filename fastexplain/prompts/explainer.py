"""The explainer's prompt: exemplars with discretised activations in, one short phrase out.

Source: Bills et al. 2023, "Step 1: Explain the neuron's activations". The wording and the
examples are our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fastexplain.errors import LLMError
from fastexplain.kernels import discretize
from fastexplain.prompts.examples import EXAMPLES
from fastexplain.prompts.lines import block, escape, quote
from fastexplain.records import Exemplar

VERSION = "explainer-1"

# The tokens that a neuron reacts to are listed once more where they are fewer than one in this
# many of those shown, since a reader loses a few values among many zeros.
_SPARSE = 5

_INSTRUCTIONS = """\
You study single neurons of a language model. For each neuron you are shown short texts, one \
token a line. After each token, behind a tab, stands how strongly the neuron reacts to it: 0 is \
not at all, 10 is the strongest reaction seen. Find what the tokens with high values, or the \
words around them, share and the other tokens lack. Answer with one short sentence that begins \
with "This neuron reacts to"."""

# The examples' answers begin like this, and `parse` takes it off: small models that are to answer
# with a bare phrase repeat a line of the prompt instead (seen with SmolLM2-135M).
LEAD = "This neuron reacts to"

QUESTION = "What does this neuron react to?"

# A phrase that is quoted as a whole; quotation marks around its last word are its own.
_QUOTED = re.compile(r"""(?:(["'`])(?P<a>(?:(?!\1).)*)\1|\u201c(?P<b>[^\u201c\u201d]*)\u201d)""")
_HOW = r"(?:(?:mainly|mostly|primarily|strongly|most strongly) )?"
_INTRODUCTION = re.compile(
    r"(?:(?:short )?(?:phrase|answer|explanation)|in (?:one|a) short phrase|in short)\s*[:,]"
    rf"|(?:(?:this|the) )?neuron(?: \d+)? (?:(?:seems|appears|tends) to )?{_HOW}"
    rf"(?:(?:fires?|activates?|reacts?|responds?|looks?|lights up) {_HOW}"
    r"(?:on|to|for|at|when it sees)"
    r"|detects?|finds?)\b:?"
    r"|it (?:fires|activates|reacts|responds) (?:on|to|for)\b:?",
    re.IGNORECASE,
)

Text = list[tuple[str, int]]
"""Tokens with their values."""


def messages(exemplars: Sequence[Exemplar], skip: int) -> list[dict[str, str]]:
    """The chat that asks for an explanation of a neuron.

    Args:
        exemplars: what to show, best first.
        skip: the first counted token; those before it are not shown.

    Raises:
        LLMError: the neuron is above 0 nowhere in the exemplars, so there is nothing to explain.
    """
    return chat_of(discretised(exemplars, skip)[0])


def chat_of(texts: Sequence[Text]) -> list[dict[str, str]]:
    """The same of texts whose values stand from 0 to 10."""
    chat = [{"role": "system", "content": _INSTRUCTIONS}]
    for example in EXAMPLES:
        chat.append({"role": "user", "content": _request(example.texts)})
        chat.append({"role": "assistant", "content": f"{LEAD} {example.explanation}."})
    chat.append({"role": "user", "content": _request(texts)})
    return chat


def discretised(exemplars: Sequence[Exemplar], skip: int) -> tuple[list[Text], float]:
    """Counted tokens with their values from 0 to 10, and the largest activation, which is 10.

    Raises:
        LLMError: the neuron is above 0 nowhere in the exemplars.
    """
    shown = [np.asarray(e.activations[skip:], dtype=np.float32) for e in exemplars]
    largest = np.float32(max((a.max() for a in shown if a.size), default=0))
    if not largest > 0:
        raise LLMError("the neuron is above 0 on none of its top exemplars: nothing to explain")
    scale = np.array([largest])
    texts = [
        list(zip(e.tokens[skip:], discretize(a[None], scale)[0].tolist(), strict=True))
        for e, a in zip(exemplars, shown, strict=True)
    ]
    return texts, float(largest)


def parse(answer: str) -> str:
    """The phrase in an explainer's answer, without quotes, headings or introductions.

    Raises:
        LLMError: the answer holds no phrase.
    """
    for line in answer.splitlines():
        phrase = _bare(line)
        while introduction := _INTRODUCTION.match(phrase):
            phrase = _bare(phrase[introduction.end() :])
        if any(character.isalnum() for character in phrase):
            return phrase
    raise LLMError(f"the explainer's answer holds no explanation: {quote(answer)}")


def _bare(text: str) -> str:
    while True:
        bare = text.strip(" \t*#").removesuffix(".")
        if quoted := _QUOTED.fullmatch(bare):
            bare = quoted["a"] or quoted["b"] or ""
        if bare == text:
            return bare
        text = bare


def _request(texts: Sequence[Text]) -> str:
    return "\n".join([*shown(texts), "", QUESTION])


def shown(texts: Sequence[Text]) -> list[str]:
    """Texts as parts of a prompt, and the tokens with values once more where these are few."""
    parts = [block(text) for text in texts]
    lines = [line for text in texts for line in text]
    active = [(token, value) for token, value in lines if value > 0]
    if len(active) * _SPARSE < len(lines):
        again = "\n".join(f"{escape(token)}\t{value}" for token, value in active)
        parts.append(f"Without the zeros:\n{again}")
    return parts
