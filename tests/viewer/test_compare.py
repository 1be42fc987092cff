"""Two explainers or two runs, neuron by neuron."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2 as httpx
import numpy as np
import planted
import pytest
from playwright.sync_api import Page, expect
from viewing import serving

from fastexplain import Run, open_run
from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.records import NeuronId
from fastexplain.report.columns import score_columns
from fastexplain.report.comparing import (
    SPLITS,
    Pair,
    Side,
    check_comparable,
    neuron_data_of,
    pair_of,
    sides_data,
    sides_of,
    summary_data,
)
from fastexplain.results import CORRELATION, ExplanationRow, Measured, Scores
from fastexplain.viewer import kept
from fastexplain.viewer.viewed import Beside

ROOT = Path(__file__).resolve().parent.parent.parent
HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m" + "x" * 300


@pytest.fixture(scope="module")
def explained(planted_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that is explained by lookup, and one neuron by a model too, without any score."""
    run = open_run(shutil.copytree(planted_run.path, tmp_path_factory.mktemp("compared") / "base"))
    store_lookup(run)
    with run.database() as database:
        database.add_explanations(
            [ExplanationRow(NeuronId(0, planted.CAT), "model", "sage-1", "1", HOSTILE)]
        )
    return run


@pytest.fixture(scope="module")
def other(explained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(
        shutil.copytree(explained.path, tmp_path_factory.mktemp("compared") / "instruct")
    )


def paired(first: Side, second: Side, split: str = "random_only") -> Pair:
    columns = []
    for side in (first, second):
        with side.run.database(read_only=True) as database:
            columns.append(score_columns(side.run, database))
    return pair_of(first, second, split, *columns)


def test_sides_have_the_scores_that_are_stored(explained: Run) -> None:
    sides = sides_of(explained)
    assert list(sides) == ["table", "list", "model/sage-1"]
    pair = paired(sides["table"], sides["list"])
    for found, name in ((pair.a, "scores"), (pair.b, "text_scores")):
        with explained.database(read_only=True) as database:
            for index in range(planted.NEVER + 1):
                [row] = [
                    each
                    for each in database.explanations(NeuronId(0, index))
                    if each.method == "lookup"
                ]
                value = getattr(row, name).random_only
                assert found[index] == pytest.approx(
                    np.nan if value is None else value, nan_ok=True
                )
    pair = paired(sides["model/sage-1"], sides["list"])
    assert np.isnan(pair.a).all() and not pair.ids[0].any()


def test_differences_are_counted_over_neurons_with_both_scores(explained: Run) -> None:
    a = np.array([0.9, 0.5, np.nan, 0.1, 0.4], np.float32)
    b = np.array([0.1, 0.5, 0.3, 0.2, np.nan], np.float32)
    side = sides_of(explained)["table"]
    none_stored = np.zeros(1, np.int64)
    ids = (none_stored, none_stored)
    found = summary_data(Pair(side, side, "random_only", a[1:2], b[1:2], ids))
    assert (found["neurons"], found["difference"], found["low"]) == (1, 0, None)
    assert found["correlation"] is None and found["largest"] == {"a": [], "b": []}
    none = summary_data(Pair(side, side, "random_only", a[2:3], b[2:3], ids))
    assert (none["neurons"], none["difference"], none["only_b"]) == (0, None, 1)


def test_the_mean_difference_has_the_usual_interval(explained: Run) -> None:
    sides = sides_of(explained)
    total = explained.sites["0"].units
    a, b = np.full((2, total), np.nan, np.float32)
    a[:4], b[:4], a[4] = [0.9, 0.5, 0.3, 0.1], [0.1, 0.5, 0.4, 0.2], 1
    found = summary_data(paired(sides["table"], sides["list"])._replace(a=a, b=b))
    assert found["text_scored"] == [False, True]
    differences = (a - b)[:4].astype(np.float64)
    assert found["difference"] == pytest.approx(differences.mean())
    half = 1.959964 * differences.std(ddof=1) / 2
    assert (found["low"], found["high"]) == pytest.approx(
        (differences.mean() - half, differences.mean() + half)
    )
    counts = ("neurons", "only_a", "only_b", "a_higher", "b_higher")
    assert [found[name] for name in counts] == [4, 1, 0, 1, 2]
    assert [row["neuron"] for row in found["largest"]["a"]] == ["0:0"]
    assert {row["neuron"] for row in found["largest"]["b"]} == {"0:2", "0:3"}
    with explained.database(read_only=True) as database:
        texts = [row.text for row in database.explanations(NeuronId(0, 0))]
    assert found["largest"]["a"][0]["text_a"] in texts


def test_two_runs_share_excerpts_only_of_one_corpus(explained: Run, other: Run) -> None:
    sides = sides_of(explained, other)
    first, second = sides["table"], sides["other:table"]
    assert second.label == "lookup's table (instruct)"
    assert sides_data(sides, explained, other)["other"] == {
        "name": "instruct",
        "same_corpus": True,
    }
    found = neuron_data_of(first, second, "0:0")
    assert found["shared"] == 25 and found["correlation"] == pytest.approx(1)
    assert [len(each["exemplar"]["tokens"]) for each in found["sides"]] == [64, 64]
    assert neuron_data_of(first, sides["list"], "0:0")["shared"] == 0
    apart = open_run(other.path)
    apart.manifest["corpus"]["fingerprint"] = "another"
    second = sides_of(explained, apart)["other:table"]
    assert neuron_data_of(first, second, "0:0")["correlation"] is None


def test_runs_of_other_neurons_are_not_compared(explained: Run) -> None:
    narrow = SimpleNamespace(path="narrow", sites={"0": SimpleNamespace(units=7)})
    with pytest.raises(UsageError, match="site 0 has 7 units there and 120 here"):
        check_comparable(explained, narrow)  # type: ignore[arg-type]
    deep = SimpleNamespace(path="deep", sites={**explained.sites, "1": SimpleNamespace(units=7)})
    with pytest.raises(UsageError, match="site 1 has 7 units there and no here"):
        check_comparable(explained, deep)  # type: ignore[arg-type]
    check_comparable(explained, explained)


def test_the_server_answers_what_can_be_compared_and_refuses_the_rest(explained: Run) -> None:
    with serving(explained) as address, httpx.Client(base_url=f"{address}api/") as client:
        packed = client.get("compare/points?a=table&b=list").content
        points = np.frombuffer(packed, "<f4").reshape(2, -1)
        assert points.shape == (2, 120) and points[0, planted.CAT] > 0.9
        with explained.database() as database:
            database.add_explanations(
                [ExplanationRow(NeuronId(0, 1), "model", "sage-2", "1", "digits")]
            )
        assert "model/sage-2" in client.get("compare").text  # written since
        points = client.get("compare/points?a=table&b=model%2Fsage-2").content
        assert np.isnan(np.frombuffer(points, "<f4")[120:]).all()  # in no column yet
        for path, line in (
            ("compare/points?a=table", "'' has no explanations here; choose one of table"),
            ("compare/points?a=table&b=nobody", "'nobody' has no explanations here"),
            ("compare/summary?a=table&b=list&split=all", "there is no split 'all'"),
            ("compare/neuron/0:999?a=table&b=list", "there is no neuron 0:999"),
            ("compare/neuron/x?a=table&b=list", "does not name a neuron"),
        ):
            answer = client.get(path)
            assert answer.status_code == 400 and line in answer.json()["error"], path


def test_columns_are_made_while_the_rest_is_answered_and_former_ones_are_given_meanwhile(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_lookup(run)
    monkeypatch.setattr(kept, "_SHARE", np.inf)  # new ones at once
    go = threading.Event()
    of_run = kept.score_columns

    def made_late(*arguments):
        go.wait()
        return of_run(*arguments)

    monkeypatch.setattr(kept, "score_columns", made_late)
    with (
        serving(run) as address,
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=f"{address}api/") as client,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(go.set)

        def points() -> np.ndarray:
            packed = httpx.get(f"{address}api/compare/points?a=table&b=rule", timeout=60)
            return np.frombuffer(packed.content, "<f4").reshape(2, -1)

        with run.database() as database:
            rule = ExplanationRow(NeuronId(0, 1), "rule", "rule", "1", "digits")
            [id_] = database.add_explanations([rule])
        first = pool.submit(points)
        assert len(client.get("compare").json()["sides"]) == 3  # nothing waits for them
        assert client.get("compare/neuron/0:1?a=table&b=rule").status_code == 200
        go.set()
        assert np.isnan(first.result()[1]).all()
        go.clear()
        with run.database() as database:
            measured = [Measured(split, CORRELATION, 0.5, 5) for split in SPLITS]
            database.add_scores(CORRELATION, "rule", "1", {id_: measured})
        assert np.isnan(points()[1]).all()  # the former ones, without waiting
        go.set()
        assert any(points()[1, 1] == 0.5 for _ in range(2000))


@pytest.mark.browser
def test_explainers_and_runs_are_compared(
    explained: Run,
    other: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    check_accessible: Callable[[Page], None],
) -> None:
    address = serve(explained)
    page = open_page(f"{address}#/compare", viewport={"width": 1440, "height": 900})
    expect(page.locator(".figures")).to_contain_text("neurons have both scores")
    page.get_by_label("Second").select_option("model/sage-1")
    expect(page.locator(".figures")).to_contain_text("0 neurons have both scores")
    page.get_by_label("Both of neuron").fill("0:0")
    page.get_by_role("button", name="Show").click()
    sides = page.get_by_role("region")
    expect(page.get_by_role("region", name="model by sage-1")).to_contain_text("<script>")
    expect(sides.filter(has_text="It has no score.")).to_have_count(1)
    table = page.get_by_role("region", name="lookup's table")
    expect(table.locator(".side-scores")).to_contain_text("on top and random excerpts")
    expect(table).to_contain_text("What is scored is the whole table. Its list:")
    assert "b=model%2Fsage-1" in page.url and "neuron=0%3A0" in page.url
    check_accessible(page)
    address = serve(explained, Beside(other=other))
    for scheme, width in (("light", 1440), ("dark", 390)):
        page = open_page(
            f"{address}#/compare",
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
        )
        expect(page.get_by_role("heading", level=1)).to_have_text("Compare with instruct")
        canvas = page.locator("canvas.points")
        size = int(canvas.evaluate("canvas => canvas.clientWidth"))
        for x in range(size - 8, 46, -4):  # both runs' scores are the same
            canvas.hover(position={"x": x, "y": size - x})
            if "0:" in page.locator(".pointed").inner_text():
                break
        canvas.click(position={"x": x, "y": size - x})
        expect(page.locator("main")).to_contain_text("25 random excerpts of both runs")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(
            path=ROOT / ".cache" / "screenshots" / f"compare-{scheme}-{width}.png",
            full_page=True,
        )


@pytest.mark.browser
def test_links_lead_to_both_of_a_neuron_and_what_is_gone_is_said(
    explained: Run,
    tmp_path: Path,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
) -> None:
    instruct = open_run(shutil.copytree(explained.path, tmp_path / "instruct"))
    with instruct.database() as database:
        scores = Scores(-0.5, -0.5, -0.5, 5, 5)
        rows = [
            ExplanationRow(NeuronId(0, unit), "model", "sage-1", "2", "none", scores=scores)
            for unit in (0, 1, 2)
        ]
        database.add_explanations(rows)
    address = serve(explained, Beside(other=instruct))
    page = open_page(f"{address}#/compare?a=table&b=other%3Amodel%2Fsage-1")
    expect(page.locator(".figures")).to_contain_text("3 neurons have both scores")
    rows = page.locator(".differences tbody tr")
    expect(rows).to_have_count(3)
    name = rows.nth(1).get_by_role("link").inner_text()
    rows.nth(1).get_by_role("link").click()
    expect(page.get_by_role("heading", level=2)).to_have_text(name)
    assert page.url.endswith(f"neuron={name.replace(':', '%3A')}") and "#/compare?" in page.url
    expect(page.get_by_role("region", name="model by sage-1")).to_contain_text("Correlation -0.5")

    # The points by their first score, from the lowest, are the rows from the last one.
    canvas = page.locator("canvas.points")
    canvas.focus()
    pointed = page.locator(".pointed")
    names = [f"0:{unit}" for unit in (0, 1, 2)]
    seen = []
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "End"):
        canvas.press(key)
        seen.append(pointed.inner_text().split(": ")[0])
    assert sorted(seen[:3]) == names and seen[3:] == [seen[2], seen[1], seen[2]]
    canvas.press("Home")
    canvas.press("Enter")
    expect(page.get_by_role("heading", level=2)).to_have_text(seen[0])

    page = open_page(f"{address}#/compare?a=nope&b=table")
    expect(page.locator(".figures")).to_have_text(
        "“nope” has no explanations here; choose what to compare."
    )
    expect(page.get_by_label("First")).to_have_value("nope")
    assert page.url.endswith("#/compare?a=nope&b=table")
    page.get_by_label("First").select_option("list")
    expect(page.locator(".figures")).to_contain_text("neurons have both scores")


@pytest.mark.browser
def test_the_page_says_that_it_loads_until_scores_are_there(
    explained: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = threading.Event()
    of_run = kept.score_columns

    def made_late(*arguments):
        go.wait()
        return of_run(*arguments)

    monkeypatch.setattr(kept, "score_columns", made_late)
    try:
        page = open_page(f"{serve(explained)}#/compare?neuron=0%3A0")
        expect(page.locator(".figures")).to_have_text("Loading…")
    finally:
        go.set()
    expect(page.locator(".figures")).to_contain_text("neurons have both scores")
