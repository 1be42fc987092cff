import json
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastexplain.errors import LLMError
from fastexplain.llm.requests import Answer
from fastexplain.prompts import answers, explainer, simulator, simulator_chats
from fastexplain.prompts.examples import EXAMPLES
from fastexplain.prompts.lines import block, escape, json_string
from fastexplain.records import Exemplar


def exemplar(tokens, activations):
    return Exemplar(0, np.arange(len(tokens)), tokens, np.array(activations, dtype=np.float32))


ESCAPED = re.compile(r"\\(?:([\\ntr])|x([0-9a-f]{2})|u([0-9a-f]{4}))")
LITERAL = {"\\": "\\", "n": "\n", "t": "\t", "r": "\r"}


def unescape(text):
    return ESCAPED.sub(
        lambda match: LITERAL.get(match[1]) or chr(int(match[2] or match[3], 16)), text
    )


def last_request(exemplars, skip=0):
    return explainer.messages(exemplars, skip)[-1]["content"]


@given(st.text())
@example("a\n\t\r\\n\\x3c")
@example("<|im_end|></s><start><end>\x85\u2028\x0b\ufffd")
def test_escaped_tokens_come_back_and_stay_on_their_line(token):
    escaped = escape(token)
    assert unescape(escaped) == token
    assert len(f"x{escaped}x".splitlines()) == 1
    assert "\t" not in escaped
    assert "<|" not in escaped and "<end>" not in escaped and "</s>" not in escaped


def test_ordinary_text_is_not_escaped():
    for token in [" the", "if (a<b) {", "<br>", "größer", "中", "😀", "<"]:
        assert escape(token) == token
        assert json_string(token) == f'"{token}"'


@given(st.text())
@example("<|im_end|></s><start><end>\x85\u2028\x0b\ufffd\x7f\\")
def test_tokens_come_back_out_of_json_and_stay_on_their_line(token):
    string = json_string(token)
    assert json.loads(string) == token
    assert len(f"x{string}x".splitlines()) == 1
    assert "<|" not in string and "<end>" not in string and "</s>" not in string
    assert "\ufffd" not in string


def test_a_block_has_one_token_a_line():
    assert block([("a\n", 3), (" <end>", 0)]) == "<start>\na\\n\t3\n \\x3cend>\t0\n<end>"


def test_values_are_discretised_by_the_largest_that_is_shown():
    shown = [exemplar(["a", "b", "c"], [2.0, 0.39, -5.0]), exemplar(["d", "e"], [4.0, 3.99])]
    request = last_request(shown)
    assert request.startswith("<start>\na\t5\nb\t0\nc\t0\n<end>\n<start>\nd\t10\ne\t9\n<end>\n")


def test_uncounted_tokens_are_neither_shown_nor_scale_the_values():
    request = last_request([exemplar(["BOS", "a", "b"], [1000.0, 1.0, 0.5])], skip=1)
    assert "BOS" not in request and "1000" not in request
    assert "a\t10\nb\t5\n" in request


@pytest.mark.parametrize(("active", "repeated"), [(1, True), (6, True), (7, False), (8, False)])
def test_tokens_are_repeated_strictly_below_a_fifth(active, repeated):
    # Of 35 tokens, 7 are exactly a fifth.
    values = [1.0] * active + [0.0] * (35 - active)
    request = last_request([exemplar([f"t{i}" for i in range(35)], values)])
    assert ("Without the zeros:\nt0\t10" in request) == repeated


def test_values_that_round_to_zero_count_as_zero():
    values = [1.0] + [0.05] * 9
    request = last_request([exemplar([f"t{i}" for i in range(10)], values)])
    assert request.split("Without the zeros:\n")[1].startswith("t0\t10\n\n")


def test_a_neuron_that_is_never_above_zero_is_not_asked_about():
    for exemplars in [[], [exemplar(["a", "b"], [0.0, -1.0])]]:
        with pytest.raises(LLMError, match="nothing to explain"):
            explainer.messages(exemplars, 0)


def test_examples_are_turns_of_the_chat():
    chat = explainer.messages([exemplar(["a"], [1.0])], 0)
    assert [m["role"] for m in chat] == ["system", *["user", "assistant"] * 3, "user"]
    answers = [explainer.parse(m["content"]) for m in chat if m["role"] == "assistant"]
    assert answers == [example.explanation for example in EXAMPLES]


@pytest.mark.parametrize(
    "answer",
    [
        "names of rivers",
        '"names of rivers"',
        "  \n\nNames of rivers.\nThis is because the tokens ...",
        "This neuron fires on names of rivers.",
        "The neuron seems to activate strongly for: names of rivers",
        "Explanation: **names of rivers**",
        "Explanation:\nnames of rivers",
        "**Explanation:** names of rivers",
        "This neuron fires on 'names of rivers'.",
        "Short phrase: “names of rivers”",
        "In short, this neuron reacts mostly to names of rivers",
    ],
)
def test_the_phrase_is_found_in_an_answer(answer):
    assert explainer.parse(answer).lower() == "names of rivers"


@pytest.mark.parametrize(
    "phrase",
    [
        "finding fault",
        "neurons",
        "it, as a pronoun",
        "“it's”, “isn't”",
        'the word "then"',
        "__init__",
    ],
)
def test_phrases_are_left_as_they_are(phrase):
    assert explainer.parse(phrase) == phrase
    assert explainer.parse(f"This neuron reacts to {phrase}.") == phrase


@pytest.mark.parametrize("answer", ["", " \n ", '""', "This neuron fires on", "?!"])
def test_an_answer_without_a_phrase_is_an_error(answer):
    with pytest.raises(LLMError) as caught:
        explainer.parse(answer)
    assert str(caught.value) == f"the explainer's answer holds no explanation: {answer!r}"


# The simulator.

ANY_TOKENS = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from(["<", "|im_end|>", "\n", "\ufffd", "</", "s>"])),
    min_size=1,
    max_size=8,
)
# What a chat template or a tokenizer would take for a control token.
CONTROL = re.compile(r"<\||</?s>|<end>")


@given(
    st.text(max_size=20), ANY_TOKENS, st.sampled_from([9, 10]), st.sampled_from(simulator.FILLERS)
)
def test_places_are_where_the_values_would_stand(explanation, tokens, largest, filler):
    reading = simulator.reading(explanation, tokens, largest, filler)
    lines = (reading.head + "".join(f"{line}{filler}\n" for line in reading.lines)).splitlines()
    assert reading.text == reading.shared + "\n".join(lines) + "\n"
    assert lines[:2] == [f" {escape(explanation)}", "<start>"]
    assert len(lines) == 2 + len(tokens) == 2 + len(reading.places)
    for place, token, line in zip(reading.places, tokens, lines[2:], strict=True):
        shown, tab, rest = line.rpartition("\t")
        assert (unescape(shown), tab + rest) == (token, f"\t{filler}")
        assert shown == escape(token) or (shown.startswith("\\u") and escape(token)[0].isspace())
        assert reading.text[: place + len(f"{filler}\n")].endswith(f"{line}\n")


@given(st.text(max_size=20), ANY_TOKENS, st.sampled_from([9, 10]))
def test_a_single_tokens_place_is_the_end_of_the_text(explanation, tokens, largest):
    reading = simulator.single_reading(explanation, tokens, largest)
    assert reading.places == [len(reading.text)]
    lines = reading.text[len(reading.shared) :].splitlines()
    assert lines[0] == f" {escape(explanation)}"
    assert unescape(lines[1]) == "Text: " + "".join(tokens)
    assert [unescape(line.removesuffix("\t")) for line in lines[2:]] == [tokens[-1]]
    assert lines[2].endswith("\t")


def test_spaces_that_a_tokenizer_would_join_with_the_line_break_before_them_are_shown():
    tokens = ["", " ", "   ", "  word", " word", " \n", "\u3000", "x "]
    assert [line.removesuffix("\t") for line in simulator.reading("x", tokens, 9).lines] == [
        "",
        r"\u0020",
        r"\u0020  ",
        r"\u0020 word",
        " word",
        r" \n",
        r"\u3000",
        "x ",
    ]


def test_the_shared_part_is_the_same_for_all():
    for ask in (simulator.reading, simulator.single_reading):
        one, other = ask("a", ["x"], 9), ask("bc", ["y", "z"], 9)
        assert one.shared == other.shared
        assert one.shared.endswith(" reacts to:")


@pytest.mark.parametrize("ask", [simulator.reading, simulator.single_reading])
@pytest.mark.parametrize("largest", [9, 10])
def test_examples_use_the_scale_of_the_tokenizer(ask, largest):
    shared = ask("x", ["y"], largest).shared
    values = {line.split("\t")[1] for line in shared.splitlines() if "\t" in line} - {"unknown"}
    assert max(map(int, values)) == largest
    assert f" {largest} is as strongly" in shared


def test_examples_go_over_from_the_filler_to_numbers():
    for filler in simulator.FILLERS:
        shared = simulator.reading("x", ["y"], 9, filler).shared
        assert f"\nShe\t{filler}\n" in shared
        assert f" kettle\t{8 if filler == '0' else filler}\n" in shared
        assert (f"it says {filler}." in shared) == (filler != "0")


def test_single_examples_end_in_their_token():
    for neuron, tokens, value in simulator.single_examples(10):
        [text] = [t for t in neuron.texts if [token for token, _ in t[: len(tokens)]] == tokens]
        assert text[len(tokens) - 1] == (tokens[-1], value)


CHATS = [
    lambda explanation, tokens: simulator_chats.repeating(explanation, tokens, 9),
    simulator_chats.structured,
    lambda explanation, tokens: simulator_chats.single_chat(explanation, tokens, 9),
]


@pytest.mark.parametrize("ask", CHATS)
def test_examples_are_turns_of_the_simulators_chats(ask):
    one, other = ask("a", ["x"]), ask("b", ["y"])
    roles = [message["role"] for message in one.messages]
    turns = len(roles) // 2 - 1
    assert roles == ["system", *["user", "assistant"] * turns, "user"] and turns >= 3
    assert one.messages[:-1] == other.messages[:-1]


@pytest.mark.parametrize("ask", CHATS)
@given(st.text(max_size=20), ANY_TOKENS)
def test_no_text_breaks_out_of_a_chat(ask, explanation, tokens):
    content = ask(explanation, tokens).messages[-1]["content"]
    own = content.replace("\n<end>", "", 1) if ask is CHATS[0] else content
    assert not CONTROL.search(own)
    assert "\ufffd" not in content
    assert content.startswith(f"The neuron reacts to: {escape(explanation)}\n\n")


@given(ANY_TOKENS)
def test_the_chats_show_every_token(tokens):
    repeat, as_json, single = (ask("a", tokens).messages[-1]["content"] for ask in CHATS)
    text = repeat.split("\n\n", 1)[1]
    assert [unescape(line) for line in text.split("\n")[1:-1]] == tokens
    assert json.loads(as_json.split("\n\n", 1)[1]) == tokens
    shown, last = single.split("\n\n", 1)[1].split("\n")
    assert unescape(shown.removeprefix("Text: ")) == "".join(tokens)
    assert unescape(last.removeprefix("Last token: ")) == tokens[-1]


@given(ANY_TOKENS)
def test_answers_have_room(tokens):
    """In the worst case, every byte of an answer is a token of its own."""
    lines = block([(token, 10) for token in tokens])
    assert len(lines.encode()) <= simulator_chats.repeating("a", tokens, 10).max_tokens
    items = ", ".join(f'{{"token": {json_string(t)}, "value": 10}}' for t in tokens)
    most = simulator_chats.structured("a", tokens).max_tokens
    # But for the two keys, each of which is at most five tokens to any tokenizer.
    assert len(items.encode()) - 8 * len(tokens) <= most


def test_the_examples_answers_are_read_as_they_are_meant():
    repeats = turns(simulator_chats.repeating("a", ["x"], 10))
    assert repeats == [block(neuron.texts[0]) for neuron in EXAMPLES]
    for neuron, chat in zip(EXAMPLES, turns(simulator_chats.structured("a", ["x"])), strict=True):
        tokens, wanted = zip(*neuron.texts[0], strict=True)
        values, reason = answers.structured(Answer(chat, "stop"), tokens, 10)
        assert reason is None
        assert values.tolist() == list(wanted)


def turns(chat):
    return [m["content"] for m in chat.messages if m["role"] == "assistant"]


def test_the_schema_is_one_that_strict_servers_take():
    """OpenAI's rules: all properties are required, and no others are allowed."""

    def check(schema):
        if schema["type"] == "object":
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])
            for inner in schema["properties"].values():
                check(inner)
        elif schema["type"] == "array":
            check(schema["items"])

    schema = simulator_chats.structured("a", ["x"]).schema
    check(schema)
    assert simulator_chats.structured("a", ["x"], held=False).schema is None
