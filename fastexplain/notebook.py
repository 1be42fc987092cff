"""How results show themselves in a notebook: as HTML, in which every token and text is escaped.

Tokens look as in the viewer (`viewer/static/tokens.js`), which a test in a browser compares: the
same texts, titles and colours. There are no scripts and no style sheet, which notebooks leave out
of what they don't trust; the colours lie over light and dark pages alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fastexplain.records import Exemplar, NeuronRecord, SignClass
    from fastexplain.results import Scores, StoredExplanation

_SHOWN = 10  # exemplars of each kind: about a screen
_LONGEST = 200  # characters of a token that are shown

# From this share of the full colour on, a value is underlined (static/tokens.js too).
_MARKED = 0.1

# Red, green, blue; and the share of the full colour from which on black is legible on dark pages.
_ABOVE, _BELOW = ("255,140,0", 0.65), ("30,144,255", 0.8)

_SIGNS = {"\n": "⏎\n", "\r": "␍", "\t": "⇥\t"}

# Controls, marks that change the direction of writing, separators of lines, halves of characters.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


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


def exemplar_html(exemplar: Exemplar) -> str:
    """An excerpt on its own; the deepest colours are its own extremes."""
    acts = exemplar.activations
    line = tokens_html(exemplar.tokens, acts, min(acts.min(), 0.0), max(acts.max(), 0.0))
    return f"<div><p><small>excerpt {exemplar.excerpt}</small>&emsp;{line}</p></div>"


def sign_class_html(found: SignClass) -> str:
    """One of a neuron's sign classes; tokens of the others have no colour."""
    depth = abs(found.extreme)
    parts = [
        f"<p><b>{escape(found.name)}</b> &nbsp; {found.share:.1%} of the tokens, mean "
        f"{number_text(found.mean)}, farthest from 0 {number_text(found.extreme)}</p>"
    ]
    for exemplar, members in zip(found.exemplars[:_SHOWN], found.members, strict=False):
        own = np.where(members, exemplar.activations, np.nan)
        line = tokens_html(exemplar.tokens, own, -depth, depth)
        parts.append(f"<p><small>excerpt {exemplar.excerpt}</small>&emsp;{line}</p>")
    return f"<div>{''.join(parts)}</div>"


def explanation_html(row: StoredExplanation) -> str:
    """An explanation with its scores, and the tokens of a lookup's list by their means."""
    by = row.model if row.method in (row.model, "model") else f"{row.model}, {row.method}"
    parts = [f"<p><b>neuron {escape(str(row.neuron))}</b>, explained by {_text(by)}</p>"]
    if row.text is None:
        parts.append(f"<p>failed: {_text(row.failure or 'no text')}</p>")
    else:
        parts.append(f'<p dir="auto">{_text(row.text)}</p>')
    if listed := _listed_html(row.data):
        parts.append(listed)
    scored = [
        f"{name} {_scores_text(scores)}"
        for name, scores in (("of the text", row.text_scores), (_judge(row), row.scores))
        if scores is not None
    ]
    said = "; ".join(scored) if scored else "not scored"
    return f"<div>{''.join(parts)}<p><small>{_text(said)}</small></p></div>"


def _listed_html(entries: object) -> str:
    """The entries of a lookup's list; nothing of what is no such list."""
    if not isinstance(entries, list):
        return ""
    shown = [each for each in entries if isinstance(each, dict) and {"token", "mean"} <= set(each)]
    highest = max((each["mean"] for each in shown), default=0.0)
    items = []
    for each in shown:
        own = tokens_html([each["token"]], np.array([each["mean"]]), 0.0, highest)
        after = each.get("previous")
        before = "" if after is None else f" after {tokens_html([after], np.array([np.nan]), 0, 0)}"
        items.append(f"{own}{before} {number_text(each['mean'])}")
    return f"<p>{'&emsp;'.join(items)}</p>" if items else ""


def _judge(row: StoredExplanation) -> str:
    if row.method == "lookup":
        return "of the whole table"
    return f"simulated by {row.simulator}" if row.simulator else "as scored"


def _scores_text(scores: Scores) -> str:
    """Both headline scores, the first with its interval, and what they rest on."""
    both, alone = (
        "undefined" if value is None else f"{value:.2f}"
        for value in (scores.top_and_random, scores.random_only)
    )
    if scores.low is not None and scores.high is not None:
        both += f" ({scores.low:.2f} to {scores.high:.2f})"
    rest = f"{scores.excerpts_top} + {scores.excerpts_random} excerpts"
    reason = f", {scores.reason}" if scores.reason else ""
    return f"{both} on top and random, {alone} on random, by {rest}{reason}"


def tokens_html(
    tokens: Sequence[str], values: np.ndarray, lowest: float, highest: float, skip: int = 0
) -> str:
    """Tokens on backgrounds that are the deeper, the nearer a value is to the highest or lowest.

    Those well above 0 are underlined too, and those well below it by dots.

    Args:
        tokens: any text; line ends and tabs are made visible, very long ones are cut.
        values: float `[tokens]`; NaN has no colour.
        lowest, highest: the values of the full colours, of one below and one above 0.
        skip: so many tokens at the beginning don't count, and are grey.
    """
    spans = []
    for position, (token, value) in enumerate(zip(tokens, values.tolist(), strict=True)):
        kind, title = "token", number_text(value, 4)
        style = "unicode-bidi:isolate"
        if position < skip:
            kind, title, style = "token uncounted", f"{title}, not counted", f"{style};opacity:0.65"
        elif share := _depth(value, lowest, highest):
            colour, deep = _ABOVE if share > 0 else _BELOW
            style += f";background:rgba({colour},{abs(share):.3f});border-radius:2px"
            if abs(share) >= deep:
                style += ";color:#000"
            if share < 0:
                kind = "token below"
            if share < -_MARKED:
                kind, style = f"{kind} marked", f"{style};text-decoration:underline dotted"
            elif share > _MARKED:
                kind = f"{kind} raised"
                style += f";text-decoration:underline solid {1 + 2 * share:.1f}px"
        spans.append(
            f'<span class="{kind}" style="{style}" title="{title}">'
            f"{escape(token_text(token))}</span>"
        )
    # A block, so that lines within an excerpt begin below its first one, beside what stands before.
    style = (
        "display:inline-block;vertical-align:top;max-width:90%;"
        "font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere"
    )
    return f'<span class="tokens" dir="ltr" style="{style}">{"".join(spans)}</span>'


def token_text(token: str) -> str:
    """A token as it is shown: line ends and tabs by signs, what steers the text by escapes."""
    shown = re.sub("[\n\r\t]", lambda found: _SIGNS[found[0]], token)
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]}…"
    return _visible(shown)


def number_text(value: float, digits: int = 3) -> str:
    """A number with so many significant digits; a dash where there is none."""
    if not np.isfinite(value):
        return "\u2013"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    short = float(f"{value:.{digits}g}")
    if short == 0:
        return "0"
    return np.format_float_positional(short, trim="-") if abs(short) >= 1e-6 else f"{short:g}"


def _visible(text: str) -> str:
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _text(text: str) -> str:
    return escape(_visible(text))


def table_html(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _depth(value: float, lowest: float, highest: float) -> float:
    """From -1 to 1: a value's share of the full colour of its sign; 0 of none."""
    full = highest if value > 0 else lowest
    return float(np.copysign(min(value / full, 1.0), value)) if value * full > 0 else 0.0
