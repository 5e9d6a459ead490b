"""How small the studies of tests are."""

from typing import Any

TINY: dict[str, Any] = {
    "backbone": "mobilevit_xxs", "budget_gflops": 0.27, "trials": 6, "batch_size": 4, "base_steps": 2,
    "base_img_size": 48, "sandwich_steps": 1, "proxy_img_size": 64, "proxy_steps": 1, "calibration_images": 8,
    "screened_schedules": 16, "search_images": 16, "rescore_images": 24, "report_images": 24, "rescore_candidates": 3,
    "device": "cpu", "precision": "fp32",
}  # fmt: skip
"""Settings of a study that takes seconds."""

TINY_VIT: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224", "img_size": 64, "budget_gflops": 0.0044, "trials": 8,
    "model_kwargs": {"depth": 4, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
}  # fmt: skip
"""Changes of `TINY` that make it several times as fast: three of the trials are searched."""
