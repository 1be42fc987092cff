"""What the tokenizer puts before a text is before every excerpt: any tokens, or none."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from architectures import model_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import processors

import fastexplain
from fastexplain import Corpus, Subject
from fastexplain.errors import SubjectError
from fastexplain.subject.lead import lead_of


def putting(tokenizer, front, behind=()):
    """The tokenizer with tokens, by id, put before and behind every text."""
    # Under names of their own: in a template, "$" and ":" have a meaning.
    special = [
        {"id": f"token{i}", "ids": [i], "tokens": [tokenizer.convert_ids_to_tokens(i)]}
        for i in {*front, *behind}
    ]
    pieces = [*(f"token{i}" for i in front), "$A", *(f"token{i}" for i in behind)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=pieces, special_tokens=special
    )
    return tokenizer


def plain_activations(model, ids: list[int], layer: int) -> torch.Tensor:
    """The input of a layer's down projection when transformers itself runs these ids."""
    seen = []
    hook = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0][0])
    )
    with torch.inference_mode():
        model(torch.tensor([ids]))
    hook.remove()
    return seen[0]


token = st.integers(0, 256)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(token, max_size=4), st.lists(token, max_size=2))
@example([4, 26], [])  # "$" and ":"
@example([], [26, 4])
def test_activations_are_those_of_the_tokenizers_own_encoding(
    make_model, make_tokenizer, front: list[int], behind: list[int]
) -> None:
    subject = Subject.from_model(make_model(), putting(make_tokenizer(), front, behind), name="t")
    assert subject.lead == tuple(front)
    text = "Where the river bends"
    found = subject.activations(text, "2:*")
    plain = plain_activations(subject.model, subject.tokenizer(text)["input_ids"], 2)
    own = plain[len(front) : len(plain) - len(behind)]
    np.testing.assert_allclose(found.values, own.numpy(), rtol=1e-4, atol=1e-5)
    ids = subject.tokenizer(text)["input_ids"][: len(front) + len(found.tokens)]
    np.testing.assert_array_equal(found.values, subject.activations(ids, "2:*").values)


def test_a_lead_that_is_not_the_bos_leads_every_excerpt(make_tokenizer, tmp_path) -> None:
    """As XGLM's tokenizer puts </s> before a text, though its BOS is <s>."""
    tokenizer = putting(make_tokenizer(bos=True), [7])
    model = model_of("XGLM")
    subject = Subject.from_model(model, tokenizer, name="xglm")
    ids = np.random.default_rng(0).integers(0, 257, (3, 64)).astype(np.int32)
    run = fastexplain.sweep(subject, Corpus.from_excerpts(ids), tmp_path / "run", random=3)
    assert json.loads((run.path / "manifest.json").read_text())["subject"]["lead"] == [7]
    assert run.skip == 0
    seen = []
    hook = model.model.layers[1].fc2.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].reshape(3, 65, -1)[:, 1:])
    )
    with torch.inference_mode():
        model(torch.from_numpy(np.insert(ids, 0, 7, axis=1)).long())
    hook.remove()
    order = run.array(1, "random.ids")
    np.testing.assert_allclose(
        run.array(1, "random.activations"), seen[0][torch.from_numpy(order).long()], atol=1e-5
    )


def test_a_lead_can_be_given(make_model, make_tokenizer) -> None:
    tokenizer = putting(make_tokenizer(), [3])
    assert Subject.from_model(make_model(), tokenizer, lead=[]).lead == ()
    assert Subject.from_model(make_model(), tokenizer, lead=(5, 6)).lead == (5, 6)
    with pytest.raises(SubjectError, match="token 257 goes before every text, but 'tiny' has"):
        Subject.from_model(make_model(), tokenizer, name="tiny", lead=[257])


def test_a_lead_that_can_not_be_told_is_an_error() -> None:
    def tokenizer(_text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [1, 2, 3] if add_special_tokens else [4, 5]}

    with pytest.raises(SubjectError, match=r"can't be told: it encodes a text as \[1, 2, 3"):
        lead_of(tokenizer)
