"""Marks on tokens by the text that they make up: similes, and words that are misspelt.

They go by the letters of English, and so find nothing in other scripts.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fastexplain.run.directory import Run

_ARTICLE = r"(?:an?|the|some|those|my|your|his|her|its|our|their)"
_SIMILE = re.compile(
    rf"\b(?:like\s+{_ARTICLE}\s+\w+|as\s+(?!well\b|much\b|many\b|long\b|soon\b|far\b)\w+\s+as\s+"
    rf"{_ARTICLE}\s+\w+|as\s+(?:if|though)\b|resembl(?:es?|ed|ing)\b|reminiscent\s+of\b)",
    re.IGNORECASE,
)
"""'like a lion', 'as bright as the sun', 'as though'."""

_WORD = re.compile(r"[^\W\d_]+")
_SHORTEST = 5
"""Letters of a word that is looked at: shorter ones are words themselves too often."""
_RARER = 20
"""How many times rarer than the word that it is taken for a misspelt one is."""
_SAMPLE = 2**14  # excerpts whose words are counted


class Similes:
    """Marks every token of a comparison such as 'like a lion' or 'as bright as the sun'."""

    def __init__(self, run: Run) -> None:
        self._texts = run.token_texts

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Token ids int `[n, T]` to marks, bool `[n, T]`."""
        return _marked(self._texts, tokens, _simile_spans)


class Typos:
    """Marks every token of a word that is misspelt.

    A word is taken to be where another that is 20 times as frequent in the run's corpus becomes it
    by swapping two neighbouring letters ('recieve'), or by doubling a letter or undoing that
    ('untill', 'occured'). The whole corpus knows no other spelling, so names and terms are safe.
    """

    def __init__(self, run: Run) -> None:
        self._texts = run.token_texts
        words: Counter[str] = Counter()
        for excerpt in np.asarray(run.excerpts[:_SAMPLE]).tolist():
            words.update(_words("".join(self._texts(excerpt))))
        self.misspelt = misspelt(words)

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Token ids int `[n, T]` to marks, bool `[n, T]`."""
        return _marked(self._texts, tokens, self._spans)

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        for match in _WORD.finditer(text):
            if match[0].lower() in self.misspelt:
                yield match.span()


def misspelt(words: Counter[str]) -> set[str]:
    """The words, in lower case, that are taken for misspelt ones of others.

    Args:
        words: lower-case words and how often they stand in a corpus.
    """
    frequent = [word for word, count in words.items() if count >= _RARER and len(word) >= _SHORTEST]
    return {
        slip
        for word in frequent
        for slip in _slips(word)
        if len(slip) >= _SHORTEST and 0 < words[slip] * _RARER <= words[word]
    }


def _slips(word: str) -> Iterable[str]:
    """What comes of swapping two neighbours of a word, of doubling a letter, or undoing that."""
    for i, (a, b) in enumerate(itertools.pairwise(word)):
        if a == b:
            yield word[:i] + word[i + 1 :]
        else:
            yield word[:i] + b + a + word[i + 2 :]
            yield word[: i + 1] + word[i:]
    yield word + word[-1]


def _simile_spans(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _SIMILE.finditer(text))


def _words(text: str) -> Iterator[str]:
    return (match[0].lower() for match in _WORD.finditer(text))


def _marked(
    texts_of: Callable[[Iterable[int]], list[str]],
    tokens: np.ndarray,
    spans: Callable[[str], Iterable[tuple[int, int]]],
) -> np.ndarray:
    """Marks on the tokens that a span of the text shares a character with, but white space."""
    marks = np.zeros(tokens.shape, bool)
    for excerpt, row in zip(marks, tokens.tolist(), strict=True):
        texts = texts_of(row)
        text = "".join(texts)
        ends = np.cumsum([len(each) for each in texts])
        for start, end in spans(text):
            # The token with the first character, to that with the last one.
            first = np.searchsorted(ends, start, side="right")
            excerpt[first : np.searchsorted(ends, end - 1, side="right") + 1] = True
    return marks
