"""A sweep's sums for a regression under the tables: of every neuron x max(a, 0).

x are a token's d numbers (`text/regressors.py`), a is its activation: a product of matrices. The
sums take d rows of the tables' memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastexplain.text.regressors import (
    BEFORE,
    DECAYS,
    LARGEST,
    SMALLEST,
    Regressors,
    count,
    decaying,
    places,
)

# Activations above 0 that are in memory at once, on the CPU (64 MB) and on a GPU.
_VALUES, _VALUES_ON_DEVICE = 2**24, 2**27


class TokenNumbers:
    """The numbers of a batch's tokens, made where the activations are.

    Args:
        regressors: of the corpus.
        device: the CPU or a CUDA device.
    """

    def __init__(self, regressors: Regressors, device: torch.device) -> None:
        self._regressors = regressors
        self._components = torch.from_numpy(regressors.components).to(device)

    def of(self, token_ids: Tensor) -> Tensor:
        """The bits that `Regressors.of` gives: float32 `[excerpts, tokens, d]`.

        Args:
            token_ids: int `[excerpts, tokens]`, on the device.
        """
        if self._components.device.type == "cpu":  # by PyTorch 120 ms for 64 excerpts
            return torch.from_numpy(self._regressors.of(token_ids.numpy()))
        return on_device(self._components, token_ids)


def on_device(components: Tensor, token_ids: Tensor) -> Tensor:
    """`Regressors.of`, with all on a device: it waits for nothing.

    Only sums, products and quotients, each rounded to float32, in the order of the CPU's kernel: so
    bits are the same.

    Args:
        components: float32 `[vocabulary, components]`.
        token_ids: int `[excerpts, tokens]`.
    """
    own = components[token_ids.long()]
    length = token_ids.shape[1]
    result = own.new_zeros(*token_ids.shape, count(components.shape[1]))
    start = components.shape[1]
    result[:, :, :start] = own
    for back, size in enumerate(BEFORE, start=1):
        part = own[:, :-back, :size]
        result[:, back:, start : start + part.shape[2]] = part
        start += part.shape[2]
    for step, roots, (_, size) in zip(*decaying(length), DECAYS, strict=True):
        part = own[:, :, :size]
        total = part[:, 0] * 0
        for t in range(1, length):
            total = total * float(step) + part[:, t - 1]
            result[:, t, start : start + part.shape[2]] = total / float(roots[t])
        start += part.shape[2]
    result[:, :, start:] = torch.from_numpy(places(length)).to(own.device)
    bits = result.clamp(-LARGEST, LARGEST).view(torch.int32)
    numbers = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)
    return numbers * (numbers.abs() >= SMALLEST)


def add_products(sums: Tensor, acts: Tensor, numbers: Tensor) -> None:
    """Add a batch's sums of x max(a, 0).

    Args:
        sums: float32 `[d, F]`, changed in place.
        acts: `[B, L, F]`, with the counted tokens last.
        numbers: float32 `[B, counted, d]`, x.
    """
    counted, neurons = numbers.shape[1], acts.shape[2]
    most = _VALUES if acts.device.type == "cpu" else _VALUES_ON_DEVICE
    step = max(1, most // max(counted * neurons, 1))
    for start in range(0, len(acts), step):
        positive = acts[start : start + step, -counted:].clamp(min=0).reshape(-1, neurons)
        x = numbers[start : start + step].reshape(-1, numbers.shape[2])
        if positive.device.type == "cuda" and positive.dtype != torch.float32:
            sums += torch.mm(x.to(positive.dtype).T, positive, out_dtype=torch.float32)
        else:  # as a linear layer, which goes to oneDNN on the CPU
            sums += functional.linear(x.T, positive.float().T)
