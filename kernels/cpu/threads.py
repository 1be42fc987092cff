"""How many threads a kernel on the CPU takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from numba import get_num_threads, set_num_threads

# Values that are worth a thread. To wake one takes 10 us where a core is idle and up to 15 ms where
# all are busy, as they are while a model runs beside; one thread discretises [1, 64] in 3 us.
_WORTH_A_THREAD = 1 << 16


@contextlib.contextmanager
def threads_for(values: int) -> Iterator[None]:
    """No more threads than so many values are worth."""
    most = get_num_threads()
    set_num_threads(max(1, min(most, values // _WORTH_A_THREAD)))
    try:
        yield
    finally:
        set_num_threads(most)
