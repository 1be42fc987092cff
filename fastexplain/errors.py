"""The errors that fastexplain raises on purpose: one line each, worded for the person who can act.

Arguments are named in backticks, as in Python: `max_cost`, `readout='expected'`. The command line
prints the message alone, with its options in their place; exit code 2 for `UsageError`, 1 for the
others.
"""

from __future__ import annotations


class FastexplainError(Exception):
    """Base of every error raised on purpose."""


class UsageError(FastexplainError):
    """An argument or option makes no sense as given."""


class SubjectError(FastexplainError):
    """A subject can't be loaded, or its MLPs can't be found."""


class CorpusError(FastexplainError):
    """A corpus can't be read, or holds no usable text."""


class SweepError(FastexplainError):
    """A sweep can't go on, for example because activations are not finite."""


class RunError(FastexplainError):
    """A run directory is missing, unfinished or damaged, or lacks what was asked for."""


class LLMError(FastexplainError):
    """An explainer or simulator can't be reached, or can't do what was asked of it."""


class UnusableError(LLMError):
    """A model can't serve any request: no server, a refused key, or it lacks what is needed."""


class BudgetError(FastexplainError):
    """The next request might pass the limit that was set on cost or requests."""


class StoppedError(BudgetError):
    """The user has stopped a command: what was in flight is complete, and no more is sent."""


class Deferred(FastexplainError):
    """A request was noted for a batch: its answer comes later, it did not fail."""
