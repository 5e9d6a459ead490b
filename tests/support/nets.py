"""Small backbones and random weights."""

from typing import Any

import timm
import torch
from torch import nn

from ltmsearch.merging import MergeOperator
from ltmsearch.models import get_adapter

SMALL: dict[str, dict[str, Any]] = {
    "mobilevit_xxs": {},
    "efficientvit_b0": {},
    "vit_tiny_patch16_224": {"depth": 5, "embed_dim": 96, "num_heads": 3, "reg_tokens": 2, "global_pool": "avg"},
    "vit_small_patch16_rope_mixed_224": {
        "depth": 4,
        "embed_dim": 64,
        "num_heads": 2,
        "num_reg_tokens": 2,
        "global_pool": "avg",
    },
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 32,
        "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 2, 4),
        "drop_path_rate": 0.0,  # a dropped path has no gradient
    },
    "swinv2_tiny_window8_256": {
        "embed_dim": 16,
        "depths": (2, 1),
        "num_heads": (1, 2),
        "drop_path_rate": 0.0,
    },
    "tiny_vit_5m_224": {
        "embed_dims": (8, 16, 32, 64),
        "depths": (1, 2, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "window_sizes": (7, 7, 10, 7),
        "drop_path_rate": 0.0,
    },
    "fastvit_sa12": {
        "layers": (1, 1, 1, 1),
        "embed_dims": (16, 16, 32, 32),
        "mlp_ratios": (2, 3, 2, 2),
    },
}
"""One backbone per family, made small by timm's own arguments: the others differ in widths and depths only."""

EVERY_VARIANT = ("mobilevit_xxs", "efficientvit_b0", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
"""Backbones that the default tests combine with every operator in every form; of the others, `VARIANTS` alone."""
VARIANTS = (("ltm", "hard"), ("tome", "matched"))


def unused_weights(operator: MergeOperator) -> set[str]:
    """Names of an operator's weights that its form does not use: they have a gradient of zero."""
    if operator.name != "ltm":
        return set()
    step = {name for name, _ in operator.named_parameters() if name.startswith("step.")}
    if operator.form == "gradient":
        return {name for name, _ in operator.named_parameters()} - step
    return step | ({"directions", "log_gain"} if operator.form == "matched" else {"length_power", "scale", "shift"})


def own_size(backbone: str) -> int:
    """Side of the images that timm's network is built for, in pixels; 224 if it takes any."""
    return int(timm.get_pretrained_cfg(backbone).input_size[-1]) if get_adapter(backbone).fixed_size else 224


def odd_size(backbone: str) -> tuple[int, int]:
    """A size of images that fits no grid of the network; timm's Swin V2 takes whole patches only."""
    return (68, 100) if backbone.startswith("swinv2") else (70, 101)


def without_corrections(model: nn.Module) -> nn.Module:
    """Take from LTM's merges what gives back what averaging takes from different tokens: equal ones lose nothing."""
    with torch.no_grad():
        for name, correction in model.named_parameters():
            if name.endswith(("merging.scale", "merging.shift")):
                correction.zero_()
    return model


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight and statistic off its start: norms of all ones would let a wrong slice pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model
