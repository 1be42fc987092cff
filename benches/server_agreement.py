"""Whether a server's simulations are those of the local engine: SmolLM2 on both sides.

    python benches/server_agreement.py http://127.0.0.1:8000/v1

The server has the model under the name `smollm2` (`tests/server.sh` shows how vLLM serves it; more
than 20 alternatives need `--max-logprobs`). The same explanations are simulated on the same
excerpts by both, as they are on any server, and with each number of `--alternatives` and each
filler as though the server listed no tokens by their ids, by the likeliest of an echoed prompt.
Printed for each: the tokens that are missing, the correlation of the others with the local engine's
(pooled, and the least of a single simulation), the largest difference, and seconds a simulation.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import replace

import numpy as np

from fastexplain import Corpus, load_subject
from fastexplain.llm import Connection, connect
from fastexplain.prompts.simulator import FILLERS, trial
from fastexplain.simulators.model import READOUTS, Simulator

EXPLANATIONS = ("verbs in the past tense", "names of exceptions and errors", "the word “the”")
EXCERPTS = 10
LIKED = {"expected": "unknown", "contrast": "0"}


async def simulate(
    connection: Connection, readout: str, texts: list[list[str]], at_once: int
) -> tuple[np.ndarray, float]:
    """Values `[simulations, tokens]`, and seconds a simulation."""
    simulator = Simulator(connection, "prompt-logprobs", readout)
    slots = asyncio.Semaphore(at_once)

    async def one(explanation: str, tokens: list[str]) -> np.ndarray:
        async with slots:
            return (await simulator.simulate(explanation, tokens)).values

    start = time.perf_counter()
    jobs = [one(explanation, tokens) for explanation in EXPLANATIONS for tokens in texts]
    values = np.stack(await asyncio.gather(*jobs))
    return values, (time.perf_counter() - start) / len(jobs)


def compare(values: np.ndarray, local: np.ndarray) -> str:
    there = np.isfinite(values)

    def correlation(mine: np.ndarray, theirs: np.ndarray, rows: np.ndarray) -> float:
        enough = rows.sum() > 1
        return float(np.corrcoef(mine[rows], theirs[rows])[0, 1]) if enough else float("nan")

    each = [correlation(*rows) for rows in zip(values, local, there, strict=True)]
    apart = np.abs(values - local)[there].max() if there.any() else float("nan")
    return (
        f"missing {1 - there.mean():6.1%}   r {correlation(values, local, there):.4f}   "
        f"least r {np.nanmin([*each, 1.0]):.4f}   largest difference {apart:.4f}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--excerpts", type=int, default=EXCERPTS)
    parser.add_argument("--alternatives", type=int, nargs="*", default=[20, 100])
    arguments = parser.parse_args()
    subject = load_subject("smollm2", device="cpu")
    corpus = Corpus(["stdlib"], subject.tokenizer, excerpts=arguments.excerpts)
    texts = [[subject.tokenizer.decode([i]) for i in row] for row in corpus.tokens]
    print(f"{len(EXPLANATIONS) * len(texts)} simulations of {len(texts[0])} tokens")
    async with (
        connect("smollm2", local=True) as local,
        connect("smollm2", base_url=arguments.url, timeout=1800) as server,
    ):
        server.trial = trial
        known, found = await local.probe(), await server.probe()
        print(f"the probe found: digits {found.digits}, fillers {found.fillers}, {found.lacks}")
        for readout in READOUTS:
            for filler in FILLERS if arguments.alternatives else (LIKED[readout],):
                local.capabilities = replace(known, fillers=(filler,))
                mine, seconds = await simulate(local, readout, texts, at_once=16)
                print(f"{readout}, {filler!r}: local {seconds:.2f} s a simulation", flush=True)
                ways = {"by ids": replace(found, fillers=(filler,))} if found.digits else {}
                for count in arguments.alternatives:
                    by_echo = replace(found, digits=(), prompt_logprobs=count, fillers=(filler,))
                    ways[f"echo, {count} alternatives"] = by_echo
                for name, able in ways.items():
                    server.capabilities = able
                    values, seconds = await simulate(server, readout, texts, at_once=4)
                    print(f"  {name:24} {compare(values, mine)}   {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
