"""The user's choice of data as normalised tensors: the same seed gives the same bits.

Where images come from is timm's business (`timm.data.create_dataset`), and so is what is done to them
(`timm.data.create_transform`). Added here: errors a user can act on, unreadable images left out and named, small sets
kept in memory, and batches that depend on their seed alone: not on memory, workers or the global random state.

Shapes: B images per batch, S `img_size`.
"""

import os
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import Normalize, Resize

from ltmsearch.digits import CLASS_NAMES, SPLITS, ClutteredDigits
from ltmsearch.errors import InputError, unknown_name

DIGITS_TRAIN_IMAGES = 10_000  # more than a trial sees, so that it sees few scenes twice
TRAIN_CROP = (0.35, 1.0)  # share of the area; proxy trainings are too short to profit from timm's 0.08
TRAIN_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("validation", "val", "valid")
# What timm reads through torchvision and what has one label per image, known without decoding it.
TORCH_NAMES = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "imagenet", "places365")
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow raises
_NOT_OPENED = (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError)

Transform = Callable[[Image.Image], Tensor]  # gives (3, S, S) uint8
Key = tuple[int, int]  # the number of an image, and its place in the stream, which seeds its augmentation


@dataclass
class _Images:
    """One split of a data set, by number: read, shrunk, and remembered where `kept` is a dict.

    `resize` is the step that timm's evaluation transform begins with. An image with a longer short side goes through
    it at once, so evaluation gives the same bits as from the original; and since training takes this way whether or
    not memory holds the result, it does not depend on that either.
    """

    dataset: Any
    labels: np.ndarray  # (n,) int64, indices into `class_names`
    class_names: tuple[str, ...]
    resize: Resize
    files: Sequence[tuple[Any, ...]] = ()  # of each image on disk, a tuple that starts with its path
    root: Path | None = None
    on_disk: bool = True  # whether an image must be read to know that it can be
    kept: dict[int, np.ndarray] | None = None
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
        pixels = np.asarray(self.resize(image) if min(image.size) > self.resize.size else image)
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


@dataclass(kw_only=True)
class ImageData:
    """Training, calibration and validation images, as batches. Made by `load_data`."""

    title: str
    img_size: int
    class_names: tuple[str, ...]  # in the order of the labels
    num_classes: int
    validation_size: int  # how many images `validation_batches` gives without a limit
    train: _Images
    validation: _Images
    calibration_keys: list[Key]
    validation_keys: list[Key]
    train_transform: Transform
    eval_transform: Transform
    normalize: Normalize
    workers: int

    @property
    def skipped(self) -> tuple[str, ...]:
        """Unreadable images met so far, by path below the data folder. Sets not kept in memory may meet more."""
        return self.train.skipped() + self.validation.skipped()

    @property
    def description(self) -> str:
        """What the data are, in one printable line."""
        number = len(self.train.labels) - len(self.train.unreadable)
        sizes = f"{number} training and {self.validation_size} validation images in {self.num_classes} classes"
        how = "read as needed" if self.train.kept is None else "kept in memory"
        left_out = f"; {len(self.skipped)} unreadable left out: {_shown(self.skipped)}" if self.skipped else ""
        return f"{self.title}: {sizes}, {how}{left_out}"

    def train_batches(self, *, batch_size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Exactly `steps` batches of augmented training images, float32 (B, 3, S, S), and labels, int64 (B,).

        Every image comes once before one comes again, in an order drawn anew each time round. `seed` (from 0) fixes
        order and augmentation. Raises `InputError` once no image can be read any more.
        """
        keys = self._rounds(seed)
        return self._batches(self.train, self.train_transform, keys, batch_size * steps, batch_size, seed)

    def calibration_batches(self, *, batch_size: int) -> Iterator[Tensor]:
        """Some training images, the same at each call, as evaluation sees them: float32 (B, 3, S, S)."""
        keys = self.calibration_keys
        return (batch for batch, _ in self._batches(self.train, self.eval_transform, iter(keys), len(keys), batch_size))

    def validation_batches(self, *, batch_size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation images, or the first `limit`, always in one order: float32 (B, 3, S, S), int64 (B,).

        Classes take turns, so that the first ones are balanced too. The last batch may be smaller.
        """
        keys = self.validation_keys[:limit]
        return self._batches(self.validation, self.eval_transform, iter(keys), len(keys), batch_size)

    def _rounds(self, seed: int) -> Iterator[Key]:
        for turn in count():
            order = np.random.default_rng((seed, turn)).permutation(len(self.train.labels)).tolist()
            if len(self.train.unreadable) == len(order):
                return
            for place, index in enumerate(order, start=turn * len(order)):
                if index not in self.train.unreadable:
                    yield index, place

    def _batches(
        self, images: _Images, transform: Transform, keys: Iterator[Key], number: int, size: int, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`number` images in batches of `size`. Unreadable ones are noted; those behind them move up."""
        pixels: list[Tensor] = []
        labels: list[int] = []
        while number > 0:
            ahead = list(islice(keys, number))
            if not ahead:
                raise InputError(f"too few images can still be read; lost are {_shown(images.skipped())}")
            loader: DataLoader[Any] = DataLoader(
                ahead,  # type: ignore[arg-type]  # a list does; `_load` turns the keys into images, in the workers
                batch_size=size,
                num_workers=min(self.workers, -(-len(ahead) // size)),
                collate_fn=partial(_load, images, transform, seed),
                generator=torch.Generator(),  # or the loader draws from the global one
            )
            for indices, unreadable, rows in loader:
                images.unreadable.update(unreadable)
                pixels.extend(rows)
                labels.extend(images.labels[indices].tolist())
                number -= len(indices)
                while len(pixels) >= size or (pixels and number == 0):
                    batch = torch.stack(pixels[:size]).float().div_(255)
                    yield self.normalize(batch), torch.tensor(labels[:size])
                    del pixels[:size], labels[:size]


def load_data(
    *,
    dataset: str,
    data_dir: Path | None,
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
    val_images: int,
    calibration_images: int,
    seed: int,
    memory_limit_bytes: int = 1 << 30,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Opens a data set, sets aside what to calibrate and validate on, and decodes what fits in memory.

    Training photographs are cropped and mirrored at random; written characters are not mirrored; the built-in digits,
    random already, stay as they are. Evaluation is timm's: short side at `img_size / crop_pct`, then the middle.
    Raises `InputError`, in one line, where the data are unknown, missing, or break a rule.

    Args:
        dataset: "digits" (built in), "folder", or timm's "torch/<name>" (from disk) or "hfds/<name>".
        data_dir: The image folder, with train/ and validation/ (or val/, valid/) and in each a folder per class; or
            where the named data set lies. None for the built-in digits.
        img_size: Side of the images given out, in pixels.
        mean, std: Of each channel, on a scale from 0 to 1: images are given out less `mean`, divided by `std`.
        interpolation: How images are resized, by Pillow's name.
        crop_pct: Share of the short side that evaluation sees, in (0, 1]. The built-in digits are seen whole.
        val_images: How many validation images to use, at most.
        calibration_images: How many training images to calibrate on, at most.
        seed: Chooses those images, and draws the built-in digits; from 0.
        memory_limit_bytes: Decoded images are kept where they are expected to take no more than this.
        workers: Processes that prepare batches. None: none for images kept in memory, else one per CPU up to 8.
        on_progress: Called after each training image decoded in advance: how many so far, of how many.
    """
    if min(img_size, val_images, calibration_images, seed + 1) < 1 or not 0 < crop_pct <= 1:
        got = f"{img_size=}, {val_images=}, {calibration_images=}, {seed=}, {crop_pct=}"
        raise InputError(f"sizes must be 1 or more, `seed` 0 or more, `crop_pct` in (0, 1], but got {got}")
    if dataset == "digits" and data_dir is not None:
        raise InputError(f"'digits' are built in, but got data_dir={_shown([data_dir])}: use dataset='folder'")
    resize = Resize(int(img_size / crop_pct), interpolation=str_to_interp_mode(interpolation))
    augmentation: dict[str, Any] = {"is_training": True, "scale": TRAIN_CROP, "color_jitter": None}
    if dataset == "digits":
        crop_pct, augmentation = 1.0, {"crop_pct": 1.0}
        lengths = zip(SPLITS, (DIGITS_TRAIN_IMAGES, val_images), strict=True)
        drawn = [ClutteredDigits(split, img_size=img_size, seed=seed, length=length) for split, length in lengths]
        train, validation = (_Images(each, each.labels, CLASS_NAMES, resize, on_disk=False) for each in drawn)
    elif dataset == "folder":
        train, validation = _folder(resize, data_dir)
    else:
        train, validation = _named(resize, dataset, data_dir)
        augmentation["hflip"] = 0.0 if "mnist" in dataset.lower() else 0.5
    if len(train.class_names) < 2:
        raise InputError(f"training needs two classes or more, but there is only {_shown(train.class_names)}")
    if validation.class_names != train.class_names:
        label_of = {name: label for label, name in enumerate(train.class_names)}
        if unknown := [name for name in validation.class_names if name not in label_of]:
            raise InputError(f"validation classes must be among those of training, but {_shown(unknown)} are not")
        # Each split numbers its own classes, and one that is missing shifts the others: only names agree.
        validation.labels = np.array([label_of[name] for name in validation.class_names])[validation.labels]
    to_keep = ((train, len(train.labels)), (validation, min(val_images, len(validation.labels))))
    if sum(estimated_bytes(images, number) for images, number in to_keep) <= memory_limit_bytes:
        train.kept, validation.kept = {}, {}
        train.check(range(len(train.labels) if train.on_disk else 0), on_progress)
    first_of_each = train.labels[train.choose(len(train.class_names), seed=seed)]
    if absent := [name for label, name in enumerate(train.class_names) if label not in first_of_each]:
        raise InputError(f"each class needs a readable training image, but there is none of {_shown(absent)}")
    if not (chosen := validation.choose(val_images, seed=seed)):
        raise InputError(f"validation needs a readable image, but there are only {_shown(validation.skipped())}")
    common = {"interpolation": interpolation, "normalize": False}
    return ImageData(
        title=f"{dataset} {_shown([data_dir])}" if data_dir else dataset,
        img_size=img_size,
        class_names=train.class_names,
        num_classes=len(train.class_names),
        validation_size=len(chosen),
        train=train,
        validation=validation,
        calibration_keys=[(index, 0) for index in train.choose(calibration_images, seed=seed)],
        validation_keys=[(index, 0) for index in chosen],
        train_transform=create_transform(img_size, **augmentation, **common),
        eval_transform=create_transform(img_size, crop_pct=crop_pct, **common),
        normalize=Normalize(mean, std, inplace=True),
        workers=workers if workers is not None else 0 if train.kept is not None else min(8, CPUS),
    )


def estimated_bytes(images: _Images, number: int) -> int:
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


def _load(images: _Images, transform: Transform, seed: int, keys: list[Key]) -> tuple[list[int], list[int], Tensor]:
    """The numbers of what can be read and of what cannot, and the transformed pixels, (B, 3, S, S) uint8."""
    readable, unreadable, rows = [], [], []
    for index, place in keys:
        if (pixels := images.pixels(index)) is None:
            unreadable.append(index)
            continue
        readable.append(index)
        with _own_randomness(f"{seed}/{place}"):
            rows.append(transform(Image.fromarray(pixels).convert("RGB")))
    return readable, unreadable, torch.stack(rows) if rows else torch.empty(0)


@contextmanager
def _own_randomness(seed: str) -> Iterator[None]:
    """Seeds what timm's transforms draw from, Python's and torch's CPU generator, and puts both back."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed reseeds CUDA as well
        try:
            yield
        finally:
            random.setstate(before)


def _shown(names: Collection[Any]) -> str:
    """The first three names, quoted, in one printable line."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(repr(str(name)) for name in islice(names, 3)) or "nothing") + more


def _folder(resize: Resize, data_dir: Path | None) -> list[_Images]:
    if data_dir is None or not data_dir.is_dir():
        raise InputError(f"`data_dir` must be an existing image folder, but got {_shown([data_dir])}")
    splits: list[_Images] = []
    for names in (TRAIN_FOLDERS, VALIDATION_FOLDERS):
        root = next((data_dir / name for name in names if (data_dir / name).is_dir()), None)
        if root is None:
            wanted, there = "/ or ".join(names), sorted(os.listdir(data_dir))
            raise InputError(f"{_shown([data_dir])} must hold {wanted}/, but it holds {_shown(there)}")
        try:
            dataset = create_dataset("", root=str(root), search_split=False)
        except RuntimeError as error:  # timm's way to say that it found none
            raise InputError(f"{_shown([root])} must hold .png or .jpg images, but it holds none") from error
        files, class_names = dataset.reader.samples, tuple(dataset.reader.class_to_idx)
        within = {Path(path).relative_to(root).parts[0] for path, _ in files}
        bare = sorted(folder.name for folder in root.glob("[!.]*/") if folder.name not in within)
        if bare and not splits:  # validation may lack a class
            raise InputError(f"class folders must hold images, but {_shown([root])} has none in {_shown(bare)}")
        if any(name[:1] in ("", ".") for name in class_names):
            raise InputError(f"images must lie in visible class folders, but in {_shown([root])} some do not")
        labels = np.array([label for _, label in files])
        splits.append(_Images(dataset, labels, class_names, resize, files, data_dir))
    return splits


def _named(resize: Resize, name: str, data_dir: Path | None) -> list[_Images]:
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
        where = f"lie in {_shown([data_dir])} as torchvision downloads it" if kind == "torch" else "be readable"
        reason = str(error).partition("\n")[0].partition(". ")[0]  # what follows is advice to programmers
        raise InputError(f"{name!r} must {where}, but: {reason}") from error


def _open(resize: Resize, name: str, data_dir: Path | None, split: str) -> _Images:
    dataset = create_dataset(name, root=data_dir and str(data_dir), split=split)
    if hasattr(dataset, "reader"):  # Hugging Face: rows, whose classes may have no names
        labels = list(dataset.reader.iter_targets())
        classes = list(dataset.reader.class_to_idx) or range(max(labels) + 1)
        files, root = [(f"{split}[{row}]",) for row in range(len(labels))], None
    else:
        labels, classes, files, root = dataset.targets, dataset.classes, getattr(dataset, "imgs", []), data_dir
    names, on_disk = tuple(str(entry) for entry in classes), not hasattr(dataset, "data")  # or torchvision's array
    return _Images(dataset, np.asarray(labels, np.int64), names, resize, files, root, on_disk)
