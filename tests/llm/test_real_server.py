"""Real servers, which tests/server.sh starts with SmolLM2: vLLM, or llama-cpp-python.

vLLM computes with the same float32 weights as the local engine. llama-cpp-python computes with the
4-bit weights that these were made from, and rounds the activations too, so it is near only.
"""

import asyncio
import os

import numpy as np
import pytest

from fastexplain.errors import LLMError, UnusableError
from fastexplain.llm import connect
from fastexplain.llm.requests import Capabilities, Chat, Reading
from fastexplain.prompts.examples import EXAMPLES
from fastexplain.prompts.lines import escape
from fastexplain.simulators.model import MODES, READOUTS, Simulator, choose_mode

URL = os.environ.get("FASTEXPLAIN_TEST_SERVER", "")
KIND = os.environ.get("FASTEXPLAIN_TEST_SERVER_KIND", "vllm")
VLLM = KIND == "vllm"

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not URL, reason="FASTEXPLAIN_TEST_SERVER is not set"),
]

# How near log-probabilities are to those of the local engine, at most and on average.
NEAR, NEAR_ON_AVERAGE = (2e-3, 5e-4) if VLLM else (1.0, 0.25)

TOKENS = [
    " Grandma",
    " hung",
    " the",
    " copper",
    " pan",
    "\n",
    "<|im_end|>",
    "\t",
    "�",
    "😀",
    "café",
    "中文",
    "<end>",
    " 10",
]
# A text from the prompt, which so small a model manages to repeat.
EXAMPLE = [token for token, _ in EXAMPLES[2].texts[0]][:9]
EXPLANATION = "things to cook with"

FOUND = Capabilities(
    chat=True,
    chat_logprobs=20,
    schema="json_schema" if VLLM else "json_object_schema",
    next_logprobs=20,
    digits=tuple(range(32, 42)) if VLLM else (),
    prompt_logprobs=20,
    shift=0 if VLLM else 1,
    largest=9,
    fillers=("unknown", "0", "?"),
)


def run(call, *, local=False):
    """What `call` gives for a connection, which was probed."""

    async def main():
        # llama-cpp-python takes a minute to list the alternatives to a whole prompt, one after
        # another.
        kwargs = {"local": True} if local else {"base_url": URL, "timeout": 900}
        async with connect("smollm2", **kwargs) as connection:
            if local:
                await connection.probe()
            else:
                connection.capabilities = FOUND
            return await call(connection)

    return asyncio.run(main())


def both(call):
    return run(call), run(call, local=True)


def short(filler, largest=9):
    """A reading of few tokens, in which numbers are likely."""
    lines = tuple(f"{escape(token)}\t" for token in (*TOKENS, *TOKENS[:4]))
    rows = "".join(f"{line}{number % (largest + 1)}\n" for number, line in enumerate(lines))
    return Reading(
        "Tokens and numbers from 0 to 9:\n", rows, lines if filler else lines[:1], filler, largest
    )


def check_near(far, near):
    """The listed log-probabilities are near, whatever constant each row has."""
    listed = np.isfinite(far)
    if not VLLM:  # the least of a row may be a bound, which those have that are not listed
        listed &= far > far.min(axis=1, keepdims=True)
    assert listed.sum() > 0.5 * listed.size

    rows = listed.sum(axis=1) > 1
    assert rows.mean() > 0.5

    def among_the_listed(values):
        values = np.where(listed, values, -np.inf)[rows]
        return (values - np.logaddexp.reduce(values, axis=1, keepdims=True))[listed[rows]]

    apart = np.abs(among_the_listed(far) - among_the_listed(near))
    assert apart.max() < NEAR and apart.mean() < NEAR_ON_AVERAGE


def test_the_probe_finds_what_the_server_can_do():
    async def probe():
        async with connect("smollm2", base_url=URL, timeout=900) as connection:
            return await connection.probe()

    found = asyncio.run(probe())
    assert found == Capabilities(**(vars(FOUND) | {"lacks": found.lacks}))
    assert sorted(found.lacks or {}) == ([] if VLLM else ["digits"])
    assert choose_mode(found, None, "expected") == choose_mode(found, None, "contrast") == MODES[0]


@pytest.mark.parametrize("filler", ["unknown", "0"])
def test_distributions_within_a_prompt_are_the_local_engines(filler):
    async def read(connection):
        return (await connection.ask(short(filler))).log_probabilities

    check_near(*both(read))


def test_the_distribution_behind_a_text_is_the_local_engines():
    async def read(connection):
        return (await connection.ask(short(""))).log_probabilities

    far, near = both(read)
    check_near(far, near)
    if VLLM:  # lists every digit, as it is asked for them by their ids
        assert np.isfinite(far).all()


def test_chats_are_the_local_engines():
    chat = Chat(
        ({"role": "user", "content": "What is the capital of France? One word."},), max_tokens=10
    )

    async def answer(connection):
        return await connection.ask(chat)

    far, near = both(answer)
    assert far.usage.prompt_tokens == near.usage.prompt_tokens
    if VLLM:
        assert (far.text, far.finish) == (near.text, near.finish)
    else:
        assert "Paris" in far.text


def simulate(mode, readout="expected", tokens=TOKENS):
    async def call(connection):
        simulation = await Simulator(connection, mode, readout).simulate(EXPLANATION, tokens)
        assert simulation.values.shape == (len(tokens),)
        assert (simulation.reason is None) == bool(np.isfinite(simulation.values).all())
        return simulation.values

    return call


@pytest.mark.skipif(not VLLM, reason="takes minutes")
@pytest.mark.parametrize("readout", READOUTS)
def test_simulations_within_prompts_are_the_local_engines(readout):
    """benches/server_agreement.py measures the same on more and longer texts."""
    texts = [TOKENS, *([token for token, _ in each.texts[1]] for each in EXAMPLES)]

    async def simulate_all(connection):
        simulator = Simulator(connection, "prompt-logprobs", readout)
        found = await asyncio.gather(*(simulator.simulate(EXPLANATION, each) for each in texts))
        return np.concatenate([each.values for each in found])

    far, near = both(simulate_all)
    assert np.isfinite(far).all() and np.isfinite(near).all()
    assert np.corrcoef(far, near)[0, 1] > 0.999
    np.testing.assert_allclose(far, near, atol=10 * NEAR)


@pytest.mark.parametrize("readout", READOUTS)
def test_a_simulation_of_one_token_at_a_time_is_the_local_engines(readout):
    tokens = TOKENS if VLLM else TOKENS[:3]
    far, near = both(simulate("one-at-a-time", readout, tokens))
    assert np.isfinite(near).all()
    np.testing.assert_allclose(far, near, atol=10 * NEAR)


def test_a_simulation_that_is_written_with_numbers_is_read():
    if VLLM:
        far, near = both(simulate("generated-logprobs", tokens=EXAMPLE))
        np.testing.assert_allclose(far, near, atol=0.1)
    else:
        # With 4-bit weights the model loses its way behind the first line.
        far = run(simulate("generated-logprobs", tokens=EXAMPLE))[:1]
    assert np.isfinite(far).all() and ((far >= 0) & (far <= 9)).all()


def test_a_simulation_that_is_written_as_json_is_read():
    values = run(simulate("json", tokens=EXAMPLE))
    assert np.isfinite(values).all() and set(values) <= set(range(11))


def test_a_request_that_the_server_refuses_says_why():
    long = Chat(({"role": "user", "content": "la " * 6000},), max_tokens=5)

    async def ask(connection):
        connection._retries = 0  # llama-cpp-python answers 500 to a prompt that is too long
        return await connection.ask(long)

    with pytest.raises(LLMError, match=r"(?i)token.*\(status \d+\)"):
        run(ask)


@pytest.mark.skipif(not VLLM, reason="llama-cpp-python takes any name for its model's")
def test_the_server_names_the_models_that_it_has():
    async def main():
        async with connect("absent", base_url=URL) as connection:
            await connection.probe()

    with pytest.raises(UnusableError, match=r"has no model 'absent'; it has: smollm2$"):
        asyncio.run(main())
