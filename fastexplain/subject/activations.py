"""The activations of chosen neurons on a text, for a look at a subject without a sweep.

The text is tokenised as a corpus is, and comes after the subject's lead, as a sweep's excerpts do.
So on the tokens of an excerpt the values are those that a sweep has seen, to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastexplain.errors import UsageError
from fastexplain.notebook import tokens_html
from fastexplain.records import Exemplar, NeuronId, plain_name

if TYPE_CHECKING:
    from fastexplain.subject.model import Subject

_SHOWN = 10  # units in a notebook

Text = str | Sequence[int] | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Activations:
    """What neurons do on a text.

    Attributes:
        tokens: the text's, without the lead before them, none empty; a character that is cut over
            several stands with the last, and U+FFFD in its place with the others.
        token_ids: int64 `[tokens]`.
        units: the neurons, in the order in which they were named.
        values: float32 `[tokens, units]`.
    """

    tokens: list[str]
    token_ids: np.ndarray = field(repr=False)
    units: list[NeuronId]
    values: np.ndarray

    def _repr_html_(self) -> str:
        """The text once for each of the first units, as a notebook shows it."""
        lines = []
        for unit, column in zip(self.units[:_SHOWN], self.values.T, strict=False):
            text = tokens_html(self.tokens, column, min(column.min(), 0), max(column.max(), 0))
            lines.append(f"<p><b>{unit}</b>&emsp;{text}</p>")
        more = len(self.units) - len(lines)
        return f"<div>{''.join(lines)}{f'<p>and {more:,} more</p>' if more else ''}</div>"


def activations_of(
    subject: Subject, text: Text, names: str | NeuronId | Iterable[str | NeuronId]
) -> Activations:
    """The activations of a subject's neurons on a text; see `Subject.activations`."""
    ids = token_ids(subject, text)
    if subject.longest is not None and len(ids) > subject.longest:
        raise UsageError(
            f"the text has {len(ids):,} tokens, but the subject takes {subject.longest:,} at "
            "most; shorten it"
        )
    units = list(dict.fromkeys(_units(subject, names)))
    if not units:
        raise UsageError("no neurons are named; name some, such as 5:131, or 5:* for a layer")
    values = np.empty((len(ids), len(units)), np.float32)
    layers = np.array([unit.layer for unit in units])
    indices = np.array([unit.index for unit in units])

    def keep(layer: int, acts: Tensor) -> None:
        wanted = torch.from_numpy(indices[layers == layer]).to(acts.device)
        values[:, layers == layer] = acts[0, len(subject.lead) :, wanted].float().cpu().numpy()

    subject.trunk(torch.from_numpy(ids)[None], keep, np.unique(layers).tolist())
    return Activations(subject.token_texts(ids.tolist()), ids, units, values)


def activations_at(
    subject: Subject,
    tokens: np.ndarray,
    units: Sequence[NeuronId],
    excerpts: np.ndarray,
    batch_size: int = 32,
) -> np.ndarray:
    """The activations of many neurons, each on some of many excerpts; each excerpt is run once.

    Args:
        tokens: int `[excerpts, T]`, without the lead.
        units: the N neurons.
        excerpts: int `[N, E]`, rows of `tokens` for each neuron; -1 for none.
        batch_size: excerpts in a forward pass.

    Returns:
        float32 `[N, E, T]`; NaN where there is no excerpt.
    """
    values = np.full((*excerpts.shape, tokens.shape[1]), np.nan, np.float32)
    layers = np.array([unit.layer for unit in units])
    indices = np.array([unit.index for unit in units])
    for start in range(0, len(tokens), batch_size):
        batch = tokens[start : start + batch_size]
        inside = (excerpts >= start) & (excerpts < start + len(batch))

        def keep(layer: int, acts: Tensor, start: int = start, inside: Any = inside) -> None:
            unit, place = np.nonzero(inside & (layers == layer)[:, None])
            rows, columns = (
                torch.from_numpy(each).to(acts.device)
                for each in (excerpts[unit, place].astype(np.int64) - start, indices[unit])
            )
            found = acts[rows, len(subject.lead) :, columns]
            values[unit, place] = found.float().cpu().numpy()

        wanted = np.unique(layers[inside.any(axis=1)]).tolist()
        subject.trunk(torch.from_numpy(np.array(batch)), keep, wanted)
    return values


def exemplars_on(
    subject: Subject, texts: Sequence[str], units: Sequence[NeuronId], longest: int
) -> list[Exemplar]:
    """Texts of one's own as exemplars, each of one neuron; they are run together.

    Args:
        texts: N of them, each with some text; what is behind `longest` tokens is cut off.
        units: the N neurons, one for each text.

    Returns:
        N exemplars, with -1 as their excerpt's id.
    """
    ids = [token_ids(subject, text)[:longest] for text in texts]
    # A model looks back only, so what stands behind a text does not change it.
    tokens = np.zeros((len(ids), max(map(len, ids), default=0)), np.int64)
    for row, own in zip(tokens, ids, strict=True):
        row[: len(own)] = own
    values = activations_at(subject, tokens, units, np.arange(len(ids))[:, None])[:, 0]
    return [
        Exemplar(-1, own.astype(np.int32), subject.token_texts(own.tolist()), row[: len(own)])
        for own, row in zip(ids, values, strict=True)
    ]


def token_ids(subject: Subject, text: Text) -> np.ndarray:
    """The text's token ids, int64 `[tokens]`, without the lead, which the subject adds.

    Raises UsageError for a text that can't be one, or has no tokens; it may be of any length.
    """
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:  # of an argument in another encoding
            raise UsageError("the text is not UTF-8; convert it first") from error
        text = subject.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
    ids = np.asarray(text.cpu() if isinstance(text, Tensor) else text)
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise UsageError(
            f"a text is a string or the token ids of one, not {ids.dtype} {list(ids.shape)}"
        )
    lead = len(subject.lead)
    if lead and ids[:lead].tolist() == list(subject.lead):
        ids = ids[lead:]
    if not len(ids):
        raise UsageError("the text has no tokens; give some text")
    if ids.min() < 0 or ids.max() >= subject.vocabulary_size:
        raise UsageError(
            f"the text has token ids {ids.min()} to {ids.max()}, the subject 0 to "
            f"{subject.vocabulary_size - 1}; use the subject's own tokenizer"
        )
    return ids.astype(np.int64)


def _units(
    subject: Subject, names: str | NeuronId | Iterable[str | NeuronId]
) -> Iterator[NeuronId]:
    for name in [names] if isinstance(names, str | NeuronId) else names:
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9}|\*)", plain_name(str(name)))
        if match is None:
            raise UsageError(
                f"'{name}' does not name neurons; write layer:index, as in 5:131, or 5:* for all "
                "of a layer"
            )
        layer = int(match[1])
        if layer >= len(subject.widths):
            raise UsageError(
                f"layer {layer} does not exist; '{subject.name}' has layers 0 to "
                f"{len(subject.widths) - 1}"
            )
        width = subject.widths[layer]
        if match[2] == "*":
            yield from (NeuronId(layer, index) for index in range(width))
        elif int(match[2]) < width:
            yield NeuronId(layer, int(match[2]))
        else:
            raise UsageError(
                f"there is no neuron {layer}:{match[2]}; layer {layer} has neurons {layer}:0 to "
                f"{layer}:{width - 1}"
            )
