"""The two panels of a layer as arrays of pixels: what went together, and what one merged token is made of.

Shapes: H×W pixels of an image as the network sees it, h×w pixels of a panel, R×C patches.
"""

import numpy as np
from PIL import Image

from ltmsearch.models.merge_traces import LayerMerges

UNSEEN = -1
"""Number of the pixels that no patch covers: a patch embedding drops what is left at the right and bottom edge."""
HEAT = np.array([213, 94, 0], dtype=np.float64)
"""Vermilion, of the palette that colour-blind readers can tell apart; on grey it is seen by its lightness too."""
LUMA = np.array([0.299, 0.587, 0.114])
THICK = 12
"""Pixels of a patch from which on outlines are two pixels wide."""
DARK = 110
"""Brightness below which outlines are white, on a scale to 255."""
OUTLINE = 0.75
"""How much of an outline's black or white covers what is below it."""


def patch_pixels(layer: LayerMerges, image: tuple[int, int], panel: tuple[int, int]) -> np.ndarray:
    """(h, w) int64 which patch each pixel of a panel belongs to, row by row; `UNSEEN` where none does.

    Args:
        layer: Its patches.
        image: (H, W).
        panel: (h, w).
    """
    rows, columns = (
        ((np.arange(length) + 0.5) * pixels / length // stride).astype(np.int64)
        for length, pixels, stride in zip(panel, image, layer.token_stride, strict=True)
    )
    number = rows[:, None] * layer.image_grid[1] + columns[None, :]
    seen = (rows < layer.image_grid[0])[:, None] & (columns < layer.image_grid[1])[None, :]
    return np.where(seen, number, UNSEEN)


def region_panel(image: np.ndarray, layer: LayerMerges, panel: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8: each region in the mean colour of the image behind it, outlined.

    Args:
        image: (H, W, 3) uint8.
        layer: Whose merges to show.
        panel: (h, w).
    """
    at_home = _labels(layer, patch_pixels(layer, image.shape[:2], image.shape[:2]))
    count = layer.windows * layer.after
    weights = np.bincount(at_home.ravel() + 1, minlength=count + 1)
    sums = [np.bincount(at_home.ravel() + 1, image[..., c].ravel(), count + 1) for c in range(3)]
    colours = np.stack(sums, axis=-1) / np.maximum(weights, 1)[:, None]
    labels = _labels(layer, patch_pixels(layer, image.shape[:2], panel))
    fill = colours[labels + 1]
    ink = np.where(fill @ LUMA < DARK, 255.0, 0.0)
    return _outlined(fill, labels, ink, wide=_patch_side(layer, image, panel) >= THICK)


def weight_panel(image: np.ndarray, layer: LayerMerges, token: int, panel: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8: how much of each patch is in one merged token, over the image in grey.

    The strongest colour is the largest share, whatever it is; the outline is that of the token's region.

    Args:
        image: (H, W, 3) uint8, or as large as the panel.
        layer: Whose merges to show.
        token: Number of the merged token.
        panel: (h, w).
    """
    patches = patch_pixels(layer, image.shape[:2], panel)
    weights = np.append(layer.weights(token).ravel(), 0.0)[patches]  # `UNSEEN` is the last
    strength = 0.8 * (weights / max(float(weights.max()), 1e-12))[..., None]
    fill = (1 - strength) * grey(resized(image, panel)) + strength * HEAT
    own = np.append(layer.labels.ravel(), -1)[patches] == token
    # Black within and white around: seen on whatever colour.
    return _outlined(fill, own.astype(np.int64), np.where(own, 0.0, 255.0), wide=True)


def grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of an (H, W, 3) one: in grey and with less contrast, so that colour stands out on it."""
    dull = 0.6 * (image @ LUMA) + 0.4 * 160
    return np.repeat(dull.round().astype(np.uint8)[..., None], 3, axis=2)


def resized(image: np.ndarray, panel: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8 of an (H, W, 3) one, smoothly."""
    return np.asarray(Image.fromarray(image).resize((panel[1], panel[0]), Image.Resampling.LANCZOS))


def _labels(layer: LayerMerges, patches: np.ndarray) -> np.ndarray:
    """Merged tokens instead of patches."""
    return np.append(layer.labels.ravel(), UNSEEN)[patches]


def _patch_side(layer: LayerMerges, image: np.ndarray, panel: tuple[int, int]) -> float:
    return min(
        stride * length / pixels for stride, length, pixels in zip(layer.token_stride, panel, image.shape, strict=False)
    )


def _outlined(fill: np.ndarray, labels: np.ndarray, ink: np.ndarray, *, wide: bool) -> np.ndarray:
    """Lines between different labels, in the shade of grey that (h, w) `ink` has there."""
    edge = np.zeros(labels.shape, dtype=bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:, 1:] |= right
    if wide:
        edge[:-1] |= down
        edge[:, :-1] |= right
    lines = OUTLINE * ink[..., None] + (1 - OUTLINE) * fill
    return np.where(edge[..., None], lines, fill).round().clip(0, 255).astype(np.uint8)
