"""Decoder layers compiled one by one: what is made of the first serves all that are alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from fastexplain.errors import SubjectError


class CompiledLayer:
    """A decoder layer with the compiled form of its call, which is made when it is first run.

    Args:
        layer: the decoder layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        # Shapes are compiled in: a sweep's batches are alike.
        self.call = torch.compile(layer._call_impl, dynamic=False)


# Compiled forms that Dynamo keeps of one function before it gives up and runs it as it is. Its own
# limit is 8, and all models' layers are called by the same function.
_FORMS = 64


@contextlib.contextmanager
def compiled(layers: Sequence[CompiledLayer]) -> Iterator[None]:
    """Have these layers run compiled.

    Raises SubjectError where torch.compile does not work.
    """
    before = [each.layer._compiled_call_impl for each in layers]
    for each in layers:
        each.layer._compiled_call_impl = each.call
    try:
        with torch._dynamo.config.patch(recompile_limit=_FORMS):
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise SubjectError(
            f"the model can't be compiled ({reason}); torch.compile needs a C++ compiler such as "
            "g++, and on a GPU the package triton: install them or don't compile"
        ) from error
    finally:
        for each, call in zip(layers, before, strict=True):
            each.layer._compiled_call_impl = call
