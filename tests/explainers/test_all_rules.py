"""Every class of tokens and every situation that rules may speak of is found and worded.

Each neuron of a run fires on one of them. Where they hold is told here by lists of tokens and from
texts, not by what rules themselves go by.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from folded import SKIP, folded_run

from fastexplain import Run
from fastexplain.explainers.features import Features
from fastexplain.explainers.rules import explain_by_rules
from fastexplain.kernels.cpu.rules import predict
from fastexplain.text.kinds import TokenKinds

SIGNS = r"""\,;:.?!-_/=*#'"([{)]}%@+<>$|`"""
KINDS = {
    "a line break": "\n|\n\n|\n\n\n",
    "white space": " |  |    ",
    "a lower-case word": " the| a| an| of| under| with| you| they| him| my| your| their| and| or"
    "| but| is| are| has| can| could| must| who| which| why| not| never| nor| this| these| those"
    "| two| seven| hundred| some| many| few| var| const| enum| def| return| lambda| running"
    "| thing| wanted| sad| badly| only| nation| motion| cement| moment| witness| harness| stable"
    "| table| river| paper| nearest| modest| formal| rival| famous| joyous| active| native"
    "| über| señor| x| y",
    "unspaced lower-case letters": "ing|ed|ly|tion|ment|ness|able|er|est|al|ous|ive|ça|x|y|self",
    "a capitalised word": " Anna| Bob|Not| March| Monday| April|X|Élan",
    "letters in capitals": " NASA|USA| THE|NEVER",
    "a number": "3|7| 8|12|845| 1999|2024",
    "an opening bracket": "(|[|{| (| [| {",
    "a closing bracket": ")|]|}| )| ]| }|):|))",
    "a quotation mark": "'|\"|`| '| \"",
    "a full stop, '!' or '?'": ".|!|?| .| !| ?|...",
    "a sign such as ',' or '='": ",|;|:|-|_|/|=|*|#|%|@|+|<|>|$| ,| ;| :| -| _| /| =| *| #| %| @"
    "| +| <| >| $|\\| \\|==|//",
    "non-Latin letters": " слово|дом|αβ| γδ|日本|東京",
    "a mixed token": "x2| v3|n't|py3",
}
VOCABULARY = [*(t for own in KINDS.values() for t in own.split("|")), "|", " |"]
KIND_OF = {token: kind for kind, own in KINDS.items() for token in own.split("|")}
KIND_OF |= dict.fromkeys(["|", " |"], "a sign such as ',' or '='")

LATIN = re.compile(r" ?[A-Za-zéÉçüñ]+")
ENDINGS = ("ing", "ed", "ly", "tion", "ment", "ness", "able", "er", "est", "al", "ous", "ive")
CHARACTERS = {
    "a comma": ",", "a semicolon": ";", "a colon": ":", "a full stop": ".", "a hyphen": "-",
    "a question mark": "?", "an exclamation mark": "!", "an underscore": "_", "a slash": "/",
    "an equals sign": "=", "an asterisk": "*", "a '#'": "#", "an apostrophe": "'",
    "a double quotation mark": '"', "an opening parenthesis": "(", "an opening brace": "{",
    "an opening square bracket": "[", "a closing parenthesis": ")", "a closing brace": "}",
    "a closing square bracket": "]", "a percent sign": "%", "an '@'": "@", "a plus sign": "+",
    "a '<'": "<", "a '>'": ">", "a backslash": "\\", "a dollar sign": "$", "a '|'": "|",
}  # fmt: skip
LISTED = {
    "a blank line": "\n\n|\n\n\n",
    "two or more spaces": "  |    ",
    "a line break or indentation": "\n|\n\n|\n\n\n|  |    ",
    "a single letter": " a| x|x| y|y|X",
    "letters with accents": " über| señor|ça|Élan",
    "Cyrillic letters": " слово|дом",
    "Greek letters": "αβ| γδ",
    "Chinese characters": "日本|東京",
    "a single digit": "3|7| 8",
    "a number of several digits": "12|845| 1999|2024",
    "a year": " 1999|2024",
    "several signs together": "):|))|...|==|//",
    "an article": " the| THE| a| an",
    "a preposition": " of| under| with",
    "a personal pronoun": " you| they| him",
    "a possessive": " my| your| their",
    "a conjunction": " and| or| but| nor",
    "a form of 'be', 'have' or 'do'": " is| are| has",
    "a modal verb": " can| could| must",
    "a question word": " who| which| why",
    "a negation": " not|Not| never|NEVER| nor|n't",
    "a demonstrative": " this| these| those",
    "a number word": " two| seven| hundred",
    "a quantity word": " some| many| few",
    "a month or weekday": " March| Monday| April",
    "a keyword of another programming language": " var| const| enum",
    "a Python keyword": " with| and| or| is| not| def| return| lambda",
}


def members() -> dict[str, set[str]]:
    """The tokens of every class."""
    signs = {t for t in VOCABULARY if t.strip() and set(t.strip()) <= set(SIGNS)}
    latin = {t for t in VOCABULARY if LATIN.fullmatch(t)}
    capital = {t for t in latin if t.strip()[0].isupper()}
    return {
        **{kind: {t for t in VOCABULARY if KIND_OF[t] == kind} for kind in KINDS},
        **{phrase: set(own.split("|")) for phrase, own in LISTED.items()},
        **{phrase: {t for t in signs if c in t} for phrase, c in CHARACTERS.items()},
        **{f"an ending '-{end}'": {t for t in latin if t.lower().endswith(end)} for end in ENDINGS},
        "letters": latin,
        "the beginning of a word": {t for t in latin if t[0] == " "},
        "letters that begin with a capital": capital,
        "punctuation or a sign": signs,
        "a bracket": {t for t in signs if set(t) & set("()[]{}")},
    }


EXCERPTS, LENGTH = 600, 64


def made_texts() -> np.ndarray:
    """int32 `[excerpts, tokens]`: all kinds are as frequent, and after each token the same few."""
    rng = np.random.default_rng(0)
    by_kind = [[i for i, t in enumerate(VOCABULARY) if KIND_OF[t] == kind] for kind in KINDS]
    after = [[rng.choice(own, 2) for own in by_kind] for _ in VOCABULARY]
    ids = np.empty((EXCERPTS, LENGTH), np.int32)
    ids[:, 0] = rng.integers(0, len(VOCABULARY), EXCERPTS)
    for excerpt, t in itertools.product(range(EXCERPTS), range(1, LENGTH)):
        ids[excerpt, t] = rng.choice(after[ids[excerpt, t - 1]][rng.integers(len(KINDS))])
    # Every other text says something three times.
    ids[::2, 32:48] = ids[::2, 48:] = ids[::2, 16:32]
    return ids


class Places:
    """What is around every token, `[excerpts, tokens]` each; "" for no kind."""

    def __init__(self, ids: np.ndarray) -> None:
        self.kind = np.array([[KIND_OF[VOCABULARY[i]] for i in own] for own in ids])
        self.before = np.full(ids.shape, "", self.kind.dtype)
        self.line, self.again = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        self.seen, self.depth, self.quotes = (np.zeros(ids.shape, int) for _ in range(3))
        for e, own in enumerate(ids.tolist()):
            texts = [VOCABULARY[i] for i in own]
            depth = 0
            for t in range(LENGTH):
                lead = self.kind[e, :t].tolist()
                while lead and lead[-1] == "white space":
                    lead.pop()
                self.line[e, t] = lead[-1:] == ["a line break"]
                if t and not self.line[e, t]:
                    self.before[e, t] = self.kind[e, t - 1]
                self.seen[e, t] = own[:t].count(own[t])
                earlier = [j for j in range(t - 1) if own[j] == own[t - 1]]
                self.again[e, t] = bool(earlier) and own[earlier[-1] + 1] == own[t]
                self.depth[e, t] = depth
                for c in texts[t]:
                    depth += (c in "([{") - (c in ")]}")
                depth = max(depth, 0)
                self.quotes[e, t] = "".join(texts[:t]).count('"')


def situations(at: Places) -> dict[str, np.ndarray]:
    """Where each situation holds, whatever the token's kind: by the words behind "any token"."""
    place = np.broadcast_to(np.arange(LENGTH), at.kind.shape)
    eighth = place * 8 // LENGTH
    names = ("second", "third", "fourth", "fifth", "sixth", "seventh", "last")
    return {
        **{
            f"after {kind}" + " within a line" * (kind == "white space"): at.before == kind
            for kind in KINDS
            if kind != "a line break"  # a line starts there
        },
        "at the start of a line": at.line,
        "that ARE new in the excerpt": at.seen == 0,
        "for the second time in the excerpt": at.seen == 1,
        "that HAVE appeared before in the excerpt": at.seen > 0,
        "that REPEAT what last followed the token before IT": at.again,
        "at the very start of the excerpt": place == SKIP,
        "in the first eighth of the excerpt": eighth == 0,
        "in the first half of the excerpt": eighth < 4,
        **{
            f"in the {name} eighth of the excerpt": eighth == number
            for number, name in enumerate(names, start=1)
        },
        "inside brackets": (at.depth > 0) & (at.kind != "a closing bracket"),
        "inside double quotation marks": at.quotes % 2 == 1,
    }


SINGULAR = {"ARE": "is", "HAVE": "has", "REPEAT": "repeats", "IT": "it"}
PLURAL = {"ARE": "are", "HAVE": "have", "REPEAT": "repeat", "IT": "them"}


def worded(own: str, situation: str) -> str:
    forms = PLURAL if "letters" in own else SINGULAR
    return f"{own} {re.sub('[A-Z]{2,}', lambda m: forms[m[0]], situation)}"


# What holds nowhere: what closes brackets stands outside of them. Two forms of `features.py` hold
# nowhere either, and so have no phrase: behind a line break a line starts, which is said instead;
# and nothing stands before a token only where a sweep counts the first one.
NOWHERE = {"a closing bracket inside brackets"}


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Texts, and where each phrase holds, bool `[excerpts, tokens]`."""
    ids = made_texts()
    at = Places(ids)
    held: dict[str, np.ndarray] = {}
    after = np.zeros((EXCERPTS, LENGTH), bool)
    for phrase, own in members().items():
        held[phrase] = np.isin(ids, [VOCABULARY.index(token) for token in own])
        after = after.copy()
        after[:, 1:] = held[phrase][:, :-1]
        held[f"any token after {phrase}"] = after
    for situation, where in situations(at).items():
        held[worded("any token", situation)] = where
        for kind in KINDS:
            held[worded(kind, situation)] = where & (at.kind == kind)
    return ids, {phrase: where for phrase, where in held.items() if phrase not in NOWHERE}


@pytest.fixture(scope="module")
def run(planted, tmp_path_factory) -> Run:
    ids, held = planted
    acts = 2 * np.stack(list(held.values()), axis=-1).astype(np.float32)
    acts += 0.1 * np.random.default_rng(1).standard_normal(acts.shape, dtype=np.float32)
    words = [token.encode() for token in VOCABULARY]
    out: Path = tmp_path_factory.mktemp("all") / "run"
    return folded_run(out, ids, acts, words, rows=20_000, kinds=TokenKinds(words))


def test_rules_speak_of_all_of_this_and_of_words_alone_besides(run, planted) -> None:
    _, held = planted
    features = Features(run, run.tables.rows(run.excerpts))
    others = re.compile(
        r"(forms of the word|the letter|any token after) ['\"]|'\w+' at the beginning of a word"
    )
    found = {phrase for phrase in features.phrases[: features.wide] if not others.match(phrase)}
    assert found == set(held)


def test_each_is_found_and_worded(run, planted) -> None:
    _, held = planted
    [rows] = explain_by_rules(run)
    assert [row.data[0]["term"] for row in rows] == list(held)
    # And it is all that is said, where the neuron fires often enough to be told from noise.
    texts = {phrase: row.text for phrase, row in zip(held, rows, strict=True)}
    assert sum(text == phrase for phrase, text in texts.items()) > 0.95 * len(texts)


def test_each_holds_where_it_is_said_to(run, planted) -> None:
    _, held = planted
    features = Features(run, run.tables.rows(run.excerpts))
    chosen = np.array([[features.named(phrase)] for phrase in held], np.int32)
    every = np.arange(EXCERPTS, dtype=np.int32)[None].repeat(len(held), axis=0)
    ones = np.ones(chosen.shape)
    said = predict(
        chosen, ones, np.zeros(len(held)), every, features.keys, features.starts, features.members
    )
    for own, where in zip(said, held.values(), strict=True):
        np.testing.assert_array_equal(own > 0, where[:, SKIP:])
