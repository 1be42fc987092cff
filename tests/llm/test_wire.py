"""What is posted for a request, and what is read in the answers of OpenAI and of its like."""

import copy
import itertools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.errors import LLMError
from fastexplain.llm.openai import wire
from fastexplain.llm.openai.listings import indices
from fastexplain.llm.requests import Answer, Capabilities, Chat, Reading, Token, Usage
from fastexplain.llm.tokens import count, estimate
from fastexplain.prompts import simulator, simulator_chats

MESSAGES = ({"role": "user", "content": "Say hello."},)
CHAT = Chat(MESSAGES, max_tokens=5, temperature=0.5, seed=3)
INTEGERS = Chat(MESSAGES, max_tokens=5, integers=True)
ABLE = Capabilities(
    chat=True, chat_logprobs=20, schema="json_schema", next_logprobs=10, prompt_logprobs=5
)
SHARED, HEAD = "Numbers.\n\nFirst:\n", " a\n"
READING = Reading(SHARED, HEAD, (" the\t", "é\t", " pan\t"), "unknown", 9)
SINGLE = Reading(SHARED, HEAD, (" the\t",), "", 9)


# What is posted


def test_a_chat_is_posted_as_openai_wants_it():
    assert wire.body(CHAT, "m", ABLE) == (
        "/chat/completions",
        {
            "model": "m",
            "messages": list(MESSAGES),
            "max_tokens": 5,
            "temperature": 0.5,
            "seed": 3,
        },
    )


def test_a_chat_takes_the_form_that_the_model_accepts():
    able = Capabilities(chat=True, thinks=True, limit="max_completion_tokens", sampling=())
    _, body = wire.body(CHAT, "m", able)
    assert body == {
        "model": "m",
        "messages": list(MESSAGES),
        "max_completion_tokens": 5 + wire.THOUGHTS,
    }
    assert wire.at_most(CHAT, able).completion_tokens == 5 + wire.THOUGHTS
    assert wire.at_most(CHAT, ABLE).completion_tokens == 5
    assert wire.at_most(READING, able).completion_tokens == 1
    _, body = wire.body(CHAT, "m", Capabilities(chat=True, sampling=("temperature",)))
    assert body["temperature"] == 0.5 and "seed" not in body


def test_a_system_message_goes_into_the_next_one_where_there_can_be_none():
    system = {"role": "system", "content": "Be brief."}
    both = Chat((system, *MESSAGES, {"role": "assistant", "content": "Hello."}), max_tokens=5)
    _, body = wire.body(both, "m", ABLE)
    assert body["messages"] == list(both.messages)
    able = Capabilities(chat=True, system=False)
    _, body = wire.body(both, "m", able)
    first = {"role": "user", "content": "Be brief.\n\nSay hello."}
    assert body["messages"] == [first, both.messages[2]]
    assert wire.body(CHAT, "m", able)[1]["messages"] == list(MESSAGES)


def test_log_probabilities_are_asked_for_where_they_are_wanted():
    _, body = wire.body(INTEGERS, "m", ABLE)
    assert body["logprobs"] is True and body["top_logprobs"] == 20
    with pytest.raises(LLMError, match="no log-probabilities come with the chats of 'm'"):
        wire.body(INTEGERS, "m", Capabilities(chat=True))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (
            "json_schema",
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
            },
        ),
        ("json_object_schema", {"type": "json_object", "schema": {"type": "object"}}),
        ("json_object", {"type": "json_object"}),
        (None, None),
    ],
)
def test_a_schema_is_asked_for_in_the_form_that_the_server_knows(form, expected):
    chat = Chat(MESSAGES, max_tokens=5, schema={"type": "object"})
    _, body = wire.body(chat, "m", Capabilities(chat=True, schema=form))
    assert body.get("response_format") == expected


def test_a_reading_is_an_echo_of_one_token_more():
    assert wire.body(READING, "m", ABLE) == (
        "/completions",
        {
            "model": "m",
            "prompt": READING.text,
            "max_tokens": 1,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 5,
        },
    )


def test_a_single_place_is_read_behind_the_text():
    plain = {"model": "m", "prompt": SINGLE.text, "max_tokens": 1, "temperature": 0.0}
    assert wire.body(SINGLE, "m", ABLE) == ("/completions", plain | {"logprobs": 10})


def test_what_the_connection_lacks_is_not_posted():
    for reading in (READING, SINGLE):
        with pytest.raises(LLMError, match="no log-probabilities come with the completions"):
            wire.body(reading, "m", Capabilities(chat=True))
        with pytest.raises(LLMError, match="'m' has no single token for 10 behind a tab"):
            wire.body(Reading(*list(vars(reading).values())[:4], 10), "m", ABLE)


# Chats


def chat_data(content="Hello.", finish="stop", *, logprobs=None, **message):
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None, **message},
                "logprobs": logprobs,
                "finish_reason": finish,
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 2,
            "total_tokens": 32,
            "prompt_tokens_details": {"cached_tokens": 16},
        },
    }


def entry(token, logprob, alternatives):
    top = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in alternatives.items()]
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": top}


def spoken(*entries):
    text = "".join(e["token"] for e in entries)
    return chat_data(text, logprobs={"content": list(entries), "refusal": None})


def test_an_answer_is_read():
    read = wire.read(CHAT, chat_data(), ABLE)
    assert read == Answer("Hello.", "stop", (), Usage(30, 2, 16))
    # Others end otherwise, and count no or other tokens.
    for finish in (None, "eos", "end_turn"):
        data = chat_data(finish=finish)
        for usage in (None, {}, {"prompt_tokens": None}, {"prompt_tokens_details": None}, "few"):
            data["usage"] = usage
            # Where a server does not count, it is taken for the most that it may have been.
            counted = Usage(estimate(CHAT), CHAT.max_tokens)
            assert wire.read(CHAT, data, ABLE) == Answer("Hello.", "stop", (), counted)
        del data["usage"]
        assert wire.read(CHAT, data, ABLE) == Answer("Hello.", "stop", (), counted)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({}, "has no choices"),
        ({"choices": []}, "has no choices"),
        ({"choices": None}, "has no choices"),
        ({"choices": [None]}, "has no choices"),
        ({"choices": [{}]}, "has no message"),
        ({"choices": [{"message": "Hello."}]}, "has no message"),
        (chat_data(None), "has no text"),
        (chat_data([{"type": "text"}]), "has no text"),
        (chat_data(""), "has no text|is empty"),
        (chat_data(" \n"), "is empty"),
        (chat_data(None, "length", reasoning="Hmm"), "cut off before it began"),
        (chat_data("", "length"), "cut off before it began"),
        (chat_data(None, refusal="I can't\nhelp with that."), "refuses to answer: I can't help"),
        (chat_data("Hel", "content_filter"), "withheld by a content filter"),
        (chat_data("", "content_filter"), "withheld by a content filter"),
    ],
)
def test_what_is_no_answer_says_why(data, reason):
    with pytest.raises(LLMError, match=reason) as caught:
        wire.read(CHAT, data, ABLE)
    assert "\n" not in str(caught.value)
    # It may have to be paid for all the same, unless nothing was written.
    counted = Usage(estimate(CHAT), CHAT.max_tokens) if data.get("choices") else Usage()
    assert caught.value.usage == (Usage(30, 2, 16) if "usage" in data else counted)


THINKS = Capabilities(chat=True, thinks=True)


@pytest.mark.parametrize(
    ("data", "able"),
    [
        (chat_data("Hello.", reasoning="Hm."), ABLE),
        (chat_data("Hello.", reasoning_content="Hm."), ABLE),
        (chat_data("<think>Hm.</think>Hello."), ABLE),
        (chat_data(" \n<think>Hm.\n</think>\n\nHello."), ABLE),
        # Where the prompt ends with the first of the tags.
        (chat_data("Hm.\n</think>\n\nHello."), THINKS),
        # Who knows how to think need not.
        (chat_data("Hello."), THINKS),
    ],
)
def test_thoughts_are_no_part_of_the_answer(data, able):
    assert wire.read(CHAT, data, able).text == "Hello."


@pytest.mark.parametrize("content", ["<think>Hm, so", "<think>Hm, so</think>", "Hm, so", "", None])
def test_an_answer_that_ends_among_its_thoughts_is_none(content):
    with pytest.raises(LLMError, match="perhaps among its thoughts"):
        wire.read(CHAT, chat_data(content, "length"), THINKS)


def test_an_excerpt_may_speak_of_thoughts():
    text = "<start>\n</think>\t3\n"
    assert wire.read(CHAT, chat_data(text), ABLE).text == text


def test_thoughts_are_seen():
    assert all(wire.thinks(data) for data in (
        chat_data("Hello.", reasoning="Hm."),
        chat_data(None, reasoning_content="Hm."),
        chat_data("<think>Hm", "length"),
        chat_data("Hm.</think>Hello."),
        chat_data("", "length"),
    ))  # fmt: skip
    assert not any(wire.thinks(data) for data in (
        chat_data("Hello."), chat_data("Hello, my", "length"), chat_data(None), chat_data("", "x"),
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("thoughts", "message"),
    [
        (["<think>", "\n", "Hm, ", "7", "?\n", "</think>", "\n\n"], {}),
        (["Hm, ", "7", "?\n", "</think>", "\n\n"], {"reasoning": "Hm, 7?"}),
        # Parts of a character, which a server may write in other words than the text has.
        (["<|channel|>", "\\xe2", "7", "<|message|>"], {"reasoning_content": "\u2013 7"}),
    ],
)
def test_the_tokens_of_thoughts_are_left_out(thoughts, message):
    answer = ["\u00e9\t", "3", "\n"]
    entries = [entry(token, -0.1, {"3": -1.0}) for token in [*thoughts, *answer, "<|end|>"]]
    text = "".join([*thoughts, *answer]) if not message else "\u00e9\t3\n"
    data = chat_data(text, logprobs={"content": entries}, **message)
    read = wire.read(INTEGERS, data, THINKS)
    assert read.text == "\u00e9\t3\n"
    assert [token.text for token in read.tokens] == [*answer, "<|end|>"]


def test_tokens_of_something_else_are_no_tokens_of_the_answer():
    data = spoken(entry("7", -0.1, {}))
    data["choices"][0]["message"] |= {"content": "3", "reasoning": "Hm."}
    with pytest.raises(LLMError, match="not of the answer's tokens"):
        wire.read(INTEGERS, data, THINKS)


def test_of_an_answers_tokens_the_integers_are_kept():
    read = wire.read(
        INTEGERS,
        spoken(
            entry("\t", -0.1, {"\t": -0.1, " ": -2.0, "\t3": -3.0}),
            entry("3", -9.5, {"7": -0.5, " 3": -1.5, "3\n": -2.0, "10": -3.0, "three": -3.5}),
            entry("٣", -0.5, {"٣": -0.5, "3.5": -1.0, "-3": -2.0, "": -3.0}),
        ),
        ABLE,
    )
    assert read.tokens == (
        Token("\t", {"\t3": -3.0}),
        Token("3", {"7": -0.5, " 3": -1.5, "3\n": -2.0, "10": -3.0, "3": -9.5}),
        Token("٣", {}),
    )


def test_tokens_that_are_written_alike_count_together():
    data = spoken(entry("3", -1.0, {"3": -1.0}))
    top = data["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    top.append({"token": "3", "logprob": -2.0, "bytes": None})
    [token] = wire.read(INTEGERS, data, ABLE).tokens
    assert token.integers == {"3": pytest.approx(math.log(math.exp(-1) + math.exp(-2)))}


def test_what_a_server_takes_for_minus_infinity_is_kept():
    [token] = wire.read(INTEGERS, spoken(entry("3", -9999.0, {"4": -math.inf})), ABLE).tokens
    assert token.integers == {"3": -9999.0, "4": -math.inf}


BROKEN = [None, math.nan, math.inf, "much", [], {}]


@pytest.mark.parametrize("value", BROKEN)
def test_an_answers_log_probabilities_have_to_be_numbers(value):
    for data in (
        spoken(entry("3", value, {})),
        spoken(entry("3", -1.0, {"3": -1.0, "4": value})),
    ):
        with pytest.raises(LLMError, match="incomplete or no numbers"):
            wire.read(INTEGERS, data, ABLE)
    wire.read(INTEGERS, spoken(entry("three", value, {"four": value})), ABLE)


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"content": "x"}, [], "x"]
)
def test_an_answer_has_to_come_with_its_log_probabilities(logprobs):
    with pytest.raises(LLMError, match="came without log-probabilities"):
        wire.read(INTEGERS, chat_data(logprobs=logprobs), ABLE)


@pytest.mark.parametrize(
    "content",
    [[None], ["x"], [{}], [{"token": None}], [{"token": "3"}], [{"token": 3, "top_logprobs": []}]]
    + [[{"token": "x", "top_logprobs": top}] for top in ([None], [{}], [{"token": "3"}], "x", 7)],
)
def test_an_answers_log_probabilities_have_to_be_complete(content):
    with pytest.raises(LLMError, match="incomplete or no numbers"):
        wire.read(INTEGERS, chat_data(logprobs={"content": content}), ABLE)


# Readings


# The least likely says how likely those may be that are not listed.
ROWS = [
    {"0": -0.5, "3": -1.0, "unknown": -2.0, "z": -9.0},
    {"7": -0.25, " 7": -0.1, "7\n": -0.1, "10": -0.1, "z": -9.0},
    {"unknown": -0.01, " 3": -2.0},
]
EXPECTED = np.full((3, 10), -9 - math.log(2), np.float32)
EXPECTED[0, [0, 3]], EXPECTED[1, 7], EXPECTED[2] = (-0.5, -1.0), -0.25, np.nan


def cut(text):
    """A tokenizer: letters with a space before them, digits, and all else, one by one."""
    return re.findall(r" ?[^\W\d]+|.|\n", text)


def echo_data(tokens, rows, shift=0, filler="unknown"):
    """An echo, with the given alternatives where a filler stands behind a tab."""
    listed, remaining = [], iter(rows)
    for before, token in zip(["", *tokens], tokens, strict=False):
        at_place = before == "\t" and filler.startswith(token or "-")
        listed.append(next(remaining) if at_place else {token: -0.5})
    assert next(remaining, None) is None
    listed = [*listed[shift:], *[{"x": -1.0}] * shift]
    listed[0] = None
    offsets = np.cumsum([0, *map(len, tokens[:-1])]).tolist()
    return {
        "id": "x",
        "object": "text_completion",
        "choices": [
            {
                "index": 0,
                "text": "".join(tokens),
                "logprobs": {
                    "text_offset": offsets,
                    "tokens": tokens,
                    "token_logprobs": [None, *[-0.5] * (len(tokens) - 1)],
                    "top_logprobs": listed,
                },
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": len(tokens) - 1, "completion_tokens": 1},
    }


def read_rows(data, able=ABLE, reading=READING):
    return wire.read(reading, data, able).log_probabilities


TOKENS = [*cut(READING.text), "x"]


def test_a_reading_is_read():
    data = echo_data(TOKENS, ROWS)
    read = wire.read(READING, data, ABLE)
    assert read.log_probabilities.dtype == np.float32
    np.testing.assert_array_equal(read.log_probabilities, EXPECTED)
    assert read.usage == Usage(len(TOKENS) - 1, 1, 0)


def test_alternatives_may_come_one_token_too_early():
    able = Capabilities(prompt_logprobs=5, shift=1)
    np.testing.assert_array_equal(read_rows(echo_data(TOKENS, ROWS, 1), able), EXPECTED)


@pytest.mark.parametrize("before", [["<s>"], ["<|begin|>", "\n"], ["<s>", "", " "], [""]])
def test_tokens_before_the_prompt_are_passed_over(before):
    np.testing.assert_array_equal(read_rows(echo_data([*before, *TOKENS], ROWS)), EXPECTED)


def test_a_server_need_not_give_offsets():
    data = echo_data(TOKENS, ROWS)
    data["choices"][0]["logprobs"]["text_offset"] = [-1] * len(TOKENS)  # SGLang
    np.testing.assert_array_equal(read_rows(data), EXPECTED)


@pytest.mark.parametrize(
    "pieces",
    [["", "é"], ["", ""], ["\ufffd", "\ufffd"], ["\ufffd", ""], ["é"]],
    ids=["last", "none", "each", "first", "whole"],
)
def test_characters_of_several_tokens_move_nothing(pieces):
    at = TOKENS.index("é")
    tokens = [*TOKENS[:at], *pieces, *TOKENS[at + 1 :]]
    np.testing.assert_array_equal(read_rows(echo_data(tokens, ROWS)), EXPECTED)


def test_words_may_come_without_the_space_before_them():
    tokens = [token.strip(" ") for token in TOKENS]  # vLLM with the tokenizer of Llama 2
    np.testing.assert_array_equal(read_rows(echo_data(tokens, ROWS)), EXPECTED)
    tokens = [" Numbers", *TOKENS[1:]]
    np.testing.assert_array_equal(read_rows(echo_data(tokens, ROWS)), EXPECTED)


def test_a_filler_may_be_of_several_tokens():
    tokens = [piece for t in TOKENS for piece in (["un", "known"] if t == "unknown" else [t])]
    np.testing.assert_array_equal(read_rows(echo_data(tokens, ROWS)), EXPECTED)


def test_a_place_within_a_token_is_missing():
    tokens = cut(READING.text)
    at = tokens.index("\t")
    for joined in (["\tunknown"], ["\tun", "known"], ["", "\tunknown"]):
        changed = [*tokens[:at], *joined, *tokens[at + 2 :], "x"]
        values = read_rows(echo_data(changed, ROWS[1:]))
        assert np.isnan(values[0]).all()
        np.testing.assert_array_equal(values[1:], EXPECTED[1:])


def test_a_place_with_a_token_between_it_and_the_tab_is_missing():
    tokens = list(TOKENS)
    tokens.insert(tokens.index("\t") + 1, " ")
    values = read_rows(echo_data(tokens, ROWS[1:]))
    assert np.isnan(values[0]).all()
    np.testing.assert_array_equal(values[1:], EXPECTED[1:])


@pytest.mark.parametrize(
    "change",
    [
        lambda tokens: tokens[5:],
        lambda tokens: tokens[:-5],
        lambda tokens: [*tokens[:3], *tokens[4:]],
        lambda tokens: [f"token_id:{len(token)}" for token in tokens],
        lambda tokens: [token.replace(" ", "Ġ").replace("\t", "ĉ") for token in tokens],
        lambda tokens: ["a", "b", "c", "d", *tokens],
        lambda tokens: [token.replace("\t", "\t\0") for token in tokens],
        lambda tokens: tokens[-1:],
    ],
)
def test_tokens_of_another_text_are_noticed(change):
    tokens = change(TOKENS)
    data = echo_data(tokens, ROWS * 0, filler="-")
    with pytest.raises(LLMError, match="are not those of the prompt"):
        read_rows(data)


def spoil(change):
    data = copy.deepcopy(echo_data(TOKENS, ROWS))
    change(data["choices"][0])
    return data


def lists(choice):
    return choice["logprobs"]["top_logprobs"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("logprobs"), "without log-probabilities"),
        (lambda c: c.update(logprobs=None), "without log-probabilities"),
        (lambda c: c["logprobs"].pop("tokens"), "without log-probabilities"),
        (lambda c: c["logprobs"].update(tokens=[]), "without log-probabilities"),
        (lambda c: c["logprobs"].update(top_logprobs=None), "without log-probabilities"),
        (lambda c: c["logprobs"].update(tokens=[7] * len(TOKENS)), "are no text"),
        (lambda c: lists(c).pop(), r"\d+ lists of alternatives came with \d+ tokens"),
        (lambda c: lists(c).append({}), r"\d+ lists of alternatives came with \d+ tokens"),
        (lambda c: lists(c).__setitem__(slice(None), [None] * len(TOKENS)), "no alternatives"),
        (lambda c: lists(c).__setitem__(slice(None), [[-1.0]] * len(TOKENS)), "are no numbers"),
    ],
)
def test_an_echo_has_to_be_whole(change, reason):
    with pytest.raises(LLMError, match=reason):
        read_rows(spoil(change))


@pytest.mark.parametrize("value", [*BROKEN, 10**400])
def test_a_readings_log_probabilities_have_to_be_numbers(value):
    with pytest.raises(LLMError, match="log-probabilities that the server lists are"):
        read_rows(echo_data(TOKENS, [ROWS[0] | {"4": value}, *ROWS[1:]]))
    read_rows(echo_data(TOKENS, [ROWS[0] | {"four": value}, *ROWS[1:]]))


def test_numbers_too_small_for_any_float_are_minus_infinity():
    rows = [{"0": -1e300, "1": -1.0}, {"0": -math.inf}, {"0": -9999.0}]
    values = read_rows(echo_data(TOKENS, rows))
    assert values[0, 0] == -np.inf and values[0, 1] == -1
    assert np.isnan(values[1]).all() and values[2, 0] == -9999


def test_a_ten_counts_for_itself_only():
    ten = Reading(SHARED, HEAD, READING.lines, "unknown", 10)
    able = Capabilities(prompt_logprobs=5, largest=10)
    values = read_rows(echo_data(TOKENS, [{"10": -0.5, "1": -2.0, "z": -9.0}] * 3), able, ten)
    assert values[:, [1, 10]].tolist() == [[-2.0, -0.5]] * 3
    values = read_rows(echo_data(TOKENS, [{"10": -0.5, "1": -2.0, "z": -9.0}] * 3))
    assert values.shape == (3, 10) and (values[:, 1] == -2.0).all()


DIGITS = Capabilities(next_logprobs=20, prompt_logprobs=20, digits=tuple(range(32, 42)))


def test_where_tokens_are_listed_by_ids_a_text_is_asked_for_each_place():
    path, body = wire.body(READING, "m", DIGITS)
    assert path == "/completions"
    assert body["prompt"] == [READING.text[:place] for place in READING.places]
    assert body["logprob_token_ids"] == list(range(32, 42)) and "echo" not in body
    spent = wire.at_most(READING, DIGITS)
    assert spent.completion_tokens == len(READING.lines)
    assert spent.prompt_tokens == sum(map(count, body["prompt"]))


def answers_to_texts(rows):
    """A choice a text, the last first: servers answer in any order."""
    choices = []
    for index, row in enumerate(rows):
        listed = {str(value): p for value, p in enumerate(row)}
        logprobs = {"tokens": ["x"], "top_logprobs": [listed]}
        choices.append({"index": index, "text": "x", "logprobs": logprobs})
    return {"choices": choices[::-1]}


def test_each_place_has_the_answer_to_its_text():
    rows = np.log(np.random.default_rng(0).dirichlet(np.ones(10), 3)).astype(np.float32)
    read = wire.read(READING, answers_to_texts(rows.tolist()), DIGITS)
    np.testing.assert_array_equal(read.log_probabilities, rows)
    assert read.usage == wire.at_most(READING, DIGITS)  # where the server doesn't count


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data["choices"].pop(),
        lambda data: data["choices"][0].pop("index"),
        lambda data: data.update(choices=None),
        lambda data: data.update(choices=[None] * 3),
    ],
)
def test_each_text_has_to_be_answered(spoil):
    data = answers_to_texts(np.full((3, 10), -2.0).tolist())
    spoil(data)
    with pytest.raises(LLMError, match=r"each of the texts|has no choices"):
        wire.read(READING, data, DIGITS)


@given(
    logits=st.lists(st.floats(-12, 12), min_size=60, max_size=60),
    listed=st.integers(1, 60),
    own=st.integers(0, 59),
)
def test_what_is_not_listed_is_a_tenth_at_most_or_the_place_is_missing(logits, listed, own):
    """The likeliest tokens are listed, and that which stands there, however unlikely it is."""
    p = np.exp(logits) / np.exp(logits).sum()
    names = [*map(str, range(10)), *(f"w{i}" for i in range(50))]
    chosen = {*np.argsort(-p, kind="stable")[:listed].tolist(), own}
    row = {names[i]: float(np.log(p[i])) for i in sorted(chosen)}
    filler = names[own]
    reading = Reading("", "", ("a\t",), filler, 9)
    data = echo_data(["a", "\t", filler, "\n", "x"], [row], filler=filler)
    [read] = read_rows(data, reading=reading)
    hidden = sum(p[i] for i in range(10) if i not in chosen)
    if np.isnan(read).any():
        assert np.isnan(read).all() and listed < 60
    else:
        assert hidden <= 0.1 * p[:10].sum() * (1 + 1e-6)
        true = np.log(p[:10])
        assert all(read[i] == pytest.approx(true[i], abs=1e-5) for i in range(10) if i in chosen)


def test_a_place_s_own_token_is_no_bound():
    """It is listed though it is the least likely of all, with many that aren't listed above it."""
    row = {"0": -1.0, "3": -1.5, "unknown": -15.0}
    assert np.isnan(read_rows(echo_data(TOKENS, [row] * 3))).all()
    assert np.isfinite(read_rows(echo_data(TOKENS, [row | {"z": -8.0}] * 3))).all()


def next_data(tokens, listed):
    logprobs = {
        "tokens": tokens,
        "token_logprobs": [-0.5] * len(tokens),
        "text_offset": [40] * len(tokens),
        "top_logprobs": listed,
    }
    return {"choices": [{"text": "".join(tokens), "logprobs": logprobs}]}


def test_the_token_behind_a_text_is_read():
    [row] = read_rows(next_data(["0"], ROWS[:1]), reading=SINGLE)
    np.testing.assert_array_equal(row, EXPECTED[0])
    [row] = read_rows(next_data(["x"], ROWS[2:]), reading=SINGLE)
    assert np.isnan(row).all()
    # As llama.cpp's own server writes it. Where two tokens look alike, both are meant.
    content = [entry("0", -0.5, ROWS[0])]
    [three] = [each for each in content[0]["top_logprobs"] if each["token"] == "3"]
    three["logprob"] -= math.log(2)
    content[0]["top_logprobs"].append(three)
    data = {"choices": [{"text": "0", "logprobs": {"content": content}}]}
    np.testing.assert_array_equal(read_rows(data, reading=SINGLE), EXPECTED[:1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (next_data([], []), "without log-probabilities"),
        (next_data(["0", "1"], ROWS[:2]), "lists 2 tokens behind the text, not one"),
        (next_data(["0"], [None]), "lists 1 tokens behind the text, not one"),
        (next_data(["0"], []), "0 lists of alternatives came with 1 tokens"),
        ({"choices": [{"text": "0"}]}, "without log-probabilities"),
        ({"choices": [{"logprobs": {"content": [None]}}]}, "are incomplete"),
        ({"choices": [{"logprobs": {"content": [{"token": "0", "top_logprobs": [{}]}]}}]}, "are"),
    ],
)
def test_the_token_behind_a_text_has_to_be_there(data, reason):
    with pytest.raises(LLMError, match=reason):
        read_rows(data, reading=SINGLE)


# Any excerpt, any tokenizer, any server

PIECES = ["\n", "\t", "\r", "\\", "\ufffd", "<start>", "<end>", "<|im_end|>", "unknown", "?", "0"]
PIECES += ["\t0", "10", " 7", "  ", " ", "\x00", "\u2028", "é", "😀", "中文", "\xa0", " the", "\\t"]
EXCERPTS = st.lists(
    st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    min_size=1,
    max_size=12,
)


def served(chunks, style):
    """Tokens of bytes, as one server or another writes them."""
    if style in ("each", "none"):
        return [c.decode("utf-8", "replace" if style == "each" else "ignore") for c in chunks]
    tokens, waiting = [], b""
    for chunk in chunks:  # whole characters with their last token
        waiting += chunk
        whole = waiting.decode("utf-8", "ignore")
        rest = waiting[len(whole.encode()) :]
        tokens.append(whole)
        waiting = rest
    return [token.replace("\ufffd", "") for token in tokens]


@st.composite
def echoes(draw):
    filler = draw(st.sampled_from(simulator.FILLERS))
    reading = simulator.reading(draw(st.text(max_size=8)), draw(EXCERPTS), 9, filler)
    data = reading.text.encode()
    whole = [len(reading.text[:place].encode()) for place in reading.places]
    ends = draw(st.sets(st.integers(1, len(data) - 1), max_size=400))
    # Before and behind each tab of the lines, since the filler's place is a token's beginning.
    bounds = sorted(ends | set(whole) | {end - 1 for end in whole} | {0, len(data)})
    chunks = [data[a:b] for a, b in itertools.pairwise(bounds)]
    tokens = served(chunks, draw(st.sampled_from(["each", "none", "last"])))
    before = draw(st.sampled_from([[], ["<s>"], ["<s>", "\n"], [""]]))
    if draw(st.booleans()):
        tokens = [token.removeprefix(" ") for token in tokens]
    expected = [len(before) + bounds.index(place) for place in whole]
    return reading, [*before, *tokens, draw(st.sampled_from(["7", "", "\n", "é"]))], expected


@given(echoes())
def test_places_of_any_excerpt_are_found(case):
    reading, tokens, expected = case
    assert indices(tokens, reading.text, reading.places) == expected


@given(EXCERPTS, st.text(max_size=8), st.booleans())
def test_bodies_of_any_excerpt_are_json(tokens, explanation, plain):
    requests = [
        simulator.reading(explanation, tokens, 9),
        simulator.single_reading(explanation, tokens, 9),
        simulator_chats.repeating(explanation, tokens, 9),
        simulator_chats.structured(explanation, tokens),
    ]
    for request in requests:
        path, body = wire.body(request, "m", ABLE)
        assert json.loads(json.dumps(body, ensure_ascii=plain)) == body
        assert path in ("/completions", "/chat/completions")
