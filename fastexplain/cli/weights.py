"""The command that reads the subject's weights, and what `show` prints of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fastexplain.cli.common import Anew, AsJson, Device, RunPath, SubjectPlace, Trust
from fastexplain.cli.terminal import out, print_json, progress

if TYPE_CHECKING:
    from fastexplain.run.directory import Run
    from fastexplain.run.weights import Neighbour, NeuronWeights, TokenEffect

_NEIGHBOURS = {
    "similar": "writes the same as (or, below 0, the opposite of)",
    "fed_by": "lower neurons that write what it reads",
    "read_by": "higher neurons that read what it writes",
}


def weights(
    run: RunPath,
    subject: SubjectPlace = None,
    device: Device = None,
    fresh: Anew = False,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Find what all neurons do by their weights alone.

    Of each: the tokens that its output raises and lowers, those that it reads, and the neurons of
    other layers that write the same, feed it or read it. Show prints them.
    """
    from fastexplain.run.directory import open_run
    from fastexplain.run.weights import stored_weights

    opened = open_run(run)
    if not fresh and (there := stored_weights(opened)) is not None:
        if as_json:
            _print_data(opened, run, None)
            return
        given = {"--subject": subject, "--device": device, "--trust-remote-code": trust_remote_code}
        unused = " and ".join(name for name, value in given.items() if value)
        out.print(
            f"Stored before, and left as it is: {there}."
            f"{f' {unused} had no effect.' if unused else ''} To find it again: "
            f"fastexplain weights {run} --fresh",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        return
    from fastexplain.pipeline import weighing

    before = time.perf_counter()
    with progress("Reading weights", weighing.steps(opened)) as report:
        found = weighing.weights(
            opened, subject=subject, device=device, fresh=fresh,
            trust_remote_code=trust_remote_code, progress=report,
        )  # fmt: skip
    seconds = time.perf_counter() - before
    if as_json:
        _print_data(opened, run, seconds)
        return
    out.print(f"Stored: {found}. Look at one: fastexplain show {run} "
              f"{opened.layers[0]}:0", markup=False, soft_wrap=True)  # fmt: skip


def _print_data(opened: Run, run: Path, seconds: float | None) -> None:
    """Print the result as JSON; `seconds` that it took, None where all was stored before."""
    neurons = sum(map(opened.width, opened.layers))
    print_json({"run": str(run), "neurons": neurons, "seconds": seconds})


def weights_table(found: NeuronWeights) -> Table:
    """A neuron's weights: tokens with their values, neurons with cosines."""
    from fastexplain.cli.text_table import light_table

    table = light_table("By its weights")
    table.add_column("what", max_width=26, overflow="fold")
    table.add_column("which", ratio=1, overflow="fold")
    spread = f"spread {found.output.spread:.2g}"
    table.add_row(f"raises ({spread})", _tokens(found.output.most))
    table.add_row("lowers", _tokens(found.output.least))
    for part, side in found.inputs.items():
        table.add_row(f"{part}: reads (spread {side.spread:.2g})", _tokens(side.most))
        table.add_row(f"{part}: reads below 0", _tokens(side.least))
    for kind, name in _NEIGHBOURS.items():
        if neighbours := getattr(found, kind):
            table.add_row(name, _neurons(neighbours))
    return table


def _tokens(tokens: Sequence[TokenEffect]) -> Text:
    from fastexplain.cli.token_text import words_text

    return words_text(", ".join(f"{each.token!r} {each.value:+.2g}" for each in tokens))


def _neurons(neighbours: Sequence[Neighbour]) -> Text:
    return Text(", ".join(f"{each.neuron} {each.cosine:+.2f}" for each in neighbours))
