"""One writer a directory, a disk that is full, and checkpoints that vouch for all they have."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import fastexplain
from fastexplain import Corpus
from fastexplain.errors import RunError
from fastexplain.run import writing
from fastexplain.run.checking import damages
from fastexplain.run.room import Room
from fastexplain.run.sealed import sealed, unsealed
from fastexplain.run.writing import RunWriter, check_free

TOKENS = np.random.default_rng(0).integers(1, 257, (40, 64)).astype(np.int32)


def sweep(subject, path, **options):
    return fastexplain.sweep(
        subject, Corpus.from_excerpts(TOKENS), path, **({"batch_size": 8} | options)
    )


def files(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.rglob("*.safetensors")}


def stop_at(excerpts: int):
    def progress(done: int) -> None:
        if done >= excerpts:
            raise KeyboardInterrupt

    return progress


# Another process


def test_a_second_writer_is_refused_until_the_first_one_ends_or_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from fastexplain.run.writing import RunWriter\n"
        "writer = RunWriter(sys.argv[1])\n"
        "print('writing', flush=True)\n"
        "sys.stdin.read()\n"
        "writer.close()\n"
    )
    for end in (signal.SIGKILL, None):
        first = subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "run"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert first.stdout is not None and first.stdout.readline() == "writing\n"
        for attempt in (RunWriter, check_free):
            with pytest.raises(RunError, match="another sweep is writing to"):
                attempt(tmp_path / "run")
        if end is not None:
            first.send_signal(end)
        first.communicate()
        check_free(tmp_path / "run")
        RunWriter(tmp_path / "run").close()


def test_a_sweep_is_refused_at_once_whatever_its_settings(tiny_subject, tmp_path: Path) -> None:
    asked: list[int] = []
    with RunWriter(tmp_path / "run"):
        for options in ({}, {"top_k": 3}):
            with pytest.raises(RunError, match="another sweep is writing to"):
                sweep(tiny_subject, tmp_path / "run", progress=asked.append, **options)
    assert asked == []
    sweep(tiny_subject, tmp_path / "run")


def test_the_directory_is_looked_at_again_before_the_manifest(tiny_subject, tmp_path) -> None:
    """One removes the directory during a sweep, and another run is made there."""
    other = sweep(tiny_subject, tmp_path / "other", top_k=3)

    def replace(done: int) -> None:
        if done == 40:
            shutil.rmtree(tmp_path / "run")
            shutil.copytree(other.path, tmp_path / "run")

    with pytest.raises(RunError, match="was changed by others during the sweep"):
        sweep(tiny_subject, tmp_path / "run", progress=replace)
    assert damages(fastexplain.open_run(tmp_path / "run")) == []  # nothing is written over
    assert files(fastexplain.open_run(tmp_path / "run")) == files(other)
    assert not (tmp_path / "run" / "checkpoints").exists()


# A full disk


def full_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full once a file of this name is to be written."""

    def write(arrays, path) -> None:
        save_file(arrays, path)
        if Path(path).name == f"{name}.tmp":
            with Path(path).open("r+b") as file:
                file.truncate(100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "save_file", write)


@pytest.fixture(scope="module")
def whole(make_model, make_tokenizer, tmp_path_factory):
    """The files of a sweep that nothing disturbed."""
    subject = fastexplain.Subject.from_model(make_model(), make_tokenizer(), name="tiny")
    return files(sweep(subject, tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize(
    "name",
    ["excerpts.safetensors", "00.safetensors", "02.safetensors", "03.safetensors",
     "hashes.safetensors"],
)  # fmt: skip
def test_a_disk_that_is_full_at_the_end_loses_nothing(
    tiny_subject, whole, tmp_path, monkeypatch, name
) -> None:
    with monkeypatch.context() as patch:
        full_at(patch, name)
        for _ in range(2):  # the second time as the first
            with pytest.raises(RunError, match="No space left on device") as caught:
                sweep(tiny_subject, tmp_path / "run")
            message = str(caught.value)
            assert "; make room if the disk is full, and repeat the command: " in message
            assert message.endswith("it goes on from the end of the pass") and "\n" not in message
            assert not list(tmp_path.rglob("*.tmp"))
    asked: list[int] = []
    run = sweep(tiny_subject, tmp_path / "run", progress=asked.append)
    assert asked == []  # nothing was swept again
    assert files(run) == whole
    assert damages(run) == []
    assert not (run.path / "checkpoints").exists()


def test_a_written_layer_that_was_changed_meanwhile_is_not_taken(
    tiny_subject, tmp_path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        full_at(patch, "02.safetensors")
        with pytest.raises(RunError, match="No space left"):
            sweep(tiny_subject, tmp_path / "run")
    path = tmp_path / "run" / "layers" / "01.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"01\.safetensors has changed since it was written"):
        sweep(tiny_subject, tmp_path / "run")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to allocate")
def test_room_is_kept_and_given_up_as_it_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    room = Room(folder / "room", 10**6, files=2)
    whole = (folder / "room").stat()
    assert whole.st_blocks * 512 >= whole.st_size >= 1.02 * 10**6
    room.use(4 * 10**5)
    assert 6 * 10**5 <= (folder / "room").stat().st_size <= whole.st_size - 4 * 10**5
    room.use(6 * 10**5)
    assert (folder / "room").stat().st_size == 0
    room.use(10**9)
    assert (folder / "room").stat().st_size == 0
    room.close()
    assert list(folder.iterdir()) == []


def test_a_warning_names_the_room_that_is_needed_and_the_room_that_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.warns(
        UserWarning, match=r"needs about 1.02e\+09 GB in .*run, where [0-9,.]+ GB are"
    ):
        room = Room(folder / "room", 10**18, files=1)
    room.use(5)
    room.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Room(folder / "room", 0, files=0).close()


def test_a_file_that_may_not_grow_loses_no_checkpoint(make_model, tmp_path: Path) -> None:
    """A limit of the system on the size of files, in a process of its own: nothing can be kept."""
    script = (
        "import resource, sys, numpy as np, pytest, fastexplain\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "import planted\n"
        "subject = fastexplain.load_subject(str(planted.write_planted(sys.argv[1])))\n"
        "tokens = np.random.default_rng(0).integers(0, 20, (60, 64)).astype(np.int32)\n"
        "corpus = fastexplain.Corpus.from_excerpts(tokens)\n"
        "def sweep(progress=None, **options): return fastexplain.sweep(\n"
        "    subject, corpus, sys.argv[1] + '/run', batch_size=8, progress=progress, **options)\n"
        "def stop(done):\n"
        "    if done == 32: raise KeyboardInterrupt\n"
        "try: sweep(stop)\n"
        "except KeyboardInterrupt: pass\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))\n"
        "with pytest.raises(fastexplain.FastexplainError) as caught: sweep()\n"
        "assert 'File too large' in str(caught.value), caught.value\n"
        "assert 'goes on from the last checkpoint' in str(caught.value), caught.value\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "done = []\n"
        "sweep(done.append)\n"
        "assert done[0] == 40, done\n"
    )
    pytest.importorskip("resource")
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path, Path(__file__).parents[1]],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


# Checkpoints


@pytest.fixture(scope="module")
def stopped(make_model, make_tokenizer, tmp_path_factory):
    """A subject, and the directory of a sweep that was stopped after 16 excerpts."""
    subject = fastexplain.Subject.from_model(make_model(), make_tokenizer(), name="tiny")
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep(subject, path, progress=stop_at(16))
    return subject, path


@pytest.mark.scale
@pytest.mark.parametrize("name", ["state.json", "02.safetensors"])
def test_no_flipped_bit_of_a_checkpoint_is_silent(stopped, tmp_path, name: str) -> None:
    subject, kept = stopped
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    path = run / "checkpoints" / "16" / name
    whole = path.read_bytes()
    choose = random.Random(0)
    for number in range(100):
        data = bytearray(whole)
        place = choose.randrange(len(data))
        data[place] ^= 1 << number % 8
        path.write_bytes(data)
        with pytest.raises(RunError, match=r"can't be used .*remove it") as caught:
            sweep(subject, run)
        assert name in str(caught.value), place
    path.write_bytes(whole)
    sweep(subject, run)


def test_how_far_a_sweep_has_got_is_not_its_directorys_name(stopped, tmp_path: Path) -> None:
    subject, kept = stopped
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    (run / "checkpoints" / "16").rename(run / "checkpoints" / "32")
    asked: list[int] = []
    sweep(subject, run, progress=asked.append)
    assert asked == [24, 32, 40]


@pytest.mark.parametrize("change", [{"done": 24}, {"seconds": 9.0}, {"batch_size": 4}])
def test_what_is_changed_by_hand_is_refused(stopped, tmp_path: Path, change: dict) -> None:
    subject, kept = stopped
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    path = run / "checkpoints" / "16" / "state.json"
    text = path.read_text()
    for name, value in change.items():
        state, _ = unsealed(path.read_bytes())
        text = text.replace(
            f'"{name}": {json.dumps(state[name])}', f'"{name}": {json.dumps(value)}'
        )
    path.write_text(text)
    with pytest.raises(RunError, match=r"can't be used \(state.json: its text and its hash"):
        sweep(subject, run)
    path.write_bytes(json.dumps(state).encode())
    with pytest.raises(RunError, match=r"state\.json: it has no hash\); remove it"):
        sweep(subject, run)
    path.write_bytes(sealed({"done": 3}))
    with pytest.raises(RunError, match=r"can't be used .*remove it"):
        sweep(subject, run)


def test_a_checkpoint_of_an_earlier_version_goes_on(stopped, tmp_path: Path) -> None:
    """It had no hashes, and how far it had got was its directory's name."""
    subject, kept = stopped
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    path = run / "checkpoints" / "16" / "state.json"
    state, _ = unsealed(path.read_bytes())
    for name in ("done", "files", "written"):
        del state[name]
    path.write_bytes(json.dumps(state).encode())
    asked: list[int] = []
    sweep(subject, run, progress=asked.append)
    assert asked == [24, 32, 40]
