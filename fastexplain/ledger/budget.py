"""Limits on what a command asks and spends, and what a dry run adds up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from fastexplain.errors import BudgetError, StoppedError, UsageError
from fastexplain.ledger.prices import Price, dollars, users_file
from fastexplain.llm.requests import Usage

INTERRUPTED = "interrupted; what was answered is stored, and the same command goes on from there"


class Interruption(Protocol):
    """Says whether no more is wanted, as a `threading.Event` does."""

    def is_set(self) -> bool:
        """Whether nothing more shall be sent."""
        ...


class Budget:
    """What a command may still send. A request reserves the most that it may cost, then settles.

    Prompts' tokens are estimated before they are sent. Where a response costs more than was
    reserved, all that is reserved then and later counts for as much more as the worst of them.

    Args:
        max_cost: in US dollars; None: no limit.
        max_requests: None: no limit.
        max_minutes: from now on; None: no limit.
        interrupted: set when the user wants no more to be sent.
        within: a budget that this one is a part of: all that this one lets through, that one has
            to let through too, and it is spent there as well.

    Raises:
        UsageError: a limit is negative or no number.
    """

    def __init__(
        self,
        max_cost: float | None,
        max_requests: int | None,
        interrupted: Interruption | None = None,
        max_minutes: float | None = None,
        within: Budget | None = None,
    ) -> None:
        limits = {"max_cost": max_cost, "max_requests": max_requests, "max_minutes": max_minutes}
        for name, limit in limits.items():
            if limit is not None and not 0 <= limit < math.inf:
                raise UsageError(f"`{name}` is {limit}; it has to be 0 or more")
        self._max_cost = max_cost
        self._max_requests = max_requests
        self._interrupted = interrupted
        self._within = within
        self._max_minutes = max_minutes
        self._end = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._reserved = 0.0
        self._in_flight = 0
        self._overrun = 1.0
        self.spent = 0.0
        self.requests = 0

    @property
    def left(self) -> float | None:
        """US dollars that may still be reserved; None without a limit on the cost."""
        if self._max_cost is None:
            return None
        return max(0.0, self._max_cost - self.spent - self._overrun * self._reserved)

    def check_price(self, model: str, price: Price | None) -> None:
        """Make sure that a limit on the cost can be kept with a model.

        Raises:
            UsageError: it can't, as the model's price is not known.
        """
        if self._max_cost is not None and price is None:
            raise UsageError(
                f"the price of '{model}' is not known, so `max_cost` can't be kept; give the "
                f"model's `price`, or put it into {users_file()}"
            )
        if self._within is not None:
            self._within.check_price(model, price)

    def check_interrupted(self) -> None:
        """Raise StoppedError if the user wants no more to be sent."""
        if self._interrupted is not None and self._interrupted.is_set():
            raise StoppedError(INTERRUPTED)
        if self._within is not None:
            self._within.check_interrupted()

    def reserve(self, most: float) -> float:
        """Let one more request be sent; returns what is to be handed to `settle`.

        Args:
            most: what it may cost at the most, in US dollars.

        Raises:
            BudgetError: it might pass a limit.
            StoppedError: the user wants no more to be sent.
        """
        self.check_interrupted()
        if self._end is not None and time.monotonic() >= self._end:
            raise BudgetError(f"stopped after {self._max_minutes:g} minutes; `max_minutes`")
        if self._max_requests is not None and self.requests >= self._max_requests:
            raise BudgetError(f"stopped after {self.requests:,} requests; `max_requests`")
        if self._max_cost is not None:
            committed = self.spent + self._overrun * self._reserved
            if committed + self._overrun * most > self._max_cost:
                raise BudgetError(
                    f"stopped before {dollars(self._max_cost)}: {dollars(committed)} are spent or "
                    f"may be by what is in flight, and the next request may cost "
                    f"{dollars(self._overrun * most)}; `max_cost`"
                )
        if self._within is not None:
            self._within.reserve(most)
        self._reserved += most
        self._in_flight += 1
        self.requests += 1
        return most

    def settle(self, reserved: float, actual: float) -> None:
        """Book what a request cost that had been reserved for; 0 if it failed."""
        self._in_flight -= 1
        # Rounding may leave a residue, but not where nothing is in flight.
        self._reserved = max(0.0, self._reserved - reserved) if self._in_flight else 0.0
        self.spent += actual
        if self._within is not None:
            self._within.settle(reserved, actual)
        if reserved > 0:
            self._overrun = max(self._overrun, actual / reserved)


class Share(NamedTuple):
    """A part of an estimate.

    Attributes:
        requests: how many are to be sent.
        prompt_tokens, completion_tokens: at the most, as far as they can be told beforehand.
        cost: in US dollars, of those requests whose price is known.
        unpriced: requests whose price is not.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0


@dataclass
class Estimate:
    """What a command would ask; see `--dry-run`.

    Attributes:
        purposes: "explanation", "simulation", in the order in which they were added.
        sample: neurons that it goes by, where it is of more.
    """

    purposes: dict[str, Share] = field(default_factory=dict)
    sample: int | None = None

    def add(self, purpose: str, usage: Usage, cost: float | None) -> None:
        """Count one request.

        Args:
            purpose: of the request.
            usage: the most that it is expected to take.
            cost: in US dollars; None if the price is not known.
        """
        one = (1, usage.prompt_tokens, usage.completion_tokens, cost or 0.0, int(cost is None))
        self.purposes[purpose] = _sum([self.purposes.get(purpose, Share()), one])

    @property
    def total(self) -> Share:
        return _sum([Share(), *self.purposes.values()])

    def scaled(self, neurons: int, sample: int) -> Estimate:
        """As much for so many neurons as this is for a sample of them."""
        if neurons == sample:
            return self
        factor = neurons / sample
        return Estimate(
            {
                purpose: Share(*(round(n * factor) for n in share))._replace(
                    cost=share.cost * factor
                )
                for purpose, share in self.purposes.items()
            },
            sample,
        )


def _sum(shares: Iterable[Iterable[Any]]) -> Share:
    return Share(*map(sum, zip(*shares, strict=True)))
