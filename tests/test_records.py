"""Names of neurons."""

import pytest

from fastexplain import NeuronId
from fastexplain.errors import UsageError
from fastexplain.records import plain_name


@pytest.mark.parametrize("name", ["5:131", " 5:131\n", "blocks.5.mlp.hook_post:131"])
def test_a_neurons_names(name: str) -> None:
    assert NeuronId.parse(name) == NeuronId(5, 131)
    assert str(NeuronId.parse(name)) == "5:131"


@pytest.mark.parametrize(
    "name",
    ["", "5", "5:", "5:*", "5:-1", "5:1:2", "5:\u0661", "5:" + "9" * 5000,
     "blocks.5.mlp.hook_post", "blocks.5.mlp.hook_post:*", "blocks.5.mlp.hook_pre:1",
     "blocks.5.attn.hook_z:1"],
)  # fmt: skip
def test_what_names_no_neuron(name: str) -> None:
    with pytest.raises(UsageError, match="does not name a neuron; write layer:index, as in 5:131"):
        NeuronId.parse(name)


def test_a_layer_by_its_name_in_transformerlens() -> None:
    assert plain_name("blocks.12.mlp.hook_post") == "12:*"
    assert plain_name("blocks.12.mlp.hook_post: 0-99 ") == "12:0-99"
    assert plain_name("all") == "all"
