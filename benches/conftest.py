"""What the benchmarks share: the embedded subject and a corpus."""

from __future__ import annotations

import pytest

from fastexplain import Corpus, Subject, load_subject


@pytest.fixture(scope="session")
def subject() -> Subject:
    return load_subject("smollm2", device="cpu")


@pytest.fixture(scope="session")
def corpus(subject: Subject) -> Corpus:
    return Corpus(["stdlib"], subject.tokenizer, excerpts=1536)
