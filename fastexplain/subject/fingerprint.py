"""Which model it is, told by its weights; names can be reused.

All weights are hashed, in pieces by several threads: hashlib lets go of Python's lock meanwhile.
What it costs stands in `benches/NOTES.md`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

SCHEME = "sha256-full"
"""Stands before the value; runs of earlier versions have the bare digest of `sampled`."""

_PIECE = 2**25  # bytes
_SAMPLE = 1024  # values of a parameter


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters and saved buffers: names, shapes, dtypes and bits, on any device.

    `sha256-full:` and 64 hexadecimal digits. A tensor that has two names counts once.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for name, tensor in _weights(model):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            for piece in threads.map(_hash, _pieces(tensor)):
                digest.update(piece)
    return f"{SCHEME}:{digest.hexdigest()}"


def sampled(model: nn.Module) -> str:
    """The fingerprint of earlier versions: of up to 1,024 values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: -(-len(flat) // _SAMPLE) or 1].float().cpu().numpy()
        digest.update(name.encode() + sample.tobytes())
    return digest.hexdigest()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers, each tensor once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


def _pieces(tensor: Tensor) -> list[Tensor]:
    """The tensor's memory in pieces, uint8."""
    flat = tensor.contiguous().flatten().view(torch.uint8)
    return list(flat.split(_PIECE))


def _hash(piece: Tensor) -> bytes:
    return hashlib.sha256(piece.cpu().numpy().data).digest()
