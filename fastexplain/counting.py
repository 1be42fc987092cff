"""Numbers of things in words."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """How many there are: `1 neuron`, `46,080 neurons`; the thing is named in the singular."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
