"""Batches of normalised images from the user's data set: the same seed gives the same bits.

timm opens the data set (`timm.data.create_dataset`) and transforms its images (`timm.data.create_transform`). This
package adds errors that a user can act on, skips and lists unreadable images, keeps small sets in memory, and makes
batches depend on their seed alone: not on memory, workers or the global random state.

Shapes: B images per batch, S `img_size`.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import Resize

from ltmsearch.callbacks import Callbacks
from ltmsearch.data.folders import left_out_text
from ltmsearch.data.images import SCALED, pillow_quiet
from ltmsearch.data.layout import DataLayout
from ltmsearch.data.preparation import IMAGE_MODES, CropMode, Interpolation
from ltmsearch.data.sources import VALIDATION_FOLDERS, Scoring, open_splits
from ltmsearch.data.subsets import CPUS, ImageSplit, balanced, quoted
from ltmsearch.data.transforms import (
    Augmentation,
    Transform,
    Transforms,
    make_transforms,
    preserve_random_state,
    seed_all,
)
from ltmsearch.errors import InputError, check_choice

DIGITS_VALIDATION_IMAGES = 1000  # where all are asked for

Key = tuple[int, int]  # the number of an image, and its place in the stream, which seeds its augmentation
Shard = tuple[int, int]  # this process's number, from 0, and how many share the batches
SINGLE_PROCESS: Shard = (0, 1)


@dataclass(kw_only=True)
class ImageData:
    """Training, calibration and validation images in batches, as opened by `load_data`."""

    title: str
    train: ImageSplit
    validation: ImageSplit
    calibration_keys: list[Key]
    validation_keys: list[Key]
    transforms: Transforms
    workers: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of the labels."""
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def refuse_more_classes(self, what: str, outputs: int) -> None:
        """Raise `InputError` if a network has fewer outputs than there are classes; `what` is their number's name."""
        if self.num_classes > outputs:
            raise InputError(
                f"{what} must be at least the number of classes of the data, but the data have {self.num_classes} and "
                f"it is {outputs}; use --num-classes {self.num_classes}"
            )

    def about_outputs(self, outputs: int) -> str:
        """A note on a network that has more outputs than there are classes."""
        return f"the network has {outputs} outputs; the classes of the data are the first {self.num_classes}"

    @property
    def training_size(self) -> int:
        """Number of training images, without those known to be unreadable."""
        return len(self.train.labels) - len(self.train.unreadable)

    @property
    def validation_size(self) -> int:
        """Number of images that `validation_batches` gives without a limit."""
        return len(self.validation_keys)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Paths of the unreadable images found so far; sets that are not kept in memory may reveal more."""
        return self.train.skipped() + self.validation.skipped()

    @property
    def notes(self) -> tuple[str, ...]:
        """Files not used and images changed, as far as they are known: a printable phrase each."""
        left_out = left_out_text(self.train.left_out + self.validation.left_out)
        skipped = f"{len(self.skipped)} unreadable skipped: {quoted(self.skipped)}" if self.skipped else ""
        scaled = SCALED if self.train.scaled or self.validation.scaled else ""
        return tuple(filter(None, (left_out, skipped, scaled)))

    @property
    def description(self) -> str:
        """Name, sizes and storage of the data, with notes, in one printable line."""
        sizes = f"{self.training_size} training and {self.validation_size} validation images"
        storage = "read as needed" if self.train.pixel_cache is None else "kept in memory"
        return "; ".join((f"{self.title}: {sizes} in {self.num_classes} classes, {storage}", *self.notes))

    def train_batches(
        self, *, batch_size: int, steps: int, seed: int, shard: Shard = SINGLE_PROCESS, first_step: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches `first_step` to `steps` of augmented training images and labels.

        Images are float32 (B, channels, S, S), labels int64 (B,).

        Every image is used once per epoch, in an order drawn for that epoch. `seed` (from 0) fixes order and
        augmentation; batches do not depend on `first_step`. Where processes share the batches, `batch_size` is the
        part of each, and all parts together are the batch of a single process.

        Raises:
            InputError: If no image is readable any more.
        """
        keys = islice(self._epochs(seed, shard), batch_size * first_step, None)
        number = batch_size * (steps - first_step)
        return self._batches(self.train, self.transforms.train, keys, number, batch_size, seed)

    def calibration_batches(self, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A fixed sample of training images by the evaluation transform: float32 (B, channels, S, S), int64 (B,)."""
        keys = self.calibration_keys
        return self._batches(self.train, self.transforms.evaluation, iter(keys), len(keys), batch_size)

    def training_sample(self, number: int, *, seed: int, of: Collection[int] | None = None) -> list[int]:
        """Numbers of the training images, in order; of more than `number` a sample, balanced over the classes.

        Images known to be unreadable are not among them. `of` limits the choice to images by number; None: all.
        """
        left_out = set(self.train.unreadable)
        if of is not None:
            left_out |= set(range(len(self.train.labels))) - set(of)
        return sorted(balanced(self.train.labels, number, seed=seed, without=left_out))

    def ordered_batches(self, numbers: Sequence[int], *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training images by number and the evaluation transform, in their order: float32 (B, 3, S, S), int64 (B,).

        Those that turn out to be unreadable are left out; the last batch may be smaller. Nothing is cached.
        """
        keys: Iterator[Key] = ((number, 0) for number in numbers)
        # A seed keeps results out of the cache, whose size is planned for calibration and validation images.
        yield from self._batches(
            self.train, self.transforms.evaluation, keys, len(numbers), batch_size, seed=0, replaced=False
        )

    def validation_batches(
        self, *, batch_size: int, limit: int | None = None, shard: Shard = SINGLE_PROCESS
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation images, or the first `limit`, in a fixed order: float32 (B, channels, S, S), int64 (B,).

        Classes take turns, so that the first images are balanced too. The last batch may be smaller.
        """
        keys = self.validation_keys[:limit][shard[0] :: shard[1]]
        return self._batches(self.validation, self.transforms.evaluation, iter(keys), len(keys), batch_size)

    def _epochs(self, seed: int, shard: Shard) -> Iterator[Key]:
        for epoch in count():
            order = np.random.default_rng((seed, epoch)).permutation(len(self.train.labels)).tolist()
            if len(self.train.unreadable) == len(order):
                return
            for place, index in enumerate(order, start=epoch * len(order)):
                # By place, not by counting: only the process that read an image knows that it is unreadable.
                if place % shard[1] == shard[0] and index not in self.train.unreadable:
                    yield index, place

    def _batches(
        self,
        images: ImageSplit,
        transform: Transform,
        keys: Iterator[Key],
        number: int,
        size: int,
        seed: int | None = None,
        *,
        replaced: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`number` images in batches of `size`; the next readable one replaces one that is not, if `replaced`.

        Results are cached without a seed. With one, only those of random transforms depend on it.
        """
        cache = images.tensor_cache if seed is None else None
        augment_seed = None if transform is self.transforms.evaluation else seed
        pixels: list[Tensor] = []
        done: list[Key] = []
        while number > 0:
            ahead = list(islice(keys, number))
            if not ahead:
                raise InputError(f"too few images are readable; unreadable are {quoted(images.skipped())}")
            loader: DataLoader[Any] = DataLoader(
                ahead,  # type: ignore[arg-type]  # a list does; `_load` turns the keys into images, in the workers
                batch_size=size,
                num_workers=min(self.workers, -(-len(ahead) // size)),
                collate_fn=partial(_load, images, transform, augment_seed, cache),
                generator=torch.Generator(),  # or the loader draws from the global one
            )
            for read, unreadable, rows in loader:
                images.unreadable.update(unreadable)
                pixels.extend(rows)
                done.extend(read)
                number -= len(read) if replaced else len(read) + len(unreadable)
                while len(pixels) >= size or (pixels and number == 0):
                    batch = self.transforms.normalize(torch.stack(pixels[:size]).float().div_(255))
                    if augment_seed is not None:
                        self.transforms.erase_(batch, [f"{seed}/{place}/erasing" for _, place in done[:size]])
                    yield batch, torch.from_numpy(images.labels[[index for index, _ in done[:size]]])
                    del pixels[:size], done[:size]


def load_data(
    *,
    dataset: str,
    data_dir: Path | None,
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation = "bicubic",
    crop_pct: float = 0.875,
    crop_mode: CropMode = "center",
    val_images: int | None,
    calibration_images: int,
    seed: int,
    augmentation: Augmentation | None = None,
    memory_limit_bytes: int = 1 << 30,
    workers: int | None = None,
    scoring: Scoring | None = None,
    layout: DataLayout | None = None,
    callbacks: Callbacks | None = None,
) -> ImageData:
    """Open a data set, choose calibration and validation images, and decode what fits in memory.

    Args:
        dataset: "digits" (built in), "folder", or timm's "torch/<name>" (from disk) or "hfds/<name>".
        data_dir: The image folder, with train/ and validation/ (or val/, valid/) and in each a folder per class; or
            the folder of the named data set. None for the built-in digits.
        mean, std, interpolation, crop_pct, crop_mode: See `make_transforms`; one mean for grey, three for RGB images,
            four for RGBA.
        val_images: Number of validation images, at most; None: all, of the built-in digits `DIGITS_VALIDATION_IMAGES`.
        calibration_images: Number of training images to calibrate on, at most.
        seed: Chooses those images, and draws the built-in digits; from 0.
        augmentation: Of a full training; None: that of proxy training.
        memory_limit_bytes: Decoded images are kept in memory if they are expected to take no more than this.
        workers: Processes that prepare batches; None: none for images kept in memory, else one per CPU up to 8.
        scoring: Which images are those of validation, and that training images may be missing; None: they may not.
        layout: Other names of splits, and a class map.

    Raises:
        InputError: If the data set is unknown, missing, or breaks a rule.
    """
    drawn_images = DIGITS_VALIDATION_IMAGES if val_images is None else val_images
    _check_numbers(img_size, drawn_images, calibration_images, seed, crop_pct, mean, std)
    resize = _first_resize(img_size, interpolation, crop_pct, crop_mode)
    train, validation = open_splits(dataset, data_dir, resize, img_size, drawn_images, seed, scoring, layout)
    train.mode = validation.mode = IMAGE_MODES[len(mean)]
    if augmentation is not None:
        train.resize = None
    held_out = len(validation.labels) if val_images is None else min(val_images, len(validation.labels))
    tensor_bytes = (held_out + calibration_images) * len(mean) * img_size**2
    _fill_caches(train, validation, held_out, tensor_bytes, memory_limit_bytes, callbacks)
    validation_keys = _validation_keys(train, validation, held_out, seed, every_class=not (layout and layout.class_map))
    return ImageData(
        title=_title(dataset, data_dir, validation),
        train=train,
        validation=validation,
        calibration_keys=[(index, 0) for index in train.sample(calibration_images, seed=seed)],
        validation_keys=validation_keys,
        transforms=make_transforms(dataset, img_size, mean, std, interpolation, crop_pct, crop_mode, augmentation),
        workers=workers if workers is not None else 0 if train.pixel_cache is not None else min(8, CPUS),
    )


def _check_numbers(
    img_size: int,
    val_images: int,
    calibration_images: int,
    seed: int,
    crop_pct: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    if min(img_size, val_images, calibration_images, seed + 1) < 1 or not 0 < crop_pct <= 1:
        got = f"{img_size=}, {val_images=}, {calibration_images=}, {seed=}, {crop_pct=}"
        raise InputError(f"sizes must be 1 or more, `seed` 0 or more, `crop_pct` in (0, 1], but got {got}")
    if len(mean) not in IMAGE_MODES or len(std) != len(mean):
        raise InputError(f"`mean` and `std` must be 1, 3 or 4 numbers each, but got {mean!r} and {std!r}")


def _title(dataset: str, data_dir: Path | None, validation: ImageSplit) -> str:
    title = f"{dataset} {quoted([data_dir])}" if data_dir else dataset
    return title if validation.name in VALIDATION_FOLDERS else f"{title}, {validation.name}"


def _first_resize(img_size: int, interpolation: Interpolation, crop_pct: float, crop_mode: CropMode) -> Resize | None:
    """The first step of evaluation, if images may be shrunk by it before they are cached: see `ImageSplit`."""
    check_choice("`interpolation`", interpolation, Interpolation)
    check_choice("`crop_mode`", crop_mode, CropMode)
    if crop_mode != "center":
        return None  # training crops from the image before it is squashed or given borders
    return Resize(int(img_size / crop_pct), interpolation=str_to_interp_mode(interpolation))


def _fill_caches(
    train: ImageSplit,
    validation: ImageSplit,
    held_out: int,
    tensor_bytes: int,
    memory_limit_bytes: int,
    callbacks: Callbacks | None,
) -> None:
    needed = train.estimated_bytes(len(train.labels)) + validation.estimated_bytes(held_out)
    if needed > memory_limit_bytes:
        return
    train.pixel_cache, validation.pixel_cache = {}, {}
    if needed + tensor_bytes <= memory_limit_bytes:
        train.tensor_cache, validation.tensor_cache = {}, {}
    if train.on_disk:
        train.verify(range(len(train.labels)), callbacks)


def _validation_keys(
    train: ImageSplit, validation: ImageSplit, held_out: int, seed: int, *, every_class: bool
) -> list[Key]:
    """Validation images to score, after a check of the training images of `every_class` or of those that have some."""
    first_of_each = train.labels[train.sample(len(train.class_names), seed=seed)]
    needed = set(range(len(train.class_names))) if every_class else set(train.labels.tolist())
    absent = [name for label, name in enumerate(train.class_names) if label in needed - set(first_of_each.tolist())]
    if absent and len(train.labels):
        raise InputError(f"each class needs a readable training image, but there is none of {quoted(absent)}")
    if not (chosen := validation.sample(held_out, seed=seed)):
        raise InputError(f"validation needs a readable image, but got only {quoted(validation.skipped())}")
    return [(index, 0) for index in chosen]


@pillow_quiet()
def _load(
    images: ImageSplit, transform: Transform, seed: int | None, cache: dict[int, Tensor] | None, keys: list[Key]
) -> tuple[list[Key], list[int], Tensor]:
    """The keys of readable images, the numbers of unreadable ones, and the transformed pixels.

    Pixels are uint8 (B, channels, S, S).
    Without a seed the transform draws nothing, and its results may be in `cache`, by number.
    """
    readable, unreadable, rows = [], [], []
    with preserve_random_state() if seed is not None else nullcontext():
        for index, place in keys:
            if cache is not None and index in cache:
                row = cache[index]
            elif (pixels := images.pixels(index)) is None:
                unreadable.append(index)
                continue
            else:
                if seed is not None:
                    seed_all(f"{seed}/{place}")
                row = transform(Image.fromarray(pixels).convert(images.mode))
                if cache is not None:
                    cache[index] = row
            readable.append((index, place))
            rows.append(row)
    return readable, unreadable, torch.stack(rows) if rows else torch.empty(0)
