"""The command by which people judge explanations, line by line."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fastexplain.cli.common import AsJson, RunPath
from fastexplain.cli.terminal import messages, out, print_json, print_line
from fastexplain.counting import counted
from fastexplain.errors import UsageError

if TYPE_CHECKING:
    from fastexplain.rating.session import RatingSession
    from fastexplain.rating.tasks import Task
    from fastexplain.run.ratings import Judgement

_HELP = """\
2 1 3    a ranking: explanation 2 is best, then 1, then 3
2=1 3    the same with a tie: 2 and 1 are equally good
g 4 2 5  grades from 1 to 5 in place of a ranking: 4 for explanation 1, 2 for 2, 5 for 3
s        skip this neuron
b        go back to the one before, to change what was said of it
n        go on to the next that is not rated, without a change
u        undo the last judgement, change or skip
q        quit; all is stored already
The viewer's Rate takes rankings and grades by the same keys, without the g."""


def rate(
    run: RunPath,
    rater: Annotated[
        str, typer.Option(metavar="NAME", help="Your name; what you say is stored under it.")
    ],
    neurons: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NEURON",
            help="5:131, 5:*, 0-3:*, all, or @FILE with one a line; all if left out.",
        ),
    ] = None,
    texts: Annotated[
        int | None, typer.Option(metavar="N", help="Explanations to compare at the most; else 4.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge explanations yourself, blind to whose they are.

    Of one neuron after another it shows activations on held-out text and the explanations in an
    order by chance. Rank them in a line such as 2 1 3, best first, or type ? for help. All raters
    get the same neurons first.
    """
    from fastexplain.rating.session import RatingSession
    from fastexplain.rating.tasks import TEXTS
    from fastexplain.run.directory import open_run
    from fastexplain.run.selection import select_neurons

    opened = open_run(run)
    chosen = select_neurons(opened, neurons) if neurons else None
    session = RatingSession(opened, rater, chosen, texts=TEXTS if texts is None else texts)
    if chosen is not None and (fewer := len(chosen) - len(session.neurons)):
        print_line(f"Left out: {counted(fewer, 'neuron')} without two explanations that differ.")
    dialogue = _Dialogue(session)
    dialogue.run()
    if as_json:
        print_json(
            {"run": str(run), "rater": session.rater, **dialogue.counts, "left": session.left()}
        )
    else:
        did = ", ".join(f"{count:,} {what}" for what, count in dialogue.counts.items())
        out.print(
            f"By {session.rater}: {did}; left: {counted(session.left(), 'neuron')}. "
            f"See: fastexplain ratings {run}",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def parse_judgement(line: str, texts: int) -> Judgement:
    """What a line says of so many texts: a ranking such as `2=1 3`, or grades such as `g 4 2 5`.

    Raises:
        UsageError: it says neither.
    """
    from fastexplain.run.ratings import GRADES, RANKING, Judgement

    if re.match(r"g\b", line):
        grades = line[1:].split()
        if len(grades) != texts or not all(re.fullmatch("[1-5]", grade) for grade in grades):
            raise UsageError(
                f"'{line}' is not {texts} grades; write g and a number from 1 to 5 for each "
                f"explanation, as in g {' '.join('42513'[place % 5] for place in range(texts))}"
            )
        return Judgement(GRADES, tuple(map(int, grades)))
    places = re.sub(r"\s*=\s*", "=", line).split()
    named = [number for place in places for number in place.split("=")]
    if sorted(named) != sorted(str(number) for number in range(1, texts + 1)):
        best_first = " ".join(map(str, [2, 1, *range(3, texts + 1)]))
        raise UsageError(
            f"'{line}' is no ranking of {texts} explanations; name each once, best first, as in "
            f"{best_first}, or {best_first.replace(' ', '=', 1)} for a tie; ? shows what else "
            "there is"
        )
    rank = 1
    ranks: dict[int, int] = {}
    for place in places:
        tied = place.split("=")
        ranks |= dict.fromkeys(map(int, tied), rank)
        rank += len(tied)
    return Judgement(RANKING, tuple(ranks[number] for number in range(1, texts + 1)))


def judgement_line(judgement: Judgement) -> str:
    """A judgement as it is written: the opposite of `parse_judgement`."""
    from fastexplain.run.ratings import GRADES, SKIPPED

    kind, values = judgement
    if kind == SKIPPED:
        return "skipped"
    if kind == GRADES:
        return " ".join(["g", *map(str, values)])
    ties = (
        "=".join(str(number) for number, value in enumerate(values, start=1) if value == rank)
        for rank in sorted(set(values))
    )
    return " ".join(ties)


class _Dialogue:
    """Shows a task, reads a line, does what it says; until `q` or the input's end.

    Attributes:
        counts: what was done: rated, skipped, undone.
    """

    def __init__(self, session: RatingSession) -> None:
        self._session = session
        self._task: Task | None = None
        self.counts = {"rated": 0, "skipped": 0, "undone": 0}
        self._asks = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # which is no judgement, and asked again

    def run(self) -> None:
        self._go_on()
        while (line := self._read()) is not None and line != "q":
            try:
                self._do(line)
            except UsageError as error:
                print_line(str(error))

    def _read(self) -> str | None:
        """The next line, without white space around it; None at the end."""
        if self._asks:
            prompt = "Rank, best first (? helps): " if self._task else "b or q: "
            messages.print(prompt, end="", markup=False)
        line = sys.stdin.readline()
        if not line and self._asks:
            messages.print()
        return line.strip() if line else None

    def _do(self, line: str) -> None:
        from fastexplain.run.ratings import SKIPPED, Judgement

        if line == "?":
            out.print(_HELP, markup=False)
        elif line == "b":
            before = self._session.earlier((self._task and self._task.rating.id) or None)
            if before is None:
                raise UsageError("there is nothing before this one")
            self._show(before)
        elif line == "n":
            self._go_on()
        elif line == "u":
            self._undo()
        elif self._task is None:
            raise UsageError("nothing is left to judge; b goes back, u undoes, q quits")
        elif line == "s":
            self._store(self._task, Judgement(SKIPPED), "skipped")
        else:
            self._store(self._task, parse_judgement(line, len(self._task.texts)), "rated")

    def _store(self, task: Task, judgement: Judgement, what: str) -> None:
        try:
            self._session.store(task.neuron, task.key, judgement)
        except UsageError as error:  # its explanations have changed
            print_line(str(error))
        else:
            self.counts[what] += 1
            out.print(f"Stored for {task.neuron}: {judgement_line(judgement)}\n", markup=False)
        self._go_on()

    def _undo(self) -> None:
        undone = self._session.undo()
        if undone is None:
            raise UsageError("there is nothing to undo")
        self.counts["undone"] += 1
        out.print(f"Undone for {undone.neuron}: {judgement_line(undone.judgement)}", markup=False)
        try:
            self._show(self._session.task(undone.neuron))
        except UsageError as error:  # it has no two explanations any more
            print_line(str(error))
            self._go_on()

    def _go_on(self) -> None:
        task = self._session.next_task()
        if task is not None:
            self._show(task)
            return
        self._task = None
        out.print("Nothing is left: all neurons are judged or skipped.")

    def _show(self, task: Task) -> None:
        from fastexplain.cli.excerpts import print_exemplars
        from fastexplain.cli.token_text import words_text

        self._task = task
        out.print(
            f"[bold]neuron {task.neuron}[/]  largest activation {task.largest:.3g}  "
            f"{self._session.left():,} left"
        )
        for kind in dict.fromkeys(kind for kind, _ in task.exemplars):
            own = [exemplar for each, exemplar in task.exemplars if each == kind]
            title = f"{kind} excerpts of the test split"
            print_exemplars(out, title, own, task.largest, task.skip)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="right", style="bold")
        table.add_column(ratio=1, overflow="fold")
        for number, text in enumerate(task.texts, start=1):
            table.add_row(str(number), words_text(text))
        out.print("\n[bold]explanations[/]")
        out.print(table)
        if task.judgement is not None:
            out.print(f"So far: {judgement_line(task.judgement)}", markup=False)
