"""Batches of normalised images from the user's data set: the same seed gives the same bits.

timm opens the data set (`timm.data.create_dataset`) and transforms its images (`timm.data.create_transform`). This
package adds errors that a user can act on, skips and lists unreadable images, keeps small sets in memory, and makes
batches depend on their seed alone: not on memory, workers or the global random state.

Shapes: B images per batch, S `img_size`.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import Resize

from ltmsearch.callbacks import Callbacks
from ltmsearch.data.batches import Batches, Key, load_batches
from ltmsearch.data.folders import left_out_text
from ltmsearch.data.held_out import HeldOutImages, Wanted, choose, keep_in_memory
from ltmsearch.data.images import SCALED
from ltmsearch.data.layout import DataLayout
from ltmsearch.data.preparation import IMAGE_MODES, CropMode, Interpolation
from ltmsearch.data.sources import VALIDATION_FOLDERS, Scoring, open_splits
from ltmsearch.data.subsets import CPUS, ImageSplit, balanced, quoted
from ltmsearch.data.transforms import Augmentation, Transforms, make_transforms
from ltmsearch.errors import InputError, check_choice

DIGITS_VALIDATION_IMAGES = 1000  # where all are asked for

Shard = tuple[int, int]  # this process's number, from 0, and how many share the batches
SINGLE_PROCESS: Shard = (0, 1)


@dataclass(kw_only=True)
class ImageData:
    """Training, calibration, search, validation and report images in batches, as opened by `load_data`."""

    title: str
    train: ImageSplit
    validation: ImageSplit
    calibration_keys: list[Key]
    validation_keys: list[Key]
    transforms: Transforms
    workers: int
    search: HeldOutImages | None = None
    report: HeldOutImages | None = None
    set_aside: frozenset[int] = frozenset()  # numbers of the training images that are search images

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

    def refuse_other_classes(self, names: Sequence[str] | None, outputs: int, checkpoint: Path) -> None:
        """Raise `InputError` unless these are the classes of a trained network.

        Args:
            names: Classes in the order of its outputs; None: its weights name none.
            outputs: Their number.
            checkpoint: File of its weights.
        """
        if names and self.num_classes != len(names):
            raise InputError(
                f"the data must have the {len(names)} classes of {checkpoint}, but have {self.num_classes}; use the "
                "data that the weights were trained on"
            )
        if not names and self.num_classes != outputs:
            nameless = "; the weights name no classes, and without training images the folder must have all of them"
            raise InputError(
                f"the recipe's num_classes must be the data's {self.num_classes}, but is {outputs}; use the data that "
                f"the weights were trained on{'' if self.training_size else nameless}"
            )
        if names and (other := sorted(set(self.class_names) - set(names))):
            missing = sorted(set(names) - set(self.class_names))
            raise InputError(
                f"the data must have the classes of {checkpoint}, but lack {missing[0]!r} and have {other[0]!r}; "
                "rename folders, or use the data that the weights were trained on"
            )
        for number, (trained, found) in enumerate(zip(names or (), self.class_names, strict=False), start=1):
            if trained != found:
                raise InputError(
                    f"the data must have the classes of {checkpoint}, but class {number} is {found!r} instead of "
                    f"{trained!r}; give their order with --class-map FILE"
                )

    def about_outputs(self, outputs: int) -> str:
        """A note on a network that has more outputs than there are classes."""
        return f"the network has {outputs} outputs; the classes of the data are the first {self.num_classes}"

    @property
    def training_size(self) -> int:
        """Number of images to train on, without those known to be unreadable."""
        return len(self.train.labels) - len(self.train.unreadable | self.set_aside)

    @property
    def validation_size(self) -> int:
        """Number of images that `validation_batches` gives without a limit."""
        return len(self.validation_keys)

    @property
    def search_size(self) -> int:
        """Number of images that `search_batches` gives without a limit; 0: there are none."""
        return len(self.search.keys) if self.search else 0

    @property
    def report_size(self) -> int:
        """Number of images that `report_batches` gives without a limit; 0: there are none."""
        return len(self.report.keys) if self.report else 0

    @property
    def report_name(self) -> str:
        """What the report images are, in printable words, such as `372 images of test`."""
        return self.report.name if self.report else "no images"

    @property
    def _splits(self) -> tuple[ImageSplit, ...]:
        apart = (images.images for images in (self.search, self.report) if images and images.apart)
        return self.train, self.validation, *apart

    @property
    def skipped(self) -> tuple[str, ...]:
        """Paths of the unreadable images found so far; sets that are not kept in memory may reveal more."""
        return tuple(path for split in self._splits for path in split.skipped())

    @property
    def notes(self) -> tuple[str, ...]:
        """Files not used and images changed, as far as they are known: a printable phrase each."""
        left_out = left_out_text(sum((split.left_out for split in self._splits), Counter()))
        skipped = f"{len(self.skipped)} unreadable skipped: {quoted(self.skipped)}" if self.skipped else ""
        scaled = SCALED if any(split.scaled for split in self._splits) else ""
        return tuple(filter(None, (left_out, skipped, scaled)))

    @property
    def description(self) -> str:
        """Name, sizes and storage of the data, with notes, in one printable line."""
        sizes = f"{self.training_size} training and {self.validation_size} validation"
        if self.search or self.report:
            search = f", {self.search_size:,} search" if self.search else ""
            scored = f"{self.validation_size:,} validation"
            scored = f", {scored} and {self.report_size:,} report" if self.report else f" and {scored}"
            sizes = f"{self.training_size:,} training{search}{scored}"
        storage = "read as needed" if self.train.pixel_cache is None else "kept in memory"
        return "; ".join((f"{self.title}: {sizes} images in {self.num_classes} classes, {storage}", *self.notes))

    def train_batches(
        self, *, batch_size: int, steps: int, seed: int, shard: Shard = SINGLE_PROCESS, first_step: int = 0
    ) -> Batches:
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
        return self._batches(self.train, keys, number, batch_size=batch_size, augment_seed=seed)

    def calibration_batches(self, *, batch_size: int) -> Batches:
        """A fixed sample of training images by the evaluation transform: float32 (B, channels, S, S), int64 (B,)."""
        return self._fixed_batches(self.train, self.calibration_keys, batch_size)

    def training_sample(self, number: int, *, seed: int, of: Collection[int] | None = None) -> list[int]:
        """Numbers of the training images, in order; of more than `number` a sample, balanced over the classes.

        Images known to be unreadable and search images are not among them. `of` limits the choice to images by number;
        None: all.
        """
        left_out = self.train.unreadable | self.set_aside
        if of is not None:
            left_out |= set(range(len(self.train.labels))) - set(of)
        return sorted(balanced(self.train.labels, number, seed=seed, without=left_out))

    def ordered_batches(self, numbers: Sequence[int], *, batch_size: int) -> Batches:
        """Training images by number and the evaluation transform, in their order: float32 (B, 3, S, S), int64 (B,).

        Those that turn out to be unreadable are left out; the last batch may be smaller. Nothing is cached.
        """
        keys: Iterator[Key] = ((number, 0) for number in numbers)
        # The cache's size is planned for calibration and held-out images.
        return self._batches(self.train, keys, len(numbers), batch_size=batch_size, cached=False, replaced=False)

    def validation_batches(
        self, *, batch_size: int, limit: int | None = None, shard: Shard = SINGLE_PROCESS
    ) -> Batches:
        """The validation images, or the first `limit`, in a fixed order: float32 (B, channels, S, S), int64 (B,).

        Classes take turns, so that the first images are balanced too. The last batch may be smaller.
        """
        keys = self.validation_keys[:limit][shard[0] :: shard[1]]
        return self._fixed_batches(self.validation, keys, batch_size)

    def search_batches(self, *, batch_size: int, limit: int | None = None) -> Batches:
        """The search images, which are in no training batch, as `validation_batches` gives those of validation.

        Raises:
            ValueError: If there are none.
        """
        return self._held_out_batches(self.search, "search", batch_size, limit)

    def report_batches(self, *, batch_size: int, limit: int | None = None) -> Batches:
        """The report images, which are in no other batch, as `validation_batches` gives those of validation.

        Raises:
            ValueError: If there are none.
        """
        return self._held_out_batches(self.report, "report", batch_size, limit)

    def search_groups(self) -> np.ndarray:
        """(n,) int64, in the order of `search_batches`: equal numbers for images that are not independent.

        These are digits drawn from the same glyph; other images all have numbers of their own.
        """
        return self.search.groups() if self.search else np.arange(0, dtype=np.int64)

    def report_groups(self) -> np.ndarray:
        """(n,) int64, in the order of `report_batches`: see `search_groups`."""
        return self.report.groups() if self.report else np.arange(0, dtype=np.int64)

    def _held_out_batches(
        self, held_out: HeldOutImages | None, name: str, batch_size: int, limit: int | None
    ) -> Batches:
        if held_out is None:
            raise ValueError(f"there are no {name} images: ask `load_data` for {name}_images, in data with enough")
        return self._fixed_batches(held_out.images, held_out.keys[:limit], batch_size)

    def _fixed_batches(self, images: ImageSplit, keys: list[Key], batch_size: int) -> Batches:
        return self._batches(images, iter(keys), len(keys), batch_size=batch_size)

    def _batches(self, images: ImageSplit, keys: Iterator[Key], number: int, **options: Any) -> Batches:
        return load_batches(images, self.transforms, keys, number, workers=self.workers, **options)

    def _epochs(self, seed: int, shard: Shard) -> Iterator[Key]:
        kept = np.ones(len(self.train.labels), dtype=bool)
        kept[list(self.set_aside)] = False
        numbers = np.flatnonzero(kept)
        for epoch in count():
            order = numbers[np.random.default_rng((seed, epoch)).permutation(len(numbers))].tolist()
            if len(self.train.unreadable - self.set_aside) == len(order):
                return
            for place, index in enumerate(order, start=epoch * len(order)):
                # By place, not by counting: only the process that read an image knows that it is unreadable.
                if place % shard[1] == shard[0] and index not in self.train.unreadable:
                    yield index, place


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
    search_images: int = 0,
    report_images: int = 0,
    seed: int,
    augmentation: Augmentation | None = None,
    memory_limit_bytes: int = 1 << 30,
    workers: int | None = None,
    scoring: Scoring | None = None,
    layout: DataLayout | None = None,
    callbacks: Callbacks | None = None,
) -> ImageData:
    """Open a data set, choose the images of each purpose, and decode what fits in memory.

    Args:
        dataset: "digits" (built in), "folder", or timm's "torch/<name>" (from disk) or "hfds/<name>".
        data_dir: The image folder, with train/ and validation/ (or val/, valid/) and in each a folder per class; or
            the folder of the named data set. None for the built-in digits.
        mean, std, interpolation, crop_pct, crop_mode: See `make_transforms`; one mean for grey, 3 for RGB, 4 for RGBA.
        val_images: Number of validation images, at most; None: all, of the built-in digits `DIGITS_VALIDATION_IMAGES`.
        calibration_images: Number of training images to calibrate on, at most.
        search_images: Number of training images to set aside, at most: see `choose`; digits are drawn instead.
        report_images: Number of test images, at most; without a test split, of one half of the validation images.
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
    wanted = Wanted(validation=val_images, calibration=calibration_images, search=search_images, report=report_images)
    resize = _first_resize(img_size, interpolation, crop_pct, crop_mode)
    drawn = (drawn_images, search_images, report_images)
    splits = open_splits(dataset, data_dir, resize, img_size, drawn, seed, scoring, layout)
    splits.read_as(IMAGE_MODES[len(mean)], original=augmentation is not None)
    keep_in_memory(splits, wanted, len(mean) * img_size**2, limit_bytes=memory_limit_bytes, callbacks=callbacks)
    chosen = choose(splits, wanted, seed=seed, every_class=not (layout and layout.class_map), callbacks=callbacks)
    return ImageData(
        title=_title(dataset, data_dir, splits.validation),
        train=splits.train,
        validation=splits.validation,
        **vars(chosen),
        transforms=make_transforms(dataset, img_size, mean, std, interpolation, crop_pct, crop_mode, augmentation),
        workers=workers if workers is not None else 0 if splits.train.pixel_cache is not None else min(8, CPUS),
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
