"""timm's image transforms (`timm.data.create_transform`), with random numbers that depend on a seed alone."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import Normalize

from ltmsearch.data.preparation import CropMode, Interpolation
from ltmsearch.errors import InputError, check_choice

PROXY_OPTIONS: dict[str, Any] = {"is_training": True, "scale": (0.35, 1.0), "color_jitter": None}
"""timm's options for proxy training, which is too short to profit from timm's smallest crop of 0.08 of the area."""

ErasingMode = Literal["pixel", "const", "rand"]

Transform = Callable[[Image.Image], Tensor]
"""An image to (channels, S, S) uint8 pixels."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation of a full training, named as in timm's `create_transform` and `RandomErasing`.

    Photographs are then cropped from the original, as timm does, not from the image that evaluation sees.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    color_jitter: float | None
    auto_augment: str | None
    re_prob: float
    re_mode: ErasingMode
    re_count: int

    def __post_init__(self) -> None:
        check_choice("`re_mode`", self.re_mode, ErasingMode)

    def options(self) -> dict[str, Any]:
        """timm's options for photographs."""
        names = ("scale", "ratio", "hflip", "color_jitter", "auto_augment")
        return {"is_training": True} | {name: getattr(self, name) for name in names}

    def erasing(self) -> RandomErasing | None:
        """Random erasing of normalised images, if it is switched on."""
        if not self.re_prob:
            return None
        return RandomErasing(self.re_prob, mode=self.re_mode, max_count=self.re_count, device="cpu")


def evaluation_transform(
    img_size: int, *, interpolation: Interpolation, crop_pct: float, crop_mode: CropMode, mean: Sequence[float]
) -> Transform:
    """timm's transform for evaluation: resize, then crop the centre.

    Args:
        crop_mode: What becomes `img_size / crop_pct` pixels: the short side (`center`), the long side, with borders of
            the colour `mean` (`border`), or both sides, which distorts (`squash`).
        crop_pct, mean: See `make_transforms`.
    """
    check_choice("`interpolation`", interpolation, Interpolation)
    check_choice("`crop_mode`", crop_mode, CropMode)
    transform: Transform = create_transform(
        img_size, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation, mean=mean, normalize=False
    )
    return transform


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """Transforms of the images of one data set."""

    train: Transform
    evaluation: Transform
    normalize: Normalize
    erasing: RandomErasing | None

    def erase_(self, batch: Tensor, seeds: Sequence[str]) -> None:
        """Erase random parts of (B, channels, S, S) normalised images in place, by one seed per image."""
        if self.erasing is not None:
            with preserve_random_state():
                for image, seed in zip(batch, seeds, strict=True):
                    seed_all(seed)
                    self.erasing(image)


def make_transforms(
    dataset: str,
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation,
    crop_pct: float,
    crop_mode: CropMode,
    augmentation: Augmentation | None,
) -> Transforms:
    """The transforms of a data set.

    Training photographs are cropped and mirrored at random; written characters are not mirrored; the built-in digits,
    random already, are neither cropped nor mirrored.

    Args:
        mean, std: Of each channel, on a scale from 0 to 1.
        interpolation: Filter for resizing.
        crop_pct: Share of the resized image that evaluation sees, by its side, in (0, 1]; the built-in digits are
            always seen whole.
        crop_mode: See `evaluation_transform`.
        augmentation: Of a full training; None: that of proxy training.

    Raises:
        InputError: If timm does not know the augmentation policy, the filter or the crop mode.
    """
    crop_pct = 1.0 if dataset == "digits" else crop_pct
    train = evaluation = evaluation_transform(
        img_size, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, mean=mean
    )
    options = augmentation.options() if augmentation else dict(PROXY_OPTIONS)
    if dataset == "digits":
        options |= {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0}
    elif "mnist" in dataset.lower():
        options["hflip"] = 0.0
    if augmentation or dataset != "digits":
        train = _training_transform(img_size, options | {"interpolation": interpolation, "normalize": False})
    if len(mean) == 1 and options.get("auto_augment"):
        train = partial(_in_rgb, train)
    erasing = augmentation.erasing() if augmentation else None
    normalize = Normalize(mean, std, inplace=True)
    return Transforms(train=train, evaluation=evaluation, normalize=normalize, erasing=erasing)


def _training_transform(img_size: int, options: dict[str, Any]) -> Transform:
    try:
        transform: Transform = create_transform(img_size, **options)
    except (AssertionError, LookupError, ValueError, TypeError) as error:
        policy = options.get("auto_augment")
        if not policy:
            raise
        known = "rand-m9-mstd0.5, augmix-m3, original or 3a"  # timm has no error of its own for others
        raise InputError(f"`aa` must be an augmentation policy of timm, such as {known}, but got {policy!r}") from error
    for operation in _operations(transform):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return transform


def _in_rgb(transform: Transform, image: Image.Image) -> Tensor:
    """A grey image by a transform that fills with colours; (1, S, S), since grey stays grey."""
    return transform(image.convert("RGB"))[:1]


def _operations(transform: Any) -> Iterator[AugmentOp]:
    """The operations of timm's augmentation policy in a transform."""
    for step in getattr(transform, "transforms", ()):
        yield from getattr(step, "ops", ())  # RandAugment, AugMix
        for sub_policy in getattr(step, "policy", ()):  # AutoAugment
            yield from sub_policy


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's operation. At some levels it keeps no bits: older versions of Pillow drew black, newer ones refuse."""
    return posterize(image, bits_to_keep) if bits_to_keep > 0 else Image.new(image.mode, image.size)


def seed_all(seed: str) -> None:
    """Seed the generators that timm's transforms draw from: Python, NumPy, torch on the CPU."""
    random.seed(seed)
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed reseeds CUDA as well
    np.random.seed(random.getrandbits(32))


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the generators of `seed_all` at the end of the `with` block."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
