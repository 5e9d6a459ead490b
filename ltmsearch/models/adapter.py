"""Interface between ltmsearch and a family of backbones, and the registry of families.

An adapter is the only code that knows the internals of a family. It calls the parts of timm's blocks, never copies the
forward pass of a network, and keeps timm's name of every parameter.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import index
from typing import Any, ClassVar, cast

import timm
import torch
from timm.models import get_arch_pretrained_cfgs, split_model_name_tag
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ltmsearch.config.backbones import backbone_names, family_of
from ltmsearch.config.defaults import Learning
from ltmsearch.errors import InputError, unknown_name
from ltmsearch.merging import MergeOperator, MergeShape, get_operator
from ltmsearch.models.merging_layer import MergingLayer, attach_operator
from ltmsearch.models.unserved import reason_for
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.schedule import Form

NORM_MACS, BATCHNORM_MACS = 5, 2
"""fvcore's counts per element of a layer or group norm with affine weights, and of a batch norm in evaluation mode."""


@dataclass(frozen=True, kw_only=True)
class LayerShape(ABC):
    """Sizes of one layer that determine its cost. All counts are multiply-adds per image."""

    name: str
    dim: int
    """D, channels per token."""
    heads: int
    """H, attention heads with keys of their own."""
    key_dim: int
    """C, channels of one head's attention keys."""
    groups: int = 1
    """Groups of tokens that share one mask."""
    windows: int = 1
    """Windows of tokens, each merged separately."""
    needs_grid: bool = False
    """See `MergeOperator.needs_grid`."""
    carried: int = 0
    """See `MergeShape.carried`."""

    @abstractmethod
    def macs_before(self, grid: Grid) -> int:
        """Multiply-adds before the merge, on the incoming grid."""

    @abstractmethod
    def macs_after(self, grid: Grid) -> int:
        """Multiply-adds after the merge, on the outgoing grid."""

    def image_grid(self, grid: Grid) -> Grid:
        """Grid of all tokens of an image, tiled by windows of `grid` that are cut off at the edges."""
        return grid

    def target(self, operator: type[MergeOperator], grid: Grid, keep_ratio: float, form: Form) -> Grid:
        """The grid to which the layer merges its incoming one; see `MergeOperator.target`."""
        return operator.target(grid, keep_ratio, form, needs_grid=self.needs_grid)

    def merge_shape(self, grid: Grid, target: Grid) -> MergeShape:
        """Sizes of the merge of one window."""
        return MergeShape(
            grid=grid,
            target=target,
            dim=self.dim,
            heads=self.heads,
            key_dim=self.key_dim,
            groups=self.groups,
            needs_grid=self.needs_grid,
            carried=self.carried,
        )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Consecutive layers through which merges accumulate: each starts from the previous one's outgoing grid."""

    module: str
    """timm path of the smallest module that contains everything its merges change; "" is the whole network."""
    grid: Grid
    """Full grid, before any merge."""
    token_stride: tuple[float, float]
    """Pixels of the image (down, right) from one token of the full grid to the next."""
    layers: tuple[LayerShape, ...]
    unmerges: bool
    """Whether every merge is undone at the end of the chain."""
    prefix: int = 0
    """Tokens that pass through all layers and never merge: class, distillation and register tokens."""

    def macs_after_chain(self, grid: Grid) -> int:
        """Multiply-adds behind the chain that depend on its outgoing grid, if merges are not undone."""
        return 0


class Adapter(ABC):
    """One family of backbones."""

    family: ClassVar[str]
    """Name of the family and of its file in `search_spaces/`."""
    fixed_size: ClassVar[bool] = False
    """Whether timm builds these networks for a fixed image size, given as `img_size`."""
    any_size_kwargs: ClassVar[Mapping[str, Any]] = {}
    """timm arguments that make a network of fixed size accept images of every size, with the same weights."""
    for_all_layers: ClassVar[tuple[str, ...]] = ()
    """timm names of modules that are registered before the layers and take part in all of them."""
    feature_nets: ClassVar[tuple[str, ...]] = ("list", "dict", "hook", "getter")
    """timm's names (`feature_cls`) of the feature nets of this family whose features stand on full grids; the first is
    timm's default."""
    best_forms: ClassVar[Mapping[str, Form]] = {}
    """Operator → the form of layers for which a schedule names none; other operators have their first."""
    adaptive: ClassVar[bool] = False
    """Whether each image of a batch may have its own number of tokens: see `MergeOperator.adaptive`."""
    learning: ClassVar[Learning] = Learning()
    """Settings for a short training from scratch."""

    def default_form(self, operator: str) -> Form:
        """The form of layers for which a schedule names none."""
        return self.best_forms.get(operator, get_operator(operator).forms[0])

    @abstractmethod
    def recognises(self, model: nn.Module) -> bool:
        """Whether a timm network is of this family: by its structure, whatever its name."""

    def refusal(self, model: nn.Module) -> str | None:
        """Why a network of this family cannot merge, as the end of a sentence; None if it can."""
        return None

    @abstractmethod
    def layers(self, model: nn.Module) -> tuple[str, ...]:
        """timm paths of the layers of `model` that can merge, in the order of execution."""

    @abstractmethod
    def attach(self, model: nn.Module, operators: dict[str, MergeOperator]) -> None:
        """Attach merging operators, by layer name, to a plain timm model in place."""

    @abstractmethod
    def dim(self, model: nn.Module, layer: str) -> int:
        """D, channels per token at a layer."""

    @abstractmethod
    def sequences(self, model: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Names of the layers through which merges accumulate, by sequence."""

    @abstractmethod
    def chains(self, model: nn.Module, img_size: Grid) -> tuple[Chain, ...]:
        """Shapes of all layers for images of `img_size` (rows, columns) pixels."""


class BlockAdapter(Adapter):
    """A family whose layers are blocks that merge and unmerge independently.

    Blocks are cast to a subclass of timm's class: without a wrapper, parameters keep timm's names.
    """

    blocks: ClassVar[Mapping[type[nn.Module], type[nn.Module]]]
    """timm's block classes → their subclasses that merge."""

    @abstractmethod
    def shape(self, name: str, block: Any, input_shape: tuple[int, ...]) -> tuple[Grid, LayerShape]:
        """The grid that one block merges, and the block's sizes, from the shape of its input."""

    def cast(self, block: Any) -> None:
        """Turn one of timm's blocks into a merging block in place."""
        block.__class__ = self.blocks.get(type(block), type(block))

    def recognises(self, model: nn.Module) -> bool:
        return bool(self._blocks_of(model))

    def layers(self, model: nn.Module) -> tuple[str, ...]:
        return tuple(self._blocks_of(model))

    def sequences(self, model: nn.Module) -> tuple[tuple[str, ...], ...]:
        return tuple((layer,) for layer in self.layers(model))

    def attach(self, model: nn.Module, operators: dict[str, MergeOperator]) -> None:
        earlier: dict[str, tuple[MergeOperator, ...]] = {}
        for layer, module in self._blocks_of(model).items():
            self.cast(module)
            stage, _, _ = layer.rpartition(".")
            module.earlier = earlier.get(stage, ())
            if layer in operators:
                attach_operator(module, operators[layer])
                earlier[stage] = *module.earlier, operators[layer]

    def chains(self, model: nn.Module, img_size: Grid) -> tuple[Chain, ...]:
        """One chain per block; input shapes are recorded in one forward pass."""
        blocks = self._blocks_of(model)
        inputs = input_shapes(model, blocks, img_size)
        shapes = [self.shape(name, block, inputs[name]) for name, block in blocks.items()]
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

    def _blocks_of(self, model: nn.Module) -> dict[str, Any]:
        """Blocks by path, plain or merging, of exactly these classes: a subclass may compute something else."""
        kinds = {*self.blocks, *self.blocks.values()}
        return {path: module for path, module in model.named_modules() if type(module) in kinds}


FAMILIES: list[Adapter] = []


def register_family(adapter: type[Adapter]) -> type[Adapter]:
    """Class decorator that registers a family."""
    FAMILIES.append(adapter())
    return adapter


def known_backbones() -> tuple[str, ...]:
    """timm names of the backbones that the installed families are known to serve, without pretrained tags."""
    return tuple(backbone_names())


def get_adapter(backbone: str) -> Adapter:
    """The adapter of a backbone by its timm name, which may have a pretrained tag: `vit_base_patch16_224.mae`.

    Names that are not listed in `config/backbones.py` are built, without memory for weights, to see their structure.

    Raises:
        InputError: For a name or a tag that timm does not know, with the nearest, and a network that cannot merge,
            with the reason.
    """
    name, tag = split_model_name_tag(str(backbone))
    family = family_of(name)
    found = next((adapter for adapter in FAMILIES if adapter.family == family), None) or _adapter_by_structure(name)
    tags = get_arch_pretrained_cfgs(name)
    if tag and backbone not in tags:
        raise unknown_name("backbone", backbone, tags)
    return found


@cache
def _adapter_by_structure(name: str) -> Adapter:
    if not timm.is_model(name):
        raise unknown_name("backbone", name, known_backbones())
    with torch.device("meta"):
        model = timm.create_model(name)
    if any(isinstance(module, MergingLayer) for module in model.modules()):
        raise refused(name, "it has merging layers already; name timm's plain network, without ltm_")
    adapter = next((adapter for adapter in FAMILIES if adapter.recognises(model)), None)
    if adapter is None:
        raise refused(name, reason_for(type(model)))
    check_structure(name, adapter, model)
    return adapter


def check_structure(backbone: str, adapter: Adapter, model: nn.Module) -> None:
    """Raise an InputError with the reason if a network cannot merge."""
    reason = adapter.refusal(model)
    if reason is not None:
        raise refused(backbone, reason)


def refused(backbone: str, reason: str) -> InputError:
    return InputError(f"`backbone` must be a network that can merge tokens, but got {backbone}: {reason}")


def blank_image(model: nn.Module, img_size: Grid, in_chans: int | None = None) -> Tensor:
    """A (1, channels, rows, columns) image of zeros that fits a model's device and dtype.

    `in_chans`: channels; None: those of a timm model.
    """
    parameter = next(model.parameters())
    channels = cast(int, model.in_chans) if in_chans is None else in_chans
    return torch.zeros((1, channels, *img_size), device=parameter.device, dtype=parameter.dtype)


def strides(img_size: Grid, cells: Grid) -> tuple[float, float]:
    """Pixels (down, right) between neighbouring cells of a feature map that was halved, padded where odd."""
    down, right = (2.0 ** math.ceil(math.log2(n / m)) for n, m in zip(img_size, cells, strict=True))
    return down, right


def modules_of(model: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """All modules of one class by path, in timm's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, kind)}


def input_shapes(model: nn.Module, modules: Mapping[str, nn.Module], img_size: Grid) -> dict[str, tuple[int, ...]]:
    """Shape of the first input of some modules of a model for an image of `img_size` (rows, columns) pixels."""
    sizes: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _module, args, name=name: sizes.update({name: tuple(args[0].shape)}))
        for name, module in modules.items()
    ]
    run_once(model, blank_image(model, img_size), hooks)
    return sizes


def run_once(model: nn.Module, image: Tensor, hooks: Sequence[RemovableHandle] = ()) -> Any:
    """Run a model, or its first part, on an image in evaluation mode, then remove the hooks and restore the mode.

    Raises:
        InputError: If timm refuses the size of the image.
    """
    was_training = model.training
    try:
        with torch.no_grad():
            return model.eval()(image)
    except AssertionError as error:
        raise unfit_size(tuple(image.shape[-2:]), error) from error
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def unfit_size(size: int | Sequence[int], error: AssertionError) -> InputError:
    """An `InputError` for images of (rows, columns) or one number of pixels, with timm's reason if it has one."""
    rows, columns = (size, size) if isinstance(size, int) else size
    reason = f": {error}" if str(error) else ""
    return InputError(f"images must have a size that the network accepts, but got {rows}×{columns} px{reason}")


def grid_of(rows: int, columns: int) -> Grid:
    """The grid of a tensor by two of its sizes: constants for `torch.compile`, which compiles again for others."""
    return index(rows), index(columns)
