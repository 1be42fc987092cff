"""Results as a notebook shows them: nothing of a text is taken for HTML."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.notebook import number_text, table_html, token_text, tokens_html
from fastexplain.records import Exemplar, NeuronId, NeuronRecord, SignClass, Statistics
from fastexplain.results import Scores, StoredExplanation
from fastexplain.subject.activations import Activations

HOSTILE = ["<script>alert(1)</script>", "&amp;", '"><img src=x onerror=y>', "'", "</span>"]


class Reader(HTMLParser):
    """What a browser makes of HTML: its tags, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert all(name in ("class", "dir", "style", "title") for name, _ in attrs)
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def record(tokens: list[str], skip: int = 0) -> NeuronRecord:
    acts = np.linspace(-1, 2, len(tokens)).astype(np.float32)
    one = Exemplar(3, np.arange(len(tokens)), tokens, acts)
    numbers = [0.5, 0.25, 1.0, 3.0, 0.4, 0.6, -1.0, 2.0]
    statistics = Statistics(64, *numbers, *(np.zeros(1) for _ in range(3)))
    return NeuronRecord(NeuronId(5, 131), skip, [one] * 12, [one], [], statistics)


def test_a_sign_class_colours_its_own_tokens_alone() -> None:
    [one] = record([HOSTILE[0], " b", " c"]).bottom  # -1, 0.5, 2
    members = [np.array([True, False, True])]
    found = SignClass("+-", 2, 0.25, -0.5, 0.1, 1.0, -2.0, [one], members)
    html = found._repr_html_()
    read = Reader(html)
    text = "".join(read.texts)
    assert "+-" in text and "25.0% of the tokens" in text and "farthest from 0 -2" in text
    assert HOSTILE[0] in text and "script" not in read.tags
    assert html.count("background:") == 2
    empty = SignClass("++", 0, 0.0, np.nan, np.nan, np.nan, 0.0, [], [])
    assert "mean \u2013" in "".join(Reader(empty._repr_html_()).texts)


def test_a_neuron_shows_its_statistics_and_exemplars() -> None:
    read = Reader(record([" a", "\nb"])._repr_html_())
    text = "".join(read.texts)
    assert "neuron 5:131" in text and "from -1 to 2" in text
    assert text.count(" a⏎\nb") == 11  # ten top ones and the bottom one
    assert "random" not in text and "bottom" in text and "2.00" in text and "-1.00" in text


def test_hostile_tokens_are_text() -> None:
    units = [NeuronId(0, index) for index in range(11)]
    values = np.ones((len(HOSTILE), 11), np.float32)
    shown = Activations(HOSTILE, np.arange(len(HOSTILE)), units, values)._repr_html_()
    for html in (record(HOSTILE)._repr_html_(), shown, table_html(HOSTILE[0], HOSTILE, [HOSTILE])):
        read = Reader(html)
        assert not {"script", "img"} & set(read.tags)
        assert "".join(HOSTILE) in "".join(read.texts)
    assert "and 1 more" in shown


@given(st.lists(st.text(), min_size=1, max_size=5))
@settings(derandomize=True)
def test_any_text_reads_back_as_it_was(tokens: list[str]) -> None:
    read = Reader(tokens_html(tokens, np.zeros(len(tokens)), 0.0, 0.0))
    assert read.tags == ["span"] * (len(tokens) + 1)
    assert "".join(read.texts) == "".join(map(token_text, tokens))


@given(st.text(alphabet=st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Lu"])))
@settings(derandomize=True)
def test_nothing_in_a_token_steers_the_text_around_it(token: str) -> None:
    shown = token_text(token)
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown
    )
    assert shown == shown.encode().decode() and shown.count("\n") == token.count("\n")


def test_a_long_token_is_cut_between_characters() -> None:
    assert token_text("\U0001f600" * 10_000) == "\U0001f600" * 200 + "…"
    assert token_text("a" * 200) == "a" * 200


def test_colours_say_how_near_a_value_is_to_the_ends() -> None:
    values = np.array([5.0, 2.0, 1.0, 0.0, np.nan, -0.5, -4.0])
    html = tokens_html(list("abcdefg"), values, -1.0, 2.0, skip=1)
    found = re.findall(
        r'class="(token[ a-z]*)" style="unicode-bidi:isolate;?([^"]*)" title="(.*?)"', html
    )
    line, black = ";text-decoration:underline dotted", ";color:#000"
    solid = ";text-decoration:underline solid"
    assert found == [
        ("token uncounted", "opacity:0.65", "5, not counted"),
        (
            "token raised",
            f"background:rgba(255,140,0,1.000);border-radius:2px{black}{solid} 3.0px",
            "2",
        ),
        (
            "token raised",
            f"background:rgba(255,140,0,0.500);border-radius:2px{solid} 2.0px",
            "1",
        ),
        ("token", "", "0"),
        ("token", "", "\u2013"),
        (
            "token below marked",
            f"background:rgba(30,144,255,0.500);border-radius:2px{line}",
            "-0.5",
        ),
        (
            "token below marked",
            f"background:rgba(30,144,255,1.000);border-radius:2px{black}{line}",
            "-4",
        ),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (0.123456, "0.123"), (12.0, "12"), (999.6, "1000"),
     (-0.00012345, "-0.000123"), (12345.6, "12,346"), (-1000.0, "-1,000"),
     (1e-9, "1e-09"), (np.inf, "\u2013"), (np.nan, "\u2013")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number_text(value) == text


def explanation(**changes: Any) -> StoredExplanation:
    by_lookup = StoredExplanation(
        NeuronId(5, 131), "lookup", "lookup", "lookup-3",
        "' if' 0.15, '.' after ' self' 0.12; else 0",
        data=[
            {"token": " if", "previous": None, "ids": [1], "mean": 0.15, "count": 5},
            {"token": ".", "previous": " self", "ids": [2, 3], "mean": 0.12, "count": 5},
        ],
        parameters={"default": 0.0},
        scores=Scores(0.25, 0.5, None, 5, 5, low=0.4, high=0.6),
        text_scores=Scores(None, 0.125, None, 5, 4, reason="few tokens"),
        simulator="lookup",
    )  # fmt: skip
    return dataclasses.replace(by_lookup, **changes)


def test_an_explanation_shows_its_text_its_tokens_and_its_scores() -> None:
    html = explanation()._repr_html_()
    text = "".join(Reader(html).texts)
    assert text.startswith("neuron 5:131, explained by lookup' if' 0.15, '.' after ' self' 0.12")
    assert " if 0.15" in text and ". after  self 0.12" in text
    assert "of the text 0.12 on top and random, undefined on random, by 4 + 5 excerpts, few" in text
    assert "of the whole table 0.50 (0.40 to 0.60) on top and random, 0.25 on random" in text
    assert "rgba(255,140,0,1.000)" in html and "rgba(255,140,0,0.800)" in html
    by_model = explanation(method="model", model="m<b>", data={}, text_scores=None, simulator="s")
    text = "".join(Reader(by_model._repr_html_()).texts)
    assert "explained by m<b>" in text and "simulated by s 0.50 (" in text
    failed = explanation(text=None, failure="<i>no</i>", scores=None, text_scores=None, data=[])
    text = "".join(Reader(failed._repr_html_()).texts)
    assert "failed: <i>no</i>" in text and text.endswith("not scored")


def test_a_hostile_explanation_is_text() -> None:
    hostile = "".join(HOSTILE) + "\x1b[31m\u202e"
    data = [{"token": hostile, "previous": hostile, "mean": 1.0}, "<b>", {"term": "<b>"}]
    row = explanation(text=hostile, model=hostile, data=data, simulator=hostile, method="model")
    read = Reader(row._repr_html_())
    assert not {"script", "img"} & set(read.tags) and "".join(HOSTILE) in "".join(read.texts)
    assert not re.search("[\x1b\u202e]", "".join(read.texts))


def test_an_exemplar_shows_itself_by_its_own_extremes() -> None:
    html = record([" a", "b", "c"]).top[0]._repr_html_()
    assert "".join(Reader(html).texts) == "excerpt 3\u2003 abc"
    assert "rgba(255,140,0,1.000)" in html and "rgba(30,144,255,1.000)" in html
