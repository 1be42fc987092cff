"""What a tokenizer puts in front of a text, which is then in front of every excerpt."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from fastexplain.errors import SubjectError

# So long that its tokens don't stand in what is put in front.
_TEXT = "The quick brown fox jumps over the lazy dog, 0123456789 times."


def lead_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token ids that the tokenizer puts before a text unasked; what it puts behind is left out.

    Raises SubjectError if that can't be told, since it encodes the text itself otherwise then.
    """
    plain, whole = (
        list(tokenizer(_TEXT, add_special_tokens=special)["input_ids"]) for special in (False, True)
    )
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain and (plain or not whole):
            return tuple(whole[:start])
    raise SubjectError(
        "what the tokenizer puts before a text can't be told: it encodes a text as "
        f"{whole[:5]}... with special tokens and as {plain[:5]}... without; "
        "make the subject by Subject.from_model and give lead=, the ids before every excerpt"
    )
