"""What an explainer is shown of a neuron: held out exactly, and from which splits."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import planted
import pytest

import fastexplain
from fastexplain.errors import LLMError
from fastexplain.explainers.evidence import (
    NoSource,
    RunSource,
    contrasts,
    gather,
)
from fastexplain.explainers.exemplars import exemplars_of
from fastexplain.explainers.model import ModelExplainer
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Capabilities
from fastexplain.prompts.explainer import discretised
from fastexplain.prompts.wordings import PROMPTS
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.run.splits import samples

EVERYTHING = PROMPTS["full"].shows


def test_entries_are_the_tables_and_say_how_often(planted_run):
    tables = RunSource(planted_run)
    assert tables.has_entries
    [cat] = tables.entries(planted_run.neuron(f"0:{planted.CAT}"))
    assert (cat["token"], cat["previous"]) == ("cat", None)
    [moon, *_] = tables.entries(planted_run.neuron(f"0:{planted.MOON_AFTER_BRIGHT}"))
    assert (moon["token"], moon["previous"]) == ("moon", "bright")
    digits = tables.entries(planted_run.neuron(f"0:{planted.DIGIT}"))
    assert sorted(entry["token"] for entry in digits) == list("012345")
    assert tables.entries(planted_run.neuron(f"0:{planted.NEVER}")) == []
    excerpts = planted_run.excerpts[:, planted_run.skip :]
    assert 0 < cat["count"] < (excerpts == planted.WORDS.index("cat")).sum()


@pytest.mark.parametrize("neuron", [planted.CAT, planted.DIGIT, planted.MOON_AFTER_BRIGHT])
def test_entries_are_without_the_test_and_validation_excerpts(planted_run, neuron):
    """Counted and averaged anew over all other excerpts, they are the same."""
    record = planted_run.neuron(f"0:{neuron}")
    top = [e.excerpt for rank, e in enumerate(record.top) if rank % 4 >= 2]
    explained = {e.excerpt for rank, e in enumerate(record.top) if rank % 4 == 0}
    random = [
        e.excerpt for i, e in enumerate(record.random) if i % 3 and e.excerpt not in explained
    ]
    left = np.setdiff1d(np.arange(400), [*top, *(set(random) - explained)])
    texts = planted_run.excerpts[left]
    found = RunSource(planted_run).entries(record)
    assert found
    for entry in found:
        here = texts == entry["ids"][-1]
        if entry["previous"] is not None:
            here[:, 1:] &= texts[:, :-1] == entry["ids"][0]
            here[:, 0] = False
        elif neuron == planted.MOON_AFTER_BRIGHT:
            continue  # its tokens are counted beside the pairs that were taken first
        assert entry["count"] == here[:, planted_run.skip :].sum()


def test_a_tokens_count_is_of_the_excerpts_that_are_left(planted_run):
    """ "rare" stands in eight excerpts, one in each; ranks 2, 3, 6 and 7 are held out."""
    record = planted_run.neuron(f"0:{planted.RARE}")
    [entry] = RunSource(planted_run).entries(record)
    assert (entry["token"], entry["count"]) == ("rare", 4)


def test_a_run_without_tables_has_no_entries(planted_subject, planted_corpus, tmp_path):
    run = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", table_bytes=0)
    source = RunSource(run)
    record = run.neuron(f"0:{planted.CAT}")
    assert not source.has_entries and source.entries(record) == []
    evidence = gather(record, exemplars_of(record), source, EVERYTHING)
    assert evidence.texts and not evidence.entries


def test_contrasts_end_in_a_strong_token_that_is_silent(planted_run):
    """ "moon" drives it behind "bright" only; "cat" drives the other wherever it stands."""
    record = planted_run.neuron(f"0:{planted.MOON_AFTER_BRIGHT}")
    texts, largest = discretised(exemplars_of(record), record.skip)
    [found] = contrasts(record, texts, largest)
    assert found[-1] == "moon" and found[-2] != "bright" and len(found) <= 11
    calibration = [list(sample.tokens) for sample in samples(record, "calibration")]
    assert any(
        tokens[place : place + len(found)] == found
        for tokens in calibration
        for place in range(len(tokens))
    )
    cat = planted_run.neuron(f"0:{planted.CAT}")
    assert contrasts(cat, *discretised(exemplars_of(cat), cat.skip)) == []


def exemplar(number, tokens, values):
    return Exemplar(number, np.zeros(len(tokens), np.int32), tokens, np.array(values, np.float32))


def test_contrasts_come_by_strength_each_token_once():
    firing = exemplar(0, ["a", "b", "c", " "], [10, 6, 4, 10])
    silent = exemplar(1, ["b", "c", "a", "b", "a", " "], [0, 0, 0.9, 0, 0, 0])
    louder = exemplar(2, ["b", "a"], [1.0, 1.0])  # a tenth is not silent
    top = [firing, silent, louder, louder, firing, louder]
    record = NeuronRecord(NeuronId(0, 0), 0, top, [], [], None)
    texts, largest = discretised([firing], 0)
    assert contrasts(record, texts, largest) == [["b", "c", "a"], ["b"]]
    # The same excerpt as a random one of the validation split is not shown.
    random = replace(record, random=[louder, silent, louder])
    assert contrasts(random, texts, largest) == []


def test_only_what_a_prompt_shows_is_gathered(planted_run):
    record = planted_run.neuron(f"0:{planted.MOON_AFTER_BRIGHT}")
    shown = exemplars_of(record)
    assert [e.excerpt for e in shown] == [record.top[rank].excerpt for rank in (0, 4, 8, 12, 16)]
    tables = RunSource(planted_run)
    plain = gather(record, shown, tables, PROMPTS["exemplars"].shows)
    assert plain.texts and not (plain.entries or plain.contrasts)
    full = gather(record, shown, tables, EVERYTHING)
    assert full.texts and full.contrasts
    [first, *_] = full.entries
    assert (first.token, first.previous, first.value) == ("moon", "bright", 10)
    cheap = gather(replace(record, top=[]), [], tables, PROMPTS["list"].shows)
    assert cheap.entries == full.entries and not cheap.texts
    with pytest.raises(LLMError, match="nothing to explain"):
        gather(record, [], NoSource(), EVERYTHING)


def test_tokens_that_its_output_raises_are_shown_where_weights_were_looked_at(planted_subject, run):
    source, record = RunSource(run), run.neuron(f"0:{planted.CAT}")
    assert source.raised(record) == []
    fastexplain.weights(run, subject=planted_subject)
    found = [token.token for token in run.weights(record.id).output.most]
    assert source.raised(record) == found[:10]
    shown = exemplars_of(record)
    assert gather(record, shown, source, EVERYTHING).raised == found[:10]
    assert gather(record, shown, source, PROMPTS["exemplars"].shows).raised == ()


class Noting(Connection):
    """Answers with one text, and keeps what it was asked."""

    model, address, concurrency, capabilities = "m", "here", 1, Capabilities(chat=True)

    def __init__(self, text):
        self.text, self.asked = text, []

    async def probe(self):
        return self.capabilities

    async def ask(self, request):
        self.asked.append(request)
        return Answer(self.text, "stop")


def test_each_prompt_is_asked_and_stored_under_its_own_version(planted_run):
    record = planted_run.neuron(f"0:{planted.MOON_AFTER_BRIGHT}")
    tables = RunSource(planted_run)
    for name, prompt in PROMPTS.items():
        model = Noting("Explanation: a moon that is bright")
        explainer = ModelExplainer(model, prompt, tables)
        assert (explainer.method, explainer.version) == ("model", prompt.version)
        made = asyncio.run(explainer.explain(record))
        assert made.text == "a moon that is bright"
        assert made.parameters["prompt"] == name
        assert model.asked[0].max_tokens == prompt.max_tokens
        assert bool(made.parameters["exemplars"]) == ("texts" in prompt.shows)
        content = model.asked[0].messages[-1]["content"]
        assert ('"moon" after "bright"' in content) == ("entries" in prompt.shows)
