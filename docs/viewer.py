"""Make docs/viewer.png, the README's picture of the viewer: python docs/viewer.py RUN

It needs Playwright, of the extra for tests, and Debian's Chromium.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent


def main() -> None:
    command = [sys.executable, str(HERE.parent / "cli.py"), "view", sys.argv[1]]
    viewer = subprocess.Popen(
        [*command, "--port", "0", "--no-browser"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert viewer.stdout is not None
        [address] = [word for word in viewer.stdout.readline().split() if "http" in word]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium",
                args=["--headless", "--no-sandbox", "--disable-gpu"],
            )
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"{address}#/?map=lookup.top_and_random")
            page.get_by_role("heading", name="By layer").wait_for()
            page.locator("canvas.picture").focus()
            page.keyboard.press("Home")
            page.locator(".pointed .explained").wait_for()
            page.screenshot(path=HERE / "viewer.png")
            browser.close()
    finally:
        viewer.terminate()
        viewer.wait()


if __name__ == "__main__":
    main()
