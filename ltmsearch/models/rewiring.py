"""Run timm's own code of a module with some of its children replaced, for one call and without a change of the module.

So one pass can reach into the middle of a block, while others run in other threads, and no code of timm is copied.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Rewired:
    """A module with other children; everything else is the module's own.

    Pass it as `self` to a function of the module's class: `Attention.forward(Rewired(attention, k_norm=…), x)`.
    """

    def __init__(self, module: nn.Module, **children: Any) -> None:
        self._module = module
        for name, child in children.items():
            setattr(self, name, child)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def recorded(module: nn.Module, outputs: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A stand-in for a module that appends each of its outputs to a list."""

    def call(x: Tensor) -> Tensor:
        outputs.append(module(x))
        return outputs[-1]

    return call
