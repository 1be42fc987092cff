"""A measurement of `fastexplain.bench.turns` as a table, with the figures of others below it."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fastexplain.bench.ways import REFERENCES, WAYS

PUBLISHED = (
    "others, as published or derived: 412 tokens/s and 427 GB for all 458,752 neurons of an 8B "
    "model on two A100s; 46 tokens/s and 25 TB for a 7B model on one A100"
)
"""What collecting activations has taken elsewhere: other machines, so there are no ratios."""


def bench_table(result: dict[str, Any]) -> Table:
    """What `measure` returned: a row a way, its speed over that of the ways compared with."""
    compared = [name for name in REFERENCES if name in result["ways"]]
    table = Table(title=_title(result), title_justify="left", header_style="bold",
                  caption=_caption(result), caption_justify="left")  # fmt: skip
    table.add_column("way", no_wrap=True)
    table.add_column("tokens/s", justify="right")
    for name in compared:
        table.add_column(f"over {WAYS[name]}", justify="right")
    table.add_column("keeps", justify="right")
    table.add_column("needs", justify="right")
    for name, way in result["ways"].items():
        ratios = result["ratios"][name]
        table.add_row(
            WAYS[name],
            f"{way['tokens_per_second']:,.0f}",
            *(f"{ratios[other]:.2f}" for other in compared),
            _size(way["kept_bytes"]),
            _size(way["needed_bytes"]),
        )
    return table


def _title(result: dict[str, Any]) -> str:
    machine = result["machine"]
    part = (
        f"all {result['layers']} layers"
        if result["layers"] == result["layers_of_geometry"]
        else f"only {result['layers']} of {result['layers_of_geometry']} layers"
    )
    where = machine["gpu"] if result["device"].startswith("cuda") else f"{machine['cpu']} (CPU)"
    return (
        f"{result['geometry']} with random weights, {part}, {result['neurons']:,} neurons, "
        f"{result['dtype']}; {where}; {result['turns']} turns of {result['batches_a_turn']} x "
        f"{result['batch_size']} excerpts"
    )


def _caption(result: dict[str, Any]) -> str:
    lines = [
        "over: speed over that way's, the median within turns; memory beyond the weights, what is "
        "kept from batch to batch and what a batch needs besides",
        f"matrix products: {result['operations_a_token'] / 1e9:,.3f} GFLOP a token; "
        f"{result['matrix'] / 1e12:,.2f} TFLOP/s on this machine",
        f"copy: {result['copy'] / 1e9:,.0f} GB/s read and written; "
        + "; ".join(
            f"capture kernel, {name}: {one['bytes_per_second'] / 1e9:,.1f} GB/s, "
            f"{one['of_copy']:.0%} of that, {_milliseconds(one['seconds'])} a batch "
            f"({', '.join(map(_milliseconds, one['first_seconds']))} for the first)"
            for name, one in result["capture"].items()
        ),
        f"on disk: {result['on_disk']:,.0f} bytes a neuron, and "
        f"{_size(result['tables_bytes'])} of tables for all",
        *(f"left out, {WAYS[name]}: {why}" for name, why in result["left_out"].items()),
        PUBLISHED,
    ]
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:,.2f} GB" if count else "0"
