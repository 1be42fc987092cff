"""The puzzles themselves: marks, rules, splits, and that false descriptions are false."""

from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.errors import UsageError
from fastexplain.puzzles.texts import HALVES, LEVELS, Puzzle, Text, load, matches, tokens_of
from fastexplain.run.splits import EXPLANATION_RANKS, samples

PUZZLES = load()

# What can be said by a regular expression of where a neuron reacts; in the others it takes sense.
RULES = {
    "the word the": r"(?i)\bthe\b",
    "question marks": r"\?",
    "digits": r"\d+",
    "the word not": r"(?i)\bnot\b",
    "commas": r",",
    "capital letters throughout": r"\b[A-Z]{2,}\b",
    "the word she": r"(?i)\bshe\b",
    "hyphens": r"-",
    "days of the week": r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?\b",
    "words that end in ing": r"\w+ing\b",
    "the word after of": r"(?i)\bof (\w+)",
    "a unit after a number": r"\d (\w+[rt]es|hours|degrees|acres|kilos|feet|tons|inches)",
    "names after a title": r"\b(?:Mr|Mrs|Dr|Miss|Professor|Captain|Sir|Judge) ([A-Z]\w+)",
    "as ... as": r"\bas (\w+) as\b",
    "the first word of a question": r"^(\w+)[^.!?]*\?",
    "the word before a full stop": r"(\w+)\.",
    "what is quoted": r"“([^”]*)”",
    "the closing quotation mark": r"”",
    "capitalised after a full stop": r"\. (\w+)",
    "in round brackets": r"\(([^)]*)\)",
    "the word after a comma": r", (\w+)",
    "the third word after The": r"^The \w+ (\w+)",
    "the last of a list": r", \w+ and (\w+)",
}


def values(puzzle: Puzzle) -> np.ndarray:
    return np.concatenate([text.values for text in puzzle.texts])


def named(name: str) -> Puzzle:
    [found] = [puzzle for puzzle in PUZZLES if puzzle.name == name]
    return found


def test_there_are_48_and_half_of_them_are_for_reporting_at_every_level():
    assert len(PUZZLES) == 48 and [p.place for p in PUZZLES] == list(range(48))
    assert Counter((p.level, p.half) for p in PUZZLES) == {
        (level, half): 4 for level in LEVELS for half in HALVES
    }
    assert load("choosing") + load("reporting") == [*PUZZLES[::2], *PUZZLES[1::2]]
    assert len({p.name for p in PUZZLES}) == len({p.true for p in PUZZLES}) == 48
    texts = [text.tokens for puzzle in PUZZLES for text in puzzle.texts]
    assert len(set(texts)) == len(texts) == 48 * 18


def test_another_half_is_refused():
    with pytest.raises(UsageError, match="`half` is 'all'; choose choosing or reporting"):
        load("all")


@pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda p: p.name.replace(" ", "-"))
def test_a_puzzle_is_well_made(puzzle):
    assert (len(puzzle.active), len(puzzle.silent)) == (12, 6)
    record = puzzle.record()
    shown = [record.top[rank] for rank in EXPLANATION_RANKS if rank < len(record.top)]
    assert len(shown) == 3
    for split in ("calibration", "validation", "test"):
        parts = samples(record, split)
        assert Counter((each.top, each.true.max() > 0) for each in parts) == {
            (True, True): 2,
            (False, True): 1,
            (False, False): 2,
        }
        assert not {each.excerpt for each in parts} & {each.excerpt for each in shown}
    true = values(puzzle)
    assert true.min() >= 0 and true.max() == 10 and (true > 0).mean() < 0.25
    for text in puzzle.texts:
        assert 3 <= len(text.tokens) <= 30 and text.tokens[0][0] != " "
        assert "{" not in "".join(text.tokens) and "}" not in "".join(text.tokens)


@pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda p: p.name.replace(" ", "-"))
def test_false_descriptions_tempt_and_are_false(puzzle):
    """They react to the puzzle's texts, one of them in texts without a reaction too, and where they
    react is not where the neuron does."""
    true = values(puzzle)
    texts = {decoy.text for decoy in puzzle.false}
    assert len(texts) == 2 and puzzle.true not in texts
    silent = 0
    for decoy in puzzle.false:
        own = np.concatenate([decoy.values(text.tokens) for text in puzzle.texts])
        assert (own > 0).sum() >= 2, decoy.text
        assert np.corrcoef(true, own)[0, 1] < 0.85, decoy.text
        silent += sum(decoy.values(text.tokens).any() for text in puzzle.silent)
    assert silent >= 3


@pytest.mark.parametrize("name", RULES, ids=lambda name: name.replace(" ", "-"))
def test_marks_follow_the_rule(name):
    for text in named(name).texts:
        assert text.values.tolist() == matches(RULES[name], text.tokens).tolist(), text.tokens


@pytest.mark.parametrize("name", ["a word written twice", "the second time"])
def test_a_repeated_word_is_marked_where_it_comes_again(name):
    adjacent = name == "a word written twice"
    for text in named(name).texts:
        words = [token.strip().lower() for token in text.tokens]
        before = [
            words[place - 1 : place] if adjacent else words[:place] for place in range(len(words))
        ]
        again = [
            word in earlier and (adjacent or len(word) > 3)
            for word, earlier in zip(words, before, strict=True)
        ]
        assert (text.values > 0).tolist() == again, text.tokens


def test_counting_is_broken_where_it_is_marked():
    """Without the marked number, steps between the others are those of counting in order."""
    numerals = "one two three four five six seven eight nine ten eleven twelve"
    words = {word: number for number, word in enumerate(numerals.split(), start=1)}
    for text in named("the count that breaks").texts:
        run = [
            (words.get(token.strip().lower()) or int(token), value)
            for token, value in zip(text.tokens, text.values.tolist(), strict=True)
            if token.strip().lower() in words or token.strip().isdigit()
        ]
        numbers = np.array([number for number, _ in run])
        marked = np.array([value > 0 for _, value in run])
        step = 2 if "pairs" in "".join(text.tokens) else 1
        step *= -1 if "rocket" in "".join(text.tokens) else 1
        order = numbers[0] + step * np.arange(len(numbers))
        assert ((numbers != order) == marked).all(), text.tokens


@given(st.lists(st.sampled_from(["owl", "don't", "well-known", "3.5", ",", "“", "é", "  ", "\n"])))
def test_tokens_together_are_the_text(parts):
    text = " ".join(parts)
    assert "".join(tokens_of(text)) == text


def test_marks_become_values_of_whole_words():
    text = Text.parse("It was a {red} hat, a {very dark:4} one{!}")
    assert text.tokens == (
        "It",
        " was",
        " a",
        " red",
        " hat",
        ",",
        " a",
        " very",
        " dark",
        " one",
        "!",
    )
    assert text.values.tolist() == [0, 0, 0, 10, 0, 0, 0, 4, 4, 0, 10]


def test_a_pattern_with_a_group_means_the_group():
    tokens = tokens_of("out of sight, of mind")
    assert matches(r"of (\w+)", tokens).tolist() == [0, 0, 10, 0, 0, 10]
    assert matches(r"of \w+", tokens).tolist() == [0, 10, 10, 0, 10, 10]


def test_statistics_are_over_all_texts():
    puzzle = PUZZLES[0]
    found, true = puzzle.record().statistics, values(puzzle).astype(np.float64)
    assert found.count == len(true)
    assert found.mean == pytest.approx(true.mean()) and found.variance == pytest.approx(true.var())
    assert found.fraction_positive == pytest.approx((true > 0).mean())
    assert (found.minimum, found.maximum) == (0, 10)
    assert found.histogram.sum() == 18 and found.histogram[0] == 6
    places = np.flatnonzero(found.histogram)
    assert (found.histogram_excerpts[places] >= 0).all()
    assert found.histogram_edges[places[-1] - 1] <= 10 < found.histogram_edges[places[-1]]


def test_marks_are_of_whole_words():
    for level in LEVELS:
        raw = (
            files("fastexplain.puzzles").joinpath(f"level{level}.toml").read_text(encoding="utf-8")
        )
        for line in raw.splitlines():
            assert "\\" in line or not re.search(r"\w\{\w|\w\}\w", line), line
