"""Limits on requests and cost, whatever is in flight."""

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.errors import BudgetError, StoppedError, UsageError
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.prices import Price

ROUNDING = 1 + 1e-9


def test_without_limits_everything_is_let_through():
    budget = Budget(None, None)
    for _ in range(100):
        budget.settle(budget.reserve(1e9), 1e9)
    assert budget.requests == 100 and budget.spent == 1e11


def test_a_request_is_let_through_while_its_worst_case_fits():
    budget = Budget(5.0, None)
    budget.settle(budget.reserve(2.0), 1.98)
    first = budget.reserve(1.5)
    second = budget.reserve(1.5)
    with pytest.raises(BudgetError) as caught:
        budget.reserve(0.03)
    assert str(caught.value) == (
        "stopped before $5.00: $4.98 are spent or may be by what is in flight, and the next "
        "request may cost $0.030; `max_cost`"
    )
    budget.settle(first, 1.5)
    budget.settle(second, 1.5)
    with pytest.raises(BudgetError, match=r"stopped before \$5\.00: \$4\.98 are spent"):
        budget.reserve(0.03)
    budget.settle(budget.reserve(0.01), 0.01)
    assert budget.spent == pytest.approx(4.99) and budget.requests == 4


def test_what_failed_frees_what_it_had_reserved():
    budget = Budget(1.0, None)
    for _ in range(10):
        budget.settle(budget.reserve(1.0), 0.0)
    assert budget.spent == 0


def test_nothing_may_be_spent_of_a_limit_of_0_but_what_is_free():
    budget = Budget(0.0, None)
    budget.settle(budget.reserve(0.0), 0.0)
    with pytest.raises(BudgetError):
        budget.reserve(1e-9)


def test_requests_are_counted_when_they_are_sent():
    budget = Budget(None, 2)
    budget.settle(budget.reserve(0.0), 0.0)
    budget.reserve(0.0)
    with pytest.raises(BudgetError, match="stopped after 2 requests; `max_requests`"):
        budget.reserve(0.0)
    with pytest.raises(BudgetError, match="after 0 requests"):
        Budget(None, 0).reserve(0.0)


@pytest.mark.parametrize("limit", [-1, -0.01, math.nan, math.inf])
def test_a_limit_has_to_make_sense(limit):
    with pytest.raises(UsageError, match="`max_cost` is"):
        Budget(limit, None)


def test_a_limit_on_requests_has_to_make_sense():
    with pytest.raises(UsageError, match="`max_requests` is -1"):
        Budget(None, -1)


def test_a_limit_on_the_cost_needs_a_price():
    Budget(None, 5).check_price("m", None)
    Budget(5.0, None).check_price("m", Price(1, 1, 1))
    with pytest.raises(UsageError, match=r"of 'm' is not known.*the model's `price`, or put it"):
        Budget(5.0, None).check_price("m", None)


def test_a_part_of_a_budget_spends_of_the_whole_and_may_be_stopped_alone():
    whole = Budget(5.0, 3)
    stopped = threading.Event()
    parts = [Budget(None, None, stopped, within=whole), Budget(1.0, None, within=whole)]
    assert whole.left == 5 and parts[0].left is None
    reserved = parts[0].reserve(3.0)
    assert whole.left == 2
    with pytest.raises(BudgetError, match=r"stopped before \$1\.00"):
        parts[1].reserve(1.5)
    parts[1].settle(parts[1].reserve(1.0), 0.5)
    parts[0].settle(reserved, 2.5)
    assert (whole.spent, whole.left, whole.requests) == (3, 2, 2)
    assert (parts[0].spent, parts[1].spent, parts[1].left) == (2.5, 0.5, 0.5)
    with pytest.raises(BudgetError, match=r"stopped before \$5\.00"):
        parts[0].reserve(2.5)
    assert whole.left == 2
    stopped.set()
    with pytest.raises(StoppedError):
        parts[0].reserve(0.0)
    parts[1].reserve(0.0)
    with pytest.raises(BudgetError, match="stopped after 3 requests"):
        parts[1].reserve(0.0)
    with pytest.raises(UsageError, match="of 'm' is not known"):
        parts[0].check_price("m", None)


_STEPS = st.lists(
    st.tuples(st.booleans(), st.floats(0, 2), st.floats(0, 1), st.integers(0, 10**6)), max_size=80
)


@given(st.floats(0, 10), st.integers(0, 40), _STEPS)
def test_no_interleaving_passes_a_limit(max_cost, max_requests, steps):
    """Where a request costs at most what it reserved."""
    budget, in_flight, spent, sent = Budget(max_cost, max_requests), [], 0.0, 0
    for send, most, share, which in steps:
        if send:
            try:
                in_flight.append(budget.reserve(most))
                sent += 1
            except BudgetError:
                reserved = sum(in_flight)
                assert sent == max_requests or spent + reserved + most > max_cost / ROUNDING
        elif in_flight:
            reserved = in_flight.pop(which % len(in_flight))
            budget.settle(reserved, share * reserved)
            spent += share * reserved
        assert spent + sum(in_flight) <= max_cost * ROUNDING and sent <= max_requests
    assert budget.spent == pytest.approx(spent) and budget.requests == sent


@given(st.floats(1, 10), st.floats(1, 3), st.lists(st.floats(0.001, 0.5), min_size=1, max_size=80))
def test_estimates_that_are_too_low_are_learnt_from(max_cost, overrun, requests):
    """After one response that cost more than was reserved, the limit holds again."""
    budget = Budget(max_cost, None)
    first = budget.reserve(0.3)
    budget.settle(first, 0.3 * overrun)
    in_flight = []
    for most in requests:
        try:
            in_flight.append(budget.reserve(most))
        except BudgetError:
            if in_flight:
                reserved = in_flight.pop()
                budget.settle(reserved, overrun * reserved)
    for reserved in in_flight:
        budget.settle(reserved, overrun * reserved)
    assert budget.spent <= max_cost * ROUNDING
