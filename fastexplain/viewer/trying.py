"""A text or an explanation of one's own.

GET  /api/subject   `Background.state`
POST /api/subject   the same, once its loading is begun
POST /api/try       {text, page, neuron?}   all neurons ranked, or one followed; `Background.state`
                                            where the subject was not loaded, which is begun
                    {excerpt, page, neuron}  one followed on an excerpt of the run
POST /api/simulate  {neuron, explanation}   a list, simulated and scored
GET  /api/simulator        `Simulations.state`, or `simulating.without_simulator`
POST /api/simulate/cost    {neuron, explanation}   `Simulations.estimate`
POST /api/simulate/model   {neuron, explanation}   `Simulations.ask`

`page` tells open pages apart: a newer text of the same page makes an older one's answer 409.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from fastexplain.errors import UsageError
from fastexplain.records import NeuronId
from fastexplain.viewer.answers import JSONAnswer
from fastexplain.viewer.background import Background, OvertakenError
from fastexplain.viewer.viewed import Viewed, body_of

if TYPE_CHECKING:
    import numpy as np

    from fastexplain.run.directory import Run
    from fastexplain.subject.activations import Text
    from fastexplain.viewer.simulating import Simulations

MOST_CHARACTERS = 4000
"""Of a text or an explanation: on a laptop's CPU a small model takes seconds for it."""

_MOST_NEURONS = 12  # of each token, and 25 over the text
_OVER_TEXT = 25


def routes(viewed: Viewed) -> Sequence[BaseRoute]:
    """The addresses that the module's text lists."""
    run, background = viewed.run, Background(viewed)
    simulations = _simulations(viewed)

    def subject(request: Request) -> JSONAnswer:
        if request.method == "POST":
            background.begin()
        return JSONAnswer(background.state())

    def tried(asked: dict[str, Any]) -> dict[str, Any]:
        page = asked.get("page")
        text = _text(asked, "text") if asked.get("excerpt") is None else _excerpt(run, asked)
        if not isinstance(page, str) or len(page) > 40:
            raise UsageError("`page` is a name of up to 40 characters")
        neuron = None if asked.get("neuron") is None else _neuron(viewed, asked)
        if neuron is not None and neuron.place:
            raise UsageError(f"{neuron} is no neuron of a layer's MLP, which alone can be tried")
        if neuron is None and not isinstance(text, str):
            raise UsageError("name the `neuron` that is followed on the excerpt")
        if background.state()["state"] != "ready":
            background.begin()
            return background.state()
        try:
            return _tried(background, viewed, page, text, neuron)
        except OvertakenError:
            raise HTTPException(409, "a newer text has overtaken this one") from None

    def simulated(asked: dict[str, Any]) -> dict[str, Any]:
        from fastexplain.report.trying import simulated_data

        return simulated_data(run, _neuron(viewed, asked), _text(asked, "explanation"))

    def simulator(_: Request) -> JSONAnswer:
        from fastexplain.viewer.simulating import without_simulator

        return JSONAnswer(without_simulator(run) if simulations is None else simulations.state())

    def by_model(asked: dict[str, Any], *, cost: bool = False) -> dict[str, Any]:
        neuron, text = _neuron(viewed, asked), _text(asked, "explanation")
        if simulations is None:
            raise UsageError(
                "the viewer has no simulator; start it as: fastexplain view RUN --simulator MODEL"
            )
        return (simulations.estimate if cost else simulations.ask)(neuron, text)

    def answering(act: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> JSONAnswer:
            return JSONAnswer(await run_in_threadpool(act, await body_of(request)))

        return answer

    return [
        Route("/api/subject", subject, methods=["GET", "POST"]),
        Route("/api/try", answering(tried), methods=["POST"]),
        Route("/api/simulate", answering(simulated), methods=["POST"]),
        Route("/api/simulator", simulator),
        Route("/api/simulate/cost", answering(partial(by_model, cost=True)), methods=["POST"]),
        Route("/api/simulate/model", answering(by_model), methods=["POST"]),
    ]


def _simulations(viewed: Viewed) -> Simulations | None:
    """What simulates by a language model, until the viewer ends."""
    if viewed.beside.simulator is None:
        return None
    from fastexplain.viewer.simulating import Simulations

    found = Simulations(viewed.run, viewed.beside.simulator)
    viewed.at_end.callback(found.close)
    return found


def _tried(
    background: Background, viewed: Viewed, page: str, text: Text, neuron: NeuronId | None
) -> dict[str, Any]:
    from fastexplain.report.finding import activated_data
    from fastexplain.report.trying import followed_data

    if neuron is not None:
        tokens, values = background.run(
            page, lambda ranker, go_on: ranker.follow(text, neuron, go_on)
        )
        return followed_data(viewed.run, neuron, tokens, values)
    found = activated_data(
        background.run(
            page, lambda ranker, go_on: ranker.rank(text, [], top=_OVER_TEXT, progress=go_on)
        )
    )
    return found | {"by_token": [own[:_MOST_NEURONS] for own in found["by_token"]]}


def _neuron(viewed: Viewed, asked: dict[str, Any]) -> NeuronId:
    name = asked.get("neuron")
    if not isinstance(name, str):
        raise UsageError("name a neuron, such as 5:131")
    return viewed.run.check(NeuronId.parse(name[:100]))


def _excerpt(run: Run, asked: dict[str, Any]) -> np.ndarray:
    """Token ids of one of the run's excerpts."""
    excerpt, count = asked["excerpt"], run.manifest["sweep"]["excerpts"]
    if type(excerpt) is not int or not 0 <= excerpt < count:
        raise UsageError(f"`excerpt` is a number from 0 to {count - 1}, as the run's excerpts have")
    return run.excerpt(excerpt)


def _text(asked: dict[str, Any], name: str) -> str:
    text = asked.get(name)
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"`{name}` has no text; type some")
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"`{name}` has {len(text):,} characters; give {MOST_CHARACTERS:,} at most")
    # Halves of characters, which JSON can name, are no text to a tokenizer.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
