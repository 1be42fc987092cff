"""Simulation: a model predicts a neuron's activations from its explanation alone.

1. A way to simulate is chosen by what the connection can do (`choose_mode`).
2. The prompt is built; where its values will stand is known by construction (`prompts/`).
3. The answer gives a distribution over the integers at each token, or in JSON a number.
4. A readout makes one value a token of the distributions (`readouts.py`).

Source: Bills et al. 2023, "Step 2: Simulate the neuron's activations", and its section on
simulating a whole excerpt at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastexplain.errors import Deferred, LLMError, UnusableError, UsageError
from fastexplain.llm.base import Connection
from fastexplain.llm.requests import Answer, Capabilities, Chat, Distribution, Request, Response
from fastexplain.prompts import answers, simulator, simulator_chats
from fastexplain.simulators.readouts import contrast, expected

MODES = ("prompt-logprobs", "generated-logprobs", "json", "one-at-a-time")
READOUTS = ("expected", "contrast", "contrast-others")

# The modes that read one prompt's distributions as they are, so that the same prompt can be read
# under another explanation. In the others what the model wrote before comes in between.
_CONTRASTED = ("prompt-logprobs", "one-at-a-time")

# The empty explanation of a contrast: one that is true of every token.
EMPTY = "something"

# Explanations of other neurons, of different kinds. They are the same for all, so that a neuron's
# score does not depend on which others were explained.
OTHERS = ("names of rivers and lakes", "the word “which”", "signs that end a line of code")

_NULLS = {"expected": (), "contrast": (EMPTY,), "contrast-others": OTHERS}

# Of the requests for one excerpt's single tokens, so many are there at once. Excerpts are
# simulated many at a time, and their prompts would add up.
_AT_ONCE = 8


@dataclass(frozen=True)
class Simulation:
    """What a neuron would do on an excerpt, if the explanation were all that there is to it.

    Attributes:
        values: float64 `[tokens]`, NaN where one is missing. On the scale 0..9 or 0..10 of the
            prompt by the readout "expected", on one of its own by "contrast".
        reason: why the first of the missing ones is missing, if any is.
    """

    values: np.ndarray
    reason: str | None = None


def choose_mode(capabilities: Capabilities, wanted: str | None, readout: str) -> str:
    """The way to simulate that is asked for, or the best that there is, in the order of `MODES`.

    Args:
        capabilities: of the simulator's connection.
        wanted: one of `MODES`, or None for the best.
        readout: one of `READOUTS`; contrasts need distributions that depend on the text alone.

    Raises:
        UnusableError: the connection lacks what is needed.
        UsageError: there is no such mode or readout.
    """
    check_way(wanted, readout)
    fitting = _CONTRASTED if _NULLS[readout] else MODES
    if wanted is not None and wanted not in fitting:
        raise UnusableError(
            f"the {readout} readout can't be had with `simulation={wanted!r}`, only with "
            f"{' or '.join(fitting)}; choose one of these, or `readout='expected'`"
        )
    lacking = {mode: _lacking(mode, capabilities) for mode in MODES}
    usable = [mode for mode in fitting if lacking[mode] is None]
    if wanted in usable or (wanted is None and usable):
        return wanted or usable[0]
    ways = [f"`simulation={mode!r}`" for mode in usable[:1]]
    if not ways and _NULLS[readout] and None in lacking.values():
        ways = ["`readout='expected'`"]
    needed = dict.fromkeys(str(lacking[mode]) for mode in ((wanted,) if wanted else fitting))
    use = ", ".join(["use vLLM", "a local model", *ways])
    before, comma, last = use.rpartition(", ")
    raise UnusableError(f"the simulator gives {', and '.join(needed)}; {before}{comma}or {last}")


class Simulator:
    """Simulates by one model in one way.

    Args:
        connection: the model; it was probed. Where requests that are alike are asked once only,
            as by a `StoredConnection`, a contrast's other readings cost once an excerpt.
        mode: one of `MODES`, see `choose_mode`.
        readout: one of `READOUTS`.
        filler: what stands at the places of a prompt; what suits the readout if None.
        examples: of the prompt, one of `prompts.simulator.EXAMPLE_SETS`; the mode one-at-a-time
            knows only the first of these.

    Attributes:
        model: the model's name.
        version: names the prompts, the mode, the readout, and what of the rest is not as usual.

    Raises:
        UsageError: there is no such mode or readout.
    """

    def __init__(
        self,
        connection: Connection,
        mode: str,
        readout: str = "expected",
        filler: str | None = None,
        examples: str = simulator.STANDARD,
    ) -> None:
        check_way(mode, readout)
        self.model = connection.model
        self.version = f"{simulator.VERSION} {mode} {readout}"
        self._connection = connection
        self._mode = mode
        self._nulls, self._examples = _NULLS[readout], examples
        if mode == "prompt-logprobs":
            liked = simulator.ZERO if self._nulls else simulator.UNKNOWN
            usable = (connection.capabilities or Capabilities()).fillers or (liked,)
            order = (filler or liked, liked, *simulator.FILLERS)
            self._filler = next((each for each in order if each in usable), liked)
            if self._filler != liked:
                self.version += f" with-{self._filler}"
        if examples != simulator.STANDARD:
            self.version += f" {examples}-examples"

    async def simulate(self, explanation: str, tokens: Sequence[str]) -> Simulation:
        """Predict a neuron's values on the counted tokens of an excerpt.

        Args:
            explanation: what the neuron reacts to.
            tokens: the excerpt's counted tokens, as text.

        Raises:
            UnusableError: the simulator can answer nothing.
            BudgetError: the next request might pass the limit.
            Deferred: the requests were noted for a batch.
            LLMError: the request failed for good; one at a time, that is part of the result.
        """
        if not tokens:
            return Simulation(np.empty(0))
        largest = self._capabilities.largest
        if self._mode == "json":
            held = self._capabilities.schema is not None
            chat = simulator_chats.structured(
                explanation, tokens, held=held, examples=self._examples
            )
            answer = await self._answer(chat)
            return Simulation(*answers.structured(answer, tokens, simulator_chats.LARGEST))
        if self._mode == "generated-logprobs":
            chat = simulator_chats.repeating(explanation, tokens, largest, self._examples)
            answer = await self._answer(chat)
            rows, reason = answers.repeated(answer, tokens, largest)
            return Simulation(expected(rows), reason)
        explanations = [explanation, *self._nulls]
        ask = self._singles if self._mode == "one-at-a-time" else self._at_once
        read = await ask(explanations, tokens)
        reason = next((why for _, why in read if why), None)
        own, *nulls = (rows for rows, _ in read)
        return Simulation(contrast(own, *nulls) if nulls else expected(own), reason)

    def requests(self, tokens: int) -> int:
        """How many requests a simulation of so many tokens takes at the most."""
        return (tokens if self._mode == "one-at-a-time" else 1) * (1 + len(self._nulls))

    @property
    def _capabilities(self) -> Capabilities:
        return self._connection.capabilities or Capabilities()

    async def _answer(self, chat: Chat) -> Answer:
        [answer] = await self._ask_all([chat])
        assert isinstance(answer, Answer)
        return answer

    async def _at_once(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> list[answers.Read]:
        """Logarithms of probabilities `[tokens, largest + 1]` under each of the explanations."""
        largest = self._capabilities.largest
        responses = await self._ask_all(
            [
                simulator.reading(text, tokens, largest, self._filler, self._examples)
                for text in explanations
            ]
        )
        result: list[answers.Read] = []
        for response in responses:
            assert isinstance(response, Distribution)
            rows = response.log_probabilities
            missing = np.flatnonzero(np.isnan(rows).any(axis=1)).tolist()
            why = (
                f"no probabilities of numbers at {answers.named(missing[0], tokens)}"
                if missing
                else None
            )
            result.append((rows, why))
        return result

    async def _singles(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> list[answers.Read]:
        """As `_at_once`, by one request a token."""
        largest, plain = self._capabilities.largest, bool(self._capabilities.next_logprobs)
        ask = simulator.single_reading if plain else simulator_chats.single_chat
        places = [(text, place) for text in explanations for place in range(len(tokens))]
        outcomes = await self._outcomes(
            (ask(text, tokens[: place + 1], largest) for text, place in places), len(places)
        )
        result = []
        for start in range(0, len(outcomes), len(tokens)):
            rows = np.full((len(tokens), largest + 1), np.nan)
            reason = None
            for place, outcome in enumerate(outcomes[start : start + len(tokens)]):
                row, why = _single(outcome, largest)
                rows[place] = row
                if why and not reason:
                    reason = f"{why}, at {answers.named(place, tokens)}"
            result.append((rows, reason))
        return result

    async def _ask_all(self, requests: Sequence[Request]) -> list[Response]:
        """Responses to a few requests that are of use together only."""
        responses = []
        for outcome in await self._outcomes(requests, len(requests)):
            if isinstance(outcome, LLMError):
                raise outcome
            responses.append(outcome)
        return responses

    async def _outcomes(self, requests: Iterable[Request], count: int) -> list[Response | LLMError]:
        """Responses in order, and in its place the failure of each request that failed.

        All are asked even if one fails or is noted for a batch. Where none can be answered any
        more, those that are in flight are waited for, since they may have been paid for.
        """
        source = enumerate(requests)
        outcomes: dict[int, Response | LLMError] = {}
        deferred: list[Deferred] = []

        async def work() -> None:
            for index, request in source:
                try:
                    outcomes[index] = await self._connection.ask(request)
                except UnusableError:
                    raise
                except LLMError as error:
                    outcomes[index] = error
                except Deferred as error:
                    deferred.append(error)

        crew = (work() for _ in range(min(count, _AT_ONCE)))
        for error in [*await asyncio.gather(*crew, return_exceptions=True), *deferred]:
            if error is not None:
                raise error
        return [outcomes[index] for index in sorted(outcomes)]


def check_way(mode: str | None, readout: str) -> None:
    """Raise UsageError where there is no such mode or readout; None is any mode."""
    if mode is not None and mode not in MODES:
        raise UsageError(f"there is no simulation '{mode}'; choose one of {', '.join(MODES)}")
    if readout not in READOUTS:
        raise UsageError(f"there is no readout '{readout}'; choose one of {', '.join(READOUTS)}")


def _lacking(mode: str, can: Capabilities) -> str | None:
    """What a connection doesn't give that a mode needs, in words; None if it has it all."""
    # Whether it is there, what it is, and under which names the server's reasons are noted.
    needs: dict[str, list[tuple[object, str, tuple[str, ...]]]] = {
        "prompt-logprobs": [
            (can.prompt_logprobs, "log-probabilities of prompts (echo)", ("prompt_logprobs",)),
            (can.fillers, "numbers at the places of a prompt", ("fillers",)),
        ],
        "generated-logprobs": [
            (
                can.chat and can.chat_logprobs,
                "log-probabilities in chats",
                ("chat_logprobs", "chat"),
            ),
        ],
        "json": [(can.chat, "answers to chats", ("chat",))],
        "one-at-a-time": [
            (
                can.next_logprobs or can.chat_logprobs,
                "log-probabilities of answers",
                ("next_logprobs", "chat_logprobs"),
            )
        ],
    }
    reasons = can.lacks or {}
    for there, what, names in needs[mode]:
        if not there:
            why = next((reasons[name] for name in names if reasons.get(name)), None)
            return f"no {what} ({why})" if why else f"no {what}"
    return None


def _single(outcome: Response | LLMError, largest: int) -> answers.Read:
    """One token's distribution, `[1, largest + 1]`, and why it is missing, if it is."""
    if isinstance(outcome, LLMError):
        return np.full((1, largest + 1), np.nan), str(outcome)
    if isinstance(outcome, Answer):
        return answers.single(outcome, largest)
    missing = bool(np.isnan(outcome.log_probabilities).any())
    return outcome.log_probabilities, "no probabilities of numbers" if missing else None
