"""Texts that somebody tries: what is simulated in part, or not at all."""

import asyncio
from dataclasses import replace

import numpy as np
import planted
import pytest

from fastexplain.errors import LLMError, UsageError
from fastexplain.pipeline.trying import try_text
from fastexplain.scorers.correlation import Correlation


class Failing:
    """Says 10 where a token is in the text; fails at the first excerpts that it is asked for."""

    model, version = "failing", "1"

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def simulate(self, text, tokens):
        self.failures -= 1
        if self.failures >= 0:
            raise LLMError(f"refused {self.failures}")
        return np.array([10.0 * (token in text.split()) for token in tokens])


def test_what_was_not_simulated_is_left_out_and_named(planted_run):
    record, done = planted_run.neuron(f"0:{planted.CAT}"), []
    found = asyncio.run(try_text(record, "cat", Failing(3), lambda: done.append(1)))
    assert found.failures == ["refused 2", "refused 1", "refused 0"]
    assert len(found.values) == 7 and len(done) == 10
    both = next(each for each in found.scores if each.split == "top_and_random")
    assert both.excerpts == 7 and both.value == pytest.approx(1, abs=1e-6)
    whole = asyncio.run(try_text(record, "cat river", Failing(0)))
    tried = [replace(e, simulated=whole.values[e.excerpt]) for e in Correlation().excerpts(record)]
    assert whole.failures == [] and whole.scores == Correlation().score(record, "", tried)


def test_where_nothing_is_simulated_it_is_said_why(planted_run):
    record = planted_run.neuron(f"0:{planted.CAT}")
    with pytest.raises(LLMError, match="refused 99"):
        asyncio.run(try_text(record, "cat", Failing(100)))
    with pytest.raises(UsageError, match="0:0 has no excerpts to be scored on"):
        asyncio.run(try_text(replace(record, top=[], random=[]), "cat", Failing(0)))
