"""What the viewer answers on a neuron, and to what it can't."""

import asyncio

import httpx2 as httpx
import pytest

from fastexplain import Run
from fastexplain.viewer.application import application
from fastexplain.viewer.guard import Door

ADDRESS = "http://127.0.0.1:8484"


def ask(run: Run, *paths: str) -> list[httpx.Response]:
    async def asked() -> list[httpx.Response]:
        app = application(run, Door.of("127.0.0.1", 8484))
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=ADDRESS) as client,
        ):
            return [await client.get(f"/api/{path}") for path in paths]

    return asyncio.run(asked())


def test_a_neuron_and_what_its_page_loads_later(planted_run: Run) -> None:
    page, similar, around = ask(planted_run, "neuron/0:0", "similar/0:1", "context/3?before=2")
    assert page.json()["neuron"] == "0:0" and similar.json()["neurons"]
    beside, table = ask(planted_run, "baselines/0:0", "table/0:0")
    assert len(table.json()["values"]) >= 10
    assert list(beside.json()["baselines"]) == ["mismatched", "token", "position"]
    assert beside.json()["baselines"]["token"]["top_and_random"] > 0.9  # its text is a token
    assert around.json() == {"before": [], "after": []}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("neuron/0:999", "there is no neuron 0:999"),
        ("neuron/cat", "'cat' does not name a neuron"),
        ("similar/9:0", "layer 9 was not swept"),
        ("ruled/9:0/5", "layer 9 was not swept"),
        ("ruled/0:0/5", "explanation 5 is no rule of 0:0"),
        ("baselines/9:0", "layer 9 was not swept"),
        ("table/9:0", "layer 9 was not swept"),
        ("context/x", "'x' is no number"),
        ("context/3?after=-1", "'-1' is no number"),
        ("context/999", "there is no excerpt 999"),
        ("request/0:0/5", "no model was asked for an explanation 5 of 0:0"),
    ],
)
def test_what_is_not_there_gets_one_line(planted_run: Run, path: str, why: str) -> None:
    [answer] = ask(planted_run, path)
    assert answer.status_code == 400 and why in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
