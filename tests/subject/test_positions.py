"""An MLP that runs on other positions than the text's is refused before anything is folded."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import fastexplain
from fastexplain import Subject
from fastexplain.errors import SubjectError


class Streams(LlamaDecoderLayer):
    def also(self, x):
        return torch.cat([x, x])


class Some(LlamaDecoderLayer):
    def also(self, x):
        return x[:, 1:]


class Extra(LlamaDecoderLayer):
    def also(self, x):
        return torch.cat([x, x[:, :1]], dim=1)


class PositionsFirst(LlamaDecoderLayer):
    def also(self, x):
        return x.transpose(0, 1)


class Twice(LlamaDecoderLayer):
    def also(self, x):
        return x


def forward(self, hidden_states, **more):
    self.mlp(self.also(hidden_states))
    return LlamaDecoderLayer.forward(self, hidden_states, **more)


KINDS = {
    Streams: r"runs on \[.*\] positions in place of",
    Some: r"runs on \[.*\] positions in place of",
    Extra: r"runs on \[.*\] positions in place of",
    PositionsFirst: r"runs on \[(8, 3|64, 5)\] positions in place of",
    Twice: "layers.1.mlp more than once a text",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [True, False])
def test_other_positions_are_refused(
    kind, fused, make_model, make_tokenizer, planted_corpus, tmp_path
) -> None:
    model = make_model()
    kind.forward = forward
    model.model.layers[1].__class__ = kind
    if not fused:  # a hook of someone's own has the MLP read as it is
        model.model.layers[1].mlp.act_fn.register_forward_hook(lambda *_: None)
    subject = Subject.from_model(model, make_tokenizer())
    with pytest.raises(SubjectError, match=KINDS[kind]):
        fastexplain.sweep(subject, planted_corpus, tmp_path / "run", batch_size=5)
    # Without the check of what the model looks at, which comes first: the sweep's own pass.
    ids = torch.from_numpy(planted_corpus.tokens[:5].copy())
    with pytest.raises(SubjectError, match=KINDS[kind]):
        subject.trunk(ids, fold=lambda layer, acts, pre: acts.zero_() if pre else None)
