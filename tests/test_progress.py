"""Progress: a function that is called, tqdm's bar, or nothing."""

import numpy as np
import pytest

import fastexplain
from fastexplain.progress import reported


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_is_shown_unless_asked_for(progress, capsys):
    with reported(progress, "Counting", 3, "things") as report:
        report(3)
    assert capsys.readouterr() == ("", "")


def test_a_function_is_called_with_how_much_is_done(capsys):
    calls = []
    with reported(calls.append, "Counting", 3, "things", done=1) as report:
        report(2)
        report(3)
    assert calls == [2, 3] and capsys.readouterr() == ("", "")


def test_a_bar_goes_on_from_what_was_done_before(capsys):
    with reported(True, "Counting", 4, "things", done=1) as report:
        report(3)
        report(4)
    out, err = capsys.readouterr()
    assert out == "" and "Counting:  25%" in err
    assert "Counting: 100%" in err.splitlines()[-1] and "4/4" in err.splitlines()[-1]


def test_a_sweep_shows_a_bar_where_it_is_asked_for(tiny_subject, tmp_path, capsys):
    tokens = np.random.default_rng(0).integers(1, 257, (6, 64)).astype(np.int32)
    corpus = fastexplain.Corpus.from_excerpts(tokens)
    fastexplain.sweep(tiny_subject, corpus, tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    fastexplain.sweep(tiny_subject, corpus, tmp_path / "shown", progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "Sweeping: 100%" in err and "6/6" in err
