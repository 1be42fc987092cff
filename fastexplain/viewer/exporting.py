"""The viewer without its server: a folder of files, or one file, with a run's data in them.

A site is `index.html` (see `standalone.py`) and `data/`: scripts, each of which gives the page data
by their paths, as `static/source.js` says. What is one for the run is in a file of its own; the
data of neurons are many in a file of about 1 MB, so many in each that a neuron's place among those
exported says in which. All of it is written beside the folder and then put into its place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fastexplain.errors import RunError, UsageError
from fastexplain.records import NeuronId
from fastexplain.report.baselines import baselines_cost, baselines_data, baselines_of
from fastexplain.report.ruled import RuledExcerpts
from fastexplain.run.directory import Run
from fastexplain.run.whole import write_whole
from fastexplain.viewer.exported import Neighbours, is_whole, neuron_part, run_parts, texts_part
from fastexplain.viewer.standalone import GENERATOR, script_json, standalone_page

_T = TypeVar("_T")

PAGE, DATA = "index.html", "data"

_SHARD = 1_000_000  # bytes of a file of neurons' data: a few of them load in a moment
_TEXTS = 5000  # explanations in a file of them: about 1 MB too
_TRIED = 12  # neurons from which the size and time of all are estimated


class Plan(NamedTuple):
    """What an export of a site comes to, by a few of its neurons.

    Attributes:
        neurons: those that are exported, in the order of their names.
        shard: how many of them are in a file.
        size: bytes, an estimate.
        seconds: an estimate.
    """

    neurons: Sequence[NeuronId]
    shard: int
    size: int
    seconds: float


def plan_site(run: Run, neurons: Sequence[NeuronId]) -> Plan:
    """What an export of neurons takes; makes the data of a few.

    Raises:
        UsageError: there are no neurons.
        RunError: the run can't be read.
    """
    ordered = sorted(set(neurons))
    if not ordered:
        raise UsageError("there are no neurons to export")
    tried = ordered[:: -(-len(ordered) // _TRIED)]
    rules = RuledExcerpts(run)
    # The first one opens files, which is not each one's time.
    baselines = baselines_data(run, tried[0])["baselines"]
    neuron_part(run, tried[0], rules, baselines)
    started = time.perf_counter()
    baselines_data(run, tried[0])
    seconds = (time.perf_counter() - started) * baselines_cost(ordered)
    started = time.perf_counter()
    sizes = [len(_given(*neuron_part(run, each, rules, baselines))) for each in tried]
    texts_part(run, tried)
    seconds += (time.perf_counter() - started) / len(tried) * len(ordered)
    mean = sum(sizes) / len(sizes)
    shard = max(round(_SHARD / mean), 1)
    page = len(standalone_page({}, loads=True).encode())
    return Plan(ordered, shard, round(mean * len(ordered)) + page, seconds)


def export_site(
    run: Run, plan: Plan, directory: Path, report: Callable[[int], None] = lambda done: None
) -> Path:
    """Write a site; one that is there already is replaced, once the new one is whole.

    Args:
        run: whose data they are.
        plan: from `plan_site`.
        directory: of the site.
        report: called with how many neurons are written so far.

    Returns:
        The site's page.

    Raises:
        UsageError: the directory holds something else than such a site.
        RunError: the run can't be read, or the site can't be written.
    """
    check_directory(directory)
    with _put_in_place(directory) as folder, run.database(read_only=True) as database:
        (folder / DATA).mkdir()
        files = {}
        whole = is_whole(run, plan.neurons)
        for number, (path, data) in enumerate(run_parts(run, whole=whole)):
            files[path] = f"{DATA}/run-{number}.js"
            _write(folder / files[path], _given(path, data))
        texts: list[list[Any] | None] = []
        rules, baselines = RuledExcerpts(run), baselines_of(run, plan.neurons)
        done = 0
        for number, neurons in enumerate(_parts(plan.neurons, plan.shard)):
            scripts = []
            for neuron in neurons:
                beside, own = _beside(plan.neurons, done), next(baselines)
                scripts.append(_given(*neuron_part(run, neuron, rules, own, beside, database)))
                done += 1
                report(done)
            _write(folder / DATA / f"neurons-{number}.js", "".join(scripts))
            texts += texts_part(run, neurons)
        for number, some in enumerate(_parts(texts, _TEXTS)):
            _write(folder / DATA / f"texts-{number}.js", _given(f"texts/{number}", some))
        home = "#/" if whole else f"#/neuron/{plan.neurons[0]}"
        settings = {"given": {}, "files": files, "neurons": ranges(plan.neurons),
                    "shard": plan.shard, "texts": _TEXTS, "home": home}  # fmt: skip
        _write(folder / PAGE, standalone_page(settings, loads=True))
    return directory / PAGE


def export_page(run: Run, neuron: NeuronId, file: Path) -> int:
    """Write one neuron's page with all that it needs; returns its size in bytes.

    Raises:
        UsageError: the file is there and is not such a page.
        RunError: the run can't be read, or the file can't be written.
    """
    if file.exists() and not is_exported(file):
        raise UsageError(f"{file} is there and is not an exported page; give another name")
    path, data = neuron_part(
        run, neuron, RuledExcerpts(run), baselines_data(run, neuron)["baselines"]
    )
    given = {path: data, **dict(run_parts(run, whole=False))}
    settings = {"given": given, "files": {}, "neurons": ranges([neuron]),
                "shard": 0, "texts": 0, "home": f"#/{path}"}  # fmt: skip
    page = standalone_page(settings, loads=False).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"can't write {file}: {error}") from error
    write_whole(file, lambda unfinished: unfinished.write_bytes(page))
    return len(page)


def check_directory(directory: Path) -> None:
    """Raises UsageError for a directory that a site may not replace; RunError if it can't be read.

    It may replace a site, if there is nothing else beside that, and an empty directory.
    """
    try:
        if not directory.is_dir():
            if directory.exists():
                raise UsageError(f"{directory} is a file; give a directory, or a name in .html")
            return
        others = {entry.name for entry in directory.iterdir()} - {PAGE, DATA}
        whole = not others and is_exported(directory / PAGE)
        if whole or not any(directory.iterdir()):
            return
    except OSError as error:
        raise RunError(f"can't read {directory}: {error}") from error
    held = f"has {min(others)}" if others else "is not empty"
    raise UsageError(f"{directory} {held} and is no exported site; give another directory")


def is_exported(file: Path) -> bool:
    """Whether a file is a page that was exported."""
    try:
        with file.open(encoding="utf-8") as opened:
            return GENERATOR in opened.read(1000)
    except (OSError, ValueError):
        return False


def ranges(neurons: Sequence[NeuronId]) -> list[tuple[str, int, int]]:
    """Ascending neurons as site, first and last index."""
    found: list[tuple[str, int, int]] = []
    for site, index in ((each.site, each.index) for each in neurons):
        if found and found[-1][0] == site and found[-1][2] == index - 1:
            found[-1] = (site, found[-1][1], index)
        else:
            found.append((site, index, index))
    return found


def _parts(whole: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (whole[first : first + size] for first in range(0, len(whole), size))


def _beside(neurons: Sequence[NeuronId], place: int) -> Neighbours:
    before = neurons[place - 1] if place else None
    return Neighbours(before, neurons[place + 1] if place + 1 < len(neurons) else None)


@contextlib.contextmanager
def _put_in_place(directory: Path) -> Iterator[Path]:
    """A folder beside a directory, which takes the directory's place if all goes well."""
    directory = directory.absolute()
    beside = directory.with_name(f".{directory.name}.unfinished-{os.getpid()}")
    before = directory.with_name(f".{directory.name}.replaced-{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        yield beside
        if directory.exists():
            directory.rename(before)
        beside.rename(directory)
    except OSError as error:
        raise RunError(f"can't write {directory}: {error}") from error
    finally:
        if before.exists() and not directory.exists():
            before.rename(directory)
        for left in (beside, before):
            shutil.rmtree(left, ignore_errors=True)


def _given(path: str, data: object) -> str:
    """The script that gives a page data."""
    return f"FASTEXPLAIN.give({script_json(path)},{script_json(data)});\n"


def _write(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
