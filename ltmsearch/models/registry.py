"""Build backbones with merging operators, register them with timm as `ltm_<backbone>`, write timm's `config.json`."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg, load_pretrained, register_model, split_model_name_tag
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet, FeatureListNet
from timm.models._hub import save_config_for_hf
from torch import nn

from ltmsearch.config.names import Readout
from ltmsearch.data.preparation import ImageOptions
from ltmsearch.errors import InputError, check_choice, not_among
from ltmsearch.merging import MaskStart, MergeOperator, check_form, get_operator
from ltmsearch.models.adapter import FAMILIES, Adapter, check_structure, get_adapter, known_backbones
from ltmsearch.models.merging_layer import MERGING, attached_operators
from ltmsearch.models.registers import register_arguments
from ltmsearch.models.weights import convert_state, create_backbone
from ltmsearch.schedules.schedule import Form, MergeSchedule

PREFIX = "ltm_"
"""Before the name of a backbone: timm's name of that backbone with merging operators."""
FEATURE_NETS: dict[str, type[nn.Module]] = {
    "list": FeatureListNet,
    "dict": FeatureDictNet,
    "hook": FeatureHookNet,
    "getter": FeatureGetterNet,
}
"""timm's classes that return feature maps, by its names for them."""


def check_operator(backbone: str, operator: str) -> None:
    """Raise an `InputError` for an unknown operator, or one by threshold in a family that cannot take it."""
    adapter = get_adapter(backbone)
    if get_operator(operator).adaptive and not adapter.adaptive:
        served = ", ".join(family.family for family in FAMILIES if family.adaptive)
        raise InputError(
            f"the operator of {backbone} must keep equally many tokens in every image, but got {operator!r}: choose "
            f"another, or a network of the families {served}, where each image may keep its own number"
        )


def attach_operators(
    backbone: str, model: nn.Module, *, operator: str, layers: Iterable[str], start: MaskStart
) -> None:
    """Attach fresh, inactive merging operators (keep ratio 1.0) to layers of a plain timm model in place."""
    adapter = get_adapter(backbone)
    check_operator(backbone, operator)
    check_structure(backbone, adapter, model)  # timm's arguments may have changed it
    make = get_operator(operator)
    like = next(model.parameters())
    operators = {layer: make(adapter.dim(model, layer), start).to(like.device, like.dtype) for layer in layers}
    adapter.attach(model, operators)
    # On the network itself, by timm's convention, so that every training script respects it.
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    own = {f"{layer}.{MERGING}.{name}" for layer, operator in operators.items() for name in operator.no_weight_decay()}
    model.no_weight_decay = partial(set, exempt | own)  # type: ignore[assignment]


def set_schedule(backbone: str, model: nn.Module, schedule: MergeSchedule) -> None:
    """Set the keep ratio and the form of every attached operator.

    Raises:
        ValueError: If the schedule merges at a layer that has no operator.
        InputError: If the operator does not support a form of the schedule, or a form cannot follow another.
    """
    adapter = get_adapter(backbone)
    operators = attached_operators(model, adapter.layers(model))
    missing = [layer for layer in schedule.merging_layers if layer not in operators]
    if missing:
        raise ValueError(f"`schedule` must merge only at layers with an operator, but got {', '.join(missing)}.")
    forms = {
        layer: check_form(operator.name, schedule.form(layer) or adapter.default_form(operator.name))
        for layer, operator in operators.items()
    }
    for sequence in adapter.sequences(model):
        merging = [layer for layer in sequence if schedule.keep_ratio(layer) < 1]
        _check_sequence({layer: (operators[layer], forms[layer]) for layer in merging})
    for layer, operator in operators.items():
        operator.keep_ratio, operator.form = schedule.keep_ratio(layer), forms[layer]


def _check_sequence(merges: Mapping[str, tuple[MergeOperator, Form]]) -> None:
    """Raise an `InputError` if a merge by place follows one that has left the grid, on whose tokens it builds."""
    left: str | None = None
    for layer, (operator, form) in merges.items():
        stays = form in operator.grid_forms or operator.needs_grid
        if stays and left is not None:
            raise InputError(
                f"merges by place need tokens on a grid, but {layer} has the form {form!r} behind {left}, which "
                f"merges by similarity and leaves the grid: give {layer} the form of {left}, or the other way round"
            )
        left = left if stays else left or layer


def create_subnet(
    backbone: str,
    *,
    keep_ratios: Mapping[str, float] | float | None = None,
    operator: str = "ltm",
    forms: Mapping[str, Form] | Form | None = None,
    mask_start: MaskStart = "auto",
    pretrained: bool = False,
    registers: int = 0,
    readout: Readout = "timm",
    **timm_kwargs: Any,
) -> nn.Module:
    """Build a backbone that merges tokens by a fixed schedule.

    Args:
        backbone: timm name.
        keep_ratios: Layer name or shell pattern → keep ratio in (0, 1], or a negative integer: tokens that the layer
            removes; or one for all layers; others stay plain.
        operator: Name of the merging operator.
        forms: Layer name or shell pattern → form, or one for all; others have the default of operator and family.
        mask_start: See `MaskStart`.
        pretrained: Load timm's weights; operators start from their prior. From a folder that `ltmsearch export`
            wrote, given as timm's `local-dir:`, the operators' weights are loaded too.
        registers, readout: See `create_backbone`.
        timm_kwargs: Passed to `timm.create_model`. With `features_only=True`, the network returns full grids of
            features: merges are undone. Layers keep the names they have in the whole network.

    Raises:
        InputError: For an unknown backbone, operator, layer, form, `mask_start`, `readout` or `feature_cls`, a keep
            ratio out of range, registers that the network cannot have, or weights that are not available.
    """
    check_choice("mask_start", mask_start, MaskStart)
    # `config.json` of a subnet has its schedule among the arguments.
    own = pretrained and "keep_ratios" in (timm_kwargs.get("pretrained_model_args") or {})
    adapter = get_adapter(backbone)

    def add_merging(model: nn.Module) -> None:
        layers = adapter.layers(model)
        schedule = MergeSchedule.from_mapping(layers, {} if keep_ratios is None else keep_ratios, operator, forms)
        start = "content" if mask_start == "auto" and pretrained else mask_start
        attach_operators(backbone, model, operator=operator, layers=schedule.merging_layers, start=start)
        set_schedule(backbone, model, schedule)
        if own:
            _load_own(model, timm_kwargs.get("cache_dir"))

    features: type[nn.Module] | None = None
    kind: str | None = timm_kwargs.get("feature_cls")
    if timm_kwargs.get("features_only"):
        features = _feature_net(adapter, kind)
        timm_kwargs["feature_cls"] = _after(add_merging, features)
    model = create_backbone(
        backbone, pretrained=pretrained and not own, registers=registers, readout=readout, **timm_kwargs
    )
    if features:
        model.__class__ = features
    else:
        add_merging(model)
    own_arguments = {"keep_ratios": keep_ratios, "operator": operator, "forms": forms, "mask_start": mask_start}
    _describe(model, backbone, {**own_arguments, "feature_cls": kind})
    return model


def _describe(model: Any, backbone: str, arguments: Mapping[str, Any]) -> None:
    """Note on a network how it was built, so that timm's `save_for_hf` writes what `create_model` builds again."""
    model._model_args.pop("feature_cls", None)  # a class made for this network, which neither JSON nor pickle can store
    model._model_args |= register_arguments(model)
    for name, value in arguments.items():
        if value is not None:
            model._model_args[name] = dict(value) if isinstance(value, Mapping) else value
    name, _ = split_model_name_tag(backbone)
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": f"{PREFIX}{name}"}


def _feature_net(adapter: Adapter, kind: str | None) -> type[nn.Module]:
    """timm's class that returns a network's feature maps (`features_only=True`), by the name timm has for it.

    Raises:
        InputError: For a class that does not return this family's features on full grids.
    """
    name = adapter.feature_nets[0] if kind is None else kind
    if name not in adapter.feature_nets:
        raise not_among(f"`feature_cls` of a merging {adapter.family} network", name, adapter.feature_nets)
    return FEATURE_NETS[name]


def _after(change: Callable[[nn.Module], None], features: type[nn.Module]) -> type[nn.Module]:
    """A class that changes a network before it becomes part of a feature net, which renames its layers."""

    class Changed(features):  # type: ignore[valid-type, misc]
        def __init__(self, model: nn.Module, **options: Any) -> None:
            change(model)
            super().__init__(model, **options)

    return Changed


def _load_own(model: Any, cache_dir: Any) -> None:
    load_pretrained(
        model,
        num_classes=model.num_classes,
        in_chans=model.in_chans,
        filter_fn=lambda state, net: convert_state(net, state),
        cache_dir=cache_dir,
    )


def input_config(backbone: str, options: ImageOptions | None = None) -> dict[str, Any]:
    """Preparation of images for a backbone: `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`.

    `options` replace timm's. As in timm, means for another number of channels become their mean; so do deviations.
    """
    get_adapter(backbone)
    options = options or ImageOptions()
    config: dict[str, Any] = resolve_data_config({}, pretrained_cfg=get_pretrained_cfg(backbone).to_dict())
    prepared = {}
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        given = getattr(options, name)
        prepared[name] = config[name] if given is None else given
    for name in ("mean", "std"):
        if len(prepared[name]) != options.in_chans:
            prepared[name] = (sum(prepared[name]) / len(prepared[name]),) * options.in_chans
    return prepared


def write_config(
    path: Path,
    model: nn.Module,
    *,
    name: str,
    img_size: int,
    inputs: Mapping[str, Any],
    class_names: Sequence[str] | None,
) -> None:
    """Write the `config.json` with which timm opens a folder on disk (`local-dir:`) or on the model hub (`hf-hub:`).

    It has the arguments by which `timm.create_model` built `model`. `inputs`: see `input_config`.
    """
    about: dict[str, Any] = {"pretrained_cfg": {"architecture": name}}
    if class_names is not None and len(class_names) == model.num_classes:  # one for each output
        about["label_names"] = list(class_names)
    save_config_for_hf(
        model, path, model_config=about, data_config={**inputs, "input_size": (model.in_chans, img_size, img_size)}
    )


def register_with_timm() -> None:
    """Register `ltm_<backbone>` with `timm.create_model` for every supported backbone."""
    module = sys.modules[__name__]
    for backbone in known_backbones():

        def entrypoint(pretrained: bool = False, *, _backbone: str = backbone, **kwargs: Any) -> nn.Module:
            return create_subnet(_backbone, pretrained=pretrained, **kwargs)

        entrypoint.__name__ = entrypoint.__qualname__ = f"{PREFIX}{backbone}"
        entrypoint.__doc__ = f"timm's {backbone} with merging layers: see `create_subnet`."
        setattr(module, entrypoint.__name__, entrypoint)
        register_model(entrypoint)
