"""Networks and images that `ltmsearch validate` scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ltmsearch.config.recipe import Recipe
from ltmsearch.models import get_adapter
from support.nets import randomise

BACKBONE = "mobilevit_xxs"
LAYERS = get_adapter(BACKBONE).layers(timm.create_model(BACKBONE))
COUNTS = (6, 1, 2, 1, 3, 5, 2)
"""Validation images of each class."""
CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def recipe(classes: int = len(COUNTS), **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": f"ltm_{BACKBONE}", "operator": "ltm", "num_classes": classes, "img_size": 32, "ib_beta": 10.0,
        "schedule": {layer: 0.5 if place % 2 else 1.0 for place, layer in enumerate(LAYERS)},
    }  # fmt: skip
    return Recipe(**(values | changes))


def image_folder(root: Path, counts: Sequence[int]) -> Path:
    """Noise in a colour for each class; two training images a class."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 128, (len(counts), 3))
    for split, numbers in (("train", [2] * len(counts)), ("validation", counts)):
        for label, number in enumerate(numbers):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = colours[label] + rng.integers(0, 128, (40, 44, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def network(of: Recipe, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(timm.create_model(of.model, **of.model_kwargs()), seed).eval()


def constant(of: Recipe, logits: Sequence[float]) -> nn.Module:
    """A network with constant logits."""
    model = network(of)
    with torch.no_grad():
        classifier: Any = model.get_classifier()  # type: ignore[operator]
        classifier.weight.zero_()
        classifier.bias.copy_(torch.tensor(logits))
    return model


def saved(model: nn.Module, path: Path, facts: dict[str, Any] | None = None) -> Path:
    path = path.with_suffix(".safetensors")
    metadata = None if facts is None else {"ltmsearch": json.dumps(facts)}
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, metadata=metadata)
    return path
