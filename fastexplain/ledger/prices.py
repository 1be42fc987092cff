"""What models cost: OpenAI's list of prices, and the user's own table, which wins.

OpenAI's are those of the `genai-prices` package as it was installed; it looks nothing up over the
network unless it is told to, which is not done here.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastexplain.errors import UsageError
from fastexplain.llm.requests import Usage

BATCH_FACTOR = 0.5
"""What a token costs in a batch, beside its price outside."""

# US dollars a million tokens: above one a token it is a slip.
_MOST = 1e6

# The one host that OpenAI's list holds for; other servers may sell the same models at their own.
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


def cost(usage: Usage, price: Price | None) -> float | None:
    """What a response costs, in US dollars; None if the price is unknown and it took anything."""
    if usage == Usage():
        return 0.0
    if price is None:
        return None
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    return (
        (usage.prompt_tokens - cached) * price.input
        + cached * price.cached_input
        + usage.completion_tokens * price.output
    ) / 1_000_000


def price_of(model: str, address: str) -> Price | None:
    """A model's price, None if it is not known.

    What runs in this process costs nothing. Elsewhere the user's prices hold, then, at OpenAI
    only, its list, and what else runs on this machine costs nothing either. A dated version has its
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
    prices = _users_prices()
    if price := prices.get(model) or prices.get(_DATE.sub("", model)):
        return price
    if host == _OPENAI:
        return _list_price(model)
    return FREE if _is_this_machine(host) else None


def users_file() -> Path:
    """Where the user may keep prices."""
    # The XDG standard has it that a relative path there is not to be used.
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".config"
    return base / "fastexplain" / "prices.toml"


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


def _list_price(model: str) -> Price | None:
    """What OpenAI asks for a model outside of batches, None if it isn't listed."""
    import genai_prices  # 0.35 s

    try:
        listed = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=0), model, provider_id="openai"
        ).model_price
    except LookupError:
        return None
    # Newer models' prompts cost more where the server writes them to its cache, as it does by
    # itself: the most that a token can cost counts. Prices of very long prompts don't occur here.
    given = max(_base(listed.input_mtok), _base(listed.cache_write_mtok))
    answered = _base(listed.output_mtok)
    return Price(given, _base(listed.cache_read_mtok) or given, answered) if answered else None


def _base(price: Any) -> float:
    """The price before any tier of long prompts; 0.0 where there is none."""
    return float(getattr(price, "base", price) or 0)


def _users_prices() -> dict[str, Price]:
    file = users_file()
    try:
        models = tomllib.loads(file.read_text(encoding="utf-8")).get("models")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}") from error
    except ValueError as error:  # of the encoding, or of TOML
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    if not isinstance(models, dict):
        raise UsageError(f"{file} has no table [models], where prices stand")
    return {name: _read_price(name, fields, file) for name, fields in models.items()}


def _read_price(name: str, fields: Any, file: Path) -> Price:
    try:
        price = Price(**{"cached_input": fields["input"], **fields})
        if all(type(value) in (int, float) and _is_price(value) for value in fields.values()):
            return price
    except (KeyError, TypeError):
        pass
    raise UsageError(
        f"{file}: '{name}' has no price that can be read: {fields}; write US dollars per million "
        "tokens, as in { input = 0.15, output = 0.6 }, perhaps with cached_input, and put a name "
        "with dots in quotes"
    )


def _is_price(value: float) -> bool:
    return 0 <= value <= _MOST


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
