"""Planted neurons: each search finds what was planted for it, and nothing else."""

from __future__ import annotations

import math
import shutil

import numpy as np
import planted
import pytest
from programmed import programmed
from transformers import GPT2LMHeadModel

import fastexplain
from fastexplain import Corpus, Run, find, load_subject, open_run
from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.finding.kinds import KINDS
from fastexplain.finding.wordings import Similes, Typos
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Measured

NOUNS = [f"n{i}x" for i in range(150)]
WORDS = [
    *NOUNS, "like", "a", "lion", "cat", "receive", "recieve", "minute", "mniute", "follow", "folow",
    "comma",
]  # fmt: skip
SIMILES = [["like", "a", "lion"], ["like", "a", "cat"]]
SLIPS = ("recieve", "mniute", "folow")


def on_repeats(text: list[str]) -> list[float]:
    seen: dict[tuple[str, str], str] = {}
    found = [0.0] * len(text)
    for i in range(2, len(text)):
        found[i] = float(seen.get((text[i - 2], text[i - 1])) == text[i])
        seen[text[i - 2], text[i - 1]] = text[i]
    return found


def on_breaks(text: list[str]) -> list[float]:
    seen: dict[tuple[str, str], str] = {}
    found = [0.0] * len(text)
    for i in range(2, len(text)):
        before = seen.get((text[i - 2], text[i - 1]))
        found[i] = float(before is not None and before != text[i])
        seen[text[i - 2], text[i - 1]] = text[i]
    return found


def hash_of(word: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(word))


PROGRAMS = {
    "repetition": on_repeats,
    "pattern-break": on_breaks,
    "seen-before": lambda text: [float(w in text[:i]) for i, w in enumerate(text)],
    "simile": lambda text: [
        float(text[max(i - 2, 0) : i + 1] in SIMILES) for i in range(len(text))
    ],
    "typo": lambda text: [float(w in SLIPS) for w in text],
    "single-token": lambda text: [float(w == "comma") for w in text],
    "position": lambda text: [float(i in (40, 41)) for i, _ in enumerate(text)],
    "nouns": lambda text: [1.0 + len(w) % 3 for w in text],
    "like": lambda text: [float(w == "like") for w in text],
    "noise": lambda text: [
        math.sin(i * 12.9 + hash_of(w)) * 43758.5 % 1 for i, w in enumerate(text)
    ],
    "never": lambda text: [-1.0] * len(text),
}
NAMES = list(PROGRAMS)


def excerpt(rng: np.random.Generator) -> list[str]:
    """Random words; a phrase that comes back, or comes back changed; comparisons; slips."""
    text = [str(word) for word in rng.choice(NOUNS, 64)]
    first, again = sorted(rng.choice(np.arange(1, 15), 2, replace=False) * 4)
    text[again : again + 3] = text[first : first + 3]
    if rng.random() < 0.5:
        text[again + 2] = str(rng.choice(NOUNS))
    for words, chance in (
        (SIMILES[0], 0.2), (SIMILES[1], 0.2), (["like", "comma"], 0.5), (["a", "lion"], 0.5),
        (["n1x", "a", "cat"], 0.5), (["receive"], 0.9),
        (["minute"], 0.9), (["follow"], 0.9), ([str(rng.choice(SLIPS))], 0.1),
        (["comma"], 0.9), (["comma"], 0.9),
    ):  # fmt: skip
        if rng.random() < chance:
            place = int(rng.integers(1, 60))
            text[place : place + len(words)] = words
    return text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    rng = np.random.default_rng(0)
    number = {word: i for i, word in enumerate(WORDS)}
    tokens = np.array([[number[w] for w in excerpt(rng)] for _ in range(400)], np.int32)
    subject = programmed(
        WORDS, lambda text: np.array([own(text) for own in PROGRAMS.values()]), len(PROGRAMS)
    )
    out = tmp_path_factory.mktemp("programmed") / "run"
    return fastexplain.sweep(subject, Corpus.from_excerpts(tokens), out, batch_size=50)


ALSO = {"single-token": ["like"], "seen-before": ["repetition"]}
"""What is of a kind as well: all that repeats was seen."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in PROGRAMS])
def test_each_search_finds_what_was_planted_and_nothing_else(run: Run, kind: str) -> None:
    hits = find(run, kind)
    found = {NAMES[hit.neuron.index] for hit in hits}
    expected = {kind, *ALSO.get(kind, ())}
    assert found == expected, [(NAMES[h.neuron.index], h.value, h.details) for h in hits]
    assert all(hit.evidence and hit.value for hit in hits)
    planted_first = next(hit for hit in hits if NAMES[hit.neuron.index] == kind)
    [best, *_] = planted_first.evidence
    words = [word.strip() for word in best.tokens]
    assert PROGRAMS[kind](words)[best.place] > 0


def test_text_marks_are_on_the_tokens_of_the_words(run: Run) -> None:
    number = {word: i for i, word in enumerate(WORDS)}
    text = ["n1x", "like", "a", "lion", "mniute", "like", "comma", "minute"]
    tokens = np.array([[number[word] for word in text]])
    assert np.flatnonzero(Similes(run)(tokens)[0]).tolist() == [1, 2, 3]
    assert np.flatnonzero(Typos(run)(tokens)[0]).tolist() == [4]


def test_beyond_lookup_compares_what_is_scored(run: Run, tmp_path) -> None:
    run = open_run(shutil.copytree(run.path, tmp_path / "run"))
    with pytest.raises(UsageError, match="no scores of other explanations than lookup's"):
        find(run, "beyond-lookup")
    store_lookup(run)
    neuron = NeuronId(0, NAMES.index("noise"))
    with run.database() as database:
        row = ExplanationRow(neuron, "model", "m", "1", "the sum of lengths")
        [key] = database.add_explanations([row])
        measured = [Measured("top_and_random", "correlation", 0.9, 10)]
        measured += [
            Measured(split, "correlation", None, 5) for split in ("random_only", "top_only")
        ]
        database.add_scores("correlation", "m", "1", {key: measured})
    [hit] = find(run, "beyond-lookup")
    assert hit.neuron == neuron and hit.explanation == "the sum of lengths" and hit.score == 0.9
    assert hit.details["other"] == 0.9 and hit.value > 0.6


def test_a_search_goes_by_neurons_condition_and_limit(run: Run) -> None:
    assert not find(run, "seen-before", ["0:3-9"])
    index = NAMES.index("seen-before")
    assert [hit.neuron.index for hit in find(run, "seen-before", [f"0:{index}"])] == [index]
    assert not find(run, "seen-before", where=f"index > {index}")
    assert len(find(run, "single-token", limit=1)) == 1
    done: list[int] = []
    find(run, "position", progress=done.append)
    assert done == [1]


def test_what_a_search_lacks_is_said(run: Run, planted_subject, tmp_path) -> None:
    with pytest.raises(UsageError, match="there is no kind 'x'; choose from pattern-break"):
        find(run, "x")
    with pytest.raises(UsageError, match="`limit` is 0"):
        find(run, "position", limit=0)
    tokens = np.random.default_rng(0).integers(0, planted.TOKENS, (30, 64)).astype(np.int32)
    bare = fastexplain.sweep(
        planted_subject, Corpus.from_excerpts(tokens), tmp_path / "bare", random=0, table_bytes=0
    )
    with pytest.raises(UsageError, match="swept without tables"):
        find(bare, "single-token")
    with pytest.raises(UsageError, match="has 0 random excerpts"):
        find(bare, "position")


def test_a_real_models_neurons_of_single_words(planted_run: Run) -> None:
    hits = find(planted_run, "single-token")
    assert {hit.neuron.index: hit.details["token"] for hit in hits} == {
        planted.CAT: "cat", planted.RARE: "rare",
    }  # fmt: skip


def test_neurons_that_fire_for_one_token_and_write_another(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fastexplain.finding.writing.DEVIATIONS", 4)  # of 22 words none is at 6
    path = planted.write_planted(tmp_path / "model")
    model = GPT2LMHeadModel.from_pretrained(path)
    out = model.transformer.h[0].mlp.c_proj.weight.data
    for neuron, word in (
        (planted.CAT, "river"),
        (planted.RARE, "rare"),  # writes what it fires for
        (planted.RIVER_OR_STONE, "cat"),  # fires for two
    ):
        out[neuron, planted.WORDS.index(word)] = 1
    model.save_pretrained(path)
    subject = load_subject(str(path))
    tokens = np.random.default_rng(0).integers(0, planted.TOKENS, (60, 64)).astype(np.int32)
    run = fastexplain.sweep(subject, Corpus.from_excerpts(tokens), tmp_path / "run")
    with pytest.raises(UsageError, match="run: fastexplain weights"):
        find(run, "writes-another")
    fastexplain.weights(run, subject=subject)
    [hit] = find(run, "writes-another")
    assert hit.neuron == NeuronId(0, planted.CAT) and hit.details["fires for"] == "cat"
    assert str(hit.details["writes"]).startswith("'river'") and hit.details["share"] == 1
