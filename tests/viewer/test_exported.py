"""Exported sites and pages in a browser, which nothing but their own files may reach."""

import contextlib
import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from fastexplain import Run
from fastexplain.records import NeuronId
from fastexplain.viewer.exporting import export_site, plan_site

pytestmark = pytest.mark.browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """The address of a plain server of a folder's files."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def site(planted_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of some neurons."""
    neurons = [NeuronId(0, index) for index in (*range(4), *range(7, 20))]
    folder = tmp_path_factory.mktemp("exported") / "site"
    return export_site(planted_run, plan_site(planted_run, neurons), folder).parent


@pytest.fixture(params=["file", "server"])
def address(request: pytest.FixtureRequest, site: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"{site.as_uri()}/"
    else:
        with file_server(site) as served:
            yield served


def test_a_site_opens_from_a_server_and_as_a_file(
    address: str, planted_run: Run, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{address}index.html")
    expect(page.get_by_role("heading", level=1)).to_contain_text(planted_run.path.name)
