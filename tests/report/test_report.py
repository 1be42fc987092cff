"""Reports: the figures, the pages and the pictures."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import planted
import pytest

import fastexplain
from fastexplain import open_run
from fastexplain.cli.main import main
from fastexplain.errors import RunError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.explainers.rules import store_rules
from fastexplain.records import NeuronId
from fastexplain.report.figures import run_figures, steps
from fastexplain.report.pages import html_page, markdown_page, number, write_report
from fastexplain.report.plots import pictures
from fastexplain.report.summaries import jackknife, reliability, summary
from fastexplain.results import ExplanationRow, Measured

HOSTILE = "<script>alert(1)</script> | $x_1$ `*\n\x1b[31m"


@pytest.fixture(scope="module")
def scored(planted_run, tmp_path_factory):
    """The planted run, by lookup, rules and a model with a hostile name, which has intervals."""
    run = open_run(shutil.copytree(planted_run.path, tmp_path_factory.mktemp("report") / "run"))
    store_lookup(run)
    store_rules(run)
    with run.database() as database:
        for index in range(3):
            row = ExplanationRow(NeuronId(0, index), "model", HOSTILE, "v1", "words")
            [key] = database.add_explanations([row])
            value = None if index == 2 else 0.25 + index / 2
            rows = [
                Measured("corpus", "auprc", value, 15, 0.1, 0.492, "none" if index == 2 else None)
            ]
            database.add_scores("corpus", HOSTILE, "json", {key: rows})
    return run


@pytest.fixture(scope="module")
def figures(scored):
    return run_figures(scored)


@pytest.fixture(scope="module")
def written(scored, tmp_path_factory) -> tuple[Path, dict]:
    """The folder that the command writes a report to, and what it prints."""
    folder = tmp_path_factory.mktemp("written") / "out"
    command = ["fastexplain", "report", str(scored.path), "--out", str(folder), "--json"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return folder, json.loads(shown.getvalue().splitlines()[-1])


@pytest.fixture(scope="module")
def drawn(written) -> dict[str, tuple[bytes, bytes]]:
    """The report's pictures by name: SVG and PNG."""
    return {
        svg.stem: (svg.read_bytes(), svg.with_suffix(".png").read_bytes())
        for svg in written[0].glob("*.svg")
    }


def numbers(found: dict) -> list[float]:
    return [
        value
        for name in ("mean", "error_neurons", "error_excerpts", "reliability")
        for value in [found[name]]
        if value is not None
    ] + (found["quantiles"] or [])


def test_the_figures_hold_what_is_stored_and_the_baselines(scored, figures) -> None:
    found = {
        (m["model"], m["split"], m["measure"]): m
        for m in figures["measures"]
        if m["judge"] != "list"
    }
    lookup = found["lookup", "top_and_random", "correlation"]
    assert lookup["stored"] and lookup["all"]["neurons"] == 5
    assert lookup["all"]["undefined"] == planted.NEURONS - 5
    with scored.database() as database:
        [means] = database.layer_means("lookup")
    assert lookup["layers"][0]["mean"] == pytest.approx(means.top_and_random)
    assert lookup["all"]["error_excerpts"] < 0.1
    names = {m["model"] for m in figures["measures"] if not m["stored"]}
    assert names == {"token", "position", "mismatched", "unrepeated"}
    own = found[HOSTILE, "corpus", "auprc"]["all"]
    assert (own["neurons"], own["undefined"], own["mean"]) == (2, 1, 0.5)
    assert own["error_excerpts"] == pytest.approx(0.1, abs=1e-4)  # the interval is 0.392 wide
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@pytest.mark.parametrize("predicts", ["list", "rule"])
def test_errors_over_excerpts_are_those_stored_with_the_mean(scored, figures, predicts) -> None:
    with scored.database() as database:
        stored = {(mean.site, mean.split): mean for mean in database.means(predicts)}
    measures = [m for m in figures["measures"] if m["judge"] == predicts]
    assert {m["split"] for m in measures} == {"top_and_random", "random_only", "top_only"}
    for measure in measures:
        for site, found in (("", measure["all"]), ("0", measure["layers"][0])):
            mean = stored[site, measure["split"]]
            assert found["error_excerpts"] == pytest.approx((mean.high - mean.low) / 2 / 1.96, 1e-4)


def test_the_command_reports_every_figure_in_both_pages(figures, written) -> None:
    folder, shown = written
    assert shown == figures
    files = sorted(folder.iterdir())
    assert all(file.stat().st_size for file in files)
    assert {file.suffix for file in files} == {".html", ".md", ".svg", ".png"}
    page = (folder / "index.html").read_text()
    markdown = (folder / "report.md").read_text()
    text = markdown.replace("\\", "")
    for measure in figures["measures"]:
        for found in (measure["all"], *measure["layers"]):
            cells = [
                f"{found['neurons']:,}",
                f"{found['undefined']:,}",
                *map(number, numbers(found)),
            ]
            assert all(f"<td>{cell}</td>" in page for cell in cells)
            assert all(f" {cell} |" in text for cell in cells)
    names = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert len(names) == 6
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_names_of_models_do_nothing_in_a_page(figures, drawn) -> None:
    page = html_page(figures, {name: svg for name, (svg, _) in drawn.items()})
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "src='data:image/svg+xml;base64," in page and "http" not in page
    for encoded in re.findall(r"base64,([^']+)", page):
        assert b"<script" not in base64.b64decode(encoded)
    text = markdown_page(figures, list(drawn))
    assert not re.search(r"(?<!\\)<", text) and "\x1b" not in text and "\\$x\\_1\\$" in text
    for line in text.splitlines():
        if line.startswith("| "):  # every row of every table has as many cells
            assert len(re.split(r"(?<!\\)\|", line)) in (14, 17)  # 17 by entries


@pytest.mark.scale
def test_pictures_of_one_run_are_the_same_each_time(figures, drawn) -> None:
    again = pictures(figures)
    assert again == drawn
    assert list(again) == [
        "baselines", "entries", "distributions-top_and_random", "distributions-random_only",
        "distributions-top_only", "distributions-corpus",
    ]  # fmt: skip


def test_a_run_that_is_not_explained_yet_has_its_baselines(run) -> None:
    done: list[int] = []
    names = {m["model"] for m in run_figures(run, done.append)["measures"]}
    assert names == {"lookup", "token", "position", "mismatched", "unrepeated"}
    assert done == list(range(1, steps(run) + 1))


def test_a_run_without_scores_and_tables_has_nothing_to_report(
    planted_subject, planted_corpus, tmp_path
) -> None:
    run = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", table_bytes=0)
    with pytest.raises(RunError, match="has nothing to report: no explanation is scored"):
        run_figures(run)


def test_a_directory_that_is_a_file_is_said_in_a_line(figures, tmp_path, monkeypatch) -> None:
    """Before anything is drawn, which takes seconds."""
    monkeypatch.setattr("fastexplain.report.pages.pictures", lambda _: pytest.fail("drawn"))
    (tmp_path / "report").write_text("mine")
    with pytest.raises(RunError, match="report can't be written: "):
        write_report(figures, tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_without_matplotlib_nothing_is_begun(cli, run, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, errors = cli("report", run.path, "--out", tmp_path / "out")
    assert code == 2 and "pip install 'fastexplain[report]'" in errors
    assert not (tmp_path / "out").exists()


def test_a_summary_of_nothing_defined_has_no_mean() -> None:
    found = summary(np.full(3, np.nan))
    assert (found["neurons"], found["undefined"], found["mean"], found["quantiles"]) == (
        0, 3, None, None,
    )  # fmt: skip
    assert summary(np.array([0.5]))["error_neurons"] is None


def test_the_errors_of_a_mean_over_neurons_are_those_of_redrawing() -> None:
    """Scores are a neuron's own part, and one of each of five excerpts that all neurons share."""
    rng = np.random.default_rng(1)
    found, means = [], []
    for _ in range(400):
        shared = rng.normal(0, 0.1, 5)
        parts = shared[:, None] + rng.normal(0, 0.3, (5, 200))
        values = parts.mean(axis=0)
        without = (parts.sum(axis=0) - parts) / 4
        own = jackknife(values, without)
        found.append((own, summary(values)["error_neurons"]))
        means.append(values.mean())
    excerpts, neurons = np.sqrt((np.array(found) ** 2).mean(axis=0))
    # The first has the part of the neurons' noise that differs between excerpts in it, too.
    assert np.std(means) == pytest.approx(excerpts, rel=0.1)
    assert neurons < np.std(means) / 3


def test_reliability_is_that_of_a_simulation_with_a_known_one() -> None:
    """Of ten excerpts' means, with as much noise in one as there is difference between neurons."""
    rng = np.random.default_rng(2)
    for noise in (0.5, 1.0, 2.0, 4.0):
        parts = rng.normal(0, 1, 4000) + rng.normal(0, noise, (10, 4000))
        expected = 1 / (1 + noise**2 / 10)
        halves = parts[::2].mean(axis=0), parts[1::2].mean(axis=0)
        assert reliability(*halves) == pytest.approx(expected, abs=0.02)
    assert reliability(rng.normal(size=9), rng.normal(size=9)) is None
    assert reliability(np.ones(50), rng.normal(size=50)) is None
    assert reliability(np.arange(50.0), -np.arange(50.0)) == 0


def test_the_curve_by_entries_rises_to_what_the_table_knows(scored, figures) -> None:
    lists = figures["lists"]
    assert lists["lengths"] == [1, 2, 4, 8, 16, 32]
    [layer] = lists["layers"]
    assert layer == {"layer": 0} | lists["all"]
    *by_length, table = layer["top_and_random"]
    assert by_length[3] > 0.9 and table > 0.9
    assert by_length[0] < by_length[3] - 0.1  # six digits want six entries
    texts = [
        m
        for m in figures["measures"]
        if (m["judge"], m["split"], m["scorer"]) == ("list", "top_and_random", "correlation")
    ]
    # With 8 entries it is the mean of the stored scores, where all of them are defined.
    assert [m["all"]["mean"] for m in texts] == [pytest.approx(by_length[3], abs=1e-6)]
