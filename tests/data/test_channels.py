"""Images of one and four channels: grey as timm reads them, transparency, and augmentation."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import make_folder, noise, open_data
from timm.data import create_transform

from ltmsearch.data.transforms import Augmentation, make_transforms
from ltmsearch.errors import InputError

POLICY = Augmentation(
    scale=(0.5, 1.0), ratio=(0.75, 1.33), hflip=0.5, color_jitter=0.4, auto_augment="rand-m9-mstd0.5", re_prob=1.0,
    re_mode="pixel", re_count=1,
)  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = make_folder(tmp_path / "photos")
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        noise(path, (40, 30), seed=number)
    return root


def read_grey(path: str) -> Image.Image:
    """As timm's `ImageDataset` with `input_img_mode="L"`."""
    with Image.open(path) as image:
        return image.convert("L")


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_grey_images_are_those_of_timm(photos: Path, crop_mode: str) -> None:
    options = {"crop_pct": 0.8, "crop_mode": crop_mode, "interpolation": "bilinear", "mean": (0.4,), "std": (0.3,)}
    data = open_data(photos, **options)
    transform = create_transform(16, **options, is_training=False)
    images = torch.cat([images for images, _ in data.validation_batches(batch_size=3)])
    paths = [data.validation.files[index][0] for index, _ in data.validation_keys]
    wanted = torch.stack([transform(read_grey(path)) for path in paths])
    assert images.shape == (8, 1, 16, 16)
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-6)


def test_transparency_is_a_channel(photos: Path) -> None:
    path = photos / "validation" / "ant" / "0.png"
    Image.new("RGBA", (16, 16), (10, 20, 30, 40)).save(path)
    Image.new("L", (16, 16), 50).save(photos / "validation" / "ant" / "1.png")
    data = open_data(photos, mean=(0.0,) * 4, std=(1.0,) * 4)
    names = [Path(data.validation.files[index][0]).name for index, _ in data.validation_keys]
    labels = data.validation.labels[[index for index, _ in data.validation_keys]]
    images = torch.cat([images for images, _ in data.validation_batches(batch_size=8)])
    of = {name: images[i, :, 8, 8] for i, name in enumerate(names) if labels[i] == 0}
    assert (of["0.png"] * 255).round().int().tolist() == [10, 20, 30, 40]
    assert (of["1.png"] * 255).round().int().tolist() == [50, 50, 50, 255]
    train, _ = next(data.train_batches(batch_size=4, steps=1, seed=0))
    assert train.shape == (4, 4, 16, 16)


def test_grey_images_are_augmented_in_grey() -> None:
    """timm's policies fill with colours, which Pillow refuses to draw on grey images."""
    made = make_transforms("folder", 16, (0.4,), (0.3,), "bicubic", 0.9, "center", POLICY)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8))
    random.seed(0)
    torch.manual_seed(0)
    np.random.seed(0)
    outputs = [made.train(image) for _ in range(40)]
    assert {tuple(each.shape) for each in outputs} == {(1, 16, 16)}
    # A policy may move all of an image away, so two outputs may be the fill alone.
    assert len({each.numpy().tobytes() for each in outputs}) > 30
    batch = made.normalize(torch.stack(outputs[:2]).float().div(255))
    made.erase_(batch, ["a", "b"])
    assert batch.shape == (2, 1, 16, 16)


@pytest.mark.parametrize(("mean", "std"), [((0.1, 0.2), (0.1, 0.2)), ((0.5,), (0.1, 0.2, 0.3)), ((), ())])
def test_other_numbers_of_channels_are_refused(photos: Path, mean: tuple, std: tuple) -> None:
    with pytest.raises(InputError, match="must be 1, 3 or 4 numbers each"):
        open_data(photos, mean=mean, std=std)


def test_more_classes_than_outputs_are_refused(photos: Path) -> None:
    data = open_data(photos)
    data.refuse_more_classes("num_classes", 3)
    with pytest.raises(InputError, match="the data have 3 and it is 2; use --num-classes 3"):
        data.refuse_more_classes("num_classes", 2)
