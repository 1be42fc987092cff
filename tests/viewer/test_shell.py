"""What all pages have in common: the address, keys, help, failures."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

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
