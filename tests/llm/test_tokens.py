"""Counting tokens without a tokenizer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.llm.requests import Chat, Reading
from fastexplain.llm.tokens import count, estimate
from fastexplain.prompts import explainer
from fastexplain.prompts.lines import block
from fastexplain.records import Exemplar

PROSE = (
    " The old harbour town woke slowly. Fishermen dragged their nets over the wet stones, and a "
    "child counted gulls from the window. In 1987 the bridge had been closed for repairs, which "
    'cost $3,200,000 and two elections. "It was never about the bridge," said Mrs Henderson.'
)
CODE = (
    "\n\nclass Reader(Base):\n    def __init__(self, path: str, *, mode='r', limit=None):\n"
    "        self._path = os.path.join(ROOT, path)\n        for i in range(0x1f):\n"
    "            if not isinstance(value[i], (int, float)):  # not a bool\n                raise "
    "TypeError(f'{value!r} is no number')\n        return {key: 3.14159 for key in names}\n"
)
FRENCH = (
    " La forêt était déjà brûlée à l'été, et les élèves rentraient chez eux. Größe und Übermut "
    "führten schließlich zu ungewöhnlichen Entscheidungen. "
) * 2


def tokens_of(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.decode([token]) for token in ids][:64]


@pytest.mark.parametrize("text", [PROSE, CODE, FRENCH], ids=["prose", "code", "french"])
def test_prompts_are_counted_as_a_tokenizer_counts_them(smollm2, text):
    tokenizer = smollm2.tokenizer
    tokens = tokens_of(tokenizer, text)
    lines = [(token, number % 4 * 3) for number, token in enumerate(tokens)]
    activations = np.arange(len(tokens), dtype=np.float32) % 7
    exemplar = Exemplar(0, np.zeros(len(tokens), np.int32), tokens, activations)
    chat = explainer.messages([exemplar] * 5, 1)
    prompts = [
        "\n".join(message["content"] for message in chat),
        chat[-1]["content"],
        block(lines),
        block([(token, "unknown") for token, _ in lines]),
    ]
    for prompt in prompts:
        true = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        assert 0.88 < count(prompt) / true < 1.12, prompt


def test_plain_text_is_counted_roughly(smollm2):
    for text in (PROSE, CODE, FRENCH):
        true = len(smollm2.tokenizer(text, add_special_tokens=False)["input_ids"])
        assert 0.7 < count(text) / true < 1.35


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("", 0, 0), ("a", 1, 1), (" ", 1, 1), ("the cat", 2, 2), ("\t0\n", 3, 3), ("\ud800", 1, 1),
     ("東京都" * 10, 20, 60), ("🙂" * 10, 10, 40), ("x" * 1000, 20, 300)],
)  # fmt: skip
def test_odd_texts_are_counted_too(text, least, most):
    assert least <= count(text) <= most


@given(st.text(), st.text())
def test_a_count_grows_with_the_text(one, other):
    together = count(one + other)
    assert together >= max(count(one), count(other)) - 1
    assert abs(together - count(one) - count(other)) <= 2
    assert (together > 0) == bool(one + other)


def test_a_request_is_its_prompts_tokens():
    messages = ({"role": "system", "content": PROSE}, {"role": "user", "content": CODE})
    assert estimate(Chat(messages, 60)) == count(PROSE) + count(CODE) + 2 * 4
    reading = Reading("shared\n", "head\n", ("a\t", "b\t"), "unknown", 10)
    assert estimate(reading) == count("shared\nhead\na\tunknown\nb\tunknown\n")
