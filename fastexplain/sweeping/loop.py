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
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastexplain.errors import RunError, SweepError
from fastexplain.kernels.signs import TOP_A_CLASS, Signs
from fastexplain.kernels.summary import Batch, Preactivations, Summary, smallest_hashes
from fastexplain.progress import Report, reported
from fastexplain.run.checkpoints import Checkpoint, Checkpoints
from fastexplain.run.directory import Run, open_run
from fastexplain.run.regression import Regression
from fastexplain.run.tables import Tables
from fastexplain.run.writing import RunWriter
from fastexplain.subject.causality import check_causal
from fastexplain.subject.model import Subject
from fastexplain.sweeping.batch_size import choose_batch_size
from fastexplain.sweeping.manifest import identities, manifest
from fastexplain.sweeping.prefetch import prefetched
from fastexplain.sweeping.products import TokenNumbers
from fastexplain.sweeping.regression import choose_tables, choose_without
from fastexplain.sweeping.settings import TABLE_BYTES, Settings, check_settings, fuses
from fastexplain.sweeping.summaries import Exemplars, kernel_device, kernel_dtype
from fastexplain.text.corpus import Corpus
from fastexplain.text.kinds import TokenKinds

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
    signs: bool = False,
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
            lookup explainer. A regression under them takes 244 of their rows (fewer where the
            embeddings have under 64 components), where there are four times as many and the
            corpus has 64 counted tokens for each; else there is none.
        compile: compile the model's layers first: a minute at the start, faster on a GPU.
        signs: keep of gated MLPs, whose neurons are f(gate) * up, also what they do by the signs of
            the two: statistics, and exemplars by largest |activation|, a quarter of `top_k` for
            each of the four classes; see `Run.signs`.
        checkpoint_seconds: time between two checkpoints.
        progress: True shows a bar. A function is called with the number of excerpts done, after
            each batch; if it raises KeyboardInterrupt, a checkpoint is saved first.

    Raises:
        UsageError: an argument makes no sense, such as a layer that the subject doesn't have, or
            `signs` of MLPs that are not gated.
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
        signs=signs,
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
    vocabulary = subject.token_bytes()
    kinds = TokenKinds(vocabulary)
    tables, regressors = choose_tables(subject, corpus, settings, kinds)
    ids = np.arange(len(corpus), dtype=np.int32)
    random_ids = smallest_hashes(ids, settings.random, corpus.seed)
    checkpoints = Checkpoints(out, *identities(fingerprint, subject, corpus, settings))
    last = checkpoints.load(settings.batch_size) or empty_start(
        subject, corpus, settings, tables, random_ids
    )
    begun = {own.table_rows for own in last.summaries.values()}
    if regressors is not None and begun - {tables.swept}:
        # A version before began this sweep, without a regression; so does it end.
        tables, regressors = choose_without(corpus, settings, kinds), None
    if any(rows[1] < tables.swept[1] for rows in begun):
        tables = tables.without_situations()  # so did one before that
    settings = replace(settings, batch_size=last.batch_size)
    device = kernel_device(subject.device)
    size = sum(own.nbytes for own in (*last.summaries.values(), *last.signs.values()))
    texts = (corpus.tokens, corpus.documents, corpus.offsets, *corpus.context)
    size += sum(own.nbytes for own in texts)
    size += _BYTES_A_TOKEN * subject.vocabulary_size
    writer.keep_room(size, len(last.summaries) + 2)

    bar = reported(progress, "Sweeping", len(corpus), "excerpts", done=last.done)
    with prepared(subject.device), bar as report:
        exemplars = {
            layer: Exemplars(last.summaries.pop(layer), device, last.signs.pop(layer, None))
            for layer in list(last.summaries)
        }
        numbers = None if regressors is None else TokenNumbers(regressors, device)
        batches = batches_from(corpus, tables, kinds, settings, random_ids, last.done)
        done, started = last.done, time.perf_counter()
        saved = started
        for number, (token_ids, batch) in enumerate(prefetched(batches, device)):
            fold_batch(subject, token_ids, batch, exemplars, settings, numbers)
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
        regression = None
        if regressors is not None:
            regression = Regression.over(regressors, tables, corpus.tokens, settings.skip)
        writer.write_excerpts(corpus, tables, vocabulary, regression)
        for layer in layers:
            if layer in exemplars:
                writer.write_site(
                    str(layer), exemplars[layer].finalize(tables.size[1], tables.regressors)
                )
                del exemplars[layer]
            else:
                writer.take_site(str(layer), last.written)
        writer.write_manifest(manifest(fingerprint, subject, corpus, settings, seconds))
    except RunError as error:
        if error.__cause__ is None:  # no file failed: others have changed the directory
            raise
        writer.give_up_room()
        end = "it goes on from the end of the pass"
        kept = ((layer, own.summary(), own.signs()) for layer, own in exemplars.items())
        try:
            checkpoints.save(len(corpus), seconds, last.batch_size, kept, writer.written())
        except RunError as second:
            end = f"it goes on from the last checkpoint, or else starts again ({second})"
        raise RunError(
            f"{error}; make room if the disk is full, and repeat the command: {end}"
        ) from error
    checkpoints.remove()
    return open_run(out)


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
            table_rows=tables.swept,
            seed=corpus.seed,
        )
        for layer in settings.layers
    }
    signs = {}
    if settings.signs:
        dtype, count = kernel_dtype(subject.dtype), -(-settings.top_k // TOP_A_CLASS)
        signs = {
            layer: Signs.empty(subject.widths[layer], tokens, dtype, exemplars=count)
            for layer in settings.layers
        }
    batch_size = settings.batch_size
    if batch_size is None:
        kept = sum(own.nbytes for own in (*summaries.values(), *signs.values()))
        batch_size = choose_batch_size(subject, settings.layers, tokens, kept)
    return Checkpoint(0, 0.0, batch_size, summaries, signs)


def batches_from(
    corpus: Corpus,
    tables: Tables,
    kinds: TokenKinds,
    settings: Settings,
    random_ids: np.ndarray,
    done: int,
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
                table_rows=tables.swept,
                situation_rows=tables.situation_rows(token_ids, settings.skip, kinds),
            ),
        )


def fold_batch(
    subject: Subject,
    token_ids: torch.Tensor,
    batch: Batch,
    exemplars: dict[int, Exemplars],
    settings: Settings,
    numbers: TokenNumbers | None = None,
) -> None:
    """Run a batch and fold each layer's activations into what is kept of it.

    With `numbers` its sums for a regression are kept too.
    """
    counted = None if numbers is None else numbers.of(token_ids)[:, settings.skip :].contiguous()

    def fold(layer: int, acts: torch.Tensor, pre: Preactivations | None = None) -> None:
        exemplars[layer].update(acts, batch, pre)
        if counted is not None:
            exemplars[layer].add_products(acts, counted)

    if not fuses(subject):
        subject.trunk(token_ids, lambda layer, acts: fold(layer, acts.cpu()), settings.layers)
        return
    subject.trunk(
        token_ids,
        layers=settings.layers,
        fold=fold,
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
    summaries = ((layer, kept.summary(), kept.signs()) for layer, kept in exemplars.items())
    try:
        checkpoints.save(done, seconds, batch_size, summaries)
    except RunError as error:  # a full disk, say: no reason to lose what is in memory
        warnings.warn(f"{error}; the sweep {otherwise}", stacklevel=3)


def _check(exemplars: dict[int, Exemplars]) -> None:
    for layer, kept in exemplars.items():
        if (excerpt := kept.faulty_excerpt()) is not None:
            raise SweepError(
                f"layer {layer} has activations that are not finite (NaN or infinity) on excerpt "
                f"{excerpt}; in half precision try float32, else look at the model's weights"
            )


def prepared(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """What a sweep wants of the process while it runs on a device."""
    if device.type == "cuda":
        return torch.cuda.device(device)  # Numba launches kernels on the current one
    return contextlib.nullcontext()
