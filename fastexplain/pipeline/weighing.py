"""What all neurons do by their weights alone: no text, one pass over the weights.

1. Of each layer, every neuron's output with every token's logit, and every token's embedding with
   what every neuron reads: the ten largest and smallest products of each.
2. Of each pair of layers, every output of the lower one with every output of the higher one, and
   with what the higher one reads (by its gate, where it has one): of each neuron the ten cosines
   that are largest in magnitude, seen from both sides.

Products are made in tiles (`subject/ends.py`), so that memory holds the tokens' vectors, two
layers' and what is found, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastexplain.progress import Report, reported
from fastexplain.run.directory import Run
from fastexplain.run.subjects import check_subject, load_subject_of
from fastexplain.run.weights import StoredWeights, store_weights, stored_weights
from fastexplain.subject.ends import Ends, Rows, fold, fold_both
from fastexplain.subject.model import Subject
from fastexplain.subject.vectors import UP, Vectors

COUNT = 10
"""Tokens and neurons of each kind: as many as a reader takes in."""


def weights(
    run: Run,
    *,
    subject: Subject | str | None = None,
    device: str | None = None,
    fresh: bool = False,
    trust_remote_code: bool = False,
    progress: bool | Report = False,
) -> StoredWeights:
    """Find what all neurons of a run do by their weights; stored, and read by `run.weights`.

    What is stored already is left alone. All is stored at the end: a call that was interrupted
    begins anew.

    Args:
        run: from `sweep` or `open_run`.
        subject: a loaded one, in float32, or where it is now, if not where it was swept from.
        device: the best that is there if None.
        fresh: do it again.
        trust_remote_code: run the subject's own code.
        progress: True shows a bar. A function is called with the number of steps done, of
            `steps(run)`.

    Raises:
        UsageError: an argument makes no sense, or the subject is not in float32.
        SubjectError: the subject can't be loaded, is not the one that was swept, or is of a kind
            whose weights can't be read.
        RunError: what was found can't be written, or what is stored is damaged.
    """
    stored = None if fresh else stored_weights(run)
    if stored is not None:
        return stored
    if isinstance(subject, Subject):
        check_subject(run, subject)
    else:
        subject = load_subject_of(
            run, name=subject, device=device, dtype="float32", trust_remote_code=trust_remote_code
        )
    vectors = Vectors(subject, min(subject.vocabulary_size, len(subject.token_bytes())))
    with (
        reported(progress, "Reading weights", steps(run), "layers") as report,
        torch.inference_mode(),
    ):
        found = weigh(vectors, run.layers, report)
    store_weights(run, list(vectors.parts), sorted(found.items()))
    return StoredWeights(run)


def steps(run: Run) -> int:
    """How many steps `weights` takes: each layer is gone through twice."""
    return 2 * len(run.layers)


def weigh(
    vectors: Vectors, layers: list[int], report: Report = lambda done: None
) -> dict[int, dict[str, np.ndarray]]:
    """The arrays to store of each layer; see `run/weights.py`.

    Args:
        report: called with the number of steps done, two a layer.
    """
    found: dict[int, dict[str, np.ndarray]] = {layer: {} for layer in layers}
    done = 0
    written = Tokens(vectors.logits)
    read = Tokens(vectors.embeddings)
    for layer in layers:
        found[layer] |= written.ends(vectors.written(layer), "output")
        for part, rows in vectors.read(layer).items():
            found[layer] |= read.ends(rows, part)
        report(done := done + 1)
    del written, read
    for layer, arrays in _neighbours(vectors, layers, report, done):
        found[layer] |= arrays
    return found


class Tokens:
    """The tokens' vectors, `[V, d]`, ready to be multiplied."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = Rows(rows)
        self._square = rows.t() @ rows / len(rows)  # their mean is 0

    def ends(self, neurons: Tensor, name: str) -> dict[str, np.ndarray]:
        """The ends of the products with a layer's vectors `[F, d]`, as they are stored."""
        ends = Ends(len(neurons), min(COUNT, len(self._rows)), neurons.device)
        fold(Rows(neurons), self._rows, ends)
        tokens, values = ends.arrays()
        spread = ((neurons @ self._square) * neurons).sum(1).clamp_min(0).sqrt()
        return {
            f"{name}.tokens": tokens,
            f"{name}.values": values,
            f"{name}.spread": spread.cpu().numpy(),
        }


def _neighbours(
    vectors: Vectors, layers: list[int], report: Report, done: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """By layer, the neighbours of its neurons, as they are stored."""
    widths = {layer: len(vectors.written(layer)) for layer in layers}
    firsts = dict(zip(layers, np.cumsum([0, *widths.values()])[:-1].tolist(), strict=True))
    device = vectors.written(layers[0]).device
    similar, fed_by, read_by = (
        {layer: Ends(width, COUNT, device) for layer, width in widths.items()} for _ in range(3)
    )
    for high in layers:
        own = Rows(_directions(vectors.written(high)))
        [gates] = [rows for part, rows in vectors.read(high).items() if part != UP]
        reading = Rows(_directions(gates))
        for low in (layer for layer in layers if layer < high):
            below = Rows(_directions(vectors.written(low)))
            first = firsts[high], firsts[low]
            fold_both(below, own, similar[low], similar[high], *first)
            fold_both(below, reading, read_by[low], fed_by[high], *first)
        report(done := done + 1)
    places = np.array([(layer, i) for layer, width in widths.items() for i in range(width)])
    for layer in layers:
        arrays: dict[str, np.ndarray] = {}
        for kind, ends in (("similar", similar), ("fed_by", fed_by), ("read_by", read_by)):
            ids, cosines = _by_magnitude(*ends[layer].arrays())
            neurons = np.where(ids[..., None] >= 0, places[ids], -1).astype(np.int32)
            arrays |= {f"{kind}.neurons": neurons, f"{kind}.cosines": cosines}
        yield layer, arrays


def _directions(rows: Tensor) -> Tensor:
    """Vectors of length 1; those that are 0 stay so."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _by_magnitude(ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the ends `[F, 2, C]` those C of a neuron that are largest in magnitude, `[F, C]`.

    With fewer than C others, both ends hold all of them: each is taken once, by its sign.
    """
    signs = np.array([1.0, -1.0], np.float32)[:, None]
    kept = np.isfinite(values) & (values * signs > 0)
    ids, values = np.where(kept, ids, -1), np.where(kept, values, 0)
    ids, values = ids.reshape(len(ids), -1), values.reshape(len(ids), -1).astype(np.float32)
    order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :COUNT]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
