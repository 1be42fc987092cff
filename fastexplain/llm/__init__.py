"""Connections to the language models that explain and simulate."""

from __future__ import annotations

from typing import Any

from fastexplain.llm.base import Connection

__all__ = ["Connection", "address_of", "connect"]


def connect(
    model: str, *, base_url: str | None = None, local: bool = False, **limits: Any
) -> Connection:
    """Connect to a model by name.

    Args:
        model: with `local`, the word `smollm2`, a directory or a Hugging Face id; else the name
            by which the server knows the model.
        base_url: the OpenAI-compatible server, OpenAI's own if None. The key, where the server
            wants one, is read from OPENAI_API_KEY.
        local: load the model into this process.
        limits: of a server connection; see `ServerConnection`.

    Raises:
        LLMError: the model can't be loaded, or there is no key for OpenAI.
    """
    if local:
        from fastexplain.llm.local.connection import LocalConnection

        return LocalConnection(model)
    from fastexplain.llm.openai.server import ServerConnection

    return ServerConnection(model, base_url, **limits)


def address_of(base_url: str | None, *, local: bool) -> str:
    """The `address` that a connection would have; arguments as for `connect`."""
    if local:
        return "local"
    from fastexplain.llm.openai.addresses import address_of

    return address_of(base_url)
