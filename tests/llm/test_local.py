"""The local engine, on the real SmolLM2 and on tiny models with awkward tokenizers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
)
from transformers import PreTrainedTokenizerFast as FastTokenizer

from fastexplain.errors import LLMError, UnusableError
from fastexplain.llm import connect
from fastexplain.llm.local.engine import Engine
from fastexplain.llm.local.pieces import Pieces
from fastexplain.llm.local.writing import _Noise
from fastexplain.llm.requests import Chat, Reading
from fastexplain.prompts import simulator
from fastexplain.prompts.lines import escape

TOKENS = [
    " Grandma",
    " hung",
    " the",
    " copper",
    " pan",
    "\n",
    "<|im_end|>",
    "<start>",
    "\t",
    "\ufffd",
    " 7",
    "10",
    "café",
    "unknown",
]

# Two of the same head and different length, one of another head, one of no common beginning.
SHARED = "Each line names a token.\n<start>\n a\tunknown\n b\t3\n<end>\nThis one likes:"


def reading(explanation, tokens, *, largest=9, filler="unknown", shared=SHARED):
    lines = tuple(f"{escape(token)}\t" for token in tokens)
    return Reading(shared, f" {explanation}\n<start>\n", lines, filler, largest)


READINGS = [
    reading("things to cook with", TOKENS),
    reading("things to cook with", TOKENS[:5]),
    reading("verbs", TOKENS[3:]),
    reading("verbs", TOKENS, filler="0"),
    reading("", TOKENS[:3], shared="Another beginning"),
    reading("verbs", ["one"], filler=""),
    reading("things to cook with", TOKENS * 3),
]


def ask_all(connection, requests):
    async def ask():
        return await asyncio.gather(
            *(connection.ask(each) for each in requests), return_exceptions=True
        )

    return asyncio.run(ask())


def expected_values(log_probabilities):
    """Of the integers, with their probabilities made to sum to 1."""
    p = np.exp(np.float64(log_probabilities))
    return p @ np.arange(p.shape[1]) / p.sum(1)


@cache
def load_plainly(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(directory), model


def plain_log_probabilities(directory, request, ids=None):
    """The same the long way: the whole text through the model, the full head everywhere.

    Args:
        ids: of the text; if None, what the tokenizer makes of the whole text.
    """
    tokenizer, model = load_plainly(directory)
    if ids is None:
        encoded = tokenizer(request.text, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        ends = {end: row for row, (_, end) in enumerate(encoded["offset_mapping"])}
        rows = [ends[place] for place in request.places]
    else:
        prompt = Pieces(tokenizer, "x").prompt(request)
        rows = [len(prompt.shared) + row for row in prompt.rows]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    digits = tokenizer.convert_tokens_to_ids([str(d) for d in range(request.largest + 1)])
    return logits[rows][:, digits].log_softmax(-1).numpy()


def check_against_plain(directory, requests, responses, apart=1e-4):
    for request, response in zip(requests, responses, strict=True):
        prompt = Pieces(load_plainly(directory)[0], "x").prompt(request)
        ids = [*prompt.shared, *prompt.rest]
        plain = plain_log_probabilities(directory, request, ids)
        assert response.log_probabilities.dtype == np.float32
        assert response.usage.prompt_tokens == len(ids)
        np.testing.assert_allclose(response.log_probabilities, plain, rtol=0, atol=apart)


# On the real SmolLM2


@pytest.fixture(scope="module")
def smollm2_local():
    try:
        connection = connect("smollm2", local=True)
    except LLMError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    yield connection
    asyncio.run(connection.close())


def test_readings_are_those_of_a_plain_forward_pass(smollm2_local):
    from fastexplain.models.smollm2 import smollm2_directory

    responses = ask_all(smollm2_local, READINGS)
    for request, response in zip(READINGS, responses, strict=True):
        plain = plain_log_probabilities(smollm2_directory(), request)
        read = response.log_probabilities
        np.testing.assert_allclose(read, plain, rtol=0, atol=1e-3)
        np.testing.assert_allclose(expected_values(read), expected_values(plain), atol=1e-4)


def test_an_ordinary_tokenizer_makes_the_same_ids_of_the_whole_text(smollm2_local):
    from fastexplain.models.smollm2 import smollm2_directory

    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory())
    pieces = Pieces(tokenizer, "smollm2")
    for request in READINGS:
        prompt = pieces.prompt(request)
        ids = [*prompt.shared, *prompt.rest]
        whole = tokenizer(request.text)["input_ids"]
        assert whole[: len(ids)] == ids
        behind = tokenizer(f"{request.filler}\n" if request.filler else "")["input_ids"]
        assert whole[len(ids) :] == behind


@pytest.mark.parametrize("filler", simulator.FILLERS)
def test_a_simulators_prompt_is_the_same_tokens_for_a_server(filler):
    """Which has the whole text, or the text up to a place."""
    from fastexplain.models.smollm2 import smollm2_directory

    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory())
    pieces = Pieces(tokenizer, "smollm2")
    blank = [" ", "   ", "\n", "\n    ", "  word", "\u3000", "\xa0", "\t\t", " \n", "x  "]
    request = simulator.reading("blank tokens", [*TOKENS, *blank, " end", " "], 9, filler)
    prompt = pieces.prompt(request)
    for row, place in zip(prompt.rows, request.places, strict=True):
        ids = [*prompt.shared, *prompt.rest[: row + 1]]
        assert tokenizer(request.text[:place])["input_ids"] == ids
        assert tokenizer(request.text)["input_ids"][: len(ids)] == ids


def test_one_request_leaves_nothing_behind_for_the_next(smollm2_local):
    [first] = ask_all(smollm2_local, READINGS[:1])
    longer = replace(READINGS[2], head=" a much longer explanation, of something else\n<start>\n")
    ask_all(smollm2_local, [longer])
    ask_all(smollm2_local, [Chat(({"role": "user", "content": "Hello!"},), 3)])
    [again] = ask_all(smollm2_local, READINGS[:1])
    np.testing.assert_array_equal(first.log_probabilities, again.log_probabilities)


def test_what_smollm2_can_do(smollm2_local):
    found = asyncio.run(smollm2_local.probe())
    assert found is smollm2_local.capabilities
    assert found.chat
    assert found.largest == 9  # it has no token for 10
    assert found.chat_logprobs == found.prompt_logprobs == found.next_logprobs == 10
    assert found.schema is None
    assert found.shift == 0
    assert found.fillers == ("unknown", "?", "0")
    assert set(found.lacks) == {"schema"}


def chat(question, **changes):
    system = {"role": "system", "content": "You answer in one short sentence."}
    settings = {"max_tokens": 8} | changes
    return Chat((system, {"role": "user", "content": question}), **settings)


QUESTIONS = ["Name a river.", "What do people in France speak?", "Count from 1 to 5."]


@pytest.mark.scale
def test_chats_together_are_answered_as_alone(smollm2_local):
    requests = [
        chat(q, max_tokens=n, integers=n == 3) for q, n in zip(QUESTIONS, (30, 3, 30), strict=True)
    ]
    alone = [ask_all(smollm2_local, [each])[0] for each in requests]
    together = ask_all(smollm2_local, requests)
    assert [(a.text, a.finish, a.usage) for a in together] == [
        (a.text, a.finish, a.usage) for a in alone
    ]
    assert [a.finish for a in alone] == ["stop", "length", "stop"]
    tokens = [each.usage.completion_tokens for each in alone]
    assert all(n <= each.max_tokens for n, each in zip(tokens, requests, strict=True))


@pytest.mark.scale
def test_a_chat_is_answered_as_by_generate(smollm2_local):
    from fastexplain.models.smollm2 import smollm2_directory

    tokenizer, model = load_plainly(smollm2_directory())
    request = chat(QUESTIONS[1], max_tokens=40)
    inputs = tokenizer.apply_chat_template(
        list(request.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    length = inputs["input_ids"].shape[1]
    [answer] = ask_all(smollm2_local, [request])
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, length:]
    assert answer.text == tokenizer.decode(output, skip_special_tokens=True)
    assert answer.finish == "stop"
    assert answer.usage.prompt_tokens == length
    assert answer.usage.completion_tokens == len(output)


def test_of_an_answer_that_is_cut_off_the_whole_lines_count(smollm2_local):
    """As of a server's; all of it is kept where a reader goes by places in it."""
    question = "Count from 1 to 5."
    found = []
    for most in (1, 12, 20):
        every, lines = ask_all(
            smollm2_local, [chat(question, max_tokens=most, integers=i) for i in (True, False)]
        )
        assert every.finish == "length" and every.usage.completion_tokens == most
        whole = every.text.rpartition("\n")[0]
        if whole.strip():
            assert (lines.text, lines.finish, lines.usage) == (whole, "length", every.usage)
        else:
            assert str(lines) == f"the answer was cut off after {most} tokens"
        found.append(bool(whole.strip()))
    assert found == [False, True, True]


@pytest.mark.scale
def test_a_sample_is_of_its_seed_whatever_is_written_beside_it(smollm2_local):
    plain = chat(QUESTIONS[0], max_tokens=24)
    sampled = [replace(plain, temperature=0.7, seed=seed) for seed in range(3)]
    alone = [ask_all(smollm2_local, [each])[0] for each in [plain, *sampled]]
    together = ask_all(smollm2_local, [plain, *sampled])
    texts, again = ([getattr(each, "text", str(each)) for each in own] for own in (alone, together))
    assert texts == again and len(set(texts)) > 2, texts


def test_samples_have_the_models_probabilities():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2, 0.0]))
    counts = np.zeros(4)
    for seed in range(2000):
        counts[int(_Noise(1.0, seed).on(logits).argmax())] += 1
    assert counts[3] == 0
    assert np.abs(counts / 2000 - [0.5, 0.3, 0.2, 0]).max() < 0.04  # three standard errors
    cold = {int(_Noise(0.05, seed).on(logits).argmax()) for seed in range(50)}
    assert cold == {0}


def test_probabilities_of_integers_at_each_token_of_an_answer(smollm2_local):
    request = chat("Count from 1 to 5.", integers=True)
    [answer] = ask_all(smollm2_local, [request])
    assert "".join(token.text for token in answer.tokens) == answer.text
    tokens = {token.text: token for token in answer.tokens}
    for digit in "12":
        likeliest = max(tokens[digit].integers, key=tokens[digit].integers.get)
        assert likeliest == digit
    for token in answer.tokens:
        assert set(token.integers) == set("0123456789")
        assert sum(np.exp(list(token.integers.values()))) < 1


# On tiny models


def byte_tokenizer(extra_tokens=(), pattern=None, merges=()):
    """A tokenizer of bytes and `extra_tokens`, which are never split.

    Args:
        pattern: a regular expression for the words between which nothing is merged.
        merges: of two tokens each.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(m) for m in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    if pattern is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(t, normalized=False) for t in extra_tokens])
    return FastTokenizer(tokenizer_object=backend)


def sentencepiece_tokenizer():
    """A tokenizer that puts `▁` before every text, and a BOS before that, as Llama 2's does."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    merges = [("▁", "c"), ("▁c", "o"), ("u", "n"), ("▁", "▁"), ("▁", "7")]
    words = ["<s>", *bytes_, "▁", *letters, *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return FastTokenizer(tokenizer_object=backend, bos_token="<s>")


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def save_tiny(directory, tokenizer=None, config=LlamaConfig, **changes):
    """Save a random model; its weights are large enough to make its answers differ."""
    tokenizer = tokenizer or byte_tokenizer()
    tokenizer.save_pretrained(directory)
    settings = SMALL | HEADS | {"max_position_embeddings": 4096, "bos_token_id": None}
    torch.manual_seed(0)
    made = config(**{"vocab_size": len(tokenizer), "eos_token_id": 0} | settings | changes)
    model = AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    model.save_pretrained(directory)
    return str(directory)


MODELS = {
    "Llama": {},
    "Llama, heads of their own": {"num_key_value_heads": 2},
    "GPT-2, learned positions": {"config": GPT2Config, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "Gemma 2, capped and windowed": {
        "config": Gemma2Config,
        "sliding_window": 24,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "MPT, distances": {"config": MptConfig, "d_model": 16, "n_layers": 2, "n_heads": 2},
    "Bloom, distances": {"config": BloomConfig, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
    "Mistral, windowed": {"config": MistralConfig, "sliding_window": 24},
    "Cohere, scaled": {"config": CohereConfig, "logit_scale": 0.25, "pad_token_id": 0},
    "Mamba, without attention": {"config": MambaConfig, "state_size": 4},
    "LFM 2, partly without attention": {
        "config": Lfm2Config,
        "layer_types": ["conv", "full_attention"],
        "pad_token_id": 0,
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_kinds_are_read_as_by_plain_passes(tmp_path, name):
    directory = save_tiny(tmp_path, **MODELS[name])
    connection = connect(directory, local=True)
    for _ in range(2):  # the second time, with what was kept
        check_against_plain(directory, READINGS, ask_all(connection, READINGS))
    # Where there is more than keys and values to keep, nothing is.
    assert connection._engine.shares == ("without attention" not in name)
    asyncio.run(connection.close())


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_models_of_all_kinds_write_as_generate_does(tmp_path, settings):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    directory = save_tiny(tmp_path, tokenizer, **settings)
    connection = connect(directory, local=True)
    model = AutoModelForCausalLM.from_pretrained(directory)
    requests = [chat(question, max_tokens=6, integers=True) for question in QUESTIONS]
    for request, answer in zip(requests, ask_all(connection, requests), strict=True):
        text = "".join(message["content"] + "\n" for message in request.messages)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert answer.text == tokenizer.decode(output, skip_special_tokens=True)
    asyncio.run(connection.close())


@pytest.mark.parametrize("dtype, apart", [(torch.float64, 1e-4), (torch.bfloat16, 0.3)])
def test_other_precisions_run_behind_kept_states_too(tmp_path, dtype, apart):
    directory = save_tiny(tmp_path)
    connection = connect(directory, local=True)
    network = connection._engine.network.to(dtype)
    assert Engine(network, [1]).shares
    responses = ask_all(connection, READINGS)
    check_against_plain(directory, READINGS, responses, apart)


def test_the_likeliest_answer_is_that_without_penalties(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    directory = save_tiny(tmp_path, tokenizer)
    request = Chat(({"role": "user", "content": "abcabcabc"},), 8, integers=True)
    [before] = ask_all(connect(directory, local=True), [request])
    settings = {"repetition_penalty": 9.0, "do_sample": True, "temperature": 2.0, "top_k": 3}
    GenerationConfig(**settings).save_pretrained(directory)
    assert ask_all(connect(directory, local=True), [request]) == [before]


# What may stand behind a tab in GPT-4's, Llama 3's and Qwen's tokenizers, simplified.
JOINING = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"

TOKENIZERS = {
    "tab and word": lambda: byte_tokenizer(pattern=JOINING, merges=[("ĉ", "u"), ("ĉu", "n")]),
    "tab and digit": lambda: byte_tokenizer(["\t7", "\t0"]),
    "tab and filler": lambda: byte_tokenizer(["\tunknown"]),
    "newline and space": lambda: byte_tokenizer(["\n "]),
    "sentencepiece": sentencepiece_tokenizer,
}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers_that_join_or_prepend_do_no_harm(tmp_path, make):
    directory = save_tiny(tmp_path, make())
    connection = connect(directory, local=True)
    check_against_plain(directory, READINGS, ask_all(connection, READINGS))
    asyncio.run(connection.close())


def test_places_stand_behind_tabs_whatever_a_tokenizer_joins():
    tokenizer = byte_tokenizer(pattern=JOINING, merges=[("ĉ", "u"), ("ĉu", "n")])
    prompt = Pieces(tokenizer, "x").prompt(reading("x", TOKENS))
    ids = [*prompt.shared, *prompt.rest]
    request = reading("x", TOKENS)
    assert tokenizer.decode(ids) == request.text[: request.places[-1]]
    starts = len(prompt.shared)
    for row, place in zip(prompt.rows, request.places, strict=True):
        assert tokenizer.decode(ids[: starts + row + 1]) == request.text[:place]
    assert tokenizer("a\tunknown")["input_ids"][1] == tokenizer.convert_tokens_to_ids("ĉun")


def test_a_space_put_before_a_text_is_not_put_before_its_pieces():
    tokenizer = sentencepiece_tokenizer()
    request = reading("cooks", [" co", "co", " 7", "  un"])
    prompt = Pieces(tokenizer, "x").prompt(request)
    ids = [*prompt.shared, *prompt.rest]
    assert ids == tokenizer(request.text[: request.places[-1]])["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]


def test_ten_is_read_where_it_is_one_token(tmp_path):
    connection = connect(save_tiny(tmp_path, byte_tokenizer(["10"])), local=True)
    assert asyncio.run(connection.probe()).largest == 10
    nine, ten = ask_all(connection, [reading("x", ["a"]), reading("x", ["a"], largest=10)])
    assert nine.log_probabilities.shape == (1, 10)
    assert ten.log_probabilities.shape == (1, 11)
    np.testing.assert_allclose(
        nine.log_probabilities, ten.log_probabilities[:, :10], rtol=0, atol=1e-5
    )


def test_ten_cannot_be_asked_about_where_it_is_two_tokens(tmp_path):
    connection = connect(save_tiny(tmp_path), local=True)
    [error] = ask_all(connection, [reading("x", ["a"], largest=10)])
    assert isinstance(error, LLMError)
    assert "no single token for 10" in str(error)


def without_digits():
    vocabulary = {token: i for i, token in enumerate(["?", "a", "b", "\t", "\n"])}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return FastTokenizer(tokenizer_object=backend)


def test_a_tokenizer_without_digits_cannot_simulate(tmp_path):
    tokenizer = without_digits()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    connection = connect(save_tiny(tmp_path, tokenizer), local=True)
    found = asyncio.run(connection.probe())
    assert found.chat
    assert found.prompt_logprobs == found.next_logprobs == 0
    assert found.fillers == ()
    assert "choose another simulator" in found.lacks["prompt_logprobs"]
    asked = Chat(({"role": "user", "content": "ab"},), 1, integers=True)
    [error, answer] = ask_all(connection, [reading("x", ["a"]), asked])
    assert isinstance(error, LLMError)
    assert "choose another simulator" in str(error)
    assert answer.usage.prompt_tokens == 2


def test_a_model_that_can_neither_chat_nor_simulate_is_unusable(tmp_path):
    connection = connect(save_tiny(tmp_path, without_digits()), local=True)
    with pytest.raises(UnusableError, match="chat template"):
        asyncio.run(connection.probe())


def test_a_model_without_a_chat_template_cannot_explain(tmp_path):
    connection = connect(save_tiny(tmp_path), local=True)
    found = asyncio.run(connection.probe())
    assert not found.chat
    assert found.chat_logprobs == 0
    assert "chat template" in found.lacks["chat"]
    [error] = ask_all(connection, [Chat(({"role": "user", "content": "x"},), 1)])
    assert isinstance(error, LLMError)
    assert "chat template" in str(error)


def test_an_answer_cannot_be_held_to_a_schema(smollm2_local):
    [error] = ask_all(smollm2_local, [chat("x", schema={"type": "object"})])
    assert isinstance(error, LLMError)
    assert "schema" in str(error)


def test_a_chat_template_that_fails_is_named(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    connection = connect(save_tiny(tmp_path, tokenizer), local=True)
    [error] = ask_all(connection, [chat("x")])
    assert isinstance(error, LLMError)
    assert "no system messages" in str(error)


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}", "{{ messages[0].content.nothing() }}", "{{ 1 / 0 }}", "{% x %}"],
)
def test_a_malformed_chat_template_is_seen_before_any_request(tmp_path, template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    connection = connect(save_tiny(tmp_path, tokenizer), local=True)
    found = asyncio.run(connection.probe())
    assert not found.chat and found.prompt_logprobs
    assert "chat template of" in found.lacks["chat"] and "\n" not in found.lacks["chat"]


# In a process of its own, as the thread that writes the chat can't be ended.
ENDLESS = """
import asyncio, sys
from fastexplain.errors import UnusableError
from fastexplain.llm import connect
from fastexplain.llm.local import connection
connection._TEMPLATE_SECONDS = 0.2
try:
    asyncio.run(connect(sys.argv[1], local=True).probe())
except UnusableError as error:
    print(error)
"""


def test_a_chat_template_without_an_end_is_one_line(tmp_path):
    tokenizer = byte_tokenizer()
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer.chat_template = endless
    command = [sys.executable, "-c", ENDLESS, save_tiny(tmp_path, tokenizer)]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    [line] = child.stdout.splitlines()
    assert "has not written a chat of two messages in 0.2 s" in line


def test_a_template_without_system_messages_gets_none(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.role }}: {{ m.content }}|{% endfor %}"
    )
    connection = connect(save_tiny(tmp_path, tokenizer), local=True)
    rendered = connection._render(chat("x").messages)
    assert rendered == "user: You answer in one short sentence.\n\nx|"
    [answer] = ask_all(connection, [chat("x", integers=True)])
    assert answer.usage.prompt_tokens == len(rendered)


@pytest.mark.parametrize(
    "thoughts",
    [
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
        "<think>\n",
    ],
)
def test_a_model_is_kept_from_thinking(tmp_path, thoughts):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[1].content }}|" + thoughts
    connection = connect(save_tiny(tmp_path, tokenizer), local=True)
    assert connection._render(chat("x").messages) == "x|<think>\n\n</think>\n\n"


def test_a_model_that_thinks_all_the_same_is_an_error(tmp_path, monkeypatch):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[1].content }}"
    connection = connect(save_tiny(tmp_path, tokenizer), local=True)
    monkeypatch.setattr(connection, "_decode", lambda ids: "<think>Hm")
    [error] = ask_all(connection, [chat("x")])
    assert isinstance(error, LLMError)
    assert "can't be kept from thinking" in str(error)


def test_tokens_with_spaces_and_bytes_count_as_integers(tmp_path):
    tokenizer = sentencepiece_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    directory = save_tiny(tmp_path, tokenizer)
    connection = connect(directory, local=True)
    request = Chat(({"role": "user", "content": "7 un"},), 3, integers=True)
    [answer] = ask_all(connection, [request])
    assert {" 7", "7", "0"} <= set(answer.tokens[0].integers)
    with torch.no_grad():
        ids = tokenizer("7 un", add_special_tokens=False, return_tensors="pt")["input_ids"]
        model = AutoModelForCausalLM.from_pretrained(directory)
        p = model(ids).logits[0, -1].softmax(-1)
    of = tokenizer.convert_tokens_to_ids
    read = np.exp([answer.tokens[0].integers[text] for text in (" 7", "7")])
    both = p[of("7")] + p[of("<0x37>")]  # they read alike
    np.testing.assert_allclose(read, [p[of("▁7")], both], rtol=1e-4)


def test_characters_of_several_tokens_are_told_when_they_are_whole(tmp_path):
    connection = connect(save_tiny(tmp_path), local=True)
    ids = byte_tokenizer()("aé€b")["input_ids"]
    assert connection._token_texts(ids) == ["a", "", "é", "", "", "€", "b"]


def test_a_request_that_is_too_long_fails_alone(tmp_path):
    directory = save_tiny(tmp_path, max_position_embeddings=200)
    connection = connect(directory, local=True)
    requests = [reading("x", ["a"]), reading("x", ["a"] * 50), reading("x", ["b"])]
    first, error, last = ask_all(connection, requests)
    assert isinstance(error, LLMError)
    assert "too long" in str(error)
    check_against_plain(directory, [requests[0], requests[2]], [first, last])


def test_a_hundred_requests_at_once(tmp_path):
    directory = save_tiny(tmp_path)
    connection = connect(directory, local=True)
    random = np.random.default_rng(0)
    requests = [
        reading(f"number {min(i % 7, 4)}", random.choice(TOKENS, size=random.integers(1, 9)))
        for i in range(100)
    ]
    check_against_plain(directory, requests, ask_all(connection, requests))


def test_a_request_that_nobody_waits_for_is_left_out(tmp_path):
    connection = connect(save_tiny(tmp_path), local=True)

    async def ask():
        tasks = [asyncio.create_task(connection.ask(each)) for each in READINGS]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    responses = asyncio.run(ask())
    assert isinstance(responses.pop(1), asyncio.CancelledError)
    check_against_plain(connection.model, READINGS[:1] + READINGS[2:], responses)


def short_of_memory(connection, most):
    """Have passes of more than `most` texts fail as they do where a GPU's memory is too small."""

    def refuse(_module, inputs):
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("no room")

    connection._engine.network.register_forward_pre_hook(refuse)


def test_where_memory_is_short_fewer_requests_run_together(tmp_path):
    directory = save_tiny(tmp_path)
    connection = connect(directory, local=True)
    short_of_memory(connection, most=1)
    check_against_plain(directory, READINGS, ask_all(connection, READINGS))


def test_where_memory_is_too_short_a_request_fails(tmp_path):
    connection = connect(save_tiny(tmp_path), local=True)
    short_of_memory(connection, most=0)
    for error in ask_all(connection, READINGS[:2]):
        assert isinstance(error, LLMError)
        assert "too little memory" in str(error)


def test_closing_ends_what_waits(tmp_path):
    connection = connect(save_tiny(tmp_path), local=True)

    async def close_at_once():
        task = asyncio.create_task(connection.ask(READINGS[0]))
        await asyncio.sleep(0)
        await connection.close()
        return await asyncio.gather(task, return_exceptions=True)

    [error] = asyncio.run(close_at_once())
    assert isinstance(error, LLMError)
    assert "stopped" in str(error)


def test_closing_ends_what_is_going_on(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    connection = connect(save_tiny(tmp_path, tokenizer), local=True)
    engine = connection._engine
    engine.network.register_forward_pre_hook(lambda *_: engine.stop())
    for error in ask_all(connection, [READINGS[0], chat("x")]):
        assert isinstance(error, LLMError)
        assert "stopped" in str(error)


@pytest.mark.parametrize("make", [lambda d: d / "absent", lambda d: d, lambda d: d / "other"])
def test_a_model_that_cannot_be_loaded_is_named(tmp_path, make):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UnusableError) as caught:
        connect(str(make(tmp_path)), local=True)
    assert str(make(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)
