"""How results show themselves in a notebook: as HTML, in which every token and text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fastexplain.records import NeuronRecord

_SHOWN = 10  # exemplars of each kind: about a screen

# Red, green, blue; they are laid over light and dark pages alike.
_POSITIVE, _NEGATIVE = "255,140,0", "30,144,255"


def neuron_html(record: NeuronRecord) -> str:
    """A neuron's statistics, and its first exemplars with each token coloured by activation."""
    found = record.statistics
    parts = [
        f"<p><b>neuron {record.id}</b> &nbsp; mean {found.mean:.3g}, standard deviation "
        f"{found.variance**0.5:.3g}, above 0 on {found.fraction_positive:.1%}, from "
        f"{found.minimum:.3g} to {found.maximum:.3g}</p>"
    ]
    for kind in ("top", "random", "bottom"):
        exemplars = getattr(record, kind)[:_SHOWN]
        if exemplars:
            parts.append(f"<p><i>{kind}</i></p>")
        for exemplar in exemplars:
            acts = exemplar.activations
            counted = acts[record.skip :]
            strongest = counted.min() if kind == "bottom" else counted.max()
            line = tokens_html(exemplar.tokens, acts, found.minimum, found.maximum, record.skip)
            parts.append(f"<p><small>{strongest:.2f}</small>&emsp;{line}</p>")
    return f"<div>{''.join(parts)}</div>"


def tokens_html(
    tokens: Sequence[str], values: np.ndarray, lowest: float, highest: float, skip: int = 0
) -> str:
    """Tokens on backgrounds that are the deeper, the nearer a value is to the highest or lowest.

    Args:
        tokens: any text; line ends and tabs are made visible.
        values: float `[tokens]`; NaN has no colour.
        lowest, highest: the values of the full colours, of one below and one above 0.
        skip: so many tokens at the beginning don't count, and are grey.
    """
    spans = []
    for position, (token, value) in enumerate(zip(tokens, values.tolist(), strict=True)):
        style = "opacity:0.4" if position < skip else _background(value, lowest, highest)
        shown = escape(token.replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥"))
        spans.append(f'<span style="{style}" title="{value:.3g}">{shown}</span>')
    return f'<span style="white-space:pre-wrap">{"".join(spans)}</span>'


def table_html(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _background(value: float, lowest: float, highest: float) -> str:
    colour, full = (_POSITIVE, highest) if value > 0 else (_NEGATIVE, lowest)
    share = min(value / full, 1.0) if value * full > 0 else 0.0
    return f"background:rgba({colour},{share:.2f})"
