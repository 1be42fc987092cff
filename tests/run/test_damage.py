"""Damage is found: flipped bits, truncated and extended files, what can't be in them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import fastexplain
from fastexplain import Run, open_run
from fastexplain.errors import FastexplainError, RunError
from fastexplain.explainers.lookup import explain_by_lookup, simulate_by_lookup, store_lookup
from fastexplain.ledger.responses import Responses
from fastexplain.llm.requests import Answer, Chat
from fastexplain.records import NeuronId
from fastexplain.results import CORRELATION, ExplanationRow, Scores
from fastexplain.run.arrays import ArrayFile
from fastexplain.run.checking import damages
from fastexplain.run.pieces import PIECE, hash_of, hashes_of
from fastexplain.run.sealed import sealed, unsealed

FORMER = Path(__file__).parents[1] / "data" / "run-schema-1"
FLIPS = 100


def flip(path: Path, number: int) -> tuple[int, int]:
    """Flip one bit of a file, chosen by a number."""
    data = bytearray(path.read_bytes())
    place, bit = random.Random(number).randrange(len(data)), number % 8
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return place, bit


def read_all(run: Run) -> None:
    """All that the package reads of a run's files of arrays."""
    run.table()
    run.neuron("0:3")
    list(explain_by_lookup(run))
    if len(run.tables.situations):
        run.array(0, "tables.situations")


@pytest.fixture
def copied(planted_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted_run.path, tmp_path / "run"))


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "hashes.safetensors", "excerpts.safetensors", "layers/00.safetensors"],
)
def test_no_flipped_bit_is_silent(copied: Path, name: str) -> None:
    """Whatever the bit, `check` names the file, and nothing else than a RunError is raised."""
    path = copied / name
    whole = path.read_bytes()
    for number in range(FLIPS):
        place = flip(path, number)
        try:
            found = damages(open_run(copied))
        except RunError as error:
            found = [str(error)]
        assert any(name in line for line in found), place
        assert not any("\n" in line for line in found)
        path.write_bytes(whole)
    assert damages(open_run(copied)) == []


def test_what_is_read_is_verified_and_what_is_not_is_not(copied: Path) -> None:
    """A neuron whose values are whole is shown beside one whose values are not."""
    path = copied / "layers" / "00.safetensors"
    file = ArrayFile(path, None)
    array = file.arrays["top.activations"]
    data = bytearray(path.read_bytes())
    last = planted.NEURONS - 1
    per_neuron = (array.end - array.start) // planted.NEURONS
    data[array.start + last * per_neuron] ^= 1
    path.write_bytes(data)
    run = open_run(copied)
    run.neuron("0:0")
    with pytest.raises(RunError, match=r"00\.safetensors is damaged \(bytes from [0-9,]+ on"):
        run.neuron(f"0:{last}")


@pytest.mark.parametrize("place", [(), (3,), (slice(2, 9),), (..., 5), (..., slice(3, 40))])
@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_a_flip_in_what_is_read_is_found_and_elsewhere_the_values_are_right(place, data) -> None:
    """Of an array of any shape, read in part: a wrong value never comes back."""
    shape = data.draw(st.tuples(st.integers(9, 40), st.integers(1, 30), st.integers(40, 90)))
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pieces.safetensors"
        save_file({"before": np.zeros(11, np.uint8), "x": values}, path)
        hashes = hashes_of(path)
        np.testing.assert_array_equal(
            ArrayFile(path, hashes).read("x", place), values[place or ...]
        )
        content = bytearray(path.read_bytes())
        start = ArrayFile(path, None).arrays["x"].start
        offset = data.draw(st.integers(start, len(content) - 1))
        content[offset] ^= 0x10
        path.write_bytes(content)
        try:
            found = ArrayFile(path, hashes).read("x", place)
        except RunError:
            return
        np.testing.assert_array_equal(found, values[place or ...])


def test_a_hash_depends_on_every_byte_and_their_number(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 3 * PIECE + 5, dtype=np.uint8).tobytes()
    hashes = set()
    for changed in (content, content[:-1], content + b"\0", content[1:], b"", content[:PIECE]):
        (tmp_path / "file").write_bytes(changed)
        hashes.add(hash_of(hashes_of(tmp_path / "file")))
    assert len(hashes) == 6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != "hash"), JSON, min_size=1), st.data())
def test_sealed_data_comes_back_and_no_flip_is_silent(value, data) -> None:
    content = sealed(value)
    assert unsealed(content) == (value, True)
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        found, hashed = unsealed(bytes(damaged))
    except ValueError:
        return
    assert not hashed and "schema" not in found  # taken for one without a hash, never for whole


def without_hashes(path: Path, manifest: dict) -> None:
    """Write a manifest of schema 2, which had no hashes."""
    kept = {name: value for name, value in manifest.items() if name != "files"}
    (path / "manifest.json").write_text(json.dumps(kept | {"schema": 2}))


def places_of(value, path=()):
    """Every place in nested data, as a path of keys."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places_of(value[key], (*path, key))


WRONG = [
    None,
    True,
    -1,
    0,
    10**30,
    0.5,
    "x",
    "../../etc/passwd",
    "5/../6",
    [],
    {},
    [[]],
    float("inf"),
]


@pytest.mark.parametrize("schema", [1, 2])
def test_a_manifest_with_anything_wrong_is_refused_in_one_line_or_reads_right(
    planted_run: Run, tmp_path: Path, schema: int
) -> None:
    """150 changes to runs without hashes: any place in it, any kind of value, or nothing."""
    source = FORMER if schema == 1 else planted_run.path
    path = Path(shutil.copytree(source, tmp_path / "run"))
    manifest = json.loads((source / "manifest.json").read_text())
    manifest.pop("hash", None)
    places = list(places_of(manifest))
    choose, refused = random.Random(schema), 0
    for _ in range(150):
        changed = json.loads(json.dumps(manifest))
        *way, last = choose.choice(places[1:])
        inner = changed
        for key in way:
            inner = inner[key]
        if choose.random() < 0.3:
            del inner[last]
        else:
            inner[last] = choose.choice(WRONG)
        if schema == 2:
            without_hashes(path, changed)
        else:
            (path / "manifest.json").write_text(json.dumps(changed))
        try:
            run = open_run(path)
            repr(run)
            run.table()
            run.neuron(f"{run.layers[0]}:3")
            damages(run)
        except FastexplainError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 20 < refused < 150


@pytest.mark.parametrize("content", ["", "[]", "nul", '{"schema": 2', "[" * 100_000, "\ud800", "1"])
def test_what_is_no_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match=r"manifest\.json can't be used") as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_site_is_never_a_path(copied: Path, planted_run: Run) -> None:
    for name in ("../0", "0./../../x", "0.a/b", "", "00", "0.", "-1", "x", "0.\u0435", "0\n"):
        manifest = json.loads(json.dumps(planted_run.manifest))
        manifest["sites"][0]["name"] = name
        without_hashes(copied, manifest)
        with pytest.raises(RunError, match=r"manifest\.json can't be used"):
            open_run(copied)


# What is wrong in a run without hashes, as a change of the arrays of its layer or its excerpts.
CHANGES = {
    "an id past the excerpts": ("layers/00", lambda a: a["top.ids"].__setitem__((3, 3), 400)),
    "an id far below": ("layers/00", lambda a: a["top.ids"].__setitem__((3, 3), -(2**31))),
    "a random id past the excerpts": ("layers/00", lambda a: a["random.ids"].__setitem__(2, 999)),
    "a random id below none": ("layers/00", lambda a: a["random.ids"].__setitem__(0, -2)),
    "a histogram's id": ("layers/00", lambda a: a["histogram.excerpts"].__setitem__((3, 9), 400)),
    "fewer neurons": ("layers/00", lambda a: a.update({"sums": a["sums"][:, :-1].copy()})),
    "fewer rows": (
        "layers/00",
        lambda a: a.update({"tables.pairs": a["tables.pairs"][:-1].copy()}),
    ),
    "other exemplars": ("layers/00", lambda a: a.update({"top.ids": a["top.ids"][:, :-1].copy()})),
    "shorter excerpts": (
        "layers/00",
        lambda a: a.update({"top.activations": a["top.activations"][..., :-1].copy()}),
    ),
    "another type": ("layers/00", lambda a: a.update({"sums": a["sums"].astype(np.float32)})),
    "another type of ids": (
        "layers/00",
        lambda a: a.update({"top.ids": a["top.ids"].astype("u4")}),
    ),
    "no statistics": ("layers/00", lambda a: a.pop("positive")),
    "a negative token": ("excerpts", lambda a: a["tokens"].__setitem__((0, 0), -5)),
    "more tokens than counts": (
        "excerpts",
        lambda a: a.update({"tables.tokens": np.arange(len(a["tables.tokens"]) + 1, dtype="i4")}),
    ),
    "pairs of three": (
        "excerpts",
        lambda a: a.update({"tables.pairs": np.zeros((len(a["tables.pairs"]), 3), np.int32)}),
    ),
    "fewer excerpts": ("excerpts", lambda a: a.update({"tokens": a["tokens"][:-1].copy()})),
    "no regression's sums": ("layers/00", lambda a: a.pop("tables.regression")),
    "components of fewer tokens": (
        "excerpts",
        lambda a: a.update({"regression.components": a["regression.components"][:3].copy()}),
    ),
    "fewer components": (
        "excerpts",
        lambda a: a.update({"regression.components": a["regression.components"][:, :9].copy()}),
    ),
    "a product that is none": (
        "excerpts",
        lambda a: a["regression.products"].__setitem__((3, 3), np.nan),
    ),
    "a regression without rows": ("excerpts", lambda a: a.pop("regression.pairs")),
    "no vocabulary": ("excerpts", lambda a: a.pop("vocabulary.ends")),
    "an empty vocabulary": ("excerpts", lambda a: a.update({"vocabulary.ends": np.zeros(0, "i8")})),
    "a vocabulary that goes back": (
        "excerpts",
        lambda a: a.update({"vocabulary.ends": a["vocabulary.ends"][::-1].copy()}),
    ),
    "a vocabulary past its bytes": (
        "excerpts",
        lambda a: a["vocabulary.ends"].__setitem__(-1, 10**9),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_arrays_that_do_not_fit_are_refused_before_a_kernel_sees_them(
    copied: Path, planted_run: Run, change: str
) -> None:
    """In a child process: what reaches a kernel might end it."""
    without_hashes(copied, planted_run.manifest)
    name, apply = CHANGES[change]
    path = copied / f"{name}.safetensors"
    arrays = load_file(path)
    apply(arrays)
    save_file(arrays, path)
    script = (
        "import sys, fastexplain\n"
        "from fastexplain.errors import RunError\n"
        "from fastexplain.explainers.lookup import explain_by_lookup, simulate_by_lookup\n"
        "run = fastexplain.open_run(sys.argv[1])\n"
        "def tokens(): run.neuron('0:3')\n"
        "def lookup(): list(explain_by_lookup(run))\n"
        "def one(): simulate_by_lookup(run, run.neuron('0:3'))\n"
        "refused = 0\n"
        "for read in (tokens, lookup, one, run.table):\n"
        "    try: read()\n"
        "    except RunError as error: refused += 1; assert sys.argv[2] in str(error), error\n"
        "assert refused, 'not refused'\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, copied, path.name], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert damages(open_run(copied)) != []


def test_truncated_and_extended_files_and_headers_that_lie(copied: Path, planted_run: Run) -> None:
    """90 of each, of a run without hashes; a RunError, or the values as they were."""
    without_hashes(copied, planted_run.manifest)
    choose = random.Random(0)
    for name in ("excerpts.safetensors", "layers/00.safetensors"):
        path = copied / name
        whole = path.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        changed = [whole[: choose.randrange(len(whole))] for _ in range(30)]
        changed += [whole + bytes(choose.randrange(1, 5000)) for _ in range(30)]
        changed += [
            size.to_bytes(8, "little") + whole[8:] for size in (0, 1, length - 8, 2**40, 2**64 - 1)
        ]
        for _ in range(40):
            lying = json.loads(json.dumps(header))
            entry = lying[choose.choice([key for key in lying if key != "__metadata__"])]
            match choose.randrange(3):
                case 0:
                    entry["dtype"] = choose.choice(["F64", "I8", "BF16", "F8_E5M2", "X", ""])
                case 1:
                    entry["shape"] = [choose.choice([-1, 0, 1, 7, 2**62, 2**70])] * 2
                case 2:
                    entry["data_offsets"][choose.randrange(2)] = choose.choice([-1, 0, 8, 2**62])
            if lying == header:
                continue
            text = json.dumps(lying).encode()
            text += b" " * (-len(text) % 8)
            changed.append(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        for content in changed:
            path.write_bytes(content)
            with pytest.raises(RunError, match=path.name) as caught:
                read_all(open_run(copied))
            assert "\n" not in str(caught.value)
            path.unlink()  # a new file: the one before is still mapped
        path.write_bytes(whole)
    read_all(open_run(copied))


def test_a_run_without_hashes_is_read_and_check_says_so(cli, tmp_path: Path) -> None:
    path = shutil.copytree(FORMER, tmp_path / "run")
    assert damages(open_run(path)) == []
    code, out, _ = cli("check", path)
    assert code == 0 and "has no hashes" in out and "No file of" in out
    code, out, _ = cli("check", path, "--json")
    assert json.loads(out.splitlines()[-1])["hashes"] is False


def test_check_names_each_damaged_file(cli, copied: Path) -> None:
    store_lookup(open_run(copied))
    code, out, _ = cli("check", copied)
    assert (code, out) == (0, f"No file of {copied} is damaged.\n")
    flip(copied / "excerpts.safetensors", 1)
    flip(copied / "layers" / "00.safetensors", 1)
    with (copied / "run.sqlite").open("r+b") as file:
        file.seek(5 * 4096)
        file.write(bytes(4096))
    code, out, err = cli("check", copied)
    lines = out.splitlines()
    assert code == 1 and len(lines) == 3 and err == ""
    names = ("excerpts.safetensors", "00.safetensors", "run.sqlite")
    assert all(name in line for name, line in zip(names, lines, strict=True))
    code, out, _ = cli("check", copied, "--json")
    assert code == 1 and len(json.loads(out)["damaged"]) == 3
    flip(copied / "manifest.json", 1)
    code, _, err = cli("check", copied)
    assert code == 1 and "manifest.json" in err and len(err.splitlines()) == 1


def stored_of(run: Run) -> list[object]:
    """All that the database has of some neurons, as it is read."""
    found: list[object] = []
    with run.database(read_only=True) as database:
        for index in range(4):
            for row in database.explanations(NeuronId(0, index)):
                values = database.simulated(row.id, "s", "1")
                found += [row, database.scores(row.id), {e: v.tobytes() for e, v in values.items()}]
        found.append(Responses(database, "now").find("key", Chat((), 5)))
    return found


def test_no_flipped_bit_of_the_database_changes_what_is_read(copied: Path) -> None:
    """It is refused, or is in what nothing is read from; `check` finds all that matters."""
    with open_run(copied).database() as database:
        rows = [
            ExplanationRow(NeuronId(0, index), "model", "m", "1", f"words {index} " * 30)
            for index in range(4)
        ]
        rng = np.random.default_rng(0)
        for number in database.add_explanations(rows):
            for excerpt in range(12):  # much of the file is pages of empty tables
                values = rng.random(64).astype(np.float32)
                database.add_simulation(number, "s", "1", excerpt, "test", values)
            measured = Scores(0.5, 0.25, None, 5, 5).measured()
            database.add_scores(CORRELATION, "s", "1", {number: measured})
        Responses(database, "now").add("key", "m", "explanation", Answer("said", "stop"), 0.5)
    path = copied / "run.sqlite"
    whole, expected = path.read_bytes(), stored_of(open_run(copied))
    assert damages(open_run(copied)) == []
    found = 0
    for number in range(FLIPS):
        place = flip(path, number)
        run = open_run(copied)
        try:
            assert stored_of(run) == expected, place
        except RunError as error:
            assert "run.sqlite" in str(error) and "\n" not in str(error)
            assert any("run.sqlite" in line for line in damages(run)), place
            found += 1
        path.write_bytes(whole)
    assert found > FLIPS // 10


def test_one_neuron_is_predicted_from_verified_values(copied: Path) -> None:
    run = open_run(copied)
    assert len(simulate_by_lookup(run, run.neuron("0:3"))) > 0
    assert fastexplain.open_run(copied).manifest["schema"] == 5
