"""How tokens stand in a prompt: escaped, one a line, a tab before the value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache

START, END = "<start>", "<end>"
_QUOTED = 30  # characters of an answer

# Our own markers, and the openings of control tokens that chat models know: a tokenizer would
# read `<|im_end|>` or `</s>` in an excerpt as the end of the message.
_MARKER = re.compile(r"<(?=\||/?(?:start|end|s|bos|eos|pad|unk|start_of_turn|end_of_turn)>)")
_NAMED = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
# All at which str.splitlines breaks, and control characters. U+FFFD, which stands in tokens for
# bytes that are no character on their own, because vLLM leaves it out of the prompts it echoes
# (seen in 0.32), which moves all character offsets behind it.
_SPECIAL = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]")
# The same without those that JSON escapes anyway.
_SPECIAL_IN_JSON = re.compile(rf"[\x7f-\x9f\u2028\u2029\ufffd]|{_MARKER.pattern}")


def escape(token: str) -> str:
    r"""A token as it stands in a prompt: without tabs, line breaks, control characters or markers.

    Backslash, newline, tab and carriage return become `\\`, `\n`, `\t` and `\r`; the others, and
    the `<` of a marker, become `\x3c` or `\u2028`.
    """
    escaped = _SPECIAL.sub(lambda match: _NAMED.get(match[0]) or _hex(match[0]), token)
    return _MARKER.sub(lambda match: _hex(match[0]), escaped)


@lru_cache(maxsize=2**16)
def line(token: str) -> str:
    """A token's line as far as its tab. The same tokens come again in text after text."""
    return f"{escape(token)}\t"


@lru_cache(maxsize=2**16)
def json_string(token: str) -> str:
    r"""A token as a JSON string, with `\u2028` and the like where `escape` has an escape."""
    return _SPECIAL_IN_JSON.sub(
        lambda match: f"\\u{ord(match[0]):04x}", json.dumps(token, ensure_ascii=False)
    )


def block(lines: Iterable[tuple[str, int | str]]) -> str:
    """Tokens with their values between the markers, as in `<start>`, ` the<tab>3`, ..., `<end>`."""
    return "\n".join([START, *(f"{escape(token)}\t{value}" for token, value in lines), END])


def quote(text: str) -> str:
    """What a model wrote, in part, as reasons quote it."""
    return repr(text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "...")


def _hex(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
