"""Answers in JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from viewing import asking, post, serving

from fastexplain import Run
from fastexplain.explainers.lookup import store_lookup
from fastexplain.explainers.rules import store_rules
from fastexplain.viewer.answers import JSONAnswer

_NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
_DATA = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_DATA)
def test_an_answer_is_the_data(data: Any) -> None:
    answer = JSONAnswer(data)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(bytes(answer.body)) == data


@given(st.text(st.characters(), max_size=20))
def test_halves_of_characters_arrive_as_they_are(text: str) -> None:
    assert json.loads(bytes(JSONAnswer({"error": f"{text}\ud83d"}).body)) == {
        "error": f"{text}\ud83d"
    }


def test_what_json_does_not_have_is_no_answer() -> None:
    with pytest.raises(TypeError):
        JSONAnswer({"a": object()})


def test_half_of_a_character_is_named_in_the_line_that_refuses_it(run: Run) -> None:
    answer = post(run, "try", {"page": "one", "neuron": "\ud800", "text": "a"}, 400)
    assert "'\ud800' does not name a neuron" in answer["error"]


def test_a_number_that_is_not_known_is_null_before_it_is_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN would be written as null too, unnoticed; so each answer is written strictly here."""
    written: list[str] = []
    render = JSONAnswer.render

    def strict(answer: JSONAnswer, content: Any) -> bytes:
        written.append(json.dumps(content, allow_nan=False))
        return render(answer, content)

    monkeypatch.setattr(JSONAnswer, "render", strict)
    store_lookup(run)
    store_rules(run)
    neurons = [f"{kind}/0:{unit}" for kind in ("neuron", "similar") for unit in range(12)]
    with serving(run) as address:
        ask = asking(address)
        for path in ("maps", "overview", "search?q=a", "glance/0:1", "baselines/0:1", *neurons):
            assert ask(path) in map(json.loads, written), path
