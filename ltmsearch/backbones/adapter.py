"""What ltmsearch needs to know of a family of backbones, and the registry of families.

An adapter is the only code that knows the inside of a family. It contains timm's blocks and calls their parts; it never
copies a whole forward pass, and every parameter keeps timm's name.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ltmsearch.errors import unknown_name
from ltmsearch.grid import Grid
from ltmsearch.merging import MergeOperator

MERGING = "merging"
"""Name of the child module that holds a layer's merging operator: `<layer>.merging`."""


@dataclass(frozen=True, kw_only=True)
class LayerShape(ABC):
    """The sizes of one layer that its cost depends on. All counts are multiply-adds of one image."""

    name: str
    """Layer name (timm module path)."""
    dim: int
    """D, channels per token."""
    key_dim: int
    """Channels of one head's attention keys."""
    groups: int
    """Groups of tokens that share one mask."""

    @abstractmethod
    def macs_before(self, grid: Grid) -> int:
        """What the layer computes before its merge, on the grid that comes in."""

    @abstractmethod
    def macs_after(self, grid: Grid) -> int:
        """What the layer computes after its merge, on the grid that goes on."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Layers through which merges accumulate: each starts from the grid that the one before left."""

    grid: Grid
    """The full grid that the first layer sees."""
    layers: tuple[LayerShape, ...]
    """In the order of execution."""
    unmerges: bool
    """Whether every merge is undone at the end of the chain."""


class Adapter(ABC):
    """One family of backbones."""

    family: ClassVar[str]
    """Name of the family, and of its file in `search_spaces/`."""
    backbones: ClassVar[tuple[str, ...]]
    """timm names of the backbones it serves."""

    @abstractmethod
    def layers(self, model: nn.Module) -> tuple[str, ...]:
        """The layers of `model` that may merge, by timm module path, in the order of execution."""

    @abstractmethod
    def attach(self, model: nn.Module, operators: dict[str, MergeOperator]) -> None:
        """Give layers of a plain timm model their merging operators, in place.

        Args:
            model: As timm built it, with any weights.
            operators: Layer name → its operator, for the layers that are to have one.
        """

    @abstractmethod
    def dim(self, model: nn.Module, layer: str) -> int:
        """D, the channels per token at a layer."""

    @abstractmethod
    def chains(self, model: nn.Module, img_size: Grid) -> tuple[Chain, ...]:
        """The shapes of all layers for images of `img_size` (rows, columns) pixels."""


FAMILIES: list[Adapter] = []
"""One adapter per family."""


def register_family(adapter: type[Adapter]) -> type[Adapter]:
    """Class decorator: make a family known."""
    FAMILIES.append(adapter())
    return adapter


def known_backbones() -> tuple[str, ...]:
    """timm names of every backbone that some adapter serves."""
    return tuple(name for family in FAMILIES for name in family.backbones)


def get_adapter(backbone: str) -> Adapter:
    """The adapter of a backbone, by its timm name.

    Raises:
        InputError: If no adapter serves it, with the nearest name.
    """
    for family in FAMILIES:
        if backbone in family.backbones:
            return family
    raise unknown_name("backbone", backbone, known_backbones())


def blank_image(model: nn.Module, img_size: Grid) -> Tensor:
    """A (1, channels, rows, columns) image of zeros that fits a timm model's device and dtype."""
    parameter = next(model.parameters())
    channels = cast(int, model.in_chans)
    return torch.zeros((1, channels, *img_size), device=parameter.device, dtype=parameter.dtype)


def operators_of(model: nn.Module, layers: Sequence[str]) -> dict[str, MergeOperator]:
    """The operators attached to a model, by layer."""
    found = {}
    for layer in layers:
        operator = getattr(model.get_submodule(layer), MERGING, None)
        if isinstance(operator, MergeOperator):
            found[layer] = operator
    return found
