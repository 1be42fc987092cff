"""What all pages have in common: the address, keys, help, failures."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect

from fastexplain import Run

pytestmark = pytest.mark.browser


def test_the_overview_names_the_run(
    planted_run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    check_accessible: Callable[[Page], None],
) -> None:
    address = serve(planted_run)
    page = open_page(address)
    expect(page.get_by_role("heading", level=1)).to_contain_text(planted_run.path.name)
    check_accessible(page)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("a random neuron")
    page.keyboard.press("Escape")
    page.evaluate("Math.random = () => 0.5")
    page.keyboard.press("R")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:60")
    page.evaluate("Math.random = () => 0")
    page.keyboard.press("R")  # a neuron's page has it too
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:0")
    expect(page.locator("main")).to_contain_text("`fastexplain weights` adds")
    page.keyboard.press("?")
    keys = page.get_by_role("dialog").locator("kbd")
    assert {"/", "h", "R", "T", "C", "J", "n", "?"} <= set(keys.all_inner_texts())
    assert "p" not in keys.all_inner_texts()  # it is the first
    page.keyboard.press("Escape")
    for key, said in (("T", "Try a text"), ("J", "Rate explanations"), ("C", "nothing to compare")):
        page.keyboard.press(key)
        expect(page.locator("main")).to_contain_text(said)
        page.evaluate("document.activeElement.blur()")


def test_what_cannot_be_read_is_found(
    planted_run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    check_accessible: Callable[[Page], None],
) -> None:
    address = serve(planted_run)
    page = open_page(address)
    page.evaluate("document.querySelector('h1').style.color = 'light-dark(#ddd, #fff)'")
    with pytest.raises(AssertionError, match=r"color-contrast.*<h1"):
        check_accessible(page)


def test_a_new_page_begins_at_its_top_and_going_back_goes_to_where_one_was(
    planted_run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    address = serve(planted_run)
    page = open_page(f"{address}#/neuron/0:1")
    link = page.get_by_role("link", name="next: 0:2")
    link.evaluate("link => document.querySelector('main').append(link)")  # at the page's end
    link.scroll_into_view_if_needed()
    page.wait_for_function("() => history.state?.scrolled === Math.round(scrollY)")
    before = page.evaluate("scrollY")
    assert before > 300
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:2")
    assert page.evaluate("scrollY") == 0
    page.get_by_role("tab", name="Random").click()
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:1")
    assert page.evaluate("scrollY") == pytest.approx(before, abs=1)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("%", "There is no page '%'."),
        ("nowhere", "There is no page 'nowhere'."),
        ("constructor", "There is no page 'constructor'."),
        ("neuron/%e0", "'%e0' does not name a neuron"),
    ],
    ids=["cut", "unknown", "constructor", "neuron"],
)
def test_a_wrong_address_is_said_to_be_wrong(
    planted_run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    part: str,
    said: str,
) -> None:
    page = open_page(serve(planted_run))
    page.evaluate("part => { location.hash = `#/${part}`; }", part)
    expect(page.get_by_role("alert")).to_contain_text(said)


def test_a_viewer_that_has_gone_is_asked_again(
    planted_run: Run, serve: Callable[..., str], browser: Browser
) -> None:
    # Not by `open_page`: the browser itself writes what fails to the console.
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{serve(planted_run)}#/neuron/0:1")
        expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:1")
        context.set_offline(True)
        page.keyboard.press("n")
        expect(page.get_by_role("alert")).to_contain_text("still running?")
        context.set_offline(False)
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:2")


def test_random_neurons_are_linked_and_leave_no_place_behind(
    planted_run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{serve(planted_run)}#/search")
    expect(page.get_by_role("link", name="Try")).not_to_have_attribute("aria-current", "page")
    page.get_by_role("link", name="Random").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Neuron 0:")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Search")


def test_the_tab_s_title_steers_no_text(
    planted_run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{serve(planted_run)}#/search?q=%E2%80%AEevil")
    expect(page).to_have_title("Search: \\u202eevil · fastexplain")
