"""Write the README's table of speeds from what is recorded in `benches/results/`.

Results are files of `fastexplain bench --out` and of `benches/gpu_check.py`. The table stands
between two HTML comments; `make readme-table` writes it anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
README = RESULTS.parent.parent / "README.md"

BEGIN, END = "<!-- speeds: written by make readme-table -->", "<!-- end of speeds -->"

_COMPARED = {
    "trunk": "bare trunk",
    "trunk_compiled": "compiled trunk",
    "model": "model with its head",
    "peer": "common way",
}
_SWEEPS = {
    "sweep": "sweep",
    "sweep_tables": "with tables",
    "sweep_compiled": "layers compiled",
    "sweep_compiled_tables": "compiled, with tables",
}


def measurements(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """What `fastexplain.bench.turns.measure` returned, of all files; GPUs first, then by shape."""
    found = [one for path in sorted(folder.glob("*.json")) for one in _of_file(path)]
    return sorted(found, key=lambda one: (not _on_gpu(one), one["machine"]["cpu"], one["geometry"]))


def _of_file(path: Path) -> Iterator[dict[str, Any]]:
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["kind"] == "bench":
        yield record
    else:  # of gpu_check, which has several
        for value in record.values():
            if isinstance(value, dict) and value.get("kind") == "bench":
                yield value


def _on_gpu(one: dict[str, Any]) -> bool:
    return one["device"].startswith("cuda")


def block(found: list[dict[str, Any]]) -> str:
    """The text between the two comments."""
    parts = []
    if found:
        head = ["on", "model's shape", "", "tokens/s", *(f"over {n}" for n in _COMPARED.values())]
        rows = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
        rows += [row for one in found for row in _rows(one)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if not any(_on_gpu(one) for one in found):
        parts.append(
            "No GPU has been measured with a whole sweep yet: `python benches/gpu_check.py` does."
        )
    return "\n\n".join(parts)


def _rows(one: dict[str, Any]) -> Iterator[list[str]]:
    machine = one["machine"]
    where = machine["gpu"] if _on_gpu(one) else _cpu(machine)
    shape = one["geometry"]
    if one["layers"] != one["layers_of_geometry"]:
        shape += f", {one['layers']} of {one['layers_of_geometry']} layers"
    for name, shown in _SWEEPS.items():
        if name in one["ways"]:
            ratios = one["ratios"][name]
            yield [
                where,
                f"{shape}, {one['dtype']}",
                shown,
                f"{one['ways'][name]['tokens_per_second']:,.0f}",
                *(f"{ratios[other]:.2f}" if other in ratios else "" for other in _COMPARED),
            ]


def _cpu(machine: dict[str, Any]) -> str:
    instructions = machine["instructions"].upper().replace("AVX512", "AVX-512")
    return f"{machine['threads']} CPU cores ({machine['cpu']}, {instructions})"


def rewritten(text: str, found: list[dict[str, Any]]) -> str:
    """The README with the block in its place; raises ValueError if it has none."""
    place = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise ValueError(f"the README has no block from '{BEGIN}' to '{END}'")
    return place.sub(lambda match: f"{match[1]}{block(found)}\n{match[2]}", text)


if __name__ == "__main__":
    README.write_text(
        rewritten(README.read_text(encoding="utf-8"), measurements()), encoding="utf-8"
    )
