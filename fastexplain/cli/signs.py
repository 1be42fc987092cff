"""What `show` prints of a neuron's sign classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from fastexplain.cli.excerpts import print_exemplars
from fastexplain.cli.text_table import light_table
from fastexplain.records import Exemplar, SignClass


def signs_table(classes: Sequence[SignClass]) -> Table:
    """A neuron's classes: how often, how strong, and how much of all that is above or below 0."""
    table = light_table("By the signs of f(gate) and up")
    table.add_column("signs")
    for name in ("of tokens", "mean", "farthest", "of what is"):
        table.add_column(name, justify="right")
    for each in classes:
        side = "above 0" if each.above else "below 0"
        mass = "none" if np.isnan(each.mass) else f"{each.mass:.1%}"
        mean = "none" if np.isnan(each.mean) else f"{each.mean:.3g}"
        table.add_row(each.name, f"{each.share:.1%}", mean, f"{each.extreme:.3g}", f"{mass} {side}")
    return table


def print_sign_exemplars(
    console: Console, classes: Sequence[SignClass], count: int, skip: int
) -> None:
    """Print each class's exemplars, with the tokens of the class alone in colour."""
    for each in classes:
        own = [
            _alone(exemplar, members, 1 if each.above else -1)
            for exemplar, members in zip(each.exemplars, each.members, strict=True)
        ]
        turned = "" if each.above else ", by -activation"
        title = f"signs {each.name}{turned}, in tenths of {abs(each.extreme):.3g}"
        print_exemplars(console, title, own[:count], abs(each.extreme), skip)


def _alone(exemplar: Exemplar, members: np.ndarray, sign: int) -> Exemplar:
    """An exemplar with |activation| on the class's tokens, and 0 elsewhere."""
    return replace(exemplar, activations=np.where(members, sign * exemplar.activations, 0))
