"""A sweep's settings: what may be asked of a subject and a corpus, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.kernels.summary import MOST_ON_DEVICE
from fastexplain.subject.model import Subject
from fastexplain.sweeping.summaries import kernel_device
from fastexplain.text.corpus import Corpus

TABLE_BYTES = 2**30
"""Memory for all layers' tables together."""

_MOST_KEPT = 1_000_000  # exemplars of a neuron: more are a mistake in writing
_NAMED = 5  # tokens that a message names


@dataclass(frozen=True)
class Settings:
    """A sweep's settings, checked, and with the defaults filled in."""

    layers: list[int]
    widths: list[int]
    top_k: int
    random: int
    bottom: bool
    batch_size: int | None
    skip: int
    table_rows: int
    compile: bool
    signs: bool = False


def check_settings(
    subject: Subject,
    corpus: Corpus,
    *,
    layers: Sequence[int] | None,
    batch_size: int | None,
    skip: int | None,
    table_bytes: int,
    top_k: int,
    random: int,
    bottom: bool,
    compile: bool,
    signs: bool = False,
) -> Settings:
    if not isinstance(corpus, Corpus):
        raise UsageError("the corpus is no Corpus; make one, for example by Corpus.from_texts")
    if isinstance(layers, int | str):
        raise UsageError(f"`layers` is {layers!r}; give numbers, such as [0, 5] or range(6)")
    count, length = len(subject.widths), corpus.tokens.shape[1]
    asked = range(count) if layers is None else layers
    unknown = next((layer for layer in asked if layer not in range(count)), None)
    if unknown is not None or not len(asked):
        which = "no layer is chosen" if unknown is None else f"layer {unknown} is not there"
        raise UsageError(f"{which}; {subject.name} has layers 0 to {count - 1}")
    chosen = sorted(set(asked))
    skip = (0 if subject.lead else 1) if skip is None else skip
    least = {"top_k": (top_k, 1), "random": (random, 0), "batch_size": (batch_size, 1),
             "table_bytes": (table_bytes, 0)}  # fmt: skip
    for name, (value, minimum) in least.items():
        if value is not None and value < minimum:
            raise UsageError(f"`{name}` is {value}; it must be at least {minimum}")
    for name, value in (("top_k", top_k), ("random", random)):
        if value > _MOST_KEPT:
            raise UsageError(f"`{name}` is {value}; it must be at most {_MOST_KEPT:,}")
    if subject.device.type == "cuda" and top_k > MOST_ON_DEVICE and fuses(subject):
        raise UsageError(f"`top_k` is {top_k}; on a GPU it can be {MOST_ON_DEVICE} at most")
    if not 0 <= skip < length:
        raise UsageError(f"`skip` is {skip}; it must be from 0 to {length - 1}")
    if subject.longest is not None and length > subject.longest:
        raise UsageError(
            f"excerpts have {length} tokens, but {subject.name} takes {subject.longest} at most"
            + (f" after the {len(subject.lead)} that go before them" if subject.lead else "")
            + "; make the corpus with excerpts that fit, by the argument `tokens` of Corpus"
        )
    low, high = int(corpus.tokens.min()), int(corpus.tokens.max())
    if low < 0 or high >= subject.vocabulary_size:
        raise UsageError(
            f"the corpus has tokens {low} to {high}, but {subject.name} has embeddings of 0 to "
            f"{subject.vocabulary_size - 1}{_names_past(subject, corpus)}; make the corpus with "
            "the subject's own tokenizer, or resize the embeddings if tokens were added to it"
        )
    if compile and not fuses(subject):
        raise UsageError(
            "`compile` is for a subject on the CPU, or on a GPU that the kernels run on too; "
            "fastexplain doctor says why they don't"
        )
    if signs:
        _check_factors(subject, chosen)
    widths = [subject.widths[layer] for layer in chosen]
    row = sum(widths) * np.dtype(np.float32).itemsize
    if 0 < table_bytes < row:
        raise UsageError(
            f"`table_bytes` is {table_bytes}; a row of the tables takes {row} bytes: give more, "
            "or 0 for no tables"
        )
    rows = table_bytes // row
    return Settings(chosen, widths, top_k, random, bottom, batch_size, skip, rows, compile, signs)


def _check_factors(subject: Subject, layers: list[int]) -> None:
    """Raise UsageError unless the kernels see both factors of all of these layers' neurons."""
    if not fuses(subject):
        raise UsageError(
            "`signs` is for a subject on the CPU, or on a GPU that the kernels run on too; "
            "fastexplain doctor says why they don't"
        )
    lacking: dict[str, list[int]] = {}
    for layer in layers:
        if (why := subject.why_no_factors(layer)) is not None:
            lacking.setdefault(why, []).append(layer)
    if lacking:
        found = "; ".join(f"in {_named(own, layers)}, {why}" for why, own in lacking.items())
        raise UsageError(
            f"`signs` is for MLPs whose neurons are f(gate) * up, and {subject.name} has others: "
            f"{found}; leave `signs` out, or choose `layers` that have both"
        )


def _named(some: list[int], layers: list[int]) -> str:
    """Some of the layers by their numbers, as a message has them."""
    if some == layers:
        return "each layer"
    return f"layer{'s' if len(some) > 1 else ''} {', '.join(map(str, some))}"


def _names_past(subject: Subject, corpus: Corpus) -> str:
    """The first tokens past the embeddings by name, where the subject's tokenizer has them."""
    past = np.unique(corpus.tokens[corpus.tokens >= subject.vocabulary_size]).tolist()
    known = [token for token in past if token < len(subject.tokenizer)]
    names = subject.tokenizer.convert_ids_to_tokens(known[:_NAMED])
    shown = ", ".join(f"'{name}' is {token}" for name, token in zip(names, known, strict=False))
    return f" ({shown}{', ...' if len(known) > _NAMED else ''})" if shown else ""


def fuses(subject: Subject) -> bool:
    """Whether the kernels run where the activations are."""
    return kernel_device(subject.device).type == subject.device.type
