"""Results as a notebook shows them: nothing of a text is taken for HTML."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.notebook import table_html, tokens_html
from fastexplain.records import Exemplar, NeuronId, NeuronRecord, Statistics
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
        assert all(name in ("style", "title") for name, _ in attrs)
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


def test_a_neuron_shows_its_statistics_and_exemplars() -> None:
    read = Reader(record([" a", "\nb"])._repr_html_())
    text = "".join(read.texts)
    assert "neuron 5:131" in text and "from -1 to 2" in text
    assert text.count(" a⏎b") == 11  # ten top ones and the bottom one
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
def test_any_text_reads_back_as_it_was(tokens: list[str]) -> None:
    read = Reader(tokens_html(tokens, np.zeros(len(tokens)), 0.0, 0.0))
    assert read.tags == ["span"] * (len(tokens) + 1)
    visible = "".join(tokens).replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")
    assert "".join(read.texts) == visible


def test_colours_say_how_near_a_value_is_to_the_ends() -> None:
    values = np.array([5.0, 2.0, 1.0, 0.0, np.nan, -0.5, -4.0])
    html = tokens_html(list("abcdefg"), values, -1.0, 2.0, skip=1)
    styles = [part.split('"')[0] for part in html.split('style="')[2:]]
    assert styles == [
        "opacity:0.4",
        "background:rgba(255,140,0,1.00)",
        "background:rgba(255,140,0,0.50)",
        "background:rgba(30,144,255,0.00)",
        "background:rgba(30,144,255,0.00)",
        "background:rgba(30,144,255,0.50)",
        "background:rgba(30,144,255,1.00)",
    ]
