"""Ablation scores of known value, on the planted subject."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil

import numpy as np
import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fastexplain
from fastexplain.cli.terminal import out
from fastexplain.errors import RunError, SubjectError, UsageError
from fastexplain.pipeline.ablating import Ablated
from fastexplain.results import Explanation
from fastexplain.run.splits import samples
from fastexplain.run.subjects import load_subject_of
from fastexplain.scorers import registry
from fastexplain.scorers.ablation import Ablation, score_layer
from fastexplain.scorers.replacements import Case, excerpts_of, rising_line
from fastexplain.subject import interventions

SPLITS = ("random_only", "top_and_random", "top_only")


@pytest.fixture(scope="module")
def speaking(planted_subject):
    """The planted subject with neurons that write: "cat" raises "moon", digits raise "river"."""
    down = planted_subject.model.transformer.h[0].mlp.c_proj.weight
    before = down.detach().clone()
    with torch.no_grad():
        for neuron, word in ((planted.CAT, "moon"), (planted.DIGIT, "river"),
                             (planted.ALWAYS, "old")):  # fmt: skip
            down[neuron, planted.WORDS.index(word)] = 1
    yield planted_subject
    with torch.no_grad():
        down.copy_(before)


@pytest.fixture(scope="module")
def run(speaking, planted_corpus, tmp_path_factory):
    """A sweep of it; "rare" is in few excerpts, so not in all of the test split."""
    where = tmp_path_factory.mktemp("speaking")
    speaking.model.save_pretrained(where / "subject")
    speaking.tokenizer.save_pretrained(where / "subject")
    subject = fastexplain.load_subject(str(where / "subject"), device="cpu")
    return fastexplain.sweep(subject, planted_corpus, where / "run", batch_size=48)


@pytest.fixture(scope="module")
def subject(run):
    return load_subject_of(run, device="cpu")


def case_of(run, neuron, simulate):
    """A neuron's excerpts, simulated by a function of each."""
    record = run.neuron(f"0:{neuron}")
    return Case(
        record,
        [dataclasses.replace(each, simulated=simulate(each)) for each in excerpts_of(record)],
    )


def values(measured, measure="ablation"):
    return {m.split: m.value for m in measured if m.measure == measure}


def test_its_own_activations_score_one_and_its_mean_zero(run, subject):
    own = case_of(run, planted.CAT, lambda sample: sample.true)
    constant = case_of(run, planted.CAT, lambda sample: np.full(len(sample.true), 3.0))
    perfect, mean = score_layer(run, subject, [own, constant])
    assert values(mean) == dict.fromkeys(SPLITS, 0.0)
    for split, value in values(perfect).items():
        assert value == pytest.approx(1, abs=1e-6), split  # the line is fitted: 1 to rounding
    for measured in perfect:
        assert measured.low == pytest.approx(1, abs=1e-6) and measured.reason is None
        assert (
            measured.excerpts
            == {"random_only": 5, "top_and_random": 10, "top_only": 5}[measured.split]
        )
    assert all(
        value == pytest.approx(1, abs=1e-6) for value in values(perfect, "resampling").values()
    )


def test_own_activations_are_exactly_one_where_they_are_what_is_put_in(run, subject, monkeypatch):
    monkeypatch.setattr("fastexplain.scorers.replacements.rising_line", lambda x, y: (0.0, 1.0))
    [measured] = score_layer(run, subject, [case_of(run, planted.CAT, lambda s: s.true)])
    assert values(measured) == values(measured, "resampling") == dict.fromkeys(SPLITS, 1.0)


def test_it_is_the_formula_over_whole_passes(run, subject):
    """1 - E[JSD(simulated)] / E[JSD(mean)], each a whole pass with a hook, in float64."""
    case = case_of(run, planted.DIGIT, lambda sample: (sample.true > 3) + 0.2)
    [measured] = score_layer(run, subject, [case])
    record = case.record
    fitted = [s for s in case.excerpts if s.split == "calibration"]
    slope, intercept = np.polyfit(
        np.concatenate([s.simulated for s in fitted]), np.concatenate([s.true for s in fitted]), 1
    )

    def divergence(sample, replacement):
        down = subject.mlps[0].down

        def replace(module, inputs):
            acts = inputs[0].clone()
            acts[0, run.skip :, planted.DIGIT] = torch.tensor(replacement, dtype=torch.float32)
            return (acts,)

        ids = torch.from_numpy(run.excerpt(sample.excerpt))[None].long()
        with torch.inference_mode():
            p = subject.model(input_ids=ids).logits[0, run.skip :].double().softmax(-1)
            hook = down.register_forward_pre_hook(replace)
            q = subject.model(input_ids=ids).logits[0, run.skip :].double().softmax(-1)
            hook.remove()
        entropy = lambda x: torch.special.entr(x).sum(-1)  # noqa: E731
        return float((entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).mean())

    tests = [s for s in case.excerpts if s.split == "test"]
    simulated = np.array([divergence(s, intercept + slope * s.simulated) for s in tests])
    mean = np.array([divergence(s, np.full(63, record.statistics.mean)) for s in tests])
    tops = np.array([s.top for s in tests])
    for split, chosen in zip(SPLITS, (~tops, tops | True, tops), strict=True):
        expected = 1 - simulated[chosen].sum() / mean[chosen].sum()
        assert values(measured)[split] == pytest.approx(expected, abs=1e-4)
    assert 0 < values(measured)["top_and_random"] < 1


def test_undefined_has_a_reason(run, subject):
    nothing = case_of(run, planted.NEVER, lambda sample: sample.true)
    silent = case_of(run, planted.CAT, lambda sample: None)
    uncalibrated = case_of(
        run, planted.CAT, lambda sample: sample.true if sample.split == "test" else None
    )
    only_top = case_of(
        run, planted.CAT, lambda s: s.true if s.split == "calibration" or s.top else None
    )
    found = score_layer(run, subject, [nothing, silent, uncalibrated, only_top])
    reasons = [{m.reason for m in measured if m.measure == "ablation"} for measured in found]
    assert reasons[0] == {"mean ablation changes nothing that float32 tells"}
    assert reasons[1] == {"no excerpt was simulated"}
    assert reasons[2] == {"the calibration split was not simulated"}
    assert reasons[3] == {"no excerpt was simulated", None}
    assert all(m.value is None for measured in found[:3] for m in measured)
    assert values(found[3])["random_only"] is None and values(found[3])["top_only"] is not None


def test_a_token_without_a_value_gets_the_mean(run, subject):
    def partly(sample):
        simulated = sample.true.astype(float)
        simulated[::2] = np.nan
        return simulated

    whole, half = (
        score_layer(run, subject, [case_of(run, planted.DIGIT, simulate)])[0]
        for simulate in (lambda sample: sample.true, partly)
    )
    assert values(half)["top_and_random"] < values(whole)["top_and_random"] - 0.1
    assert {m.reason for m in half} == {"rests on 49% of the tokens: the others got the mean"}


def test_scores_don_t_depend_on_who_shares_the_batches(run, subject, monkeypatch):
    cases = [
        case_of(run, neuron, lambda sample: np.sqrt(np.maximum(sample.true, 0)))
        for neuron in (planted.CAT, planted.DIGIT, planted.ALWAYS)
    ]
    together = score_layer(run, subject, cases)
    monkeypatch.setattr(interventions, "_TOKENS_CPU", 192)
    apart = [score_layer(run, subject, [case])[0] for case in cases]
    for one, other in zip(together, apart, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.value is None) == (b.value is None)
            assert a.value is None or a.value == pytest.approx(b.value, abs=1e-4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(arrays(np.float64, (2, 12), elements=st.floats(-50, 50)))
def test_the_line_is_that_of_least_squares(data):
    x, y = data
    line = rising_line(np.append(x, np.nan), np.append(y, 9.0))
    if np.ptp(x) < 1e-3:
        return
    slope, intercept = np.polyfit(x, y, 1)
    if line is None:
        assert slope < 1e-6
    else:
        np.testing.assert_allclose(line, (intercept, slope), atol=1e-6, rtol=1e-6)


def test_the_scorer_in_explain(run, tmp_path):
    own = fastexplain.open_run(shutil.copytree(run.path, tmp_path / "run"))

    class Cat:
        method, model, version = "rule", "cat", "1"

        def explain(self, record):
            return Explanation("cat")

    class Word:
        model, version = "word", "1"

        def simulate(self, explanation, tokens):
            return [float(token == explanation) for token in tokens]

    found = fastexplain.explain(
        own, "0:0", explainer=Cat(), simulator=Word(), scorers=["correlation", "ablation"]
    )
    assert found.explanations[0].scores.top_and_random == pytest.approx(1, abs=1e-3)
    again = fastexplain.ablate(own, "0:0", explainer="cat")  # what is stored, as it is
    assert again.rows[0].value("top_and_random") == pytest.approx(1, abs=1e-3)
    assert len(again.rows[0].measured) == 6
    fresh = fastexplain.ablate(own, "0:0", explainer="cat", device="cpu", fresh=True)
    assert fresh.rows[0].value("top_only") == pytest.approx(again.rows[0].value("top_only"))


def test_the_registry_makes_it(run):
    [made] = registry.make(["ablation"], run, lambda purpose: None)
    assert isinstance(made, Ablation) and made.judge is None
    record = run.neuron("0:0")
    wanted = [(each.excerpt, each.split) for each in made.excerpts(record)]
    both = [*samples(record), *samples(record, "calibration")]
    assert wanted == [(each.excerpt, each.split) for each in both]
    untouched = [dataclasses.replace(s, simulated=None) for s in made.excerpts(record)]
    assert made._subject is None
    measured = asyncio.run(made.score(record, "x", untouched))
    assert {m.measure for m in measured} == set(made.measures)


def test_ablate_by_lookup_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    own = fastexplain.open_run(shutil.copytree(run.path, tmp_path / "run"))
    monkeypatch.setattr("fastexplain.pipeline.ablating._TOGETHER", 2)
    seen = []

    def stop(done):
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    names = [f"0:{neuron}" for neuron in range(7)]
    with pytest.raises(KeyboardInterrupt):
        fastexplain.ablate(own, names, device="cpu", progress=stop)
    again = []
    found = fastexplain.ablate(own, names, device="cpu", progress=again.append)
    assert seen == [0, 2] and again == [2, 4, 6, 7]
    assert isinstance(found, Ablated) and not found.lacking
    cat = found.rows[planted.CAT]
    assert cat.value("top_and_random") == pytest.approx(1, abs=0.01)
    assert found.rows[planted.NEVER].value("top_and_random") is None
    monkeypatch.setattr(
        "fastexplain.pipeline.ablating.load_subject_of", lambda *_, **__: pytest.fail("loaded")
    )
    assert fastexplain.ablate(own, names).rows == found.rows
    comparison = found.comparison()["top_and_random"]
    defined = [row.value("top_and_random") for row in found.rows]
    defined = [value for value in defined if value is not None]
    assert comparison["neurons"] == len(defined) >= 2
    assert comparison["mean"] == pytest.approx(np.mean(defined))
    assert repr(found) == f"7 neurons by lookup; mean ablation score {np.mean(defined):.2f}"


def test_what_can_t_be_ablated(run, subject, tmp_path):
    with pytest.raises(UsageError, match="no neurons are named"):
        fastexplain.ablate(run)
    moved = shutil.copytree(run.path, tmp_path / "run")
    own = fastexplain.open_run(moved)
    own.manifest["subject"]["name"] = str(tmp_path / "gone")
    with pytest.raises(SubjectError, match=r"the subject of .*run can't be loaded: .*`subject`"):
        fastexplain.ablate(own, "0:0", device="cpu")
    name = run.manifest["subject"]["name"]
    found = fastexplain.ablate(own, "0:0", device="cpu", subject=name)
    assert found.rows[0].value("top_and_random") == pytest.approx(1, abs=0.01)
    with pytest.raises(UsageError, match="'int8' is not a dtype"):
        fastexplain.ablate(own, "0:1", device="cpu", subject=name, dtype="int8")
    assert fastexplain.ablate(run, "0:0", explainer="nobody").lacking == [run.neuron("0:0").id]


def test_changed_weights_are_refused(run, tmp_path):
    changed = fastexplain.load_subject(run.manifest["subject"]["name"], device="cpu")
    with torch.no_grad():
        changed.model.transformer.h[0].mlp.c_proj.weight[0, 0] += 1e-3
    with pytest.raises(SubjectError, match=r"are not those that .* was swept with"):
        fastexplain.ablate(run, "0:0", subject=changed)
    changed.model.save_pretrained(tmp_path)
    changed.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=r"are not those that .* was swept with"):
        fastexplain.steer(run, "0:0", subject=str(tmp_path), device="cpu")


def test_without_tables_there_is_nothing_to_look_up(subject, planted_corpus, tmp_path):
    bare = fastexplain.sweep(subject, planted_corpus, tmp_path / "run", table_bytes=0)
    with pytest.raises(RunError, match="no tables to look up in"):
        fastexplain.ablate(bare, "0:0", subject=subject)


def test_steering_finds_what_a_neuron_writes(run, subject, tmp_path):
    own = fastexplain.open_run(shutil.copytree(run.path, tmp_path / "run"))
    found = fastexplain.steer(own, ["0:0", "0:1", "0:6"], subject=subject)
    cat, digit, never = found.values()
    assert never == []
    for steps, word in ((cat, "moon"), (digit, "river")):
        assert [step.tenths for step in steps] == list(range(1, 11))
        assert {step.tokens[0].token for step in steps} == {word}
        rises = [step.tokens[0].rise for step in steps]
        assert rises == sorted(rises) and rises[0] > 0
        assert all(0 < token.before + token.rise < 1 for s in steps for token in s.tokens)
    most = float(own.neuron("0:0").statistics.maximum)
    assert [step.activation for step in cat] == pytest.approx([i * most / 10 for i in range(1, 11)])
    own.manifest["subject"]["name"] = "gone"  # what is stored is read, not measured again
    assert fastexplain.steer(own, ["0:0", "0:1"]) == {
        neuron: steps for neuron, steps in found.items() if neuron.index < 2
    }


def test_the_commands(run, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(out, "_width", 160)
    path = shutil.copytree(run.path, tmp_path / "run")
    code, shown, _ = cli("ablate", path, "--sample", 7, "--device", "cpu", "--json")
    data = json.loads(shown.splitlines()[-1])
    assert code == 0 and len(data["neurons"]) == 7 and data["lacking"] == []
    assert data["paper"] == {"correlation": 0.9, "top_and_random": 0.6, "random_only": 0.3}
    code, shown, _ = cli("ablate", path, "0:0", "0:6", "--device", "cpu")
    assert code == 0 and "undefined" in shown and "0.6, random only 0.3" in shown
    assert cli("ablate", path)[2] == (
        "Ablating\nfastexplain: no neurons are named; name some, such as 5:131, or give --sample\n"
    )
    code, _, said = cli("ablate", path, "0:0", "--explainer", "nobody")
    assert code == 0 and "1 of 1 neurons have no explanation by nobody that was simulated" in said
    code, shown, _ = cli("steer", path, "0:0", "0:6", "--device", "cpu")
    assert code == 0 and "'moon' +" in shown and "never above 0" in shown
    steering = json.loads(cli("steer", path, "0:0", "--json")[1].splitlines()[-1])["steering"]
    code, shown, _ = cli("show", path, "0:0", "--json")
    assert json.loads(shown.splitlines()[-1])["steering"] == steering["0:0"]


def test_ctrl_c_says_that_it_is_stored(run, tmp_path, cli, monkeypatch):
    path = shutil.copytree(run.path, tmp_path / "run")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastexplain.pipeline.ablating.score_layer", interrupted)
    code, _, said = cli("ablate", path, "0:0", "--device", "cpu")
    assert code == 130 and "the same command continues from there" in said
