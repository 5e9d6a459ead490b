"""Plain timm backbones with their weights: fresh, published, or from a checkpoint."""

from pathlib import Path
from typing import Any, cast

import timm
from timm.models import load_state_dict
from torch import nn

from ltmsearch.backbones.adapter import get_adapter
from ltmsearch.errors import InputError


def create_backbone(
    backbone: str, *, pretrained: bool = False, checkpoint: Path | None = None, **timm_kwargs: Any
) -> nn.Module:
    """timm's model of that name.

    Args:
        backbone: timm name, of a family that an adapter serves.
        pretrained: Load timm's published weights.
        checkpoint: Load weights from this file instead (safetensors, or torch files, read with weights only).
        timm_kwargs: Passed to `timm.create_model`, e.g. `num_classes`.

    Raises:
        InputError: For an unknown backbone, or weights that cannot be had or do not fit.
    """
    get_adapter(backbone)
    try:
        model: nn.Module = timm.create_model(backbone, pretrained=pretrained, **timm_kwargs)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise InputError(
            f"the pretrained weights of {backbone} cannot be loaded ({_first_line(error)}); they need network "
            "access to the model hub once; --checkpoint FILE takes a local file"
        ) from error
    if checkpoint is not None:
        _load_weights(model, checkpoint)
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load a timm checkpoint; a classifier of another width is left as initialised, anything else must match."""
    if not path.is_file():
        raise InputError(f"the checkpoint must be a file, but {path} is not")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # timm passes on whatever pickle, zip and safetensors raise
        raise InputError(f"the checkpoint {path} cannot be read: {_first_line(error)}") from error
    wanted = model.state_dict()
    classifier = tuple(f"{name}." for name in _as_tuple(cast(dict[str, Any], model.pretrained_cfg).get("classifier")))
    for name in [name for name in state if name.startswith(classifier) and name in wanted]:
        if state[name].shape != wanted[name].shape:
            state[name] = wanted[name]
    wrong = sorted(
        name
        for name in wanted.keys() | state.keys()
        if name not in wanted or name not in state or state[name].shape != wanted[name].shape
    )
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"the checkpoint {path} does not fit the backbone: missing, unknown or of another shape are "
            f"{', '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(state)


def _as_tuple(names: object) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list | tuple) else ()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
