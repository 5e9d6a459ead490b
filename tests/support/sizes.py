"""How small the studies of tests are."""

from typing import Any

TINY: dict[str, Any] = {
    "backbone": "mobilevit_xxs", "budget_gflops": 0.27, "trials": 6, "batch_size": 4, "base_steps": 2,
    "base_img_size": 48, "sandwich_steps": 1, "proxy_img_size": 64, "proxy_steps": 1, "calibration_images": 8,
    "val_images": 16, "rescore_images": 24, "rescore_candidates": 3, "device": "cpu", "precision": "fp32",
}  # fmt: skip
"""Settings of a study that takes seconds."""
