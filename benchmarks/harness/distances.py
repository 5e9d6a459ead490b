"""How far a merging network's answers are from those of the plain network with the same weights, image by image."""

import argparse
from typing import Any

import numpy as np
from torch import Tensor

from harness.statistics import differences, standard_error
from ltmsearch.data.layout import DataLayout
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.data.preparation import ImageOptions
from ltmsearch.models import input_config


def open_images(args: argparse.Namespace, seed: int, split: str | None) -> ImageData:
    """Training images, and all held-out images of a split."""
    return load_data(
        dataset="folder" if args.data_dir else "digits",
        data_dir=args.data_dir,
        img_size=args.img_size,
        **input_config(args.backbone, ImageOptions(crop_mode=args.crop_mode)),
        val_images=args.val_images,
        calibration_images=1,
        seed=seed,
        layout=DataLayout(val_split=split),
    )


def distances(log_p: Tensor, plain: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Per image: KL divergence from the plain network, agreement, and difference in top-1, in percent.

    `log_p` and `plain` are (I, C) log-probabilities, `labels` (I,).
    """
    own, other = log_p.argmax(1), plain.argmax(1)
    hits = (own == labels).float() - (other == labels).float()
    return {
        "kl": (plain.exp() * (plain - log_p)).sum(1).tolist(),
        "agreement": (100 * (own == other).float()).tolist(),
        "top1_difference": (100 * hits).tolist(),
    }


def summary(found: dict[str, list[float]], reference: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Means with standard errors, and the paired difference in KL divergence from a reference of this name."""
    gap = differences(found["kl"], reference["kl"])
    out: dict[str, Any] = {key: [float(np.mean(values)), standard_error(values)] for key, values in found.items()}
    return out | {f"kl_less_{name}": [float(np.mean(gap)), standard_error(gap)]}
