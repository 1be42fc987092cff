"""Sites and pages that need no server."""

import base64
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain import Run, open_run
from fastexplain.errors import RunError
from fastexplain.explainers.baselines import SPLITS, layer_baselines
from fastexplain.explainers.rules import store_rules
from fastexplain.records import NeuronId
from fastexplain.report import baselines
from fastexplain.report.baselines import baselines_cost, baselines_data
from fastexplain.report.ruled import RuledExcerpts
from fastexplain.results import ExplanationRow, Scores
from fastexplain.viewer import exporting, standalone
from fastexplain.viewer.exported import neuron_part, run_parts
from fastexplain.viewer.exporting import export_page, export_site, plan_site, ranges
from fastexplain.viewer.standalone import script_json, standalone_page

Command = Callable[..., tuple[int, str, str]]


def given_by(*files: Path) -> dict[str, Any]:
    """The data of scripts by their paths."""
    found = {}
    for line in (line for file in files for line in file.read_text().splitlines()):
        arguments = re.fullmatch(r"FASTEXPLAIN\.give\((.*)\);", line)
        assert arguments is not None
        path, data = json.loads(f"[{arguments[1]}]")
        found[path] = data
    return found


def names(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_a_site_has_each_neuron_in_the_file_of_its_place(
    planted_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_SHARD", 50_000)
    neurons = [NeuronId(0, index) for index in (9, 3, 4, 5, 100)]
    plan = plan_site(planted_run, neurons)
    done: list[int] = []
    page = export_site(planted_run, plan, tmp_path / "deep" / "site", done.append)
    assert done == [1, 2, 3, 4, 5]
    settings = json.loads(re.search(r"window\.FASTEXPLAIN = (.*);", page.read_text())[1])  # type: ignore[index]
    assert settings["neurons"] == [["0", 3, 5], ["0", 9, 9], ["0", 100, 100]]
    shards = sorted((page.parent / "data").glob("neurons-*.js"))
    assert len(shards) == -(-5 // plan.shard) > 1
    expected = [f"neuron/0:{index}" for index in (3, 4, 5, 9, 100)]
    assert [path for shard in shards for path in given_by(shard)] == expected
    for place, path in enumerate(expected):
        shard = page.parent / "data" / f"neurons-{place // plan.shard}.js"
        data = given_by(shard)[path]
        assert data["neuron"] == path.removeprefix("neuron/")
        beside = [None, *expected, None][place : place + 3 : 2]
        assert [data["previous"], data["next"]] == [each and each[7:] for each in beside]
    assert given_by(page.parent / "data" / "texts-0.js") == {"texts/0": [None] * 5}
    assert given_by(page.parent / settings["files"]["run"])["run"]["name"] == "planted"
    written = sum((page.parent / name).stat().st_size for name in names(page.parent))
    assert plan.size == pytest.approx(written, rel=0.3)


def test_a_site_replaces_a_site_and_nothing_else(
    planted_run: Run, tmp_path: Path, cli: Command
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for neurons in (["0:0-9"], ["0:1"]):
        code, out, _ = cli("export", planted_run.path, *neurons, "--html", site)
        assert code == 0 and out.startswith(f"Written: {site / 'index.html'} (")
        assert out.endswith(f" in all of {site})\n")  # which is far more than the page's
    out = cli("export", planted_run.path, "0:1", "--html", tmp_path / "one.html")[1]
    size = (tmp_path / "one.html").stat().st_size
    assert out == f"Written: {tmp_path / 'one.html'} ({size / 1000:.3g} kB)\n"
    (tmp_path / "one.html").unlink()
    assert len(given_by(*(site / "data").glob("neurons-*"))) == 1
    (site / "mine.txt").write_text("kept")
    before = names(site)
    code, _, error = cli("export", planted_run.path, "0:2", "--html", site)
    assert code == 2 and f"{site} has mine.txt and is no exported site" in error
    assert names(site) == before and names(tmp_path) == [f"site/{name}" for name in before]
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("<title>mine</title>")
    code, _, error = cli("export", planted_run.path, "0:2", "--html", other)
    assert code == 2 and f"{other} is not empty and is no exported site" in error
    code, _, error = cli("export", planted_run.path, "0:2", "--html", other / "index.html")
    assert code == 2 and "index.html is there and is not an exported page" in error
    assert (other / "index.html").read_text() == "<title>mine</title>"
    code, _, error = cli("export", planted_run.path, "--html", site / "mine.txt")
    assert code == 2 and "mine.txt is a file; give a directory" in error


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_stops_leaves_what_was_there(
    planted_run: Run, tmp_path: Path, failure: BaseException
) -> None:
    plan = plan_site(planted_run, [NeuronId(0, 0), NeuronId(0, 1)])
    site = tmp_path / "site"

    def stop(done: int) -> None:
        if done == 2:
            raise failure

    expected = RunError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export_site(planted_run, plan, site, stop)
    assert list(tmp_path.iterdir()) == []
    export_site(planted_run, plan, site)
    before = {name: (site / name).read_bytes() for name in names(site)}
    with pytest.raises(expected):
        export_site(planted_run, plan, site, stop)
    assert {name: (site / name).read_bytes() for name in names(site)} == before
    assert list(tmp_path.iterdir()) == [site]


def test_what_can_not_be_written_is_one_line(
    planted_run: Run, tmp_path: Path, cli: Command
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "site", tmp_path / "file" / "page.html"):
        code, _, error = cli("export", planted_run.path, "0:1", "--html", path)
        assert code == 1 and "can't write" in error and error.count("fastexplain: ") == 1
    code, _, error = cli("export", planted_run.path, "0:1")
    assert code == 2 and "--html DIR, or --html FILE.html" in error
    code, _, error = cli("export", planted_run.path, "0:1-2", "--html", tmp_path / "a.html")
    assert code == 2 and "would be the page of one neuron, but 2 are chosen" in error
    code, _, error = cli("export", planted_run.path, "0:500", "--html", tmp_path / "a.html")
    assert code == 2 and not (tmp_path / "a.html").exists()


def policy_of(page: str) -> str:
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    return policy


@pytest.mark.parametrize("loads", [False, True])
def test_a_page_lets_its_own_script_and_style_run_alone(loads: bool) -> None:
    page = standalone_page({"given": {}}, loads=loads)
    policy = policy_of(page)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert ("strict-dynamic" in policy) == loads
    for tag in ("script", "style"):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r'(src|href)="(?!#|data:)', page)  # nothing from elsewhere


def test_a_page_whose_parts_would_end_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in standalone.STATIC.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(standalone, "STATIC", tmp_path)
    style = tmp_path / "style.css"
    for text, said in (("</STYLE>", "the viewer's style has"), (None, "style.css can't be read")):
        style.unlink() if text is None else style.write_text(text)
        with pytest.raises(RunError, match=said):
            standalone_page({}, loads=False)
    style.write_text("")
    (tmp_path / "index.html").write_text("<html>")
    with pytest.raises(RunError, match="has not one"):
        standalone_page({}, loads=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None)
@given(JSON, st.sampled_from(["</script>", "<!--", "<script", "]]>", "\u2028\u202e\ud800"]))
def test_no_text_ends_a_script(data: Any, hostile: str) -> None:
    text = script_json([data, hostile])
    assert "<" not in text and text.isascii() and "\n" not in text
    assert json.loads(text) == [data, hostile]


@settings(derandomize=True, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 12))))
def test_ranges_hold_the_neurons(places: set[tuple[int, int]]) -> None:
    neurons: Sequence[NeuronId] = sorted(NeuronId(*place) for place in places)
    found = ranges(neurons)
    held = [f"{site}:{index}" for site, first, last in found for index in range(first, last + 1)]
    assert held == list(map(str, neurons))
    joined = [(a, b) for a, b in itertools.pairwise(found) if a[0] == b[0]]
    assert all(after[1] > before[2] + 1 for before, after in joined)


def test_a_site_has_the_baselines_and_what_rules_predict(
    planted_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(shutil.copytree(planted_run.path, tmp_path / "run"))
    store_rules(run)
    # The first layer's at once, as of many neurons, then one by one.
    for count, name in ((0, "many"), (99, "few")):
        monkeypatch.setattr(baselines, "A_LAYER", count)
        neurons = [NeuronId(0, index) for index in (planted.CAT, planted.RARE, planted.NEVER)]
        site = export_site(run, plan_site(run, neurons), tmp_path / name)
        data = given_by(site.parent / "data" / "neurons-0.js")
        for neuron in neurons:
            own = data[f"neuron/{neuron}"]
            wanted = baselines_data(run, neuron)["baselines"]
            assert own["baselines"].keys() == wanted.keys() == {"mismatched", "token", "position"}
            for key, values in wanted.items():
                assert own["baselines"][key] == pytest.approx(values, nan_ok=True)
            rules = [each for each in own["simulations"] if each["simulator"] == "rule"]
            for rule in rules:
                made = RuledExcerpts(run).data(str(neuron), rule["explanation"])["values"]
                assert rule["values"] == made and rule["values"].keys() <= own["excerpts"].keys()
            assert rules or neuron.index == planted.NEVER


def test_a_rule_of_another_version_is_left_without_what_it_predicts(
    planted_run: Run, tmp_path: Path
) -> None:
    run = open_run(shutil.copytree(planted_run.path, tmp_path / "run"))
    neuron = NeuronId(0, planted.CAT)
    terms = [{"term": "'cat'", "value": 2.0, "mean": 2.0, "count": 9}]
    scores = Scores(0.9, 0.9, 0.9, 5, 5)
    old = ExplanationRow(neuron, "rule", "rule", "rule-1", "'cat'", data=terms, scores=scores)
    with run.database() as database:
        database.add_explanations([old])
    _, data = neuron_part(run, neuron, RuledExcerpts(run), {})
    assert None in [each["values"] for each in data["simulations"]]


def test_a_whole_run_s_overview_has_maps_of_baselines(planted_run: Run) -> None:
    parts = dict(run_parts(planted_run, whole=True))
    keys = [each["key"] for each in parts["maps"]["maps"] if each["group"] == "Baselines"]
    assert len(keys) == 8
    [(_, found)] = layer_baselines(planted_run)
    packed = np.frombuffer(base64.b64decode(parts["map/baseline.token.top_and_random"]), "<f4")
    wanted = found["token"].values[SPLITS.index("top_and_random")].astype(np.float32)
    np.testing.assert_array_equal(packed, wanted)


def test_a_layer_s_baselines_are_made_once_where_it_has_many_neurons() -> None:
    assert baselines_cost([NeuronId(0, n) for n in range(3)] + [NeuronId(2, 5)]) == 4
    many = [NeuronId(layer, n) for layer in (0, 1) for n in range(1000)]
    assert baselines_cost(many) == 2 * baselines.A_LAYER
    assert baselines_cost([NeuronId(0, 1, "e1")]) == 0


def test_one_neuron_s_page_is_small_and_names_it(planted_run: Run, tmp_path: Path) -> None:
    size = export_page(planted_run, NeuronId(0, 1), tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text()
    assert size == len(page.encode()) < 200_000
    assert '"home":"#/neuron/0:1"' in page
    assert names(tmp_path) == ["one.html"]
