"""Shared fixtures: small, seeded, with weights that no test can pass by accident."""

from typing import Any

import pytest
import torch
from torch import nn

TINY: dict[str, Any] = {
    "backbone": "mobilevit_xxs", "budget_gflops": 0.27, "trials": 6, "batch_size": 4, "base_steps": 2,
    "base_img_size": 48, "sandwich_steps": 1, "proxy_img_size": 64, "proxy_steps": 1, "calibration_images": 8,
    "val_images": 16, "rescore_images": 24, "rescore_candidates": 3, "device": "cpu", "precision": "fp32",
}  # fmt: skip
"""Settings of a study that takes seconds."""


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


# Here and not in a fixture: the last digits of a sum depend on the number of threads, also in module-wide fixtures.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, in whatever order and process it runs."""
    torch.manual_seed(0)


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
