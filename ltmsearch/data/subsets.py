"""One split of a data set: images read by number, cached, checked for damage, and sampled evenly over the classes."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import Resize

from ltmsearch.callbacks import Callbacks
from ltmsearch.data.images import UNREADABLE, decode, pillow_quiet, prepare

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class ImageSplit:
    """One split of a data set.

    `resize` is the first step of timm's evaluation transform. It is applied on reading to images with a longer short
    side: evaluation then gives the same bits as from the original, and training does not depend on whether the result
    is cached. Without `resize`, images keep their original size.
    """

    dataset: Any  # of torchvision or timm; None: `files` are the images
    labels: np.ndarray  # (n,) int64, indices into `class_names`
    class_names: tuple[str, ...]
    resize: Resize | None
    files: Sequence[tuple[Any, ...]] = ()  # of each image on disk, a tuple that starts with its path
    root: Path | None = None
    on_disk: bool = True  # whether an image must be read to know that it can be
    left_out: Counter[str] = field(default_factory=Counter)  # number of files of the folder not used, by reason
    name: str = ""
    mode: str = "RGB"  # Pillow's mode of the network's images, of `IMAGE_MODES`
    pixel_cache: dict[int, np.ndarray] | None = None
    tensor_cache: dict[int, Tensor] | None = None  # (channels, S, S) uint8, by the evaluation transform
    readable: set[int] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)
    scaled: bool = False  # whether an image read so far had 16 or 32 bits of grey, which were scaled to 8

    def pixels(self, index: int) -> np.ndarray | None:
        """The image, uint8 (height, width) or (height, width, channels), or None if it cannot be read."""
        if self.pixel_cache is not None and index in self.pixel_cache:
            return self.pixel_cache[index]
        try:
            image, scaled = self._read(index)
        except UNREADABLE:
            return None
        self.scaled |= scaled
        if self.resize is not None and min(image.size) > self.resize.size:
            image = self.resize(image)
        pixels = np.asarray(image)
        if self.pixel_cache is not None:
            self.pixel_cache[index] = pixels
        return pixels

    def _read(self, index: int) -> tuple[Image.Image, bool]:
        if self.dataset is not None and not hasattr(self.dataset, "reader"):
            return prepare(self.dataset[index][0], self.mode)
        # timm's own __getitem__ replaces an unreadable image by its neighbour; its reader does not.
        with open(self.files[index][0], "rb") if self.dataset is None else self.dataset.reader[index][0] as file:
            return decode(file, self.mode)

    @pillow_quiet()
    def verify(self, indices: Sequence[int], callbacks: Callbacks | None = None) -> None:
        """Read whole images to record which are readable: a truncated file shows only at its end."""
        if callbacks is not None and len(indices):
            callbacks.phase("reading images", len(indices))
        with ThreadPoolExecutor(CPUS) as pool:  # Pillow lets other threads run while it decodes
            for done, (index, pixels) in enumerate(zip(indices, pool.map(self.pixels, indices), strict=True), 1):
                (self.unreadable if pixels is None else self.readable).add(index)
                if callbacks is not None:
                    callbacks.advance(done)

    def sample(self, number: int, *, seed: int, without: Collection[int] = ()) -> list[int]:
        """At most `number` readable images, none from `without`, balanced over the classes."""
        while True:
            chosen = balanced(self.labels, number, seed=seed, without=self.unreadable.union(without))
            if not self.on_disk or self.readable.issuperset(chosen):
                return chosen
            self.verify([index for index in chosen if index not in self.readable])

    def skipped(self) -> tuple[str, ...]:
        """Paths, relative to `root`, of the unreadable images found so far."""
        return tuple(os.path.relpath(self.files[index][0], self.root) for index in sorted(self.unreadable))

    @pillow_quiet()
    def estimated_bytes(self, number: int) -> int:
        """Memory for `number` of the images: that many times the mean size of 32, evenly spaced."""
        # Exact sizes need every file opened: minutes for a large set. Short sides are bounded, so a few are enough.
        last = len(self.labels) - 1
        sample = (self.pixels(index) for index in np.linspace(0, last, min(32, last + 1)).astype(int).tolist())
        sizes = [pixels.nbytes for pixels in sample if pixels is not None]
        return round(sum(sizes) / len(sizes) * number) if sizes else 0


def balanced(labels: np.ndarray, number: int, *, seed: int, without: Collection[int]) -> list[int]:
    """At most `number` indices into `labels` (n,), none from `without`: classes take turns, each in random order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[~np.isin(order, list(without))]
    by_class = order[np.argsort(labels[order], kind="stable")]
    # An index's turn is its rank within its class: its position less that of the first of its class.
    turn = np.arange(len(by_class)) - np.searchsorted(labels[by_class], labels[by_class])
    return by_class[np.argsort(turn, kind="stable")][:number].tolist()


def quoted(names: Collection[Any]) -> str:
    """The first three names in one printable line."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(repr(str(name)) for name in islice(names, 3)) or "nothing") + more
