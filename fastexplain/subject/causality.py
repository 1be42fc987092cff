"""Whether a model looks ahead: then activations in an excerpt depend on what follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastexplain.errors import SubjectError

if TYPE_CHECKING:
    from fastexplain.subject.model import Subject

# Short, so that the last token weighs much in attention.
_TOKENS = 8
# Units of rounding that two runs of the same numbers may differ by, as a share of the largest.
_ROUNDINGS = 16


def check_causal(subject: Subject) -> None:
    """Raise SubjectError if a token changes activations before it; takes one short pass.

    Three excerpts are alike but for the last token of the third. What the first two differ by is
    how far the model repeats itself.
    """
    low, high = subject.vocabulary_size // 3, subject.vocabulary_size - 1
    row = torch.arange(_TOKENS) * max(high // _TOKENS, 1) % (high + 1)
    ids = row.repeat(3, 1)
    ids[2, -1] = low if row[-1] != low else high

    def compare(layer: int, acts: Tensor) -> None:
        before = acts[:, : len(subject.lead) + _TOKENS - 1].float()
        repeated, moved = ((before[0] - each).abs().max() for each in before[1:])
        rounding = torch.finfo(subject.dtype).eps * before[0].abs().max()
        if moved > 4 * repeated + _ROUNDINGS * rounding:
            raise SubjectError(
                f"{type(subject.model).__name__} looks ahead: in layer {layer} activations move by "
                f"up to {moved:.2g} when a later token is changed; choose a model that reads from "
                "left to right alone"
            )

    subject.trunk(ids, compare)
