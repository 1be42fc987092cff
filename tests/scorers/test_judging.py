"""Scorers that ask a model about excerpts: what they ask, what they make of the answers."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import re
import zlib

import numpy as np
import pytest

from fastexplain.errors import BudgetError, Deferred, LLMError, UnusableError
from fastexplain.ledger.recorded import Recorded
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import StoredConnection
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Capabilities
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.run.database import Database
from fastexplain.run.splits import EXPLANATION_RANKS
from fastexplain.scorers.accuracy import MEASURES
from fastexplain.scorers.detection import Detection
from fastexplain.scorers.fuzzing import Fuzzing, moved
from fastexplain.scorers.intruder import Intruder
from fastexplain.scorers.judging import SHOWN, SILENT, held_out, marks

SKIP, TOKENS = 1, 16
WORDS = ["stone", "lake", "walk", "under", "seven", "blue", "often", "table"]
ALL = [Detection, Fuzzing, Intruder]
YES_AND_NO = [Detection, Fuzzing]


class Speaking(Connection):
    """Answers by a rule of (explanation, text), or of the text of an intruder's question."""

    model, address, concurrency = "judge", "here", 4

    def __init__(self, rule, *, schema=None, fail=()):
        self.rule, self.fail = rule, list(fail)
        self.capabilities = Capabilities(chat=True, schema=schema)
        self.asked = []

    async def probe(self):
        return self.capabilities

    async def ask(self, request):
        self.asked.append(request)
        await asyncio.sleep(0)
        if self.fail:
            failure = self.fail.pop(0)
            if isinstance(failure, str):
                return Answer(failure, "stop")
            if failure is not None:
                raise failure
        explanation, texts = shown(request)
        said = [self.rule(explanation, text) for text in texts]
        if explanation:
            found = {str(i): "yes" if yes else "no" for i, yes in enumerate(said, start=1)}
        else:
            found = {"intruder": said.index(False) + 1}
        return Answer(json.dumps(found), "stop")


def shown(request):
    """The explanation and the texts of a question."""
    content = request.messages[-1]["content"]
    said = re.match(r"The neuron reacts to: (.*)\n", content)
    return said and said[1], re.findall(r"^Text \d+: (.*)$", content, re.MULTILINE)


def knows(explanation, text):
    """Whether all marked tokens are the zebra, or where none is marked, whether there is one."""
    marked = re.findall("<<(.*?)>>", text)
    return all(part.strip(" zebra") == "" for part in marked) if marked else "zebra" in text


def guesses(explanation, text):
    return zlib.crc32(f"{explanation} {text}".encode()) % 2 == 0


def exemplar(excerpt, zebras, strength=1.0):
    """An excerpt of words with zebras at some places, where the neuron reacts."""
    rng = np.random.default_rng(excerpt)
    tokens = [f" {WORDS[i]}" for i in rng.integers(len(WORDS), size=TOKENS)]
    activations = rng.uniform(-0.5, 0.05, TOKENS)
    for place in rng.choice(np.arange(SKIP, TOKENS), zebras, replace=False):
        tokens[place], activations[place] = " zebra", strength
    activations[0] = 99.0  # not counted
    return Exemplar(excerpt, np.zeros(TOKENS, np.int32), tokens, np.float32(activations))


def record(index=0, top=20, random=25, loud=0):
    """A neuron; on the first `loud` of the random excerpts it reacts too, but less."""
    first = 1000 * (index + 1)
    return NeuronRecord(
        NeuronId(0, index),
        SKIP,
        [exemplar(first + rank, 1 + rank % 3, 2 - rank / 40) for rank in range(top)],
        [],
        [exemplar(first + 500 + i, int(i < loud), 0.5) for i in range(random)],
        None,
    )


def scored(make, connection, about, explanation="zebras"):
    scorer = make(connection)
    return asyncio.run(scorer.score(about, explanation, scorer.excerpts(about)))


def by_name(measured):
    return {(m.split, m.measure): m for m in measured}


# What is asked


def test_excerpts_are_those_of_no_explanation():
    about = record()
    excerpts = [each.excerpt for each in held_out(about)]
    written_from = {about.top[rank].excerpt for rank in EXPLANATION_RANKS}
    assert len(excerpts) == len(set(excerpts)) == 30
    assert not written_from & set(excerpts)
    for make in ALL:
        connection = Speaking(knows)
        scored(make, connection, about)
        texts = {re.sub("<<|>>", "", t) for r in connection.asked for t in shown(r)[1]}
        for each in about.top:
            seen = "".join(each.tokens[SKIP:]) in texts
            if each.excerpt in written_from:
                assert not seen
            else:  # all are asked about, but where intruders are
                assert seen or make is Intruder


def test_an_excerpt_that_is_an_explanations_and_a_random_one_is_not_asked_about():
    about = record()
    about.random[4] = about.top[8]
    assert about.top[8].excerpt not in {each.excerpt for each in held_out(about)}


@pytest.mark.parametrize("loud", [0, 6])
def test_detection_has_as_many_of_each_quantile_as_silent_ones(loud):
    about = record(loud=loud)
    scorer = Detection(Speaking(knows))
    questions = scorer.questions("zebras", held_out(about), np.random.default_rng(0), held=False)
    assert len(questions) <= scorer.most_requests
    judged = [each for question in questions for each in question.shown]
    quantiles = [each.distance for each in judged if each.activating]
    assert sorted(quantiles) == sorted([1, 2, 3, 4, 5] * 3)
    strongest = {each.excerpt: max(each.true) for each in held_out(about)}
    bands = [[strongest[e.excerpt] for e in judged if e.distance == q] for q in range(1, 6)]
    for lower, upper in itertools.pairwise(bands):
        assert max(lower) <= min(upper)
    assert all(len(question.shown) == SHOWN for question in questions)
    others = [each for each in judged if not each.activating]
    heard = sum(e.excerpt < 1500 + loud for e in held_out(about) if not e.top)
    assert len(others) == (15 - heard) // 5 * 5
    assert all(each.distance == SILENT and strongest[each.excerpt] < 0.2 for each in others)
    assert len({each.excerpt for each in judged}) == len(judged)


def test_fuzzing_shows_each_excerpt_with_right_and_with_moved_marks_in_two_questions():
    about = record()
    questions = Fuzzing(Speaking(knows)).questions(
        "zebras", held_out(about), np.random.default_rng(0), held=False
    )
    seen = {}
    for number, question in enumerate(questions):
        texts = shown(question.chat)[1]
        assert len({each.excerpt for each in question.shown}) == len(question.shown)
        for text, each in zip(texts, question.shown, strict=True):
            seen.setdefault(each.excerpt, {})[each.activating] = number, text
    assert len(seen) == 15
    for ways in seen.values():
        assert ways[True][0] != ways[False][0]
        right, wrong = ways[True][1], ways[False][1]
        assert re.sub("<<|>>", "", right) == re.sub("<<|>>", "", wrong)
        assert set(re.findall("<<(.*?)>>", right)) <= {" zebra", " zebra zebra", " zebra" * 3}
        assert "zebra" not in "".join(re.findall("<<(.*?)>>", wrong))
    right = [each.activating for question in questions for each in question.shown]
    assert sum(right) == 15 and 7 <= sum(right[:15]) <= 8


def test_marks_are_moved_together_to_where_the_neuron_is_silent():
    rng = np.random.default_rng(0)
    for each in held_out(record()):
        if each.top:
            right, wrong = marks(each), moved(each, rng)
            assert right.sum() == wrong.sum()
            assert not (wrong & (each.true > 0.1 * each.true.max())).any()
            gaps = [np.diff(np.flatnonzero(np.tile(m, 2))).tolist() for m in (right, wrong)]
            assert sorted(gaps[0]) == sorted(gaps[1]) or right.sum() > 1
    full = held_out(record())[0]
    assert moved(dataclasses.replace(full, true=np.ones_like(full.true)), rng) is None


def test_an_intruders_question_has_four_that_belong_and_it_at_any_place():
    places, strangers = [], set()
    for index in range(40):
        about = record(index)
        questions = Intruder(Speaking(knows)).questions(
            "", held_out(about), np.random.default_rng(index), held=False
        )
        assert len(questions) == 10
        for question in questions:
            [place] = [i for i, each in enumerate(question.shown) if not each.activating]
            places.append(place)
            strangers.add(question.shown[place].excerpt)
            assert len({each.excerpt for each in question.shown}) == SHOWN
            assert all("<<" in text for text in shown(question.chat)[1])
    counts = np.bincount(places, minlength=SHOWN)
    assert counts.sum() == 400 and (abs(counts - 80) < 3 * np.sqrt(400 * 0.2 * 0.8)).all()
    assert len(strangers) == 400


@pytest.mark.parametrize("make", YES_AND_NO)
def test_the_order_leaks_nothing(make):
    """A permutation test over 400 neurons: do right excerpts stand at some places more often, or
    beside each other?"""
    excerpts, kinds = held_out(record()), []
    for index in range(400):
        scorer = make(Speaking(knows))
        questions = scorer._made(named(index), "zebras", excerpts)
        kinds.append([each.activating for question in questions for each in question.shown])
    decks = np.array(kinds).reshape(-1, 15 if make is Fuzzing else 30)

    def leaks(sample):
        """How uneven the places are, and how often neighbours are alike."""
        return np.var(sample.mean(axis=0)), np.mean(sample[:, 1:] == sample[:, :-1])

    rng = np.random.default_rng(0)
    chance = np.array([leaks(rng.permuted(decks, axis=1)) for _ in range(400)])
    uneven, alike = leaks(decks)
    assert np.mean(chance[:, 0] >= uneven) > 0.01
    middle = chance[:, 1].mean()
    assert np.mean(abs(chance[:, 1] - middle) >= abs(alike - middle)) > 0.01


def named(index):
    """The same record as another neuron's."""
    return dataclasses.replace(record(), id=NeuronId(0, index))


def test_questions_depend_on_the_neuron_and_the_version_alone():
    asked = []
    for index in (0, 0, 1):
        connection = Speaking(knows)
        scored(Detection, connection, named(index))
        asked.append(connection.asked)
    assert asked[0] == asked[1] != asked[2]


def test_an_intruder_is_asked_for_without_the_explanation():
    one, other = Speaking(knows), Speaking(knows)
    scored(Intruder, one, record(), "zebras")
    scored(Intruder, other, record(), "anything else")
    assert one.asked == other.asked


@pytest.mark.parametrize("make", ALL)
def test_a_schema_is_asked_for_where_the_server_can_be_held_to_one(make):
    free, held = Speaking(knows), Speaking(knows, schema="json_schema")
    assert scored(make, free, record()) == scored(make, held, record())
    assert all(request.schema is None for request in free.asked)
    assert all(request.schema is not None for request in held.asked)
    assert make(free).judge == ("judge", f"{make.name}-1 free")
    assert make(held).judge == ("judge", f"{make.name}-1 schema")


# What comes of it


@pytest.mark.parametrize("make", YES_AND_NO)
def test_a_judge_who_knows_scores_one(make):
    found = by_name(scored(make, Speaking(knows), record()))
    for measure in MEASURES:
        row = found["held_out", measure]
        assert row.value == 1 and row.high == 1 and row.low > 0.7 and row.reason is None, measure
        assert row.excerpts in (15, 30)
    assert [found[f"quantile_{q}", "recall"].value for q in range(1, 6)] == [1] * 5


def test_a_judge_who_knows_finds_every_intruder():
    [row] = scored(Intruder, Speaking(knows), record())
    assert (row.split, row.measure, row.value) == ("held_out", "accuracy", 1)
    assert row.low > 0.7 and row.high == 1 and 15 < row.excerpts <= 25


@pytest.mark.parametrize("make", YES_AND_NO)
def test_a_judge_who_says_yes_to_all_scores_a_half(make):
    found = by_name(scored(make, Speaking(lambda explanation, text: True), record()))
    balanced = found["held_out", "balanced_accuracy"]
    assert balanced.value == 0.5 and balanced.low < 0.5 < balanced.high
    assert found["held_out", "recall"].value == 1 and found["held_out", "specificity"].value == 0
    assert found["held_out", "f1"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize("make", YES_AND_NO)
def test_a_judge_who_says_no_to_all_has_no_precision(make):
    found = by_name(scored(make, Speaking(lambda explanation, text: False), record()))
    assert found["held_out", "precision"].value is None
    assert found["held_out", "precision"].reason == "the judge said yes to none"
    assert found["held_out", "f1"].value == 0 and found["held_out", "recall"].value == 0


@pytest.mark.parametrize("make, chance", [(Detection, 0.5), (Fuzzing, 0.5), (Intruder, 0.2)])
def test_a_judge_who_guesses_is_within_its_interval_of_chance(make, chance):
    class Guessing(Speaking):
        async def ask(self, request):
            answer = await super().ask(request)
            number = zlib.crc32(request.messages[-1]["content"].encode()) % SHOWN + 1
            return Answer(json.dumps({"intruder": number}), "stop") if make is Intruder else answer

    measure = "accuracy" if make is Intruder else "balanced_accuracy"
    rule = (lambda e, t: "walk" not in t) if make is Intruder else guesses
    rows = [
        by_name(scored(make, Guessing(rule), named(index), f"zebra {index}"))["held_out", measure]
        for index in range(60)
    ]
    covered = sum(row.low <= chance <= row.high for row in rows)
    assert covered >= 53  # 95% of 60 are 57; fewer than 53 in 2% of cases, and this is one draw
    assert np.mean([row.value for row in rows]) == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(
    "about, says",
    [
        (record(top=5), "only 3 held-out excerpts activate it, of 5 needed"),
        (record(top=0, random=0), "it is above 0 on none of its held-out excerpts"),
    ],
    ids=["few", "none"],
)
def test_with_too_few_that_activate_it_a_neuron_has_no_score_and_a_reason(make, about, says):
    connection = Speaking(knows)
    found = scored(make, connection, about)
    assert [row.measure for row in found] == list(make.measures)
    assert {(row.value, row.excerpts, row.reason) for row in found} == {(None, 0, says)}
    assert connection.asked == []


@pytest.mark.parametrize("make", [Detection, Intruder])
def test_with_too_few_silent_ones_a_neuron_has_no_score_and_a_reason(make):
    found = scored(make, Speaking(knows), record(loud=25))
    assert {row.value for row in found} == {None}
    assert {row.reason for row in found} == {"it is silent on only 0 random excerpts, of 5 needed"}


def test_without_room_for_other_marks_a_neuron_has_no_fuzzing_score_and_a_reason():
    about = record()
    for each in [*about.top, *about.random]:
        each.activations[:] = 1.0
    found = scored(Fuzzing, Speaking(knows), about)
    assert {row.reason for row in found} == {
        "only 0 excerpts that activate it have room for marks elsewhere, of 5 needed"
    }


# What goes wrong


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("failure", ["I can't say.", LLMError("refused")], ids=["text", "error"])
def test_an_answer_that_cannot_be_read_is_no_wrong_answer(make, failure):
    found = scored(make, Speaking(knows, fail=[None, failure, failure]), record())
    count = 10 if make is Intruder else 6
    says = "refused" if isinstance(failure, LLMError) else "not a JSON object"
    for row in found:
        assert row.value in (1, None)
        if row.split == "held_out":
            assert row.value == 1 and row.low < 0.85
            assert row.reason.startswith(f"2 of {count} questions have no answer: ")
            assert says in row.reason
    [whole] = [m for m in scored(make, Speaking(knows), record())
               if (m.split, m.measure) == ("held_out", "accuracy")]  # fmt: skip
    [part] = [m for m in found if (m.split, m.measure) == ("held_out", "accuracy")]
    assert part.excerpts < whole.excerpts or make is Intruder


@pytest.mark.parametrize("make", ALL)
def test_with_fewer_than_half_of_the_answers_it_fails_by_name(make):
    count = 10 if make is Intruder else 6
    failing = Speaking(knows, fail=["?"] * (count // 2 + 1))
    with pytest.raises(LLMError, match=f"{count // 2 + 1} of {count} questions have no answer"):
        scored(make, failing, record())
    assert len(failing.asked) == count
    assert scored(make, Speaking(knows, fail=["?"] * (count // 2)), record())


@pytest.mark.parametrize(
    "failures, raised",
    [
        ([Deferred("later")], Deferred),
        ([LLMError("x"), UnusableError("gone"), Deferred("later")], UnusableError),
        ([Deferred("later"), BudgetError("enough")], BudgetError),
    ],
    ids=["deferred", "unusable", "budget"],
)
def test_what_is_no_failure_of_a_question_passes_through_when_all_are_asked(failures, raised):
    connection = Speaking(knows, fail=failures)
    with pytest.raises(raised):
        scored(Detection, connection, record())
    assert len(connection.asked) == 6


def test_each_excerpts_answer_can_be_read_back_from_the_store(tmp_path):
    about = record()
    with Database(tmp_path / "run.sqlite") as database:
        responses = Responses(database)
        inner = Speaking(lambda e, t: "stone" in t, fail=[None, "?"])
        scorer = Detection(StoredConnection(inner, responses, "detection"))
        asyncio.run(scorer._connection.probe())
        measured = by_name(asyncio.run(scorer.score(about, "zebras", scorer.excerpts(about))))
        recorded = Recorded("judge", inner.capabilities, responses)
        judged = Detection(recorded).judged(about, "zebras", recorded.find)
        assert len(judged) == 30 and [each.prediction for each in judged].count(None) == 5
        texts = {e.excerpt: "".join(e.tokens[SKIP:]) for e in [*about.top, *about.random]}
        for each in judged:
            if each.prediction is not None:
                assert each.prediction == ("stone" in texts[each.excerpt])
                assert each.correct == (each.prediction == each.activating)
        right = [each.correct for each in judged if each.correct is not None]
        assert measured["held_out", "accuracy"].value == pytest.approx(np.mean(right))
        assert Detection(recorded).judged(about, "another", recorded.find)[0].prediction is None
        assert asyncio.run(recorded.ask(inner.asked[0])).text.startswith("{")
        with pytest.raises(LLMError, match="no answer of 'judge' to this is stored"):
            asyncio.run(recorded.ask(Intruder(inner)._made(about, "", held_out(about))[0].chat))
