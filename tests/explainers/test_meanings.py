"""Several meanings: which exemplars go together, and what is asked, simulated and scored."""

import asyncio
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knowing_server import Knowing
from programmed import programmed

import fastexplain
from fastexplain import Corpus, Model, explain, open_run
from fastexplain.errors import BudgetError, Deferred, LLMError, UsageError
from fastexplain.explainers.exemplars import exemplars_of
from fastexplain.explainers.meanings import (
    LEAST,
    clusters,
    driver_of,
    joined,
    meanings_of,
    stem_of,
)
from fastexplain.explainers.model import ModelExplainer
from fastexplain.ledger.tally import count, tallied
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Capabilities, Usage
from fastexplain.pipeline.simulating import simulate
from fastexplain.prompts.wordings import PROMPTS
from fastexplain.records import Exemplar
from fastexplain.results import Explanation
from fastexplain.simulators.model import Simulation

NEURONS = 12
BOTH, ONE, SILENT = "0:0", "0:1", "0:2"

WORDS = ["river", "stone", "cat", *(f"w{i}" for i in range(300))]


def at(excerpt, text, value=1.0):
    """An exemplar that peaks at its last word."""
    tokens = text.split()
    acts = np.zeros(len(tokens), np.float32)
    acts[-1] = value
    return Exemplar(excerpt, np.zeros(len(tokens), np.int32), tokens, acts)


def ids(groups):
    return [[each.excerpt for each in group] for group in groups]


def test_exemplars_with_the_same_word_in_any_form_are_together():
    own = [
        at(0, "a b runs", 5), at(1, "c d stone", 4), at(2, "e f Running", 3),
        at(3, "g h Stones", 2), at(4, "i j stone", 1),
    ]  # fmt: skip
    assert ids(clusters(own, 0, 3)) == [[0, 2], [1, 3, 4]]
    assert ids(clusters(own, 0, 1)) == [[0, 1, 2, 3, 4]]


def test_so_are_exemplars_behind_the_same_words():
    own = [
        at(0, "we live in the city of rome", 5), at(1, "x stone", 4),
        at(2, "they live in the city of paris", 3), at(3, "y z stone", 2),
    ]  # fmt: skip
    assert ids(clusters(own, 0, 3)) == [[0, 2], [1, 3]]


def test_where_nothing_is_shared_or_one_thing_stands_out_there_is_one_meaning():
    words = ["red", "green", "blue", "black", "white"]
    assert ids(clusters([at(n, word, 9 - n) for n, word in enumerate(words)], 0, 4)) == [
        [0, 1, 2, 3, 4]
    ]
    words[:2] = ["old", "older"]
    assert ids(clusters([at(n, f"very {words[0]}", 9 - n) for n in range(2)], 0, 4)) == [[0, 1]]
    assert clusters([], 0, 3) == []


def test_too_many_clusters_become_fewer_and_the_smallest_go_first():
    words = ["aa", "aa", "aa", "bb", "bb", "cc", "cc"]
    own = [at(n, f"x{n} {word}", 20 - n) for n, word in enumerate(words)]
    assert ids(clusters(own, 0, 3)) == [[0, 1, 2], [3, 4], [5, 6]]
    assert ids(clusters(own, 0, 2)) == [[0, 1, 2], [3, 4, 5, 6]]


def test_a_token_is_the_same_as_its_forms_and_numbers_and_brackets_are_one():
    for same in ((" Stones", "stone"), ("7", " 1999"), ("\n", "\n\n    "), (")", "()", " ]")):
        assert len(set(map(driver_of, same))) == 1
    assert len(set(map(driver_of, ["newline", "number", "\n", "7", "(", ")", "é", " "]))) == 8


def test_a_stem_has_a_vowel() -> None:
    assert stem_of(" strings") == stem_of("string") == "string" and stem_of(" str") == "str"
    assert stem_of(" sitting") == "sit" and stem_of(" sorted") == stem_of("Sort") == "sort"


texts = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["in", "the", "old", "cat", "cats", "7", "(", "\n"]), max_size=9),
        st.sampled_from(["cat", "cats", "stone", "7", "12", "(", "moon"]),
        st.integers(1, 9),
    ),
    max_size=12,
)


@settings(max_examples=50)
@given(texts, st.integers(1, 5), st.randoms(use_true_random=False))
def test_each_exemplar_is_in_one_cluster_and_their_order_is_nothing(texts, most, random):
    own = [
        Exemplar(
            n, np.zeros(len(before) + 1, np.int32), [*before, peak],
            np.array([0.0] * len(before) + [value], np.float32),
        )
        for n, (before, peak, value) in enumerate(texts)
    ]  # fmt: skip
    found = ids(clusters(own, 0, most))
    assert sorted(each for group in found for each in group) == list(range(len(own)))
    assert len(found) <= most and (len(found) > 0) == (len(own) > 0)
    assert len(found) < 2 or min(map(len, found)) >= LEAST
    random.shuffle(own)
    assert ids(clusters(own, 0, most)) == found


@settings(max_examples=50)
@given(st.lists(st.text(st.sampled_from("ab;,. 123"), min_size=1), min_size=1, unique=True))
def test_a_text_has_the_meanings_that_were_joined(meanings):
    text = joined(meanings)
    if len(meanings) == 1:
        assert text == meanings[0]
        return
    found = meanings_of(text)
    assert len(found) == len(meanings)
    assert [each.replace(",", ";") for each in found] == [m.replace(",", ";") for m in meanings]
    assert joined(found) == text or len(set(found)) < len(found)


def test_other_texts_are_one_meaning():
    for text in ("rivers", "", "1. rivers", "2. rivers; 1. stones", "see 1. a; 2. b", "a; 2. b"):
        assert meanings_of(text) == [text]
    assert joined(["rivers", "rivers"]) == "rivers"


class Parts:
    """Simulates by a table of values, by text; notes what it is asked."""

    model, version = "parts", "1"

    def __init__(self, values):
        self.values, self.asked = values, []

    async def simulate(self, explanation, tokens):
        self.asked.append(explanation)
        found = self.values[explanation]
        if isinstance(found, Exception):
            raise found
        return Simulation(np.array(found), "one is missing" if np.isnan(found).any() else None)


def simulated(values, text):
    simulator = Parts(values)
    try:
        return asyncio.run(simulate(simulator, text, ["x", "y", "z"]))
    finally:
        assert simulator.asked == meanings_of(text)


def test_a_neuron_with_several_meanings_reacts_where_any_of_them_holds():
    values = {"a": [1, 0, 5.0], "b": [0, 2, 7.0], "c": [np.nan, 1, 1]}
    assert simulated(values, "a").values.tolist() == [1, 0, 5]
    assert simulated(values, "1. a; 2. b").values.tolist() == [1, 2, 7]
    found = simulated(values, "1. a; 2. c")
    np.testing.assert_array_equal(found.values, [np.nan, 1, 5])
    assert found.reason == "one is missing"


@pytest.mark.parametrize("error", [LLMError("cut off"), BudgetError("enough"), Deferred("later")])
def test_where_one_meaning_fails_all_are_asked_and_there_is_no_simulation(error):
    values = {"a": error, "b": [0, 2, 7.0]}
    with pytest.raises(type(error), match=str(error)):
        simulated(values, "1. a; 2. b")


def test_what_an_inner_count_has_the_outer_one_has_too():
    with tallied() as outer:
        count(Usage(1, 2), 0.5)
        with tallied() as inner:
            count(Usage(10, 20), 1.0)
    count(Usage(100, 100), 1.0)
    assert (inner.requests, inner.prompt_tokens, inner.cost) == (1, 10, 1.0)
    assert (outer.requests, outer.prompt_tokens, outer.cost) == (2, 11, 1.5)


# A subject of which a neuron has two meanings


def program(text):
    """Neuron 0 fires on "river" and "stone", 1 on "cat", the others on nothing."""
    late = 1 + np.arange(len(text)) / 100  # ranks are not a matter of ties
    is_word = {word: np.array([each == word for each in text]) for word in WORDS[:3]}
    both = is_word["river"] | is_word["stone"]
    return np.stack([both * late, is_word["cat"] * late, *np.zeros((NEURONS - 2, len(text)))])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    rng = np.random.default_rng(0)
    token_ids = rng.integers(3, len(WORDS), (240, 64)).astype(np.int32)
    for excerpt in range(0, 240, 3):  # each word in 40 to 80 excerpts, at most one a text
        token_ids[excerpt, rng.integers(8, 64)] = excerpt % 2
        token_ids[excerpt + 1, rng.integers(8, 64)] = 2
    out = tmp_path_factory.mktemp("meanings") / "run"
    return fastexplain.sweep(
        programmed(WORDS, program, NEURONS), Corpus.from_excerpts(token_ids), out
    )


@pytest.fixture
def own_run(swept, tmp_path):
    return open_run(shutil.copytree(swept.path, tmp_path / "run"))


def narrow(asked, seed):
    """Names the one word that is strong most often in the texts of the last message."""
    strong = re.findall(r"^ ?(\w+)\t(?:[89]|10)$", asked[-1].partition("Without")[0], re.MULTILINE)
    return f"This neuron reacts to {max(sorted(set(strong)), key=strong.count, default='nothing')}."


@pytest.fixture
def server():
    serving = Knowing(narrow)
    yield serving
    serving.close()


@pytest.fixture
def command(cli, own_run, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def call(server, *more, neurons=(BOTH, ONE)):
        place = ["--explainer", "m", "--base-url", server.url, "--simulation", "json", "--json"]
        code, out, err = cli("explain", own_run.path, *neurons, *place, *more)
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return call


def test_two_meanings_give_two_explanations_and_one_gives_one(command, server, own_run, cli):
    price = ["--price", "1,1"]
    code, estimate, err = command(server, "--meanings", "3", *price, "--dry-run")
    assert code == 0 and server.requests == [], err
    code, found, err = command(server, "--meanings", "3", *price)
    assert code == 0, err
    both, one = found["explanations"]
    assert sorted(meanings_of(both["explanation"])) == ["river", "stone"]
    assert one["explanation"] == "cat" and one["data"] == {}
    record = own_run.neuron(BOTH)
    shown = [each.excerpt for each in exemplars_of(record)]
    parts = both["data"]["meanings"]
    assert joined(each["text"] for each in parts) == both["explanation"]
    assert sorted(e for each in parts for e in each["exemplars"]) == sorted(shown)
    by_id = {each.excerpt: each for each in record.top}
    for each in parts:
        for id_ in each["exemplars"]:
            exemplar = by_id[id_]
            peak = exemplar.tokens[int(np.argmax(exemplar.activations))]
            assert peak.strip() == each["text"]
    # Simulated by themselves, and counted so before it began.
    assert set(server.simulated()) == {"river", "stone", "cat"}
    ledger = json.loads(cli("cost", own_run.path, "--json")[1])["rows"]
    asked = {name: each["requests"] for name, each in estimate["purposes"].items()}
    assert asked == {row["purpose"]: row["answered"] for row in ledger}
    assert asked == {"explanation": 3, "simulation": 30}
    spent = both["parameters"]["spent"]
    assert spent["requests"] == 2 and both["cost"] == spent["cost"] > one["cost"] > 0
    # Nothing is asked twice, and one meaning is asked for as without the option.
    sent = len(server.requests)
    assert command(server, "--meanings", "3", *price)[1] == found
    code, plain, _ = command(server, *price, neurons=[ONE])
    assert code == 0 and plain["explanations"][0]["explanation"] == "cat"
    assert len(server.requests) == sent
    # Both together predict better than one explanation that names one of them.
    code, plain, _ = command(server, *price, neurons=[BOTH])
    assert plain["explanations"][0]["explanation"] in ("river", "stone")
    assert both["top_and_random"] == pytest.approx(1.0, abs=0.02)
    assert plain["explanations"][0]["top_and_random"] < both["top_and_random"] - 0.1
    shown = cli("show", own_run.path, BOTH)[1]
    assert both["explanation"] in shown and "up to 3 meanings" in " ".join(shown.split())


class Says:
    method = "rule"

    def __init__(self, text):
        self.text, self.model, self.version = text, text, "1"

    def explain(self, record):
        return Explanation(self.text)


class Words:
    model, version = "words", "1"

    def simulate(self, explanation, tokens):
        return [float(token.strip() == explanation) for token in tokens]


def test_the_joint_score_beats_either_parts(own_run):
    """By an explainer and a simulator of the user's own, too."""
    scores = {}
    for text in ("river", "stone", joined(["river", "stone"])):
        found = explain(own_run, BOTH, explainer=Says(text), simulator=Words())
        scores[text] = found.explanations[0].scores.top_and_random
    *parts, joint = scores.values()
    assert joint > max(parts) + 0.1 and joint > 0.98


@pytest.mark.scale
def test_the_best_of_several_candidates_may_have_several_meanings(command, server):
    found = command(server, "--meanings", "2", "--candidates", "2", neurons=[BOTH])[1]
    [row] = found["explanations"]
    assert sorted(meanings_of(row["explanation"])) == ["river", "stone"]
    assert row["parameters"]["candidates"] == 2 and len(row["data"]["meanings"]) == 2
    assert row["parameters"]["spent"]["requests"] == 4  # both candidates say the same


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"meanings": 0}, "`meanings` is 0; give a whole number from 1 on"),
        ({"meanings": "two"}, "`meanings` is 'two'; give a whole number from 1 on"),
        ({"meanings": 2, "revise": 1}, "`meanings` and `revise` exclude each other"),
        ({"meanings": 2, "prompt": "list"}, "`prompt='list'` shows no texts"),
        ({"exemplars": "quantiles", "prompt": "list"}, "`prompt='list'` shows no texts"),
        ({"exemplars": "bottom"}, "`exemplars` is 'bottom'; choose one of top, quantiles"),
    ],
    ids=["none", "no number", "revised", "list", "quantiles of a list", "unknown"],
)
def test_what_makes_no_sense_is_refused_in_a_line(swept, given, line):
    """Before a server is reached: there is none."""
    model = Model("m", "http://127.0.0.1:9/v1")
    with pytest.raises(UsageError, match=re.escape(line)):
        explain(swept, ONE, explainer=model, **given)


def test_a_plan_and_the_command_refuse_it_too(command, server):
    for more in ([], ["--dry-run"]):
        code, _, err = command(server, "--meanings", "2", "--revise", "1", *more)
        assert code == 2 and "--meanings and --revise exclude each other" in err
    assert server.requests == []


def test_lookup_and_explainers_of_ones_own_have_no_exemplars_to_choose(cli, own_run):
    code, _, err = cli("explain", own_run.path, "--meanings", "2")
    assert code == 2 and "--meanings is for language models" in err
    for more in ({"meanings": 2}, {"exemplars": "quantiles"}):
        with pytest.raises(UsageError, match="is for language models"):
            explain(own_run, BOTH, **more)
        with pytest.raises(UsageError, match="is for language models that explain"):
            explain(own_run, BOTH, explainer=Says("x"), simulator=Words(), **more)


class Answering(Connection):
    """Answers each chat by a function."""

    model, address, concurrency = "m", "here", 1
    capabilities = Capabilities(chat=True)

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    async def probe(self):
        return self.capabilities

    async def ask(self, request):
        self.asked.append(request.messages[-1]["content"])
        found = self.answer(len(self.asked))
        if isinstance(found, Exception):
            raise found
        return Answer(found, "stop")


@pytest.mark.parametrize("error", [LLMError("refused"), BudgetError("enough"), Deferred("later")])
def test_without_an_answer_for_each_meaning_there_is_no_explanation(own_run, error):
    model = Answering(lambda number: error if number == 1 else "a word")
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(ModelExplainer(model, meanings=2).explain(own_run.neuron(BOTH)))
    assert len(model.asked) == 2  # for a batch both are noted together


def test_an_answer_without_a_phrase_and_a_silent_neuron_fail_as_without_the_option(own_run):
    explainer = ModelExplainer(Answering(lambda number: "..."), meanings=2)
    with pytest.raises(LLMError, match="holds no explanation"):
        asyncio.run(explainer.explain(own_run.neuron(BOTH)))
    with pytest.raises(LLMError, match="nothing to explain"):
        asyncio.run(explainer.explain(own_run.neuron(SILENT)))


class Entries:
    """Tables that know both words."""

    has_entries = True

    def entries(self, record):
        return [
            {"token": f" {word}", "previous": None, "mean": 2.0, "count": 9}
            for word in ("stones", "river")
        ]

    def raised(self, record):
        return [" water"]


def test_a_meaning_is_shown_with_its_own_entries_of_the_tables(own_run):
    model = Answering(lambda number: f"thing {number}")
    explainer = ModelExplainer(model, PROMPTS["full"], Entries(), meanings=2)
    made = asyncio.run(explainer.explain(own_run.neuron(BOTH)))
    assert made.text == "1. thing 1; 2. thing 2"
    for content in model.asked:
        listed = content.partition("Strongest over much more text:\n")[2].splitlines()[0]
        word = "stone" if " stone\t10" in content else "river"
        other = {"stone": "river", "river": "stone"}[word]
        assert listed.startswith(f'" {word}') and f" {other}" not in content
        assert '" water"' in content
    assert len(model.asked) == 2 and explainer.version == "full-1 2 meanings"
