import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastexplain.errors import LLMError
from fastexplain.prompts import explainer, simulator
from fastexplain.prompts.examples import EXAMPLES
from fastexplain.prompts.lines import block, escape, unescape
from fastexplain.records import Exemplar


def exemplar(tokens, activations):
    return Exemplar(0, np.arange(len(tokens)), tokens, np.array(activations, dtype=np.float32))


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
        "<think>Hm, the Danube,\nthe Rhine ...</think>\nnames of rivers",
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


@pytest.mark.parametrize("answer", ["", " \n ", '""', "This neuron fires on", "<think>never done"])
def test_an_empty_answer_is_an_error(answer):
    with pytest.raises(LLMError, match="empty"):
        explainer.parse(answer)


@given(
    st.text(max_size=20),
    st.lists(st.text(max_size=8), min_size=1, max_size=8),
    st.sampled_from([9, 10]),
)
def test_places_are_where_the_values_would_stand(explanation, tokens, largest):
    prompt = simulator.prompt(explanation, tokens, largest)
    lines = prompt.text[prompt.shared :].splitlines()
    assert len(lines) == 2 + len(tokens) == 2 + len(prompt.places)
    for place, token, line in zip(prompt.places, tokens, lines[2:], strict=True):
        assert line == f"{escape(token)}\tunknown"
        assert prompt.text[: place + len("unknown\n")].endswith(f"{line}\n")
        assert prompt.text.startswith("unknown", place)


def test_the_shared_part_is_the_same_for_all():
    one, other = simulator.prompt("a", ["x"], 9), simulator.prompt("bc", ["y", "z"], 9)
    assert one.text[: one.shared] == other.text[: other.shared]


@pytest.mark.parametrize("largest", [9, 10])
def test_examples_use_the_scale_of_the_tokenizer(largest):
    prompt = simulator.prompt("x", ["y"], largest)
    values = [line.split("\t")[1] for line in prompt.text.splitlines() if "\t" in line]
    assert max(int(value) for value in values if value != "unknown") == largest
    assert f" {largest} is as strongly" in prompt.text
