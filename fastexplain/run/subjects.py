"""A run's subject, loaded again and compared with the one that was swept."""

from __future__ import annotations

import dataclasses

from torch import nn

from fastexplain.errors import SubjectError
from fastexplain.run.directory import Run
from fastexplain.subject.fingerprint import SCHEME, sampled
from fastexplain.subject.model import DTYPES, Subject, choose_device, load_subject


def load_subject_of(
    run: Run,
    *,
    name: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load the subject of a run, with its lead.

    Args:
        name: where it is now, if not where it was swept from.
        device: the best that is there if None.
        dtype: that of the sweep if None. Weights are compared in the sweep's, then converted.

    Raises:
        UsageError: an argument makes no sense.
        SubjectError: it can't be loaded, or its weights are others than those that were swept.
    """
    swept = run.manifest["subject"]
    if dtype is not None and dtype not in DTYPES:
        load_subject(swept["name"], dtype=dtype)  # raises the error that lists them
    choose_device(device)  # raises the error that lists them, which no other place mends
    try:
        subject = load_subject(
            name or swept["name"],
            device=device,
            dtype=swept.get("dtype"),
            revision=swept.get("revision") if name is None and not _embedded(swept) else None,
            trust_remote_code=trust_remote_code,
        )
    except SubjectError as error:
        raise SubjectError(
            f"the subject of {run.path} can't be loaded: {error}; name the place where it is now "
            "with `subject`"
        ) from error
    check_subject(run, subject)
    if dtype is not None:
        nn.Module.to(subject.model, DTYPES[dtype])
    lead = swept.get("lead")
    return subject if lead is None else dataclasses.replace(subject, lead=tuple(lead))


def check_subject(run: Run, subject: Subject) -> None:
    """Raise SubjectError unless a subject has the weights that were swept, in the same dtype."""
    swept = run.manifest["subject"]
    expected = swept.get("fingerprint")
    whole = str(expected).startswith(SCHEME)  # runs of earlier versions have another
    found = subject.fingerprint() if whole else sampled(subject.model)
    if expected is not None and found != expected:
        raise SubjectError(
            f"the weights of '{subject.name}' are not those that {run.path} was swept with "
            f"({_short(found)} in place of {_short(expected)}); use the same subject, in "
            f"{swept.get('dtype', 'the same dtype')}, or sweep again"
        )


def _embedded(swept: dict[str, str]) -> bool:
    return swept["name"] == "smollm2"


def _short(fingerprint: str) -> str:
    return fingerprint.rpartition(":")[2][:12]
