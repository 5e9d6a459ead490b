"""Choose the images to calibrate, to search, to validate and to report on: no two of these sets share an image."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ltmsearch.callbacks import Callbacks
from ltmsearch.data.batches import Key
from ltmsearch.data.digits import ClutteredDigits
from ltmsearch.data.sources import Splits
from ltmsearch.data.subsets import ImageSplit, balanced, quoted
from ltmsearch.errors import InputError

SEARCH_SHARE = 5
"""One in so many training images is set aside for the search, at most."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Numbers of images, at most."""

    validation: int | None
    """None: all."""
    calibration: int
    search: int
    """Apart from training, for the choices of a search."""
    report: int
    """Apart from training and from every choice."""

    def __post_init__(self) -> None:
        if min(self.search, self.report) < 0:
            got = f"search_images={self.search}, report_images={self.report}"
            raise InputError(f"`search_images` and `report_images` must be 0 or more, but got {got}")


@dataclass(frozen=True, kw_only=True)
class HeldOutImages:
    """Images of a split that are kept apart from the others, in the order of their batches."""

    images: ImageSplit
    keys: list[Key]
    apart: bool
    """Whether they are all that is used of their split."""

    @property
    def name(self) -> str:
        """Such as `372 images of test` or `170 validation images set aside`; printable."""
        images = f"image{'s' * (len(self.keys) != 1)}"
        number = f"{len(self.keys):,}"
        return f"{number} {images} of {self.images.name}" if self.apart else f"{number} validation {images} set aside"

    def groups(self) -> np.ndarray:
        """(n,) int64: equal numbers for images that are not independent of each other."""
        if isinstance(self.images.dataset, ClutteredDigits):
            return self.images.dataset.groups[[index for index, _ in self.keys]]
        return np.arange(len(self.keys), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Images of each purpose; None: none."""

    calibration_keys: list[Key]
    validation_keys: list[Key]
    search: HeldOutImages | None
    report: HeldOutImages | None
    set_aside: frozenset[int]
    """Numbers of the training images that are not trained on."""


def choose(
    splits: Splits, wanted: Wanted, *, seed: int, every_class: bool, callbacks: Callbacks | None = None
) -> Chosen:
    """Choose readable images by the seed, after a check of the training images of `every_class` or of those with some.

    Search images are training images, at most one in `SEARCH_SHARE` of the readable ones and not the last of a class,
    unless there is a search split. Report images are from the test split or, without one, from a half of the
    validation images: of each class, the half that is not larger.

    Raises:
        InputError: If a class has no readable training image, or validation or the test split has none at all.
    """
    train, validation = splits.train, splits.validation
    first = _first_of_each(train, seed=seed)
    needed = set(range(len(train.class_names))) if every_class else set(train.labels.tolist())
    absent = [name for label, name in enumerate(train.class_names) if label in needed - set(first)]
    if absent and len(train.labels):
        raise InputError(f"each class needs a readable training image, but there is none of {quoted(absent)}")
    half = _half(validation, seed=seed) if wanted.report and splits.test is None else frozenset()
    number = len(validation.labels) if wanted.validation is None else wanted.validation
    chosen = _some_of(validation, number, "validation", seed=seed, without=half)
    search = _search(splits, wanted.search, frozenset(first.values()), seed, callbacks)
    set_aside = frozenset(index for index, _ in search.keys) if search and not search.apart else frozenset()
    return Chosen(
        calibration_keys=_keys(train.sample(wanted.calibration, seed=seed, without=set_aside)),
        validation_keys=_keys(chosen),
        search=search,
        report=_report(splits, wanted.report, half, seed),
        set_aside=set_aside,
    )


def keep_in_memory(
    splits: Splits, wanted: Wanted, image_bytes: int, *, limit_bytes: int, callbacks: Callbacks | None = None
) -> None:
    """Let splits keep decoded images if they are expected to fit, and those of evaluation if these do as well.

    Args:
        image_bytes: Of one image of evaluation.
    """
    train, validation = splits.train, splits.validation
    halves = int((np.bincount(validation.labels) // 2).sum()) if wanted.report and splits.test is None else 0
    scored = len(validation.labels) - halves
    scored = scored if wanted.validation is None else min(wanted.validation, scored)
    reported = min(wanted.report, halves if splits.test is None else len(splits.test.labels))
    uses = [(train, len(train.labels)), (validation, scored)]
    if splits.search is not None:
        uses.append((splits.search, len(splits.search.labels)))
    uses.append((splits.test or validation, reported))
    needed = sum(split.estimated_bytes(number) for split, number in uses if number)
    if needed > limit_bytes:
        return
    # Readable training images are not counted yet; so many of all are set aside at most.
    searched = min(wanted.search, len(train.labels) // SEARCH_SHARE) if splits.search is None else wanted.search
    tensors = (scored + wanted.calibration + searched + reported) * image_bytes
    for split in splits.every():
        split.pixel_cache = {}
        if needed + tensors <= limit_bytes:
            split.tensor_cache = {}
    if train.on_disk:
        train.verify(range(len(train.labels)), callbacks)


def _keys(numbers: Collection[int]) -> list[Key]:
    return [(index, 0) for index in numbers]


def _first_of_each(images: ImageSplit, *, seed: int) -> dict[int, int]:
    """Label → number of the first readable image of that class which the seed chooses."""
    chosen = images.sample(len(images.class_names), seed=seed)
    return {int(images.labels[index]): index for index in reversed(chosen)}


def _some_of(images: ImageSplit, number: int, name: str, *, seed: int, without: Collection[int] = ()) -> list[int]:
    if not (chosen := images.sample(number, seed=seed, without=without)):
        raise InputError(f"{name} needs a readable image, but got only {quoted(images.skipped())}")
    return chosen


def _search(
    splits: Splits, number: int, kept: frozenset[int], seed: int, callbacks: Callbacks | None
) -> HeldOutImages | None:
    """Images of the search split, or else training images other than `kept`."""
    images, apart = splits.search or splits.train, splits.search is not None
    if number and not apart:
        number = min(number, _readable(images, SEARCH_SHARE * number, callbacks) // SEARCH_SHARE)
    chosen = images.sample(number, seed=seed, without=() if apart else kept) if number else []
    return HeldOutImages(images=images, keys=_keys(chosen), apart=apart) if chosen else None


def _readable(images: ImageSplit, enough: int, callbacks: Callbacks | None) -> int:
    """Number of images that can be read, as far as is known; all are tried if there may be fewer than `enough`."""
    if images.on_disk and len(images.labels) - len(images.unreadable) < enough:
        untried = set(range(len(images.labels))) - images.readable - images.unreadable
        images.verify(sorted(untried), callbacks)
    return len(images.labels) - len(images.unreadable)


def _half(validation: ImageSplit, *, seed: int) -> frozenset[int]:
    """Numbers of a half of each class, drawn by the seed; the larger half and a readable image are left."""
    first = set(_first_of_each(validation, seed=seed).values())
    order = balanced(validation.labels, len(validation.labels), seed=seed, without=())
    members: dict[int, list[int]] = {}
    for index in sorted(order, key=lambda index: index not in first):
        members.setdefault(int(validation.labels[index]), []).append(index)
    return frozenset(index for of_class in members.values() for index in of_class[(len(of_class) + 1) // 2 :])


def _report(splits: Splits, number: int, half: frozenset[int], seed: int) -> HeldOutImages | None:
    """Images of the test split, or else of a half of those of validation."""
    if splits.test is not None:
        chosen = _some_of(splits.test, number, splits.test.name, seed=seed)
        return HeldOutImages(images=splits.test, keys=_keys(chosen), apart=True)
    others = set(range(len(splits.validation.labels))) - half
    chosen = splits.validation.sample(number, seed=seed, without=others) if half else []
    return HeldOutImages(images=splits.validation, keys=_keys(chosen), apart=False) if chosen else None
