"""The simulator's prompts for plain texts: an explanation and a text in, values read behind tokens.

`reading` asks about all tokens of a text at once. Every token is followed by a tab and a filler,
mostly the word `unknown`; what the model would have written in place of each filler is its
prediction, and all are read from one pass over the prompt. The examples go over from the filler
to numbers in mid-text, so that the model learns that numbers may follow it. `single_reading` asks
about one token, behind the text up to there.

Source: Bills et al. 2023, "Step 2: Simulate the neuron's activations", and its section on
simulating all at once. The wording and the examples are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

from fastexplain.llm.requests import Reading
from fastexplain.prompts.examples import EXAMPLES, Example
from fastexplain.prompts.lines import START, block, escape, line
from fastexplain.prompts.mixed_examples import MIXED

VERSION = "simulator-2"

UNKNOWN = "unknown"
ZERO = "0"
# What may stand at a place, in the order in which we like them.
FILLERS = (UNKNOWN, "?", ZERO)

# In the first text of each example, this many tokens come before the first number.
_HIDDEN = (4, 9, 1, 6)

STANDARD = "standard"
EXAMPLE_SETS = {STANDARD: EXAMPLES, "mixed": MIXED}
"""Invented neurons that a prompt may have as its examples."""

# Examples of single tokens: which neuron, which of its texts, up to which token.
_SINGLE = [(0, 0, 3), (2, 0, 2), (1, 0, 5), (1, 0, 3), (0, 1, 7), (2, 0, 5), (0, 1, 5), (1, 1, 9)]

_TASK = """\
These are records of single neurons of a language model. Each names what a neuron reacts to, and \
then gives a text, one token a line. Behind each token, after a tab, stands how strongly the \
neuron reacts to it: 0 is not at all, {largest} is as strongly as it ever does. Most values are \
0."""

_SINGLE_TASK = """\
These are records of single neurons of a language model. Each names what a neuron reacts to, and \
then gives a text and once more its last token. Behind that, after a tab, stands how strongly the \
neuron reacts to that token there: 0 is not at all, {largest} is as strongly as it ever does."""


def reading(
    explanation: str,
    tokens: Sequence[str],
    largest: int,
    filler: str = UNKNOWN,
    examples: str = STANDARD,
) -> Reading:
    """Asks for a neuron's values on all of `tokens`, on the scale 0..`largest`.

    With "0" as the filler it reads as though the neuron had reacted to nothing so far. The
    examples are one of `EXAMPLE_SETS`.
    """
    head = f" {escape(explanation)}\n{START}\n"
    lines = tuple([_line(token) for token in tokens])
    return Reading(_prefix(largest, filler, examples), head, lines, filler, largest)


def trial(filler: str, largest: int) -> Reading:
    """A prompt as `reading` makes them, to try on a server what it lists at the places."""
    tokens = [token for example in EXAMPLES for token, _ in example.texts[1]]
    return reading(EXAMPLES[0].explanation, tokens, largest, filler)


def single_reading(explanation: str, tokens: Sequence[str], largest: int) -> Reading:
    """Asks for a neuron's value on the last of `tokens`, on the scale 0..`largest`."""
    head = f" {escape(explanation)}\n"
    text = f"Text: {so_far(tokens)}\n{_line(tokens[-1])}"
    return Reading(_single_prefix(largest), head, (text,), "", largest)


@lru_cache(maxsize=2**16)
def _line(token: str) -> str:
    r"""A token's line as far as its tab; of a blank token, or several spaces, one is `\u0020`.

    Tokenizers join these with the line break before them: the same text is then other tokens for a
    server than for the local engine, which puts it together line by line. Values of excerpts with
    such tokens correlated at .976 at the least, not at 1.
    """
    shown = line(token)
    if shown[0] != "\t" and not shown[:2].strip():
        return f"\\u{ord(shown[0]):04x}{shown[1:]}"
    return shown


def so_far(tokens: Sequence[str]) -> str:
    """Tokens as one line of text. Escaped together, since several may make up a marker."""
    return escape("".join(tokens))


def single_examples(largest: int) -> list[tuple[Example, list[str], int]]:
    """Examples of one token each: the neuron, a text up to that token, and its value."""
    result = []
    for neuron, text, place in _SINGLE:
        example = EXAMPLES[neuron]
        shown = example.texts[text][: place + 1]
        result.append((example, [token for token, _ in shown], shown[-1][1] * largest // 10))
    return result


@cache
def _prefix(largest: int, filler: str, examples: str) -> str:
    task = _TASK.format(largest=largest)
    if filler != ZERO:
        task += f" Where a value has not been filled in yet, it says {filler}."
    parts = [task]
    chosen = EXAMPLE_SETS[examples]
    for number, (example, hidden) in enumerate(zip(chosen, _HIDDEN, strict=False), start=1):
        lines = [
            (token, filler if place < hidden and filler != ZERO else value * largest // 10)
            for place, (token, value) in enumerate(example.texts[0])
        ]
        parts.append(f"Neuron {number} reacts to: {example.explanation}\n{block(lines)}")
    parts.append(f"Neuron {len(chosen) + 1} reacts to:")
    return "\n\n".join(parts)


@cache
def _single_prefix(largest: int) -> str:
    parts = [_SINGLE_TASK.format(largest=largest)]
    for number, (example, tokens, value) in enumerate(single_examples(largest), start=1):
        parts.append(
            f"Neuron {number} reacts to: {example.explanation}\n"
            f"Text: {so_far(tokens)}\n{line(tokens[-1])}{value}"
        )
    parts.append(f"Neuron {len(parts)} reacts to:")
    return "\n\n".join(parts)
