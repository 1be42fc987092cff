"""The largest and smallest products of vectors with many others, tile by tile.

On the CPU products are taken in bfloat16 where that is faster there, and those that may be among
the kept ones again in float32; the result is float32's (`kernels/cpu/ends.py`). On other devices
they are taken in float32 at once.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fastexplain.kernels.cpu.ends import fold_ends

# Vectors of a tile. On one core, 256 x 50,257 products of 1,600 numbers: the fold took 30% of the
# product's time with 4,096 vectors at a time, 21% with 8,192, 16% with 16,384 and 10% with all;
# 1,024 x 8,192 products are 16 MB in bfloat16.
_QUERIES, _TARGETS = 1024, 8192

# Of float32's own products, relative to the lengths of both vectors.
_ROUNDING = 1e-6


class Ends:
    """For each of n vectors the largest and the smallest products seen so far.

    Args:
        count: how many of each are kept, C.

    Attributes:
        ids: int32 `[n, 2, C]`: of the largest, largest first, and of the smallest, smallest first;
            -1 where there are none. Equal ones are by lower id if they come by ascending id.
        values: float32 `[n, 2, C]`, the products, and those of the smallest with the sign changed;
            -inf where there are none.
    """

    def __init__(self, n: int, count: int, device: torch.device) -> None:
        self.ids = torch.full((n, 2, count), -1, dtype=torch.int32, device=device)
        self.values = torch.full((n, 2, count), -torch.inf, device=device)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """`ids` and the products themselves, on the host."""
        signs = self.values.new_tensor([1.0, -1.0])[:, None]
        return self.ids.cpu().numpy(), (self.values * signs).cpu().numpy()


class Rows:
    """Vectors float32 `[n, d]`, and on the CPU what is needed to multiply them roughly."""

    def __init__(self, exact: Tensor) -> None:
        self.exact = exact.contiguous()
        self.rough = self.exact
        if exact.device.type == "cpu" and _bfloat16_is_faster():
            self.rough = self.exact.bfloat16()
        rounded = self.rough.float()
        self.lost = (self.exact - rounded).norm(dim=1)
        self.length = torch.maximum(self.exact.norm(dim=1), rounded.norm(dim=1))

    def __len__(self) -> int:
        return len(self.exact)

    def part(self, start: int, stop: int) -> Rows:
        part = object.__new__(Rows)
        for name, value in vars(self).items():
            setattr(part, name, value[start:stop])
        return part


def fold(queries: Rows, targets: Rows, ends: Ends, first: int = 0) -> None:
    """Fold the products of all queries with all targets into the ends of the queries.

    Args:
        first: the id of the first target.
    """
    fold_both(queries, targets, ends, None, first, 0)


def fold_both(
    one: Rows, other: Rows, of_one: Ends, of_other: Ends | None, first_other: int, first_one: int
) -> None:
    """Fold the products of all pairs into the ends of both sides; they are taken once.

    Args:
        first_other, first_one: the id of the first vector of each side, for the ends of the other.
    """
    for start in range(0, len(one), _QUERIES):
        stop = min(start + _QUERIES, len(one))
        queries = one.part(start, stop)
        for low in range(0, len(other), _TARGETS):
            high = min(low + _TARGETS, len(other))
            targets = other.part(low, high)
            products = queries.rough @ targets.rough.t()
            _fold(products, queries, targets, of_one, slice(start, stop), first_other + low)
            if of_other is not None:
                turned = products.t().contiguous()
                _fold(turned, targets, queries, of_other, slice(low, high), first_one + start)


def _fold(
    products: Tensor, queries: Rows, targets: Rows, ends: Ends, place: slice, first: int
) -> None:
    ids, values = ends.ids[place], ends.values[place]
    if products.device.type == "cpu":
        error = queries.lost * targets.length.max() + queries.length * targets.lost.max()
        error = error + _ROUNDING * queries.length * targets.length.max()
        rough = products.view(torch.uint16) if products.dtype == torch.bfloat16 else products
        fold_ends(
            rough.numpy(), queries.exact.numpy(), targets.exact.numpy(), error.numpy(), first,
            ids.numpy(), values.numpy(),
        )  # fmt: skip
        return
    fold_exact(products, ids, values, first)


def fold_exact(products: Tensor, ids: Tensor, values: Tensor, first: int) -> None:
    """Fold float32 products `[n, t]` into ids and values `[n, 2, C]`, in place, on any device."""
    count = ids.shape[2]
    for end, signed in enumerate((products, -products)):
        best, columns = signed.topk(min(count, signed.shape[1]), dim=1)
        both = torch.cat([values[:, end], best], dim=1)
        known = torch.cat([ids[:, end], (columns + first).int()], dim=1)
        values[:, end], chosen = both.topk(count, dim=1)
        ids[:, end] = known.gather(1, chosen)


@cache
def _bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, found by trying.

    With AVX512-BF16 or AMX it is twice as fast or more; without, it is emulated.
    """
    x = torch.ones(256, 512)
    seconds = []
    for values in (x, x.bfloat16()):
        torch.mm(values, values.t())  # what is compiled or packed the first time
        trials = []
        for _ in range(5):
            before = time.perf_counter()
            torch.mm(values, values.t())
            trials.append(time.perf_counter() - before)
        seconds.append(min(trials))
    return seconds[1] < seconds[0]
