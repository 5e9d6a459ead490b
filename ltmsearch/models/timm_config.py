"""timm's `config.json` of a subnet.

With it beside the weights, `timm.create_model("local-dir:<folder>", pretrained=True)` opens a subnet, and so does
`hf-hub:` for a folder on the model hub.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import load_pretrained
from timm.models._hub import save_config_for_hf
from torch import nn

from ltmsearch.models.weights import convert_state


def write_config(
    path: Path,
    model: nn.Module,
    *,
    name: str,
    img_size: int,
    inputs: Mapping[str, Any],
    class_names: Sequence[str] | None,
) -> None:
    """Write the `config.json` of a subnet.

    Args:
        path: The file.
        model: A model built by `timm.create_model`, whose arguments are stored.
        name: timm name, `ltm_<backbone>`.
        img_size: Side of the images, in pixels.
        inputs: Preparation of images: `mean`, `std`, `interpolation`, `crop_pct`.
        class_names: Classes in the order of the outputs; None: unknown.
    """
    about: dict[str, Any] = {"pretrained_cfg": {"architecture": name}}
    if class_names is not None:
        about["label_names"] = list(class_names)
    prepared = {key: inputs[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    save_config_for_hf(
        model, path, model_config=about, data_config={**prepared, "input_size": (model.in_chans, img_size, img_size)}
    )


def is_subnet_config(source_args: Mapping[str, Any] | None) -> bool:
    """Whether the `model_args` of a `config.json` (timm's `pretrained_model_args`) are of a subnet with operators."""
    return source_args is not None and "keep_ratios" in source_args


def load_subnet_weights(model: nn.Module, cache_dir: str | Path | None) -> None:
    """Load the weights that `model.pretrained_cfg` points to, as timm does for its own networks."""
    load_pretrained(
        model,
        num_classes=model.num_classes,
        in_chans=model.in_chans,
        filter_fn=lambda state, net: convert_state(net, state),
        cache_dir=cache_dir,
    )
