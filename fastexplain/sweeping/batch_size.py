"""How many excerpts fit in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fastexplain.subject.model import Subject

# Excerpts in a forward pass at most: on 2 cores 32 to 128 run alike; a GPU wants more work in each
# launch.
_LARGEST = {"cpu": 64, "mps": 64, "cuda": 1024}
# Of the memory that is free: the estimate is rough, and PyTorch's blocks don't fit without gaps.
_SHARE = 0.5

_MEMINFO = Path("/proc/meminfo")


def choose_batch_size(subject: Subject, layers: Sequence[int], tokens: int, kept: int) -> int:
    """The excerpts that a forward pass takes, a power of two, by the memory that is free.

    Args:
        layers: those to capture.
        tokens: in an excerpt.
        kept: bytes that the sweep itself will take on the subject's device.
    """
    largest = _LARGEST[subject.device.type]
    free = _free_bytes(subject.device)
    if free is None:
        return largest
    positions = tokens + len(subject.lead)
    excerpt = positions * bytes_per_position(subject, layers, positions)
    fits = int(_SHARE * (free - kept)) // excerpt
    return 1 << max(min(largest, fits), 1).bit_length() - 1


def bytes_per_position(subject: Subject, layers: Sequence[int], positions: int) -> int:
    """An estimate of what the trunk takes at its widest for each of an excerpt's `positions`.

    With d the hidden size and F the widest layer's neurons: gate, up and activations, 3 F; the
    residual stream and what norms and attention make of it, 6 d, and a norm's 2 d in float32; the
    scores of attention, four times in float32, for the models that keep them; a byte for each
    neuron for the kernels. It comes to 0.9 to 6 times what a model takes.
    """
    config = subject.model.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = max(subject.widths[: max(layers) + 1])
    in_dtype = subject.dtype.itemsize * (3 * width + 6 * hidden)
    in_float32 = 4 * (2 * hidden + 4 * heads * positions)
    return in_dtype + in_float32 + width


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of a device in bytes; None where the system doesn't say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = _MEMINFO.read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None
