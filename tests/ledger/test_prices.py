"""What models cost, and the tables that say so."""

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fastexplain.cli.cost_table import estimate_data, estimate_table, ledger_data, ledger_table
from fastexplain.errors import UsageError
from fastexplain.ledger.budget import Estimate
from fastexplain.ledger.prices import (
    FREE,
    Price,
    cost,
    dollars,
    parse_price,
    price_of,
    users_file,
)
from fastexplain.ledger.responses import LedgerRow
from fastexplain.llm.requests import Usage

OPENAI = "https://api.openai.com/v1"
ELSEWHERE = "https://llm.example.org/v1"


@pytest.fixture(autouse=True)
def configuration(tmp_path, monkeypatch):
    """The user's directory of settings, empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def write():
    def write_file(text):
        users_file().parent.mkdir()
        users_file().write_bytes(text if isinstance(text, bytes) else text.encode())

    return write_file


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("gpt-4o-mini", Price(0.15, 0.075, 0.6)),
        ("davinci-002", Price(2, 2, 2)),
        # The price of a long prompt is another one.
        ("gpt-5.5", Price(5, 0.5, 30)),
        # What a prompt costs that the server writes to its cache: its list price is 2.00.
        ("gpt-6-sol", Price(2.5, 0.2, 10)),
    ],
)
def test_openais_prices_are_known(model, price):
    assert price_of(model, OPENAI) == price


@pytest.mark.parametrize(
    ("model", "like"),
    [
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-4o-mini-20240718", "gpt-4o-mini"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4.1-nano-2025-04-14", "gpt-4.1-nano"),
    ],
)
def test_a_dated_model_costs_what_its_family_does(model, like):
    assert price_of(model, OPENAI) == price_of(like, OPENAI)


def test_a_dated_model_may_have_a_price_of_its_own():
    assert price_of("gpt-4o-2024-05-13", OPENAI) == Price(5, 5, 15)


@pytest.mark.parametrize(
    "model", ["", "gpt", "gpt-4o-", "gpt-4o-nonsense", "ft:gpt-4o:me::1", "text-embedding-3-small"]
)
def test_the_price_of_another_model_is_not_known(model):
    assert price_of(model, OPENAI) is None


def test_openais_prices_hold_at_openai_only():
    assert price_of("gpt-4o", ELSEWHERE) is None
    assert price_of("gpt-4o", "http://10.0.0.1:8000/v1") is None


@pytest.mark.parametrize(
    "address",
    [
        "local",
        "http://localhost:8000/v1",
        "http://gpu.localhost/v1",
        "http://127.0.0.1:8000/v1",
        "http://127.1.2.3/v1",
        "http://[::1]:8000/v1",
        "http://0.0.0.0:8000/v1",
    ],
)
def test_this_machine_costs_nothing(address):
    assert price_of("gpt-4o", address) == price_of("anything", address) == FREE


def test_the_users_prices_win_and_hold_everywhere(write):
    write(
        'updated = 2026-01-01\n[models]\n"gpt-4o" = { input = 1, output = 2.5 }\n'
        "mine = { input = 0, cached_input = 0, output = 0 }\n"
    )
    assert price_of("gpt-4o-2024-08-06", OPENAI) == Price(1, 1, 2.5)
    assert price_of("gpt-4o", ELSEWHERE) == Price(1, 1, 2.5)
    assert price_of("mine", ELSEWHERE) == FREE
    # As behind a proxy on this machine.
    assert price_of("gpt-4o", "http://localhost:4000/v1") == Price(1, 1, 2.5)
    assert price_of("gpt-4o-mini", OPENAI) == Price(0.15, 0.075, 0.6)
    assert price_of("gpt-4o-mini", ELSEWHERE) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models", "is not valid TOML"),
        (b"\xff", "is not valid TOML: 'utf-8' codec can't decode"),
        ("", "has no table [models]"),
        ("models = 3", "has no table [models]"),
        ("[prices]", "has no table [models], where prices stand"),
        ("[models]\nm = 3", "'m' has no price that can be read: 3; write"),
        ("[models]\nm = { input = 3 }", "'m' has no price that can be read: {'input': 3}; write"),
        ("[models]\ngpt-4.1 = { input = 3, output = 1 }", "'gpt-4' has no price that can be read"),
        ("[models]\nm = { input = 1, output = 2, batch = 3 }", "'batch': 3"),
        ("[models]\nm = { input = -1, output = 2 }", "'input': -1"),
        ("[models]\nm = { input = nan, output = 2 }", "'input': nan"),
        ("[models]\nm = { input = 1, output = inf }", "'output': inf"),
        ("[models]\nm = { input = 1, output = '2' }", "'output': '2'"),
        ("[models]\nm = { input = 1, output = 1e300 }", "'output': 1e+300"),
        ("[models]\nm = { input = 1, output = true }", "'output': True"),
    ],
)
def test_what_is_wrong_in_the_users_file_is_told_in_one_line(write, text, message):
    write(text)
    with pytest.raises(UsageError) as caught:
        price_of("gpt-4o", OPENAI)
    said = str(caught.value)
    assert said.startswith(str(users_file())) and message in said and "\n" not in said
    assert price_of("m", "local") == FREE


def test_a_users_file_that_cannot_be_read_is_told():
    users_file().mkdir(parents=True)
    with pytest.raises(UsageError, match="can't be read: Is a directory"):
        price_of("gpt-4o", OPENAI)


def test_the_users_file_is_where_the_standard_has_it(monkeypatch, configuration):
    assert users_file() == configuration / "fastexplain" / "prices.toml"
    monkeypatch.setenv("HOME", os.fspath(configuration))
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unusable)
        assert users_file() == configuration / ".config" / "fastexplain" / "prices.toml"


def test_a_price_may_be_given():
    assert parse_price("0.15,0.6") == parse_price(" 0.15 , 0.6 ") == Price(0.15, 0.15, 0.6)
    assert parse_price("0,0") == FREE


@pytest.mark.parametrize(
    "text", ["", "1", "1,2,3", "1,x", "-1,2", "1,nan", "inf,1", "1;2", "$1,$2", "1e7,1", "1,1e300"]
)
def test_what_is_no_price_is_refused(text):
    with pytest.raises(UsageError, match=r"as in 0\.15,0\.6"):
        parse_price(text)


def test_cost_is_by_the_million_and_cached_tokens_have_their_price():
    price = Price(2.0, 0.5, 8.0)
    assert cost(Usage(1_000_000, 0, 0), price) == 2
    assert cost(Usage(1_000_000, 500_000, 250_000), price) == 1.5 + 0.125 + 4
    assert cost(Usage(10, 0, 1_000_000), price) == 5e-6  # a server that counts wrongly
    assert cost(Usage(), price) == cost(Usage(), None) == 0
    assert cost(Usage(1, 0, 0), None) is None
    assert price.times(0.5) == Price(1.0, 0.25, 4.0)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_cache_never_makes_it_dearer(prompt, answer, cached):
    price = Price(2, 0.5, 8)
    least, most = cost(Usage(prompt, answer, prompt), price), cost(Usage(prompt, answer), price)
    assert least <= cost(Usage(prompt, answer, cached), price) <= most


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "$0.00"), (5, "$5.00"), (4.979, "$4.98"), (1234.5, "$1,234.50"), (0.5, "$0.50"),
     (0.0123, "$0.012"), (0.000056, "$0.000056"), (0.1, "$0.10"), (0.999, "$1.00")],
)  # fmt: skip
def test_money_is_shown_to_two_digits(amount, text):
    assert dollars(amount) == text


def shown(table):
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_an_estimate_is_added_up_by_purpose():
    estimate = Estimate()
    for _ in range(3):
        estimate.add("explanation", Usage(2000, 60), 2e-3)
    estimate.add("simulation", Usage(900, 1), 5e-4)
    estimate = estimate.scaled(200_000, 200)
    assert estimate_data(estimate) == {
        "requests": 4000,
        "prompt_tokens": 6_900_000,
        "completion_tokens": 181_000,
        "cost": pytest.approx(6.5),
        "known_cost": pytest.approx(6.5),
        "unpriced": 0,
        "purposes": {
            "explanation": {
                "requests": 3000,
                "prompt_tokens": 6_000_000,
                "completion_tokens": 180_000,
                "cost": pytest.approx(6),
                "known_cost": pytest.approx(6),
                "unpriced": 0,
            },
            "simulation": {
                "requests": 1000,
                "prompt_tokens": 900_000,
                "completion_tokens": 1000,
                "cost": 0.5,
                "known_cost": 0.5,
                "unpriced": 0,
            },
        },
    }
    text = shown(estimate_table(estimate))
    lines = [line.split() for line in text.splitlines()]
    assert [
        "│",
        "explanations",
        "│",
        "3,000",
        "│",
        "6,000,000",
        "│",
        "180,000",
        "│",
        "$6.00",
        "│",
    ] in lines
    assert "$6.50" in text and "not known" not in text


def test_an_estimate_says_what_it_cannot_price():
    estimate = Estimate()
    estimate.add("explanation", Usage(2000, 60), 2e-3)
    estimate.add("simulation", Usage(900, 1), None)
    text = shown(estimate_table(estimate))
    assert "$0.0020 + unknown" in text and "price of 1 of the requests is not known" in text
    assert "--price" in text and f"\n{users_file()}" in text
    data = estimate_data(estimate)
    assert data["cost"] is None and data["known_cost"] == 2e-3
    assert data["purposes"]["simulation"]["cost"] is None


def test_an_estimate_of_nothing_is_nothing():
    assert estimate_data(Estimate())["requests"] == 0
    assert "$0.00" in shown(estimate_table(Estimate()))


def test_the_ledger_is_shown_with_its_sum():
    rows = [
        LedgerRow("2026-11-22T10:00:00+00:00", "m[1]", "explanation", 10, 1, 100, 50, 20, 1.25, 0),
        LedgerRow("2026-11-22T10:00:00+00:00", "m[1]", "simulation", 90, 0, 900, 0, 90, 0.5, 0),
        LedgerRow("2026-11-23T10:00:00+00:00", "other", "simulation", 5, 0, 50, 0, 5, 0.0, 5),
    ]
    text = shown(ledger_table(rows))
    assert text.count("2026-11-22 10:00:00") == 1 and "2026-11-23 10:00:00" in text
    assert text.count("m[1]") == 2 and "explanations" in text
    assert "$1.75 + unknown" in text and "price of 5 of the requests" in text
    data = ledger_data(rows)
    assert data["total"] == {
        "answered": 105, "failed": 1, "prompt_tokens": 1050, "cached_tokens": 50,
        "completion_tokens": 115, "cost": None, "known_cost": 1.75, "unpriced": 5,
    }  # fmt: skip
    assert data["rows"][0]["cost"] == 1.25 and data["rows"][0]["model"] == "m[1]"
    assert data["rows"][2]["cost"] is None and data["rows"][2]["known_cost"] == 0
    assert not math.isnan(data["total"]["known_cost"])


def test_an_empty_ledger_is_shown_too():
    assert ledger_data([]) == {
        "total": {
            "answered": 0, "failed": 0, "prompt_tokens": 0, "cached_tokens": 0,
            "completion_tokens": 0, "cost": 0, "known_cost": 0, "unpriced": 0,
        },
        "rows": [],
    }  # fmt: skip
    assert "in all" in shown(ledger_table([]))
