"""Open data sets with timm (`timm.data.create_dataset`), with errors that a user can act on."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from timm.data import create_dataset
from torchvision.transforms import Resize

from ltmsearch.data.digits import CLASS_NAMES, SPLITS, ClutteredDigits
from ltmsearch.data.subsets import ImageSplit, quoted
from ltmsearch.errors import InputError, unknown_name

TRAIN_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("validation", "val", "valid")
TORCH_NAMES = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "imagenet", "places365")
"""Data sets that timm reads through torchvision and that have one label per image, known without decoding it."""

_NOT_OPENED = (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


def open_digits(resize: Resize, img_size: int, lengths: Sequence[int], *, seed: int) -> list[ImageSplit]:
    splits = zip(SPLITS, lengths, strict=True)
    digits = [ClutteredDigits(split, img_size=img_size, seed=seed, length=length) for split, length in splits]
    return [ImageSplit(each, each.labels, CLASS_NAMES, resize, on_disk=False) for each in digits]


def open_folder(resize: Resize, data_dir: Path | None) -> list[ImageSplit]:
    """Training and validation split of an image folder.

    Raises:
        InputError: If a split is missing, a class has no images, or images are outside of class folders.
    """
    if data_dir is None or not data_dir.is_dir():
        raise InputError(f"`data_dir` must be an existing image folder, but got {quoted([data_dir])}")
    splits: list[ImageSplit] = []
    for names in (TRAIN_FOLDERS, VALIDATION_FOLDERS):
        root = next((data_dir / name for name in names if (data_dir / name).is_dir()), None)
        if root is None:
            wanted, found = "/ or ".join(names), sorted(os.listdir(data_dir))
            raise InputError(f"{quoted([data_dir])} must contain {wanted}/, but it contains {quoted(found)}")
        try:
            dataset = create_dataset("", root=str(root), search_split=False)
        except RuntimeError as error:  # timm found none
            raise InputError(f"{quoted([root])} must contain .png or .jpg images, but it contains none") from error
        files, class_names = dataset.reader.samples, tuple(dataset.reader.class_to_idx)
        with_images = {Path(path).relative_to(root).parts[0] for path, _ in files}
        empty = sorted(folder.name for folder in root.glob("[!.]*/") if folder.name not in with_images)
        if empty and not splits:  # validation may lack a class
            raise InputError(f"class folders must contain images, but {quoted([root])} has none in {quoted(empty)}")
        if any(name[:1] in ("", ".") for name in class_names):
            raise InputError(f"images must be in visible class folders, but in {quoted([root])} some are not")
        labels = np.array([label for _, label in files])
        splits.append(ImageSplit(dataset, labels, class_names, resize, files, data_dir))
    return splits


def open_named(resize: Resize, name: str, data_dir: Path | None) -> list[ImageSplit]:
    """Training and validation split of a data set that timm knows by name; test replaces a missing validation split.

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
        held_out = next((split for split in (*VALIDATION_FOLDERS, "test") if split in splits), "validation")
        return [train, _open(resize, name, data_dir, held_out)]
    except _NOT_OPENED as error:
        where = f"be in {quoted([data_dir])} as torchvision downloads it" if kind == "torch" else "be readable"
        reason = str(error).partition("\n")[0].partition(". ")[0]  # what follows is advice to programmers
        raise InputError(f"{name!r} must {where}, but: {reason}") from error


def _open(resize: Resize, name: str, data_dir: Path | None, split: str) -> ImageSplit:
    dataset = create_dataset(name, root=data_dir and str(data_dir), split=split)
    if hasattr(dataset, "reader"):  # Hugging Face: rows, whose classes may have no names
        labels = list(dataset.reader.iter_targets())
        classes = list(dataset.reader.class_to_idx) or range(max(labels) + 1)
        files, root = [(f"{split}[{row}]",) for row in range(len(labels))], None
    else:
        labels, classes, files, root = dataset.targets, dataset.classes, getattr(dataset, "imgs", []), data_dir
    names, on_disk = tuple(str(entry) for entry in classes), not hasattr(dataset, "data")  # or torchvision's array
    return ImageSplit(dataset, np.asarray(labels, np.int64), names, resize, files, root, on_disk)
