"""What models cost: a table that comes with the package, and the user's own, which wins."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastexplain.errors import UsageError
from fastexplain.llm.requests import Usage

BATCH_FACTOR = 0.5
"""What a token costs in a batch, beside its price outside."""

_MILLION = 1_000_000

# Whose prices the package's table has; another server may sell the same models at its own.
_OPENAI = "api.openai.com"

# What a dated version has behind its family's name: gpt-4o-mini-2024-07-18.
_DATE = re.compile(r"-\d{4}-?\d{2}-?\d{2}$", re.ASCII)


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens: of prompts, of those from the server's cache, of answers."""

    input: float
    cached_input: float
    output: float

    def times(self, factor: float) -> Price:
        """The price of the same model by a connection that states such a factor."""
        return Price(factor * self.input, factor * self.cached_input, factor * self.output)


FREE = Price(0.0, 0.0, 0.0)


def cost(usage: Usage, price: Price) -> float:
    """What a response costs, in US dollars."""
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    dollars_by_million = (
        (usage.prompt_tokens - cached) * price.input
        + cached * price.cached_input
        + usage.completion_tokens * price.output
    )
    return dollars_by_million / _MILLION


def price_of(model: str, address: str) -> Price | None:
    """A model's price, None if it is not known.

    What runs in this process costs nothing. Elsewhere the user's prices hold, at OpenAI the
    package's too, and what else runs on this machine costs nothing either. A dated version has its
    family's price unless its own is known.

    Args:
        model: its name.
        address: a connection's: a URL, or "local".

    Raises:
        UsageError: the user's file of prices can't be read.
    """
    if address == "local":
        return FREE
    host = urlsplit(address).hostname or ""
    known = load_prices() if host == _OPENAI else _users_prices()
    price = known.get(model) or known.get(_DATE.sub("", model))
    return FREE if price is None and _is_this_machine(host) else price


def load_prices() -> dict[str, Price]:
    """The package's prices by model, with the user's in their place.

    Raises:
        UsageError: the user's file of prices can't be read.
    """
    packaged = resources.files(__package__).joinpath("prices.toml").read_text(encoding="utf-8")
    return read_prices(packaged, "prices.toml") | _users_prices()


def users_file() -> Path:
    """Where the user may keep prices."""
    # The standard has it that a relative path there is not to be used.
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".config"
    return base / "fastexplain" / "prices.toml"


def read_prices(text: str, file: str) -> dict[str, Price]:
    """The prices in a TOML file, by model.

    Args:
        text: of the file.
        file: its name, for errors.

    Raises:
        UsageError: it is no TOML, or not of this form.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    models = table.pop("models", None)
    table.pop("updated", None)
    if table:
        raise UsageError(f"{file}: '{next(iter(table))}' is not known; prices stand in [models]")
    if not isinstance(models, dict):
        raise UsageError(f"{file} has no table [models]")
    return {name: _read_price(name, fields, file) for name, fields in models.items()}


def parse_price(text: str) -> Price:
    """The price that `--price 0.15,0.6` gives, for prompts and answers.

    Raises:
        UsageError: it is no such pair.
    """
    try:
        given, answered = map(float, text.split(","))
    except ValueError:
        given = answered = math.nan
    if not (_is_price(given) and _is_price(answered)):
        raise UsageError(
            f"'{text}' is no price; write US dollars a million tokens of prompts and of answers, "
            "as in 0.15,0.6"
        )
    return Price(given, given, answered)


def dollars(amount: float) -> str:
    """An amount of money: to the cent, or below a dollar to two digits that are not 0."""
    digits = 2
    if 0 < amount < 1:
        digits = max(2, 1 - math.floor(math.log10(amount)))
    return f"${amount:,.{digits}f}"


def _users_prices() -> dict[str, Price]:
    file = users_file()
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text") from error
    return read_prices(text, str(file))


def _read_price(name: str, fields: Any, file: str) -> Price:
    known = ("input", "cached_input", "output")
    if not isinstance(fields, dict) or not {"input", "output"} <= fields.keys():
        quoted = "" if not isinstance(fields, dict) else "; put a name with dots in quotes"
        raise UsageError(f"{file}: '{name}' needs input and output{quoted}")
    for field, value in fields.items():
        if field not in known:
            raise UsageError(f"{file}: '{name}' has '{field}', not one of {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_price(value):
            raise UsageError(
                f"{file}: {field} of '{name}' is no number of US dollars per million tokens"
            )
    given = float(fields["input"])
    return Price(given, float(fields.get("cached_input", given)), float(fields["output"]))


def _is_price(value: float) -> bool:
    return 0 <= value < math.inf


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
