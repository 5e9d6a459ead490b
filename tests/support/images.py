"""Image folders of plain colours.

Red is 20 × the class, green the image's number within its class, blue 255 for training and 0 for validation. So a batch
shows which images it contains.
"""

import numpy as np
import torch
from PIL import Image

from ltmsearch.data.loading import load_data

CLASSES = ("ant", "bee", "cat")
FULL = {"train": {"ant": 5, "bee": 4, "cat": 6}, "validation": {"ant": 3, "bee": 2, "cat": 3}}
STREAM = {"memory_limit_bytes": 0, "workers": 0}


def make_folder(root, splits=FULL, *, size=(40, 30), suffix="png"):
    """An image folder with so many images per class and split."""
    for split, classes in splits.items():
        for name, number in classes.items():
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                colour = (20 * CLASSES.index(name) if name in CLASSES else 200, index, 255 * (split == "train"))
                Image.new("RGB", size, colour).save(root / split / name / f"{index}.{suffix}")
    return root


def noise(path, size, seed=0):
    """An image in which a shift by a pixel shows."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def open_data(data_dir, *, dataset="folder", **changes):
    settings = {"img_size": 16, "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0, "seed": 0}
    settings |= {"val_images": 100, "calibration_images": 4}
    return load_data(dataset=dataset, data_dir=data_dir, **(settings | changes))


def colours(images):
    """Red and green of each image of plain colour: (class, number)."""
    rows = (images[:, :2, 8, 8] * 255).round().int().tolist()
    return [(red // 20, green) for red, green in rows]


def seen(batches):
    return [colour for images, _ in batches for colour in colours(images)]


def same(left, right):
    left, right = list(left), list(right)
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


SPOILT = ("train/bee/0.png", "train/cat/cut.jpg", "validation/cat/1.png")
