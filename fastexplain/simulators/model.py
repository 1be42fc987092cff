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
from typing import Protocol

import numpy as np

from fastexplain.errors import Deferred, LLMError, UnusableError, UsageError
from fastexplain.llm.requests import Answer, Capabilities, Distribution, Request, Response
from fastexplain.prompts import answers, simulator, simulator_chats
from fastexplain.simulators.readouts import contrast, expected

MODES = ("prompt-logprobs", "generated-logprobs", "json", "one-at-a-time")
READOUTS = ("expected", "contrast")

# The modes that read one prompt's distributions as they are, so that the same prompt can be read
# under another explanation. In the others what the model wrote before comes in between.
_CONTRASTED = ("prompt-logprobs", "one-at-a-time")

# The empty explanation of a contrast: one that is true of every token.
EMPTY = "something"

# Of the requests for one excerpt's single tokens, so many are there at once. Excerpts are
# simulated many at a time, and their prompts would add up.
_AT_ONCE = 8


class _Connection(Protocol):
    model: str
    capabilities: Capabilities | None

    async def ask(self, request: Request) -> Response: ...


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
        readout: one of `READOUTS`; "contrast" needs distributions that depend on the text alone.

    Raises:
        UnusableError: the connection lacks what is needed.
        UsageError: there is no such mode or readout.
    """
    _check(wanted, readout)
    fitting = _CONTRASTED if readout == "contrast" else MODES
    if wanted is not None and wanted not in fitting:
        raise UnusableError(
            f"the contrast readout can't be had with --simulation {wanted}, only with "
            f"{' or '.join(fitting)}; choose one of these, or --readout expected"
        )
    lacking = {mode: _lacking(mode, capabilities) for mode in MODES}
    for mode in (wanted,) if wanted else fitting:
        if lacking[mode] is None:
            return mode
    usable = [mode for mode in fitting if lacking[mode] is None]
    ways = [f"--simulation {mode}" for mode in usable]
    if not ways and readout == "contrast" and any(lacking[mode] is None for mode in MODES):
        ways = ["--readout expected"]
    needed = dict.fromkeys(str(lacking[mode]) for mode in ((wanted,) if wanted else fitting))
    use = ", ".join(["use vLLM", "a local model (--simulator-local)", *ways[:1]])
    before, comma, last = use.rpartition(", ")
    raise UnusableError(f"the simulator gives {', and '.join(needed)}; {before}{comma}or {last}")


class Simulator:
    """Simulates by one model in one way.

    Args:
        connection: the model; it was probed. Where requests that are alike are asked once only,
            as by a `StoredConnection`, a contrast's second reading costs once an excerpt.
        mode: one of `MODES`, see `choose_mode`.
        readout: one of `READOUTS`.

    Attributes:
        model: the model's name.
        version: names the prompts, the mode and the readout.

    Raises:
        UsageError: there is no such mode or readout.
    """

    def __init__(self, connection: _Connection, mode: str, readout: str = "expected") -> None:
        _check(mode, readout)
        self.model = connection.model
        self.version = f"{simulator.VERSION} {mode} {readout}"
        self._connection = connection
        self._mode = mode
        self._contrast = readout == "contrast"

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
        if self._mode == "json":
            return await self._structured(explanation, tokens)
        if self._mode == "generated-logprobs":
            rows, reason = await self._repeated(explanation, tokens)
            return Simulation(expected(rows), reason)
        if not self._contrast:
            [(rows, reason)] = await self._distributions([explanation], tokens)
            return Simulation(expected(rows), reason)
        (rows, reason), (empty, other) = await self._distributions([explanation, EMPTY], tokens)
        return Simulation(contrast(rows, empty), reason or other)

    def requests(self, tokens: int) -> int:
        """How many requests a simulation of so many tokens takes at the most."""
        return (tokens if self._mode == "one-at-a-time" else 1) * (2 if self._contrast else 1)

    @property
    def _capabilities(self) -> Capabilities:
        return self._connection.capabilities or Capabilities()

    async def _structured(self, explanation: str, tokens: Sequence[str]) -> Simulation:
        held = self._capabilities.schema is not None
        request = simulator_chats.structured(explanation, tokens, held=held)
        [answer] = await self._ask_all([request])
        assert isinstance(answer, Answer)
        return Simulation(*answers.structured(answer, tokens, simulator_chats.LARGEST))

    async def _repeated(self, explanation: str, tokens: Sequence[str]) -> answers.Read:
        largest = self._capabilities.largest
        [answer] = await self._ask_all([simulator_chats.repeating(explanation, tokens, largest)])
        assert isinstance(answer, Answer)
        return answers.repeated(answer, tokens, largest)

    async def _distributions(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> list[answers.Read]:
        """Logarithms of probabilities `[tokens, largest + 1]` under each of the explanations."""
        if self._mode == "one-at-a-time":
            return await self._singles(explanations, tokens)
        largest = self._capabilities.largest
        filler = _filler(self._capabilities, self._contrast)
        responses = await self._ask_all(
            [simulator.reading(text, tokens, largest, filler) for text in explanations]
        )
        result = []
        for response in responses:
            assert isinstance(response, Distribution)
            result.append((response.log_probabilities, _why(response.log_probabilities, tokens)))
        return result

    async def _singles(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> list[answers.Read]:
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


def _check(mode: str | None, readout: str) -> None:
    if mode is not None and mode not in MODES:
        raise UsageError(f"there is no simulation '{mode}'; choose one of {', '.join(MODES)}")
    if readout not in READOUTS:
        raise UsageError(f"there is no readout '{readout}'; choose one of {', '.join(READOUTS)}")


def _lacking(mode: str, capabilities: Capabilities) -> str | None:
    """What a connection doesn't give that a mode needs, in words; None if it has it all."""
    reasons = capabilities.lacks or {}

    def missing(what: str, *names: str) -> str:
        why = next((reasons[name] for name in names if reasons.get(name)), None)
        return f"no {what} ({why})" if why else f"no {what}"

    match mode:
        case "prompt-logprobs":
            if not capabilities.prompt_logprobs:
                return missing("log-probabilities of prompts (echo)", "prompt_logprobs")
            if not capabilities.fillers:
                return missing("token of its own to a word behind a tab", "fillers")
        case "generated-logprobs":
            if not (capabilities.chat and capabilities.chat_logprobs):
                return missing("log-probabilities in chats", "chat_logprobs", "chat")
        case "json":
            if not capabilities.chat:
                return missing("answers to chats", "chat")
        case "one-at-a-time":
            if not (capabilities.next_logprobs or capabilities.chat_logprobs):
                what = "log-probabilities of answers"
                return missing(what, "next_logprobs", "chat_logprobs")
    return None


def _filler(capabilities: Capabilities, contrasted: bool) -> str:
    """What stands at the places of a prompt: what we like best of what the tokenizer can."""
    liked = (simulator.ZERO, *simulator.FILLERS) if contrasted else simulator.FILLERS
    return next((filler for filler in liked if filler in capabilities.fillers), liked[0])


def _single(outcome: Response | LLMError, largest: int) -> answers.Read:
    """One token's distribution, `[1, largest + 1]`, and why it is missing, if it is."""
    if isinstance(outcome, LLMError):
        return np.full((1, largest + 1), np.nan), str(outcome)
    if isinstance(outcome, Answer):
        return answers.single(outcome, largest)
    missing = bool(np.isnan(outcome.log_probabilities).any())
    return outcome.log_probabilities, "no probabilities of numbers" if missing else None


def _why(log_probabilities: np.ndarray, tokens: Sequence[str]) -> str | None:
    """The reason of the first row of `[tokens, integers]` that is missing, if one is."""
    missing = np.flatnonzero(np.isnan(log_probabilities).any(axis=1))
    if not missing.size:
        return None
    return f"no probabilities of numbers at {answers.named(int(missing[0]), tokens)}"
