"""Exported sites and pages in a browser, which nothing but their own files may reach."""

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error, Page, expect

import fastexplain
from fastexplain import Run
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.viewer import exporting, standalone
from fastexplain.viewer.exporting import export_page, export_site, plan_site

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]


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


HOSTILE = "</script><script>alert(1)</script><!-- \" ' & \u202e\u2028 zebra"

NEURONS = (*range(4), *range(7, 20))

# What pages load, for tests to load it without them.
PROBE = 'import { load, loadPacked } from "./source.js";\nwindow.probe = { load, loadPacked };\n'


@pytest.fixture(scope="module")
def explained(planted_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The planted run, explained by lookup, and neuron 0:3 by hostile text too."""
    run = fastexplain.open_run(
        shutil.copytree(planted_run.path, tmp_path_factory.mktemp("runs") / "planted")
    )
    fastexplain.explain(run, "all")
    rows = [
        ExplanationRow(
            NeuronId(0, index), "human", HOSTILE, "1", text, scores=Scores(1.0, score, 1.0, 5, 5)
        )
        for index, text, score in ((9, "striped as a zebra", 0.5), (3, HOSTILE, 1.0))
    ]
    with run.database() as database:
        database.add_explanations(rows)
    return run


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exported pages give tests what they load, as `window.probe`."""
    folder = shutil.copytree(standalone.STATIC, tmp_path_factory.mktemp("static") / "static")
    for main in (folder / "exported.js", folder / "single.js"):
        main.write_text(PROBE + main.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standalone, "STATIC", folder)
        patch.setattr(exporting, "_SHARD", 150_000)
        patch.setattr(exporting, "_TEXTS", 5)
        yield


@pytest.fixture(scope="module")
def site(explained: Run, probed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of some neurons, in several files."""
    plan = plan_site(explained, [NeuronId(0, index) for index in NEURONS])
    folder = tmp_path_factory.mktemp("exported") / "some"
    page = export_site(explained, plan, folder)
    assert len(list((folder / "data").glob("neurons-*"))) > 2
    return page.parent


@pytest.fixture(scope="module")
def whole(explained: Run, probed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the whole run."""
    neurons = [NeuronId(0, index) for index in range(explained.width(0))]
    folder = tmp_path_factory.mktemp("exported") / "whole"
    return export_site(explained, plan_site(explained, neurons), folder).parent


@pytest.fixture(params=["file", "server"])
def address_of(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], str]]:
    """Gives a folder's address: as a file, or from a plain server of files."""
    with contextlib.ExitStack() as servers:

        def address(folder: Path) -> str:
            if request.param == "file":
                return f"{folder.as_uri()}/"
            return servers.enter_context(file_server(folder))

        yield address


def load(page: Page, path: str) -> Any:
    return page.evaluate("path => window.probe.load(path)", path)


def asked_for(page: Page) -> list[str]:
    """The addresses that a page requests from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    return asked


def test_a_site_has_its_neurons_and_asks_for_nothing_else(
    address_of: Callable[[Path], str], site: Path, open_page: Callable[..., Page]
) -> None:
    address = address_of(site)
    page = open_page(f"{address}index.html#/none")
    asked = asked_for(page)
    name: str | None = "0:0"
    for index in NEURONS:  # from one to the next, over all files
        assert name == f"0:{index}"
        data = load(page, f"neuron/{name}")
        assert data["neuron"] == name and data["statistics"]["count"] > 0
        name = data["next"]
    assert name is None
    assert load(page, "run")["name"] == "planted"
    hostile = [each["text"] for each in load(page, "neuron/0:3")["explanations"]]
    assert HOSTILE in hostile
    for path in ("neuron/0:5", "neuron/9:1", "overview", "constructor", "texts/9"):
        with pytest.raises(Error, match=r"not part of this exported site|can't be read"):
            load(page, path)
    assert asked and all(each.startswith(f"{address}data/") for each in asked)
    assert len(asked) == len(set(asked))  # a file is read once


def test_search_finds_names_and_explanations_without_a_server(
    address_of: Callable[[Path], str], site: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{address_of(site)}index.html#/none")

    def search(text: str, limit: int = 8) -> Any:
        return page.evaluate(
            "([q, limit]) => window.probe.load(`search?${new URLSearchParams({ q, limit })}`)",
            [text, limit],
        )

    assert search("0:1", 3)["neurons"] == ["0:1", "0:10", "0:11"]
    assert search("0")["explanations"] != []
    for name in ("0:", "0:1"):  # whose numbers are in many lists
        assert (
            search(name)["explanations"] == []
            and search(name)["neurons"][0] == f"0:{name[2:] or 0}"
        )
    [found] = search("script ZEB")["explanations"]
    assert found == {
        "neuron": "0:3", "method": "human", "model": HOSTILE, "text": HOSTILE, "score": 1.0,
    }  # fmt: skip
    assert [each["neuron"] for each in search("moon after")["explanations"]] == ["0:2"]
    assert search("moo after")["explanations"] == []  # only the last word may go on
    both = search("zebra")
    assert [each["neuron"] for each in both["explanations"]] == ["0:3", "0:9"] and not both["more"]
    first = search("zebra", 1)
    assert first == both | {"explanations": both["explanations"][:1], "more": True}
    for text in ("", '"', "NEAR(", "*", "x" * 10_000, "9:1", "\\", "(((", "</script"):
        found = search(text)
        assert found["neurons"] == [] and isinstance(found["explanations"], list)
    glance = load(page, "glance/0:3")
    assert glance["text"] == HOSTILE and glance["neuron"] == "0:3"


def test_a_whole_run_has_its_overview(
    whole: Path, explained: Run, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{whole.as_uri()}/index.html#/none")
    overview, maps = load(page, "overview"), load(page, "maps")
    assert overview["distributions"] and overview["lists"]
    keys = [each["key"] for each in maps["maps"]]
    drawn = [each["key"] for each in overview["distributions"]]
    assert maps["default"] in keys and set(drawn) == {key for key in keys if "baseline" not in key}
    assert sum("baseline" in key for key in keys) == 8
    shown = page.evaluate(
        "key => window.probe.loadPacked(key).then(found => [...new Float32Array(found)])",
        "map/maximum",
    )
    assert shown == explained.statistics(0)["maximum"].astype("float32").tolist()


def test_the_overview_of_a_whole_run_works_as_with_a_server(
    address_of: Callable[[Path], str],
    whole: Path,
    explained: Run,
    open_page: Callable[..., Page],
    check_accessible: Callable[[Page], None],
) -> None:
    address = address_of(whole)
    page = open_page(f"{address}index.html")
    asked = asked_for(page)
    expect(page.get_by_role("heading", name="By layer")).to_be_visible()
    assert page.locator("figure .chart").count() > 2

    # The lists: a hostile text is a text.
    listed = page.locator(".lists li").filter(has_text="</script><script>alert(1)</script><!--")
    expect(listed.first).to_contain_text("0:3")

    # The picture: coloured by what the address names, and each cell a neuron.
    picture, pointed = page.locator("canvas.picture"), page.locator(".pointed")
    before = picture.screenshot()
    page.get_by_label("Colour by").select_option("other.top_and_random")
    expect(page.locator(".legend")).to_contain_text("Without a value: 118 neurons")
    assert "map=other.top_and_random" in page.url and picture.screenshot() != before
    picture.focus()
    page.keyboard.press("End")
    expect(pointed.get_by_role("link")).to_have_text(f"0:{explained.width(0) - 1}")
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(pointed).to_contain_text("0:3")
    expect(pointed).to_contain_text("</script><script>")  # its best explanation
    check_accessible(page)
    page.reload()  # an address that was kept opens the same
    expect(page.get_by_label("Colour by")).to_have_value("other.top_and_random")
    expect(page.locator(".legend")).to_contain_text("Without a value: 118 neurons")

    listed.first.get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:3")
    page.keyboard.press("h")
    expect(page.get_by_role("heading", name="By layer")).to_be_visible()
    assert all("/data/" in each or each.endswith("index.html") for each in asked)


def test_the_page_of_one_neuron_needs_nothing_beside_it(
    explained: Run, probed: None, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    file = tmp_path / "alone" / "one.html"
    assert export_page(explained, NeuronId(0, 3), file) < 200_000
    assert list(file.parent.iterdir()) == [file]
    page = open_page(f"{file.as_uri()}#/none")
    asked = asked_for(page)
    data = load(page, "neuron/0:3")
    assert HOSTILE in [each["text"] for each in data["explanations"]]
    assert load(page, "run")["name"] == "planted"
    with pytest.raises(Error, match="not part of this exported site"):
        load(page, "neuron/0:4")
    assert asked == []


def test_pages_look_and_work_as_with_a_server(
    address_of: Callable[[Path], str], site: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{address_of(site)}index.html")
    asked = asked_for(page)
    heading = page.get_by_role("heading", level=1)
    for key, index in (("n", 1), ("n", 2), ("n", 3), ("n", 7), ("p", 3)):
        page.keyboard.press(key)
        expect(heading).to_have_text(f"Neuron 0:{index}")
    expect(page.locator("main")).to_contain_text("</script><script>alert(1)</script><!--")
    page.get_by_role("tab", name="Random").click()
    assert "tab=random" in page.url
    page.reload()  # an address that was kept opens the same
    expect(heading).to_have_text("Neuron 0:3")
    expect(page.get_by_role("tab", name="Random")).to_have_attribute("aria-selected", "true")
    page.goto(f"{page.url.split('#')[0]}#/neuron/0:5")
    expect(page.get_by_role("alert")).to_have_text("That is not part of this exported site.")
    expect(page.get_by_role("link", name="Rate")).to_have_count(0)
    assert all("/data/" in each or each.endswith("index.html") for each in asked)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_one_neuron_opens_at_it(
    width: int, scheme: str, explained: Run, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    file = tmp_path / "one.html"
    export_page(explained, NeuronId(0, 3), file)
    size = {"width": width, "height": 900}
    page = open_page(file.as_uri(), viewport=size, color_scheme=scheme)
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:3")
    expect(page.get_by_role("search")).to_have_count(0)  # it is hidden
    page.keyboard.press("h")
    page.keyboard.press("R")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:3")
    page.keyboard.press("?")
    keys = page.get_by_role("dialog").locator("kbd").all_inner_texts()
    assert "?" in keys and not {"/", "h", "R", "n", "p", "T", "C", "J"} & set(keys)
    page.keyboard.press("Escape")
    folder = ROOT / ".cache" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"exported-{scheme}-{width}.png")


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_needs_a_server_is_not_offered_and_says_so_in_a_line(
    width: int, scheme: str, site: Path, open_page: Callable[..., Page]
) -> None:
    """An address that was shared may be one of the viewer itself."""
    address = f"{(site / 'index.html').as_uri()}#/"
    page = open_page(address, viewport={"width": width, "height": 500}, color_scheme=scheme)
    pages = page.get_by_role("navigation", name="Pages")
    expect(pages.get_by_role("link")).to_have_text(["Random"])
    expect(page.get_by_role("link", name="try a text")).to_have_count(0)
    for name in ("try?neuron=0:3", "compare", "rate"):
        page.goto(f"{address}{name}")
        expect(page.get_by_role("alert")).to_have_text(
            f"The page '{name.split('?')[0]}' needs the viewer itself, not an exported copy: "
            "fastexplain view RUN"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        folder = ROOT / ".cache" / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"exported-{name[:3]}-{scheme}-{width}.png")
    page.goto(f"{address}nowhere")
    expect(page.get_by_role("alert")).to_have_text("There is no page 'nowhere'.")
