"""What the viewer's answers are made from, shared by all of them."""

from __future__ import annotations

from dataclasses import dataclass

from fastexplain.run.directory import Run


@dataclass(frozen=True, eq=False)
class Viewed:
    """A run that is looked at.

    Attributes:
        run: read by several threads at once.
        token: what the browser sends with what it may not do without; see `guard.py`.
    """

    run: Run
    token: str
