"""Forward passes that compute only what is read.

1. The keys and values of a text that many requests begin with are computed once, a `State`.
2. What is left of each reading is packed with others of about its length, and runs behind the
   state; on a CPU every core runs passes of its own. The head of the model is applied to the
   hidden states at the places alone, and only to the rows of its weight that belong to digits.

Padding stands behind the texts: attention is causal, so no text sees it. Models that keep something
else than keys and values, such as Mamba, read whole texts; which it is, a trial finds once.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig

from fastexplain.errors import LLMError
from fastexplain.llm.local.pieces import Prompt
from fastexplain.llm.local.states import EMPTY, State, growing, passing
from fastexplain.models.onednn import OneDnnLinear

# Tokens in a pass. With a core for each pass, texts of 266 tokens took 0.38 s of it alone and 0.36
# among two others, but alone they share out evenly; a GPU wants more work in each launch.
_PASS = {"cpu": 512, "cuda": 16384}
# Passes at the same time. On 2 cores without other work two passes, each by one thread, are as fast
# as one after the other by two, 0.19 to 0.20 s a text; with other work these wait for each other at
# the end of every product: 0.6 s against 1.9 to 3.1. Python allows no more than some.
_WORKERS = 8
# States of common texts that are kept; a simulator has one for each kind of prompt.
_STATES = 4
# Tokens on which reading behind a state is tried, and by how much of the range of what is read it
# may differ from reading the whole text: rounding is 1e-5 in float32 and 1e-2 in bfloat16.
_TRIAL, _TRIAL_LOGITS = 24, 8
_TOLERANCE, _ROUGH_TOLERANCE = 1e-3, 0.1


class _Text(NamedTuple):
    """What runs behind a state: its token ids, and the positions in it that are read."""

    ids: list[int]
    positions: list[int]


class Engine:
    """A causal language model in this process, read at chosen places. It serves one thread.

    Args:
        network: the model, from transformers, in evaluation mode. Its own settings for generation,
            such as penalties, are dropped, and its head is put behind a `_NarrowHead`.
        digits: the ids of the tokens whose probabilities are read, in their order.

    Attributes:
        network: the model.
        shares: whether it reads the same behind a state as in the whole text.
    """

    def __init__(self, network: Any, digits: Sequence[int]) -> None:
        network.generation_config = GenerationConfig()
        if network.device.type == "cpu":
            _transpose_weights(network)
        self.network = network
        self._head = _NarrowHead(network.get_output_embeddings())
        network.set_output_embeddings(self._head)
        self._cores = torch.get_num_threads()
        self._workers = _workers(network, self._cores)
        self._digits = self.long(digits)
        self._states: OrderedDict[tuple[int, ...], State] = OrderedDict()
        self._stopping = False
        self.shares = self._reads_behind_states()

    def stop(self) -> None:
        """Have the work that is going on end soon; may be called from any thread."""
        self._stopping = True

    def check(self) -> None:
        """Raise LLMError if `stop` was called."""
        if self._stopping:
            raise LLMError("the local engine was stopped before it had answered")

    def read(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Read prompts that have the same `shared`: float32 log-probabilities `[places, digits]`.

        Raises:
            LLMError: `stop` was called.
        """
        shared = prompts[0].shared
        before = () if self.shares else shared
        texts = [
            _Text([*before, *each.rest], [len(before) + row for row in each.rows])
            for each in prompts
        ]
        passes = list(_passes([len(text.ids) for text in texts], _PASS[self.network.device.type]))
        workers = min(self._workers, len(passes))
        with self.running():
            state = self._state(shared) if self.shares else EMPTY

            def run(some: list[int]) -> list[np.ndarray]:
                return self._pass(state, [texts[i] for i in some])

            def run_beside_others(some: list[int]) -> list[np.ndarray]:
                torch.set_num_threads(self._cores // workers)  # of this thread
                with self.running():
                    return run(some)

            if workers > 1:
                with ThreadPoolExecutor(workers) as pool:
                    results = list(pool.map(run_beside_others, passes))
            else:
                results = [run(some) for some in passes]
        read: dict[int, np.ndarray] = {}
        for some, result in zip(passes, results, strict=True):
            read |= zip(some, result, strict=True)
        return [read[i] for i in range(len(texts))]

    def extend(self, state: State, ids: Sequence[int]) -> State:
        """The state of a text that goes on with `ids`."""
        if not ids:
            return state
        self.check()
        cache = growing(state)
        self._logits(cache, [list(ids)], [[]], self._digits)
        layers: Any = cache.layers
        return State(state.length + len(ids), [(layer.keys, layer.values) for layer in layers])

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """What every forward pass needs of the thread that it is in."""
        cpu = self.network.device.type == "cpu"
        with torch.inference_mode(), OneDnnLinear() if cpu else contextlib.nullcontext():
            yield

    def long(self, numbers: Sequence[Any]) -> Tensor:
        """Integers as a tensor where the model is."""
        return torch.tensor(numbers, dtype=torch.long, device=self.network.device)

    def _pass(self, state: State, texts: Sequence[_Text]) -> list[np.ndarray]:
        """Read texts in one pass."""
        self.check()
        longest = max(len(text.ids) for text in texts)
        rows = [text.ids + [0] * (longest - len(text.ids)) for text in texts]
        positions = [text.positions for text in texts]
        read = self._logits(passing(state), rows, positions, self._digits).log_softmax(-1)
        ends = np.cumsum([len(each) for each in positions])
        return np.split(read.cpu().numpy(), ends[:-1])

    def _logits(
        self, cache: Cache | None, rows: list[list[int]], positions: list[list[int]], tokens: Tensor
    ) -> Tensor:
        """Logits `[places, tokens]`, float32, at each row's positions, row by row."""
        which = [row for row, places in enumerate(positions) for _ in places]
        where = [place for places in positions for place in places]
        with self._head.narrowed(tokens, self.long(which), self.long(where)):
            output = self.network(
                self.long(rows), past_key_values=cache, use_cache=cache is not None
            )
        return output.logits[0].float()

    def _state(self, ids: tuple[int, ...]) -> State:
        """The state of a common text, which is kept."""
        if ids not in self._states:
            while len(self._states) >= _STATES:
                self._states.popitem(last=False)
            self._states[ids] = self.extend(EMPTY, ids)
        self._states.move_to_end(ids)
        return self._states[ids]

    def _reads_behind_states(self) -> bool:
        vocabulary = self.network.config.get_text_config().vocab_size
        ids = [number % vocabulary for number in range(1, _TRIAL + 1)]
        tokens = self.long(range(min(_TRIAL_LOGITS, vocabulary)))
        half = _TRIAL // 2
        exact = self.network.dtype in (torch.float32, torch.float64)
        tolerance = _TOLERANCE if exact else _ROUGH_TOLERANCE
        with self.running():
            whole = self._logits(None, [ids], [list(range(half, _TRIAL))], tokens)
            try:
                state = self.extend(EMPTY, ids[:half])
                places = [list(range(_TRIAL - half))]
                read = self._logits(passing(state), [ids[half:]], places, tokens)
            except Exception:  # each of the models that keep no keys and values fails its own way
                return False
        difference = (read - whole).abs().max()
        return bool(difference <= tolerance * (whole.max() - whole.min()))


def _passes(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Which texts to run together: those of about the same length, `most` tokens with padding."""
    some: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if some and (len(some) + 1) * lengths[i] > most:
            yield some
            some = []
        some.append(i)
    yield some


def _workers(network: Any, cores: int) -> int:
    """How many passes may run at a time."""
    if network.device.type != "cpu":
        return 1
    # These change the model by the length of what it is given.
    rope = getattr(network.config.get_text_config(), "rope_parameters", None)
    changes = any(kind in str(rope) for kind in ("dynamic", "longrope"))
    return 1 if changes else min(cores, _WORKERS)


def _transpose_weights(network: Any) -> None:
    """Lay out the weights of linear layers column by column, which changes nothing but the speed.

    Two chats together take 5% less of a core's time (`benches/NOTES.md`), by themselves the layers
    of SmolLM2 20 to 30% for 8 to 16 tokens. Readings, of hundreds of tokens, gain nothing.
    """
    head = network.get_output_embeddings()  # whose weight may be that of the input too
    for module in network.modules():
        if type(module) is nn.Linear and module is not head:
            module.weight.data = module.weight.data.t().contiguous().t()


class _NarrowHead(nn.Module):
    """A model's head, which a thread may narrow to some places and tokens: `[1, places, tokens]`.

    What a model does to all logits alike, such as scaling or capping them, it does to these too,
    which are float32 whatever it computes in.

    Args:
        whole: the head.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole
        self.weight = whole.weight  # some models ask it for its type
        self._asked = threading.local()

    @contextlib.contextmanager
    def narrowed(self, tokens: Tensor, texts: Tensor, positions: Tensor) -> Iterator[None]:
        """In the passes that this thread runs meanwhile, compute these logits alone."""
        self._asked.places = tokens, (texts, positions)
        try:
            yield
        finally:
            del self._asked.places

    def forward(self, hidden: Tensor) -> Tensor:
        tokens, places = getattr(self._asked, "places", (None, None))
        if tokens is None:
            return self.whole(hidden)
        rows = hidden[places]
        if type(self.whole) is not nn.Linear:  # of a kind that may keep its weight otherwise
            return self.whole(rows)[None, :, tokens]
        bias = None if self.whole.bias is None else self.whole.bias[tokens].float()
        return nn.functional.linear(rows.float(), self.whole.weight[tokens].float(), bias)[None]
