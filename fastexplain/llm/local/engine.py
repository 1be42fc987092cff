"""Forward passes that compute only what is read.

For readings that begin with the same text:
1. the keys and values of the common text are computed once and kept, a `State`;
2. where many readings have the same head, it is run once behind that, which gives a longer state;
3. what is left of each reading is packed with others of about its length, and runs behind the
   state; on a CPU every core runs passes of its own. The head of the model is applied to the
   hidden states at the places alone, and only to the rows of its weight that belong to digits.

Padding stands behind the texts: attention is causal, so no text sees it. Chats are generated
behind a state too, that of what they begin with in common. Models that keep something else than
keys and values, such as Mamba, read whole texts; which it is, is found once, by a trial.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor

from fastexplain.errors import LLMError
from fastexplain.llm.local.pieces import Prompt
from fastexplain.llm.local.states import EMPTY, State, growing, passing, room_behind
from fastexplain.models.onednn import OneDnnLinear

# Tokens in a pass. With a core for each pass, texts of 266 tokens took 0.38 s of it alone and 0.36
# among two others, but alone they share out evenly; a GPU wants more work in each launch.
_PASS = {"cpu": 512, "cuda": 16384}
# A group's tokens for which its head is worth a pass of its own: on 2 cores one of 13 tokens takes
# 45 ms, and saves 10 ms for each of the texts.
_GROUP = {"cpu": 1536, "cuda": 16384}
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


@dataclass(frozen=True)
class Writing:
    """A text to be generated behind a prompt.

    Attributes:
        ids: the prompt's.
        max_tokens: of the text.
        temperature, seed: of the sampling, which the other texts in a batch don't change.
        integers: whether the log-probabilities of the engine's integers are wanted at each token.
    """

    ids: list[int]
    max_tokens: int
    temperature: float
    seed: int
    integers: bool


@dataclass(frozen=True)
class Written:
    """A generated text: its tokens, without the one that ends it.

    Attributes:
        ids: of the tokens.
        finished: whether the model ended it.
        integers: float32 `[tokens, integers]`, log-probabilities, or None.
    """

    ids: list[int]
    finished: bool
    integers: np.ndarray | None


class Engine:
    """A causal language model that reads and writes. It serves one thread at a time.

    Args:
        network: the model, from transformers, in evaluation mode. Its own settings for generation,
            such as penalties, are dropped.
        digits: the ids of the tokens whose probabilities are read, in their order.
        integers: those whose probabilities may be wanted of what is generated.
        ends: the ids of the tokens that end a text.

    Attributes:
        pass_tokens: in a forward pass at most, but for a single text that is longer.
        group_tokens: of the texts of one head, from which on it is run once for them all.
    """

    def __init__(
        self, network: Any, digits: Sequence[int], integers: Sequence[int], ends: Sequence[int]
    ) -> None:
        self.pass_tokens = _PASS[network.device.type]
        self.group_tokens = _GROUP[network.device.type]
        network.generation_config = GenerationConfig()
        if network.device.type == "cpu":
            _transpose_weights(network)
        self._network = network
        self._narrow = _NarrowHead(network.get_output_embeddings())
        self._device = network.device
        self._vocabulary: int = network.config.get_text_config().vocab_size
        self._cores = torch.get_num_threads()
        self._workers = _workers(network, self._cores)
        self._digits = self._long(digits)
        self._integers = self._long(integers)
        self._ends = list(ends)
        self._states: OrderedDict[tuple[int, ...], State] = OrderedDict()
        self._written: tuple[list[int], State] = [], EMPTY
        self._stopping = False
        self._shares = self._reads_behind_states()

    def stop(self) -> None:
        """Have the work that is going on end soon; may be called from any thread."""
        self._stopping = True

    def read(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Read prompts that have the same `shared`: float32 log-probabilities `[places, digits]`.

        Their heads run once if they are all the same, and it pays.
        """
        with self._running(), self._narrowed():
            shared, head = prompts[0].shared, prompts[0].head
            state = self._state(shared) if self._shares else EMPTY
            before = [[] if self._shares else list(shared)] * len(prompts)
            own = sum(len(each.rest) for each in prompts)
            alike = own >= self.group_tokens and all(each.head == head for each in prompts)
            if self._shares and alike:
                state = self._extend(state, head)
            else:
                before = [[*ids, *each.head] for ids, each in zip(before, prompts, strict=True)]
            texts = [
                ([*ids, *each.rest], [len(ids) + row for row in each.rows])
                for ids, each in zip(before, prompts, strict=True)
            ]
            return self._read(state, texts)

    def _read(self, state: State, texts: list[tuple[list[int], list[int]]]) -> list[np.ndarray]:
        """Read texts, of each its ids and the positions to read, that run behind a state."""
        passes = list(self._passes([len(ids) for ids, _ in texts]))
        workers = min(self._workers, len(passes))

        def run(some: list[int]) -> list[np.ndarray]:
            return self._pass(state, [texts[i] for i in some])

        def run_beside_others(some: list[int]) -> list[np.ndarray]:
            torch.set_num_threads(self._cores // workers)  # of this thread
            with self._running():
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

    def write(self, writings: Sequence[Writing]) -> list[Written]:
        """Generate texts, in one batch where the model can."""
        with self._running():
            if not self._can_pad():
                return [self._write([each])[0] for each in writings]
            return self._write(writings)

    def _write(self, writings: Sequence[Writing]) -> list[Written]:
        with self._narrowed():
            state = self._common_state([each.ids for each in writings])
        longest = max(len(each.ids) for each in writings)
        rows, seen = [], []
        for each in writings:
            padding = longest - len(each.ids)
            start, rest = each.ids[: state.length], each.ids[state.length :]
            rows.append([*start, *[0] * padding, *rest])
            seen.append([*[1] * len(start), *[0] * padding, *[1] * len(rest)])
        most = max(each.max_tokens for each in writings)
        cache = (
            {"past_key_values": room_behind(state, len(rows), longest + most)}
            if state.length
            else {}
        )
        chosen = _Choice(self, writings, self._integers)
        output = self._network.generate(
            self._long(rows),
            attention_mask=self._long(seen),
            logits_processor=[chosen],
            generation_config=GenerationConfig(
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=self._ends or None,
                pad_token_id=self._ends[0] if self._ends else 0,
            ),
            **cache,
        )
        texts = output[:, longest:].tolist()
        return [
            self._cut(each, ids, row, chosen)
            for row, (each, ids) in enumerate(zip(writings, texts, strict=True))
        ]

    def check(self) -> None:
        """Raise LLMError if `stop` was called."""
        if self._stopping:
            raise LLMError("the local engine was stopped before it had answered")

    def _can_pad(self) -> bool:
        """Whether texts may have padding inside, between the common text and their own.

        A window of attention counts the padding as tokens, and so do models that can't be told
        their tokens' positions.
        """
        config = self._network.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or ["full_attention"]
        windowed = getattr(config, "sliding_window", None) is not None
        told = "position_ids" in inspect.signature(self._network.forward).parameters
        return self._shares and told and not windowed and set(kinds) == {"full_attention"}

    def _cut(self, writing: Writing, ids: list[int], row: int, chosen: _Choice) -> Written:
        ids = ids[: writing.max_tokens]
        end = next((i for i, token in enumerate(ids) if token in self._ends), None)
        ids = ids[:end]
        integers = None
        if writing.integers:
            steps = [step[row] for step in chosen.integers[: len(ids)]]
            integers = np.array(steps, dtype=np.float32).reshape(len(ids), len(self._integers))
        return Written(ids, end is not None, integers)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        multiplying = OneDnnLinear() if self._device.type == "cpu" else contextlib.nullcontext()
        with torch.inference_mode(), multiplying:
            yield

    def _long(self, numbers: Sequence[Any]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)

    def _passes(self, lengths: list[int]) -> Iterator[list[int]]:
        """Which texts to run together: those of about the same length."""
        some: list[int] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            if some and (len(some) + 1) * lengths[i] > self.pass_tokens:
                yield some
                some = []
            some.append(i)
        yield some

    def _pass(self, state: State, texts: Sequence[tuple[list[int], list[int]]]) -> list[np.ndarray]:
        """Read texts in one pass."""
        self.check()
        longest = max(len(ids) for ids, _ in texts)
        rows = [ids + [0] * (longest - len(ids)) for ids, _ in texts]
        which = [i for i, (_, positions) in enumerate(texts) for _ in positions]
        where = [position for _, positions in texts for position in positions]
        logits = self._logits(state, rows, which, where, self._digits)
        read = logits.log_softmax(-1).cpu().numpy()
        ends = np.cumsum([len(positions) for _, positions in texts])
        return np.split(read, ends[:-1])

    def _logits(
        self,
        state: State,
        rows: list[list[int]],
        which: list[int],
        where: list[int],
        tokens: Tensor,
    ) -> Tensor:
        """Logits `[read, tokens]`, float32, of the places at `where` in the rows `which`."""
        cache = {}
        if state.length:
            cache["past_key_values"] = passing(state)
        self._narrow.ask(tokens, self._long(which), self._long(where))
        output = self._network(self._long(rows), use_cache=bool(state.length), **cache)
        return output.logits[0].float()

    @contextlib.contextmanager
    def _narrowed(self) -> Iterator[None]:
        """Have the model's head applied only to what it is asked for."""
        self._network.set_output_embeddings(self._narrow)
        try:
            yield
        finally:
            self._network.set_output_embeddings(self._narrow.whole)

    def _state(self, ids: tuple[int, ...]) -> State:
        """The state of a common text, which is kept."""
        if ids not in self._states:
            while len(self._states) >= _STATES:
                self._states.popitem(last=False)
            self._states[ids] = self._extend(EMPTY, ids)
        self._states.move_to_end(ids)
        return self._states[ids]

    def _extend(self, state: State, ids: Sequence[int]) -> State:
        """The state of a text that goes on with `ids`."""
        if not ids:
            return state
        self.check()
        cache: Any = growing(state) if state.length else DynamicCache()
        self._narrow.ask(self._digits, self._long([]), self._long([]))
        self._network(self._long([list(ids)]), past_key_values=cache, use_cache=True)
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return State(state.length + len(ids), layers)

    def _common_state(self, texts: list[list[int]]) -> State:
        """The state of what these texts begin with in common, made from that of the former call.

        At least one token is left of each text.
        """
        if not self._shares:
            return EMPTY
        before, state = self._written
        common = texts[0][: min(len(text) for text in texts) - 1]
        for text in texts[1:]:
            common = common[: _alike(common, text)]
        length = _alike(before, common)
        kept = [(keys[:, :, :length], values[:, :, :length]) for keys, values in state.layers]
        state = self._extend(State(length, kept) if length else EMPTY, common[length:])
        self._written = common, state
        return state

    def _reads_behind_states(self) -> bool:
        """Whether the model reads the same behind a state as in the whole text, to rounding."""
        ids = [number % self._vocabulary for number in range(1, _TRIAL + 1)]
        half = len(ids) // 2
        exact = self._network.dtype in (torch.float32, torch.float64)
        tolerance = _TOLERANCE if exact else _ROUGH_TOLERANCE
        with self._running(), self._narrowed():
            whole = self._trial(EMPTY, ids, half)
            try:
                read = self._trial(self._extend(EMPTY, ids[:half]), ids[half:], 0)
            except Exception:  # each of the models that keep no keys and values fails its own way
                return False
        difference = (read - whole).abs().max()
        return bool(difference <= tolerance * (whole.max() - whole.min()))

    def _trial(self, state: State, ids: list[int], start: int) -> Tensor:
        """Some logits behind each token from `start` on."""
        where = list(range(start, len(ids)))
        tokens = self._long(range(min(_TRIAL_LOGITS, self._vocabulary)))
        return self._logits(state, [ids], [0] * len(where), where, tokens)


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(a), len(b)))


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
    """A model's head at some places and for some tokens: `[1, places, tokens]`.

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

    def ask(self, tokens: Tensor, texts: Tensor, positions: Tensor) -> None:
        """Choose tokens and places, for the passes that this thread runs."""
        self._asked.tokens, self._asked.at = tokens, (texts, positions)

    def forward(self, hidden: Tensor) -> Tensor:
        tokens, rows = self._asked.tokens, hidden[self._asked.at]
        if type(self.whole) is not nn.Linear:  # of a kind that may keep its weight otherwise
            return self.whole(rows)[None, :, tokens]
        bias = None if self.whole.bias is None else self.whole.bias[tokens].float()
        return nn.functional.linear(rows.float(), self.whole.weight[tokens].float(), bias)[None]


class _Choice(LogitsProcessor):
    """Chooses each token: what is left for `generate` is to take the largest.

    Gumbel noise is added to the logits over the temperature; the largest is then distributed as
    their softmax is. Each text has its own noise, so the others in its batch don't matter.

    Attributes:
        integers: for each token so far, for each text, log-probabilities `[integers]`.
    """

    def __init__(self, engine: Engine, writings: Sequence[Writing], integers: Tensor) -> None:
        self.integers: list[np.ndarray] = []
        self._engine = engine
        self._writings = writings
        self._wanted = integers if any(each.integers for each in writings) else None
        self._random = [
            torch.Generator(integers.device).manual_seed(each.seed) for each in writings
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._engine.check()
        scores = scores.float()
        if self._wanted is not None:
            self.integers.append(scores.log_softmax(-1)[:, self._wanted].cpu().numpy())
        chosen = scores.clone()
        for row, (each, random) in enumerate(zip(self._writings, self._random, strict=True)):
            if each.temperature > 0:
                noise = torch.empty_like(scores[row], dtype=torch.float64)
                noise.exponential_(generator=random).log_().neg_()
                chosen[row] = scores[row] / each.temperature + noise
        return chosen
