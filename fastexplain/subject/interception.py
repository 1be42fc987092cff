"""Whether someone has put something of their own into a model's forward pass."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as everywhere


def intercepted(module: nn.Module) -> bool:
    """Whether a module, or one within it, has forward hooks or a forward in place of its class's.

    Hooks that were registered for all modules count as well.
    """
    return bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks) or any(
        each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each)
        for each in module.modules()
    )
