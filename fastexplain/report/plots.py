"""The pictures of a report, drawn by matplotlib (the extra `report`): SVG and PNG.

Colours are those of Okabe and Ito 2008, which colour-blind readers tell apart, on white.
"""

from __future__ import annotations

import importlib
import io
import math
from typing import Any

from fastexplain.counting import counted
from fastexplain.errors import UsageError
from fastexplain.report.names import SPLITS, measure_name, name_of, shown, split_name
from fastexplain.results import DOCUMENTS, LIST

_COLOURS = {
    "lookup": "#0072B2",
    "list": "#000000",
    "token": "#56B4E9",
    "unrepeated": "#009E73",
    "position": "#E69F00",
    "mismatched": "#D55E00",
    DOCUMENTS: "#CC79A7",
}
_OTHERS = ("#8C6D1F", "#7F3C8D", "#5F5F5F")
_GREY = "#6E6E6E"

# Layers with fewer neurons show these one by one instead of a band of quantiles.
_BAND = 20

_COLUMNS = 4
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "svg.hashsalt": "fastexplain",  # else every picture has names of its own
    "text.parse_math": False,  # names may have a $
}


def check_matplotlib() -> None:
    """Raise UsageError if matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise UsageError(
            "matplotlib is not installed; pip install 'fastexplain[report]'"
        ) from error


def pictures(figures: dict[str, Any]) -> dict[str, tuple[bytes, bytes]]:
    """All pictures of a report by name: SVG and PNG.

    Args:
        figures: from `figures.run_figures`.

    Raises:
        UsageError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        found = {"baselines": _drawn(_baselines(figures))}
        if figures["lists"] is not None:
            found["entries"] = _drawn(_entries(figures["lists"]))
        there = [each["split"] for each in figures["measures"]]
        for split in dict.fromkeys([s for s in SPLITS if s in there] + there):
            rows = [each for each in figures["measures"] if each["split"] == split]
            found[f"distributions-{_file_name(split)}"] = _drawn(_distributions(rows, split))
    return found


def _drawn(figure: Any) -> tuple[bytes, bytes]:
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def _file_name(split: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in split)


def _baselines(figures: dict[str, Any]) -> Any:
    """Mean correlations by layer, every explainer's beside the baselines and what is published."""
    from matplotlib.figure import Figure

    splits = SPLITS[:2]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    drawn: dict[str, Any] = {}
    colours = iter(_OTHERS * 9)
    chosen: dict[str, str] = {}
    for axis, split in zip(axes, splits, strict=True):
        rows = [
            each
            for each in figures["measures"]
            if (each["split"], each["measure"]) == (split, "correlation")
        ]
        for row in rows:
            name = name_of(row)
            if row["scorer"] not in (
                "correlation",
                DOCUMENTS,
            ):  # such as that of another neuron's explanation
                name += f": {shown(row['scorer'])}"
            if name not in chosen:
                own = row["judge"] if row["judge"] == LIST else row["model"]
                own = DOCUMENTS if row["scorer"] == DOCUMENTS else own
                kind = own if row["method"] in ("baseline", "lookup") else ""
                chosen[name] = _COLOURS.get(kind) or next(colours)
            line = _means(axis, row, chosen[name])
            if line is not None:
                drawn.setdefault(name, line)
        published = figures["published"]
        scale = (figures["depth"] - 1) / (published["of"] - 1)
        places = [layer * scale for layer in published["layers"]]
        for (name, values), dashes in zip(published[split].items(), ("--", ":"), strict=False):
            [line] = axis.plot(places, values, dashes, color=_GREY, linewidth=1.3)
            drawn.setdefault(f"{name}, {published['subject']} (published)", line)
        axis.set_title(f"{split_name(split)} excerpts", loc="left", fontweight="bold")
        _finish(axis)
    axes[0].set_ylabel("mean correlation over a layer's neurons")
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"{shown(figures['subject'])}, {counted(figures['neurons'], 'neuron')}; bands and bars: "
        f"95%, over neurons and excerpts; {figures['published']['subject']} by relative depth",
        fontsize=9,
        color=_GREY,
    )
    return figure


def _means(axis: Any, row: dict[str, Any], colour: str) -> Any:
    """A row's means by layer with their errors, of both kinds together; None without a mean."""
    points = [
        (each["layer"], each["mean"], 1.96 * math.hypot(
            each["error_neurons"] or 0, each["error_excerpts"] or 0))
        for each in row["layers"]
        if each["mean"] is not None
    ]  # fmt: skip
    if not points:
        return None
    layers, means, errors = zip(*points, strict=True)
    if sum(each["neurons"] for each in row["layers"]) < _BAND * len(layers):
        own = row["scorer"] == "correlation"
        look = {"markersize": 4} if own else {"markersize": 8, "markerfacecolor": "none"}
        return axis.errorbar(layers, means, errors, fmt="o", color=colour, linewidth=1, **look)
    lows = [mean - error for mean, error in zip(means, errors, strict=True)]
    highs = [mean + error for mean, error in zip(means, errors, strict=True)]
    axis.fill_between(layers, lows, highs, color=colour, alpha=0.2, linewidth=0)
    [line] = axis.plot(layers, means, "o-" if len(layers) == 1 else "-", color=colour)
    return line


def _entries(lists: dict[str, Any]) -> Any:
    """Scores of lookup's texts by the number of entries: each layer pale, all layers black."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    lengths, layers = lists["lengths"], lists["layers"]
    for axis, split in zip(axes, SPLITS[:2], strict=True):
        for place, each in enumerate(layers):
            shade = colormaps["viridis"](0.9 * place / max(len(layers) - 1, 1))
            ends = place in (0, len(layers) - 1)
            axis.plot(lengths, each[split][:-1], color=shade, linewidth=1.0, alpha=0.7,
                      label=f"layer {each['layer']}" if ends else None)  # fmt: skip
        *means, table = lists["all"][split]
        axis.plot(lengths, means, "o-", color="black", linewidth=2, label="all layers")
        axis.axhline(table, color="black", linestyle="--", linewidth=1, label="the whole table")
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.set_title(f"{split_name(split)} excerpts", loc="left", fontweight="bold")
        axis.set_xlabel("entries of the text")
        axis.grid(axis="y", color="#E3E3E3", linewidth=0.6)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("mean correlation")
    axes[0].legend(frameon=False, loc="upper left")
    return figure


def _distributions(rows: list[dict[str, Any]], split: str) -> Any:
    """A panel for each measure: median, quartiles, and the middle 90% of each layer's neurons."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.6 * columns + 1.2, 2.1 * lines + 1), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, squeeze=False)
    for axis in axes.ravel()[len(rows) :]:
        axis.set_axis_off()
    for place, (axis, row) in enumerate(zip(axes.ravel(), rows, strict=False)):
        known = [each for each in row["layers"] if each["quantiles"] is not None]
        layers = [each["layer"] for each in known]
        q5, q25, q50, q75, q95 = ([each["quantiles"][n] for each in known] for n in range(5))
        colour = _COLOURS.get(LIST if row["judge"] == LIST else row["model"], _OTHERS[0])
        if len(layers) > 1 and min(each["neurons"] for each in known) >= _BAND:
            axis.fill_between(layers, q5, q95, color=colour, alpha=0.18, linewidth=0)
            axis.fill_between(layers, q25, q75, color=colour, alpha=0.35, linewidth=0)
            axis.plot(layers, q50, color=colour)
        else:
            axis.vlines(layers, q5, q95, color=colour, alpha=0.4)
            axis.vlines(layers, q25, q75, color=colour, linewidth=3, alpha=0.6)
            axis.plot(layers, q50, "o", color=colour, markersize=4)
        axis.set_title(f"{name_of(row)}\n{measure_name(row)}", loc="left")
        _finish(axis, lowest=place + columns >= len(rows))
    figure.suptitle(
        f"{split_name(split)} excerpts: median, quartiles and middle 90% of a layer's neurons",
        fontsize=9,
        color=_GREY,
    )
    return figure


def _finish(axis: Any, lowest: bool = True) -> None:
    axis.axhline(0, color="black", linewidth=0.6)
    axis.grid(axis="y", color="#E3E3E3", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if lowest:
        axis.set_xlabel("layer")
        axis.tick_params(labelbottom=True)
