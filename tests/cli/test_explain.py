"""`fastexplain explain` with language models, as its user meets it; the server is a real one."""

import json

import planted
import pytest

from fastexplain.cli.requests import Failures
from fastexplain.cli.terminal import out as console
from fastexplain.ledger.prices import Price
from fastexplain.pipeline.models import Model, simulator_model
from fastexplain.records import NeuronId
from fastexplain.report.names import unusual_prompt
from fastexplain.report.page import page_data
from fastexplain.results import ExplanationRow

NEURONS = [f"0:{n}" for n in (planted.CAT, planted.DIGIT, planted.ALWAYS)]


@pytest.fixture
def explain(cli, run, server):
    """Run `explain` against the server; gives exit code, the last line read as JSON, and errors."""

    def call(*arguments, where=server.url):
        options = ["--explainer", "m", "--base-url", where, "--json"]
        code, out, err = cli("explain", run.path, *arguments, *options)
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return call


def test_a_dry_run_sends_nothing_and_says_what_would_be_sent(explain, server):
    code, estimate, _ = explain(*NEURONS, "--dry-run")
    assert (code, server.requests) == (0, [])
    by_purpose = estimate["purposes"]
    assert by_purpose["explanation"]["requests"] == 3
    assert estimate["requests"] == 33
    assert explain(*NEURONS)[0] == 0
    asked = [body for _, body, _ in server.requests]
    assert sum(body.get("max_tokens") == 60 for body in asked) == 3
    assert sum(bool(body.get("echo")) for body in asked) >= 30
    assert explain(*NEURONS, "--dry-run")[1]["requests"] == 0
    assert explain(*NEURONS, "--dry-run", "--fresh")[1]["requests"] == 33


@pytest.mark.parametrize(("model", "tokens"), [("gpt-4.1", 60), ("gpt-5-mini", 800 + 4096)])
def test_a_dry_run_counts_thoughts(cli, run, monkeypatch, model, tokens):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    code, out, _ = cli("explain", run.path, NEURONS[0], "--explainer", model, "--dry-run", "--json")
    assert code == 0
    explanation = json.loads(out.splitlines()[-1])["purposes"]["explanation"]
    assert (explanation["requests"], explanation["completion_tokens"]) == (1, tokens)


def test_the_command_again_asks_nothing_and_fresh_asks_all(explain, server):
    code, found, _ = explain(*NEURONS)
    assert code == 0 and len(found["explanations"]) == 3
    sent = len(server.requests)
    code, again, _ = explain(*NEURONS)
    assert (code, len(server.requests)) == (0, sent)
    assert again == found
    assert explain(*NEURONS, "--fresh")[0] == 0
    assert len(server.requests) == 2 * sent


@pytest.mark.parametrize(
    ("mode", "requests"),
    [("prompt-logprobs", 11), ("generated-logprobs", 11), ("json", 11)],
)
def test_every_way_to_simulate_gives_scores(explain, server, mode, requests):
    code, found, err = explain(NEURONS[2], "--simulation", mode)
    assert code == 0, err
    [row] = found["explanations"]
    assert mode in row["simulation"]
    assert (row["excerpts_top"], row["excerpts_random"]) == (5, 5)


def test_a_calibration_is_named_among_the_scorers(explain):
    code, found, err = explain(NEURONS[2], "--scorers", "correlation,simulation-isotonic")
    assert code == 0, err
    [row] = found["explanations"]
    own = [score for score in row["scores"] if score["scorer"] == "simulation-isotonic"]
    assert {"r_squared", "auprc"} <= {score["measure"] for score in own}


def test_one_token_at_a_time_gives_scores_too(explain):
    code, found, err = explain(NEURONS[2], "--simulation", "one-at-a-time")
    assert code == 0, err
    assert found["explanations"][0]["excerpts_top"] == 5


@pytest.mark.parametrize("mode", ["prompt-logprobs", "generated-logprobs", "one-at-a-time"])
def test_a_dry_run_knows_what_the_local_engine_can_do(cli, run, mode):
    options = ["--local", "--simulation", mode, "--dry-run", "--json"]
    code, out, err = cli("explain", run.path, NEURONS[0], "--explainer", "smollm2", *options)
    assert code == 0, err
    requests = json.loads(out.splitlines()[-1])["purposes"]["simulation"]["requests"]
    assert requests > 600 if mode == "one-at-a-time" else requests == 10


def test_a_dry_run_of_batches_costs_half(explain, server, tmp_path):
    explain(NEURONS[0])
    ways = (["--batch"], ["--batch-file", str(tmp_path / "x")], [])
    priced = [*NEURONS, "--dry-run", "--price", "1,1"]
    served, by_file, plain = (explain(*priced, *way)[1] for way in ways)
    assert served["requests"] == plain["requests"]
    assert served["cost"] == pytest.approx(plain["cost"] / 2)
    # Files hold chats only, so the simulations are others, and none of them is answered yet.
    assert by_file["requests"] > plain["requests"]


def test_a_limit_that_is_reached_at_once_is_what_is_said(explain):
    code, _, err = explain(*NEURONS, "--max-requests", "3")
    assert code == 1 and err.splitlines()[-1].endswith("stopped after 3 requests; --max-requests")


def test_many_failures_are_summed_up_by_kind(capsys):
    failures = Failures()
    for n in range(50):
        quoted = (
            f"simulation of excerpt {n}: the answer has 'word {n}' at token {n} of 64, \"it's\""
        )
        failures.add(NeuronId(0, n), quoted)
    failures.add(NeuronId(1, 0), "explanation: refused")
    failures.summary()
    *single, last = capsys.readouterr().err.splitlines()
    assert len(single) == 20 and single[0].startswith("0:0: simulation of excerpt 0: the answer")
    assert last.startswith(
        "51 failures; 50 times such as: the answer has 'word 0' at token 0 of 64, \"it's\"; "
        "1 times such as: refused. The same command asks again"
    )


def test_many_explanations_without_a_score_are_not_passed_over(explain, cli, run, monkeypatch):
    explain(*NEURONS, "--max-requests", "3")
    monkeypatch.setattr("fastexplain.cli.explained._SHOWN", 2)
    monkeypatch.setattr("fastexplain.run.database.Database.best", lambda *_, **__: [])
    code, out, _ = cli("explain", run.path, *NEURONS)  # by lookup
    assert code == 0 and "None of the 3 neurons has a score that is defined" in out


def test_each_prompt_has_explanations_of_its_own(explain, server):
    said = {}
    for name in ("exemplars", "full", "short", "list"):
        server.content = f"This neuron reacts to {name} things."
        code, found, err = explain(NEURONS[0], "--prompt", name)
        assert code == 0, err
        [row] = found["explanations"]  # those of other prompts are in the run, and not shown
        said[name] = row["explanation"]
    assert said == {name: f"{name} things" for name in said}
    sent = len(server.requests)
    code, found, _ = explain(NEURONS[0], "--prompt", "full")
    assert (code, len(server.requests)) == (0, sent)
    assert [row["explanation"] for row in found["explanations"]] == ["full things"]


def test_prompts_are_told_apart_wherever_explanations_are_shown(
    explain, cli, run, server, monkeypatch
):
    monkeypatch.setattr(console, "_width", 140)
    names = ("exemplars", "full", "list")
    server.content = "This neuron reacts to words."
    for name in names:
        assert explain(NEURONS[0], "--prompt", name)[0] == 0
    shown = [cli("show", run.path, NEURONS[0])[1], cli("find", run.path, "words")[1]]
    for out in shown:
        told = [found for found in ("m, full", "m, list", "m, exemplars") if found in out]
        assert told == ["m, full", "m, list"], out
    explanations = page_data(run, NEURONS[0])["explanations"]
    assert {(each["parameters"]["prompt"], each["prompt"]) for each in explanations} == {
        ("exemplars", None), ("full", "full"), ("list", "list"),
    }  # fmt: skip


def test_a_revision_has_the_prompt_of_what_it_began_with():
    version = "revision-1 with counter-examples, 2 rounds by m all-at-once-3 json expected, of"
    for first, prompt in (("explainer-1", None), ("full-1", "full"), ("list-1 best of 2", "list")):
        spent = {"rounds": 2, "spent": {}}
        row = ExplanationRow(
            NeuronId(0, 0), "revised", "m", f"{version} {first}", "", parameters=spent
        )
        assert unusual_prompt(row) == prompt


def test_the_prompt_of_a_list_shows_the_tables_and_costs_less(explain, server):
    counts = {}
    for name in ("exemplars", "full", "list"):
        _, estimate, _ = explain(NEURONS[0], "--prompt", name, "--dry-run")
        counts[name] = estimate["purposes"]["explanation"]["prompt_tokens"]
    assert counts["list"] < counts["exemplars"] / 2 < counts["full"]
    server.content = "Words"
    assert explain(NEURONS[0], "--prompt", "list")[0] == 0
    asked = [
        body["messages"][-1]["content"] for _, body, _ in server.requests if "messages" in body
    ]
    assert any(content.startswith('"cat"\t10\t') for content in asked)


def test_readouts_stand_beside_each_other(explain):
    explain(NEURONS[0])
    code, found, _ = explain(NEURONS[0], "--readout", "contrast")
    assert code == 0
    ways = [row["simulation"].split()[-1] for row in found["explanations"]]
    assert sorted(ways) == ["contrast", "expected"]
    assert len({row["id"] for row in found["explanations"]}) == 1


def test_an_explanation_tells_its_provenance(explain):
    [row] = explain(NEURONS[0])[1]["explanations"]
    said = row["parameters"]
    assert len(said["exemplars"]) == 5 and said["prompt_tokens"] > 100
    assert (said["temperature"], said["seed"], len(said["request"])) == (0.0, 0, 32)
    assert row["cost"] == 0  # this machine's own servers cost nothing


def test_limits_stop_before_they_are_passed_and_the_command_goes_on(explain, server, cli, run):
    explain(NEURONS[0])  # leaves the probe behind
    before = len(server.requests)
    code, _, err = explain(*NEURONS, "--max-requests", "9")
    assert code == 1 and "--max-requests" in err
    assert len(server.requests) - before == 9
    code, _, err = explain(*NEURONS, "--max-cost", "0.001", "--price", "2,8")
    assert code == 1 and "stopped before $0.001" in err
    assert explain(*NEURONS)[0] == 0
    assert len(server.requests) - before == 22
    code, out, _ = cli("cost", run.path, "--json")
    assert code == 0
    assert json.loads(out)["total"]["answered"] == 33
    code, out, _ = cli("cost", run.path)
    assert code == 0 and "in all" in out


def test_a_limit_on_the_cost_needs_a_price(explain):
    code, _, err = explain(NEURONS[0], "--max-cost", "1", where="http://10.0.0.1:1/v1")
    assert code == 2 and "--price" in err


def test_everything_is_explained_only_when_it_is_meant(explain, server):
    code, _, err = explain("all")
    assert code == 2 and "--yes" in err and "requests" in err
    assert server.requests == []
    assert explain("all", "--sample", "2", "--seed", "4", "--where", "maximum > 0")[0] == 0


def test_ctrl_c_at_a_question_is_no_error(cli, run, server, monkeypatch):
    class Terminal:
        def isatty(self):
            return True

        def readline(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", Terminal().readline)
    code, _, err = cli("explain", run.path, "all", "--explainer", "m", "--base-url", server.url)
    assert code == 130 and err.splitlines()[-1].endswith("fastexplain: interrupted")
    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "nope"], "there is no prompt 'nope'; --prompt is one of"),
        (["--candidates", "0"], "--candidates is 0"),
        (["--controls"], "--controls are those of a revision; give --revise too"),
        (["--readout", "foo"], "there is no readout 'foo'"),
        (["--simulation", "foo"], "there is no simulation 'foo'"),
        (["--scorers", "correlation,foo"], "there is no scorer 'foo'"),
        (["--meanings", "3", "--revise", "1"], "--meanings and --revise exclude each other"),
        (["--max-minutes", "-1"], "--max-minutes is -1"),
        (["--batch", "--candidates", "0"], "--candidates is 0"),
    ],
)
def test_what_is_wrong_is_said_before_there_is_a_server(cli, run, monkeypatch, options, said):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, out, err = cli("explain", run.path, NEURONS[0], "--explainer", "m", *options)
    assert code == 2 and said in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "nope"], "there is no prompt 'nope'"),
        (["--readout", "foo"], "there is no readout 'foo'"),
        (["--scorers", "foo"], "there is no scorer 'foo'"),
    ],
)
def test_puzzles_say_it_before_there_is_a_server(cli, tmp_path, monkeypatch, options, said):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, _, err = cli("puzzles", "--explainer", "m", "--out", tmp_path / "out", *options)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--local"], "--local and --base-url exclude each other"),
        (["--batch", "--batch-file", "x"], "--batch and --batch-file exclude each other"),
        (
            ["--simulator-url", "http://x/v1", "--simulator-local"],
            "--simulator-local and --simulator-url exclude each other",
        ),
        (["--simulation", "telepathy"], "there is no simulation 'telepathy'"),
        (["--readout", "tea leaves"], "there is no readout 'tea leaves'"),
        (["--prompt", "tea leaves"], "there is no prompt 'tea leaves'; --prompt is one of"),
        (["--price", "cheap"], "'cheap' is no price"),
        (["--max-requests", "-1"], "--max-requests is -1"),
        (["--timeout", "0"], "timeout has to be above 0"),
        (["--requests-per-minute", "0"], "requests per minute has to be above 0"),
        (["--where", "colour > 1"], "colour"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(explain, options, said):
    code, out, err = explain(NEURONS[0], *options)
    assert code == 2 and said in err, err
    assert err.count("\n") == 1 and out is None


def test_options_of_language_models_are_refused_without_one(cli, run):
    for option in (
        ["--dry-run"],
        ["--prompt", "list"],
        ["--max-cost", "1"],
        ["--batch"],
        ["--simulator-local"],
    ):
        code, _, err = cli("explain", run.path, *option)
        assert code == 2 and f"{option[0]} is for language models" in err


def test_a_server_without_what_is_needed_is_told_apart(explain, server):
    server.echoes = server.chat_logprobs = False
    code, _, err = explain(NEURONS[0], "--simulation", "prompt-logprobs")
    assert code == 1 and "log-probabilities of prompts" in err and "--simulation" in err
    server.chats = False
    code, _, err = explain(NEURONS[0], "--fresh", "--simulation", "one-at-a-time")
    assert code == 1 and "answers no chats" in err


def test_failures_are_told_and_counted(explain, server):
    explain(NEURONS[0])
    server.content = ""
    code, _, err = explain(*NEURONS[1:])
    assert code == 1
    assert "0:1: explanation: " in err and "explained none of the 2 neurons" in err


def test_a_batch_file_is_written_without_a_server(explain, tmp_path, cli, run):
    asked = tmp_path / "asked.jsonl"
    code, _, err = explain(*NEURONS, "--batch-file", str(asked), where="http://10.0.0.1:1/v1")
    assert code == 0 and "3 requests written" in err
    assert len(asked.read_text().splitlines()) == 3
    code, _, err = cli("ingest", run.path, tmp_path / "absent.jsonl")
    assert code == 2 and "can't be read" in err


def test_a_simulator_may_have_a_place_of_its_own(monkeypatch):
    explainer = Model("big", "http://a/v1", price=Price(1, 1, 1))
    assert simulator_model(explainer, None) == explainer
    assert simulator_model(explainer, "small") == Model("small", "http://a/v1")
    assert simulator_model(explainer, "small", local=True) == Model("small", None, True)
    monkeypatch.delenv("SIMULATOR_API_KEY", raising=False)
    # The explainer's key is for nobody else to see.
    own = simulator_model(explainer, "small", base_url="http://b/v1")
    assert own.key_variable == "SIMULATOR_API_KEY"
    own = simulator_model(explainer, "small", base_url="http://a/other")
    assert own.key_variable == "OPENAI_API_KEY"
    monkeypatch.setenv("SIMULATOR_API_KEY", "k")
    own = simulator_model(explainer, "small", base_url="http://a/v1")
    assert own == Model("small", "http://a/v1", key_variable="SIMULATOR_API_KEY")
    own = simulator_model(explainer, None, base_url="http://b/v1")
    assert own == Model("big", "http://b/v1", key_variable="SIMULATOR_API_KEY")
