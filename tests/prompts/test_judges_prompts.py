"""The judges' prompts, and how their answers are read."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastexplain.errors import LLMError
from fastexplain.llm.requests import Answer
from fastexplain.prompts import judges
from fastexplain.prompts.lines import escape

TOKENS = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.sampled_from(["<", ">", "<<", ">>", " a", "\n", "\\", "<start>", "<|im_end|>", "x<"]),
    ),
    max_size=12,
)
TEXTS = ["one\n", "two", "three"]


def answer(text, finish="stop"):
    return Answer(text, finish)


@given(TOKENS, st.randoms(use_true_random=False))
@example(["<", "<", "<"], None)
def test_marks_stand_around_the_marked_tokens_and_nowhere_else(tokens, random):
    marks = [random is None or random.random() < 0.5 for _ in tokens]
    text = judges.marked(tokens, marks)
    assert "\n" not in text and "\t" not in text
    assert text.count("<<") == text.count(">>")
    assert not re.search("<{3}|>{3}|<<>>.", text.replace("<<>>", ""))
    shown = re.sub("<<(.*?)>>", lambda run: run[1], text)
    # Without the marks it is the text, where only what looks like marks is escaped further.
    unmarked = judges.marked(tokens, [False] * len(tokens))
    assert undone(shown) == undone(unmarked) == undone(judges.plain(tokens))
    inside = "".join(re.findall("<<(.*?)>>", text))
    assert undone(inside) == undone("".join(escape(run) for run in runs(tokens, marks)))


def runs(tokens, marks):
    """Adjacent tokens that are marked, joined."""
    result, before = [], False
    for token, mark in zip(tokens, marks, strict=True):
        if mark and before:
            result[-1] += token
        elif mark:
            result.append(token)
        before = mark
    return result


def undone(text):
    return re.sub(r"\\x3([ce])", lambda found: "<" if found[1] == "c" else ">", text)


def test_a_question_has_each_text_on_a_line_of_its_own_and_the_explanation_before():
    chat = judges.detection("birds\nof prey", [judges.plain([t]) for t in TEXTS], held=True)
    asked = chat.messages[-1]["content"]
    assert asked == (
        "The neuron reacts to: birds\\nof prey\n\nText 1: one\\n\nText 2: two\nText 3: three"
    )
    assert chat.schema["required"] == ["1", "2", "3"]
    assert judges.detection("x", TEXTS, held=False).schema is None
    assert judges.intruder(TEXTS, held=True).messages[-1]["content"].startswith("Text 1: one")
    assert chat.max_tokens > len(json.dumps({str(i): "yes" for i in range(1, 4)}, indent=1))


@pytest.mark.parametrize(
    "chat",
    [judges.detection("x", TEXTS, held=True), judges.fuzzing("x", TEXTS, held=True)],
    ids=["detection", "fuzzing"],
)
def test_the_examples_are_answered_in_the_form_that_is_read(chat):
    answers = [m["content"] for m in chat.messages if m["role"] == "assistant"]
    questions = [m["content"] for m in chat.messages if m["role"] == "user"]
    said = []
    for asked, text in zip(questions, answers, strict=False):
        said += judges.read_yes_or_no(answer(text), asked.count("\nText "))
    assert len(answers) >= 2 and 0.3 < sum(said) / len(said) < 0.7


def test_the_intruders_of_the_examples_are_read():
    chat = judges.intruder(TEXTS, held=True)
    answers = [m["content"] for m in chat.messages if m["role"] == "assistant"]
    assert [judges.read_intruder(answer(text), 5) for text in answers] == [3, 2]


WAYS = [
    lambda found: json.dumps(found),
    lambda found: json.dumps(found, indent=2),
    lambda found: f"```json\n{json.dumps(found)}\n```",
    lambda found: f"Here it is: {json.dumps(found)} That's all.",
]


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.sampled_from(WAYS), st.integers(0, 3))
def test_what_is_said_of_each_text_is_read_by_its_number(said, way, form):
    words = [("yes", "no"), (" Yes", "NO "), ("YES", "No"), (True, False)][form]
    found = {str(i): words[0 if yes else 1] for i, yes in enumerate(said, start=1)}
    assert judges.read_yes_or_no(answer(way(found)), len(said)) == said
    backwards = dict(reversed(found.items()))
    assert judges.read_yes_or_no(answer(way(backwards)), len(said)) == said


@given(st.one_of(st.text(), st.text('{}":,123yesno ', max_size=40)), st.integers(1, 3))
def test_any_other_answer_fails_by_name(text, count):
    for read in (judges.read_yes_or_no, judges.read_intruder):
        try:
            said = read(answer(text), count)
        except LLMError as error:
            assert "the answer" in str(error) and "\n" not in str(error)
        else:
            assert said in range(1, count + 1) if isinstance(said, int) else len(said) == count


@pytest.mark.parametrize(
    "text, finish, reason",
    [
        ("yes, no", "stop", "not a JSON object: 'yes, no'"),
        ('{"1": "yes", "2', "length", "was cut off"),
        ('{"1": "yes"}', "stop", "no yes or no for text 2"),
        ('{"1": "yes", "2": "maybe"}', "stop", "no yes or no for text 2"),
        ('{"1": "yes", "2": 1}', "stop", "no yes or no for text 2"),
        ('{"1": "yes", "2": "no", "2": "yes"}', "stop", "not a JSON object"),
        ('{"1": "yes", "2": "no", "3": "no"}', "stop", "about more than 2 texts"),
        ('{"1": "yes", "2": "no"} or {"1": "no", "2": "no"}', "stop", "not a JSON object"),
        ("", "stop", "not a JSON object: ''"),
    ],
)
def test_why_an_answer_cannot_be_read(text, finish, reason):
    with pytest.raises(LLMError, match=re.escape(reason)):
        judges.read_yes_or_no(answer(text, finish), 2)


@pytest.mark.parametrize("value", ["0", "6", '"five"', "true", "null", "1.5", "[1]"])
def test_an_intruder_that_is_none_of_the_texts_fails(value):
    with pytest.raises(LLMError, match=r"names none of the 5 texts|not a JSON object"):
        judges.read_intruder(answer(f'{{"intruder": {value}}}'), 5)


@pytest.mark.parametrize("value", ["4", '"4"', '" 4 "'])
def test_an_intruder_is_read(value):
    assert judges.read_intruder(answer(f'{{"intruder": {value}}}'), 5) == 4
