"""What all neurons do by their weights: its speed at a well-known shape, and whether it is exact.

    python benches/weights.py [--geometry gpt2-xl] [--neurons 1024] [--layers 0 15 29]

1. Of a shape's neurons a sample is multiplied with all tokens, on random weights, in four ways
   that take turns: the product alone in float32, by oneDNN; that and PyTorch's topk; the product
   alone in bfloat16; `fold`, which is exact. Then neurons with eight times as many, both ways.
2. Of some of SmolLM2's layers the ten tokens at each end, by `fold` and from products in float32,
   beside those in float64.

Times are CPU seconds of all threads, since they say the same on a machine that others use too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastexplain import load_subject
from fastexplain.bench.geometries import GEOMETRIES
from fastexplain.models.onednn import OneDnnLinear
from fastexplain.subject.ends import Ends, Rows, fold, fold_both
from fastexplain.subject.mlps import find_mlps
from fastexplain.subject.vectors import Vectors

COUNT, ROUNDS, _OTHERS = 10, 3, 8
CPU = torch.device("cpu")


def seconds(function: Callable[[], object]) -> float:
    before = time.process_time()
    function()
    return time.process_time() - before


def product(one: Tensor, other: Tensor) -> Tensor:
    with OneDnnLinear():
        return torch.nn.functional.linear(one, other)


def speed(hidden: int, tokens: int, neurons: int, layers: int, width: int) -> None:
    """Print the CPU seconds of each way for the sample, and of `fold` for all of a shape."""
    random = torch.Generator().manual_seed(0)
    sample = Rows(torch.randn(neurons, hidden, generator=random))
    others = Rows(torch.randn(_OTHERS * neurons, hidden, generator=random))
    vocabulary = Rows(torch.randn(tokens, hidden, generator=random))

    def in_tiles(work: Callable[[Tensor, Tensor], object], one: Tensor, other: Tensor) -> None:
        for part in other.split(8192):
            work(one, part)

    def both_ends(one: Tensor, other: Tensor) -> None:
        found = product(one, other)
        found.topk(COUNT)
        (-found).topk(COUNT)

    def exact() -> None:
        fold(sample, vocabulary, Ends(neurons, COUNT, CPU))

    def pairs() -> None:
        fold_both(sample, others, *(Ends(len(n), COUNT, CPU) for n in (sample, others)), 0, 0)

    exact()  # compiles
    ways = {
        "product, float32": lambda: in_tiles(product, sample.exact, vocabulary.exact),
        "product and topk, float32": lambda: in_tiles(both_ends, sample.exact, vocabulary.exact),
        "product, bfloat16": lambda: in_tiles(
            torch.nn.functional.linear, sample.exact.bfloat16(), vocabulary.exact.bfloat16()
        ),
        "fold": exact,
        "fold of neurons, both ways": pairs,
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            best[name] = min(best[name], seconds(way))
    one = best["product, float32"]
    for name, took in best.items():
        print(f"{name:32} {took:7.3f} s, {took / one:5.2f} of float32's product")
    scale = layers * width / neurons
    print(
        f"All {layers * width:,} neurons with all tokens: {best['fold'] * scale:,.0f} CPU seconds, "
        f"float32's product alone {one * scale:,.0f}"
    )
    # Cosines of outputs, and of outputs with what is read, of each pair of layers.
    products = layers * (layers - 1) * (width / neurons) ** 2 / _OTHERS
    print(f"All pairs of layers: {best['fold of neurons, both ways'] * products:,.0f}")


def exactness(layers: list[int]) -> None:
    """Print how many lists differ from those of products in float64, and by how much."""
    subject = load_subject("smollm2", device="cpu", dtype="float32")
    vectors = Vectors(subject, len(subject.token_bytes()))
    lists = 0
    differing = {"fold": 0, "float32": 0}
    apart = 0.0
    with torch.inference_mode():
        for side, tokens in (("written", vectors.logits), ("read", vectors.embeddings)):
            rows = Rows(tokens)
            for layer in layers:
                parts = [vectors.written(layer)] if side == "written" else [
                    *vectors.read(layer).values()
                ]  # fmt: skip
                for neurons in parts:
                    ends = Ends(len(neurons), COUNT, CPU)
                    fold(Rows(neurons), rows, ends)
                    products = product(neurons, tokens)
                    exact = neurons.double() @ tokens.double().t()
                    for end, sign in enumerate((1, -1)):
                        values, ids = (sign * exact).topk(COUNT)
                        lists += len(ids)
                        _, others = (sign * products).topk(COUNT)
                        differing["float32"] += int((ids != others).any(1).sum())
                        differing["fold"] += int((ids != ends.ids[:, end]).any(1).sum())
                        gap = (values - ends.values[:, end]).abs() / values.abs()
                        apart = max(apart, float(gap.max()))
    print(
        f"Of {lists:,} lists of {COUNT} tokens {differing['fold']:,} differ from float64's, and "
        f"{differing['float32']:,} by float32's products; values by {apart:.1e} of themselves"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geometry", default="gpt2-xl")
    parser.add_argument("--neurons", type=int, default=1024)
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 15, 29])
    chosen = parser.parse_args()
    geometry = GEOMETRIES[chosen.geometry]
    with torch.device("meta"):
        model = geometry.model(1, torch.float32)
    [mlp] = find_mlps(model)
    tokens, hidden = model.get_output_embeddings().weight.shape
    print(
        f"{chosen.geometry}: {geometry.layers} layers of {mlp.width:,} neurons, {hidden:,} wide, "
        f"{tokens:,} tokens; a sample of {chosen.neurons:,} neurons"
    )
    with torch.inference_mode():
        speed(hidden, tokens, chosen.neurons, geometry.layers, mlp.width)
    if chosen.layers:
        exactness(chosen.layers)


if __name__ == "__main__":
    main()
