"""What `explain` shows at its end: the best of the layers that were named, lists and rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fastexplain
from fastexplain import Subject
from fastexplain.cli.terminal import out as console
from fastexplain.finding.search import headline
from fastexplain.records import NeuronId

WIDTH = 48


@pytest.fixture(scope="module")
def explained(make_model, make_tokenizer, tmp_path_factory) -> Path:
    """A run of a tiny random subject, explained by lookup and by rules."""
    place = tmp_path_factory.mktemp("explained")
    text = place / "text.txt"
    words = Path(fastexplain.__file__).read_text()
    text.write_text(words * 3)
    subject = Subject.from_model(make_model(), make_tokenizer(), name="tiny")
    run = fastexplain.sweep(subject, fastexplain.Corpus([text], subject.tokenizer), place / "run")
    fastexplain.explain(run, "all")
    return run.path


@pytest.fixture
def shown(cli, explained, monkeypatch):
    """Neurons, scores of the text and of the table that `explain` prints, and its title."""
    monkeypatch.setattr(console, "_width", 100)
    monkeypatch.setattr("fastexplain.cli.explained._SHOWN", 20)

    def call(*names):
        code, out, err = cli("explain", explained, *names)
        assert code == 0, err
        found = re.findall(r"^ *(\d:\d+) +(-?\d\.\d\d) +(-?\d\.\d\d)? +(.*)$", out, re.MULTILINE)
        return found, next(line for line in out.splitlines() if "best of" in line)

    return call


def best(path, neurons):
    """The highest scores of texts among neurons, best first: each neuron looked at by itself."""
    found = {}
    with fastexplain.open_run(path).database(read_only=True) as database:
        for neuron in neurons:
            scores = [headline(row) for row in database.explanations(neuron)]
            if known := [score for score in scores if score is not None]:
                found[str(neuron)] = max(known)
    return sorted(found.items(), key=lambda each: -each[1])


def layer(number, indices=range(WIDTH)):
    return [NeuronId(number, index) for index in indices]


def test_a_layer_that_is_named_is_the_one_that_is_shown(shown, explained) -> None:
    found, title = shown("2:*", "2:0")
    expected = best(explained, layer(2))[:10]
    assert "The best of layer 2" in title and len(found) == 10
    assert [float(text) for _, text, *_ in found] == [
        pytest.approx(score, abs=0.006) for _, score in expected
    ]


def test_of_several_layers_each_has_its_best(shown, explained) -> None:
    found, title = shown("1-3:*")
    assert "The best of each layer" in title
    expected = [best(explained, layer(number))[0] for number in (1, 2, 3)]
    assert [(name, float(text)) for name, text, *_ in found] == [
        (name, pytest.approx(score, abs=0.006)) for name, score in expected
    ]


def test_only_neurons_that_are_named_are_shown(shown, explained, tmp_path) -> None:
    names = tmp_path / "names.txt"
    chosen = [*layer(0, range(30)), *layer(3, range(20, 45))]
    names.write_text("\n".join(map(str, chosen)))
    found, _ = shown(f"@{names}")
    assert [name for name, *_ in found] == [
        best(explained, layer(0, range(30)))[0][0],
        best(explained, layer(3, range(20, 45)))[0][0],
    ]
