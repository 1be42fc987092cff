"""Tokens on the terminal: their spaces are seen, and their activations can be told from them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from fastexplain.cli.token_text import excerpt_text, marked, words_text

TOKENS = st.text(st.sampled_from(" ab'\"\\·␣;,.)(1\n\té语⏎"), min_size=1, max_size=5)
PIECES = st.sampled_from(["", "meth·", "…abc·"])
PHRASES = ("above all {}", "less {}", "not {}", "forms of the word {}", "any token after {}", "{}")


def signed(token: str) -> str:
    """What a quoted token should look like, by hand."""
    if not token.strip(" "):
        return "␣" * len(token)
    begin = len(token) - len(token.lstrip(" "))
    end = len(token) - len(token.rstrip(" "))
    return "␣" * begin + token.strip(" ") + "␣" * end


def both(form: str, *tokens: str) -> tuple[str, str]:
    """A phrase as it is stored, and as it should be shown."""
    stored = [repr(token) for token in tokens]
    shown = [own[0] + signed(own[1:-1]) + own[-1] for own in stored]
    return form.format(*stored), form.format(*shown)


ENTRIES = st.one_of(
    st.builds(lambda piece, token: both(f"{piece}{{}} 3.1", token), PIECES, TOKENS),
    st.builds(lambda token: both("{}·inks 0.02", token), TOKENS),
    st.builds(lambda token, last: both("{} after {} -2", token, last), TOKENS, TOKENS),
)
TERMS = st.one_of(
    st.builds(lambda form, token: both(form, token), st.sampled_from(PHRASES), TOKENS),
    st.builds(lambda token, last: both("{} after {}", token, last), TOKENS, TOKENS),
    st.just(("a word the second time", "a word the second time")),
)


@given(st.lists(ENTRIES, min_size=1, max_size=8))
@settings(max_examples=500, derandomize=True)
def test_spaces_of_a_lists_tokens_are_seen(entries: list[tuple[str, str]]) -> None:
    stored, shown = (", ".join(each) + "; else 0.02" for each in zip(*entries, strict=True))
    assert words_text(stored).plain == shown


@given(st.lists(TERMS, min_size=1, max_size=4), st.lists(TERMS, max_size=2))
@example([both("{}", " def"), both("{}", " This"), both("{} after {}", " __", " def")], [])
@example([both("above all {}", " def")], [both("less {}", " 1")])
@settings(max_examples=500, derandomize=True)
def test_spaces_of_a_rules_tokens_are_seen(
    raising: list[tuple[str, str]], lowering: list[tuple[str, str]]
) -> None:
    stored, shown = (
        ", but ".join(
            part
            for part in (
                "; ".join(each[place] for each in raising),
                ", ".join(each[place] for each in lowering),
            )
            if part
        )
        for place in (0, 1)
    )
    assert words_text(stored).plain == shown


@pytest.mark.parametrize(
    "text",
    [
        "the neurons' words and others' words",
        "don't, can't and 'don't' in John's text",
        "rock 'n' roll of the '80s and '90s, '70s",
        'the phrase "in the house", and 5\' or 6" long',
        "it's ' and",
    ],
)
def test_apostrophes_and_quoted_words_of_a_text_stay(text: str) -> None:
    assert words_text(text).plain == text


def console(encoding: str = "utf-8") -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), width=200)


CODE = ["t", "[0]", " +", " t", "[", "1", "]", " #", "[10]", "⟦8⟧"]


@given(st.lists(st.integers(0, 10), min_size=len(CODE), max_size=len(CODE)))
@settings(max_examples=100, derandomize=True)
def test_activations_are_told_from_the_text(values: list[int]) -> None:
    """What a reader takes for a value is one: taken out, the values and the text are there."""
    shown = excerpt_text(console(), CODE, np.array(values, np.float32), 10.0).plain
    tokens, found = "", []
    while "⟦" in shown:
        before, _, rest = shown.partition("⟦")
        value, _, shown = rest.partition("⟧")
        tokens += before
        found.append(int(value))
    assert found == [value for value in values if value]
    assert tokens + shown == "".join(CODE).replace("⟦8⟧", "\\u27e68\\u27e7")


def test_marks_are_a_column_wide() -> None:
    assert cell_len("⟦⟧") == 2 and marked(console(), 8) == "⟦8⟧"


def test_where_only_ascii_is_written_marks_are_ascii() -> None:
    for encoding in ("ascii", "latin-1"):
        shown = excerpt_text(console(encoding), CODE, np.arange(10.0), 9.0).plain
        assert "[0]{=1} +{=2}" in shown and marked(console(encoding), 8) == "{=8}"
        assert shown.replace("⟦8⟧", "").isascii()
