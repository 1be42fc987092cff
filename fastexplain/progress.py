"""How far a call has got: for whoever asks, as calls of a function or as tqdm's bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from fastexplain.errors import UsageError

Report = Callable[[int], None]
"""Called with how much is done so far, after each step."""


@contextlib.contextmanager
def reported(
    progress: bool | Report | None, what: str, total: int | None, unit: str, *, done: int = 0
) -> Iterator[Report]:
    """Give the function to call with how much is done.

    Args:
        progress: True for a bar, in a notebook one of its widgets; a function to be called; False
            or None for neither.
        what: is being done, for the bar.
        total: how much there is in all; None if that is not known.
        unit: what is counted.
        done: how much of it was done before.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise UsageError(f"progress is {progress!r}; give True, False or a function")
    if progress is not True:
        yield progress or (lambda done: None)
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=done, desc=what, unit=f" {unit}") as bar:
        yield lambda done: bar.update(done - bar.n)
