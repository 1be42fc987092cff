"""A subject's activations on a text: what is taken, and that a sweep sees the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastexplain
from fastexplain import Corpus, NeuronId, Subject
from fastexplain.errors import UsageError

WIDTH = 48  # of each of the tiny subject's 4 layers
TEXT = "Café, <s> twice."  # the tokenizer's tokens are bytes; its BOS is text here


@pytest.fixture(scope="module", params=[False, True], ids=["without BOS", "with BOS"])
def subject(request, make_model, make_tokenizer) -> Subject:
    tokenizer = make_tokenizer(bos=True, prepend=request.param)
    return Subject.from_model(make_model(max_position_embeddings=80), tokenizer)


def test_a_text_has_a_row_for_each_of_its_tokens(subject: Subject) -> None:
    found = subject.activations(TEXT, ["2:*", "1:7"])
    assert found.tokens[:5] == ["C", "a", "f", "\ufffd", "é"]  # of two bytes, a token each
    assert len(found.tokens) == len(TEXT.encode()) == len(found.token_ids)
    assert found.values.shape == (len(found.tokens), WIDTH + 1)
    assert found.values.dtype == np.float32
    assert found.units == [*(NeuronId(2, index) for index in range(WIDTH)), NeuronId(1, 7)]


def test_a_sweep_sees_the_same(subject: Subject, tmp_path) -> None:
    tokens = np.random.default_rng(0).integers(1, 257, (6, 64)).astype(np.int32)
    run = fastexplain.sweep(subject, Corpus.from_excerpts(tokens), tmp_path / "run")
    for name in ("0:3", "3:41"):
        best = run.neuron(name).top[0]
        found = subject.activations(best.token_ids, name)
        assert found.tokens == best.tokens
        scale = np.abs(best.activations).max()
        np.testing.assert_allclose(found.values[:, 0], best.activations, atol=1e-5 * scale)


def test_ids_are_taken_in_every_form_and_one_bos_is_no_token_of_the_text(subject: Subject) -> None:
    expected = subject.activations(TEXT, "1:*")
    ids = expected.token_ids
    led = subject.tokenizer(TEXT, split_special_tokens=True, return_tensors="pt")["input_ids"]
    for form in (ids.tolist(), ids, ids.astype(np.int32), torch.from_numpy(ids), led, led[0]):
        found = subject.activations(form, "1:*")
        assert found.tokens == expected.tokens
        np.testing.assert_array_equal(found.values, expected.values)


def test_every_form_of_a_name_and_each_neuron_once(subject: Subject) -> None:
    names = ["3:1", "blocks.0.mlp.hook_post:5", NeuronId(3, 1), "blocks.2.mlp.hook_post", "2:4"]
    found = subject.activations(TEXT, names)
    assert list(map(str, found.units[:2])) == ["3:1", "0:5"]
    assert found.units[2:] == [NeuronId(2, index) for index in range(WIDTH)]
    for column, unit in ((0, "3:1"), (1, "0:5"), (6, "2:4")):
        alone = subject.activations(TEXT, NeuronId.parse(unit))
        np.testing.assert_array_equal(found.values[:, column], alone.values[:, 0])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, WIDTH - 1)), min_size=1, max_size=8))
def test_columns_are_in_the_order_of_names(make_model, make_tokenizer, places) -> None:
    subject = Subject.from_model(make_model(), make_tokenizer())
    layers: dict[int, np.ndarray] = {}
    ids = torch.tensor([[5, 6, 7]])
    subject.trunk(ids, lambda layer, acts: layers.update({layer: acts[0].numpy().copy()}))
    found = subject.activations(ids, [NeuronId(*place) for place in places])
    assert found.units == [NeuronId(*place) for place in dict.fromkeys(places)]
    for column, unit in enumerate(found.units):
        np.testing.assert_array_equal(found.values[:, column], layers[unit.layer][:, unit.index])


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("", "0:0", "the text has no tokens; give some text"),
        ([], "0:0", "the text has no tokens"),
        ([1.5, 2.0], "0:0", r"a text is a string or the token ids of one, not float64 \[2\]"),
        ([[1, 2], [3, 4]], "0:0", r"not int64 \[2, 2\]"),
        ([1, 257], "0:0", "the text has token ids 1 to 257, the subject 0 to 256; use"),
        ([1, -1], "0:0", "the text has token ids -1 to 1"),
        ("x" * 81, "0:0", "the text has 81 tokens, but the subject takes (79|80) at most; shorten"),
        ("x", [], "no neurons are named; name some, such as 5:131, or 5:"),
        ("x", "5", r"'5' does not name neurons; write layer:index, as in 5:131, or 5:\*"),
        ("x", "0-1:3", "'0-1:3' does not name neurons"),
        ("x", "4:0", "layer 4 does not exist; 'LlamaForCausalLM' has layers 0 to 3"),
        ("x", "4:*", "layer 4 does not exist"),
        ("x", "3:48", "there is no neuron 3:48; layer 3 has neurons 3:0 to 3:47"),
    ],
)
def test_what_makes_no_sense(subject: Subject, text, names, message) -> None:
    with pytest.raises(UsageError, match=message):
        subject.activations(text, names)


def test_a_subjects_name_is_what_it_was_loaded_by(make_model, make_tokenizer, tmp_path) -> None:
    model = make_model()
    assert Subject.from_model(model, make_tokenizer()).name == "LlamaForCausalLM"
    model.save_pretrained(tmp_path / "mine")
    loaded = type(model).from_pretrained(tmp_path / "mine")
    assert Subject.from_model(loaded, make_tokenizer()).name == str(tmp_path / "mine")
    assert Subject.from_model(loaded, make_tokenizer(), name="own").name == "own"
