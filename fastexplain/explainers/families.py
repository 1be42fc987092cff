"""Tokens that are forms of one word: in other cases, with and without a space, inflected.

Which tokens are words is seen in the corpus: those that mostly begin where no word goes on, and end
so too. ` not`, `Not` and `NOT` are forms of one word then, and so are ` sort`, ` sorts` and
`sorting`. What mostly begins a word that goes on, as ` un` does, is a family by its spelling alone;
what stands inside of words, as `eno`, is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

import numpy as np

# Words that look like inflections of others: of "new", "len" (code), "even".
_NOT_INFLECTED = frozenset({"news", "lens", "evening"})

_VOWELS = "aeiouy"
_SHORT = re.compile("[^aeiouy]*[aeiou][^aeiouwxy]")  # stems that end in one vowel, one consonant


class Places(NamedTuple):
    """How often tokens stand where, by token id.

    Attributes:
        counts: occurrences that both neighbours are known of.
        begins: of these, those that don't go on with a word.
        whole: of these, those after which no word goes on.
    """

    counts: np.ndarray
    begins: np.ndarray
    whole: np.ndarray


def places_of(texts: Mapping[int, str], excerpts: np.ndarray) -> Places:
    """Count where tokens stand.

    A token goes on with a word where it begins with a letter behind a letter; but a capital after a
    lower-case letter begins one, as in `readLine`.

    Args:
        texts: of all tokens of the excerpts, by id.
        excerpts: int32 `[excerpts, tokens]`.
    """
    size = max(texts, default=-1) + 1
    first, last = (np.zeros((3, size), bool) for _ in range(2))  # a letter, a capital, lower case
    for token, text in texts.items():
        for found, character in ((first, text[:1]), (last, text[-1:])):
            found[:, token] = character.isalpha(), character.isupper(), character.islower()
    before, own = excerpts[:, :-1], excerpts[:, 1:]
    goes_on = last[0][before] & first[0][own] & ~(last[2][before] & first[1][own])
    begins, ends = ~goes_on[:, :-1], ~goes_on[:, 1:]
    inner = excerpts[:, 1:-1]
    return Places(
        *(
            np.bincount(inner[where], minlength=size)
            for where in (np.ones(inner.shape, bool), begins, begins & ends)
        )
    )


def families(texts: Mapping[int, str], places: Places) -> dict[str, list[int]]:
    """Tokens that are forms of one word, or of one beginning or letter: ids by phrase.

    Families of one token are left out. A word's family is called by its most frequent form.

    Args:
        texts: by token id.
        places: from `places_of`.
    """
    words: dict[int, str] = {}
    found: dict[str, list[int]] = {}
    for token, text in texts.items():
        word, count = text.strip().lower(), int(places.counts[token])
        if not word.isalpha() or not count:
            continue
        if len(word) == 1:
            found.setdefault(f"the letter '{word}'", []).append(token)
        elif 2 * places.whole[token] >= count:
            words[token] = word
        elif 2 * places.begins[token] >= count:
            found.setdefault(f"'{word}' at the beginning of a word", []).append(token)
    known = frozenset(words.values())
    by_base: dict[str, list[int]] = {}
    for token, word in words.items():
        by_base.setdefault(base_of(word, known), []).append(token)
    for ids in by_base.values():
        forms: Counter[str] = Counter()
        for token in ids:
            forms[words[token]] += int(places.whole[token])
        called = min(forms, key=lambda form: (-forms[form], len(form), form))
        found[f"forms of the word '{called}'"] = ids
    return {phrase: ids for phrase, ids in found.items() if len(ids) > 1}


def base_of(word: str, known: Container[str]) -> str:
    """The word that an English word is an inflection of, if that is known; else the word itself.

    Args:
        word: in lower case.
        known: words in lower case.
    """
    for base in _bases(word):
        if base in known:
            return base_of(base, known)
    return word


def _bases(word: str) -> Iterator[str]:
    """What a word may be a plural, a third person, a past or a participle of, likeliest first."""
    if word in _NOT_INFLECTED:
        return
    if len(word) > 3 and word.endswith("s") and word[-2] not in "isu":
        yield word[:-1]
        if word.endswith("es"):
            yield word[:-2]  # boxes
    if len(word) > 4 and word.endswith(("ies", "ied")):
        yield word[:-3] + "y"
    for ending, shortest in (("ing", 5), ("ed", 4)):
        stem = word.removesuffix(ending)
        if stem == word or len(word) < shortest or not any(c in _VOWELS for c in stem):
            continue
        if _SHORT.fullmatch(stem):  # else it would be doubled: rating is of rate, ratting of rat
            yield stem + "e"
        elif ending == "ed" and stem.endswith("e"):
            if len(word) > 5:  # agreed; but seed and speed
                yield stem + "e"
        elif stem[-1] == stem[-2]:
            yield from (stem, stem[:-1])  # calling, stopped
        else:
            yield from (stem, stem + "e")  # sorted, parsed
