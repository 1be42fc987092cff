"""Rules, on neurons whose rule is known: each class and each situation is found and worded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from folded import folded_run

from fastexplain import Run
from fastexplain.errors import RunError
from fastexplain.explainers.classes import KIND_PHRASES, PLURAL_KINDS
from fastexplain.explainers.features import Features, situations_in
from fastexplain.explainers.lookup import store_lookup
from fastexplain.explainers.rules import (
    TERMS,
    Rules,
    explain_by_rules,
    rules_are_stored,
    store_rules,
    text_of,
)
from fastexplain.text.kinds import STARTS, TokenKinds

WORDS = [
    " not", "Not", " NOT", " sort", " sorts", " sorting", " river", " stone", " the", " a", " and",
    " in", " Anna", " Bob", " Paris", " Rome", " NASA", " USA", "ing", "ed", "3", "7", "12", "845",
    "(", "[", ")", "]", '"', ".", ",", ";", "\n", "  ", " слово", " word", " moon", " bright",
    " def", "über",
]  # fmt: skip
NUMBERS = ["3", "7", "12", "845"]
EXCERPTS, LENGTH = 500, 64

# Without a phrase in common.
TEN = {" not", "Not", " NOT", " sort", " sorts", " sorting", " river", " USA", "7", ";"}

Condition = Callable[[Sequence[str], int], bool]


def second_name(texts: Sequence[str], t: int) -> bool:
    return (
        texts[t] in (" Anna", " Bob", " Paris", " Rome", "Not") and texts[:t].count(texts[t]) == 1
    )


def in_brackets(texts: Sequence[str], t: int) -> bool:
    depth = 0
    for text in texts[:t]:
        depth = max(depth + (text in "([") - (text in ")]"), 0)
    return depth > 0 and texts[t] not in ")]"


def repeats(texts: Sequence[str], t: int) -> bool:
    places = [j for j in range(t - 1) if texts[j] == texts[t - 1]]
    return bool(places) and texts[places[-1] + 1] == texts[t]


PLANTED: dict[str, Condition] = {
    "a number": lambda x, t: x[t].isdigit(),
    "forms of the word 'not'": lambda x, t: x[t].strip().lower() == "not",
    "forms of the word 'sort'": lambda x, t: x[t].startswith(" sort"),
    "letters in capitals": lambda x, t: x[t] in (" NASA", " USA", " NOT"),
    "a bracket": lambda x, t: x[t] in "()[]",
    "an opening bracket": lambda x, t: x[t] in "([",
    "' river'": lambda x, t: x[t] == " river",
    "' moon' after ' bright'": lambda x, t: x[t - 1 : t + 1] == [" bright", " moon"],
    "any token after ' the'": lambda x, t: t > 0 and x[t - 1] == " the",
    "a number after an opening bracket": lambda x, t: (
        t > 0 and x[t].isdigit() and x[t - 1] in "(["
    ),
    "a capitalised word for the second time in the excerpt": second_name,
    "any token that repeats what last followed the token before it": repeats,
    "any token at the very start of the excerpt": lambda x, t: t == 1,
    "any token in the first eighth of the excerpt": lambda x, t: t < LENGTH // 8,
    "any token inside brackets": in_brackets,
    "any token inside double quotation marks": lambda x, t: x[:t].count('"') % 2 == 1,
    "any token at the start of a line": lambda x, t: t > 0 and (
        x[t - 1] == "\n" or (t > 1 and x[t - 1] == "  " and "".join(x[:t]).rstrip(" ")[-1:] == "\n")
    ),
    "a number, but not '7'": lambda x, t: x[t].isdigit() and x[t] != "7",
}  # fmt: skip


def write_run(
    out: Path, *, kinds: TokenKinds | None, rows: int = 5000, named: int = len(WORDS)
) -> Run:
    """A run of planted neurons, one of pure noise, and one of `TEN`."""
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, len(WORDS), (EXCERPTS, LENGTH)).astype(np.int32)
    # Some phrases come again, so that there is something to repeat.
    token_ids[:, 40:44] = token_ids[:, 20:24]
    token_ids[::4, 30] = WORDS.index(" sort")  # the most frequent of its forms
    texts = [[WORDS[id_] for id_ in own] for own in token_ids]
    fires = [
        [
            [*(condition(own, t) for condition in PLANTED.values()), False, own[t] in TEN]
            for t in range(LENGTH)
        ]
        for own in texts
    ]
    acts = 2 * np.array(fires, np.float32)
    acts += 0.1 * rng.standard_normal(acts.shape, dtype=np.float32)
    words = [word.encode() for word in WORDS[:named]]
    return folded_run(out, token_ids, acts, words, rows=rows, kinds=kinds)


@pytest.fixture(scope="module")
def ruled(tmp_path_factory) -> Run:
    kinds = TokenKinds([word.encode() for word in WORDS])
    return write_run(tmp_path_factory.mktemp("ruled") / "run", kinds=kinds)


@pytest.fixture(scope="module")
def rules(ruled):
    [rows] = explain_by_rules(ruled)
    return dict(zip([*PLANTED, "noise", "ten"], rows, strict=True))


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_rule_is_found_and_worded(rules, rule: str) -> None:
    row = rules[rule]
    assert row.text == rule
    assert row.scores.top_and_random > 0.9
    assert (row.method, row.model, row.version) == ("rule", "rule", "rule-2")


def test_terms_have_their_means_and_counts(rules) -> None:
    [term] = rules["a number"].data
    assert term["term"] == "a number" and term["count"] > 1000
    # Of noise around 0 with deviation 0.1 the positive part has the mean 0.04.
    assert term["mean"] == pytest.approx(2, abs=0.05)
    assert rules["a number"].parameters["default"] == pytest.approx(0.04, abs=0.02)
    assert term["value"] == pytest.approx(1.96, abs=0.05)
    assert len(rules["noise"].data) <= TERMS


def test_a_neuron_of_noise_scores_about_0(rules) -> None:
    """Rules are chosen and estimated without the excerpts that score them."""
    assert abs(rules["noise"].scores.top_and_random) < 0.12


def test_rules_are_stored_beside_the_lookup_and_found_again(ruled) -> None:
    assert store_rules(ruled) == store_rules(ruled) == len(PLANTED) + 2
    with ruled.database(read_only=True) as database:
        assert database.explained("rule", "rule-2") == len(PLANTED) + 2
        [mean] = [m for m in database.means("rule") if (m.site, m.split) == ("", "top_and_random")]
        assert mean.value > 0.85


def test_a_run_without_situations_has_rules_of_tokens(tmp_path) -> None:
    [rows] = explain_by_rules(write_run(tmp_path / "run", kinds=None))
    found = [row.text for row in rows]
    assert found[: len(PLANTED)].count("any token inside brackets") == 0
    assert found[0] == "a number"


def test_a_phrase_means_one_thing(ruled, tmp_path) -> None:
    """What is a situation is not told from pairs too, and so has all positions of the corpus."""
    features = Features(ruled, ruled.tables.rows(ruled.excerpts))
    assert len(set(features.phrases)) == len(features.phrases)
    numbers = np.isin(ruled.excerpts[:, :-1], [WORDS.index(word) for word in NUMBERS])
    assert features.counts[features.phrases.index("any token after a number")] == numbers.sum()
    # Without situations the pairs have it.
    run = write_run(tmp_path / "run", kinds=None)
    features = Features(run, run.tables.rows(run.excerpts))
    assert features.phrases.count("any token after a number") == 1


def test_a_rule_of_kinds_agrees_with_its_verb() -> None:
    codes = np.arange(STARTS[-1], dtype=np.int32)
    phrases = situations_in(codes)
    assert len(phrases) == 15 * 32
    assert {kind for kind, phrase in KIND_PHRASES.items() if "letters" in phrase} == PLURAL_KINDS
    for kind, phrase in KIND_PHRASES.items():
        are, have = ("are", "have") if kind in PLURAL_KINDS else ("is", "has")
        assert f"{phrase} that {are} new in the excerpt" in phrases
        assert f"{phrase} that {have} appeared before in the excerpt" in phrases


def test_rules_follow_the_length_of_lists(tmp_path) -> None:
    run = write_run(tmp_path / "run", kinds=None)
    store_lookup(run, entries=4)
    assert not rules_are_stored(run)
    store_rules(run)
    assert rules_are_stored(run)
    with run.database(read_only=True) as database:
        assert database.explained("rule", "rule-2", entries=4) == len(PLANTED) + 2
    store_lookup(run, entries=8)
    assert not rules_are_stored(run)
    # A rule can say more of ten tokens than four entries, and less than 32.
    for entries, first in ((4, True), (32, False)):
        [rows] = explain_by_rules(run, entries=entries)
        assert rows[-1].parameters["first"] is first
        assert rows[-1].parameters["entries"] == entries


def test_a_run_without_tables_has_no_rules(tmp_path) -> None:
    run = write_run(tmp_path / "run", kinds=None, rows=0)
    with pytest.raises(RunError, match="has no tables"):
        list(explain_by_rules(run))


def test_tokens_that_the_tokenizer_lacks_are_not_taken_for_others(tmp_path) -> None:
    run = write_run(tmp_path / "run", kinds=None, named=len(WORDS) - 3)
    assert len(run.vocabulary) == len(WORDS) - 3 and run.excerpts.max() == len(WORDS) - 1
    tables = run.tables
    features = Features(run, tables.rows(run.excerpts))
    singles = slice(features.wide, features.first_pair)
    assert features.counts[singles].tolist() == tables.token_counts.tolist()
    assert features.counts[features.first_pair :].tolist() == tables.pair_counts.tolist()
    after = features.counts[features.phrases.index("any token after ' not'")]
    assert after == tables.pair_counts[tables.pairs[:, 0] == WORDS.index(" not")].sum()


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        (
            {"a number": 2, "' river'": 1.5, "'7'": 1, "'3'": 1},
            "a number, above all '7' and '3'; ' river'",
        ),
        ({"'7'": 2, "a number": 1}, "'7'; a number"),
        ({"a number": 2, "'7'": -2}, "a number, but not '7'"),
        ({"a number": 2, "'7'": 1, "'3'": -1}, "a number, above all '7', but weaker on '3'"),
    ],
)
def test_a_part_within_another_stands_behind_it(ruled: Run, terms: dict[str, float], text: str):
    features = Features(ruled, ruled.tables.rows(ruled.excerpts))
    chosen = np.full((1, TERMS), -1)
    chosen[0, : len(terms)] = [features.phrases.index(phrase) for phrase in terms]
    values = np.zeros((1, TERMS))
    values[0, : len(terms)] = list(terms.values())
    rules = Rules(chosen, values, np.zeros(1), np.zeros((1, TERMS), int), np.zeros((1, TERMS)))
    assert text_of(rules, features, 0) == text
