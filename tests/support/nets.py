"""Small backbones and random weights."""

from typing import Any

import torch
from torch import nn

SMALL: dict[str, dict[str, Any]] = {
    "mobilevit_xxs": {},
    "efficientvit_b0": {},
    "vit_tiny_patch16_224": {"depth": 5, "embed_dim": 96, "num_heads": 3, "reg_tokens": 2, "global_pool": "avg"},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 32,
        "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 2, 4),
        "drop_path_rate": 0.0,  # a dropped path has no gradient
    },
}
"""One backbone per family, made small by timm's own arguments: the others differ in widths and depths only."""


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
