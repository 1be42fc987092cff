"""The overview and search in a browser: 300,000 neurons, and hostile texts."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from large_run import large_run
from playwright.sync_api import Browser, Page, expect

from fastexplain import Run
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.viewer import kept

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).resolve().parents[2] / ".cache" / "screenshots"
HOSTILE = "<img src=x onerror=alert(1)> \u202e \x1b[2J ' \" " + "long " * 2000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return large_run(tmp_path_factory.mktemp("runs") / "large", explained=40)


def test_all_neurons_of_a_large_run(
    large: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    address = serve(large)
    page = open_page(address, viewport={"width": 1440, "height": 900})
    picture = page.locator("canvas.picture")
    expect(page.locator(".legend")).to_contain_text("active on more tokens")
    expect(page.get_by_role("heading", name="By layer")).to_be_visible()
    assert page.locator("figure .chart").count() > 8

    # Keys: the cursor goes from neuron to neuron, and from layer to layer.
    pointed = page.locator(".pointed")
    picture.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(pointed.get_by_role("link")).to_have_text("0:1")
    page.keyboard.press("PageDown")
    expect(pointed.get_by_role("link")).to_have_text("1:0")
    expect(pointed).to_contain_text(" (")
    page.keyboard.press("End")
    expect(pointed.get_by_role("link")).to_have_text("47:6399")
    expect(pointed).to_contain_text("not explained")
    for _ in range(8):
        page.keyboard.press("+")
    expect(pointed.get_by_role("link")).to_have_text("47:6399")

    # Pointer: what is under it, also where it was enlarged; and the wheel.
    box = picture.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.keyboard.press("0")
    before = picture.screenshot()
    page.mouse.move(*middle)
    page.mouse.wheel(0, -600)
    page.wait_for_function("() => new Promise(requestAnimationFrame)")
    assert picture.screenshot() != before
    page.mouse.move(middle[0] + 5, middle[1])
    name = pointed.get_by_role("link").inner_text()
    assert large.check(NeuronId.parse(name)).index >= 0
    for button in ("right", "middle"):  # which are the browser's own
        page.mouse.click(*middle, button=button)
    assert "#/neuron" not in page.url

    # The address names what it is coloured by, and shows the same again.
    page.get_by_label("Colour by").select_option("lookup.top_and_random")
    expect(page.locator(".legend")).to_contain_text("Without a value: 299,520 neurons")
    assert "map=lookup.top_and_random" in page.url
    again = open_page(page.url)
    expect(again.get_by_label("Colour by")).to_have_value("lookup.top_and_random")
    expect(again.locator(".legend")).to_contain_text("Without a value: 299,520 neurons")
    expect(again.get_by_role("heading", name="By layer")).to_be_visible()

    # Going back shows the same part as large.
    picture.focus()
    for key in ("0", "Home", "+", "+"):
        page.keyboard.press(key)
    page.wait_for_function("() => history.state?.picture?.zoom === 2.25")
    part = page.evaluate("history.state.picture")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:0")
    page.go_back()
    expect(page.locator(".legend")).to_contain_text("Without a value")
    page.wait_for_function("() => document.querySelector('.legend').ariaBusy === 'false'")
    assert page.evaluate("history.state.picture") == part
    before = page.locator("canvas.picture").screenshot()
    page.keyboard.press("-")
    page.wait_for_function("() => history.state?.picture?.zoom === 1.5")
    assert page.locator("canvas.picture").screenshot() != before


def test_two_fingers_enlarge_and_one_moves_the_picture(
    run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    page = open_page(serve(run), has_touch=True, viewport={"width": 390, "height": 700})
    picture = page.locator("canvas.picture")
    expect(page.locator(".legend")).to_contain_text("active on more tokens")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        given = [{"x": x + dx, "y": y + dy, "id": id_} for id_, (dx, dy) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    def view() -> dict[str, float]:
        """What is shown, once it is kept."""
        page.wait_for_function("() => history.state?.picture")
        return page.evaluate("history.state.picture")

    assert view()["zoom"] == 1
    touch("touchStart", (-30, 0))
    touch("touchStart", (-30, 0), (30, 0))
    for apart in (35, 40, 45):
        touch("touchMove", (-apart, 0), (apart, 0))
    page.wait_for_function("() => Math.abs(history.state.picture.zoom - 1.5) < 0.01")
    touch("touchEnd")
    # One finger moves it; nothing was opened.
    before = view()
    touch("touchStart", (-45, 0))
    for step in (10, 20, 30):
        touch("touchMove", (-45 + step, step / 2))
    touch("touchEnd")
    page.wait_for_function("x => history.state.picture.x < x - 0.1", arg=before["x"])
    assert view()["zoom"] == before["zoom"]
    assert "#/neuron" not in page.url
    # As small as it was, a finger scrolls the page; a tap opens a neuron.
    touch("touchStart", (-45, 0))
    touch("touchStart", (-45, 0), (45, 0))
    for apart in (40, 30, 20):
        touch("touchMove", (-apart, 0), (apart, 0))
    touch("touchEnd")
    page.wait_for_function("() => history.state.picture.zoom === 1")
    assert picture.evaluate("canvas => getComputedStyle(canvas).touchAction") == "pan-x pan-y"
    page.touchscreen.tap(x, y)
    page.wait_for_url("**#/neuron/**")


@pytest.mark.parametrize("left", [0, 1])
def test_of_two_fingers_the_one_that_is_left_moves_the_picture_on(
    run: Run, serve: Callable[..., str], open_page: Callable[..., Page], left: int
) -> None:
    page = open_page(serve(run), has_touch=True, viewport={"width": 390, "height": 700})
    picture = page.locator("canvas.picture")
    expect(page.locator(".legend")).to_contain_text("active on more tokens")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, points: dict[int, tuple[float, float]]) -> None:
        given = [{"x": x + dx, "y": y + dy, "id": id_} for id_, (dx, dy) in points.items()]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    def view() -> dict[str, float]:
        page.wait_for_timeout(500)  # it is kept when it rests
        return page.evaluate("({ ...history.state.picture, scrolled: scrollY })")

    page.wait_for_function("() => history.state?.picture")
    touch("touchStart", {0: (-30, 0)})
    touch("touchStart", {0: (-30, 0), 1: (30, 0)})
    for apart in (40, 50, 60):
        touch("touchMove", {0: (-apart, 0), 1: (apart, 0)})
    page.wait_for_function("() => Math.abs(history.state.picture.zoom - 2) < 0.01")
    before, at = view(), (-60, 60)[left]
    touch("touchEnd", {1 - left: (-at, 0)})
    assert view() == before
    touch("touchMove", {left: (at + 1, 0)})
    page.wait_for_function("x => history.state.picture.x !== x", arg=before["x"])
    first = view()
    # By as much as the finger, and no more.
    for step in (10, 20, 31):
        touch("touchMove", {left: (at + step, step - 1)})
    page.wait_for_function("x => history.state.picture.x !== x", arg=first["x"])
    after = view()
    moved, once = before["x"] - after["x"], before["x"] - first["x"]
    assert moved == pytest.approx(31 * once, rel=0.01) and after["y"] < before["y"]
    assert (after["zoom"], after["scrolled"]) == (before["zoom"], before["scrolled"])
    touch("touchEnd", {})
    assert "#/neuron" not in page.url and view() == after


def test_search_by_touch_and_without_a_viewer(
    planted_run: Run, serve: Callable[..., str], browser: Browser
) -> None:
    # Not by `open_page`: the browser itself writes what fails to the console.
    with browser.new_context(has_touch=True, viewport={"width": 390, "height": 500}) as context:
        page = context.new_page()
        page.goto(serve(planted_run))
        field = page.get_by_role("combobox", name="Search")
        options = page.get_by_role("listbox").get_by_role("option")
        field.fill("0:1")
        expect(options.nth(3)).to_have_text("0:12")
        # A finger that is put down to scroll opens nothing, one that taps does.
        options.nth(3).dispatch_event("pointerdown", {"bubbles": True, "pointerType": "touch"})
        assert "#/neuron" not in page.url
        options.nth(3).tap()
        expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:12")
        context.set_offline(True)
        field.fill("0:2")
        expect(options).to_contain_text("The viewer does not answer")


def test_search_as_one_types(
    large: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    address = serve(large)
    page = open_page(address)
    field = page.get_by_role("combobox", name="Search")
    options = page.get_by_role("listbox").get_by_role("option")
    page.keyboard.press("/")
    page.keyboard.type("5:12")
    expect(options.first).to_have_text("5:12")
    expect(field).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(field).to_have_attribute("aria-activedescendant", "search-option-1")
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(page.get_by_role("listbox")).to_be_hidden()

    field.fill("")
    page.keyboard.type("the word w7, mos")  # the last word need not be whole
    expect(options.first).to_contain_text(re.compile(r"the word (.* )?w7\b"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Search")
    expect(page.locator(".found li").first).to_contain_text(re.compile(r"the word (.* )?w7\b"))
    assert "#/search?q=the%20word" in page.url

    for hostile in ('"', "NEAR( a * OR", HOSTILE):
        field.fill(hostile)
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_contain_text("Nothing has")
    field.fill("w7")
    expect(options.first).to_contain_text(re.compile(r"mean .* on it.*correlation (0\.\d|1)"))
    for width in (660, 768, 900, 1060, 1160, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        box = page.get_by_role("listbox").bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width, width
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**#/neuron/**")


def test_what_is_explained_meanwhile_is_shown(
    run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "_SHARE", float("inf"))  # made anew at once

    def explain(first: int, last: int) -> None:
        with run.database() as database:
            database.add_explanations(
                [
                    ExplanationRow(
                        *(NeuronId(0, index), "model", "m", "1", f"text of {index}"),
                        scores=Scores(*[index / 200] * 3, 5, 5),
                    )
                    for index in range(first, last)
                ]
            )

    explain(0, 12)
    page = open_page(
        f"{serve(run)}#/?map=other.top_and_random", viewport={"width": 390, "height": 600}
    )
    best = page.locator(".lists section").first.get_by_role("listitem")
    expect(best.first).to_contain_text("text of 11")
    expect(page.locator(".legend")).to_contain_text("Without a value: 108 neurons")
    page.get_by_text("more", exact=False).locator("visible=true").last.click()  # of the charts
    picture = page.locator("canvas.picture")
    picture.focus()
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.wait_for_function("() => history.state?.picture?.zoom > 1")
    part = page.evaluate("history.state.picture")
    page.evaluate("shifts.length = 0")
    explain(12, 60)
    expect(page.locator(".legend")).to_contain_text("Without a value: 60 neurons", timeout=20_000)
    expect(best.first).to_contain_text("text of 59")
    assert page.evaluate("history.state.picture") == part
    expect(picture).to_be_focused()
    expect(page.locator(".overview-rest details").last).to_have_attribute("open", "")

    # A link that has the focus keeps it, where it is still there.
    link = best.nth(3).get_by_role("link")
    link.focus()
    name = link.inner_text()
    explain(60, 61)
    expect(best.first).to_contain_text("text of 60", timeout=20_000)
    expect(best.nth(4).get_by_role("link")).to_have_text(name)
    expect(best.nth(4).get_by_role("link")).to_be_focused()
    assert page.evaluate("shifts") == []


def test_a_viewer_that_nobody_looks_at_is_not_asked(
    run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    page = open_page(serve(run))
    page.clock.install()
    page.reload()
    expect(page.get_by_role("heading", name="By layer")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/api/")[2]))
    with page.expect_response("**/api/progress"):
        page.clock.fast_forward(5000)
    look = """(away) => {
        Object.defineProperty(document, "hidden", { get: () => away, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(look, True)
    asked.clear()
    page.clock.fast_forward(60_000)
    assert asked == []
    with page.expect_request("**/api/progress"):
        page.evaluate(look, False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_how_it_looks(
    run: Run, serve: Callable[..., str], open_page: Callable[..., Page], scheme: str, width: int
) -> None:
    """Hostile texts are text, and nothing is wider than the page."""
    with run.database() as database:
        database.add_explanations(
            [
                ExplanationRow(
                    *(NeuronId(0, index), method, "<script>", "1", HOSTILE),
                    scores=Scores(score, score, score, 5, 5),
                )
                for index in range(20)
                for method, score in (("lookup", index / 20), ("model", 1 - index / 20))
            ]
        )
    address = serve(run)
    page = open_page(address, color_scheme=scheme, viewport={"width": width, "height": 900})
    expect(page.locator(".lists li").first).to_contain_text("<img src=x")
    expect(page.locator(".lists li").first).to_contain_text("\\u202e")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"overview-{scheme}-{width}.png", full_page=True)
    page.get_by_role("combobox", name="Search").fill("long")
    expect(page.get_by_role("listbox").get_by_role("option").first).to_contain_text("<img src=x")
    page.screenshot(path=SHOTS / f"search-{scheme}-{width}.png")
