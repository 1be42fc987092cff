"""The one pass of a corpus through a subject that fills every neuron's exemplars and statistics.

1. Choose the tables' rows and the random excerpts; make an empty summary for each layer.
2. For every batch of excerpts, in order of their ids, run the subject's trunk; each layer's
   activations are folded into that layer's summary where they are, and are gone.
3. Now and then save what there is, so that the same sweep can go on from there.
4. Write each layer's file, then the manifest, which makes the directory a run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastexplain.checkpoints import Checkpoint, Checkpoints
from fastexplain.corpus import Corpus
from fastexplain.errors import RunError, SweepError, UsageError
from fastexplain.exemplars import Exemplars, kernel_dtype, on_device
from fastexplain.kernels.summary import Batch, Summary, smallest_hashes
from fastexplain.run import Run, RunWriter, open_run
from fastexplain.subject import Subject
from fastexplain.tables import Tables

TABLE_BYTES = 2**30
"""Memory for all layers' tables together."""

# Excerpts a batch: on 2 cores 32 to 128 run alike; a GPU wants more work in each launch.
_BATCH = {"cpu": 64, "mps": 64, "cuda": 512}
# Seconds between two checkpoints. SmolLM2's take about 2 GB and 3 s to write.
_CHECKPOINT_SECONDS = 600.0
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
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    progress: Callable[[int], None] | None = None,
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
        batch_size: excerpts in a forward pass.
        skip: tokens at the start of each excerpt that count for nothing. By default 0 where the
            subject prepends a BOS token, else 1: models of the Llama kind put enormous
            activations on whatever comes first (an attention sink).
        table_bytes: memory for the tables of all layers; 0 leaves them out, and with them the
            lookup explainer.
        checkpoint_seconds: time between two checkpoints.
        progress: called with the number of excerpts done, after each batch. If it raises
            KeyboardInterrupt, a checkpoint is saved first.

    Raises:
        UsageError: an argument makes no sense, such as a layer that the subject doesn't have.
        RunError: `out` can't be written, or holds something already.
        SweepError: activations are not finite; says at which layer and excerpt.
    """
    settings = _settings(
        subject,
        corpus,
        top_k=top_k,
        random=random,
        bottom=bottom,
        layers=layers,
        batch_size=batch_size,
        skip=skip,
        table_bytes=table_bytes,
    )
    skip, layers, batch_size = settings.skip, settings.layers, settings.batch_size
    writer = RunWriter(out)
    tables = Tables.choose(corpus.tokens, skip=skip, rows=settings.table_rows)
    random_ids = smallest_hashes(np.arange(len(corpus), dtype=np.int32), random, corpus.seed)
    checkpoints = Checkpoints(out, _identity(subject, corpus, settings))
    last = checkpoints.load() or Checkpoint(
        0,
        0.0,
        {layer: _empty(subject, corpus, settings, layer, tables, random_ids) for layer in layers},
    )
    device = _kernel_device(subject.device)
    exemplars = {layer: Exemplars(last.summaries.pop(layer), device) for layer in layers}

    started = saved = time.perf_counter()
    for number, start in enumerate(range(last.done, len(corpus), batch_size)):
        token_ids = np.array(corpus.tokens[start : start + batch_size])
        done = start + len(token_ids)
        ids = np.arange(start, done, dtype=np.int32)
        batch = on_device(
            Batch.make(ids, *tables.rows(token_ids), skip=skip, random_ids=random_ids), device
        )

        def fold(layer: int, acts: torch.Tensor, batch: Batch = batch) -> None:
            exemplars[layer].update(acts.to(device), batch)

        subject.trunk(torch.from_numpy(token_ids), fold, layers)
        due = done < len(corpus) and time.perf_counter() - saved >= checkpoint_seconds
        if due or number % _BATCHES_A_CHECK == 0:
            _check(exemplars)
        if due:
            _save(checkpoints, done, last.seconds + time.perf_counter() - started, exemplars)
            saved = time.perf_counter()
        if progress is not None:
            try:
                progress(done)
            except KeyboardInterrupt:  # between batches, so that no layer is ahead of another
                _check(exemplars)
                _save(checkpoints, done, last.seconds + time.perf_counter() - started, exemplars)
                raise
    _check(exemplars)
    seconds = last.seconds + time.perf_counter() - started

    writer.write_excerpts(corpus, tables, subject.token_bytes())
    for layer in layers:
        writer.write_layer(layer, exemplars.pop(layer).finalize())
    writer.write_manifest(_manifest(subject, corpus, settings, seconds))
    checkpoints.remove()
    return open_run(out)


@dataclass(frozen=True)
class _Settings:
    """A sweep's settings, checked, and with the defaults filled in."""

    layers: list[int]
    widths: list[int]
    top_k: int
    random: int
    bottom: bool
    batch_size: int
    skip: int
    table_rows: int


def _settings(
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
) -> _Settings:
    count, length = len(subject.widths), corpus.tokens.shape[1]
    chosen = list(range(count)) if layers is None else sorted(set(layers))
    unknown = [layer for layer in chosen if not 0 <= layer < count]
    if unknown or not chosen:
        which = f"layer {unknown[0]} is not there" if unknown else "no layer is chosen"
        raise UsageError(f"{which}; {subject.name} has layers 0 to {count - 1}")
    skip = (0 if subject.bos is not None else 1) if skip is None else skip
    batch_size = _BATCH[subject.device.type] if batch_size is None else batch_size
    least = {"top_k": (top_k, 1), "random": (random, 0), "batch_size": (batch_size, 1),
             "table_bytes": (table_bytes, 0)}  # fmt: skip
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise UsageError(f"{name} is {value}; it must be at least {minimum}")
    if not 0 <= skip < length:
        raise UsageError(f"skip is {skip}; it must be from 0 to {length - 1}")
    low, high = int(corpus.tokens.min()), int(corpus.tokens.max())
    if low < 0 or high >= subject.vocabulary_size:
        raise UsageError(
            f"the corpus has tokens {low} to {high}, the subject 0 to "
            f"{subject.vocabulary_size - 1}; make the corpus with the subject's own tokenizer"
        )
    widths = [subject.widths[layer] for layer in chosen]
    rows = table_bytes // (sum(widths) * np.dtype(np.float32).itemsize)
    return _Settings(chosen, widths, top_k, random, bottom, batch_size, skip, rows)


def _identity(subject: Subject, corpus: Corpus, settings: _Settings) -> dict[str, Any]:
    """All that a sweep's results depend on, to the last bit."""
    return {
        "subject": [subject.fingerprint(), subject.bos, str(subject.dtype), str(subject.device)],
        "corpus": [corpus.fingerprint, corpus.seed],
        "settings": asdict(settings),
        "versions": _versions(),
    }


def _empty(
    subject: Subject,
    corpus: Corpus,
    settings: _Settings,
    layer: int,
    tables: Tables,
    random_ids: np.ndarray,
) -> Summary:
    return Summary.empty(
        subject.widths[layer],
        corpus.tokens.shape[1],
        kernel_dtype(subject.dtype),
        top=settings.top_k,
        bottom=settings.top_k if settings.bottom else 0,
        random_ids=random_ids,
        table_rows=(len(tables.tokens), len(tables.pairs)),
        seed=corpus.seed,
    )


def _save(
    checkpoints: Checkpoints, done: int, seconds: float, exemplars: dict[int, Exemplars]
) -> None:
    try:
        checkpoints.save(done, seconds, ((i, kept.summary()) for i, kept in exemplars.items()))
    except RunError as error:  # a full disk, say: no reason to lose what is in memory
        warnings.warn(f"{error}; the sweep goes on without it", stacklevel=3)


def _manifest(
    subject: Subject, corpus: Corpus, settings: _Settings, seconds: float
) -> dict[str, Any]:
    return {
        "subject": {
            "name": subject.name,
            "revision": subject.revision,
            "fingerprint": subject.fingerprint(),
            "architecture": type(subject.model).__name__,
            "dtype": str(subject.dtype).removeprefix("torch."),
            "device": str(subject.device),
            "bos": subject.bos,
            "layers": len(subject.widths),
        },
        "corpus": {
            "sources": list(corpus.sources),
            "fingerprint": corpus.fingerprint,
            "excerpts": len(corpus),
            "available": corpus.available,
            "seed": corpus.seed,
        },
        "settings": asdict(settings),
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
                f"{excerpt}; half precision may have overflowed (try float32), or the model is "
                "damaged"
            )


def _kernel_device(device: torch.device) -> torch.device:
    """Where the kernels run: on the subject's GPU if they can, else on the CPU."""
    if device.type == "cuda" and importlib.util.find_spec("numba_cuda"):
        return device
    return torch.device("cpu")


def _versions() -> dict[str, str]:
    names = ("fastexplain", "torch", "transformers", "numba", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


class _CallableModule(ModuleType):
    """`fastexplain.sweep` is this module and the function in it: importing one sets the other."""

    def __call__(self, *args: Any, **kwargs: Any) -> Run:
        return sweep(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
