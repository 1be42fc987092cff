"""Interventions a second, against a whole forward pass for each: `python benches/ablation.py`.

1. A few neurons of SmolLM2 in each of some layers, evenly from the lowest to the highest, on
   excerpts of the standard library's text; each is set to its mean and to relu of itself.
2. The same interventions by a whole pass of the model with a hook, one at a time, as transformers
   runs it, and by `intervene`. Both take the divergence by the same function, and run an excerpt
   once for its original distributions. The two alternate, layer by layer.
3. What comes out is compared: scores, and the largest difference of a log-probability.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch
from torch import Tensor, nn

from fastexplain import Corpus, Subject, load_subject
from fastexplain.subject.divergence import jensen_shannon
from fastexplain.subject.interventions import Intervention, intervene


def log_probabilities(
    subject: Subject, layer: int, ids: Tensor, change: Intervention | None = None
) -> Tensor:
    """By a whole pass, `[tokens, V]` of one excerpt `[tokens]`."""

    def replace(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        acts = inputs[0].clone()
        assert change is not None
        acts[0, :, change.neuron] = torch.from_numpy(change.values)
        return (acts,)

    down = subject.mlps[layer].down
    hook = None if change is None else down.register_forward_pre_hook(replace)
    with torch.inference_mode():
        logits = subject.model(input_ids=ids[None], use_cache=False).logits[0]
    if hook is not None:
        hook.remove()
    return logits.log_softmax(-1)


def by_whole_passes(
    subject: Subject, layer: int, token_ids: Tensor, changes: list[Intervention]
) -> np.ndarray:
    """Mean over an excerpt's tokens of the divergence, for each intervention."""
    before = [log_probabilities(subject, layer, ids) for ids in token_ids]
    found = []
    for each in changes:
        after = log_probabilities(subject, layer, token_ids[each.excerpt], each)
        found.append(float(jensen_shannon(before[each.excerpt], after).mean()))
    return np.array(found)


def by_intervening(
    subject: Subject, layer: int, token_ids: Tensor, changes: list[Intervention]
) -> np.ndarray:
    """The same by `intervene`."""
    found = np.empty(len(changes))

    def visit(place: int, before: Tensor, after: Tensor) -> None:
        found[place] = jensen_shannon(before, after).mean()

    intervene(subject, layer, token_ids, changes, visit)
    return found


def changes_of(subject: Subject, layer: int, token_ids: Tensor, neurons: int) -> list[Intervention]:
    """Each of some neurons set to its mean, and to relu of itself, on each excerpt."""
    indices = np.linspace(0, subject.widths[layer] - 1, neurons, dtype=int)
    seen = {}
    subject.trunk(token_ids, lambda _, acts: seen.update(acts=acts[..., indices].numpy()), [layer])
    acts = seen["acts"]
    return [
        Intervention(int(index), excerpt, values.astype(np.float32))
        for place, index in enumerate(indices)
        for excerpt, own in enumerate(acts[..., place])
        for values in (np.full_like(own, acts[..., place].mean()), np.maximum(own, 0))
    ]


def largest_difference(
    subject: Subject, layer: int, token_ids: Tensor, changes: list[Intervention]
) -> float:
    """Of a log-probability, over all tokens of the vocabulary."""
    found: dict[int, Tensor] = {}
    intervene(
        subject, layer, token_ids, changes,
        lambda place, before, after: found.update({place: after.clone()}),
    )  # fmt: skip
    return max(
        float((after - log_probabilities(subject, layer, token_ids[c.excerpt], c)).abs().max())
        for c, after in ((changes[place], after) for place, after in found.items())
    )


WAYS = {"intervene": by_intervening, "whole": by_whole_passes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--neurons", type=int, default=4)
    parser.add_argument("--excerpts", type=int, default=4)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    subject = load_subject("smollm2", device=options.device, dtype="float32")
    corpus = Corpus(["stdlib"], subject.tokenizer, excerpts=options.excerpts)
    token_ids = torch.tensor(corpus.tokens).long().to(subject.device)
    # On a CPU that others use too, seconds of the process tell more.
    clock = time.process_time if subject.device.type == "cpu" else time.perf_counter
    layers = np.linspace(0, len(subject.widths) - 1, options.layers, dtype=int).tolist()
    total = {"whole": 0.0, "intervene": 0.0}
    count = 0
    for layer in layers:
        changes = changes_of(subject, layer, token_ids, options.neurons)
        if layer == layers[0]:  # oneDNN's and PyTorch's first calls
            for way in WAYS.values():
                way(subject, layer, token_ids, changes[:2])
        seconds, found = {}, {}
        for name, way in WAYS.items():
            start = clock()
            sums = way(subject, layer, token_ids, changes)
            seconds[name] = clock() - start
            total[name] += seconds[name]
            found[name] = sums.reshape(options.neurons, options.excerpts, 2).sum(1)
        count += len(changes)
        scores = {name: 1 - own[:, 1] / own[:, 0] for name, own in found.items()}
        apart = np.abs(scores["whole"] - scores["intervene"]).max()
        far = largest_difference(subject, layer, token_ids, changes[:4])
        print(
            f"layer {layer:2}: {len(changes) / seconds['whole']:6.2f} whole passes, "
            f"{len(changes) / seconds['intervene']:7.2f} interventions a second, "
            f"{seconds['whole'] / seconds['intervene']:5.2f}x; scores differ by {apart:.1e}, "
            f"log-probabilities by {far:.1e}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    print(
        f"all: {count / total['whole']:.2f} and {count / total['intervene']:.2f} a second, "
        f"{total['whole'] / total['intervene']:.2f}x, {torch.get_num_threads()} threads, "
        f"{subject.device}"
    )


if __name__ == "__main__":
    main()
