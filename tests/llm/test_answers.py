"""Which answers of servers are finished, and what in them is the answer."""

import json
import re

import pytest
from faulty_server import streamed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastexplain.errors import LLMError
from fastexplain.llm.openai import events, failures, wire
from fastexplain.llm.openai.thoughts import answer_in
from fastexplain.llm.requests import Capabilities, Chat, UselessAnswerError

SETTINGS = settings(deadline=None, derandomize=True)
CHAT = Chat(({"role": "user", "content": "What?"},), max_tokens=60)
ABLE, THINKS = Capabilities(chat=True), Capabilities(chat=True, thinks=True)

# Written here once more: what this test allows must not follow the code.
FINISHED = [None, "", "stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE"]
CUT_OFF = ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length"]
OTHERS = ["tool_calls", "function_call", "tool_use", "content_filter", "SAFETY", "RECITATION",
          "refusal", "error", "abort", "repetition", "pause_turn", "sensitive", "ERROR", "Stop it",
          "FINISH_REASON_UNSPECIFIED", "guardrail_intervened", "unstop", "stopped by filter", 7,
          True, 0, [], {}, ["stop"]]  # fmt: skip


def data(content, finish="stop", **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return {
        "choices": [choice | {"finish_reason": finish}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 2},
    }


def read(content, finish="stop", able=ABLE, chat=CHAT, **message):
    return wire.read(chat, data(content, finish, **message), able).text


@SETTINGS
@given(
    st.sampled_from(FINISHED + CUT_OFF + OTHERS)
    | st.text(max_size=12)
    | st.integers()
    | st.lists(st.text(max_size=3), max_size=2)
)
@example("st\u00f6p")
@example("stop\0")
def test_only_a_finished_answer_is_an_answer(finish):
    known = finish is None or (isinstance(finish, str) and finish.strip().lower() in
                               {str(each or "").lower() for each in FINISHED})  # fmt: skip
    if known:
        assert read("birds", finish) == "birds"
        return
    with pytest.raises(UselessAnswerError) as caught:
        read("birds", finish)
    said = str(caught.value)
    assert "\n" not in said and caught.value.usage.prompt_tokens == 30
    if isinstance(finish, str) and finish.strip().lower() in {each.lower() for each in CUT_OFF}:
        assert said == "the answer was cut off after 60 tokens"
    elif finish != "content_filter":
        assert re.search("the answer is not finished: its finish reason is|reports an error", said)


@pytest.mark.parametrize("finish", CUT_OFF)
def test_of_an_answer_that_was_cut_off_the_whole_lines_count(finish):
    assert read("birds and trees\nThey a", finish) == "birds and trees"
    schema = Chat(CHAT.messages, 60, schema={"type": "object"})
    assert read('{"a": 1, "b', finish, chat=schema) == '{"a": 1, "b'  # its reader says where
    with pytest.raises(LLMError, match="cut off after 60 tokens"):
        read("\n \nbirds", finish)


MARKS = [
    "<think>{}</think>{}",
    "\n<think>{}\n</think>\n\n{}",
    "<thinking>{}</thinking>{}",
    "<thought>{}</thought>{}",
    "<reasoning>{}</reasoning>{}",
    "<seed:think>{}</seed:think>{}",
    "[THINK]{}[/THINK]{}",
    "\u25c1think\u25b7{}\u25c1/think\u25b7{}",
    "<|begin_of_thought|>{}<|end_of_thought|>\n<|begin_of_solution|>{}<|end_of_solution|>",
    "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "<|channel>thought\n{}<channel|>{}",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}",
    "<|channel|>analysis<|message|>{}<|channel|>final<|message|>{}<|return|>",
    "<|start|>assistant<|channel|>analysis<|message|>{}<|channel|>final<|message|>{}<|end|>",
    "analysis{}assistantfinal{}",
    "<think>{}</think><answer>{}</answer>",
    "<think>{}</think><think>again</think>{}",
]
PLAIN = st.text(st.characters(exclude_characters="<>[]|\u25c1\u25b7"), min_size=1).filter(str.strip)


@SETTINGS
@given(st.sampled_from(MARKS), PLAIN, PLAIN)
@example(MARKS[0], "1. analysis", "assistantfinal")
def test_only_the_final_part_is_the_answer(mark, thoughts, answer):
    written = mark.format(thoughts, answer)
    if "assistantfinal" in thoughts:
        return
    for able in (ABLE, THINKS):
        assert read(written, able=able).strip() == answer.strip()
    assert wire.thinks(data(written))


@pytest.mark.parametrize("mark", MARKS)
def test_thoughts_without_an_answer_are_none(mark):
    behind = mark.format("Hm.", "")
    before = re.split(r"</|\[/|\u25c1/|<\|end|<\|END|<channel|<\|channel\|>final", behind)[0]
    for written in {behind, before} - {"analysisHm.assistantfinal"}:
        for able in (ABLE, THINKS):
            with pytest.raises(LLMError, match=r"among its thoughts, without|is empty"):
                read(written, able=able)
    with pytest.raises(LLMError, match="was cut off"):
        read(before, "length")


@SETTINGS
@given(st.text())
def test_a_text_without_marks_is_the_answer(text):
    assert answer_in(text) == text


@pytest.mark.parametrize(
    "text", ["analysis of data", "assistantfinal", "a </think> b", "x [/THINK]"]
)
def test_words_of_marks_may_stand_in_an_answer(text):
    assert answer_in(text) == text


@pytest.mark.parametrize(
    ("content", "text", "thinks"),
    [
        ([{"type": "text", "text": "bir"}, {"type": "text", "text": "ds"}], "birds", False),
        ([{"type": "output_text", "text": "birds"}], "birds", False),
        (["bir", "ds"], "birds", False),
        (
            [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "birds"}],
            "birds",
            True,
        ),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, "birds"],
            "birds",
            True,
        ),
    ],
)
def test_of_parts_the_texts_are_the_answer(content, text, thinks):
    assert read(content) == text
    assert wire.thinks(data(content)) == thinks


@pytest.mark.parametrize(
    "content", [[], [None], [7], [{}], [{"type": "text", "text": None}], {}, 7]
)
def test_parts_without_text_are_no_answer(content):
    with pytest.raises(LLMError, match="has no text"):
        read(content)


def test_what_comes_without_choices_is_quoted():
    for body in (
        {"base_resp": {"status_msg": "insufficient\nbalance"}},
        {"msg": "insufficient balance"},
    ):
        with pytest.raises(
            UselessAnswerError, match=r"no choices but this: .*insufficient"
        ) as caught:
            wire.read(CHAT, {"id": "x", "choices": None} | body, ABLE)
        assert "\n" not in str(caught.value) and caught.value.usage.completion_tokens == 0
    with pytest.raises(UselessAnswerError, match=r"has no choices$"):
        wire.read(CHAT, {"id": "x", "choices": []}, ABLE)


@pytest.mark.parametrize("place", ["beside", "in"])
def test_an_error_is_no_answer_in_a_batch_either(place):
    body = data("half a te", None)
    (body if place == "beside" else body["choices"][0])["error"] = {"code": 502, "message": "no"}
    with pytest.raises(UselessAnswerError, match=r"the server reports an error: .*502.*no"):
        wire.read(CHAT, body, ABLE)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (b'"a \\ud83d b"', "a ? b"),
        (b'"a \\ud83d\\ude00 b"', "a \U0001f600 b"),
        (b'"a \xff b"', "a \ufffd b"),
        (b'"a \x01\n b"', "a \x01\n b"),
        (b'"a"', "a"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_that_is_not_quite_json_is_read_and_can_be_stored(written, text, mark):
    content = mark + b'{"choices": [{"message": {"content": ' + written + b"}}]}"
    read = wire.read(CHAT, wire.parse(content), ABLE).text
    assert read == text and read.encode()
    assert wire.parse(content[:-1]) is None and wire.parse(content + b"x") is None


def test_what_is_nested_without_end_is_no_answer():
    assert wire.parse(b"[" * 10**6) is None and wire.parse(b"[" * 10**5 + b"]" * 10**5) is None


@pytest.mark.parametrize("choice", [{"error": {"code": 502}}, {"finish_reason": "error"}])
def test_an_error_in_any_of_several_choices_is_found(choice):
    whole = [{"index": index, "text": "0", "finish_reason": "length"} for index in range(3)]
    assert failures.reported({"choices": whole}) is None
    for place in range(3):
        spoilt = [*whole[:place], whole[place] | choice, *whole[place + 1 :]]
        assert failures.reported({"choices": spoilt})[0] in (500, 502)
    for none in (None, [], [None], ["x"], {}, 7):
        assert failures.reported({"choices": none}) is None


# Streams


@SETTINGS
@given(st.text(), st.sampled_from(["stop", "length", None]), st.sampled_from(["\n", "\r\n"]))
@example('data: [DONE]\n\ndata: {"a"', "stop", "\n")
@example("\u2028\x85\x0b", "stop", "\n")
def test_a_stream_is_what_it_streams(text, finish, line):
    body = data(text, finish)
    stream = streamed(body).replace(b"\n", line.encode())
    found = wire.parse(stream)
    del body["choices"][0]["message"]["role"]
    if not text:
        body["choices"][0]["message"] = {}
    assert found == body


@SETTINGS
@given(st.integers(0, 400))
def test_a_stream_that_ends_early_is_none(end):
    whole = streamed(data("birds", "stop"))
    cut = whole[: min(end, whole.rindex(b"data: {", 0, whole.rindex(b"data: {")))]
    assert wire.parse(cut) is None


@pytest.mark.parametrize(
    "stream",
    [b"data: 7\n\n", b"data: {]\n\ndata: [DONE]\n\n", b"data: []\n\ndata: [DONE]\n\n", b":"],
)
def test_a_stream_of_something_else_is_none(stream):
    assert events.is_stream(stream) and wire.parse(stream) is None


def test_an_error_in_a_stream_is_found():
    error = {"error": {"code": 502, "message": "down"}}
    chunk = {"choices": [{"index": 0, "delta": {"content": "bi"}, "finish_reason": None}]}
    stream = "".join(f"event: x\ndata: {json.dumps(each)}\n\n" for each in (chunk, error)).encode()
    assert wire.parse(stream)["error"] == error["error"]
