"""Merge what `gpu_parts.sh` measured into benches/results/: `python benches/gpu_parts.py FILES`.

The parts must be of one GPU, one commit and the same versions. Where a part was run twice, what was
measured later counts. `make readme-table` writes the README's table from the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401, first: it makes fastexplain importable
import device_timings
import gpu_check

_OWN = ("when", "seed", "seconds", "checks", "bars")
"""What differs from file to file, or follows from the rest."""

_BY_NAME = ("kernels", "tune", "profile")
"""What has results by name, of which a later file may have only some."""


def merged(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of several parts'; raises ValueError where they don't belong together."""
    records = sorted(records, key=lambda record: record["when"])
    first = records[0]
    if len(first["commit"] or "") != 40:
        raise ValueError(f"commit '{first['commit']}' is not one: give gpu_parts.sh all 40 digits")
    for name in ("kind", "commit", "machine"):
        for record in records:
            if record[name] != first[name]:
                raise ValueError(f"parts of different {name}: {first[name]} and {record[name]}")
    whole: dict[str, Any] = {"when": first["when"], "seeds": [r["seed"] for r in records]}
    for record in records:
        for name, value in record.items():
            if name not in _OWN:
                whole[name] = whole.get(name, {}) | value if name in _BY_NAME else value
    # Of a check that was run twice, the later one counts too.
    checks = {check["name"]: check for record in records for check in record["checks"]}
    return {
        **whole,
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "checks": list(checks.values()),
        "bars": device_timings.bars(whole),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILES")
    files = parser.parse_args().files
    try:
        whole = merged([json.loads(path.read_text(encoding="utf-8")) for path in files])
    except (OSError, ValueError, KeyError) as error:
        print(f"gpu_parts: {error!r}" if isinstance(error, KeyError) else f"gpu_parts: {error}",
              file=sys.stderr)  # fmt: skip
        return 2
    path = gpu_check.RESULTS / gpu_check.file_name(whole["machine"]["gpu"], [], whole["when"])
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    gpu_check.report(whole)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
