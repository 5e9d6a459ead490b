"""What ltmsearch needs to know of a family of backbones, and the registry of families.

An adapter is the only code that knows the inside of a family. It contains timm's blocks and calls their parts; it never
copies a whole forward pass, and every parameter keeps timm's name.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ltmsearch.config.defaults import Learning
from ltmsearch.errors import InputError, unknown_name
from ltmsearch.merging import MergeOperator, MergeShape
from ltmsearch.schedules.grid import Grid

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
    groups: int = 1
    """Groups of tokens that share one mask."""
    windows: int = 1
    """Windows of tokens, each of which merges on its own."""
    filled: bool = False
    """Whether empty merged tokens are filled: see `MergeOperator.fills_empty`."""

    @abstractmethod
    def macs_before(self, grid: Grid) -> int:
        """What the layer computes before its merge, on the grid that comes in."""

    @abstractmethod
    def macs_after(self, grid: Grid) -> int:
        """What the layer computes after its merge, on the grid that goes on."""

    def image_grid(self, grid: Grid) -> Grid:
        """Rows and columns of all of an image's tokens, which windows of `grid` tile, cut off at the edges."""
        return grid

    def merge_shape(self, grid: Grid, target: Grid) -> MergeShape:
        """The sizes of the merge of one window."""
        return MergeShape(
            grid=grid, target=target, dim=self.dim, key_dim=self.key_dim, groups=self.groups, filled=self.filled
        )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Layers through which merges accumulate: each starts from the grid that the one before left."""

    module: str
    """timm path of the smallest module in which all happens that its merges change; "" is the whole net."""
    grid: Grid
    """The full grid that the first layer sees."""
    token_stride: tuple[float, float]
    """Pixels of the image, down and to the right, from one token of the full grid to the next."""
    layers: tuple[LayerShape, ...]
    """In the order of execution."""
    unmerges: bool
    """Whether every merge is undone at the end of the chain."""

    def macs_after_chain(self, grid: Grid) -> int:
        """What the network computes behind the chain on the grid that it leaves, where none is undone."""
        return 0


class Adapter(ABC):
    """One family of backbones."""

    family: ClassVar[str]
    """Name of the family, and of its file in `search_spaces/`."""
    backbones: ClassVar[tuple[str, ...]]
    """timm names of the backbones it serves."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """Shell patterns of timm names that look like the family's → why they are not."""
    fixed_size: ClassVar[bool] = False
    """Whether timm builds these networks for one image size, given as `img_size`."""
    any_size_kwargs: ClassVar[Mapping[str, Any]] = {}
    """timm arguments with which a network of one size takes images of every other size too, with the same weights."""
    learning: ClassVar[Learning] = Learning()
    """How these networks learn from scratch."""

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


class BlockAdapter(Adapter):
    """A family whose layers are blocks that merge and unmerge on their own.

    Its blocks become a subclass of timm's class that merges: no wrapper, so that parameters keep timm's names.
    """

    block: ClassVar[type[nn.Module]]
    """timm's class."""
    merging_block: ClassVar[type[nn.Module]]
    """Its subclass."""

    @abstractmethod
    def shape(self, name: str, block: Any, entering: tuple[int, ...]) -> tuple[Grid, LayerShape]:
        """The grid that one block merges, and the block's sizes, from the shape of the tensor that comes in."""

    def layers(self, model: nn.Module) -> tuple[str, ...]:
        """Every such block."""
        return tuple(modules_of(model, self.block))

    def attach(self, model: nn.Module, operators: dict[str, MergeOperator]) -> None:
        """See `Adapter.attach`."""
        for module in modules_of(model, self.block).values():
            module.__class__ = self.merging_block
        for layer, operator in operators.items():
            attach_operator(model.get_submodule(layer), operator)

    def chains(self, model: nn.Module, img_size: Grid) -> tuple[Chain, ...]:
        """One chain per block; what comes into it is read off one forward pass."""
        blocks = modules_of(model, self.block)
        entering = input_shapes(model, blocks, img_size)
        shapes = [self.shape(name, block, entering[name]) for name, block in blocks.items()]
        return tuple(
            Chain(
                module=shape.name,
                grid=grid,
                token_stride=strides(img_size, shape.image_grid(grid)),
                layers=(shape,),
                unmerges=True,
            )
            for grid, shape in shapes
        )


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
        InputError: If no adapter serves it, with the reason where it is known, else with the nearest name.
    """
    for family in FAMILIES:
        if backbone in family.backbones:
            return family
    for family in FAMILIES:
        for pattern, reason in family.unsupported.items():
            if fnmatchcase(backbone, pattern):
                raise InputError(f"the backbone {backbone} cannot merge tokens yet: {reason}")
    raise unknown_name("backbone", backbone, known_backbones())


def blank_image(model: nn.Module, img_size: Grid) -> Tensor:
    """A (1, channels, rows, columns) image of zeros that fits a timm model's device and dtype."""
    parameter = next(model.parameters())
    channels = cast(int, model.in_chans)
    return torch.zeros((1, channels, *img_size), device=parameter.device, dtype=parameter.dtype)


def strides(img_size: Grid, cells: Grid) -> tuple[float, float]:
    """Pixels from one cell of a feature map to the next, down and to the right.

    These networks halve their feature map again and again, with padding where its size is odd.

    Args:
        img_size: (rows, columns) in pixels.
        cells: (rows, columns) of the feature map.
    """
    down, right = (2.0 ** math.ceil(math.log2(n / m)) for n, m in zip(img_size, cells, strict=True))
    return down, right


Kind = TypeVar("Kind", bound=nn.Module)


def modules_of(model: nn.Module, kind: type[Kind]) -> dict[str, Kind]:
    """All modules of one class by their path, in timm's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, kind)}


def input_shapes(model: nn.Module, modules: Mapping[str, nn.Module], img_size: Grid) -> dict[str, tuple[int, ...]]:
    """The shape of what comes into some modules when an image of `img_size` (rows, columns) pixels passes through.

    Args:
        model: Left in the mode it was in.
        modules: Name → module of the model.
        img_size: (rows, columns) in pixels.

    Returns:
        Name → shape of the first argument.
    """
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: sizes.update({name: tuple(args[0].shape)})

    run_once(
        model,
        blank_image(model, img_size),
        [module.register_forward_pre_hook(note(name)) for name, module in modules.items()],
    )
    return sizes


def run_once(model: nn.Module, image: Tensor, handles: Sequence[RemovableHandle]) -> None:
    """Pass an image through a model in evaluation mode, and remove the hooks that looked on."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()


def prefix_modules(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """The modules that images pass one after the other before the first layer, by path.

    Each takes nothing but what the one before it puts out, the first the images; they end where something else is done.
    Levels of the network on the way to the first layer count, as far as they run their children in turn.

    Args:
        model: Left in the mode it was in.
        layers: The layers in the order of execution.

    Returns:
        Their paths in the order of execution; empty where something else than a module takes the images.
    """
    candidates, level = [], ""
    for name in layers[0].split("."):
        parent = model.get_submodule(level)
        if level and not isinstance(parent, nn.Sequential) and len(list(parent.children())) > 1:
            break
        for child, _ in parent.named_children():
            if child == name:
                break
            candidates.append(f"{level}.{child}".removeprefix("."))
        level = f"{level}.{name}".removeprefix(".")
    passed: list[tuple[str, Any, Any]] = []

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, entering, leaving: passed.append((path, entering, leaving))

    image = blank_image(model, _a_size_for(model))
    run_once(model, image, [model.get_submodule(path).register_forward_hook(note(path)) for path in candidates])
    chain, coming = [], image
    for path, entering, leaving in passed:
        if len(entering) != 1 or entering[0] is not coming or not isinstance(leaving, Tensor):
            break
        chain.append(path)
        coming = leaving
    return tuple(chain)


def _a_size_for(model: nn.Module) -> Grid:
    """Rows and columns of images that a timm model takes."""
    size = cast(Mapping[str, Any], model.pretrained_cfg)["input_size"][1:]
    return cast(Grid, getattr(getattr(model, "patch_embed", None), "img_size", None) or tuple(size))


def attach_operator(layer: nn.Module, operator: MergeOperator) -> None:
    """Make an operator the `merging` child of a layer, and have it told when weights arrive."""
    layer.add_module(MERGING, operator)
    layer.register_load_state_dict_pre_hook(_tell_of_weights)


def _tell_of_weights(layer: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    own = f"{prefix}{MERGING}."
    weights = any(name.startswith(prefix) and name.endswith(".weight") for name in state_dict)
    if weights and not any(name.startswith(own) for name in state_dict):
        cast(MergeOperator, layer.get_submodule(MERGING)).on_backbone_weights_loaded()


@contextmanager
def watched(module: nn.Module, *, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects what a module puts out inside the `with` block, where `wanted`."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return
    handle = module.register_forward_hook(lambda _module, _args, out: seen.append(out))
    try:
        yield seen
    finally:
        handle.remove()


def attached_operators(model: nn.Module, layers: Sequence[str]) -> dict[str, MergeOperator]:
    """The operators attached to a model, by layer."""
    found = {}
    for layer in layers:
        operator = getattr(model.get_submodule(layer), MERGING, None)
        if isinstance(operator, MergeOperator):
            found[layer] = operator
    return found
