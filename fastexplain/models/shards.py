"""The index of a checkpoint in several files, which says where each weight lies."""

from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fastexplain.errors import SubjectError


def check_index(path: str, revision: str) -> None:
    """Make sure that a checkpoint's index names safetensors files of its own directory alone.

    Others would be read by whatever reads them: an index may be made to name a pickle. `path` is a
    directory or a hub id.

    Raises SubjectError for another name, an index that can't be read, or a file that is not there.
    """
    directory = Path(path)
    local = directory.is_dir()
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    if local and ((directory / SAFE_WEIGHTS_NAME).exists() or not index.exists()):
        return  # as transformers chooses
    if not local:
        try:
            index = Path(hf_hub_download(path, SAFE_WEIGHTS_INDEX_NAME, revision=revision))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return  # of one file, or not there: loading says so
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SubjectError(f"the index {index} can't be read ({error!r}); save it again") from error
    for name in sorted(names, key=str):
        # Both kinds of separators and drives: of a path nothing but the name may be left.
        if not str(name).endswith(".safetensors") or PureWindowsPath(str(name)).name != name:
            raise SubjectError(
                f"the index {index} names '{name}', which is no safetensors file of its directory; "
                "nothing was loaded: get the model from a source that you trust"
            )
    lacking = [name for name in sorted(names) if local and not (directory / name).is_file()]
    if lacking:
        raise SubjectError(
            f"{directory} lacks {len(lacking)} of the {len(names)} files that its index names, "
            f"such as {lacking[0]}; download it again"
        )
