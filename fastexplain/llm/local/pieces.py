"""Token ids of a `Reading`, put together from pieces, so that its places are known from the start.

A text is not searched for its places: `shared`, `head`, every line, its tab, the filler and the
newline are turned into ids one by one, and a place is where the tab's ids end. A tokenizer that
would join a tab with the word behind it, as those of GPT-4, Llama 3 and Qwen may, does no harm.
Most tokenizers make the same ids of the whole text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastexplain.errors import LLMError
from fastexplain.llm.requests import Reading

# A piece is tokenized behind one of these, whose own ids are then taken off: tokenizers that put
# a space before a text, as SentencePiece does, would put it into every piece. Some join one with
# the piece, as "\n" with a space that follows, so that there are several.
_LINE_START, _VALUE_START, _WORD = "\n", "a\t", "a"
_ANCHORS = (_LINE_START, _VALUE_START, _WORD)

# Lines whose ids are kept; the tokens of excerpts repeat.
_KEPT_LINES = 2**16
# Heads and shared texts: their requests come one after another.
_KEPT_TEXTS = 1024


@dataclass(frozen=True)
class Prompt:
    """A reading as token ids: `shared`, then `rest`.

    Attributes:
        shared: of the text of this name in `Reading`.
        rest: the head and the lines with their fillers, up to the last place.
        rows: in `rest`, the last token before each place.
    """

    shared: tuple[int, ...]
    rest: list[int]
    rows: list[int]

    def __len__(self) -> int:
        return len(self.shared) + len(self.rest)


class Pieces:
    """Puts token ids together.

    Args:
        tokenizer: from transformers.
        name: of the model, for messages.

    Attributes:
        digits: the token ids of 0, 1, ... behind a tab, up to 10 if that is one token; empty if
            one of 0 to 9 is not.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._anchors = {anchor: self._encode(anchor) for anchor in _ANCHORS}
        self._lead = self._find_lead()
        self._tab = tuple(self._piece("\t", _WORD))
        self._shared = lru_cache(_KEPT_TEXTS)(self._encode_shared)
        self._head = lru_cache(_KEPT_TEXTS)(lambda text: tuple(self._piece(text, _LINE_START)))
        self._line = lru_cache(_KEPT_LINES)(self._encode_line)
        self._filler = lru_cache(_KEPT_TEXTS)(self._encode_filler)
        self.digits = self._find_digits()

    def prompt(self, reading: Reading) -> Prompt:
        """The token ids of a reading.

        Raises LLMError if the tokenizer has no digits, or not all that the reading is about.
        """
        if not self.digits:
            raise LLMError(self.why_no_digits())
        if reading.largest >= len(self.digits):
            raise LLMError(
                f"the tokenizer of '{self._name}' has no single token for {reading.largest} "
                f"behind a tab; ask about 0 to {len(self.digits) - 1}"
            )
        behind = self._filler(reading.filler)
        rest = list(self._head(reading.head) if reading.shared else self._encode(reading.head))
        rows = []
        for line in reading.lines:
            rest += self._line(line)
            rows.append(len(rest) - 1)
            rest += behind
        return Prompt(self._shared(reading.shared), rest[: rows[-1] + 1], rows)

    def why_no_digits(self) -> str:
        return (
            f"the tokenizer of '{self._name}' has no single tokens for 0 to 9 behind a tab; "
            "choose another simulator"
        )

    def _encode_shared(self, text: str) -> tuple[int, ...]:
        return (*self._lead, *self._encode(text))

    def _encode_line(self, line: str) -> tuple[int, ...]:
        return (*self._piece(line.removesuffix("\t"), _LINE_START), *self._tab)

    def _encode_filler(self, filler: str) -> tuple[int, ...]:
        if not filler:
            return ()
        return (*self._piece(filler, _VALUE_START), *self._piece("\n", _WORD))

    def _find_lead(self) -> list[int]:
        """What the tokenizer puts before a text, such as a BOS."""
        ids, plain = self._tokenizer(_WORD)["input_ids"], self._anchors[_WORD]
        starts = range(len(ids) - len(plain) + 1)
        at = next((i for i in starts if ids[i : i + len(plain)] == plain), 0)
        return ids[:at]

    def _find_digits(self) -> list[int]:
        found = [self._piece(str(value), _VALUE_START) for value in range(11)]
        single = [ids[0] for ids in found if len(ids) == 1]
        if not self._tab or any(len(ids) != 1 for ids in found[:10]) or len(set(single[:10])) < 10:
            return []
        return single

    def _piece(self, text: str, context: str) -> list[int]:
        """The ids of a text as they are behind `context`, one of the anchors, if that can be."""
        for anchor in (context, *_ANCHORS):
            lead = self._anchors[anchor]
            ids = self._encode(anchor + text)
            if lead and ids[: len(lead)] == lead:
                return ids[len(lead) :]
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
