"""The two panels of a layer as arrays of pixels: regions of merged patches, and the weights of one merged token.

Shapes: H×W pixels of the network's input, h×w pixels of a panel, R×C patches.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ltmsearch.models.merge_traces import DROPPED, LayerMerges

Place = tuple[float, float]
"""(x, y) in pixels of the network's input."""

UNSEEN = -1
"""Patch of pixels that no patch covers: a patch embedding leaves out the rest at the right and bottom edges."""
NO_PATCH = DROPPED - 1
"""Label of those pixels."""
BLANK = np.array([235, 235, 235], dtype=np.float64)
"""Dropped patches."""
HEAT = np.array([213, 94, 0], dtype=np.float64)
"""Vermilion, visible on grey by its lightness too."""
LUMA = np.array([0.299, 0.587, 0.114])
THICK = 12
"""Pixels of a patch from which outlines are two pixels wide."""
DARK = 110
"""Brightness below which outlines are white, on a scale to 255."""
OUTLINE = 0.75
"""Opacity of outlines."""


def default_place(layers: Sequence[LayerMerges]) -> Place:
    """Centre of a patch in the largest merged token of the last layer.

    Of its patches, the one merged with the most patches over all layers; ties are decided by the distance to the middle
    of the image.
    """
    (rows, columns), (down, right) = layers[-1].image_grid, layers[-1].token_stride
    middle = columns * right / 2, rows * down / 2

    def rank(place: Place) -> tuple[float, float, float]:
        sizes = [round(layer.size(layer.token_at(*place)), 2) for layer in layers]
        return sizes[-1], round(sum(sizes), 2), -math.dist(place, middle)

    places = [((column + 0.5) * right, (row + 0.5) * down) for row, column in np.ndindex(rows, columns)]
    return max(places, key=rank)


def heading(layer: LayerMerges) -> tuple[str, str]:
    """Name of a layer, and its token counts before and after."""
    windows = f" in each of {layer.windows} windows" if layer.windows > 1 else ""
    form = layer.operator if layer.operator == layer.form else f"{layer.operator} {layer.form}"
    return layer.layer, f"{layer.before} to {layer.after} tokens{windows}, {form}"


def token_words(layer: LayerMerges, token: int) -> str:
    """One merged token in words."""
    if token == DROPPED:
        return "a dropped patch"
    size, largest = layer.size(token), float(layer.weights(token).max())
    patches = f"{size:.3g} patch{'' if f'{size:.3g}' == '1' else 'es'}"
    return f"token {token}: {patches}" + (f", at most {largest:.2f} of one" if largest < 0.995 else "")


def patch_pixels(layer: LayerMerges, image: tuple[int, int], panel: tuple[int, int]) -> np.ndarray:
    """(h, w) int64: number of the patch at each pixel of a panel, row by row; `UNSEEN` without a patch."""
    rows, columns = (
        ((np.arange(length) + 0.5) * pixels / length // stride).astype(np.int64)
        for length, pixels, stride in zip(panel, image, layer.token_stride, strict=True)
    )
    number = rows[:, None] * layer.image_grid[1] + columns[None, :]
    seen = (rows < layer.image_grid[0])[:, None] & (columns < layer.image_grid[1])[None, :]
    return np.where(seen, number, UNSEEN)


def region_panel(image: np.ndarray, layer: LayerMerges, panel: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8: each region of an (H, W, 3) uint8 image in its mean colour, outlined; dropped patches blank."""
    own = _labels(layer, patch_pixels(layer, image.shape[:2], image.shape[:2])).ravel() - NO_PATCH
    count = layer.windows * layer.after - NO_PATCH
    weights = np.bincount(own, minlength=count)
    sums = [np.bincount(own, image[..., c].ravel(), count) for c in range(3)]
    colours = np.stack(sums, axis=-1) / np.maximum(weights, 1)[:, None]
    colours[DROPPED - NO_PATCH] = BLANK
    labels = _labels(layer, patch_pixels(layer, image.shape[:2], panel))
    fill = colours[labels - NO_PATCH]
    ink = np.where(fill @ LUMA < DARK, 255.0, 0.0)
    return _outlined(fill, labels, ink, wide=_patch_side(layer, image, panel) >= THICK)


def weight_panel(image: np.ndarray, layer: LayerMerges, token: int, panel: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8: share of each patch in one merged token, over an (H, W, 3) uint8 image in grey.

    The largest share has the strongest colour; the outline is that of the token's region.
    """
    patches = patch_pixels(layer, image.shape[:2], panel)
    weights = np.append(layer.weights(token).ravel(), 0.0)[patches]  # `UNSEEN` is the last
    strength = 0.8 * (weights / max(float(weights.max()), 1e-12))[..., None]
    fill = (1 - strength) * grey(resized(image, panel)) + strength * HEAT
    own = _labels(layer, patches) == token
    # Black inside and white outside: visible on any colour.
    return _outlined(fill, own.astype(np.int64), np.where(own, 0.0, 255.0), wide=True)


def grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of an (H, W, 3) image: grey with less contrast, as a background for colour."""
    dull = 0.6 * (image @ LUMA) + 0.4 * 160
    return np.repeat(dull.round().astype(np.uint8)[..., None], 3, axis=2)


def resized(image: np.ndarray, panel: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8 of an (H, W, 3) image, interpolated."""
    return np.asarray(Image.fromarray(image).resize((panel[1], panel[0]), Image.Resampling.LANCZOS))


def _labels(layer: LayerMerges, patches: np.ndarray) -> np.ndarray:
    return np.append(layer.labels.ravel(), NO_PATCH)[patches]  # `UNSEEN` is the last


def _patch_side(layer: LayerMerges, image: np.ndarray, panel: tuple[int, int]) -> float:
    return min(
        stride * length / pixels for stride, length, pixels in zip(layer.token_stride, panel, image.shape, strict=False)
    )


def _outlined(fill: np.ndarray, labels: np.ndarray, ink: np.ndarray, *, wide: bool) -> np.ndarray:
    """Lines between different labels, in the grey values of `ink` (h, w)."""
    edge = np.zeros(labels.shape, dtype=bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:, 1:] |= right
    if wide:
        edge[:-1] |= down
        edge[:, :-1] |= right
    lines = OUTLINE * ink[..., None] + (1 - OUTLINE) * fill
    return np.where(edge[..., None], lines, fill).round().clip(0, 255).astype(np.uint8)
