"""What an explainer may be shown of a neuron, whichever prompt shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastexplain.prompts.explainer import Text


class Entry(NamedTuple):
    """A token that drives a neuron, over much text.

    Attributes:
        token: the token.
        previous: the token before it, if it drives the neuron behind that one only; else None.
        value: its mean activation, from 0 to 10, where the strongest entry's is 10.
        times: how often it occurs.
    """

    token: str
    previous: str | None
    value: int
    times: int


@dataclass(frozen=True)
class Evidence:
    """What is known of a neuron; a prompt shows some of it, and leaves out what is empty.

    Attributes:
        texts: exemplars with their values from 0 to 10, best first.
        entries: the tokens that drive it most, strongest first.
        contrasts: texts whose last token drives it elsewhere, but not there.
        raised: the tokens that its output makes likelier, most first.
    """

    texts: Sequence[Text] = ()
    entries: Sequence[Entry] = ()
    contrasts: Sequence[Sequence[str]] = ()
    raised: Sequence[str] = ()
