"""What a simulation costs beside the model: building its prompt and reading its answer.

The bar is 0.3 ms each for an excerpt of 64 tokens. Excerpts take turns, as they do in a run.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fastexplain import Corpus, Subject
from fastexplain.llm.requests import Answer, Request, Token, key
from fastexplain.prompts import answers, simulator, simulator_chats
from fastexplain.prompts.lines import END, START, line
from fastexplain.simulators.readouts import contrast, expected

EXPLANATION = "words for things that people put on, and places where they are sold"

BUILDERS: dict[str, Callable[[list[str]], Request]] = {
    "prompt_logprobs": lambda tokens: simulator.reading(EXPLANATION, tokens, 9),
    "generated_logprobs": lambda tokens: simulator_chats.repeating(EXPLANATION, tokens, 9),
    "json": lambda tokens: simulator_chats.structured(EXPLANATION, tokens),
    "one_token": lambda tokens: simulator.single_reading(EXPLANATION, tokens, 9),
}


@pytest.fixture(scope="module")
def texts(subject: Subject, corpus: Corpus) -> list[list[str]]:
    decode = subject.tokenizer.decode
    return [[decode([i]) for i in row] for row in corpus.tokens[:256]]


@pytest.fixture
def turns(texts: list[list[str]]) -> Iterator[list[str]]:
    return itertools.cycle(texts)


@pytest.mark.parametrize("mode", BUILDERS)
def test_build_a_request(benchmark, turns: Iterator[list[str]], mode: str) -> None:
    """With its name in the store, for which its text is put together."""
    benchmark(lambda: key("model", BUILDERS[mode](next(turns))))


def test_read_distributions(benchmark) -> None:
    rows = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    null = np.zeros_like(rows)
    benchmark(lambda: (expected(rows), contrast(rows, null)))


def test_read_generated_logprobs(benchmark, texts: list[list[str]]) -> None:
    """An answer whose tokens each list ten numbers."""
    listed = {str(number): math.log(0.1) for number in range(10)}
    tokens = [Token(START, {}), Token("\n", {})]
    for token in texts[0]:
        shown = Token(line(token)[:-1], {}), Token("\t", {}), Token("3", listed), Token("\n", {})
        tokens += shown
    tokens.append(Token(END, {}))
    answer = Answer("".join(token.text for token in tokens), "stop", tuple(tokens))
    rows, reason = answers.repeated(answer, texts[0], 9)
    assert reason is None and not np.isnan(rows).any()
    benchmark(lambda: expected(answers.repeated(answer, texts[0], 9)[0]))


def test_read_json(benchmark, texts: list[list[str]]) -> None:
    items = [{"token": token, "value": 3} for token in texts[0]]
    answer = Answer(json.dumps({"activations": items}), "stop")
    assert answers.structured(answer, texts[0], 10)[1] is None
    benchmark(lambda: answers.structured(answer, texts[0], 10))
