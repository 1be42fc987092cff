"""The one pass of a corpus through a subject that fills every neuron's exemplars and statistics.

1. Choose the tables' rows and the random excerpts; make an empty summary for each layer.
2. For every batch of excerpts, in order of their ids, run the subject's trunk; each layer's
   activations are computed and folded into that layer's summary in one pass, and are gone.
3. Now and then save what there is, so that the same sweep can go on from there.
4. Write each layer's file, then the manifest, which makes the directory a run.

`bench/ways.py` times steps 1 and 2 by these very functions.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastexplain.errors import RunError, SweepError, UsageError
from fastexplain.kernels.summary import MOST_ON_DEVICE, Batch, Summary, smallest_hashes
from fastexplain.progress import Report, reported
from fastexplain.records import Site
from fastexplain.run.checkpoints import Checkpoint, Checkpoints
from fastexplain.run.directory import Run, open_run
from fastexplain.run.tables import Tables
from fastexplain.run.writing import RunWriter
from fastexplain.subject.causality import check_causal
from fastexplain.subject.fingerprint import sampled
from fastexplain.subject.model import Subject
from fastexplain.sweeping.batch_size import choose_batch_size
from fastexplain.sweeping.prefetch import prefetched
from fastexplain.sweeping.summaries import Exemplars, kernel_device, kernel_dtype
from fastexplain.text.corpus import Corpus
from fastexplain.version import __version__

TABLE_BYTES = 2**30
"""Memory for all layers' tables together."""

_MOST_KEPT = 1_000_000  # exemplars of a neuron: more are a mistake in writing
_NAMED = 5  # tokens that a message names

# Seconds between two checkpoints. SmolLM2's take about 2 GB and 3 s to write.
_CHECKPOINT_SECONDS = 600.0
# Of the vocabulary in a run's file: its text and an end.
_BYTES_A_TOKEN = 16
# Batches between two looks for activations that are not finite: a look waits for the device.
_BATCHES_A_CHECK = 32


def sweep(
    subject: Subject,
    corpus: Corpus,
    out: str | Path,
    *,
    top_k: int = 20,
    random: int = 25,
    bottom: bool = False,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    skip: int | None = None,
    table_bytes: int = TABLE_BYTES,
    compile: bool = False,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    progress: bool | Report | None = None,
) -> Run:
    """Sweep a corpus through a subject and write a run.

    Args:
        subject: from `load_subject`.
        corpus: tokenised with the subject's tokenizer.
        out: directory of the run, new or empty. If it holds an unfinished sweep with the same
            settings, that one goes on from its last checkpoint.
        top_k: exemplars a neuron by largest activation, and with `bottom` as many by smallest.
        random: exemplars that all neurons share, drawn with the corpus's seed.
        layers: those to explain; all by default.
        batch_size: excerpts in a forward pass. By default what an unfinished sweep had, else a
            power of two by the memory that is free: up to 1,024 on a GPU and 64 elsewhere.
        skip: tokens at the start of each excerpt that count for nothing. By default 0 where the
            subject's tokenizer puts something before a text, such as a BOS token, else 1: models of
            the Llama kind put enormous activations on whatever comes first (an attention sink).
        table_bytes: memory for the tables of all layers; 0 leaves them out, and with them the
            lookup explainer.
        compile: compile the model's layers first: a minute at the start, faster on a GPU.
        checkpoint_seconds: time between two checkpoints.
        progress: True shows a bar. A function is called with the number of excerpts done, after
            each batch; if it raises KeyboardInterrupt, a checkpoint is saved first.

    Raises:
        UsageError: an argument makes no sense, such as a layer that the subject doesn't have.
        RunError: `out` can't be written, or holds something already.
        SubjectError: the model's layers can't be compiled.
        SweepError: activations are not finite; says at which layer and excerpt.
    """
    settings = check_settings(
        subject,
        corpus,
        top_k=top_k,
        random=random,
        bottom=bottom,
        layers=layers,
        batch_size=batch_size,
        skip=skip,
        table_bytes=table_bytes,
        compile=compile,
    )
    check_causal(subject)
    with RunWriter(out) as writer:
        return _swept(subject, corpus, out, settings, writer, checkpoint_seconds, progress)


def _swept(
    subject: Subject,
    corpus: Corpus,
    out: str | Path,
    settings: Settings,
    writer: RunWriter,
    checkpoint_seconds: float,
    progress: bool | Report | None,
) -> Run:
    """The sweep itself, once its settings are checked and the directory is its own."""
    layers = settings.layers
    fingerprint = subject.fingerprint()
    tables = Tables.choose(corpus.tokens, skip=settings.skip, rows=settings.table_rows)
    ids = np.arange(len(corpus), dtype=np.int32)
    random_ids = smallest_hashes(ids, settings.random, corpus.seed)
    identities = [
        _identity(each, lead, subject, corpus, settings)
        for each, lead in [(fingerprint, list(subject.lead)), *_former(subject)]
    ]
    checkpoints = Checkpoints(out, *identities)
    last = checkpoints.load(settings.batch_size) or empty_start(
        subject, corpus, settings, tables, random_ids
    )
    settings = replace(settings, batch_size=last.batch_size)
    device = kernel_device(subject.device)
    size = sum(summary.nbytes for summary in last.summaries.values())
    size += sum(own.nbytes for own in (corpus.tokens, corpus.documents, corpus.offsets))
    size += _BYTES_A_TOKEN * subject.vocabulary_size
    writer.keep_room(size, len(last.summaries) + 2)

    bar = reported(progress, "Sweeping", len(corpus), "excerpts", done=last.done)
    with prepared(subject.device), bar as report:
        exemplars = {
            layer: Exemplars(last.summaries.pop(layer), device) for layer in list(last.summaries)
        }
        batches = batches_from(corpus, tables, settings, random_ids, last.done)
        done, started = last.done, time.perf_counter()
        saved = started
        for number, (token_ids, batch) in enumerate(prefetched(batches, device)):
            fold_batch(subject, token_ids, batch, exemplars, settings)
            done += len(token_ids)
            seconds = last.seconds + time.perf_counter() - started
            due = done < len(corpus) and time.perf_counter() - saved >= checkpoint_seconds
            if due or number % _BATCHES_A_CHECK == 0:
                _check(exemplars)
            if due:
                _save(checkpoints, done, seconds, last.batch_size, exemplars, "goes on without it")
                saved = time.perf_counter()
            try:
                report(done)
            except KeyboardInterrupt:  # between batches, so that no layer is ahead of another
                _check(exemplars)
                _save(checkpoints, done, seconds, last.batch_size, exemplars, "ends without it")
                raise
        _check(exemplars)
        seconds = last.seconds + time.perf_counter() - started

    try:
        writer.write_excerpts(corpus, tables, subject.token_bytes())
        for layer in layers:
            if layer in exemplars:
                writer.write_site(str(layer), exemplars[layer].finalize())
                del exemplars[layer]
            else:
                writer.take_site(str(layer), last.written)
        writer.write_manifest(_manifest(fingerprint, subject, corpus, settings, seconds))
    except RunError as error:
        if error.__cause__ is None:  # no file failed: others have changed the directory
            raise
        writer.give_up_room()
        end = "it goes on from the end of the pass"
        kept = ((layer, own.summary()) for layer, own in exemplars.items())
        try:
            checkpoints.save(len(corpus), seconds, last.batch_size, kept, writer.written())
        except RunError as second:
            end = f"it goes on from the last checkpoint, or else starts again ({second})"
        raise RunError(
            f"{error}; make room if the disk is full, and repeat the command: {end}"
        ) from error
    checkpoints.remove()
    return open_run(out)


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
    if subject.device.type == "cuda" and top_k > MOST_ON_DEVICE and _fuses(subject):
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
    if compile and not _fuses(subject):
        raise UsageError(
            "`compile` is for a subject on the CPU, or on a GPU that the kernels run on too; "
            "fastexplain doctor says why they don't"
        )
    widths = [subject.widths[layer] for layer in chosen]
    rows = table_bytes // (sum(widths) * np.dtype(np.float32).itemsize)
    return Settings(chosen, widths, top_k, random, bottom, batch_size, skip, rows, compile)


def _names_past(subject: Subject, corpus: Corpus) -> str:
    """The first tokens past the embeddings by name, where the subject's tokenizer has them."""
    past = np.unique(corpus.tokens[corpus.tokens >= subject.vocabulary_size]).tolist()
    known = [token for token in past if token < len(subject.tokenizer)]
    names = subject.tokenizer.convert_ids_to_tokens(known[:_NAMED])
    shown = ", ".join(f"'{name}' is {token}" for name, token in zip(names, known, strict=False))
    return f" ({shown}{', ...' if len(known) > _NAMED else ''})" if shown else ""


def _former(subject: Subject) -> Iterator[tuple[str, int | None]]:
    """Fingerprint and BOS by which versions before sha256-full named the subject of a sweep."""
    if len(subject.lead) <= 1:
        yield sampled(subject.model), next(iter(subject.lead), None)


def _identity(
    fingerprint: str,
    lead: list[int] | int | None,
    subject: Subject,
    corpus: Corpus,
    settings: Settings,
) -> dict[str, Any]:
    """All that a sweep's results depend on, to the last bit, but the batch size."""
    kept = asdict(settings)
    del kept["batch_size"]
    return {
        "subject": [fingerprint, lead, str(subject.dtype), str(subject.device)],
        "corpus": [corpus.fingerprint, corpus.seed],
        "settings": kept,
        "versions": _versions(),
    }


def empty_start(
    subject: Subject,
    corpus: Corpus,
    settings: Settings,
    tables: Tables,
    random_ids: np.ndarray,
) -> Checkpoint:
    """Where a sweep begins: empty summaries, and a batch size by the memory that they leave."""
    tokens = corpus.tokens.shape[1]
    summaries = {
        layer: Summary.empty(
            subject.widths[layer],
            tokens,
            kernel_dtype(subject.dtype),
            top=settings.top_k,
            bottom=settings.top_k if settings.bottom else 0,
            random_ids=random_ids,
            table_rows=tables.size,
            seed=corpus.seed,
        )
        for layer in settings.layers
    }
    batch_size = settings.batch_size
    if batch_size is None:
        kept = sum(summary.nbytes for summary in summaries.values())
        batch_size = choose_batch_size(subject, settings.layers, tokens, kept)
    return Checkpoint(0, 0.0, batch_size, summaries)


def batches_from(
    corpus: Corpus, tables: Tables, settings: Settings, random_ids: np.ndarray, done: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Token ids `[B, T]` and the rest of each batch, in order of excerpts, from `done` on."""
    assert settings.batch_size is not None
    for start in range(done, len(corpus), settings.batch_size):
        token_ids = np.array(corpus.tokens[start : start + settings.batch_size])
        ids = np.arange(start, start + len(token_ids), dtype=np.int32)
        yield (
            token_ids,
            Batch.make(
                ids,
                *tables.rows(token_ids),
                skip=settings.skip,
                random_ids=random_ids,
                table_rows=tables.size,
            ),
        )


def fold_batch(
    subject: Subject,
    token_ids: torch.Tensor,
    batch: Batch,
    exemplars: dict[int, Exemplars],
    settings: Settings,
) -> None:
    """Run a batch and fold each layer's activations into what is kept of it."""
    if not _fuses(subject):
        subject.trunk(
            token_ids,
            lambda layer, acts: exemplars[layer].update(acts.cpu(), batch),
            settings.layers,
        )
        return
    subject.trunk(
        token_ids,
        layers=settings.layers,
        fold=lambda layer, acts, pre: exemplars[layer].update(acts, batch, pre),
        # The last batch may be smaller, and compiling for it takes longer than running it.
        compiled=settings.compile and len(token_ids) == settings.batch_size,
    )


def _save(
    checkpoints: Checkpoints,
    done: int,
    seconds: float,
    batch_size: int,
    exemplars: dict[int, Exemplars],
    otherwise: str,
) -> None:
    """Save a checkpoint; where that fails, warn that the sweep does otherwise."""
    summaries = ((layer, kept.summary()) for layer, kept in exemplars.items())
    try:
        checkpoints.save(done, seconds, batch_size, summaries)
    except RunError as error:  # a full disk, say: no reason to lose what is in memory
        warnings.warn(f"{error}; the sweep {otherwise}", stacklevel=3)


def _manifest(
    fingerprint: str, subject: Subject, corpus: Corpus, settings: Settings, seconds: float
) -> dict[str, Any]:
    chosen = asdict(settings)
    counted = corpus.tokens.size - len(corpus) * settings.skip
    sites = zip(chosen.pop("layers"), chosen.pop("widths"), strict=True)
    return {
        "subject": {
            "name": subject.name,
            "revision": subject.revision,
            "fingerprint": fingerprint,
            "architecture": type(subject.model).__name__,
            "dtype": str(subject.dtype).removeprefix("torch."),
            "device": str(subject.device),
            "lead": list(subject.lead),
            "layers": len(subject.widths),
        },
        "corpus": {
            "sources": list(corpus.sources),
            "fingerprint": corpus.fingerprint,
            "excerpts": len(corpus),
            "available": corpus.available,
            "seed": corpus.seed,
        },
        "sites": [asdict(Site(str(layer), "mlp", width, counted)) for layer, width in sites],
        "settings": chosen,
        "sweep": {
            "neurons": sum(settings.widths),
            "excerpts": len(corpus),
            "tokens": corpus.tokens.size,
            "seconds": seconds,
            "tokens_per_second": corpus.tokens.size / seconds,
        },
        "versions": _versions(),
    }


def _check(exemplars: dict[int, Exemplars]) -> None:
    for layer, kept in exemplars.items():
        if (excerpt := kept.faulty_excerpt()) is not None:
            raise SweepError(
                f"layer {layer} has activations that are not finite (NaN or infinity) on excerpt "
                f"{excerpt}; in half precision try float32, else look at the model's weights"
            )


def _fuses(subject: Subject) -> bool:
    """Whether the kernels run where the activations are."""
    return kernel_device(subject.device).type == subject.device.type


def prepared(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """What a sweep wants of the process while it runs on a device."""
    if device.type == "cuda":
        return torch.cuda.device(device)  # Numba launches kernels on the current one
    return contextlib.nullcontext()


def _versions() -> dict[str, str]:
    """Of Python and of what the results depend on; ours also where it was never installed."""
    names = ("torch", "transformers", "numba", "numpy")
    return {
        "python": platform.python_version(),
        "fastexplain": __version__,
        **{name: importlib.metadata.version(name) for name in names},
    }
