"""How long the viewer's answers take on a large run, cold and warm, and under load.

    PYTHONPATH=tests python benches/viewer.py DIRECTORY [--beside CHECKOUT] [--rounds 2]

makes a run of 307,200 neurons in DIRECTORY, unless there is one (some minutes: tests/large_run.py),
serves it by `fastexplain view`, and writes a line for each address: the first answer of a server
just started (the files are in the system's cache), and the median of 20 more. Then 50 clients ask
for neurons' data for 30 s over loopback. Clients and server share the machine.

Another checkout of the repository is measured in turns with this one. On a machine that others use
the processor's time for an answer says most: its answers wait for theirs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from large_run import large_run

from fastexplain import open_run

CLIENTS, SECONDS, WARM = 50, 30.0, 20

ADDRESSES = (
    "run", "maps", "map/fraction_positive", "map/skewness", "search?q=5:13", "search?q=w7",
    "search?q=most+of+a", "glance/5:131", "neuron/5:131", "overview", "map/lookup.top_and_random",
)  # fmt: skip


# Of the checkout that is its argument, whatever is installed.
_VIEW = """
import sys
root, sys.argv[:2] = sys.argv[1], ["fastexplain"]
sys.path.insert(0, f"{root}/benches")
import checkout
from fastexplain.cli.main import main
assert sys.modules["fastexplain"].__file__ == f"{root}/fastexplain/__init__.py"
main()
"""


class Server:
    """`fastexplain view`, in a process of its own.

    Args:
        run: what is viewed.
        checkout: whose code it is.
    """

    def __init__(self, run: Path, checkout: Path) -> None:
        command = [sys.executable, "-c", _VIEW, str(checkout), "view", str(run)]
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "--port", "0", "--no-browser"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.started = time.perf_counter() - began
        self.port = int(line.split("http://127.0.0.1:")[1].split("/")[0])

    def memory(self) -> float:
        """MB of the process's own; pages of the run's files, which the system keeps, are not."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1]) / 1024

    def processor(self) -> float:
        """Seconds that its threads have worked."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files(self) -> int:
        """Files and sockets that it has open."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[float, int]:
    """Seconds until the whole answer is there, and its bytes."""
    began = time.perf_counter()
    connection.request("GET", f"/api/{path}")
    answer = connection.getresponse()
    size = len(answer.read())
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status}")
    return time.perf_counter() - began, size


def each_address(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    print(f"{'address':28}{'first, ms':>10}{'warm, ms':>10}{'KB':>8}")
    for path in ADDRESSES:
        first, size = ask(connection, path)
        warm = statistics.median(ask(connection, path)[0] for _ in range(WARM))
        print(f"{path:28}{first * 1e3:10.1f}{warm * 1e3:10.1f}{size / 1e3:8.1f}")


def load(port: int, names: list[str], path: str) -> list[float]:
    """Seconds of all answers that 50 clients get, each asking anew as soon as it has one."""
    found: list[float] = []
    end = time.perf_counter() + SECONDS

    def client(seed: int) -> None:
        rng = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < end:
            found.append(ask(connection, path.format(rng.choice(names)))[0])

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def measure(directory: Path, checkout: Path, path: str) -> None:
    """Write what one server takes."""
    run = open_run(directory)
    names = [f"{site.name}:{unit}" for site in run.sites.values() for unit in range(site.units)]
    server = Server(directory, checkout)
    try:
        print(f"{checkout}: {len(names):,} neurons; the address after {server.started:.2f} s")
        each_address(server.port)
        before = server.memory(), server.processor(), server.files()
        times = sorted(load(server.port, names, path))
        after = server.memory(), server.processor(), server.files()
        at = {share: times[int(share * (len(times) - 1))] * 1e3 for share in (0.5, 0.99)}
        print(
            json.dumps(
                {
                    "path": path,
                    "answers_per_second": round(len(times) / SECONDS),
                    "median_ms": round(at[0.5], 1),
                    "p99_ms": round(at[0.99], 1),
                    "processor_ms": round((after[1] - before[1]) / len(times) * 1e3, 2),
                    "memory_mb": [round(before[0]), round(after[0])],
                    "open_files": [before[2], after[2]],
                }
            ),
            flush=True,
        )
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--path", default="neuron/{}", help="of a neuron's data, for the load")
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--rounds", type=int, default=1, help="turns")
    given = parser.parse_args()
    if not given.directory.exists():
        large_run(given.directory)
    here = Path(__file__).resolve().parents[1]
    for _ in range(given.rounds):
        for checkout in filter(None, (given.beside, here)):
            measure(given.directory, checkout.resolve(), given.path)


if __name__ == "__main__":
    main()
