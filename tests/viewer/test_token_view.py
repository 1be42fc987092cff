"""Tokens look alike in the viewer and in a notebook."""

from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from fastexplain import Run
from fastexplain.notebook import tokens_html

pytestmark = pytest.mark.browser

TOKENS = [
    " the", "\n", "a\tb\r\n", "<script>alert(1)</script>", "\"'&amp;", "\u202eabc\u2066",
    "\x1b[31m", "\U0001f600" * 300, "x" * 10_000, "\u0661\u0662", "\ufeff", "", "e\u0301",
]  # fmt: skip
VALUES = [
    1.0,
    2.0,
    0.5,
    0.0,
    float("nan"),
    -0.25,
    -1.0,
    -7.0,
    1234567.0,
    1e-3,
    0.123456,
    -2e-5,
    12.0,
]
LOWEST, HIGHEST, SKIP = -1.0, 12.0, 1

LOOKS = """spans => spans.map(span => {
  const { backgroundColor, textDecorationLine, textDecorationStyle } = getComputedStyle(span);
  const [, colour, alpha] = /^rgba?\\((\\d+, \\d+, \\d+)(?:, ([0-9.]+))?\\)$/.exec(backgroundColor)
    ?? [];
  const mixed = /^color\\(srgb ([0-9. e-]+)(?: \\/ ([0-9.]+))?\\)$/.exec(backgroundColor);
  const parts = mixed ? mixed[1].split(" ").map(part => Math.round(255 * part)).join(", ") : colour;
  const share = Number((mixed ? mixed[2] : alpha) ?? 1);
  return {
    text: span.textContent, title: span.title, className: span.className.trim(),
    colour: share ? parts : "none", share: Math.round(100 * share),
    line: `${textDecorationLine} ${textDecorationLine === "none" ? "" : textDecorationStyle}`,
  };
})"""


SHOW = """async shown => {
    const { tokenView } = await import("./tokens.js");
    document.getElementById("content").replaceChildren(tokenView(shown));
}"""


def test_the_viewer_and_a_notebook_show_tokens_alike(
    planted_run: Run, serve: Callable[..., str], open_page: Callable[..., Page], browser: Browser
) -> None:
    values = [None if np.isnan(value) else value for value in VALUES]
    shown = {"tokens": TOKENS, "values": values, "skip": SKIP, "lowest": LOWEST, "highest": HIGHEST}
    address = serve(planted_run)
    page = open_page(address, color_scheme="light")
    page.evaluate(SHOW, shown)
    in_viewer = page.locator("#content .token").evaluate_all(LOOKS)
    notebook = browser.new_page()
    notebook.set_content(tokens_html(TOKENS, np.array(VALUES), LOWEST, HIGHEST, SKIP))
    in_notebook = notebook.locator(".token").evaluate_all(LOOKS)
    notebook.close()
    assert len(in_viewer) == len(TOKENS)
    assert in_notebook == in_viewer


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_values_are_told_without_colours_and_where_colours_are_forced(
    planted_run: Run, serve: Callable[..., str], open_page: Callable[..., Page], scheme: str
) -> None:
    page = open_page(serve(planted_run), color_scheme=scheme, forced_colors="active")
    values = [10.0, 0.0, -1.0, 5.0]
    shown = {"tokens": list("abcd"), "values": values, "lowest": -1.0, "highest": 10.0}
    page.evaluate(SHOW, shown)
    most, none, least, half = page.locator("#content .token").evaluate_all(
        """spans => spans.map(span => {
            const { backgroundColor, textDecorationLine, textDecorationStyle,
                textDecorationThickness } = getComputedStyle(span);
            return [backgroundColor, textDecorationLine, textDecorationStyle,
                parseFloat(textDecorationThickness)];
        })"""
    )
    assert most[1:] == ["underline", "solid", 3] and half[1:] == ["underline", "solid", 2]
    assert least[1:3] == ["underline", "dotted"] and none[1] == "none"
    colours = [most[0], none[0], least[0], half[0]]
    assert len(set(colours)) == 4  # each as it is where none is forced
