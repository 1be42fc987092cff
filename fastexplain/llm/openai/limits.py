"""How fast a server is asked, and when it is asked again.

Nothing in here knows HTTP: time, sleep and chance can be handed in.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_MINUTE = 60.0

# Seconds behind its even pace that a limit may catch up on: timers wake late.
_SLACK = 0.1

# The least that a waiting request sleeps: one that wakes a rounding error too early sleeps again.
_NAP = 0.001

# A server that wants to be left alone for longer is asked after this many seconds all the same.
_LONGEST_PAUSE = 120.0

# Statuses below 500 behind which the same request may yet be answered.
_PASSING = frozenset({408, 409, 429})

# The one of 500 and above that says that the server can't and won't be able to.
_NOT_IMPLEMENTED = 501


class Limiter:
    """Lets requests through one by one, in the order in which they came, evenly over each minute.

    Never more than a minute's requests are let through in any 60 seconds, nor, but for the last
    request in them, more than a minute's tokens.

    Args:
        requests_per_minute, tokens_per_minute: None: no limit.
        clock: seconds, never going back.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        limits = requests_per_minute, tokens_per_minute
        self._seconds = [(_MINUTE + _SLACK) / (limit or math.inf) for limit in limits]  # of each
        self._due = [-math.inf, -math.inf]  # when the next one is, by each limit
        self._clock = clock
        self._sleep = sleep
        self._paused_until = -math.inf
        self._turn = asyncio.Lock()  # hands over in the order of arrival

    async def admit(self, tokens: int = 0) -> None:
        """Return when a request that takes so many tokens may be sent."""
        async with self._turn:
            while (seconds := max(*self._due, self._paused_until) - self._clock()) > 0:
                await self._sleep(max(seconds, _NAP))
            earliest = self._clock() - _SLACK
            for limit, amount in enumerate((1, tokens)):
                due = max(self._due[limit], earliest)
                self._due[limit] = due + amount * self._seconds[limit]

    def pause(self, seconds: float) -> None:
        """Let nothing through for so long, not even what waits already."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a request is tried again: by chance, up to a bound that doubles.

    Waits drawn from all of 0 to the bound spread requests that failed together the furthest.

    Attributes:
        first, longest: the bound behind the first failure, and the bound's own, in seconds.
        chance: draws from 0 to 1.
    """

    first: float = 0.5
    longest: float = 30.0
    chance: Callable[[], float] = random.random

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row of one request, at least 1."""
        doubled = self.first * 2.0 ** min(failures - 1, 30)
        return self.chance() * min(doubled, self.longest)


def is_passing(status: int) -> bool:
    """Whether a request that was answered with this HTTP status is worth another try."""
    return status in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """For how many seconds a response asks to be left alone; None if it doesn't say.

    Args:
        headers: found by names in small letters.
        now: seconds since 1970, for servers that name a date.
    """
    seconds = _number(headers.get("retry-after-ms")) / 1000
    if math.isnan(seconds):
        seconds = _number(headers.get("retry-after"))
    if math.isnan(seconds):
        seconds = _date(headers.get("retry-after")) - now
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_PAUSE)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _date(text: str | None) -> float:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError):
        return math.nan
