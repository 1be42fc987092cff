"""Nothing moves by itself while a page loads, nor when there is more to show."""

import threading
from collections.abc import Callable

import planted
import pytest
from playwright.sync_api import Page, expect

from fastexplain import Run
from fastexplain.explainers.lookup import store_lookup
from fastexplain.explainers.rules import store_rules
from fastexplain.viewer import kept

pytestmark = pytest.mark.browser

SIZES = [(390, 844), (1440, 900), (1440, 3000)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_nothing_moves_while_the_overview_loads(
    run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    height: int,
) -> None:
    """Neither at the top nor at the bottom, where it is read before the lists are made."""
    store_lookup(run)
    store_rules(run)
    goes_on, make = threading.Event(), kept.overview_data

    def waiting(*given: object) -> dict[str, object]:
        goes_on.wait()
        return make(*given)

    monkeypatch.setattr(kept, "overview_data", waiting)
    address, size = serve(run), {"width": width, "height": height}
    try:
        pages = [open_page(address, viewport=size) for _ in range(2)]
        pages[1].evaluate("scrollTo(0, document.body.scrollHeight)")
        for page in pages:
            expect(page.locator(".legend")).to_contain_text("active on more tokens")
            expect(page.locator(".overview-rest")).to_have_text("Loading…")
    finally:
        goes_on.set()
    for page in pages:
        expect(page.get_by_role("heading", name="The run")).to_be_attached()
        expect(page.locator(".lists li").first).to_be_attached()
        page.wait_for_function("() => new Promise(requestAnimationFrame)")
        assert page.evaluate("shifts") == []


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_nothing_moves_while_a_neuron_loads(
    run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    width: int,
    height: int,
) -> None:
    store_lookup(run)
    store_rules(run)
    page = open_page(
        f"{serve(run)}#/neuron/0:{planted.CAT}", viewport={"width": width, "height": height}
    )
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Neuron 0:{planted.CAT}")
    page.keyboard.press("n")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Neuron 0:{planted.CAT + 1}")
    page.wait_for_load_state("networkidle")
    page.wait_for_function("() => new Promise(requestAnimationFrame)")
    assert page.evaluate("shifts") == []


def test_the_first_lists_wait_where_they_would_move_what_is_seen(
    run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "_SHARE", float("inf"))  # made anew at once
    address = serve(run)
    high = open_page(address, viewport={"width": 1440, "height": 3000})
    low = open_page(address, viewport={"width": 1440, "height": 500})
    for page in (high, low):
        expect(page.get_by_text("No explanation is scored yet")).to_be_attached()
    store_lookup(run)
    # Where nobody sees it they are shown at once.
    expect(low.locator(".lists li").first).to_be_attached(timeout=20_000)
    assert low.get_by_role("button", name="Show what is new").count() == 0
    offer = high.get_by_role("button", name="Show what is new")
    expect(offer).to_have_count(2, timeout=20_000)  # of the lists, and of what was made
    expect(high.get_by_text("No explanation is scored yet")).to_be_visible()

    # What came since is offered with it.
    store_rules(run)
    with high.expect_response("**/api/overview"):
        pass
    offer.first.click()
    expect(high.get_by_role("heading", name="Best rules")).to_be_visible()
    expect(high.get_by_role("heading", name="Neurons to look at")).to_be_focused()
    offer.first.click()
    expect(high.locator(".bars")).to_contain_text("rule")
    expect(offer).to_have_count(0)
    assert [page.evaluate("shifts") for page in (high, low)] == [[], []]


def test_what_was_offered_is_shown_when_it_is_out_of_sight(
    run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "_SHARE", float("inf"))
    page = open_page(serve(run), viewport={"width": 390, "height": 700})
    line = page.get_by_text("No explanation is scored yet")
    line.scroll_into_view_if_needed()
    page.mouse.wheel(0, 200)  # what is below it, too
    expect(line).to_be_in_viewport()
    store_lookup(run)
    offer = page.get_by_role("button", name="Show what is new")
    expect(offer.first).to_be_visible(timeout=20_000)
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator(".lists li").first).to_be_attached(timeout=20_000)
    assert page.evaluate("shifts") == []
