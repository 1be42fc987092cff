"""The all-at-once simulator's prompt: an explanation and a text in, a value behind every token.

Every token is followed by a tab and the word `unknown`. What the model would have written in
place of each `unknown` is its prediction; all are read from one pass over the prompt. The
examples go over from `unknown` to numbers in mid-text, so that the model learns that numbers may
follow `unknown`. Source: Bills et al. 2023, "Step 2: Simulate the neuron's activations", and its
section on simulating all at once. The wording and the examples are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from fastexplain.prompts.examples import EXAMPLES
from fastexplain.prompts.lines import START, block, escape

VERSION = "simulator-1"

UNKNOWN = "unknown"

# In the first text of each example, this many tokens come before the first number.
_HIDDEN = (4, 9, 1)


@dataclass(frozen=True)
class SimulatorPrompt:
    """A prompt for prompt log-probabilities.

    Attributes:
        text: the prompt, a plain text without chat roles.
        places: for each token of the excerpt, the offset in `text` (in characters) of the word
            in whose place the value would stand.
        shared: the first `shared` characters are the same for all explanations and texts.
    """

    text: str
    places: list[int]
    shared: int


def prompt(explanation: str, tokens: Sequence[str], largest: int) -> SimulatorPrompt:
    """The prompt that predicts a neuron's values on `tokens`, on the scale 0..`largest`."""
    prefix = _prefix(largest)
    text = f"{prefix} {escape(explanation)}\n{START}\n"
    places = []
    for token in tokens:
        text += f"{escape(token)}\t"
        places.append(len(text))
        text += f"{UNKNOWN}\n"
    return SimulatorPrompt(text, places, len(prefix))


@cache
def _prefix(largest: int) -> str:
    parts = [
        "These are records of single neurons of a language model. Each names what a neuron reacts "
        "to, and then gives a text, one token a line. Behind each token, after a tab, stands how "
        f"strongly the neuron reacts to it: 0 is not at all, {largest} is as strongly as it ever "
        "does. Most values are 0. Where a value has not been filled in yet, it says "
        f"{UNKNOWN}."
    ]
    for number, (example, hidden) in enumerate(zip(EXAMPLES, _HIDDEN, strict=True), start=1):
        lines = [
            (token, UNKNOWN if place < hidden else value * largest // 10)
            for place, (token, value) in enumerate(example.texts[0])
        ]
        parts.append(f"Neuron {number} reacts to: {example.explanation}\n{block(lines)}")
    parts.append(f"Neuron {len(EXAMPLES) + 1} reacts to:")
    return "\n\n".join(parts)
