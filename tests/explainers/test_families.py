"""Which tokens are forms of one word, on words as they are."""

from __future__ import annotations

import numpy as np
import pytest

from fastexplain.explainers.classes import classes_of
from fastexplain.explainers.families import base_of, families, places_of


@pytest.mark.parametrize(
    ("base", "forms"),
    [
        ("sort", "sorts sorting sorted"),
        ("rate", "rates rating rated"),
        ("rat", "rats"),
        ("parse", "parses parsing parsed"),
        ("create", "creates creating created"),
        ("stop", "stops stopping stopped"),
        ("set", "sets setting settings"),
        ("call", "calls calling called"),
        ("pass", "passes passing passed"),
        ("try", "tries trying tried"),
        ("die", "dies died"),
        ("use", "uses using used"),
        ("do", "does doing"),
        ("be", "being"),
        ("open", "opens opening opened"),
        ("agree", "agrees agreed"),
        ("box", "boxes"),
        ("byte", "bytes"),
        ("string", "strings"),
        ("see", "sees seeing"),
    ],
)
def test_inflections_are_forms_of_their_word(base: str, forms: str) -> None:
    # Beside words that look like bases, and that these are not of.
    known = {base, *forms.split(), "rat", "str", "us", "cal", "pas", "non"}
    for form in (base, *forms.split()):
        assert base_of(form, known) == base, form


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("string", "str"), ("none", "non"), ("rate", "rat"), ("thing", "th"), ("line", "lin"),
        ("seed", "see"), ("speed", "spe"), ("status", "statu"), ("this", "thi"), ("class", "clas"),
        ("news", "new"), ("lens", "len"), ("evening", "even"), ("king", "k"), ("during", "dur"),
    ],
)  # fmt: skip
def test_what_looks_like_an_inflection_is_none(word: str, other: str) -> None:
    assert base_of(word, {word, other}) == word
    assert base_of(other, {word, other}) == other


def test_an_inflection_of_what_is_not_there_is_a_word_itself() -> None:
    assert base_of("sorting", {"sorting", "sorts"}) == "sorting"


TEXT = (
    " line| lines|.| lines|Line| lines| lines|.| string|.|String|.| str|.| None| none|.| non|.|"
    "NON|.| un|able|.|un|do|.|able|eno|do|ENO|able| x|.|X|.| lin|ing|.|lin|ing|.| rating| rate|.|"
    " rat|.|read|Line|."
)


def found_in(text: str) -> dict[str, set[str]]:
    tokens = [".", *text.split("|"), "."]
    words = list(dict.fromkeys(tokens))
    texts = dict(enumerate(words))
    excerpts = np.array([[words.index(token) for token in tokens]], np.int32)
    found = families(texts, places_of(texts, excerpts))
    return {phrase: {texts[id_] for id_ in ids} for phrase, ids in found.items()}


def test_families_are_of_words_and_called_by_their_most_frequent_form() -> None:
    assert found_in(TEXT) == {
        "forms of the word 'lines'": {" line", " lines", "Line"},
        "forms of the word 'string'": {" string", "String"},
        "forms of the word 'none'": {" None", " none"},
        "forms of the word 'non'": {" non", "NON"},
        "forms of the word 'rate'": {" rate", " rating"},
        "'un' at the beginning of a word": {" un", "un"},
        "'lin' at the beginning of a word": {" lin", "lin"},
        "the letter 'x'": {" x", "X"},
    }


def test_a_piece_inside_of_words_has_no_family() -> None:
    text = "b|eno|d|.|b|ENO|D"
    assert found_in(text) == {"the letter 'd'": {"d", "D"}}


def test_a_capital_after_a_lower_case_letter_begins_a_word() -> None:
    assert found_in("read|Line|.| line") == {"forms of the word 'line'": {"Line", " line"}}
    assert "forms of the word 'line'" not in found_in("READ|LINE|.| line")


@pytest.mark.parametrize(
    ("token", "phrase"),
    [
        ("日本", "Chinese characters"), ("ひら", "Hiragana letters"), ("한국", "Hangul letters"),
        (" слово", "Cyrillic letters"), ("אב", "Hebrew letters"), ("αβγ", "Greek letters"),
    ],
)  # fmt: skip
def test_scripts_are_called_as_people_call_them(token: str, phrase: str) -> None:
    assert classes_of(token) == ["non-Latin letters", phrase]


def test_a_letter_of_no_script_has_none() -> None:
    assert classes_of("\U0001d465") == ["non-Latin letters"]
