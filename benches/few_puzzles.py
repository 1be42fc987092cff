"""`fastexplain puzzles` on 12 of the 48 puzzles: `python benches/few_puzzles.py --tune RUN ...`.

For a machine on which a small simulator reads one text a second. Of each level it takes the first
puzzle for choosing and the first for reporting; all options are those of the command. Answers are
stored as by the command, so that a whole pass goes on from them.
"""

from __future__ import annotations

import sys

from fastexplain.cli import main
from fastexplain.puzzles import texts

_A_LEVEL = 8  # puzzles


def take_few() -> None:
    """Make the puzzles fewer for this process."""
    every = texts.load()
    every[0].record()  # numbers of tokens are made once, of all puzzles
    few = tuple(puzzle for puzzle in every if puzzle.place % _A_LEVEL < 2)
    texts._all = lambda: few  # type: ignore[assignment]


if __name__ == "__main__":
    take_few()
    sys.argv[1:1] = ["puzzles"]
    main.main()
