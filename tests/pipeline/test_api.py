"""`fastexplain.explain` from Python: in a script, within a running event loop, as a coroutine."""

import asyncio
import dataclasses
import signal
import threading

import planted
import pytest
from faulty_server import Faulty

import fastexplain
from fastexplain import Explained, Model, NeuronId, Price
from fastexplain.errors import LLMError, UsageError
from fastexplain.pipeline.api import _run_in_thread
from fastexplain.results import Explanation

CAT, DIGIT, RARE = (f"0:{n}" for n in (planted.CAT, planted.DIGIT, planted.RARE))


@pytest.fixture
def model(server):
    return Model("m", server.url, price=Price(1.0, 1.0, 2.0))


def in_a_script(*args, **named):
    return fastexplain.explain(*args, **named)


def in_a_running_loop(*args, **named):
    async def cell():
        return fastexplain.explain(*args, **named)

    return asyncio.run(cell())


def as_a_coroutine(*args, **named):
    return asyncio.run(fastexplain.explain_async(*args, **named))


@pytest.mark.parametrize("call", [in_a_script, in_a_running_loop, as_a_coroutine])
def test_it_works_everywhere_and_asks_nothing_twice(call, run, model, server):
    done = []
    names = [CAT, NeuronId.parse(DIGIT)]
    found = call(run, names, explainer=model, progress=done.append)
    assert (found.explainer, found.neurons) == ("m", [NeuronId(0, 0), NeuronId(0, 1)])
    assert [row.neuron for row in found.explanations] == found.neurons
    for row in found.explanations:
        assert row.text and row.model == row.simulator == "m"
        assert row.scores.excerpts_top == row.scores.excerpts_random == 5
    assert (found.requests, found.failures, found.stopped) == (22, {}, None)
    assert 0 < found.cost < 0.1
    assert done == [1, 2]

    sent = len(server.requests)
    again = call(run, names, explainer=model)
    assert again.explanations == found.explanations
    assert (again.requests, again.cost, len(server.requests)) == (0, 0.0, sent)


@pytest.mark.parametrize("call", [in_a_script, in_a_running_loop])
def test_by_lookup_all_are_explained_at_once(call, run):
    layers = []
    found = call(run, CAT, progress=layers.append)
    [row] = found.explanations
    assert (row.method, row.neuron, found.explainer) == ("lookup", NeuronId(0, 0), "lookup")
    assert row.scores.top_and_random == pytest.approx(1.0)
    assert layers == [1, 1]  # the lookup, then the rules
    everything = call(run, "all", progress=layers.append)
    assert len(everything.explanations) == planted.NEURONS and layers == [1, 1]
    call(run, CAT, fresh=True, progress=layers.append)
    assert layers == [1, 1, 1, 1]


def test_a_limit_stops_it_and_a_higher_one_goes_on(run, model):
    found = fastexplain.explain(run, [CAT, DIGIT], explainer=model, max_requests=3)
    assert found.stopped.startswith("stopped after 3 requests") and found.requests == 3
    assert found.stopped in repr(found)
    rest = fastexplain.explain(run, [CAT, DIGIT], explainer=model, max_requests=19)
    assert (rest.stopped, rest.requests, len(rest.explanations)) == (None, 19, 2)


def test_a_cost_needs_a_price(run):
    with pytest.raises(UsageError, match="the price of 'm' is not known"):
        elsewhere = Model("m", "http://models.example/v1")  # nothing is sent
        fastexplain.explain(run, CAT, explainer=elsewhere, max_cost=1)


def test_failures_are_by_neuron_and_cost_only_themselves(run, model, server):
    fastexplain.explain(run, RARE, explainer=model)  # a model that answers nothing isn't taken
    server.content = ""
    found = fastexplain.explain(run, [CAT, RARE, DIGIT], explainer=model)
    assert [str(row.neuron) for row in found.explanations] == [RARE]
    assert list(map(str, found.failures)) == [CAT, DIGIT]
    for [failure] in found.failures.values():
        assert failure.startswith("explanation: ")
    assert "1 of 3 neurons explained by m" in repr(found)
    assert "failures at 2 neurons, see .failures" in repr(found)


def test_scores_are_those_of_the_way_that_was_asked_for(run, model):
    ways = ["json", "prompt-logprobs", "json"]
    found = [
        fastexplain.explain(run, CAT, explainer=model, simulation=way).explanations[0]
        for way in ways
    ]
    assert found[0] == found[2] != found[1]
    assert found[0].id == found[1].id and found[0].simulation != found[1].simulation
    stopped = fastexplain.explain(
        run, CAT, explainer=model, simulation="generated-logprobs", max_requests=0
    )
    [row] = stopped.explanations
    assert (row.scores, row.simulator, row.simulation) == (None, None, None)
    assert "not scored" in repr(stopped)


def test_another_model_may_simulate(run, model, server):
    other = Faulty()
    try:
        simulator = Model("m", other.url)
        found = fastexplain.explain(run, CAT, explainer=model, simulator=simulator)
        assert len(found.explanations) == 1 and found.explanations[0].scores is not None
        assert sum(path.endswith("/completions") for path, *_ in other.requests) >= 10
        own = [body for _, body, _ in server.requests]
        assert sum(body.get("max_tokens") == 60 for body in own) == 1
    finally:
        other.close()


class LongestToken:
    """A rule-based explainer of the user's own."""

    method, model, version = "rule", "longest token", "1"

    def explain(self, record):
        if not record.top:
            raise LLMError("it never fires")
        best = record.top[0]
        return Explanation(best.tokens[int(best.activations[record.skip :].argmax()) + record.skip])


class Mentions:
    """A simulator that asks nobody."""

    model, version = "mentions", "1"

    async def simulate(self, explanation, tokens):
        return [float(token == explanation) for token in tokens]


def test_explainer_and_simulator_may_be_the_users_own(run):
    found = fastexplain.explain(run, ["0:0", "0:2"], explainer=LongestToken(), simulator=Mentions())
    assert [row.text for row in found.explanations] == ["cat", "moon"]
    assert found.explanations[0].scores.top_and_random == pytest.approx(1)
    assert (found.explainer, found.requests, found.failures) == ("longest token", 0, {})
    again = fastexplain.explain(run, "0:0", explainer=LongestToken(), simulator=Mentions())
    assert again.explanations[0].id == found.explanations[0].id


def test_a_language_model_and_a_class_of_the_users_own_may_work_together(run, model):
    simulated = fastexplain.explain(run, "0:0", explainer=LongestToken(), simulator=model)
    assert simulated.explanations[0].simulator == "m" and simulated.requests == 10
    explained = fastexplain.explain(run, "0:0", explainer=model, simulator=Mentions())
    assert explained.explanations[0].simulator == "mentions" and explained.requests == 1


def test_the_call_gives_the_explanations_of_its_own_prompt(run, model, server):
    for name in ("short", "list", "short"):
        server.content = f"This neuron reacts to {name}."
        found = fastexplain.explain(run, "0:0", explainer=model, prompt=name)
        assert [row.text for row in found.explanations] == [name]
        assert [row.parameters["prompt"] for row in found.explanations] == [name]


def test_a_list_can_not_be_put_in_words_without_tables(
    planted_subject, planted_corpus, model, tmp_path
):
    run = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", table_bytes=0)
    with pytest.raises(UsageError, match=r"`prompt='list'` puts .* was swept without tables"):
        fastexplain.explain(run, "0:0", explainer=model, prompt="list")


def test_a_model_that_thinks_is_asked_with_room_to_think(run, server):
    server.shape, server.content = "tagged", "Explanation: cats"
    found = fastexplain.explain(run, "0:0", explainer=Model("m", server.url), simulator=Mentions())
    [row] = found.explanations
    assert (row.text, row.parameters["prompt"]) == ("cats", "thinking")


def test_an_explainer_of_the_users_own_needs_a_simulator(run):
    with pytest.raises(UsageError, match="name a simulator too"):
        fastexplain.explain(run, "0:0", explainer=LongestToken())


class Taken(LongestToken):
    method = "lookup"


class TakenByRules(LongestToken):
    model = "rule"


class Wordless(LongestToken):
    def explain(self, record):
        return "cats"


class Endless(Mentions):
    def simulate(self, explanation, tokens):
        return [float("inf")] * len(tokens)


class Silent(Mentions):
    def simulate(self, explanation, tokens):
        return [float("nan")] * len(tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simulator": "smollm2"}, "simulator 'smollm2' can't be used; give a fastexplain.Model"),
        ({"explainer": Mentions()}, "an object with method, model, version and explain"),
        ({"scorers": [7]}, "scorer 7 can't be used; give a name, or an object with name, measures"),
        ({"scorers": ["sharpness"]}, "no scorer 'sharpness'; choose from correlation"),
        ({"scorers": "correlation"}, "`scorers` is 'correlation'; give a list of scorers"),
        ({"explainer": Taken()}, "the method 'lookup' is taken"),
        ({"explainer": TakenByRules()}, "the model 'rule' of the method 'rule' is taken"),
        ({"explainer": Wordless()}, "'longest token' gave a str; it has to give a fastexplain"),
        (
            {"simulation": "json"},
            "`simulation` and `readout` are for language models",
        ),
        ({"prompt": "list"}, "`prompt` is for language models that explain"),
        ({"concurrency": 0}, "`concurrency` is 0; give a whole number"),
        ({"concurrency": "4"}, "`concurrency` is '4'"),
        ({"max_cost": "5"}, "`max_cost` is '5'; give a number"),
        ({"timeout": []}, r"`timeout` is \[\]; give a number"),
        ({"scorers": None}, "`scorers` is None; give a list of scorers"),
        ({"progress": "yes"}, "progress is 'yes'; give True, False or a function"),
    ],
)
def test_what_cannot_explain_or_simulate_is_refused(run, options, message):
    chosen = {"explainer": LongestToken(), "simulator": Mentions()} | options
    with pytest.raises(UsageError, match=message):
        fastexplain.explain(run, "0:0", **chosen)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": 5}, "`name` is 5; give text"),
        ({"base_url": 80}, "`base_url` is 80; give an address"),
        ({"price": 3}, "`price` is 3; give a fastexplain.Price"),
    ],
)
def test_a_model_has_text_and_a_price(fields, message):
    with pytest.raises(UsageError, match=message):
        Model(**({"name": "m"} | fields))


def test_a_run_is_no_path(run):
    with pytest.raises(UsageError, match=r"`run` is '.*'; give a run, from fastexplain.open_run"):
        fastexplain.explain(str(run.path), "0:1")


@pytest.mark.parametrize("names", [None, 5, b"0:5"])
def test_neurons_are_names(run, names):
    with pytest.raises(UsageError, match="give names, such as '5:131'"):
        fastexplain.explain(run, names)


@pytest.mark.parametrize(
    ("simulator", "reason"), [(Endless(), "a value that is infinite"), (Silent(), "no value")]
)
def test_a_simulation_without_values_has_failed(run, simulator, reason):
    found = fastexplain.explain(run, "0:0", explainer=LongestToken(), simulator=simulator)
    assert len(found.failures[NeuronId(0, 0)]) == 10
    assert reason in found.failures[NeuronId(0, 0)][0]


def test_an_explainer_that_breaks_ends_the_call(run):
    class Broken(LongestToken):
        def explain(self, record):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fastexplain.explain(run, ["0:0", "0:1"], explainer=Broken(), simulator=Mentions())


def test_a_lookup_that_is_done_writes_nothing(run):
    fastexplain.explain(run, "0:0")
    before = (run.path / "run.sqlite").read_bytes()
    fastexplain.explain(run, "0:0")
    assert (run.path / "run.sqlite").read_bytes() == before


def test_it_shows_what_was_found_as_text_and_as_html(run):
    found = fastexplain.explain(run, [CAT, RARE])
    assert repr(found).splitlines()[0] == "2 of 2 neurons explained by lookup"
    assert f"        {CAT}  1.00, table 1.00  'cat' " in repr(found)
    html = found._repr_html_()
    assert "<td>0:0</td><td>1.00, table 1.00</td><td>&#x27;cat&#x27; " in html
    many = Explained("lookup", found.neurons * 11, found.explanations * 11)
    assert repr(many).splitlines()[-1].endswith("and 2 more")
    [table] = [dataclasses.replace(row, text_scores=None) for row in found.explanations[:1]]
    both = dataclasses.replace(found, explanations=[table, found.explanations[1]])
    scores = [line.index("'") for line in repr(both).splitlines()[1:]]
    assert scores[0] == scores[1] and "             1.00  'cat' " in repr(both)  # texts are aligned


def test_a_bar_is_drawn_where_it_is_asked_for(run, capsys):
    fastexplain.explain(run, CAT)
    assert capsys.readouterr() == ("", "")
    fastexplain.explain(run, CAT, fresh=True, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "Explaining by lookup: 100%" in err and "1/1" in err


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "no neurons are named; name some, such as 5:131"),
        ("9:1", {}, "layer 9 was not swept"),
        ("cat", {}, "'cat' does not name neurons"),
        (CAT, {"explainer": "gpt-4o"}, r"give 'lookup' or fastexplain.Model\('gpt-4o'\)"),
        (CAT, {"max_cost": 1}, "`max_cost` is for language models; name one, as explainer="),
        (CAT, {"simulator": Model("m")}, "`simulator` is for language models"),
        (CAT, {"explainer": Model("m"), "max_requests": -1}, "`max_requests` is -1"),
    ],
)
@pytest.mark.parametrize("call", [in_a_script, in_a_running_loop])
def test_arguments_that_make_no_sense(call, names, options, message, run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    with pytest.raises(UsageError, match=message):
        call(run, names, **options)


@pytest.mark.parametrize("call", [in_a_script, in_a_running_loop, as_a_coroutine])
def test_a_model_that_is_not_there(call, run, server):
    with pytest.raises(LLMError, match="has no model 'another'; it has: m"):
        call(run, CAT, explainer=Model("another", server.url))


def test_ctrl_c_in_a_running_loop_cancels_what_runs_beside_it():
    ends = []

    async def work():
        try:
            main = threading.main_thread().ident  # which waits
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async def cell():
        with pytest.raises(KeyboardInterrupt):
            _run_in_thread(work())

    loop = asyncio.new_event_loop()  # asyncio.run would take Ctrl-C for itself
    # What was started in the background by a shell ignores Ctrl-C.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, handler)
        loop.close()
    assert ends == ["cancelled"]
