"""The kinds of neurons that `find` knows, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastexplain.errors import UsageError
from fastexplain.finding.beyond_lookup import FAILS, SUCCEEDS, BeyondLookupSearch
from fastexplain.finding.contexts import breaks, repeats, seen_before
from fastexplain.finding.marked import EXCESS, SHARE, MarkedSearch
from fastexplain.finding.positions import EXPLAINED, PositionSearch
from fastexplain.finding.results import Search
from fastexplain.finding.single_tokens import CORRELATION, FEWEST, SingleTokenSearch
from fastexplain.finding.wordings import Similes, Typos
from fastexplain.finding.writing import DEVIATIONS, WritingSearch
from fastexplain.finding.writing import SHARE as ONE_TOKEN
from fastexplain.run.directory import Run

_MARKED = (
    f"{SHARE:.0%} of its energy is on these, {100 * EXCESS:.0f} percentage points more than the "
    "tokens alone let expect; sorted by the excess"
)


class Kind(NamedTuple):
    """What a ready-made search looks for.

    Attributes:
        finds: what neurons it finds.
        criterion: from when on one is found, and what results are sorted by.
        make: prepares the search of a run; raises UsageError where the run lacks what it needs.
    """

    finds: str
    criterion: str
    make: Callable[[Run], Search]


KINDS = {
    "pattern-break": Kind(
        "fire where something else comes than a pattern in the excerpt promised",
        _MARKED,
        lambda run: MarkedSearch(run, breaks),
    ),
    "repetition": Kind(
        "fire where a token follows the two before it again, as earlier in the excerpt",
        _MARKED,
        lambda run: MarkedSearch(run, repeats),
    ),
    "seen-before": Kind(
        "fire on tokens that stand earlier in the excerpt",
        _MARKED,
        lambda run: MarkedSearch(run, seen_before),
    ),
    "simile": Kind(
        "fire in comparisons, as 'like a lion' (English)",
        _MARKED,
        lambda run: MarkedSearch(run, Similes(run), context=1),
    ),
    "typo": Kind(
        "fire on misspelt words: swapped, doubled or missing double letters",
        _MARKED,
        lambda run: MarkedSearch(run, Typos(run), context=0),
    ),
    "single-token": Kind(
        "fire on forms of one token",
        f"it correlates at {CORRELATION} or more with that the token is of this form, which stands "
        f"in the corpus {FEWEST} times or more; sorted by the correlation",
        SingleTokenSearch,
    ),
    "position": Kind(
        "fire by the place in the excerpt",
        f"positions explain {EXPLAINED:.0%} of the variance on random excerpts (epsilon squared); "
        "sorted by that",
        PositionSearch,
    ),
    "writes-another": Kind(
        "fire for one token and write another",
        f"{ONE_TOKEN:.0%} of its top exemplars are strongest on one token, and its output raises "
        f"another by {DEVIATIONS:.0f} deviations over the vocabulary or more; sorted by these",
        WritingSearch,
    ),
    "beyond-lookup": Kind(
        "are explained where lookup fails",
        f"lookup scores below {FAILS}, another explanation {SUCCEEDS} or more; sorted by the "
        "difference",
        BeyondLookupSearch,
    ),
}
"""By name. Most are from Bills et al. 2023, "Interesting neurons"."""


def kind_of(name: str) -> Kind:
    """The kind of that name. Raises UsageError for another."""
    if name not in KINDS:
        raise UsageError(f"there is no kind '{name}'; choose from {', '.join(KINDS)}")
    return KINDS[name]
