"""Whatever it is given, a command ends well, or with a line that says why; never by a crash."""

import contextlib
import json
import random
import shutil

import numpy as np
import planted
import pytest
from faulty_server import LASTING, PASSING, Faulty
from forked import Forked
from fuzzing import Arguments, changed

import fastexplain
from fastexplain.explainers.lookup import store_lookup

pytestmark = pytest.mark.scale

CASES = 50
ENVIRONMENT = {
    "OPENAI_API_KEY": "unused", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
FILES = ("manifest.json", "excerpts.safetensors", "layers/00.safetensors", "run.sqlite")
LOOKING = (
    ["top"], ["show", "0:1"], ["show", "0:3", "--json"], ["search", "cat"], ["cost"],
    ["find", "--kind", "single-token"], ["find", "--kind", "repetition"], ["activate", "the cat"],
    ["ratings"], ["rate", "--rater", "Ada"],
    ["explain", "0:1"], ["explain", "0:0-5", "--fresh"],
    ["explain", "0:*", "--where", "lookup_score > 0.1 and kurtosis < 100"],
    ["explain", "0:1", "--explainer", "m", "--dry-run", "--price", "1,1"],
)  # fmt: skip


@pytest.fixture(scope="module")
def forked():
    with Forked() as process:
        yield process


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a subject, a text and a run of it that has explanations; copied, never used."""
    folder = tmp_path_factory.mktemp("fuzz") / "whole"
    folder.mkdir()
    planted.write_planted(folder / "model")
    words = np.random.default_rng(0).choice(planted.WORDS, 8000)
    (folder / "text.txt").write_text(" ".join(words))
    subject = fastexplain.load_subject(str(folder / "model"))
    corpus = fastexplain.Corpus([str(folder / "text.txt")], subject.tokenizer)
    store_lookup(fastexplain.sweep(subject, corpus, folder / "run", bottom=True))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "files")


@pytest.fixture(scope="module")
def server():
    serving = Faulty()
    yield serving
    serving.close()


def trouble(forked, arguments, **options):
    """What is wrong with how a command ended, in a line; empty if nothing is."""
    environment = ENVIRONMENT | options.pop("environment", {})
    return wrong_in(arguments, *forked.run(*arguments, environment=environment, **options))


def wrong_in(arguments, code, out, err):
    """The same of a command that has ended."""
    last = (err.strip().splitlines() or [""])[-1]
    wrong = (
        code not in (0, 1, 2)
        or "(unexpected; --debug" in err
        or "Traceback" in out + err
        or (code != 0 and not last.startswith("fastexplain: "))
    )
    shown = [str(each)[:80] for each in arguments]
    return f"code {code} of {shown!r}: {(out + err)[-300:]!r}" if wrong else ""


def report(found):
    wrong = list(filter(None, found))
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("seed", range(21))
def test_arguments(forked, folder, server, seed):
    rng = random.Random(seed)
    arguments = Arguments(rng, folder, server.url)
    found = []
    for _ in range(CASES):
        for out in ("out", "a"):
            shutil.rmtree(folder / out, ignore_errors=True)
        stdin = rng.choice([b"", b"cat sees river\n" * 200, b"2 1\ng 1 2\ns\nb\nu\n\xff\n"])
        found.append(trouble(forked, arguments.draw(), stdin=stdin))
    report(found)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(3))
def test_changed_files_of_a_run(forked, folder, name, seed):
    rng = random.Random(f"{name} {seed}")
    path, found = folder / "run" / name, []
    content = path.read_bytes()
    for _ in range(CASES):
        path.write_bytes(changed(rng, name, content))
        for log in ("-wal", "-shm"):
            (folder / "run" / f"run.sqlite{log}").unlink(missing_ok=True)
        command, *rest = rng.choice(LOOKING)
        found.append(trouble(forked, [command, folder / "run", *rest]))
    report(found)


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl", "list.json", "names", "answers.jsonl"])
def test_changed_files_that_are_read(forked, folder, name):
    """A corpus, a list of neurons and the answers of an offline engine."""
    rng = random.Random(name)
    rows = [json.dumps({"text": "cat sees river " * 30}) for _ in range(20)]
    content = {
        "text.txt": (folder / "text.txt").read_bytes(),
        "rows.jsonl": "\n".join(rows).encode(),
        "list.json": json.dumps([json.loads(row) for row in rows]).encode(),
        "names": b"0:1\n0:2-4\n# none\n0:*\n",
        "answers.jsonl": b"\n".join(
            json.dumps(
                {"custom_id": "0" * 32, "response": {"status_code": 200, "body": {}}}
            ).encode()
            for _ in range(5)
        ),
    }[name]
    path, found = folder / name, []
    for number in range(CASES):
        path.write_bytes(changed(rng, name.replace(".json", ".x") if number % 2 else name, content))
        commands = {"names": ["explain", folder / "run", f"@{path}"],
                    "answers.jsonl": ["ingest", folder / "run", path]}  # fmt: skip
        sweep = ["sweep", folder / "model", "--corpus", path, "--out", folder / "out"]
        shutil.rmtree(folder / "out", ignore_errors=True)
        found.append(trouble(forked, commands.get(name, [*sweep, "--excerpts", "8"])))
    report(found)


def test_changed_checkpoints(forked, folder):
    rng = random.Random(0)
    subject = fastexplain.load_subject(str(folder / "model"))
    corpus = fastexplain.Corpus([str(folder / "text.txt")], subject.tokenizer)

    def interrupted(done):
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        fastexplain.sweep(subject, corpus, folder / "begun", batch_size=32, progress=interrupted)
    checkpoint = [path for path in (folder / "begun").rglob("*") if path.is_file()]
    assert any("checkpoints" in path.parts for path in checkpoint)
    found = []
    for _ in range(CASES):
        shutil.rmtree(folder / "out", ignore_errors=True)
        shutil.copytree(folder / "begun", folder / "out")
        path = folder / "out" / rng.choice(checkpoint).relative_to(folder / "begun")
        path.write_bytes(changed(rng, path.name, path.read_bytes()))
        sweep = ["sweep", folder / "model", "--corpus", folder / "text.txt", "--batch-size", "32"]
        found.append(trouble(forked, [*sweep, "--out", folder / "out"]))
    report(found)


@pytest.mark.parametrize("seed", range(2))
def test_servers_that_make_mistakes(forked, folder, seed):
    rng = random.Random(seed)
    modes = ["prompt-logprobs", "generated-logprobs", "json", "one-at-a-time"]
    bodies = [
        b"", b"<html>", b"{}", b"[]", b"null", b"[" * 50_000, b"\xff\xfe", {"choices": []},
        {"choices": None}, {"choices": [{"message": None}]}, {"error": "\x1b[2J\ud800"},
        {"choices": [{"message": {"content": [1]}, "finish_reason": []}], "usage": []},
    ]  # fmt: skip
    commands = []
    with contextlib.ExitStack() as stack:
        for number in range(CASES // 2):
            server = stack.enter_context(contextlib.closing(Faulty()))
            server.rate, server.kinds = rng.choice([0, 0.3, 1]), rng.choice([PASSING, LASTING])
            server.seed = rng.randrange(99)
            server.content = rng.choice([None, "", "\ud800", "\0", "x"])
            server.status = rng.choice([200, 200, 400, 401, 404, 500, 299])
            server.body = rng.choice(bodies)
            server.echoes, server.chats = rng.random() < 0.7, rng.random() < 0.9
            server.shift, server.most_logprobs = rng.choice([0, 0, 1]), rng.choice([20, 5, 0])
            mode = ["--simulation", rng.choice(modes)]
            run = shutil.copytree(folder / "run", folder / f"run-{number}")
            commands.append([
                "explain", run, rng.choice(["0:1", "0:2", "0:*"]), "--explainer", "m",
                "--base-url", server.url, "--timeout", "1", "--max-requests", "60", "--yes",
                *rng.choice([[], mode, ["--batch"], ["--fresh"]]),
            ])  # fmt: skip
        ended = forked.run_together(commands, environment=ENVIRONMENT)
    report([wrong_in(command, *each) for command, each in zip(commands, ended, strict=True)])
