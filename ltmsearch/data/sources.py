"""Open data sets with timm (`timm.data.create_dataset`), with errors that a user can act on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from timm.data import create_dataset
from torchvision.transforms import Resize

from ltmsearch.data.digits import CLASS_NAMES, SPLITS, ClutteredDigits
from ltmsearch.data.folders import entries, left_out_text, scan
from ltmsearch.data.subsets import ImageSplit, quoted
from ltmsearch.errors import InputError, check_choice, unknown_name

TRAIN_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("validation", "val", "valid")
TEST_FOLDERS = ("test", "testing")
HELD_OUT_FOLDERS = {"validation": VALIDATION_FOLDERS, "test": TEST_FOLDERS, None: VALIDATION_FOLDERS + TEST_FOLDERS}
"""Names of the folder of each held-out split, preferred ones first; None: of either."""
TORCH_NAMES = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "imagenet", "places365")
"""Data sets that timm reads through torchvision and that have one label per image, known without decoding it."""

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


_NOT_OPENED = (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


def open_digits(resize: Resize | None, img_size: int, lengths: Sequence[int], *, seed: int) -> list[ImageSplit]:
    splits = zip(SPLITS, lengths, strict=True)
    digits = [ClutteredDigits(split, img_size=img_size, seed=seed, length=length) for split, length in splits]
    return [ImageSplit(each, each.labels, CLASS_NAMES, resize, on_disk=False, name=each.split) for each in digits]


def open_folder(resize: Resize | None, data_dir: Path | None, scoring: Scoring | None = None) -> list[ImageSplit]:
    """Training split and held-out split of an image folder; to score a network, the former may be missing.

    Raises:
        InputError: If a split is missing, has no images, or a class has no training images.
    """
    if data_dir is None or not os.path.isdir(data_dir):  # pathlib raises for a name that is too long
        raise InputError(f"`data_dir` must be an existing image folder, but got {quoted([data_dir])}")
    train = _find(data_dir, TRAIN_FOLDERS)
    if train is None and scoring is None:
        raise _no_folder(data_dir, TRAIN_FOLDERS)
    names = HELD_OUT_FOLDERS[scoring.split if scoring else "validation"]
    held_out = _find(data_dir, names)
    if held_out is None:
        raise _no_folder(data_dir, names)
    scored = _folder_split(held_out, data_dir, resize)  # which may lack a class
    if train is None:
        classes = scoring.class_names if scoring and scoring.class_names else scored.class_names
        return [ImageSplit(None, np.empty(0, np.int64), classes, resize, root=data_dir, name="train"), scored]
    return [_folder_split(train, data_dir, resize, every_class=True), scored]


def _find(data_dir: Path, names: Sequence[str]) -> Path | None:
    return next((data_dir / name for name in names if (data_dir / name).is_dir()), None)


def _no_folder(data_dir: Path, names: Sequence[str]) -> InputError:
    found = sorted(entry.name for entry in entries(data_dir))
    return InputError(f"{quoted([data_dir])} must contain {'/ or '.join(names)}/, but it contains {quoted(found)}")


def _folder_split(root: Path, data_dir: Path, resize: Resize | None, *, every_class: bool = False) -> ImageSplit:
    found = scan(root)
    left_out = f"; {left_out_text(found.left_out)}" if found.left_out else ""
    if not found.files:
        rule = "must contain images in class folders, but it contains none"
        raise InputError(f"{quoted([root])} {rule}{left_out}")
    if every_class and found.empty:
        rule = "class folders must contain images"
        raise InputError(f"{rule}, but {quoted([root])} has none in {quoted(found.empty)}{left_out}")
    labels = np.array([label for _, label in found.files])
    return ImageSplit(
        None, labels, found.class_names, resize, found.files, data_dir, left_out=found.left_out, name=root.name
    )


def open_named(
    resize: Resize | None, name: str, data_dir: Path | None, scoring: Scoring | None = None
) -> list[ImageSplit]:
    """Training and held-out split of a data set that timm knows by name; test replaces a missing validation split.

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
    try:
        train = _open(resize, name, data_dir, "train")
        splits = train.dataset.reader.dataset.info.splits or () if kind == "hfds" else ()
        wanted = scoring.split if scoring else None
        held_out = next((split for split in HELD_OUT_FOLDERS[wanted] if split in splits), wanted or "validation")
        return [train, _open(resize, name, data_dir, held_out)]
    except _NOT_OPENED as error:
        where = f"be in {quoted([data_dir])} as torchvision downloads it" if kind == "torch" else "be readable"
        reason = str(error).partition("\n")[0].partition(". ")[0]  # what follows is advice to programmers
        raise InputError(f"{name!r} must {where}, but: {reason}") from error


def _open(resize: Resize | None, name: str, data_dir: Path | None, split: str) -> ImageSplit:
    dataset = create_dataset(name, root=data_dir and str(data_dir), split=split)
    if hasattr(dataset, "reader"):  # Hugging Face: rows, whose classes may have no names
        labels = list(dataset.reader.iter_targets())
        classes = list(dataset.reader.class_to_idx) or range(max(labels) + 1)
        files, root = [(f"{split}[{row}]",) for row in range(len(labels))], None
    else:
        labels, classes, files, root = dataset.targets, dataset.classes, getattr(dataset, "imgs", []), data_dir
    if any(label is None or not 0 <= label < len(classes) for label in labels):
        # Many sets publish test images without labels, or with the label -1.
        raise InputError(f"{name!r} must have a label for every image, but {split!r} has images without")
    names, on_disk = tuple(str(entry) for entry in classes), not hasattr(dataset, "data")  # or torchvision's array
    return ImageSplit(dataset, np.asarray(labels, np.int64), names, resize, files, root, on_disk, name=split)
