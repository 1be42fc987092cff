"""What knows the answers: the puzzles' own descriptions, and a perfect simulator of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fastexplain.errors import LLMError
from fastexplain.puzzles.texts import Puzzle, fingerprint
from fastexplain.records import NeuronRecord
from fastexplain.results import Explanation

NAME = "oracle"
TRUE = "true"
DESCRIPTIONS = (TRUE, "false 1", "false 2")


class Given:
    """Explains every puzzle by one of its own descriptions, which are stored as explanations.

    Args:
        puzzles: those that it explains.
        which: one of `DESCRIPTIONS`.

    Attributes:
        method, model, version: see `pipeline.protocols.Explainer`.
    """

    method = "puzzle"

    def __init__(self, puzzles: Iterable[Puzzle], which: str = TRUE) -> None:
        self.model = which
        self.version = fingerprint()
        place = DESCRIPTIONS.index(which)
        self._texts = {
            puzzle.place: (puzzle.true, *(each.text for each in puzzle.false))[place]
            for puzzle in puzzles
        }

    def explain(self, record: NeuronRecord) -> Explanation:
        return Explanation(self._texts[record.id.index])


class Oracle:
    """Simulates a puzzle's true description by its activations, a false one by its own pattern.

    Args:
        puzzles: those that it knows.

    Attributes:
        model, version: see `pipeline.protocols.Simulator`.
    """

    model = NAME

    def __init__(self, puzzles: Iterable[Puzzle]) -> None:
        self.version = fingerprint()
        self._known = {text.tokens: (puzzle, text) for puzzle in puzzles for text in puzzle.texts}

    def simulate(self, explanation: str, tokens: Sequence[str]) -> np.ndarray:
        """float32 `[tokens]`, from 0 to 10.

        Raises:
            LLMError: the explanation is none of the puzzle's own descriptions, or the text is of
                no puzzle.
        """
        if tuple(tokens) not in self._known:
            raise LLMError("the oracle knows the puzzles' own texts only")
        puzzle, text = self._known[tuple(tokens)]
        if explanation == puzzle.true:
            return text.values
        for decoy in puzzle.false:
            if explanation == decoy.text:
                return decoy.values(tokens)
        raise LLMError("the oracle knows the puzzles' own descriptions only")
