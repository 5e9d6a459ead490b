"""Open data sets with timm (`timm.data.create_dataset`), with errors that a user can act on."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from timm.data import create_dataset
from torchvision.transforms import Resize

from ltmsearch.data.digits import CLASS_NAMES, SPLITS, ClutteredDigits, Split
from ltmsearch.data.folders import ScannedFolder, entries, left_out_text, scan
from ltmsearch.data.layout import DataLayout
from ltmsearch.data.subsets import ImageSplit, quoted
from ltmsearch.errors import InputError, check_choice, not_among, unknown_name

TRAIN_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("validation", "val", "valid")
TEST_FOLDERS = ("test", "testing")
HELD_OUT_FOLDERS = {"validation": VALIDATION_FOLDERS, "test": TEST_FOLDERS, None: VALIDATION_FOLDERS + TEST_FOLDERS}
"""Names of the folder of each held-out split, preferred ones first; None: of either."""
DIGITS_TRAIN_IMAGES = 10_000
"""More than a trial sees, so that it sees few scenes twice."""
TORCH_NAMES = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "imagenet", "places365")
"""Data sets that timm reads through torchvision and that have one label per image, known without decoding it."""

TORCH_SPLITS = ("train", "training", "validation", "val", "valid", "test")
"""Names of splits of these; all but the first two are torchvision's test images, for want of others."""

HeldOut = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Data on which a trained network is scored; in an image folder they do not need training images."""

    split: HeldOut | None
    """Images to score; None: validation, or test where there is none."""
    class_names: tuple[str, ...] | None
    """Classes in the order of the network's outputs, for want of training images; None: unknown, as in the folder."""

    def __post_init__(self) -> None:
        if self.split is not None:
            check_choice("the split to score", self.split, HeldOut)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a data set, with labels by the same classes."""

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit | None = None
    """Images to report on, others than those of training and validation; None: not asked for, or there are none."""
    search: ImageSplit | None = None
    """Images that a search may see beside those of training; None: some of the latter have to be set aside."""

    def every(self) -> tuple[ImageSplit, ...]:
        """Those that there are, training first."""
        return tuple(split for split in (self.train, self.validation, self.search, self.test) if split is not None)

    def read_as(self, mode: str, *, original: bool) -> None:
        """Read images in one of `IMAGE_MODES`, and training images at their original size, if `original`."""
        for split in self.every():
            split.mode = mode
        if original:
            self.train.resize = None


class _UnlabelledError(InputError):
    """A split has images without a label."""


_NOT_OPENED = (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


def open_splits(
    dataset: str,
    data_dir: Path | None,
    resize: Resize | None,
    img_size: int,
    drawn_images: tuple[int, int, int],
    seed: int,
    scoring: Scoring | None,
    layout: DataLayout | None,
) -> Splits:
    """Training and held-out splits of a data set; only digits have one for the search.

    Args:
        drawn_images: Numbers of digits for validation, search and report. A test split is opened only where the last
            is not 0.

    Raises:
        InputError: If the data set is unknown, missing, or breaks a rule.
        ValueError: If images for search or report are asked for to score a trained network.
    """
    held_out, search, report = drawn_images
    if scoring is not None and (search or report):
        raise ValueError("a trained network is scored on held-out images; there are no others to search or report on")
    if dataset == "digits" and data_dir is not None:
        raise InputError(f"'digits' are built in, but got data_dir={quoted([data_dir])}: use dataset='folder'")
    if dataset == "digits" and layout not in (None, DataLayout()):
        raise InputError("the built-in digits have neither other splits nor a class map, but one was given")
    if dataset == "digits":
        scored: Split = (scoring and scoring.split) or "validation"
        lengths: dict[Split, int] = {"search": search, "test": report, scored: held_out}
        splits = open_digits(resize, img_size, {"train": DIGITS_TRAIN_IMAGES, **lengths}, scored, seed=seed)
    elif dataset == "folder":
        splits = open_folder(resize, data_dir, scoring, layout, with_test=report > 0)
    else:
        splits = open_named(resize, dataset, data_dir, scoring, layout, with_test=report > 0)
    train = splits.train
    if len(train.labels) and len(train.class_names) < 2:
        hint = f"; a class is a folder directly in {train.name}/" if dataset == "folder" else ""
        raise InputError(f"training needs at least two classes, but got only {quoted(train.class_names)}{hint}")
    for split in splits.every()[1:]:
        _number_alike(split, train)
    return splits


def _number_alike(held_out: ImageSplit, train: ImageSplit) -> None:
    """Label held-out images by the classes of training."""
    # Each split numbers its own classes, and one that is missing shifts the others: only names agree.
    if held_out.class_names == train.class_names:
        return
    label_of = {name: label for label, name in enumerate(train.class_names)}
    if unknown := [name for name in held_out.class_names if name not in label_of]:
        known = "of training" if len(train.labels) else f"the network was trained on, {quoted(train.class_names)}"
        raise InputError(f"{held_out.name} classes must be among those {known}, but {quoted(unknown)} are not")
    held_out.labels = np.array([label_of[name] for name in held_out.class_names])[held_out.labels]


def open_digits(resize: Resize | None, img_size: int, lengths: dict[Split, int], scored: Split, *, seed: int) -> Splits:
    """Splits of so many digits each; those of length 0 are left out, and `scored` takes the place of validation."""
    drawn: dict[str, ImageSplit] = {}
    for split in SPLITS:
        if length := lengths.get(split, 0):
            digits = ClutteredDigits(split, img_size=img_size, seed=seed, length=length)
            place = "validation" if split == scored else split
            drawn[place] = ImageSplit(digits, digits.labels, CLASS_NAMES, resize, on_disk=False, name=split)
    return Splits(**drawn)


def open_folder(
    resize: Resize | None,
    data_dir: Path | None,
    scoring: Scoring | None = None,
    layout: DataLayout | None = None,
    *,
    with_test: bool = False,
) -> Splits:
    """Training split and held-out splits of an image folder; to score a network, the former may be missing.

    Raises:
        InputError: If a split is missing, has no images, or a class has no training images.
    """
    if data_dir is None or not os.path.isdir(data_dir):  # pathlib raises for a name that is too long
        raise InputError(f"`data_dir` must be an existing image folder, but got {quoted([data_dir])}")
    layout = layout or DataLayout()
    names: tuple[str, ...] = TRAIN_FOLDERS if layout.train_split is None else (layout.train_split,)
    train = _find(data_dir, names)
    if train is None and (scoring is None or layout.train_split is not None):
        raise _no_folder(data_dir, names)
    names = _held_out_names(layout, scoring.split if scoring else "validation")
    held_out = _find(data_dir, names)
    if held_out is None:
        raise _no_folder(data_dir, names)
    mapped = layout.class_names()
    scored = _folder_split(held_out, data_dir, resize, mapped)  # which may lack a class
    if train is None:
        classes = scoring.class_names if scoring and scoring.class_names else scored.class_names
        none = ImageSplit(None, np.empty(0, np.int64), classes, resize, root=data_dir, name="train")
        return Splits(train=none, validation=scored)
    learned = _folder_split(train, data_dir, resize, mapped, every_class=mapped is None)
    test = _test_folder(train, held_out, data_dir, resize, layout, learned.class_names) if with_test else None
    return Splits(train=learned, validation=scored, test=test)


def _test_folder(
    train: Path, validation: Path, data_dir: Path, resize: Resize | None, layout: DataLayout, known: Sequence[str]
) -> ImageSplit | None:
    """The test split of an image folder: the one that the user named, or one with folders of `known` classes.

    None: there is none. A folder that is a link to that of validation is none, and neither is one with other folders,
    such as images without labels.
    """
    named = layout.test_split
    for name in TEST_FOLDERS if named is None else (named,):
        root = data_dir / name
        if not root.is_dir():
            continue
        if root.samefile(train) and named is not None:
            raise InputError(f"--test-split must name other images than those of training, but got {named!r}")
        if root.samefile(train) or root.samefile(validation):
            return None
        found = scan(root, layout.class_names())
        if named is not None or (found.files and set(found.class_names) <= set(known)):
            return _as_split(found, root, data_dir, resize, layout.class_names())
    if named is not None:
        raise _no_folder(data_dir, (named,))
    return None


def _held_out_names(layout: DataLayout, split: HeldOut | None) -> tuple[str, ...]:
    """Names of a held-out split, preferred ones first: the user's, or else the usual ones; None: of either."""
    either = layout.val_split or layout.test_split
    given = {"validation": layout.val_split, "test": layout.test_split, None: either}[split]
    return HELD_OUT_FOLDERS[split] if given is None else (given,)


def _find(data_dir: Path, names: Sequence[str]) -> Path | None:
    return next((data_dir / name for name in names if (data_dir / name).is_dir()), None)


def _no_folder(data_dir: Path, names: Sequence[str]) -> InputError:
    inside = data_dir
    for part in Path(names[0]).parts[:-1] if len(names) == 1 else ():  # the folder in which the name was not found
        inside = inside / part if (inside / part).is_dir() else inside
    found = quoted(sorted(entry.name for entry in entries(inside)))
    there = "it" if inside == data_dir else repr(str(inside.relative_to(data_dir)))
    return InputError(f"{quoted([data_dir])} must contain {'/ or '.join(names)}/, but {there} contains {found}")


def _folder_split(
    root: Path, data_dir: Path, resize: Resize | None, class_names: Sequence[str] | None, *, every_class: bool = False
) -> ImageSplit:
    return _as_split(scan(root, class_names), root, data_dir, resize, class_names, every_class=every_class)


def _as_split(
    found: ScannedFolder,
    root: Path,
    data_dir: Path,
    resize: Resize | None,
    class_names: Sequence[str] | None,
    *,
    every_class: bool = False,
) -> ImageSplit:
    left_out = f"; {left_out_text(found.left_out)}" if found.left_out else ""
    if not found.files:
        of_map = "" if class_names is None else f" of the class map, {quoted(class_names)}"
        rule = f"must contain images in class folders{of_map}, but it contains none"
        raise InputError(f"{quoted([root])} {rule}{left_out}")
    if every_class and found.empty:
        rule = "class folders must contain images"
        raise InputError(f"{rule}, but {quoted([root])} has none in {quoted(found.empty)}{left_out}")
    labels = np.array([label for _, label in found.files])
    return ImageSplit(
        None,
        labels,
        found.class_names,
        resize,
        found.files,
        data_dir,
        left_out=found.left_out,
        name=root.relative_to(data_dir).as_posix(),
    )


def open_named(
    resize: Resize | None,
    name: str,
    data_dir: Path | None,
    scoring: Scoring | None = None,
    layout: DataLayout | None = None,
    *,
    with_test: bool = False,
) -> Splits:
    """Training and held-out splits of a data set that timm knows by name; test replaces a missing validation split.

    Raises:
        InputError: If the name is unknown, cannot be read by number, or its files are missing.
    """
    kind, _, rest = name.lower().partition("/")
    if kind in ("hfids", "tfds", "wds"):
        raise InputError(f"`dataset` must be readable by image number, but {name!r} is a stream: use hfds/<name>")
    if kind != "hfds" and (kind != "torch" or rest not in TORCH_NAMES):
        known = ("digits", "folder", "hfds/<name>", *(f"torch/{known}" for known in TORCH_NAMES))
        raise unknown_name("dataset", name, known)
    if kind == "hfds" and find_spec("datasets") is None:
        raise InputError(f"{name!r} needs the Hugging Face library: pip install datasets")
    if kind == "torch" and data_dir is None:
        raise InputError(f"{name!r} needs `data_dir`, the folder to which torchvision downloaded it")
    layout = layout or DataLayout()
    if kind == "torch":
        _refuse_other_torch_splits(layout)
    mapped = layout.class_names()
    try:
        train = _open(resize, name, data_dir, layout.train_split or "train", mapped)
        splits = train.dataset.reader.dataset.info.splits or () if kind == "hfds" else ()
        wanted = scoring.split if scoring else None
        names = _held_out_names(replace(layout, test_split=None) if with_test else layout, wanted)
        held_out = names[0] if len(names) == 1 else next((s for s in names if s in splits), wanted or "validation")
        validation, test = _open(resize, name, data_dir, held_out, mapped), None
        if with_test and kind == "hfds":
            test = _hub_test(resize, name, data_dir, (train.name, held_out), layout, splits)
        return Splits(train=train, validation=validation, test=test)
    except _NOT_OPENED as error:
        where = f"be in {quoted([data_dir])} as torchvision downloads it" if kind == "torch" else "be readable"
        reason = str(error).partition("\n")[0].partition(". ")[0]  # what follows is advice to programmers
        raise InputError(f"{name!r} must {where}, but: {reason}") from error


def _hub_test(
    resize: Resize | None,
    name: str,
    data_dir: Path | None,
    others: tuple[str, str],
    layout: DataLayout,
    splits: Collection[str],
) -> ImageSplit | None:
    """The test split of a Hugging Face data set, unless `others`, training and validation, are read from it.

    That is the one which the user named, or "test" if its images have labels. None: there is none.
    """
    mapped, named = layout.class_names(), layout.test_split
    if named == others[0]:
        raise InputError(f"--test-split must name other images than those of training, but got {named!r}")
    if named is not None:
        return None if named == others[1] else _open(resize, name, data_dir, named, mapped)
    read = {part.partition("[")[0].strip() for other in others for part in other.split("+")}  # as in "train+test[:9]"
    if "test" not in splits or "test" in read:
        return None
    try:
        return _open(resize, name, data_dir, "test", mapped)
    except _UnlabelledError:
        return None


def _refuse_other_torch_splits(layout: DataLayout) -> None:
    """timm takes every name that it does not know for the test images of torchvision's sets."""
    for split in (layout.train_split, layout.val_split, layout.test_split):
        if split is not None and split not in TORCH_SPLITS:
            raise not_among("a split of torchvision's data sets", split, TORCH_SPLITS)


def _open(
    resize: Resize | None, name: str, data_dir: Path | None, split: str, mapped: Sequence[str] | None
) -> ImageSplit:
    dataset = create_dataset(name, root=data_dir and str(data_dir), split=split)
    if hasattr(dataset, "reader"):  # Hugging Face: rows, whose classes may have no names
        labels = list(dataset.reader.iter_targets())
        classes = list(dataset.reader.class_to_idx) or range(max(labels) + 1)
        files, root = [(f"{split}[{row}]",) for row in range(len(labels))], None
    else:
        labels, classes, files, root = dataset.targets, dataset.classes, getattr(dataset, "imgs", []), data_dir
    if any(label is None or not 0 <= label < len(classes) for label in labels):
        # Many sets publish test images without labels, or with the label -1.
        raise _UnlabelledError(f"{name!r} must have a label for every image, but {split!r} has images without")
    names, on_disk = tuple(str(entry) for entry in classes), not hasattr(dataset, "data")  # or torchvision's array
    numbers = np.asarray(labels, np.int64)
    if mapped is not None:
        numbers, names = _by_map(numbers, names, mapped, f"{name!r}"), tuple(mapped)
    return ImageSplit(dataset, numbers, names, resize, files, root, on_disk, name=split)


def _by_map(labels: np.ndarray, names: Sequence[str], mapped: Sequence[str], where: str) -> np.ndarray:
    """(n,) labels by a data set's own classes as labels by those of a class map, which needs all that have images."""
    place = {name: number for number, name in enumerate(mapped)}
    lacking = [names[label] for label in np.unique(labels).tolist() if names[label] not in place]
    if lacking:
        raise InputError(f"the class map must have the classes of {where}, but lacks {quoted(lacking)}")
    return np.array([place.get(name, -1) for name in names])[labels]
