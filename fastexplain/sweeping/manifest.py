"""What a run says of its sweep, and what tells one sweep from another."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from fastexplain.records import Site
from fastexplain.subject.fingerprint import sampled
from fastexplain.subject.model import Subject
from fastexplain.sweeping.settings import Settings
from fastexplain.text.corpus import Corpus
from fastexplain.version import __version__


def identities(
    fingerprint: str, subject: Subject, corpus: Corpus, settings: Settings
) -> list[dict[str, Any]]:
    """The sweep's identity, and those that earlier versions gave the same sweep."""
    return [
        _identity(each, lead, subject, corpus, settings)
        for each, lead in [(fingerprint, list(subject.lead)), *_former(subject)]
    ]


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
    if not settings.signs:  # as versions had it that knew of none
        del kept["signs"]
    return {
        "subject": [fingerprint, lead, str(subject.dtype), str(subject.device)],
        "corpus": [corpus.fingerprint, corpus.seed],
        "settings": kept,
        "versions": _versions(),
    }


def manifest(
    fingerprint: str, subject: Subject, corpus: Corpus, settings: Settings, seconds: float
) -> dict[str, Any]:
    """The manifest of a sweep that took so many seconds; plain data."""
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


def _versions() -> dict[str, str]:
    """Of Python and of what the results depend on; ours also where it was never installed."""
    names = ("torch", "transformers", "numba", "numpy")
    return {
        "python": platform.python_version(),
        "fastexplain": __version__,
        **{name: importlib.metadata.version(name) for name in names},
    }
