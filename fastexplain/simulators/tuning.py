"""How a simulator is asked and read, where that was chosen for it by the puzzles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastexplain.llm.requests import Capabilities
from fastexplain.prompts.simulator import EXAMPLE_SETS, STANDARD
from fastexplain.simulators.model import MODES, READOUTS, choose_mode


@dataclass(frozen=True)
class Tuning:
    """A way to simulate; the arguments of `simulators.model.Simulator`.

    Attributes:
        mode: one of `simulators.model.MODES`; the best that there is if None.
        readout: one of `READOUTS`.
        filler: at the places of a prompt; what suits the readout if None.
        examples: one of `prompts.simulator.EXAMPLE_SETS`.
    """

    mode: str | None = None
    readout: str = READOUTS[0]
    filler: str | None = None
    examples: str = STANDARD

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Tuning | None:
        """What `dataclasses.asdict` made plain; None if it is of a version with other ways."""
        if stored.keys() != cls.__dataclass_fields__.keys():
            return None
        found = cls(**stored)
        known = found.mode in MODES and found.readout in READOUTS and found.examples in EXAMPLE_SETS
        return found if known else None

    def __str__(self) -> str:
        parts = [self.mode, f"readout {self.readout}"]
        parts += [f"filler '{self.filler}'" if self.filler else None, f"{self.examples} examples"]
        return ", ".join(part for part in parts if part)


def ways(can: Capabilities, mode: str | None) -> tuple[list[Tuning], list[str]]:
    """The ways to try with a simulator, and the sets of examples to try with the best of them.

    Fillers go with every readout, since these share their requests; examples are tried afterwards.

    Args:
        can: what its connection can do.
        mode: the only one to try; the best that there is if None.

    Raises:
        UnusableError: the connection can't simulate so.
        UsageError: there is no such mode.
    """
    mode = choose_mode(can, mode, READOUTS[0])
    others = [name for name in EXAMPLE_SETS if name != STANDARD]
    if mode == "prompt-logprobs":
        found = [Tuning(mode, readout, filler) for filler in can.fillers for readout in READOUTS]
        return found, others
    if mode == "one-at-a-time":
        return [Tuning(mode, readout) for readout in READOUTS], []
    return [Tuning(mode)], others
