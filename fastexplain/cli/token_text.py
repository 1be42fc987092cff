"""Tokens on the terminal: with their activations, and with the spaces that are theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.text import Text

from fastexplain.cli.terminal import visible
from fastexplain.kernels import discretize

# Styles of the values 1 to 10, on light and dark terminals alike: low ones are lines under a text
# of a colour that is legible on both, the others black on backgrounds from dull to full, about
# halfway between black and white in brightness.
_LINED = 3
_SHADES = [
    Style(color="rgb(190,105,25)", underline=True)
    if value <= _LINED
    else Style(
        color="black", bgcolor=f"rgb({185 + 7 * value},{190 - 8 * value},{150 - 15 * value})"
    )
    for value in range(11)
]

_MARKS, _ASCII_MARKS = ("⟦", "⟧"), ("{=", "}")

# A quoted token as Python writes it: what opens it stands behind no letter, so that an apostrophe
# is none; what closes it is the next such sign without a backslash, and before no letter.
_QUOTED = re.compile(r"""(?<!\w)(['"])((?:(?!\1)[^\\]|\\.)+)\1(?!\w)""")
_OUTER_SPACES = re.compile("^ +| +$")


def excerpt_text(
    console: Console, tokens: Sequence[str], activations: np.ndarray, scale: float
) -> Text:
    """An excerpt on one line, each token's background by its activation `[tokens]`.

    Where there are no colours, as in a file, a value from 1 to 10 follows its token: see `marked`.

    Args:
        scale: the activation that gets the full colour.
    """
    values = discretize(
        np.nan_to_num(activations.astype(np.float32))[None], np.array([scale], np.float32)
    )[0]
    text = Text()
    for token, value in zip(tokens, values.tolist(), strict=True):
        if console.color_system is None:
            shown = token_beside_marks(console, token)
            text.append(f"{shown}{marked(console, value)}" if value else shown)
        else:
            text.append(visible(token), style=_SHADES[value] if value else "")
    return text


def marked(console: Console, what: object) -> str:
    """Something between signs that are not of a text: ⟦8⟧, or {=8} where only ASCII is written."""
    before, after = _ASCII_MARKS if console.options.ascii_only else _MARKS
    return f"{before}{what}{after}"


def token_beside_marks(console: Console, token: str) -> str:
    """A token as it is shown, its own signs like those of `marked` as escapes."""
    shown = visible(token)
    if not console.options.ascii_only:  # there they are escaped anyway
        for sign in _MARKS:
            shown = shown.replace(sign, ascii(sign)[1:-1])
    return shown


def words_text(text: str) -> Text:
    """An explanation in a cell; spaces at a quoted token's ends, where lines break, are signs."""
    return Text(_QUOTED.sub(_with_signs, visible(text)))


def _with_signs(quoted: re.Match[str]) -> str:
    sign, token = quoted.groups()
    return f"{sign}{_OUTER_SPACES.sub(lambda spaces: '␣' * len(spaces[0]), token)}{sign}"
