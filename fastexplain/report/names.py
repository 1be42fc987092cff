"""What a report calls its measures."""

from __future__ import annotations

from typing import Any

from fastexplain.prompts.wordings import DEFAULT, PROMPTS
from fastexplain.results import BOTTOM, DOCUMENTS, LIST, ExplanationRow, side_of

SPLITS = ("top_and_random", "random_only", "top_only")
"""Splits in the order in which they are shown; others follow."""

_LONGEST = 48  # characters of a name, in a picture's legend

_SPLIT_NAMES = {
    "top_and_random": "Top and random",
    "random_only": "Random",
    "top_only": "Top",
}

_BASELINES = {
    "lookup": "lookup",
    "token": "lookup by token alone",
    "position": "mean by position",
    "mismatched": "another neuron's lookup",
    "unrepeated": "lookup, repeated text left out",
}

_REVISED = {"revised": ", revised", "control": ", revised by random texts"}


def shown(text: str) -> str:
    """A name on one line, with a sign for what can't be printed."""
    line = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def split_name(split: str) -> str:
    """Such as `Top and random`."""
    return _SPLIT_NAMES.get(split) or shown(split)


def name_of(row: dict[str, Any]) -> str:
    """Who explained, and who simulated or judged, if that is another; or the baseline's name."""
    if row["method"] == "baseline":
        return _BASELINES.get(row["model"], row["model"])
    if (row["method"], row["judge"]) == ("lookup", LIST):
        return "lookup's text"
    if (row["method"], row["scorer"]) == ("lookup", DOCUMENTS):
        return "lookup, whole documents left out"
    name = shown(row["model"]) + _REVISED.get(row["method"], "")
    if side_of(row["method"]) == BOTTOM:
        name += ", bottom"
    if row["judge"] != row["model"]:
        name += f", by {shown(row['judge'])}"
    return name


def unusual_prompt(row: ExplanationRow) -> str | None:
    """The prompt by which a language model explained, where it is not the usual one.

    A revision has that of the explanation that it began with, in its version.
    """
    prompt = row.parameters.get("prompt") if isinstance(row.parameters, dict) else None
    if prompt is None:
        words = row.version.split()
        prompt = next((name for name, own in PROMPTS.items() if own.version in words), None)
    return None if prompt == DEFAULT or not isinstance(prompt, str) else prompt


def measure_name(row: dict[str, Any]) -> str:
    """The measure, with its scorer where that has another name."""
    measure, scorer = shown(row["measure"]), shown(row["scorer"])
    return measure if scorer in (measure, DOCUMENTS) else f"{measure} ({scorer})"
