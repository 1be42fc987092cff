"""Thoughts that a server leaves in an answer, known by the marks of the models that write them."""

from __future__ import annotations

# What stands before and behind thoughts. The first may be part of the prompt instead.
_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>", "<|channel|>final<|message|>"),
    ("<|start|>assistant<|channel|>", "<|channel|>final<|message|>"),
)

# The last of them where a server leaves out the special tokens: words that begin answers too, so
# both have to be there.
_WORDS = ("analysis", "assistantfinal")

# What may stand around the answer that comes behind thoughts.
_FRAMES = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("", "<|return|>"),
    ("", "<|end|>"),
)


def answer_in(text: str, *, thinks: bool = False) -> str | None:
    """The part of a text that is the answer; all of it where it holds no thoughts.

    Args:
        text: what a model wrote.
        thinks: whether it is known to think. Where it is not, an excerpt that it repeats may hold
            the mark behind thoughts.

    Returns:
        None where there are thoughts and nothing behind them.
    """
    rest = text.lstrip()
    while mark := next((mark for mark in _MARKS if rest.startswith(mark[0])), None):
        _, end, rest = rest.partition(mark[1])
        rest = rest.lstrip()
        if not end:
            return None
    if len(rest) == len(text.lstrip()):
        ends = [end for _, end in _MARKS if end in text] if thinks else []
        ends += [_WORDS[1]] if rest.startswith(_WORDS[0]) and _WORDS[1] in rest else []
        if not ends:
            return text
        rest = rest.partition(min(ends, key=text.index))[2].lstrip()
    for begin, end in _FRAMES:
        if rest.startswith(begin):
            rest = rest[len(begin) :].partition(end)[0]
    return rest or None


def has_thoughts(text: str) -> bool:
    """Whether thoughts are seen in a text, wherever they begin."""
    return answer_in(text, thinks=True) != text
