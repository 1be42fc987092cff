"""Runs command lines in forks of one process that has imported everything: a crash ends its fork.

    with Forked() as forked:
        code, out, err = forked.run("top", "a-run")

The code of a fork that a signal ended is the signal's number, negative. The process itself must
not have computed anything: threads of OpenMP do not survive a fork.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Seconds that a command may take; SIGALRM then ends it.
LIMIT = 60


class Forked:
    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, *arguments, stdin=b"", environment=None):
        """Exit code, standard output and standard error of `fastexplain ARGUMENTS`.

        Args:
            stdin: bytes that the command reads.
            environment: variables to set; None removes one.
        """
        [result] = self.run_together([arguments], stdin=stdin, environment=environment)
        return result

    def run_together(self, command_lines, stdin=b"", environment=None, at_once=8):
        """The same of many command lines, several of them at once: for those that mostly wait."""
        cases = [
            {
                "argv": [os.fsencode(str(each)).hex() for each in arguments],
                "stdin": stdin.hex(),
                "environment": environment or {},
            }
            for arguments in command_lines
        ]
        self._process.stdin.write(json.dumps([at_once, cases]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return list(map(tuple, json.loads(line)))


def _serve():
    import numba  # noqa: F401
    import torch

    import fastexplain.bench.turns
    import fastexplain.cli.demo
    import fastexplain.cli.doctor
    import fastexplain.cli.neuron
    import fastexplain.cli.requests
    import fastexplain.llm.local.connection
    import fastexplain.llm.openai.server
    import fastexplain.pipeline.estimate  # noqa: F401
    from fastexplain.cli.main import main

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_run_together(main, *json.loads(line))), flush=True)


def _run_together(main, at_once, cases):
    """Run cases in forks, so many at once; gives code, output and errors of each."""
    results = [None] * len(cases)
    waiting, running = list(enumerate(cases)), {}
    with tempfile.TemporaryDirectory() as folder:

        def files(number):
            return [Path(folder, f"{number}.{name}") for name in ("in", "out", "err")]

        while waiting or running:
            while waiting and len(running) < at_once:
                number, case = waiting.pop(0)
                files(number)[0].write_bytes(bytes.fromhex(case["stdin"]))
                child = os.fork()
                if child == 0:
                    _become(main, case, files(number))
                running[child] = number
            child, status = os.wait()
            number = running.pop(child)
            shown = [f.read_text(encoding="utf-8", errors="replace") for f in files(number)[1:]]
            results[number] = os.waitstatus_to_exitcode(status), *shown
    return results


def _become(main, case, files):
    """Run the command in this fork, which then ends."""
    signal.alarm(LIMIT)
    for number, file in enumerate(files):
        opened = os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, number)
    sys.stdin = os.fdopen(0)
    sys.argv = ["fastexplain", *(os.fsdecode(bytes.fromhex(each)) for each in case["argv"])]
    for name, value in case["environment"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    code = 1
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
