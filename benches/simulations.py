"""Simulations a second by the local engine, and by the ways there are without it.

    python benches/simulations.py [--rounds 3] [--explanations 4] [--excerpts 10] [--url URL]

SmolLM2 simulates neurons on excerpts of the standard library's documentation, 64 tokens each; the
excerpts of an explanation are asked about at once. The ways take turns in every round:

1. engine: `LocalConnection`, from the `Reading` to its distribution. Its states of common texts
   were made beforehand, as in a long run.
2. whole: each prompt tokenized as a whole and run through the model as transformers loads it, its
   full head over all positions; float32, one prompt at a time.
3. batched: the same, `--batch` prompts at a time, padded to the longest.
4. vLLM, where `--url` says that one serves the model as `smollm2`, as `tests/server.sh` starts
   it: prompt log-probabilities by `echo`, the 20 likeliest tokens at each position, eight in
   flight.

A ratio is that of the rates in one round; its median is shown with the smallest. Before them stands
the least that the engine's passes could take: their matrix products at the rate that oneDNN
multiplies with here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import checkout  # noqa: F401
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastexplain import Corpus
from fastexplain.llm.local.connection import LocalConnection
from fastexplain.llm.requests import Distribution, Reading
from fastexplain.models.onednn import OneDnnLinear
from fastexplain.models.smollm2 import smollm2_directory
from fastexplain.prompts.simulator import reading

EXPLANATIONS = (
    "names of functions and methods of a class",
    "words about files, paths and directories",
    "the word “return” and what follows it",
    "numbers, versions and years",
    "conditions: “if”, “unless”, “otherwise”, and the clauses that they begin",
    "punctuation behind a closing bracket",
)
IN_FLIGHT = 8  # requests to vLLM

Way = Callable[[Sequence[Reading]], list[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--explanations", type=int, default=4)
    parser.add_argument("--excerpts", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--few", type=int, default=4, help="prompts a round for the slow ways")
    parser.add_argument("--url", help="of a vLLM's API, up to /v1")
    given = parser.parse_args()

    connection = LocalConnection("smollm2")
    groups = make_requests(connection, given.explanations, given.excerpts)
    ways: dict[str, Way] = {"engine": lambda some: by_engine(connection, some)}
    # By the engine's thread: with two that compute, OpenMP's threads would hinder each other.
    thread = connection._thread
    whole = thread.submit(WholePrompts).result()
    ways["whole"] = lambda some: thread.submit(whole.run, some, 1).result()
    ways["batched"] = lambda some: thread.submit(whole.run, some, given.batch).result()
    if given.url:
        ways["vLLM"] = lambda some: by_vllm(given.url, some)

    thread.submit(print_floor, connection, groups[0]).result()
    check_equal(ways, groups[0][:3])
    print_building(connection, groups)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(given.rounds):
        group = groups[number % len(groups)]
        for name, way in ways.items():
            some = group if name == "engine" else group[: max(given.few, given.batch)]
            start = time.perf_counter()
            way(some)
            rates[name].append(len(some) / (time.perf_counter() - start))
        load = os.getloadavg()[0]
        print(f"round {number + 1}, load {load:.1f}: " + ", ".join(
            f"{name} {rate[-1]:.2f}/s" for name, rate in rates.items()
        ))  # fmt: skip
    print_table(rates)


def make_requests(
    connection: LocalConnection, explanations: int, excerpts: int
) -> list[list[Reading]]:
    """The requests of each explanation."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory())
    corpus = Corpus(["stdlib"], tokenizer, excerpts=explanations * excerpts)
    texts = [[tokenizer.decode([id_]) for id_ in row] for row in corpus.tokens.tolist()]
    largest = asyncio.run(connection.probe()).largest
    return [
        [reading(EXPLANATIONS[i % len(EXPLANATIONS)], text, largest) for text in
         texts[i * excerpts : (i + 1) * excerpts]]
        for i in range(explanations)
    ]  # fmt: skip


def by_engine(connection: LocalConnection, requests: Sequence[Reading]) -> list[np.ndarray]:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(connection.ask(each) for each in requests))

    answers: list[Distribution] = asyncio.run(ask())
    return [each.log_probabilities for each in answers]


class WholePrompts:
    """The plain way: all of each prompt, and logits of the whole vocabulary everywhere."""

    def __init__(self) -> None:
        directory = smollm2_directory()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.digits = self.tokenizer.convert_tokens_to_ids([str(digit) for digit in range(10)])

    def run(self, requests: Sequence[Reading], batch: int) -> list[np.ndarray]:
        result = []
        for start in range(0, len(requests), batch):
            result += self._run(requests[start : start + batch])
        return result

    @torch.inference_mode()
    def _run(self, requests: Sequence[Reading]) -> list[np.ndarray]:
        encoded = [self.tokenizer(each.text, return_offsets_mapping=True) for each in requests]
        longest = max(len(each["input_ids"]) for each in encoded)
        rows = [each["input_ids"] + [0] * (longest - len(each["input_ids"])) for each in encoded]
        logits = self.model(torch.tensor(rows)).logits
        result = []
        for request, each, values in zip(requests, encoded, logits, strict=True):
            ends = {end: row for row, (_, end) in enumerate(each["offset_mapping"])}
            read = values[[ends[place] for place in request.places]]
            result.append(read[:, self.digits].log_softmax(-1).numpy())
        return result


def by_vllm(url: str, requests: Sequence[Reading]) -> list[np.ndarray]:
    """Log-probabilities of the prompt; -inf where a digit is not among the likeliest."""

    def ask(request: Reading) -> np.ndarray:
        body = {"model": "smollm2", "prompt": request.text, "max_tokens": 1, "temperature": 0}
        body |= {"echo": True, "logprobs": 20}
        call = urllib.request.Request(
            f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call) as response:
            answer = json.load(response)["choices"][0]["logprobs"]
        at = {offset: i for i, offset in enumerate(answer["text_offset"])}
        listed = [answer["top_logprobs"][at[place]] for place in request.places]
        rows = [[each.get(str(digit), -np.inf) for digit in range(10)] for each in listed]
        return np.array(rows, dtype=np.float32)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(ask, requests))


def print_floor(connection: LocalConnection, requests: Sequence[Reading]) -> None:
    """What a simulation's products would take at the rate of one large product."""
    network, pieces = connection._engine.network, connection._pieces
    prompts = [pieces.prompt(each) for each in requests]
    tokens = statistics.mean(len(each.rest) for each in prompts)
    before = len(prompts[0].shared)
    config = network.config
    head = network.get_output_embeddings().weight.numel()
    weights = sum(w.numel() for w in network.parameters() if w.dim() == 2) - head
    linear = 2 * weights * tokens
    # Scores and mixtures, each 2 operations for every query, key and dimension.
    pairs = tokens * (before + tokens / 2)
    attention = 4 * pairs * config.hidden_size * config.num_hidden_layers
    whole = 2 * (weights + head) * (tokens + before)

    x, weight = torch.randn(1024, config.hidden_size), torch.randn(1536, config.hidden_size)
    seconds = []
    with torch.inference_mode(), OneDnnLinear():
        for _ in range(50):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            seconds.append(time.perf_counter() - start)
    rate = 2 * x.shape[0] * weight.numel() / statistics.median(seconds)
    print(
        f"{tokens:.0f} tokens of a prompt's {before + tokens:.0f} are its own: "
        f"{linear / 1e9:.1f} GFLOP in linear layers, {attention / 1e9:.1f} in attention; "
        f"a whole prompt's linear layers and head: {whole / 1e9:.0f}\n"
        f"oneDNN multiplies with {rate / 1e9:.0f} GFLOP/s: at least "
        f"{(linear + attention) / rate * 1e3:.0f} ms a simulation"
    )


def expected(log_probabilities: np.ndarray) -> np.ndarray:
    p = np.exp(np.float64(log_probabilities))
    return p @ np.arange(p.shape[1]) / p.sum(1)


def check_equal(ways: dict[str, Way], requests: Sequence[Reading]) -> None:
    """Print how far the ways' expected values are apart; also runs everything a first time."""
    read = {name: np.concatenate(way(requests)) for name, way in ways.items()}
    for name, values in read.items():
        listed = np.isfinite(values).all(1)  # vLLM gives the 20 likeliest tokens only
        apart = np.abs(expected(values[listed]) - expected(read["whole"][listed])).max(initial=0)
        print(
            f"expected values, {name} and whole: at most {apart:.1e} apart at {listed.sum()} of "
            f"{len(values)} places"
        )


def print_building(connection: LocalConnection, groups: Sequence[Sequence[Reading]]) -> None:
    """What it takes to make token ids of a request whose tokens were seen before."""
    requests = [each for group in groups for each in group]
    for _ in range(2):
        start = time.perf_counter()
        for each in requests:
            connection._pieces.prompt(each)
        seconds = time.perf_counter() - start
    print(f"token ids of a request: {seconds / len(requests) * 1e3:.3f} ms")


def print_table(rates: dict[str, list[float]]) -> None:
    print(f"\n{'way':<10}{'simulations/s':>15}{'engine is':>15}{'at least':>12}")
    for name, all_rates in rates.items():
        ratios = [a / b for a, b in zip(rates["engine"], all_rates, strict=True)]
        middle = statistics.median(ratios)
        print(
            f"{name:<10}{statistics.median(all_rates):>15.2f}"
            f"{middle:>13.1f} x{min(ratios):>10.1f} x"
        )


if __name__ == "__main__":
    main()
