"""Loading through transformers: quietly, safely, and with errors of one line.

Only safetensors and GGUF weights are read, never pickles, and a repository's own code runs only
when that was asked for.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import errors as hub_errors
from huggingface_hub import try_to_load_from_cache
from huggingface_hub import utils as hub_utils
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fastexplain.errors import SubjectError, UsageError
from fastexplain.models.shards import check_index

# transformers changes PyTorch's and its own settings while it loads, for all threads: of two models
# loaded at once, one was left with weights of no data.
_one_at_a_time = threading.Lock()

_LONGEST_MESSAGE = 300  # characters of a message of transformers' that are passed on


def load_pretrained(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype | str,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    """Load a causal language model from a hub id, a local directory or a `.gguf` file.

    Returns the model in evaluation mode on the device, its tokenizer, and the revision, which is
    the hub's commit where there is one. `dtype` may be "auto", for the checkpoint's own.

    Threads may call it at once; they load one after another.

    Raises SubjectError if it can't be loaded, UsageError for a revision of a local path.
    """
    path, gguf_file = _locate(name)
    if revision is not None and Path(path).exists():
        raise UsageError(f"'{name}' is a local path; only models on the hub have revisions")
    where: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        where["gguf_file"] = gguf_file
    # Weights of another shape are reported, with all that is known of them, by `_check_complete`.
    how: dict[str, Any] = {
        "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True
    }  # fmt: skip
    if gguf_file is None:
        how["use_safetensors"] = True
    if device.type != "cpu":
        how["device_map"] = device  # straight to the device, not by way of the host's memory
    part = "model"
    try:
        with _one_at_a_time, quiet(hide_output=gguf_file is not None):
            config = AutoConfig.from_pretrained(path, **where)
            _check_causal(name, config)
            if gguf_file is None:
                check_index(path, where["revision"])
            part = "tokenizer"
            tokenizer = AutoTokenizer.from_pretrained(path, **where)
            part = "model"
            # With its config at hand: reading that from a GGUF file again takes seconds.
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, config=config, **where, **how)
    except SubjectError:
        raise
    except Exception as error:  # transformers and a model's own code raise all sorts
        raise SubjectError(_explain(name, revision, part, error)) from error
    model, loading = loaded
    _check_complete(name, model, loading["missing_keys"], loading["mismatched_keys"])
    return model.eval(), tokenizer, _commit(path, where["revision"]) or revision


def find_trunk(model: PreTrainedModel) -> nn.Module:
    """The part of a causal language model between token ids and its head."""
    decoder = model.get_decoder()
    # ModernBERT calls its head `decoder`, and that is what get_decoder finds.
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


@contextlib.contextmanager
def quiet(*, hide_output: bool = False) -> Iterator[None]:
    """Keep transformers' warnings and progress bars off the screen; a download still shows.

    `hide_output` silences standard error as a whole, as the bar of a GGUF conversion listens to
    no setting.
    """
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    downloads = not hub_utils.are_progress_bars_disabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if downloads:  # transformers has just switched these off too
        hub_utils.enable_progress_bars()
    try:
        with contextlib.redirect_stderr(io.StringIO()) if hide_output else contextlib.nullcontext():
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
            if not downloads:
                hub_utils.disable_progress_bars()


def _locate(name: str) -> tuple[str, str | None]:
    """The directory or hub id to load from, and the GGUF file in it, if it is one."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, say, or the home of nobody
        raise SubjectError(f"'{name}' can't be looked up: {error}") from error
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SubjectError(f"there is no file '{name}'")
        return str(path.parent), path.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SubjectError(
                f"the directory '{name}' has no config.json; give one written by save_pretrained"
            )
        return str(path), None
    if path.exists():
        raise SubjectError(f"'{name}' is neither a model's directory nor a .gguf file")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise SubjectError(f"there is no directory '{name}'")
    return name, None


def _commit(path: str, revision: str) -> str | None:
    """The hub's commit of a model in the local cache, whose directories are named by commits."""
    if Path(path).exists():
        return None
    config = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _check_causal(name: str, config: PretrainedConfig) -> None:
    """Raise SubjectError unless the config is that of a causal language model."""
    own = getattr(config, "auto_map", None) or {}
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder or not (known or "AutoModelForCausalLM" in own):
        raise SubjectError(
            f"'{name}' ({config.model_type}) is not a causal language model; "
            "choose a decoder-only one, such as a GPT-2, Llama or Qwen"
        )


def _check_complete(
    name: str,
    model: PreTrainedModel,
    missing: set[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    """Raise SubjectError if weights were made up because the checkpoint's don't fit, or it lacks
    some of the trunk's; `mismatched` have their shapes in the checkpoint and in the model."""
    for weight, found, expected in sorted(mismatched):
        raise SubjectError(
            f"the weights of '{name}' don't fit its config: {weight} is {list(found)}, by the "
            f"config it is {list(expected)}; use the config that belongs to them"
        )
    trunk = find_trunk(model)
    prefix = next(path for path, module in model.named_modules() if module is trunk)
    lacking = sorted(key for key in missing if key.startswith(f"{prefix}." if prefix else ""))
    if lacking:
        raise SubjectError(
            f"the checkpoint '{name}' lacks {len(lacking)} of the weights of "
            f"{type(model).__name__}, such as {lacking[0]}; save it again, or choose another"
        )


def _explain(name: str, revision: str | None, part: str, error: BaseException) -> str:
    """What went wrong in loading the tokenizer or the rest, in one line that says what to do."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    text = str(error)
    if any_is(hub_errors.GatedRepoError):
        return f"'{name}' is gated; ask for access on its page, then run `hf auth login`"
    if any_is(hub_errors.RevisionNotFoundError):
        return f"'{name}' has no revision '{revision}'; give a branch, tag or commit of it"
    if any_is(hub_errors.RepositoryNotFoundError):
        return (
            f"there is no model '{name}' on huggingface.co; check the spelling, "
            "or run `hf auth login` if it is private"
        )
    if any_is(hub_errors.HFValidationError):
        return f"'{name}' is neither a directory that exists nor a model's id on huggingface.co"
    if any_is(hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled):
        return (
            f"'{name}' is not in the local cache and huggingface.co can't be reached, or "
            "HF_HUB_OFFLINE is set; go online once, or give a local directory"
        )
    if "trust_remote_code" in text:
        return f"'{name}' brings its own code; read it, then allow it with `trust_remote_code`"
    line = next(iter(text.strip().splitlines()), "") or type(error).__name__
    line = line[:_LONGEST_MESSAGE]
    if part == "tokenizer":
        return f"'{name}' has no tokenizer that can be loaded ({line}); save one beside the model"
    if "no file named model.safetensors" in text and isinstance(error, OSError):
        return f"'{name}' has no safetensors weights; save it again with save_pretrained"
    return f"'{name}' can't be loaded: {line}"
