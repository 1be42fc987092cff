"""Addresses of OpenAI-compatible APIs, without the packages that reach them (1.1 s to import)."""

from __future__ import annotations

import os

import httpx2

from fastexplain.errors import UnusableError

_OPENAI = "https://api.openai.com/v1"


def address_of(base_url: str | None) -> str:
    """The address of a connection with this `base_url`, without making one.

    Raises:
        UnusableError: it is not an address.
    """
    return str(parse(base_url).copy_with(username="", password="", query=None)).rstrip("/")


def parse(base_url: str | None) -> httpx2.URL:
    """The parts of an address; OpenAI's own if None, or what OPENAI_BASE_URL names.

    Raises:
        UnusableError: it is not an address.
    """
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI
    try:
        url = httpx2.URL(base_url).copy_with(fragment=None)
        url.host.encode("idna")  # as a look-up of the name does, which fails for "a..b"
    except (httpx2.InvalidURL, UnicodeError):
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        shown = base_url.partition("?")[0].rpartition("@")[2]
        raise UnusableError(f"'{shown}' is no server's address; write http://host:port/v1")
    return url
