"""Neurons ranked on a text: by their own distributions, whatever the text."""

from __future__ import annotations

import numpy as np
import planted
import pytest

import fastexplain
from fastexplain import Corpus, NeuronId, Run, Subject, activate, open_run
from fastexplain.errors import SubjectError, UsageError
from fastexplain.pipeline.activating import excerpts_of
from fastexplain.run.quantiles import Quantiles

TEXT = "the river walks under the old tower and the cat sees a rare bird"


def test_what_a_text_drives_comes_first_at_its_token(
    planted_run: Run, planted_subject: Subject
) -> None:
    found = activate(planted_run, TEXT, subject=planted_subject, top=2)
    assert found.tokens == ["the" if word == "a" else word for word in TEXT.split()]
    [best, _] = found.over_text
    assert best.neuron == NeuronId(0, planted.RARE) and found.tokens[best.place] == "rare"
    assert best.quantile > 0.97  # of 400 excerpts eight have it
    at_river = found.by_token[found.tokens.index("river")][0]
    assert at_river.neuron.index in (planted.RIVER_OR_STONE, planted.ALWAYS)
    assert not found.by_token[0] and found.counted == 1


@pytest.mark.parametrize("words", [2, 64, 65, 127, 128, 300])
def test_any_length_is_ranked_as_one_excerpt_after_another(
    planted_run: Run, planted_subject: Subject, words: int
) -> None:
    """Values are those of the excerpts that a sweep would see, and no token is passed over."""
    rng = np.random.default_rng(words)
    ids = rng.integers(0, planted.TOKENS, words)
    found = activate(planted_run, ids, ["0:*"], subject=planted_subject)
    values = np.stack(list(found.values.values()), axis=1)
    assert np.isnan(values[0]).all() and not np.isnan(values[1:]).any()
    starts = range(0, words - 1, 63)
    assert excerpts_of(planted_run, words) == len(starts)
    for start in starts:
        alone = planted_subject.activations(ids[start : start + 64], "0:*").values
        np.testing.assert_allclose(values[start + 1 : start + 64], alone[1:], rtol=1e-4, atol=1e-5)
    ranks = Quantiles.of(planted_run, 0).ranks(values[1:])
    order = np.sort(ranks, axis=1)[:, ::-1][:, :10]
    by_token = [[active.quantile for active in own] for own in found.by_token[1:]]
    np.testing.assert_allclose(by_token, np.minimum(order, 1), rtol=1e-5)
    best = np.sort(ranks.max(axis=0))[::-1][:10]
    over_text = [active.quantile for active in found.over_text]
    np.testing.assert_allclose(over_text, np.minimum(best, 1), rtol=1e-5)
    for active in found.over_text:
        own = values[1:, active.neuron.index]
        assert active.activation == pytest.approx(own.max())
        assert own[active.place - 1] == own.max()


def test_all_layers_are_ranked_together(tiny_subject: Subject, tmp_path) -> None:
    tokens = np.random.default_rng(0).integers(1, 257, (40, 64)).astype(np.int32)
    run = fastexplain.sweep(tiny_subject, Corpus.from_excerpts(tokens), tmp_path, layers=[1, 3])
    found = activate(run, "what drives which neuron?", top=96, subject=tiny_subject)
    assert {active.neuron for active in found.over_text} == {
        NeuronId(layer, index) for layer in (1, 3) for index in range(48)
    }
    assert all(len(own) == 96 for own in found.by_token[run.skip :])
    acts = tiny_subject.activations("what drives which neuron?", ["1:*", "3:*"])
    strongest = dict(zip(acts.units, acts.values[run.skip :].max(axis=0), strict=True))
    for active in found.over_text:
        assert active.activation == pytest.approx(strongest[active.neuron], rel=1e-4)
        largest = run.array(active.neuron.layer, "maximum")[active.neuron.index]
        assert active.of_largest == pytest.approx(active.activation / largest, rel=1e-4)
    swept = activate(run, tokens[7], top=1, subject=tiny_subject).over_text[0]
    assert swept.quantile >= 1 - 1 / 40 and swept.of_largest == pytest.approx(1, abs=1e-4)


def test_the_subject_is_loaded_and_another_is_refused(
    planted_run: Run, planted_subject: Subject, make_model, tmp_path
) -> None:
    loaded = activate(planted_run, TEXT, device="cpu")
    given = activate(planted_run, TEXT, subject=planted_subject)
    assert [a.neuron for a in loaded.over_text] == [a.neuron for a in given.over_text]
    other = Subject.from_model(make_model(), planted_subject.tokenizer)
    with pytest.raises(SubjectError, match="are not those that"):
        activate(planted_run, TEXT, subject=other)
    with pytest.raises(SubjectError, match="can't be loaded"):
        activate(planted_run, TEXT, subject=str(tmp_path / "gone"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no tokens"),
        ("cat", "has 1 of the 2 tokens it needs"),
        ("a\udc80b", "is not UTF-8"),
        ([0, 10**6], "token ids 0 to 1000000"),
        ([[1, 2], [3, 4]], "a text is a string or the token ids"),
    ],
)
def test_texts_that_are_none(planted_run, planted_subject, text, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        activate(planted_run, text, subject=planted_subject)


def test_arguments_that_make_no_sense(planted_run: Run, planted_subject: Subject) -> None:
    with pytest.raises(UsageError, match="`top` is 0"):
        activate(planted_run, TEXT, top=0, subject=planted_subject)
    with pytest.raises(UsageError, match="there is no neuron 0:999"):
        activate(planted_run, TEXT, "0:999", subject=planted_subject)


def test_values_of_very_many_neurons_are_refused(
    planted_run: Run, planted_subject: Subject, monkeypatch
) -> None:
    monkeypatch.setattr("fastexplain.pipeline.activating._MOST_FOLLOWED", 100)
    with pytest.raises(UsageError, match="120 neurons are named"):
        activate(open_run(planted_run.path), TEXT, "all", subject=planted_subject)
