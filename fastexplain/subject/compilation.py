"""Decoder layers compiled one by one: what is made of the first serves all that are alike."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Sequence

import torch
import torch.compiler.config
from torch import nn
from torch._dynamo.exc import TorchDynamoException  # PyTorch has no public name for it

from fastexplain.errors import SubjectError


class CompiledLayer:
    """A decoder layer with the compiled form of its class's forward, made when it is first run.

    Args:
        layer: the decoder layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        # Shapes are compiled in: a sweep's batches are alike.
        self.forward = torch.compile(types.MethodType(type(layer).forward, layer), dynamic=False)


# Compiled forms that Dynamo keeps of one function before it gives up and runs it as it is. Its own
# limit is 8, and all models of a class share the function: every size and batch size is a form.
_FORMS = 64


@contextlib.contextmanager
def compiled(layers: Sequence[CompiledLayer]) -> Iterator[None]:
    """Have these layers run compiled.

    Raises SubjectError where torch.compile does not work.
    """
    before = [vars(each.layer).get("forward") for each in layers]  # such as accelerate's
    for each in layers:
        each.layer.forward = each.forward  # type: ignore[method-assign]
    try:
        with torch.compiler.config.patch(recompile_limit=_FORMS):  # type: ignore[attr-defined]
            yield
    except TorchDynamoException as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise SubjectError(
            f"the model can't be compiled ({reason}); torch.compile needs a C++ compiler such as "
            "g++, and on a GPU the package triton: install them or don't compile"
        ) from error
    finally:
        for each, own in zip(layers, before, strict=True):
            del each.layer.forward
            if own is not None:
                each.layer.forward = own
