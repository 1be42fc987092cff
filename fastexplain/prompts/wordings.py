"""The prompts that ask for an explanation, by name; `PROMPTS` has them all.

`exemplars` (in `explainer.py`) shows texts with values alone. The others are a second version:

- `full` shows all that there is: texts, the tables' entries with counts, texts in which a strong
  token does not drive the neuron, and the tokens that its output makes likelier;
- `thinking` shows the same to a model that thinks: no examples, the answer behind a marker;
- `short` is for small models: the strongest tokens, each at the end of a few words;
- `list` has the tables' list of tokens put into words, without any text.

Their examples are those of `mixed_examples.py`. All neurons are asked with the same ones, in the
same order: servers keep what their prompts begin with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastexplain.errors import LLMError, UsageError
from fastexplain.prompts import explainer
from fastexplain.prompts.evidence import Entry, Evidence
from fastexplain.prompts.explainer import LEAD, QUESTION, Text, parse, shown
from fastexplain.prompts.lines import escape, quote
from fastexplain.prompts.mixed_examples import KNOWN

DEFAULT = "exemplars"
"""Of models that are not known to think."""

Chat = list[dict[str, str]]

MARKER = "Explanation:"

# A phrase of some 20 words; what goes on for longer is cut off.
_PHRASE = 60
# Of what a model that is not known to think writes before the marker. Those that are known to have
# room of their own beside it.
_THOUGHTS = 800

# Of `short`: tokens from this value on, so many in all and of a text, each with so many before it.
_STRONG, _MOST, _OF_A_TEXT, _BEFORE = 5, 10, 3, 8

_ANSWER = f'Answer with one short sentence that begins with "{LEAD}".'

_SHOWN = """\
You are shown texts, one token a line, with the strength of its reaction behind a tab: 0 is none, \
10 is the strongest. You may also be shown a list of its strongest tokens over much more text, \
each with its mean strength and how often it occurs; beginnings of texts in which the last token \
leaves it silent, though it reacts to that token elsewhere; and the tokens that it makes likelier \
to come next."""

_FULL = f"""\
You study single neurons of a language model, and find out what each reacts to. {_SHOWN} \
An explanation has to fit all of these. It may be about a word, its forms, a topic, a kind \
of sign, or what stands before a token. {_ANSWER}"""

_THINKING = f"""\
Find out what a single neuron of a language model reacts to. {_SHOWN}

Consider several explanations: a word, its forms, a topic, a kind of sign or of syntax, what \
stands before the token. Rule out those that the texts contradict: tokens to which it should react \
and does not, and the other way round. Prefer the narrowest that fits all, and then the simplest.

End with a line that begins with "{MARKER}" and has, behind it, what the neuron reacts to, in one \
short phrase."""

_SHORT = f"""\
Each line ends in a token to which one neuron of a language model reacts. Say what these tokens, \
or the words before them, have in common. {_ANSWER}"""

_LIST = f"""\
You are given lists of tokens. In each are those to which one neuron of a language model reacts \
most, strongest first: the token, its strength up to 10, and how often it was seen. Put the list \
into words that also fit other tokens of the kind; name single tokens only where they have nothing \
in common. {_ANSWER}"""


@dataclass(frozen=True)
class Prompt:
    """A way to ask for an explanation.

    Attributes:
        name: by which it is chosen.
        version: under which its explanations are stored.
        shows: what of `Evidence` it shows.
        max_tokens: of the answer.
        messages: the chat. Raises LLMError where there is nothing to show.
        parse: the phrase in an answer. Raises LLMError where there is none.
    """

    name: str
    version: str
    shows: frozenset[str]
    max_tokens: int
    messages: Callable[[Evidence], Chat]
    parse: Callable[[str], str] = parse


def choose(name: str | None, *, thinks: bool) -> Prompt:
    """The prompt of this name; where there is none, that which suits the model.

    Raises:
        UsageError: there is no such prompt.
    """
    if name is None:
        return PROMPTS["thinking" if thinks else DEFAULT]
    if name not in PROMPTS:
        raise UsageError(f"there is no prompt '{name}'; `prompt` is one of {', '.join(PROMPTS)}")
    return PROMPTS[name]


def parse_marked(answer: str) -> str:
    """The phrase behind the last marker in an answer.

    Raises:
        LLMError: there is no marker, or no phrase behind it.
    """
    places = [match.end() for match in re.finditer(re.escape(MARKER), answer, re.IGNORECASE)]
    if not places:
        raise LLMError(f"the explainer's answer has no line '{MARKER} ...': {quote(answer)}")
    return parse(answer[places[-1] :])


def _full(evidence: Evidence) -> Chat:
    return _with_examples(_FULL, _everything, evidence)


def _thinking(evidence: Evidence) -> Chat:
    return [_message("system", _THINKING), _message("user", _everything(evidence))]


def _short(evidence: Evidence) -> Chat:
    return _with_examples(_SHORT, _endings, evidence)


def _list(evidence: Evidence) -> Chat:
    if not evidence.entries:
        raise LLMError("no token of the tables drives it more than others: no list to put in words")
    return _with_examples(_LIST, lambda own: "\n".join(map(_line, own.entries)), evidence)


def _with_examples(task: str, request: Callable[[Evidence], str], evidence: Evidence) -> Chat:
    chat = [_message("system", task)]
    for known in KNOWN:
        chat.append(_message("user", request(known.evidence)))
        chat.append(_message("assistant", f"{LEAD} {known.explanation}."))
    return [*chat, _message("user", request(evidence))]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _everything(evidence: Evidence) -> str:
    parts = shown(evidence.texts)
    if evidence.entries:
        lines = "\n".join(map(_line, evidence.entries))
        parts.append(f"Strongest over much more text:\n{lines}")
    if evidence.contrasts:
        lines = "\n".join(map(_ending, evidence.contrasts))
        parts.append(f"Silent at the end of:\n{lines}")
    if evidence.raised:
        parts.append(f"It makes likelier: {', '.join(map(_quoted, evidence.raised))}")
    return "\n".join([*parts, "", QUESTION])


def _endings(evidence: Evidence) -> str:
    """The strongest tokens, each with what stands before it, strongest first."""
    found = [each for text in evidence.texts for each in _strongest(text)]
    found.sort(key=lambda each: -each[0])
    return "\n".join(_ending(tokens) for _, tokens in found[:_MOST])


def _strongest(text: Text) -> list[tuple[int, list[str]]]:
    """The strong tokens of one text, each with its value and the tokens up to it."""
    tokens = [token for token, _ in text]
    found = [
        (value, tokens[max(place - _BEFORE, 0) : place + 1])
        for place, (_, value) in enumerate(text)
        if value >= _STRONG
    ]
    return sorted(found, key=lambda each: -each[0])[:_OF_A_TEXT]


def _ending(tokens: Sequence[str]) -> str:
    """Tokens as one line; escaped together, since several may make up a marker."""
    return escape("".join(tokens))


def _line(entry: Entry) -> str:
    behind = "" if entry.previous is None else f" after {_quoted(entry.previous)}"
    times = "once" if entry.times == 1 else f"{entry.times} times"
    return f"{_quoted(entry.token)}{behind}\t{entry.value}\t{times}"


def _quoted(token: str) -> str:
    return f'"{escape(token)}"'


_EVERYTHING = frozenset({"texts", "entries", "contrasts", "raised"})

PROMPTS = {
    prompt.name: prompt
    for prompt in (
        Prompt(
            "exemplars",
            explainer.VERSION,
            frozenset({"texts"}),
            _PHRASE,
            lambda evidence: explainer.chat_of(evidence.texts),
        ),
        Prompt("full", "full-1", _EVERYTHING, _PHRASE, _full),
        Prompt("thinking", "thinking-1", _EVERYTHING, _THOUGHTS, _thinking, parse_marked),
        Prompt("short", "short-1", frozenset({"texts"}), _PHRASE, _short),
        Prompt("list", "list-1", frozenset({"entries"}), _PHRASE, _list),
    )
}
