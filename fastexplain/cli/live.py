"""Progress display for commands that send requests: a live line, or a line every ten seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from fastexplain.cli.terminal import SECONDS, changing_line, duration, print_line
from fastexplain.pipeline.explaining import Progress

_STOPPING = "stopping when the requests in flight are answered; Ctrl-C again stops now"


def progress_line(progress: Progress, seconds: float) -> str:
    """One line on what is done, how fast, for how much, and how long it will take.

    Args:
        seconds: since the beginning.
    """
    if not progress.requests_a_neuron:
        return "; ".join([progress.stage, *[_STOPPING] * progress.interrupted.is_set()])
    meter = progress.meter
    parts = [f"{progress.stage}: {progress.done:,} of {progress.total:,} neurons"]
    counts = [f"{meter.answered:,} answered"]
    counts += [f"{meter.stored:,} stored before"] * bool(meter.stored)
    counts += [f"{meter.failed:,} failed"] * bool(meter.failed)
    counts += [f"{progress.retried:,} retries"] * bool(progress.retried)
    parts.append("requests " + ", ".join(counts))
    if meter.answered and seconds > 0:
        tokens = meter.prompt_tokens + meter.completion_tokens
        parts.append(f"{meter.answered / seconds:,.1f} requests/s")
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
    if meter.cost:
        parts.append(f"${meter.cost:,.4f}")
    sent = meter.answered + meter.failed
    if sent and progress.done < progress.total:
        each = progress.requests_a_neuron
        begun = max(meter.done - each * (progress.done - progress.before), 0)
        left = max(each * (progress.total - progress.done) - begun, 0)
        parts.append(f"{duration(left * seconds / sent)} left")
    if progress.interrupted.is_set():
        parts.append(_STOPPING)
    return "; ".join(parts)


@contextlib.contextmanager
def display(progress: Progress, *, seconds: float = SECONDS) -> Iterator[None]:
    """Show the progress of requests on standard error, and a last line at the end.

    Args:
        seconds: between two lines where standard error is no terminal.
    """
    began = time.perf_counter()

    def line() -> str:
        return progress_line(progress, time.perf_counter() - began)

    try:
        with changing_line(line, seconds=seconds):
            yield
    finally:
        if progress.requests_a_neuron:
            print_line(line())
