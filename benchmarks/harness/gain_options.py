"""Options of the benchmarks that compare fine-tuned networks of searches at shares of the plain network's cost."""

import argparse
from pathlib import Path
from typing import Any

from timm.utils import ParseKwargs

from harness.arguments import add_data_dir, add_seeds, add_settings, add_work

QUICK_SETTINGS = (
    *("trials=16", "sandwich_steps=4", "proxy_steps=1", "batch_size=16", "screened_schedules=24", "device=cpu"),
    *("calibration_images=8", "search_images=32", "rescore_images=32", "report_images=64", "rescore_candidates=3"),
)
TINY = {"depth": 4, "embed_dim": 48, "num_heads": 2, "patch_size": 8}
QUICK: dict[str, Any] = {
    **{"backbone": "vit_tiny_patch16_224", "model_kwargs": TINY, "img_size": 64, "settings": QUICK_SETTINGS},
    **{"train_seeds": 1, "train_steps": 3, "base_steps": 150, "base_lr": 2e-3, "shares": [0.6], "seeds": 1},
}
"""Defaults under `--quick`."""


def add_gain_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `GainStudy`, and the number of its seeds."""
    add_work(parser)
    add_data_dir(parser)
    add_seeds(parser, 3)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2", help="timm name")
    parser.add_argument("--checkpoint", type=Path, help="trained weights; a classifier that they lack is fitted")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs, help="timm's arguments")
    parser.add_argument(
        "--folds", type=int, default=0, help="test sets that the images are cut into, one for each seed"
    )
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.35], help="of the plain cost")
    parser.add_argument("--train-seeds", type=int, default=3, help="fine-tunings of each network")
    parser.add_argument("--train-steps", type=int, default=120, help="steps of fine-tuning")
    parser.add_argument("--train-batch", type=int, default=16)
    parser.add_argument("--train-lr", type=float, default=1e-5, help="peak rate; masks have ten times this")
    parser.add_argument("--base-steps", type=int, default=2000, help="without a checkpoint: steps of the plain network")
    parser.add_argument("--base-lr", type=float, default=1e-3, help="their peak rate")
    parser.add_argument("--base-tuning-steps", type=int, default=0, help="then steps on labels with all its weights")
    parser.add_argument("--base-tuning-lr", type=float, default=1e-5, help="their peak rate")
    add_settings(parser)
