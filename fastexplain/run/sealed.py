"""JSON files that vouch for themselves: the last line is a hash of all the text before it."""

from __future__ import annotations

import json
import re
from typing import Any

import xxhash

_LAST_LINE = re.compile(rb'(.*),\n  "hash": "([0-9a-f]{32})"\n\}\n', re.DOTALL)


def sealed(data: dict[str, Any]) -> bytes:
    """Plain data with at least one key as a file's bytes."""
    text = json.dumps(data, indent=2).removesuffix("\n}").encode()
    return text + f',\n  "hash": "{xxhash.xxh3_128_hexdigest(text)}"\n}}\n'.encode()


def unsealed(content: bytes) -> tuple[dict[str, Any], bool]:
    """The data of a file, `hash` left out, and whether there is a hash; it is verified.

    Raises:
        ValueError: the text and its hash don't agree, or it is no JSON object.
    """
    found = _LAST_LINE.fullmatch(content)
    if found and xxhash.xxh3_128_hexdigest(found[1]) != found[2].decode():
        raise ValueError("its text and its hash don't agree: it is damaged, or was edited")
    try:
        data = json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    if (data.pop("hash", None) is not None) != bool(found):
        raise ValueError("its last line is no hash of it: it is damaged, or was edited")
    return data, bool(found)
