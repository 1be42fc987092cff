"""The local engine, on the real SmolLM2 and on tiny models with awkward tokenizers."""

import asyncio
import json

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from fastexplain.errors import LLMError
from fastexplain.llm import connect
from fastexplain.prompts import simulator
from fastexplain.simulate import simulate

TOKENS = [
    " Grandma",
    " hung",
    " the",
    " copper",
    " pan",
    "\n",
    "<|im_end|>",
    "\t",
    "�",
    " 7",
    "café",
]


@pytest.fixture(scope="module")
def smollm2_local():
    try:
        return connect("smollm2", local=True)
    except LLMError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))


def plain_simulation(directory, explanation, tokens):
    """The same values the long way: all logits of the whole prompt, one token at a time."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt = simulator.prompt(explanation, tokens, 9)
    ids = tokenizer(prompt.text, return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities = model(ids).logits[0].double().softmax(-1)
    unknown = tokenizer.convert_tokens_to_ids("unknown")
    digits = tokenizer.convert_tokens_to_ids([str(d) for d in range(10)])
    asked = (ids[0] == unknown).nonzero()[:, 0][-len(tokens) :]
    values = []
    for place in asked.tolist():
        p = probabilities[place - 1, digits]
        values.append(float((p * torch.arange(10)).sum() / p.sum()))
    return np.array(values)


def test_simulated_values_are_those_of_a_plain_forward_pass(smollm2_local):
    from fastexplain.smollm2 import smollm2_directory

    expected = plain_simulation(smollm2_directory(), "things to cook with", TOKENS)
    for _ in range(2):  # the second time, the prefix comes from the cache
        values = asyncio.run(simulate("things to cook with", TOKENS, smollm2_local))
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-3)


def test_one_request_leaves_nothing_behind_for_the_next(smollm2_local):
    async def ask(explanation):
        return await simulate(explanation, TOKENS, smollm2_local)

    async def both():
        first = await ask("things to cook with")
        await ask("a much longer explanation that has nothing to do with the first one")
        return first, await ask("things to cook with")

    first, again = asyncio.run(both())
    np.testing.assert_array_equal(first, again)


def test_smollm2_has_no_token_for_ten(smollm2_local):
    assert asyncio.run(smollm2_local.largest_integer()) == 9


def test_the_same_chat_has_the_same_answer(smollm2_local):
    chat = [{"role": "user", "content": "Name a river."}]

    def ask(**options):
        return asyncio.run(smollm2_local.generate(chat, max_tokens=8, **options))

    assert ask() == ask() != ""
    assert "<|im_end|>" not in ask()
    assert ask(temperature=1.5, seed=1) == ask(temperature=1.5, seed=1)
    assert ask(temperature=1.5, seed=1) != ask(temperature=1.5, seed=2)


def tiny_model(directory, extra_tokens=(), positions=4096):
    """A random model whose tokenizer knows bytes and `extra_tokens`, which are never split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(t, normalized=False) for t in extra_tokens])
    FastTokenizer(tokenizer_object=backend).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def test_a_word_of_several_tokens_is_read_at_its_first(tmp_path):
    connection = connect(tiny_model(tmp_path), local=True)
    prompt = simulator.prompt("x", TOKENS, 9)
    read = asyncio.run(
        connection.integer_log_probabilities(prompt.text, prompt.places, shared=prompt.shared)
    )
    ids = list(prompt.text.encode())  # one token a byte, in another order
    places = [len(prompt.text[:place].encode()) for place in prompt.places]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    encoded = tokenizer(prompt.text, return_tensors="pt").input_ids
    assert encoded.shape[1] == len(ids)
    with torch.no_grad():
        every = model(encoded).logits[0].log_softmax(-1)
    digits = tokenizer.convert_tokens_to_ids([str(d) for d in range(10)])
    expected = every[[place - 1 for place in places]][:, digits]
    np.testing.assert_allclose(read, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_ten_is_used_where_it_is_one_token(tmp_path):
    connection = connect(tiny_model(tmp_path, ["10"]), local=True)
    prompt = simulator.prompt("x", ["a"], 10)

    async def ask():
        largest = await connection.largest_integer()
        return largest, await connection.integer_log_probabilities(prompt.text, prompt.places)

    largest, read = asyncio.run(ask())
    assert largest == 10
    assert read.shape == (1, 11)
    assert np.isfinite(read).all()


@pytest.mark.parametrize("joined", [["\t7"], ["\tunknown"]])
def test_a_tokenizer_that_joins_tabs_is_refused(tmp_path, joined):
    connection = connect(tiny_model(tmp_path, joined), local=True)
    with pytest.raises(LLMError, match="tab"):
        asyncio.run(simulate("x", ["a"], connection))


def test_a_model_without_a_chat_template_cannot_explain(tmp_path):
    connection = connect(tiny_model(tmp_path), local=True)
    with pytest.raises(LLMError, match="chat template"):
        asyncio.run(connection.generate([{"role": "user", "content": "x"}], max_tokens=1))


def test_a_prompt_that_is_too_long_is_an_error(tmp_path):
    connection = connect(tiny_model(tmp_path, positions=64), local=True)
    with pytest.raises(LLMError, match="too long"):
        asyncio.run(simulate("x", ["a"], connection))


@pytest.mark.parametrize("make", [lambda d: d / "absent", lambda d: d, lambda d: d / "other"])
def test_a_model_that_cannot_be_loaded_is_named(tmp_path, make):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(LLMError) as caught:
        connect(str(make(tmp_path)), local=True)
    assert str(make(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)
