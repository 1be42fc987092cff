import asyncio
import json
import math
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastexplain.errors import BudgetError, Deferred, LLMError, UnusableError, UsageError
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import StoredConnection
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Capabilities, Chat, Distribution, Reading, Token
from fastexplain.prompts import answers
from fastexplain.prompts.examples import EXAMPLES
from fastexplain.prompts.lines import END, START, escape
from fastexplain.prompts.mixed_examples import MIXED
from fastexplain.run.database import Database
from fastexplain.simulators.model import MODES, OTHERS, Simulator, choose_mode

FILLERS = ("unknown", "?", "0")
ABLE = Capabilities(
    chat=True, chat_logprobs=20, schema="json_schema", next_logprobs=20, prompt_logprobs=20,
    largest=9, fillers=FILLERS,
)  # fmt: skip
CHATS = Capabilities(chat=True, chat_logprobs=20, schema="json_schema", largest=9)
NOTHING = Capabilities()

TOKENS = ["The", " cat", "\n", " sat"]
# Tokens of any subject: any text, and what is hard in prompts.
ANY_TOKENS = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from(
            ["\n", "\t", "\r\n", " ", "   ", "", "\\", "\\n", "\\t3", "\ufffd", "\ufffd\ufffd", "é",
             "<start>", "<end>", "<|im_end|>", "</s>", "7", " 10", "3\n", '"', "{", "\u2028"],
        ),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


class Model(Connection):
    """Answers by a function of the request and its number."""

    address, concurrency = "here", 4

    def __init__(self, answer, capabilities=ABLE):
        self.model, self.answer, self.capabilities = "model", answer, capabilities
        self.asked = []

    async def probe(self):
        return self.capabilities

    async def ask(self, request):
        self.asked.append(request)
        result = self.answer(request, len(self.asked) - 1)
        if isinstance(result, Exception):
            raise result
        return result


def simulate(model, tokens, mode, readout="expected", explanation="rivers"):
    simulator = Simulator(model, mode, readout)
    return asyncio.run(simulator.simulate(explanation, tokens))


def certain(values, largest=9):
    is_value = np.arange(largest + 1) == np.asarray(values)[:, None]
    return Distribution(np.where(is_value, 0.0, -np.inf).astype(np.float32))


# Where tokenizers may cut an answer, and what stands between a tab and its number.
CUTS = {
    "apart": ("", r"\t|[0-9]+|\n|[^\t\n0-9]+"),
    "tab and number": ("", r"\t[0-9]+|[0-9]+|\n|[^\t\n0-9]+|\t"),
    "number and newline": ("", r"\t|[0-9]+\n?|\n|[^\t\n0-9]+"),
    "space and number": (" ", r"\t| ?[0-9]+|\n|[^\t\n0-9]"),
    "tab, space and number": (" ", r"\t ?[0-9]+|[0-9]+|\n|[^\t\n0-9]+|\t"),
    "token and tab": ("", r"[^\t\n0-9]*\t|[0-9]+|\n|[^\t\n0-9]+"),
    "characters": ("", r"(?s:.)"),
}


def cut(text, pattern):
    """The text in tokens, each of which is certain; the numbers among them are listed."""
    pieces = re.findall(pattern, text)
    assert "".join(pieces) == text
    return tuple(Token(p, {p: 0.0} if re.fullmatch(r"\s*[0-9]+\s*", p) else {}) for p in pieces)


def written(tokens, values, space=""):
    lines = [f"{escape(t)}\t{space}{v}" for t, v in zip(tokens, values, strict=True)]
    return "\n".join([START, *lines, END])


def answer(text, pattern=CUTS["apart"][1], finish="stop"):
    return Answer(text, finish, cut(text, pattern))


def items(tokens, values):
    both = zip(tokens, values, strict=True)
    return json.dumps({"activations": [{"token": t, "value": v} for t, v in both]})


def test_a_contrast_with_others_reads_the_text_under_each_of_them():
    def rise(request, _):
        return certain([3 + (" rivers" in request.head) for _ in request.lines])

    model = Model(rise)
    found = simulate(model, TOKENS, "prompt-logprobs", "contrast-others")
    assert found.values == pytest.approx([np.log(4 / np.mean([3, 3, 4]))] * len(TOKENS))
    assert [request.head.split("\n")[0][1:] for request in model.asked] == ["rivers", *OTHERS]
    assert {(request.lines, request.filler) for request in model.asked} == {
        (model.asked[0].lines, "0")
    }
    simulator = Simulator(model, "prompt-logprobs", "contrast-others")
    assert simulator.version.endswith(" prompt-logprobs contrast-others")
    assert simulator.requests(64) == 4


@pytest.mark.parametrize("mode", ["prompt-logprobs", "generated-logprobs", "json"])
def test_fillers_and_examples_may_be_chosen_and_are_named(mode):
    model = Model(lambda request, _: LLMError("no"))
    for filler, examples in ((None, "standard"), ("?", "mixed")):
        simulator = Simulator(model, mode, "expected", filler, examples)
        with pytest.raises(LLMError):
            asyncio.run(simulator.simulate("rivers", TOKENS))
    usual, other = model.asked
    shown = [
        r.shared if isinstance(r, Reading) else " ".join(m["content"] for m in r.messages)
        for r in (usual, other)
    ]
    assert [MIXED[-1].explanation in each for each in shown] == [False, True]
    assert [EXAMPLES[-1].explanation in each for each in shown] == [True, False]
    named = simulator.version.removeprefix(Simulator(model, mode).version)
    assert named == (" with-?" if mode == "prompt-logprobs" else "") + " mixed-examples"
    if mode == "prompt-logprobs":
        assert (usual.filler, other.filler) == ("unknown", "?")


# A model that answers perfectly.


@st.composite
def tokens_and_values(draw, largest):
    tokens = draw(ANY_TOKENS)
    values = st.lists(st.integers(0, largest), min_size=len(tokens), max_size=len(tokens))
    return tokens, draw(values)


@given(tokens_and_values(9))
def test_prompt_logprobs_give_the_values(both):
    tokens, values = both
    simulation = simulate(Model(lambda *_: certain(values)), tokens, "prompt-logprobs")
    assert simulation.values.tolist() == values
    assert simulation.reason is None


@given(tokens_and_values(10), st.sampled_from(sorted(CUTS)))
@example((["a", "b"], [10, 1]), "characters")
@example((["<start>", "\n", "\t3", " <end>"], [1, 2, 3, 4]), "tab and number")
def test_generated_logprobs_give_the_values_however_the_answer_is_cut(both, how):
    tokens, values = both
    space, pattern = CUTS[how]
    text = written(tokens, values, space)
    model = Model(lambda *_: answer(text, pattern), Capabilities(chat_logprobs=20, largest=10))
    simulation = simulate(model, tokens, "generated-logprobs")
    assert simulation.values.tolist() == values
    assert simulation.reason is None


@given(tokens_and_values(10))
def test_json_gives_the_values(both):
    tokens, values = both
    simulation = simulate(Model(lambda *_: Answer(items(tokens, values), "stop")), tokens, "json")
    assert simulation.values.tolist() == values
    assert simulation.reason is None


@given(tokens_and_values(9))
@settings(max_examples=50)
def test_one_at_a_time_gives_the_values(both):
    tokens, values = both
    plain = Model(lambda _, number: certain([values[number]]))
    chats = Model(
        lambda _, number: Answer(str(values[number]), "stop", cut(str(values[number]), "[0-9]+")),
        CHATS,
    )
    for model, kind in ((plain, Reading), (chats, Chat)):
        simulation = simulate(model, tokens, "one-at-a-time")
        assert simulation.values.tolist() == values
        assert simulation.reason is None
        assert len(model.asked) == len(tokens)
        assert all(isinstance(request, kind) for request in model.asked)


@pytest.mark.parametrize("mode", MODES)
def test_an_excerpt_without_tokens_is_not_asked_about(mode):
    model = Model(None)
    assert simulate(model, [], mode).values.shape == (0,)
    assert model.asked == []


# What is asked.


@pytest.mark.parametrize("largest", [9, 10])
def test_an_excerpt_is_one_request_on_the_models_scale(largest):
    able = Capabilities(prompt_logprobs=20, largest=largest, fillers=("?", "0"))
    flat = Distribution(np.zeros((4, largest + 1), dtype=np.float32))
    model = Model(lambda *_: flat, able)
    assert simulate(model, TOKENS, "prompt-logprobs").values.tolist() == [largest / 2] * 4
    [request] = model.asked
    assert request.filler == "?" and request.largest == largest
    assert request.text.endswith("\nThe\t?\n cat\t?\n\\n\t?\n sat\t?\n")


def test_json_without_a_schema_is_asked_for_by_example():
    model = Model(lambda *_: Answer("", "stop"), Capabilities(chat=True))
    simulate(model, TOKENS, "json")
    assert model.asked[0].schema is None
    model = Model(lambda *_: Answer("", "stop"))
    simulate(model, TOKENS, "json")
    assert model.asked[0].schema is not None


def test_single_tokens_are_asked_about_behind_the_text_up_to_there():
    model = Model(lambda *_: certain([1]))
    simulate(model, TOKENS, "one-at-a-time")
    ends = [request.text[-40:].split(": ")[-1] for request in model.asked]
    assert ends == ["The\nThe\t", "The cat\n cat\t", "The cat\\n\n\\n\t", "The cat\\n sat\n sat\t"]


# Distributions.


def test_a_value_is_the_expectation_over_what_is_listed():
    integers = {"0": math.log(0.3), " 0": math.log(0.1), "5": math.log(0.4), "the": -1.0}
    tokens = (Token("a", {}), Token("\t", {"7": 0.0}), Token("5", integers), Token("\n", {}))
    model = Model(lambda *_: Answer("a\t5\n", "stop", tokens))
    assert simulate(model, ["a"], "generated-logprobs").values == pytest.approx([2.5])


def test_a_number_joined_with_its_tab_has_only_such_alternatives():
    integers = {"\t5": math.log(0.5), "\t1": math.log(0.25), "9": math.log(0.25)}
    model = Model(lambda *_: Answer("a\t5", "stop", (Token("a", {}), Token("\t5", integers))))
    found = simulate(model, ["a"], "generated-logprobs").values
    assert found == pytest.approx([(5 * 0.5 + 1 * 0.25) / 0.75])


def ten(number, first, then, more=()):
    """An answer "a<tab>number" whose first digit and the token behind it list these."""
    digits = [Token(number[0], first), Token(number[1:] or "\n", then)]
    tokens = (Token("a", {}), Token("\t", {}), *digits, *more)
    return Answer("".join(token.text for token in tokens), "stop", tokens)


@pytest.mark.parametrize("number", ["1", "10"])
def test_ten_in_two_tokens_follows_the_chain_rule(number):
    """Of a "1" of probability 0.5, a fifth goes on to "10"; the others are zeros."""
    first, then = {"1": math.log(0.5), "0": math.log(0.5)}, {"0": math.log(0.2)}
    able = Capabilities(chat_logprobs=20, largest=10)
    model = Model(lambda *_: ten(number, first, then), able)
    found = simulate(model, ["a"], "generated-logprobs").values
    assert found == pytest.approx([0.4 * 1 + 0.1 * 10])


def test_beyond_the_scale_ten_is_left_out_and_not_counted_as_one():
    first, then = {"1": math.log(0.5), "0": math.log(0.5)}, {"0": math.log(0.2)}
    model = Model(lambda *_: ten("1", first, then))
    found = simulate(model, ["a"], "generated-logprobs").values
    assert found == pytest.approx([0.4 / 0.9])
    model = Model(lambda *_: ten("10", first, then))
    simulation = simulate(model, ["a"], "generated-logprobs")
    assert np.isnan(simulation.values).all()
    assert simulation.reason == "'10' is no number from 0 to 9, at token 1 of 1, 'a'"


@pytest.mark.parametrize(("share", "known"), [(0.2, False), (0.001, True)])
def test_a_one_that_may_begin_ten_is_missing_where_it_weighs(share, known):
    other = {"3": math.log(1 - share), "1": math.log(share)}
    more = [Token("\nb", {}), Token("\t", {}), Token("3", other), Token("\n", {})]
    able = Capabilities(chat_logprobs=20, largest=10)
    model = Model(lambda *_: ten("10", {"1": 0.0}, {"0": 0.0}, more), able)
    simulation = simulate(model, ["a", "b"], "generated-logprobs")
    assert simulation.values[0] == 10
    if known:
        assert simulation.values[1] == 3
    else:
        assert np.isnan(simulation.values[1])
        assert simulation.reason == "a 1 may be the first half of a 10 at token 2 of 2, 'b'"


# Answers that are not as they should be.


@pytest.mark.parametrize(
    ("text", "finish", "values", "reason"),
    [
        ("", "stop", [None] * 4, "came without log-probabilities"),
        ("I can't.", "stop", [None] * 4, "the answer has \"I can't.\" at token 1 of 4, 'The'"),
        ("The\t1\n cat\t2\n\\n\t3\n sat\t4", "stop", [1, 2, 3, 4], None),
        ("\n\n<start>\nThe\t1\n cat\t2\n\\n\t3\n sat\t4\n\n", "stop", [1, 2, 3, 4], None),
        ("The\t1\r\ncat\t2\r\n\\n\t3\r\nsat\t4\r\n", "stop", [1, 2, 3, 4], None),
        ("The\t1\n dog\t2\n\\n\t3\n sat\t4", "stop", [1], "has ' dog\\t2' at token 2 of 4, ' cat'"),
        ("The\t1\n\\n\t3\n sat\t4", "stop", [1], "at token 2 of 4"),
        ("The\t1\n cat\t2\n\n sat\t4", "stop", [1, 2], "ends before token 3 of 4, '\\n'"),
        ("The\t1\n cat\t2\n\\n\t3\n<end>", "stop", [1, 2, 3], "ends before token 4 of 4, ' sat'"),
        ("The\t1\n cat\t2", "stop", [1, 2], "the answer ends before token 3 of 4, '\\n'"),
        ("The\t1\n cat\t2", "length", [1], "the answer was cut off at token 2 of 4, ' cat'"),
        ("The\t1\n ca", "length", [1], "the answer was cut off at token 2 of 4, ' cat'"),
        ("The\t1\n cat\t2\n", "length", [1, 2], "the answer was cut off at token 3 of 4, '\\n'"),
        ("The\t1\n cat\t2.5\n\\n\t3\n sat\t4", "stop", [1, None, 3, 4], "'2.5' is no number"),
        ("The\t1\n cat\t11\n\\n\t3\n sat\t4", "stop", [1, None, 3, 4], "'11' is no number from 0"),
        ("The\t1\n cat\t-2\n\\n\t3\n sat\t4", "stop", [1, None, 3, 4], "'-2' is no number"),
        ("The\t1\n cat\tunknown\n\\n\t3\n sat\t4", "stop", [1, None, 3, 4], "'unknown' is no num"),
        ("The\t1\n cat\t٣\n\\n\t3\n sat\t4", "stop", [1, None, 3, 4], "'٣' is no number"),
        ("The\t1\n cat\t\n\\n\t3\n sat\t4", "stop", [1, None, 3, 4], "'' is no number"),
        ("The 1\n cat 2", "stop", [], "the answer has 'The 1' at token 1 of 4, 'The'"),
    ],
)  # fmt: skip
def test_values_end_where_a_repeated_text_does(text, finish, values, reason):
    pattern = r"\t|[0-9]+|\n|[^\t\n0-9]+"
    simulation = simulate(
        Model(lambda *_: answer(text, pattern, finish)), TOKENS, "generated-logprobs"
    )
    check(simulation, values, reason)


def check(simulation, values, reason):
    wanted = [np.nan if value is None else value for value in values]
    wanted += [np.nan] * (len(TOKENS) - len(wanted))
    np.testing.assert_array_equal(simulation.values, wanted)
    if reason is None:
        assert simulation.reason is None
    else:
        assert reason in simulation.reason and "\n" not in simulation.reason


def test_a_number_without_probabilities_is_missing():
    tokens = tuple(Token(t, {}) for t in ("The", "\t", "1", "\n", " cat", "\t"))
    tokens += (Token("2", {"2": 0.0}),)
    model = Model(lambda *_: Answer("The\t1\n cat\t2", "stop", tokens))
    simulation = simulate(model, TOKENS[:2], "generated-logprobs")
    np.testing.assert_array_equal(simulation.values, [np.nan, 2])
    assert simulation.reason == "no probabilities of numbers from 0 to 9 at token 1 of 2, 'The'"


def test_logarithms_that_can_be_none_are_none():
    tokens = (Token("a", {}), Token("\t", {}), Token("1", {"1": 1e4}))
    for able, mode, answer in (
        (ABLE, "generated-logprobs", Answer("a\t1", "stop", tokens)),
        (CHATS, "one-at-a-time", Answer("1", "stop", tokens[2:])),
    ):
        simulation = simulate(Model(lambda *_, a=answer: a, able), ["a"], mode)
        assert np.isnan(simulation.values).all()
        assert "a log-probability is far above 0" in simulation.reason


def test_probabilities_beyond_the_scale_alone_are_none():
    tokens = (Token("a", {}), Token("\t", {}), Token("1", {"42": 0.0}))
    simulation = simulate(
        Model(lambda *_: Answer("a\t1", "stop", tokens)), ["a"], "generated-logprobs"
    )
    assert np.isnan(simulation.values).all()


def test_tokens_that_are_parts_of_characters_move_no_place():
    """Servers write such tokens as they like; the text is right."""
    text = "é\t1\n中\t2\n"
    pieces = ["\\xc3", "\\xa9", "\t", "1", "\n", "\ufffd", "\ufffd", "\ufffd", "\t", "2", "\n"]
    tokens = tuple(Token(p, {p: 0.0} if p.isdigit() else {}) for p in pieces)
    model = Model(lambda *_: Answer(text, "stop", tokens))
    assert simulate(model, ["é", "中"], "generated-logprobs").values.tolist() == [1, 2]


@pytest.mark.parametrize("pieces", [["é", "\t", "3"], ["é"], ["é 1"]])
def test_tokens_that_contradict_the_text_are_not_read(pieces):
    tokens = tuple(Token(p, {p: 0.0} if p.isdigit() else {}) for p in pieces)
    simulation = simulate(
        Model(lambda *_: Answer("é\t1", "stop", tokens)), ["é"], "generated-logprobs"
    )
    assert np.isnan(simulation.values).all()
    assert simulation.reason == "the answer's tokens are not its text at token 1 of 1, 'é'"


RIGHT = [{"token": token, "value": place + 1} for place, token in enumerate(TOKENS)]


@pytest.mark.parametrize(
    ("text", "finish", "values", "reason"),
    [
        ("", "stop", [], "the answer is not JSON: ''"),
        ("{", "stop", [], "the answer is not JSON: '{'"),
        ("[" * 100_000, "stop", [], "the answer is not JSON: '[[["),
        (json.dumps({"activations": RIGHT})[:-9], "length", [], "the answer was cut off"),
        ("[]", "stop", [], "no list of activations"),
        ('{"activations": 3}', "stop", [], "no list of activations"),
        ({}, "stop", [1, 2, 3, 4], None),
        ("```json\n" + json.dumps({"activations": RIGHT}) + "\n```", "stop", [1, 2, 3, 4], None),
        (json.dumps({"activations": RIGHT + RIGHT}), "stop", [1, 2, 3, 4], None),
        (json.dumps({"activations": RIGHT[:2]}), "stop", [1, 2], "ends before token 3 of 4, '\\n'"),
        (json.dumps({"activations": [RIGHT[0], RIGHT[2]]}), "stop", [1], "has '\\n' at token 2"),
        (json.dumps({"activations": [RIGHT[0], 7]}), "stop", [1], "has no token at token 2"),
        ({1: {"token": " dog", "value": 2}}, "stop", [1], "has ' dog' at token 2 of 4, ' cat'"),
        ({1: {"token": "cat", "value": 2}}, "stop", [1, 2, 3, 4], None),
        ({2: {"token": "", "value": 2}}, "stop", [1, 2], "the answer has '' at token 3 of 4"),
        ({1: {"token": " cat", "value": 11}}, "stop", [1, None, 3, 4], "'11' is no number from 0"),
        ({1: {"token": " cat", "value": 2.0}}, "stop", [1, None, 3, 4], "'2.0' is no number"),
        ({1: {"token": " cat", "value": True}}, "stop", [1, None, 3, 4], "'true' is no number"),
        ({1: {"token": " cat", "value": "2"}}, "stop", [1, None, 3, 4], "is no number from 0 to"),
        ({1: {"token": " cat"}}, "stop", [1, None, 3, 4], "'null' is no number"),
    ],
)  # fmt: skip
def test_values_end_where_a_json_text_does(text, finish, values, reason):
    if isinstance(text, dict):
        changed = [text.get(place, item) for place, item in enumerate(RIGHT)]
        text = json.dumps({"activations": changed})
    simulation = simulate(Model(lambda *_: Answer(text, finish)), TOKENS, "json")
    check(simulation, values, reason)


@pytest.mark.parametrize(
    ("pieces", "value", "reason"),
    [
        ([("7", {"7": 0.0})], 7, None),
        ([("\n", {}), (" ", {}), ("7", {"7": 0.0})], 7, None),
        ([(" 7", {" 7": 0.0})], 7, None),
        ([("\n7", {"\n7": 0.0, "3": 0.0})], 7, None),
        ([("1", {"1": 0.0}), ("0", {"0": 0.0})], None, "no probabilities of numbers from 0 to 9"),
        ([("7", {})], None, "no probabilities of numbers from 0 to 9"),
        ([("It", {"7": -3.0}), (" is", {})], None, "the answer is not a number: 'It is'"),
        ([], None, "the answer is empty"),
    ],
)
def test_a_single_tokens_answer_is_a_number_or_missing(pieces, value, reason):
    tokens = tuple(Token(*piece) for piece in pieces)
    text = "".join(token.text for token in tokens)
    model = Model(lambda *_: Answer(text, "stop", tokens), CHATS)
    simulation = simulate(model, ["a"], "one-at-a-time")
    np.testing.assert_array_equal(simulation.values, [np.nan if value is None else value])
    if reason is None:
        assert simulation.reason is None
    else:
        assert reason in simulation.reason and simulation.reason.endswith("at token 1 of 1, 'a'")


def test_a_row_without_probabilities_is_missing_and_not_zero():
    rows = certain([0, 5, 0, 7]).log_probabilities.copy()
    rows[1] = np.nan
    simulation = simulate(Model(lambda *_: Distribution(rows)), TOKENS, "prompt-logprobs")
    np.testing.assert_array_equal(simulation.values, [0, np.nan, 0, 7])
    assert simulation.reason == "no probabilities of numbers at token 2 of 4, ' cat'"
    model = Model(lambda _, number: Distribution(rows[[number]]))
    other = simulate(model, TOKENS, "one-at-a-time")
    np.testing.assert_array_equal(other.values, simulation.values)
    assert other.reason == "no probabilities of numbers, at token 2 of 4, ' cat'"


def test_single_tokens_fail_alone():
    def fail(_, number):
        return LLMError("refused") if number % 2 else certain([number])

    simulation = simulate(Model(fail), TOKENS, "one-at-a-time")
    np.testing.assert_array_equal(simulation.values, [0, np.nan, 2, np.nan])
    assert simulation.reason == "refused, at token 2 of 4, ' cat'"


def test_where_all_fails_all_is_missing():
    simulation = simulate(Model(lambda *_: LLMError("refused")), TOKENS, "one-at-a-time")
    assert np.isnan(simulation.values).all()
    assert simulation.reason == "refused, at token 1 of 4, 'The'"


@pytest.mark.parametrize("mode", ["prompt-logprobs", "generated-logprobs", "json"])
def test_a_failed_request_is_for_the_caller_to_record(mode):
    with pytest.raises(LLMError, match="refused"):
        simulate(Model(lambda *_: LLMError("refused")), TOKENS, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [UnusableError("gone"), BudgetError("spent")])
def test_what_stops_everything_is_passed_on(mode, error):
    model = Model(lambda *_: error)
    with pytest.raises(type(error)):
        simulate(model, TOKENS * 16, mode)
    assert len(model.asked) <= 8


def test_all_that_waits_for_a_batch_is_noted_before_it_is_told():
    model = Model(lambda *_: Deferred("later"))
    with pytest.raises(Deferred):
        simulate(model, TOKENS * 16, "one-at-a-time")
    assert len(model.asked) == 64
    model = Model(lambda *_: Deferred("later"))
    with pytest.raises(Deferred):
        simulate(model, TOKENS, "prompt-logprobs", "contrast")
    assert len(model.asked) == 2


# Contrast.


def test_a_contrast_reads_the_same_text_under_an_empty_explanation():
    rows = {"rivers": [[0.9, 0.1], [0.1, 0.9]], "something": [[0.9, 0.1], [0.9, 0.1]]}

    def answer(request, _):
        return Distribution(np.log(rows[request.head.split()[0]]))

    model = Model(answer)
    values = simulate(model, TOKENS[:2], "prompt-logprobs", "contrast").values
    assert values[1] > values[0] == 0
    one, other = model.asked
    assert one.head == " rivers\n<start>\n" and other.head == " something\n<start>\n"
    assert one.lines == other.lines and one.shared == other.shared


def test_the_empty_reading_is_shared_by_all_neurons(tmp_path):
    flat = Distribution(np.zeros((4, 10), dtype=np.float32))
    model = Model(lambda *_: flat)
    with Database(tmp_path / "run.sqlite") as database:
        stored = StoredConnection(model, Responses(database), "simulation")
        stored.capabilities = ABLE
        simulator = Simulator(stored, "prompt-logprobs", "contrast")
        for explanation in ["rivers", "lakes", "seas"]:
            asyncio.run(simulator.simulate(explanation, TOKENS))
    assert [r.head.split()[0] for r in model.asked] == ["rivers", "something", "lakes", "seas"]


def test_a_contrast_of_single_tokens_is_missing_where_either_reading_is():
    def fail(request, number):
        return LLMError("refused") if number in (1, 6) else certain([3])

    model = Model(fail)
    simulation = simulate(model, TOKENS, "one-at-a-time", "contrast")
    assert np.isnan(simulation.values).tolist() == [False, True, True, False]
    assert simulation.reason == "refused, at token 2 of 4, ' cat'"
    model = Model(lambda request, number: LLMError("refused") if number == 6 else certain([3]))
    assert simulate(model, TOKENS, "one-at-a-time", "contrast").reason == (
        "refused, at token 3 of 4, '\\n'"
    )


# The choice.


def test_the_best_way_that_there_is_is_chosen():
    assert choose_mode(ABLE, None, "expected") == "prompt-logprobs"
    assert choose_mode(CHATS, None, "expected") == "generated-logprobs"
    assert choose_mode(Capabilities(chat=True), None, "expected") == "json"
    assert choose_mode(Capabilities(next_logprobs=5), None, "expected") == "one-at-a-time"
    assert choose_mode(ABLE, None, "contrast") == "prompt-logprobs"
    assert choose_mode(CHATS, None, "contrast") == "one-at-a-time"


@pytest.mark.parametrize("mode", MODES)
def test_the_way_that_is_asked_for_is_taken_where_it_is_possible(mode):
    assert choose_mode(ABLE, mode, "expected") == mode
    with pytest.raises(UnusableError, match="the simulator gives no "):
        choose_mode(NOTHING, mode, "expected")


def test_what_is_lacking_is_told_with_what_to_use_instead():
    lacking = Capabilities(
        chat=True, next_logprobs=20, lacks={"prompt_logprobs": "unknown field: echo"}
    )
    with pytest.raises(UnusableError) as raised:
        choose_mode(lacking, "prompt-logprobs", "expected")
    assert str(raised.value) == (
        "the simulator gives no log-probabilities of prompts (echo) (unknown field: echo); use "
        "vLLM, a local model, or `simulation='json'`"
    )
    with pytest.raises(UnusableError, match=r"or `simulation='one-at-a-time'`$"):
        choose_mode(lacking, "prompt-logprobs", "contrast")
    with pytest.raises(UnusableError, match=r"no log-probabilities in chats;"):
        choose_mode(lacking, "generated-logprobs", "expected")
    with pytest.raises(UnusableError, match=r"or `readout='expected'`$"):
        choose_mode(Capabilities(chat=True), None, "contrast")
    with pytest.raises(UnusableError, match=r"and no answers to chats, and .*use vLLM, or a local"):
        choose_mode(NOTHING, None, "expected")
    joins = Capabilities(prompt_logprobs=20)
    with pytest.raises(UnusableError, match="no numbers at the places of a prompt"):
        choose_mode(joins, None, "expected")


@pytest.mark.parametrize("mode", ["generated-logprobs", "json"])
def test_a_contrast_of_generated_answers_is_impossible(mode):
    with pytest.raises(UnusableError, match="only with prompt-logprobs or one-at-a-time; choose"):
        choose_mode(ABLE, mode, "contrast")


def test_modes_and_readouts_that_do_not_exist_are_told():
    with pytest.raises(UsageError, match=r"no simulation 'best'; choose one of prompt-logprobs"):
        choose_mode(ABLE, "best", "expected")
    with pytest.raises(UsageError, match=r"no readout 'plain'; choose one of expected, contrast"):
        Simulator(Model(None), "json", "plain")


def test_the_version_names_what_makes_a_difference():
    model = Model(None)
    versions = {Simulator(model, mode).version for mode in MODES}
    versions.add(Simulator(model, "prompt-logprobs", "contrast").version)
    assert len(versions) == 5


def test_long_texts_are_quoted_in_part():
    assert answers.named(0, ["x" * 99]) == f"token 1 of 1, '{'x' * 27}...'"
