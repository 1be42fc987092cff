"""Limits per minute and waits between tries, on a clock that only sleeping moves."""

import asyncio
import itertools
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.llm.openai.limits import Backoff, Limiter, is_passing, retry_after


class Clock:
    """Time that stands still until somebody sleeps, and then wakes sleepers in order."""

    def __init__(self, late=0.0):
        self.now = 1000.0
        self.late = late
        self._sleepers = []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        waiting = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds + self.late, len(self._sleepers), waiting))
        await waiting

    async def run(self, *calls):
        """Run calls until they have ended, moving the time on whenever all of them wait."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        while not all(task.done() for task in tasks):
            before = None
            while before != (before := [len(self._sleepers), sum(t.done() for t in tasks)]):
                for _ in range(3):
                    await asyncio.sleep(0)
            if self._sleepers:
                self._sleepers.sort()
                at, _, waiting = self._sleepers.pop(0)
                self.now = max(self.now, at)
                if not waiting.cancelled():
                    waiting.set_result(None)
        return await asyncio.gather(*tasks, return_exceptions=True)


def admitted(amounts, *, requests=None, tokens=None, late=0.0, gaps=None):
    """When each of some requests was let through: `(time, number)`, in order."""
    clock = Clock(late)
    limiter = Limiter(requests, tokens, clock=clock, sleep=clock.sleep)
    times = []

    async def one(number, after):
        if after:
            await clock.sleep(after)
        await limiter.admit(amounts[number])
        times.append((clock.now, number))

    async def main():
        await clock.run(*(one(n, (gaps or {}).get(n, 0)) for n in range(len(amounts))))

    asyncio.run(main())
    return times


def most_in_a_minute(taken):
    """The largest sum of amounts in any 60 seconds, from `(time, amount)` in order."""
    most = total = first = 0
    for at, amount in taken:
        total += amount
        while taken[first][0] + 60 <= at:
            total -= taken[first][1]
            first += 1
        most = max(most, total)
    return most


@settings(max_examples=60, deadline=None)
@given(
    amounts=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    requests=st.none() | st.integers(1, 40),
    tokens=st.none() | st.integers(1, 1000),
    late=st.sampled_from([0.0, 0.003, 0.7]),
    gaps=st.dictionaries(st.integers(0, 59), st.floats(0, 200)),
)
def test_no_minute_has_more_than_its_limit_and_all_get_through(
    amounts, requests, tokens, late, gaps
):
    times = admitted(amounts, requests=requests, tokens=tokens, late=late, gaps=gaps)
    assert sorted(number for _, number in times) == list(range(len(amounts)))
    if requests is not None:
        assert most_in_a_minute([(at, 1) for at, _ in times]) <= requests
    if tokens is not None:
        # Larger ones than the limit count against the minutes behind them.
        taken = [(at, min(amounts[number], tokens)) for at, number in times]
        assert most_in_a_minute(taken) <= tokens + max(amount for _, amount in taken)


@settings(max_examples=60, deadline=None)
@given(
    amounts=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    requests=st.integers(1, 40),
    tokens=st.integers(400, 1000),
)
def test_those_who_wait_are_let_through_in_order_and_not_much_later_than_they_might(
    amounts, requests, tokens
):
    times = admitted(amounts, requests=requests, tokens=tokens)
    assert [number for _, number in times] == list(range(len(amounts)))
    ideal = max(len(amounts) / requests, sum(amounts) / tokens)
    # Up to two thirds of a minute's tokens are left where the next request needs more.
    assert times[-1][0] - times[0][0] <= 60 * (2 * ideal + 2)


def test_requests_are_spread_over_the_minute():
    times = [at for at, _ in admitted([1] * 300, requests=60)]
    assert all(0.85 < b - a < 1.15 for a, b in itertools.pairwise(times))


def test_late_timers_do_not_lower_the_rate():
    times = [at for at, _ in admitted([1] * 601, requests=6000, late=0.005)]
    assert times[-1] - times[0] == pytest.approx(6, abs=0.15)


def test_tokens_are_spread_over_the_minute():
    times = [at - 1000 for at, _ in admitted([100] * 50, tokens=6000)]
    assert times[-1] == pytest.approx(48, abs=1.5)


def test_behind_a_request_larger_than_a_minute_the_next_waits_for_all_of_it():
    times = admitted([10, 5000, 10], tokens=1000)
    assert [number for _, number in times] == [0, 1, 2]
    assert times[2][0] - times[1][0] == pytest.approx(300, abs=1)


def test_without_limits_nobody_waits():
    assert admitted([10**9] * 5) == [(1000.0, n) for n in range(5)]


def test_a_pause_holds_back_all_even_those_that_wait_already():
    clock = Clock()
    limiter = Limiter(requests_per_minute=60, clock=clock, sleep=clock.sleep)
    times = []

    async def one():
        await limiter.admit()
        times.append(clock.now - 1000)

    async def main():
        await clock.run(one(), one())
        limiter.pause(30)
        limiter.pause(10)  # the longer one stays
        waiting = asyncio.gather(one(), one())
        await asyncio.sleep(0)
        limiter.pause(40)
        await clock.run(waiting)

    asyncio.run(main())
    assert times[0] == 0 and times[2] - times[1] == pytest.approx(40)
    assert times[3] > times[2]


def test_one_who_gives_up_leaves_his_turn_to_the_next():
    clock = Clock()
    limiter = Limiter(requests_per_minute=1, clock=clock, sleep=clock.sleep)

    async def main():
        await limiter.admit()
        first, second, third = (asyncio.ensure_future(limiter.admit()) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()  # it sleeps
        third.cancel()  # it waits for its turn
        await clock.run(first, second, third)
        assert first.cancelled() and third.cancelled() and not second.exception()

    asyncio.run(main())
    assert clock.now == pytest.approx(1060, abs=0.1)


def test_waits_between_tries_double_up_to_a_bound_and_are_drawn_from_all_below():
    longest = Backoff(first=0.5, longest=30, chance=lambda: 1.0)
    assert [longest.wait(n) for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert longest.wait(10_000) == 30
    assert Backoff(chance=lambda: 0.0).wait(5) == 0
    assert all(0 <= Backoff().wait(3) <= 2 for _ in range(100))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "86400"}, 120),
        ({"retry-after": "inf"}, 120),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Mon, 99 Foo 2026 00:00:00 GMT"}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7),
        ({"retry-after": formatdate(1_800_000_042, usegmt=True)}, 42),
        ({"retry-after": formatdate(1_700_000_000, usegmt=True)}, 0),
    ],
)
def test_a_server_says_when_to_come_back(headers, seconds):
    assert retry_after(headers, now=1_800_000_000.0) == seconds


_HEADERS = st.sampled_from(
    ["1e400", "-1e400", "9" * 5000, "0x7", "\u0667", "1_0", "+ 3", "NaN", ","]
)
_DATES = st.sampled_from(
    ["Mon, 01 Jan 0001 00:00:00", "Fri, 31 Dec 9999 23:59:59 -2359", "1 Jan 1"]
)


@settings(deadline=None, derandomize=True)
@given(st.text() | _HEADERS | _DATES | st.floats().map(str), st.text() | _HEADERS | st.none())
def test_a_pause_is_within_bounds_whatever_a_server_says(seconds, milliseconds):
    headers = {"retry-after": seconds, "retry-after-ms": milliseconds}
    pause = retry_after(headers, now=1_800_000_000.0)
    assert pause is None or 0 <= pause <= 120


def test_which_failures_pass():
    passing = [status for status in range(400, 600) if is_passing(status)]
    assert [status for status in passing if status < 500] == [408, 409, 429]
    assert {500, 502, 503, 504, 529} < set(passing) and 501 not in passing
