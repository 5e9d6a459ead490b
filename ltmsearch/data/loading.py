"""The user's choice of data as normalised tensors: the same seed gives the same bits.

Where images come from is timm's business (`timm.data.create_dataset`), and so is what is done to them
(`timm.data.create_transform`). Added here: errors a user can act on, unreadable images left out and named, small sets
kept in memory, and batches that depend on their seed alone: not on memory, workers or the global random state.

Shapes: B images per batch, S `img_size`.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import Normalize, Resize

from ltmsearch.data.digits import CLASS_NAMES, SPLITS, ClutteredDigits
from ltmsearch.data.sources import CPUS, ImageSplit, estimated_bytes, open_folder, open_named, shown
from ltmsearch.errors import InputError

DIGITS_TRAIN_IMAGES = 10_000  # more than a trial sees, so that it sees few scenes twice
DIGITS_VALIDATION_IMAGES = 1000  # where all are asked for: of what is drawn, that is a choice
TRAIN_CROP = (0.35, 1.0)  # share of the area; proxy trainings are too short to profit from timm's 0.08

Transform = Callable[[Image.Image], Tensor]  # gives (3, S, S) uint8
Key = tuple[int, int]  # the number of an image, and its place in the stream, which seeds its augmentation
Shard = tuple[int, int]  # this process's number, from 0, and how many share the batches
ALONE: Shard = (0, 1)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a full training changes its images, by the names of timm's `create_transform` and `RandomErasing`.

    With it photographs are cropped from the original, as timm does, not from what evaluation would see of it.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    color_jitter: float | None
    auto_augment: str | None
    re_prob: float
    re_mode: str
    re_count: int

    def transform(self) -> dict[str, Any]:
        """What `create_transform` takes of it, for photographs."""
        names = ("scale", "ratio", "hflip", "color_jitter", "auto_augment")
        return {"is_training": True} | {name: getattr(self, name) for name in names}

    def erasing(self) -> RandomErasing | None:
        """Random erasing, which works on normalised images."""
        if not self.re_prob:
            return None
        return RandomErasing(self.re_prob, mode=self.re_mode, max_count=self.re_count, device="cpu")


@dataclass(kw_only=True)
class ImageData:
    """Training, calibration and validation images, as batches. Made by `load_data`."""

    title: str
    img_size: int
    class_names: tuple[str, ...]  # in the order of the labels
    num_classes: int
    validation_size: int  # how many images `validation_batches` gives without a limit
    train: ImageSplit
    validation: ImageSplit
    calibration_keys: list[Key]
    validation_keys: list[Key]
    train_transform: Transform
    eval_transform: Transform
    normalize: Normalize
    erasing: RandomErasing | None
    workers: int

    @property
    def skipped(self) -> tuple[str, ...]:
        """Unreadable images met so far, by path below the data folder. Sets not kept in memory may meet more."""
        return self.train.skipped() + self.validation.skipped()

    @property
    def description(self) -> str:
        """What the data are, in one printable line."""
        sizes = f"{self.training_size} training and {self.validation_size} validation images"
        how = "read as needed" if self.train.kept is None else "kept in memory"
        left_out = f"; {len(self.skipped)} unreadable left out: {shown(self.skipped)}" if self.skipped else ""
        return f"{self.title}: {sizes} in {self.num_classes} classes, {how}{left_out}"

    @property
    def training_size(self) -> int:
        """How many training images there are, without those known to be unreadable."""
        return len(self.train.labels) - len(self.train.unreadable)

    def train_batches(
        self, *, batch_size: int, steps: int, seed: int, shard: Shard = ALONE, first_step: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Exactly `steps` batches of augmented training images, float32 (B, 3, S, S), and labels, int64 (B,).

        The first `first_step` of them are left out, and the rest is as if they had not been.
        Every image comes once before one comes again, in an order drawn anew each time round. `seed` (from 0) fixes
        order and augmentation. Where processes share the batches, `batch_size` is the part of each, and all parts
        together hold the images of one process with the whole batch. Raises `InputError` once no image can be read.
        """
        keys = islice(self._rounds(seed, shard), batch_size * first_step, None)
        return self._batches(
            self.train, self.train_transform, keys, batch_size * (steps - first_step), batch_size, seed
        )

    def calibration_batches(self, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Some training images, the same at each call, as evaluation sees them: float32 (B, 3, S, S), int64 (B,)."""
        keys = self.calibration_keys
        return self._batches(self.train, self.eval_transform, iter(keys), len(keys), batch_size, again=True)

    def validation_batches(
        self, *, batch_size: int, limit: int | None = None, shard: Shard = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation images, or the first `limit`, always in one order: float32 (B, 3, S, S), int64 (B,).

        Classes take turns, so that the first ones are balanced too. The last batch may be smaller. Processes that
        share them get each its own.
        """
        keys = self.validation_keys[:limit][shard[0] :: shard[1]]
        return self._batches(self.validation, self.eval_transform, iter(keys), len(keys), batch_size, again=True)

    def _rounds(self, seed: int, shard: Shard) -> Iterator[Key]:
        for turn in count():
            order = np.random.default_rng((seed, turn)).permutation(len(self.train.labels)).tolist()
            if len(self.train.unreadable) == len(order):
                return
            for place, index in enumerate(order, start=turn * len(order)):
                # By its place, not by counting: what is unreadable is known to the process that tried it alone.
                if place % shard[1] == shard[0] and index not in self.train.unreadable:
                    yield index, place

    def _batches(
        self,
        images: ImageSplit,
        transform: Transform,
        keys: Iterator[Key],
        number: int,
        size: int,
        seed: int = 0,
        *,
        again: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`number` images in batches of `size`. Unreadable ones are noted; those behind them move up.

        Those wanted again and again are remembered as evaluation sees them, where there is room.
        """
        drawn = None if transform is self.eval_transform else seed
        pixels: list[Tensor] = []
        done: list[Key] = []
        while number > 0:
            ahead = list(islice(keys, number))
            if not ahead:
                raise InputError(f"too few images can still be read; lost are {shown(images.skipped())}")
            loader: DataLoader[Any] = DataLoader(
                ahead,  # type: ignore[arg-type]  # a list does; `_load` turns the keys into images, in the workers
                batch_size=size,
                num_workers=min(self.workers, -(-len(ahead) // size)),
                collate_fn=partial(_load, images, transform, drawn, images.prepared if again else None),
                generator=torch.Generator(),  # or the loader draws from the global one
            )
            for read, unreadable, rows in loader:
                images.unreadable.update(unreadable)
                pixels.extend(rows)
                done.extend(read)
                number -= len(read)
                while len(pixels) >= size or (pixels and number == 0):
                    batch = self.normalize(torch.stack(pixels[:size]).float().div_(255))
                    if drawn is not None and self.erasing is not None:
                        with _kept_randomness():
                            for image, (_, place) in zip(batch, done, strict=False):
                                _seed_all(f"{seed}/{place}/erasing")
                                self.erasing(image)  # in place
                    yield batch, torch.from_numpy(images.labels[[index for index, _ in done[:size]]])
                    del pixels[:size], done[:size]


def load_data(
    *,
    dataset: str,
    data_dir: Path | None,
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
    val_images: int | None,
    calibration_images: int,
    seed: int,
    augmentation: Augmentation | None = None,
    memory_limit_bytes: int = 1 << 30,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Opens a data set, sets aside what to calibrate and validate on, and decodes what fits in memory.

    Training photographs are cropped and mirrored at random; written characters are not mirrored; the built-in digits,
    random already, are neither cropped nor mirrored. Evaluation is timm's: short side at `img_size / crop_pct`, then
    the middle. Raises `InputError`, in one line, where the data are unknown, missing, or break a rule.

    Args:
        dataset: "digits" (built in), "folder", or timm's "torch/<name>" (from disk) or "hfds/<name>".
        data_dir: The image folder, with train/ and validation/ (or val/, valid/) and in each a folder per class; or
            where the named data set lies. None for the built-in digits.
        img_size: Side of the images given out, in pixels.
        mean, std: Of each channel, on a scale from 0 to 1: images are given out less `mean`, divided by `std`.
        interpolation: How images are resized, by Pillow's name.
        crop_pct: Share of the short side that evaluation sees, in (0, 1]. The built-in digits are seen whole.
        val_images: How many validation images to use, at most; None: all, of the built-in digits
            `DIGITS_VALIDATION_IMAGES`.
        calibration_images: How many training images to calibrate on, at most.
        seed: Chooses those images, and draws the built-in digits; from 0.
        augmentation: Of a full training; None: a little, for proxy trainings.
        memory_limit_bytes: Decoded images are kept where they are expected to take no more than this.
        workers: Processes that prepare batches. None: none for images kept in memory, else one per CPU up to 8.
        on_progress: Called after each training image decoded in advance: how many so far, of how many.
    """
    drawn_images = DIGITS_VALIDATION_IMAGES if val_images is None else val_images
    if min(img_size, drawn_images, calibration_images, seed + 1) < 1 or not 0 < crop_pct <= 1:
        got = f"{img_size=}, {val_images=}, {calibration_images=}, {seed=}, {crop_pct=}"
        raise InputError(f"sizes must be 1 or more, `seed` 0 or more, `crop_pct` in (0, 1], but got {got}")
    if dataset == "digits" and data_dir is not None:
        raise InputError(f"'digits' are built in, but got data_dir={shown([data_dir])}: use dataset='folder'")
    resize = Resize(int(img_size / crop_pct), interpolation=str_to_interp_mode(interpolation))
    proxy: dict[str, Any] = {"is_training": True, "scale": TRAIN_CROP, "color_jitter": None}
    train_options = augmentation.transform() if augmentation else proxy
    if dataset == "digits":
        crop_pct = 1.0
        whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0}
        train_options = {**train_options, **whole} if augmentation else {"crop_pct": 1.0}
        lengths = zip(SPLITS, (DIGITS_TRAIN_IMAGES, drawn_images), strict=True)
        drawn = [ClutteredDigits(split, img_size=img_size, seed=seed, length=length) for split, length in lengths]
        train, validation = (ImageSplit(each, each.labels, CLASS_NAMES, resize, on_disk=False) for each in drawn)
    elif dataset == "folder":
        train, validation = open_folder(resize, data_dir)
    else:
        train, validation = open_named(resize, dataset, data_dir)
        if "mnist" in dataset.lower():
            train_options["hflip"] = 0.0
    if len(train.class_names) < 2:
        raise InputError(f"training needs two classes or more, but there is only {shown(train.class_names)}")
    if validation.class_names != train.class_names:
        label_of = {name: label for label, name in enumerate(train.class_names)}
        if unknown := [name for name in validation.class_names if name not in label_of]:
            raise InputError(f"validation classes must be among those of training, but {shown(unknown)} are not")
        # Each split numbers its own classes, and one that is missing shifts the others: only names agree.
        validation.labels = np.array([label_of[name] for name in validation.class_names])[validation.labels]
    if augmentation is not None:
        train.resize = None
    held_out = len(validation.labels) if val_images is None else min(val_images, len(validation.labels))
    needed = sum(estimated_bytes(*each) for each in ((train, len(train.labels)), (validation, held_out)))
    if needed <= memory_limit_bytes:
        train.kept, validation.kept = {}, {}
        if needed + (held_out + calibration_images) * 3 * img_size**2 <= memory_limit_bytes:
            train.prepared, validation.prepared = {}, {}
        train.check(range(len(train.labels) if train.on_disk else 0), on_progress)
    first_of_each = train.labels[train.choose(len(train.class_names), seed=seed)]
    if absent := [name for label, name in enumerate(train.class_names) if label not in first_of_each]:
        raise InputError(f"each class needs a readable training image, but there is none of {shown(absent)}")
    if not (chosen := validation.choose(held_out, seed=seed)):
        raise InputError(f"validation needs a readable image, but there are only {shown(validation.skipped())}")
    eval_transform = evaluation_transform(img_size, interpolation=interpolation, crop_pct=crop_pct)
    changes = train_options.get("is_training", False)
    return ImageData(
        title=f"{dataset} {shown([data_dir])}" if data_dir else dataset,
        img_size=img_size,
        class_names=train.class_names,
        num_classes=len(train.class_names),
        validation_size=len(chosen),
        train=train,
        validation=validation,
        calibration_keys=[(index, 0) for index in train.choose(calibration_images, seed=seed)],
        validation_keys=[(index, 0) for index in chosen],
        train_transform=_changing(img_size, {"interpolation": interpolation, "normalize": False, **train_options})
        if changes
        else eval_transform,
        eval_transform=eval_transform,
        normalize=Normalize(mean, std, inplace=True),
        erasing=augmentation.erasing() if augmentation else None,
        workers=workers if workers is not None else 0 if train.kept is not None else min(8, CPUS),
    )


def evaluation_transform(img_size: int, *, interpolation: str, crop_pct: float) -> Transform:
    """What evaluation makes of an image, timm's: short side at `img_size / crop_pct`, then the middle."""
    transform: Transform = create_transform(img_size, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
    return transform


def _changing(img_size: int, options: dict[str, Any]) -> Transform:
    """timm's transform of a training.

    Raises:
        InputError: If timm does not know the policy of augmentation, for which it has no error of its own.
    """
    policy = options.get("auto_augment")
    try:
        transform: Transform = create_transform(img_size, **options)
    except (AssertionError, LookupError, ValueError, TypeError) as error:
        if not policy:
            raise
        known = "rand-m9-mstd0.5, augmix-m3, original or 3a"
        raise InputError(f"aa must be a policy of timm's, such as {known}, but got {policy!r}") from error
    return transform


def _load(
    images: ImageSplit, transform: Transform, seed: int | None, prepared: dict[int, Tensor] | None, keys: list[Key]
) -> tuple[list[Key], list[int], Tensor]:
    """The keys of what can be read, the numbers of what cannot, and the transformed pixels, (B, 3, S, S) uint8.

    Without a seed the transform draws nothing, and what it gives may be `prepared`, by number.
    """
    readable, unreadable, rows = [], [], []
    with _kept_randomness() if seed is not None else nullcontext():
        for index, place in keys:
            if prepared is not None and index in prepared:
                row = prepared[index]
            elif (pixels := images.pixels(index)) is None:
                unreadable.append(index)
                continue
            else:
                if seed is not None:
                    _seed_all(f"{seed}/{place}")
                row = transform(Image.fromarray(pixels).convert("RGB"))
                if prepared is not None:
                    prepared[index] = row
            readable.append((index, place))
            rows.append(row)
    return readable, unreadable, torch.stack(rows) if rows else torch.empty(0)


def _seed_all(seed: str) -> None:
    """Seeds what timm's transforms draw from: Python, NumPy, torch on the CPU."""
    random.seed(seed)
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed reseeds CUDA as well
    np.random.seed(random.getrandbits(32))


@contextmanager
def _kept_randomness() -> Iterator[None]:
    """Puts the generators of `_seed_all` back as they were."""
    before, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpys)
