"""The puzzles: invented neurons, each with the texts it reacts to and what it really reacts to.

They stand in `level1.toml` (single words and signs) to `level6.toml` (meaning and style), eight a
file, growing in difficulty. Each has

- `true`: what the neuron reacts to,
- `false`: two descriptions that tempt, each with a regular expression for where it would react; of
  a pattern with a group, the group is meant,
- `excerpts`, one a line: first those in which it reacts, best first, then those in which it does
  not. `{word}` stands for a reaction of 10, `{word:4}` for one of 4; it is 0 elsewhere.

Every second one, by its place in the files, is for choosing, as of a prompt's wording; the others
are for reporting only.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.kernels.scalars import BINS, histogram_bin, histogram_edges
from fastexplain.records import Exemplar, NeuronId, NeuronRecord, Statistics
from fastexplain.run.statistics import moments_of

LEVELS = (1, 2, 3, 4, 5, 6)
HALVES = ("choosing", "reporting")
FULL = 10.0
"""A reaction that is marked by no number."""

# A word with the space before it, a sign with it, or other white space.
_TOKEN = re.compile(r" ?\w+(?:['\u2019]\w+)*| ?[^\w\s]|\s")
_MARK = re.compile(r"\{(.+?)(?::(\d+))?\}")

# Of `Puzzle.record`: what was stored for neurons that were made otherwise is not found again.
_VERSION = "1"

# Excerpts of a puzzle have ids from this many times its place on.
_IDS = 100

# Top exemplars of a puzzle, and the splits that random ones are dealt out to (`run.splits`).
_TOP, _SPLITS = 9, 3


@dataclass(frozen=True)
class Text:
    """An excerpt.

    Attributes:
        tokens: words and signs, each with the space before it; together they are the text.
        values: float32 `[tokens]`, the neuron's activations.
    """

    tokens: tuple[str, ...]
    values: np.ndarray = field(repr=False)

    @classmethod
    def parse(cls, marked: str) -> Text:
        """Read a text with its reactions marked, as in `a {red} {hat:4}`."""
        text, spans, end = "", [], 0
        for mark in _MARK.finditer(marked):
            text += marked[end : mark.start()]
            spans.append((len(text), len(text) + len(mark[1]), float(mark[2] or FULL)))
            text += mark[1]
            end = mark.end()
        tokens = tokens_of(text + marked[end:])
        return cls(tokens, _spread(tokens, spans))


@dataclass(frozen=True)
class Decoy:
    """A description that tempts.

    Attributes:
        text: the description.
        pattern: matches where a neuron of this description would react, or its group does.
    """

    text: str
    pattern: str

    def values(self, tokens: Iterable[str]) -> np.ndarray:
        """What such a neuron would do, float32 `[tokens]`: 10 or 0."""
        return matches(self.pattern, tuple(tokens))


@dataclass(frozen=True)
class Puzzle:
    """An invented neuron.

    Attributes:
        name: a word or two.
        place: among all puzzles, from 0 on; its neuron is `0:PLACE`.
        level: of difficulty, from 1 to 6.
        true: what it reacts to.
        false: two descriptions that tempt.
        active: texts in which it reacts, best first.
        silent: texts in which it does not.
    """

    name: str
    place: int
    level: int
    true: str
    false: tuple[Decoy, Decoy]
    active: tuple[Text, ...] = field(repr=False)
    silent: tuple[Text, ...] = field(repr=False)

    @property
    def half(self) -> str:
        """One of `HALVES`."""
        return HALVES[self.place % 2]

    @property
    def texts(self) -> tuple[Text, ...]:
        return self.active + self.silent

    def record(self) -> NeuronRecord:
        """The puzzle as a neuron of a run, with statistics over all texts; all tokens count.

        The best nine texts are its top exemplars. The other three in which it reacts stand among
        those in which it does not, one in each split, so that random ones tell something too.
        """
        exemplars = [
            Exemplar(
                self.place * _IDS + number,
                np.array([_vocabulary()[token] for token in text.tokens], dtype=np.int32),
                list(text.tokens),
                text.values,
            )
            for number, text in enumerate(self.texts)
        ]
        reacting, silent = exemplars[: len(self.active)], exemplars[len(self.active) :]
        best = sorted(reacting, key=lambda each: -each.activations.max())
        random = [*silent[:_SPLITS], *best[_TOP:], *silent[_SPLITS:]]
        return NeuronRecord(
            NeuronId(0, self.place), 0, best[:_TOP], [], random, _statistics(exemplars)
        )


def tokens_of(text: str) -> tuple[str, ...]:
    """Cut a text into words and signs, each with the space before it."""
    return tuple(_TOKEN.findall(text))


def matches(pattern: str, tokens: tuple[str, ...]) -> np.ndarray:
    """10 at the tokens that a regular expression, or its group, matches; float32 `[tokens]`."""
    found = re.finditer(pattern, "".join(tokens))
    spans = (match.span(1 if match.re.groups else 0) for match in found)
    return _spread(tokens, [(*span, FULL) for span in spans])


def load(half: str | None = None) -> list[Puzzle]:
    """All puzzles, or one of `HALVES`.

    Raises:
        UsageError: there is no such half.
    """
    if half is not None and half not in HALVES:
        raise UsageError(f"`half` is {half!r}; choose {' or '.join(HALVES)}")
    return [puzzle for puzzle in _all() if half in (None, puzzle.half)]


@functools.cache
def fingerprint() -> str:
    """Eight hexadecimal digits that change with any puzzle, and with the way to make neurons."""
    return hashlib.sha256("".join([_VERSION, *map(_file, LEVELS)]).encode()).hexdigest()[:8]


def _file(level: int) -> str:
    return files(__package__).joinpath(f"level{level}.toml").read_text(encoding="utf-8")


@functools.cache
def _all() -> tuple[Puzzle, ...]:
    found: list[Puzzle] = []
    for level in LEVELS:
        for raw in tomllib.loads(_file(level))["puzzle"]:
            texts = [Text.parse(line) for line in raw["excerpts"].strip().splitlines()]
            first, second = (Decoy(*each) for each in raw["false"])
            found.append(
                Puzzle(
                    raw["name"],
                    len(found),
                    level,
                    raw["true"],
                    (first, second),
                    tuple(text for text in texts if text.values.any()),
                    tuple(text for text in texts if not text.values.any()),
                )
            )
    return tuple(found)


@functools.cache
def _vocabulary() -> dict[str, int]:
    """Numbers of all tokens, in place of a tokenizer's."""
    tokens = {token for puzzle in _all() for text in puzzle.texts for token in text.tokens}
    return {token: number for number, token in enumerate(sorted(tokens))}


def _spread(tokens: Iterable[str], spans: list[tuple[int, int, float]]) -> np.ndarray:
    """Values of the tokens that (first, end, value) in the text's characters reach into, else 0."""
    tokens = list(tokens)
    ends = np.cumsum([len(token) for token in tokens])
    # A token's leading space belongs to no word.
    starts = ends - [len(token.lstrip(" ")) or len(token) for token in tokens]
    values = np.zeros(len(tokens), dtype=np.float32)
    for first, end, value in spans:
        values[(starts < end) & (ends > first)] = value
    return values


def _statistics(exemplars: list[Exemplar]) -> Statistics:
    values = np.concatenate([each.activations for each in exemplars]).astype(np.float64)
    sums = [*((values**power).sum() for power in range(1, 5)), np.maximum(values, 0).sum()]
    arrays = {
        "sums": np.array(sums)[:, None],
        "positive": np.array([(values > 0).sum()]),
        "minimum": values.min(keepdims=True),
        "maximum": values.max(keepdims=True),
    }
    moments = moments_of(arrays, len(values))
    histogram, kept = np.zeros(BINS, np.int64), np.full(BINS, -1, np.int32)
    for each in exemplars:
        place = histogram_bin(int(each.activations.max().view(np.int32)))
        histogram[place] += 1
        kept[place] = each.excerpt
    return Statistics(
        count=len(values),
        **{name: float(found[0]) for name, found in moments.items()},
        histogram=histogram,
        histogram_edges=histogram_edges().astype(np.float64),
        histogram_excerpts=kept,
    )
