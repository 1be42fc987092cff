"""How far two distributions of the next token lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

# Beyond it the formula's exponential has no float32; its terms reach their limits before.
_FARTHEST = 80.0


# Rows at a time on a CPU: what they take stays in its cache. Of [64, 49152], 17 ms in place of 29.
_ROWS_CPU = 8


def jensen_shannon(before: Tensor, after: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, from 0 to log 2: log-probabilities `[N, V]` to `[N]`.

    With p and q the two, d = log q - log p and t = log((1 + e^d) / 2) it is the sum of
    (q (d - t) - p t) / 2. Taken so, by expm1 and log1p, what is summed is itself of the order of
    d^2: a neuron often changes probabilities by less than a thousandth, and a difference of
    entropies would be rounding alone.
    """
    rows = _ROWS_CPU if before.device.type == "cpu" else max(len(before), 1)
    parts = zip(before.split(rows), after.split(rows), strict=True)
    return torch.cat([_divergence(*part) for part in parts])


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    d = (after - before).clamp_(-_FARTHEST, _FARTHEST)
    t = torch.expm1(d).mul_(0.5).log1p_()
    d.sub_(t).mul_(after.exp()).addcmul_(t, before.exp(), value=-1)
    return d.sum(-1).mul_(0.5).clamp_(min=0)
