"""Kinds of tokens, and the situations that they stand in."""

from __future__ import annotations

import numpy as np
import pytest

from fastexplain.text.kinds import (
    ASPECTS,
    KINDS,
    LINE_START,
    NOTHING,
    STARTS,
    STATES,
    TokenKinds,
    kind_of,
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("\n\n  ", "newline"), ("   ", "space"), (" word", "word"), ("ing", "part"),
        (" Anna", "name"), ("A", "name"), (" NASA", "capitals"), ("42", "number"), ("(", "open"),
        (" [", "open"), ("),", "close"), ('."', "quote"), ("'", "quote"), (".", "stop"),
        ("?!", "stop"), (",", "sign"), (" ==", "sign"), (" слово", "script"), ("東京", "script"),
        ("é", "part"), (" naïve", "word"), ("x1", "other"), ("\ufffd", "other"), ("", "other"),
    ],
)  # fmt: skip
def test_a_token_has_one_kind(text: str, kind: str) -> None:
    assert KINDS[kind_of(text)] == kind


def test_where_words_are_not_marked_lower_case_letters_are_words() -> None:
    kinds = TokenKinds([b"cat", b"Anna"]).kinds
    assert [KINDS[kind] for kind in kinds] == ["word", "name"]
    assert [KINDS[kind] for kind in TokenKinds([b"cat", b" dog"]).kinds] == ["part", "word"]


def values_of(words: list[str], skip: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values `[tokens, aspects]` and kinds `[tokens, aspects]` of one excerpt's codes."""
    vocabulary = sorted(set(words))
    ids = np.array([[vocabulary.index(word) for word in words]], np.int32)
    [codes] = TokenKinds([word.encode() for word in vocabulary]).situations(ids, skip)
    return np.divmod(codes - np.array(STARTS[:-1]), len(KINDS))


def test_situations_say_what_stands_before() -> None:
    values, kinds = values_of([" a", "\n", "   ", " b", " c", "(", "1"])
    word, space = KINDS.index("word"), KINDS.index("space")
    assert values[:, 0].tolist() == [
        NOTHING, word, LINE_START, LINE_START, word, word, KINDS.index("open"),
    ]  # fmt: skip
    assert kinds[2].tolist() == [space] * len(ASPECTS)


def test_situations_say_what_was_seen_before_and_what_repeats() -> None:
    values, _ = values_of([" a", " b", " c", " a", " b", " a", " b", " a", " c"])
    assert [STATES[value] for value in values[:, 1]] == [
        "new", "new", "new", "second", "second, repeating", "later", "later, repeating",
        "later, repeating", "second",
    ]  # fmt: skip


def test_situations_say_where_in_the_text_and_what_is_open() -> None:
    values, _ = values_of(["x", "(", " a", '"', " b", '"', ")", ")", " c", "(", ")", " d", *"efgh"])
    eighths, inside = np.divmod(values[:, 2], 4)
    assert eighths.tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    assert inside.tolist() == [0, 0, 1, 1, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]


def test_what_does_not_count_has_no_situation_but_is_seen() -> None:
    values, _ = values_of([" a", " a", " b"], skip=1)
    assert (values[0] < 0).all()
    assert STATES[values[1, 1]] == "second" and values[1, 2] == 0


def test_ids_beyond_the_vocabulary_are_of_its_last_kind() -> None:
    kinds = TokenKinds([b" a", b"1"])
    codes = kinds.situations(np.array([[7, 0]], np.int32), 0)
    assert codes[0, 0, 0] % len(KINDS) == KINDS.index("number")
