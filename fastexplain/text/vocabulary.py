"""What each token id of a tokenizer stands for, as bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

# By the character with which byte-level tokenizers write it.
_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes of every id, from 0 to the tokenizer's largest.

    Special and added tokens stand for their literal text, ids without a token for nothing. A
    single token need not be whole UTF-8.
    """
    size = max(tokenizer.get_vocab().values()) + 1  # more than there are tokens, if ids have gaps
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
    tokens = tokenizer.convert_ids_to_tokens(list(range(size)))
    read = _reader(_decoders(tokenizer))
    result = []
    for id_, token in enumerate(tokens):
        if id_ in added:
            result.append(added[id_].encode())
        elif token is None:
            result.append(b"")
        elif read is None:
            result.append(str(tokenizer.decode([id_])).encode())
        else:
            result.append(read(token))
    return result


def _decoders(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The steps by which a fast tokenizer makes text of tokens; none for other tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


def _reader(decoders: list[dict[str, Any]]) -> Callable[[str], bytes] | None:
    """How to read one token, or None if the decoders don't work token by token."""
    kinds = {decoder["type"] for decoder in decoders}
    if "ByteLevel" in kinds:
        return _read_byte_level
    replaced = [
        (decoder["pattern"]["String"], decoder["content"])
        for decoder in decoders
        if decoder["type"] == "Replace" and "String" in decoder["pattern"]
    ] + [(decoder["replacement"], " ") for decoder in decoders if decoder["type"] == "Metaspace"]
    if not replaced:
        return None
    byte_tokens = "ByteFallback" in kinds

    def read(token: str) -> bytes:
        if byte_tokens and (match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)):
            return bytes.fromhex(match[1])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return read


def _read_byte_level(token: str) -> bytes:
    # A character outside the alphabet comes from a token that was added as text.
    return b"".join(bytes([_BYTES[char]]) if char in _BYTES else char.encode() for char in token)
