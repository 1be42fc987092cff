"""What explainers and simulators ask of a language model, whichever way it is reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np


class Connection(ABC):
    """A language model that answers chats and tells the probabilities of parts of a prompt.

    All methods raise LLMError where the model can't be reached or can't do what is asked. A
    connection serves one event loop.

    Attributes:
        model: the model's name, as it is stored with what the model says.
        concurrency: requests worth having in flight at once.
    """

    model: str
    concurrency: int

    @abstractmethod
    async def generate(
        self,
        messages: Sequence[dict[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The model's answer to a chat of `{"role": ..., "content": ...}` messages."""

    @abstractmethod
    async def largest_integer(self) -> int:
        """The largest value that is one token behind a tab: 10, or 9 where "10" is two tokens.

        Raises LLMError where the integers 0 to 9 are not one token each there.
        """

    @abstractmethod
    async def integer_log_probabilities(
        self, text: str, places: Sequence[int], *, shared: int = 0
    ) -> np.ndarray:
        """What the model would write in place of the words that start at `places`.

        Args:
            text: the prompt, taken as plain text.
            places: offsets in `text`, in characters; each follows a tab.
            shared: the first `shared` characters are common to many requests, so an engine may
                keep its state there.

        Returns:
            float64 `[places, largest_integer + 1]`: natural logarithms of the probabilities of
            0, 1, 2, ...; -inf where one is too small for the server to list, NaN through the row
            where none is listed.
        """

    async def check(self) -> None:
        """Ask for one token, so that what fails for every request fails before the first."""
        await self.generate([{"role": "user", "content": "Say yes."}], max_tokens=1)

    async def close(self) -> None:
        """Let go of the model; the connection is of no use afterwards."""
        return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
