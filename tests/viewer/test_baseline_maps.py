"""The baselines as colours of the overview's map, made while the viewer answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient

import fastexplain
from fastexplain import Run, Subject
from fastexplain.errors import RunError
from fastexplain.explainers.baselines import SPLITS, layer_baselines
from fastexplain.report.columns import by_site
from fastexplain.report.maps import BASELINES, baseline_maps
from fastexplain.text.corpus import Corpus
from fastexplain.viewer import baselines as module
from fastexplain.viewer.application import application
from fastexplain.viewer.baselines import BaselineMaps
from fastexplain.viewer.guard import Door

KEY = "baseline.token.top_and_random"
SHOTS = Path(__file__).resolve().parents[2] / ".cache" / "screenshots"


@pytest.fixture
def tiny_run(tiny_subject: Subject, tmp_path: Path) -> Run:
    """Four layers of 48 neurons."""
    corpus = Corpus.from_excerpts(
        np.random.default_rng(0).integers(1, 257, (40, 64)).astype(np.int32)
    )
    return fastexplain.sweep(tiny_subject, corpus, tmp_path / "tiny")


class Steps:
    """Lets layers be made one at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._go, self._of_run = threading.Semaphore(0), module.baseline_columns
        monkeypatch.setattr(module, "baseline_columns", self._made)

    def _made(self, run: Run) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        self._go.acquire()
        for each in self._of_run(run):
            yield each
            self._go.acquire()

    def layers(self, count: int) -> None:
        self._go.release(count)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """Named last in a test's arguments, so that no viewer waits for a layer when it ends."""
    steps = Steps(monkeypatch)
    yield steps
    steps.layers(1000)


def wait_for(maps: BaselineMaps, *states: str) -> None:
    thread = maps._thread
    assert thread is not None
    thread.join(60)
    assert maps.data()["state"] in states


def test_all_layers_of_a_run_are_those_of_a_report(tiny_run: Run) -> None:
    maps = BaselineMaps(tiny_run)
    assert maps.data() == {"state": "absent", "done": 0, "of": 4, "error": None}
    assert np.isnan(maps.column(KEY)).all()
    wait_for(maps, "done")
    assert maps.data()["done"] == 4
    for layer, found in layer_baselines(tiny_run):
        for name in BASELINES:
            for split in ("top_and_random", "random_only"):
                column = by_site(tiny_run, maps.column(f"baseline.{name}.{split}"))[str(layer)]
                expected = found[name].values[SPLITS.index(split)]
                np.testing.assert_array_equal(column, expected.astype(np.float32))
    assert np.isfinite(maps.column(KEY)).any()
    made = maps._thread
    maps.column(KEY)
    assert maps._thread is made  # once
    with pytest.raises(KeyError):
        maps.column("baseline.nothing.top_and_random")


def test_what_is_made_is_given_while_the_rest_is_not(tiny_run: Run, steps: Steps) -> None:
    maps = BaselineMaps(tiny_run)
    maps.column(KEY)
    assert maps.data()["state"] == "working"
    maps._ended.set()  # after the first layer
    steps.layers(2)
    thread = maps._thread
    assert thread is not None
    thread.join(60)
    assert maps.data()["done"] == 1
    by_layer = by_site(tiny_run, maps.column(KEY))
    assert np.isfinite(by_layer["0"]).any() and np.isnan(by_layer["1"]).all()
    assert maps._thread is thread  # one that has ended begins nothing


def test_what_failed_is_said_and_tried_again(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = BaselineMaps(tiny_run)
    for error, line in (
        (RunError("layers/00.safetensors is damaged"), "layers/00.safetensors is damaged"),
        (ValueError("odd"), "baselines can't be made: ValueError: odd"),
    ):
        with monkeypatch.context() as patch:

            def fails(_: Run, error: Exception = error) -> Iterator[None]:
                raise error
                yield

            patch.setattr(module, "baseline_columns", fails)
            maps.column(KEY)
            wait_for(maps, "failed")
            assert maps.data()["error"] == line
    maps.column(KEY)
    wait_for(maps, "done")
    assert maps.data()["error"] is None


def test_a_run_without_tables_has_the_place_alone(tiny_subject: Subject, tmp_path: Path) -> None:
    corpus = Corpus.from_excerpts(np.full((30, 64), 5, np.int32))
    run = fastexplain.sweep(tiny_subject, corpus, tmp_path / "bare", table_bytes=0)
    keys = [each["key"] for each in baseline_maps(run)]
    assert keys == ["baseline.position.top_and_random", "baseline.position.random_only"]
    with TestClient(application(run, Door(None)), raise_server_exceptions=False) as client:
        maps = client.get("/api/maps").json()["maps"]
        assert [each["key"] for each in maps if each["group"] == "Baselines"] == keys
        answer = client.get(f"/api/map/{KEY}")
        assert (answer.status_code, answer.json()["error"]) == (400, f"there is no map '{KEY}'")
        assert client.get("/api/progress").json()["baselines"]["state"] == "absent"
        assert client.get(f"/api/map/{keys[0]}").status_code == 200
        assert client.get("/api/progress").json()["baselines"]["state"] in ("working", "done")


@pytest.mark.browser
def test_the_picture_fills_layer_by_layer(
    tiny_run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    steps: Steps,
) -> None:
    page = open_page(serve(tiny_run), viewport={"width": 390, "height": 500})
    choice, legend = page.get_by_label("Colour by"), page.locator(".legend")
    group = choice.locator("optgroup[label^=Baselines]")
    expect(group).to_have_attribute("label", "Baselines, computed once one is chosen")
    choice.select_option(KEY)
    expect(legend).to_contain_text("Being computed: 0 of 4 layers.")
    picture = page.locator("canvas.picture")
    picture.focus()
    for key in ("+", "+"):
        page.keyboard.press(key)
    page.wait_for_function("() => history.state?.picture?.zoom === 2.25")
    tops = [
        each.bounding_box()["y"] for each in (picture, page.get_by_role("heading", level=2).first)
    ]
    for done in (1, 2, 3):
        steps.layers(1)
        expect(legend).to_contain_text(f"Being computed: {done} of 4 layers.")
        expect(legend).to_contain_text(f"Without a value: {192 - 48 * done} neurons.")
        expect(group).to_have_attribute("label", f"Baselines, being computed: {done} of 4 layers")
    steps.layers(2)
    expect(group).to_have_attribute("label", "Baselines")
    expect(legend).not_to_contain_text("Being computed")
    expect(legend).to_contain_text("predicted better")
    assert page.evaluate("history.state.picture.zoom") == 2.25
    after = [
        each.bounding_box()["y"] for each in (picture, page.get_by_role("heading", level=2).first)
    ]
    assert after == tops  # nothing has moved


@pytest.mark.browser
def test_what_can_not_be_made_is_said(
    tiny_run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: Run) -> Iterator[None]:
        raise RunError("layers/02.safetensors is damaged")
        yield

    monkeypatch.setattr(module, "baseline_columns", fails)
    page = open_page(f"{serve(tiny_run)}#/?map={KEY}")
    expect(page.locator(".legend [role=alert]")).to_have_text("layers/02.safetensors is damaged")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_how_it_looks(
    tiny_run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    scheme: str,
    width: int,
    steps: Steps,
) -> None:
    page = open_page(
        f"{serve(tiny_run)}#/?map={KEY}",
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
    )
    steps.layers(2)
    expect(page.locator(".legend")).to_contain_text("Being computed: 2 of 4 layers.")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"baselines-{scheme}-{width}.png")
