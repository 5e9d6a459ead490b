"""Cluttered digits: a built-in data set, drawn from the digits bundled with scikit-learn.

The protocol is Cluttered MNIST's (Mnih, Heess, Graves and Kavukcuoglu, "Recurrent Models of Visual
Attention", 2014, https://arxiv.org/abs/1406.6247): one whole digit at a random place of a larger canvas, and
fragments cut from other digits as distractors. Most of a picture is empty or misleading, so it matters which
tokens a model merges. The digits are scikit-learn's 1,797 of 8×8 pixels, enlarged; here the whole digit's
size varies as well.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from ltmsearch.errors import check_choice

Split = Literal["train", "validation", "search", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "search", "test")
"""Their order seeds the drawing."""
CLASS_NAMES = tuple("0123456789")

GLYPH_PIXELS = 8
"""Side of a bundled digit, in pixels."""

HOLD_OUT_EVERY = 8
"""Of so many bundled digits of a class in a row, one belongs to each split of `HELD_OUT_PLACES`, the rest to train."""
HELD_OUT_PLACES: dict[Split, int] = {"validation": 3, "search": 5, "test": 7}
"""Held-out split → place of its bundled digit among them, from 0."""


@dataclass(frozen=True, kw_only=True)
class Clutter:
    """Difficulty of the pictures."""

    min_scale: float
    """Smallest side of the whole digit, as a share of the canvas, in (0, max_scale]."""
    max_scale: float
    """Largest side of the whole digit, as a share of the canvas, in [min_scale, 1]."""
    fragments: int
    """Number of fragments of other digits, from 0."""
    fragment_scale: float
    """Side of a fragment as a share of the whole digit's side, in (0, 1]; Cluttered MNIST has 8/28."""


DEFAULT_CLUTTER = Clutter(min_scale=0.5, max_scale=0.8, fragments=2, fragment_scale=0.4)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One square of a bundled digit, and its place on the canvas."""

    glyph: int
    """Number of the bundled digit, in scikit-learn's order."""
    crop: tuple[float, float, float]
    """Left, top and side of the square cut out, in pixels of the bundled digit."""
    place: tuple[float, float, float]
    """Left, top and side of the square drawn, as shares of the canvas."""


@dataclass
class ClutteredDigits(Dataset[tuple[Image.Image, int]]):
    """A map-style data set of scenes; each depends on `(seed, split, index)` and `clutter` alone.

    An item is a grey PIL image ("L") of `img_size` × `img_size` pixels and its label. Labels cycle through
    the ten classes, so any run of ten images is balanced. Positions and sizes are shares of the canvas: index
    `i` shows the same scene at every `img_size`. No bundled digit, whole or in part, is in two splits.
    """

    split: Split
    _: KW_ONLY
    img_size: int
    seed: int
    length: int
    clutter: Clutter = DEFAULT_CLUTTER

    def __post_init__(self) -> None:
        check_choice("the split of the digits", self.split, Split)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label of every image, (length,), without drawing any."""
        return np.arange(self.length) % len(CLASS_NAMES)

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """The number of every image's whole digit in the bundle, (length,), without drawing any.

        Images of the same digit are not independent of each other.
        """
        return np.array([self._start(index)[1] for index in range(self.length)], dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return draw(self.scene(index), self.img_size), index % len(CLASS_NAMES)

    def scene(self, index: int) -> tuple[Patch, ...]:
        """Content of image `index`: the whole digit, then the fragments; raises `IndexError` out of range."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} images")
        rng, whole, (size, left, top) = self._start(index)
        of_split, _ = _pools(self.split)
        side = self.clutter.min_scale + size * (self.clutter.max_scale - self.clutter.min_scale)
        place = (left * (1 - side), top * (1 - side), side)
        patches = [Patch(glyph=whole, crop=(0.0, 0.0, float(GLYPH_PIXELS)), place=place)]
        # Fragments are enlarged as much as the digit, so that the width of strokes does not distinguish them.
        cut, part = self.clutter.fragment_scale * GLYPH_PIXELS, self.clutter.fragment_scale * side
        for pick, cut_left, cut_top, left, top in rng.random((self.clutter.fragments, 5)).tolist():
            others = len(of_split) - 1  # counted from the one after the whole digit, which is never reached
            patches.append(
                Patch(
                    glyph=of_split[(bisect_left(of_split, whole) + 1 + int(pick * others)) % len(of_split)],
                    crop=(cut_left * (GLYPH_PIXELS - cut), cut_top * (GLYPH_PIXELS - cut), cut),
                    place=(left * (1 - part), top * (1 - part), part),
                )
            )
        return tuple(patches)

    def _start(self, index: int) -> tuple[np.random.Generator, int, list[float]]:
        """What image `index` is drawn with: the generator for its fragments, the whole digit, and three shares."""
        _, of_class = _pools(self.split)
        candidates = of_class[index % len(CLASS_NAMES)]
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        pick, *shares = rng.random(4).tolist()
        return rng, candidates[int(pick * len(candidates))], shares


def draw(scene: Sequence[Patch], img_size: int) -> Image.Image:
    """Draw a scene on a black canvas, `img_size` grey pixels a side; overlapping patches show the brighter pixel."""
    glyphs, _ = _bundled()
    canvas = np.zeros((img_size, img_size), dtype=np.uint8)
    for patch in scene:
        cut_left, cut_top, cut = patch.crop
        side = max(1, round(patch.place[2] * img_size))
        left, top = (min(round(share * img_size), img_size - side) for share in patch.place[:2])
        box = (cut_left, cut_top, cut_left + cut, cut_top + cut)
        pixels = np.asarray(glyphs[patch.glyph].resize((side, side), Image.Resampling.BICUBIC, box=box))
        target = canvas[top : top + side, left : left + side]
        np.maximum(target, pixels, out=target)
    return Image.fromarray(canvas)


@cache
def _bundled() -> tuple[tuple[Image.Image, ...], npt.NDArray[np.int64]]:
    """scikit-learn's digits as grey images, and their labels (1797,)."""
    from sklearn.datasets import load_digits  # a second of import that other data sets do not need

    bundle = load_digits()
    pixels = np.rint(bundle.images * (255 / 16)).astype(np.uint8)  # the bundle counts from 0 to 16
    return tuple(Image.fromarray(glyph) for glyph in pixels), bundle.target.astype(np.int64)


@cache
def _pools(split: Split) -> tuple[list[int], list[list[int]]]:
    """The bundled digits of one split, all and by class. Nothing is drawn: no seed can mix the splits."""
    _, labels = _bundled()
    of_class = []
    for label in range(len(CLASS_NAMES)):
        members = np.flatnonzero(labels == label)
        places = np.arange(len(members)) % HOLD_OUT_EVERY
        held_out = np.isin(places, list(HELD_OUT_PLACES.values()))
        of_class.append(members[~held_out if split == "train" else places == HELD_OUT_PLACES[split]].tolist())
    return sorted(glyph for members in of_class for glyph in members), of_class
