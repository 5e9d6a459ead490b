"""Where images come from: a folder or a set that timm knows, opened, checked and read by number.

timm opens them (`timm.data.create_dataset`); added here are errors a user can act on, and unreadable images left out
and named instead of answered with a neighbour.
"""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset
from torch import Tensor
from torchvision.transforms import Resize

from ltmsearch.errors import InputError, unknown_name

TRAIN_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("validation", "val", "valid")
# What timm reads through torchvision and what has one label per image, known without decoding it.
TORCH_NAMES = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "imagenet", "places365")
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow raises
_NOT_OPENED = (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass
class ImageSplit:
    """One split of a data set, by number: read, shrunk, and remembered where `kept` is a dict.

    `resize` is the step that timm's evaluation transform begins with. An image with a longer short side goes through
    it at once, so evaluation gives the same bits as from the original; and since training takes this way whether or
    not memory holds the result, it does not depend on that either. Without it images stay as they were photographed.
    """

    dataset: Any
    labels: np.ndarray  # (n,) int64, indices into `class_names`
    class_names: tuple[str, ...]
    resize: Resize | None
    files: Sequence[tuple[Any, ...]] = ()  # of each image on disk, a tuple that starts with its path
    root: Path | None = None
    on_disk: bool = True  # whether an image must be read to know that it can be
    kept: dict[int, np.ndarray] | None = None
    prepared: dict[int, Tensor] | None = None  # (3, S, S) uint8 as evaluation sees them, where those are remembered too
    readable: set[int] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)

    def pixels(self, index: int) -> np.ndarray | None:
        """The image, uint8 (height, width) or (height, width, 3), or None where it cannot be read."""
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        try:
            image = self._read(index)
        except _UNREADABLE:
            return None
        if self.resize is not None and min(image.size) > self.resize.size:
            image = self.resize(image)
        pixels = np.asarray(image)
        if self.kept is not None:
            self.kept[index] = pixels
        return pixels

    def _read(self, index: int) -> Image.Image:
        if hasattr(self.dataset, "reader"):
            # timm's own __getitem__ answers an unreadable image with its neighbour; its reader does not.
            with self.dataset.reader[index][0] as file:
                image = Image.open(file).copy()
        else:
            image = self.dataset[index][0]
        return image.convert("L" if image.mode == "L" else "RGB")  # grey takes a third of the memory

    def check(self, indices: Sequence[int], on_progress: Callable[[int, int], None] | None = None) -> None:
        """Reads images to note which can be: all of each, for a truncated file shows only at its end."""
        with ThreadPoolExecutor(CPUS) as pool:  # Pillow lets other threads run while it decodes
            for done, (index, pixels) in enumerate(zip(indices, pool.map(self.pixels, indices), strict=True), 1):
                (self.unreadable if pixels is None else self.readable).add(index)
                if on_progress is not None:
                    on_progress(done, len(indices))

    def choose(self, number: int, *, seed: int) -> list[int]:
        """`number` readable images or all there are, as balanced over the classes as can be."""
        while True:
            chosen = balanced(self.labels, number, seed=seed, without=self.unreadable)
            if not self.on_disk or self.readable.issuperset(chosen):
                return chosen
            self.check([index for index in chosen if index not in self.readable])

    def skipped(self) -> tuple[str, ...]:
        """The unreadable ones met so far, by their path below `root`."""
        return tuple(os.path.relpath(self.files[index][0], self.root) for index in sorted(self.unreadable))


def read_image(path: Path) -> Image.Image:
    """One image file, grey or in colour, as those of a data set are read.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            image = Image.open(file)
            return image.convert("L" if image.mode == "L" else "RGB")
    except UnidentifiedImageError:
        reason = "it is no image that Pillow knows"
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise InputError(f"the image {path} cannot be read: {reason}; a whole JPEG or PNG file would do")


def estimated_bytes(images: ImageSplit, number: int) -> int:
    """What `number` of the images would take in memory: that many times the mean of 32, evenly spaced."""
    # Exact sizes would take opening every file: minutes for a large set. Short sides are bounded, so the mean of a few
    # is close. What Python adds per image, about 200 bytes, is left out.
    last = len(images.labels) - 1
    sample = (images.pixels(index) for index in np.linspace(0, last, min(32, last + 1)).astype(int).tolist())
    sizes = [pixels.nbytes for pixels in sample if pixels is not None]
    return round(sum(sizes) / len(sizes) * number) if sizes else 0


def balanced(labels: np.ndarray, number: int, *, seed: int, without: Collection[int]) -> list[int]:
    """`number` indices into `labels` (n,), or all but those in `without`: classes take turns, each in random order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[~np.isin(order, list(without))]
    by_class = order[np.argsort(labels[order], kind="stable")]
    # An index's turn is its rank within its class: its position less that of the first of its class.
    turn = np.arange(len(by_class)) - np.searchsorted(labels[by_class], labels[by_class])
    return by_class[np.argsort(turn, kind="stable")][:number].tolist()


def open_folder(resize: Resize, data_dir: Path | None) -> list[ImageSplit]:
    """Training and validation split of an image folder.

    Raises:
        InputError: If a split is missing, a class has no images, or images lie outside class folders.
    """
    if data_dir is None or not data_dir.is_dir():
        raise InputError(f"`data_dir` must be an existing image folder, but got {shown([data_dir])}")
    splits: list[ImageSplit] = []
    for names in (TRAIN_FOLDERS, VALIDATION_FOLDERS):
        root = next((data_dir / name for name in names if (data_dir / name).is_dir()), None)
        if root is None:
            wanted, there = "/ or ".join(names), sorted(os.listdir(data_dir))
            raise InputError(f"{shown([data_dir])} must hold {wanted}/, but it holds {shown(there)}")
        try:
            dataset = create_dataset("", root=str(root), search_split=False)
        except RuntimeError as error:  # timm's way to say that it found none
            raise InputError(f"{shown([root])} must hold .png or .jpg images, but it holds none") from error
        files, class_names = dataset.reader.samples, tuple(dataset.reader.class_to_idx)
        within = {Path(path).relative_to(root).parts[0] for path, _ in files}
        bare = sorted(folder.name for folder in root.glob("[!.]*/") if folder.name not in within)
        if bare and not splits:  # validation may lack a class
            raise InputError(f"class folders must hold images, but {shown([root])} has none in {shown(bare)}")
        if any(name[:1] in ("", ".") for name in class_names):
            raise InputError(f"images must lie in visible class folders, but in {shown([root])} some do not")
        labels = np.array([label for _, label in files])
        splits.append(ImageSplit(dataset, labels, class_names, resize, files, data_dir))
    return splits


def open_named(resize: Resize, name: str, data_dir: Path | None) -> list[ImageSplit]:
    """Training and validation split of a data set that timm knows by name; test stands in for validation.

    Raises:
        InputError: If the name is unknown, cannot be read by number, or its files are not there.
    """
    kind, _, rest = name.lower().partition("/")
    if kind in ("hfids", "tfds", "wds"):
        raise InputError(f"images must be reachable by number, but {name!r} is a stream: use hfds/<name>")
    if kind != "hfds" and (kind != "torch" or rest not in TORCH_NAMES):
        known = ("digits", "folder", "hfds/<name>", *(f"torch/{known}" for known in TORCH_NAMES))
        raise unknown_name("dataset", name, known)
    if kind == "hfds" and find_spec("datasets") is None:
        raise InputError(f"{name!r} needs the Hugging Face library: pip install datasets")
    if kind == "torch" and data_dir is None:
        raise InputError(f"{name!r} needs `data_dir`, the folder that torchvision keeps it in")
    try:
        train = _open(resize, name, data_dir, "train")
        splits = train.dataset.reader.dataset.info.splits or () if kind == "hfds" else ()
        held_out = next((split for split in (*VALIDATION_FOLDERS, "test") if split in splits), "validation")
        return [train, _open(resize, name, data_dir, held_out)]
    except _NOT_OPENED as error:
        where = f"lie in {shown([data_dir])} as torchvision downloads it" if kind == "torch" else "be readable"
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


def shown(names: Collection[Any]) -> str:
    """The first three names, quoted, in one printable line."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(repr(str(name)) for name in islice(names, 3)) or "nothing") + more
