"""The explainer's prompts by name: what each shows and leaves out, and how answers are read."""

from __future__ import annotations

import pytest

from fastexplain.errors import LLMError, UsageError
from fastexplain.prompts.evidence import Entry, Evidence
from fastexplain.prompts.mixed_examples import KNOWN, MIXED
from fastexplain.prompts.wordings import DEFAULT, MARKER, PROMPTS, choose

TEXTS = [[(" a", 0), (" red", 10), (" hat", 4)], [(" the", 0), (" blue\n", 6), (" sea", 0)]]
ALL = Evidence(
    TEXTS,
    [Entry(" red", None, 10, 12), Entry(" sea", " blue", 7, 1)],
    [["he", " felt", " blue"]],
    [" paint", "\n"],
)
SECTIONS = ["Strongest over much more text:", "Silent at the end of:", "It makes likelier:"]


def last(name, evidence=ALL):
    return PROMPTS[name].messages(evidence)[-1]["content"]


def answers(name):
    chat = PROMPTS[name].messages(ALL)
    return [each["content"] for each in chat if each["role"] == "assistant"]


@pytest.mark.parametrize("name", ["full", "thinking"])
def test_all_that_is_known_is_shown_escaped(name):
    content = last(name)
    assert " red\t10\n hat\t4" in content and " blue\\n\t6" in content
    assert '" red"\t10\t12 times\n" sea" after " blue"\t7\tonce' in content
    assert "\nhe felt blue\n" in content
    assert 'It makes likelier: " paint", "\\n"' in content


@pytest.mark.parametrize("name", ["full", "thinking"])
def test_what_is_not_known_is_left_out(name):
    content = last(name, Evidence(TEXTS))
    assert content.startswith("<start>\n") and not any(each in content for each in SECTIONS)
    for section, evidence in zip(
        SECTIONS,
        [
            Evidence(TEXTS, entries=ALL.entries),
            Evidence(TEXTS, contrasts=ALL.contrasts),
            Evidence(TEXTS, raised=ALL.raised),
        ],
        strict=True,
    ):
        shown = last(name, evidence)
        assert [each for each in SECTIONS if each in shown] == [section]


def test_the_short_one_shows_strong_tokens_behind_what_precedes_them():
    assert last("short") == " a red\n the blue\\n"
    many = [[(f" w{place}", 9 - place % 2) for place in range(30)] for _ in range(6)]
    lines = last("short", Evidence(many)).split("\n")
    assert len(lines) == 10 and lines[0] == " w0" and all(len(each.split()) <= 9 for each in lines)
    ends = [line.split()[-1] for line in lines]
    assert all(ends.count(end) <= 6 for end in ends)  # three of a text, and six texts are alike


def test_the_list_has_no_text_and_few_tokens():
    content = last("list")
    assert content == '" red"\t10\t12 times\n" sea" after " blue"\t7\tonce'
    full, cheap = (
        "".join(m["content"] for m in PROMPTS[n].messages(ALL)) for n in ("full", "list")
    )
    assert len(cheap) < len(full) / 2
    with pytest.raises(LLMError, match="no list to put in words"):
        PROMPTS["list"].messages(Evidence(TEXTS))


def test_examples_take_different_forms_and_end_with_one_that_names_tokens():
    for name in ("full", "short", "list"):
        found = [PROMPTS[name].parse(answer) for answer in answers(name)]
        assert found == [known.explanation for known in KNOWN]
        assert not any(each.startswith("the word ") for each in found)
    named = KNOWN[-1].evidence.entries
    assert sum(entry.token.strip() in KNOWN[-1].explanation for entry in named) >= 3
    assert answers("thinking") == []


def test_invented_neurons_agree_with_what_is_said_of_them():
    """Entries are strong tokens of the texts or of their kind; contrasts end in one of them."""
    for known, example in zip(KNOWN, MIXED, strict=True):
        assert (example.explanation, example.texts) == (known.explanation, known.evidence.texts)
        values = [entry.value for entry in known.evidence.entries]
        assert values[0] == 10 and values == sorted(values, reverse=True)
        driving = {entry.token for entry in known.evidence.entries}
        assert all(contrast[-1] in driving for contrast in known.evidence.contrasts)
        assert max(value for text in known.evidence.texts for _, value in text) == 10
        shown = {token for text in known.evidence.texts for token, value in text if value >= 5}
        assert len(driving & shown) >= len(driving) / 2


@pytest.mark.parametrize(
    "answer",
    [
        f"It could be red.\n{MARKER} colours of things",
        f"{MARKER} no, wait\n**explanation:** This neuron reacts to colours of things.",
        f"So\n{MARKER}\n'colours of things'",
    ],
)
def test_thoughts_end_with_the_last_marker(answer):
    assert PROMPTS["thinking"].parse(answer) == "colours of things"


@pytest.mark.parametrize(
    ("answer", "says"),
    [("colours of things", "has no line 'Explanation: ...'"), (MARKER, "holds no explanation")],
)
def test_thoughts_without_an_answer_are_none(answer, says):
    with pytest.raises(LLMError, match=says):
        PROMPTS["thinking"].parse(answer)


def test_a_prompt_is_chosen_by_name_or_by_what_the_model_does():
    assert choose(None, thinks=False).name == DEFAULT
    assert choose(None, thinks=True).name == "thinking"
    assert [choose(name, thinks=True).name for name in PROMPTS] == list(PROMPTS)
    with pytest.raises(UsageError, match="no prompt 'tea'; `prompt` is one of exemplars, full"):
        choose("tea", thinks=False)
    assert len({prompt.version for prompt in PROMPTS.values()}) == len(PROMPTS)
