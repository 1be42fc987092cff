"""Which neurons and layers a command means: `5:131`, `12:*`, `0-5,8`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastexplain.errors import UsageError
from fastexplain.records import NeuronId
from fastexplain.run import Run


def parse_layers(text: str) -> list[int]:
    """Layers of a list of numbers and ranges such as `0-5,8`, ascending.

    Raises:
        UsageError: it is no such list.
    """
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UsageError(f"'{text}' names no layers; write numbers and ranges, as in 0-5,8")
        layers.update(range(first, last + 1))
    return sorted(layers)


def select_neurons(run: Run, names: Sequence[str]) -> list[NeuronId]:
    """The neurons of a run that `5:131` or `12:*`, all of a layer, stand for; each once, in order.

    Raises:
        UsageError: a name is none of these, or no neuron of this run.
    """
    chosen: dict[NeuronId, None] = {}
    for name in names:
        if match := re.fullmatch(r"(\d+):\*", name):
            layer = int(match[1])
            found = [NeuronId(layer, index) for index in range(run.width(layer))]
        else:
            found = [run.check(NeuronId.parse(name))]
        chosen.update(dict.fromkeys(found))
    return list(chosen)
