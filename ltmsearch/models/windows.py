"""Merges inside the windows of a feature map, shared by the families with attention in windows.

Windows are never shifted: a shifted window that wraps around joins tokens from opposite sides of the image, which
attention can mask and a merge cannot. The feature map is padded to whole windows at the bottom and on the right, as
timm does, and padding has next to no weight in a merge.

Shapes: B images, W windows per image, N tokens per window, P merged tokens per window, D channels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from ltmsearch.merging import MergeOperator
from ltmsearch.merging.assignment import rows_by_image
from ltmsearch.merging.constants import constant_tensors
from ltmsearch.models.adapter import LayerShape, grid_of
from ltmsearch.models.merge_state import CarriedChange
from ltmsearch.models.rewiring import Rewired
from ltmsearch.schedules.grid import Grid, tokens

PADDING_SIZE = 1e-4
"""Size of a padding token; a token of the image has size 1."""


@dataclass(frozen=True, kw_only=True)
class WindowsShape(LayerShape):
    """A layer whose last part runs on a feature map, or on the merged tokens of its windows."""

    size: Grid
    """(rows, columns) of the feature map."""
    window: Grid
    """(rows, columns) of a window that merges."""

    def image_grid(self, grid: Grid) -> Grid:
        return self.size

    def tokens_after(self, grid: Grid) -> int:
        """Tokens of the last part, with windows merged to `grid`; padding merges too."""
        return tokens(self.size) if grid == self.window else self.windows * tokens(grid)


def change_in_windows(
    operator: MergeOperator,
    carried: CarriedChange,
    x: Tensor,
    window: Grid,
    target: Grid,
    keys: Tensor | None,
    heads: int,
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """`A · change(X̃)`: what a module adds to a feature map, computed on merged tokens, each window on its own.

    Args:
        operator: Merging operator.
        carried: The change of the mask so far, in place.
        x: (B, rows, columns, D) feature map.
        window: Rows and columns of a window.
        target: Merged tokens of a window: see `MergeOperator.target`.
        keys: (B·W, N, H·C) keys of all heads, if the operator needs them.
        heads: H.
        change: The module, from (B, W·P, D) to the same.

    Returns:
        (B, rows, columns, D).
    """
    batch, rows, columns, dim = x.shape
    before = in_windows(x, window)[:, None]  # (B·W, 1, N, D)
    if keys is not None:
        # Not `unflatten`, whose translation to ONNX by torch's older exporter fixes the batch size.
        keys = keys.reshape(before.shape[0], tokens(window), heads, -1)
    merge = carried.merge(operator, before, window_sizes(x, window), window, target, keys)
    changed = change(merge.tokens.reshape(batch, -1, dim))  # by image, as drop path works
    back = merge.assignment.spread(changed.view(merge.tokens.shape))
    return from_windows(back[:, 0], window, (rows, columns))


def even_window(size: Grid, largest: Sequence[int]) -> Grid:
    """Rows and columns of windows that are as few as those of `largest` on a feature map, with the least padding.

    A map of 16×16 has four windows of 8×8 instead of four of 14×14, most of which is padding.
    """
    rows, columns = (math.ceil(n / math.ceil(n / side)) for n, side in zip(size, largest, strict=True))
    return rows, columns


class FittingWindows:
    """Mixin of timm's Swin blocks: with windows of the size that they were built with, or as small as the map."""

    fits: bool = False
    """Whether windows on smaller images are those of a network that timm builds for these; timm itself pads a map that
    is smaller than a window."""


def fit_windows(model: nn.Module, *, fits: bool) -> None:
    """Set `FittingWindows.fits` of all blocks."""
    for module in model.modules():
        if isinstance(module, FittingWindows):
            module.fits = fits


@contextmanager
def fitting_windows(model: nn.Module) -> Iterator[None]:
    """Windows fit smaller images inside the `with` block, and are as they were built afterwards."""
    fit_windows(model, fits=True)
    try:
        yield
    finally:
        fit_windows(model, fits=False)


def fitted_windows(block: Any, size: Grid) -> tuple[Grid, Grid]:
    """Rows and columns of the attention windows of a Swin block on a feature map, and their shifts.

    Where windows fit, they are no larger than the map, and not shifted where they fill it.
    """
    window, shift = grid_of(*block.window_size), grid_of(*block.shift_size)
    if block.always_partition or not getattr(block, "fits", False):
        return window, shift
    rows, columns = (min(pair) for pair in zip(size, window, strict=True))
    down, right = (0 if n <= w else s for n, w, s in zip(size, window, shift, strict=True))
    return (rows, columns), (down, right)


def with_windows(block: Any, window: Grid, shift: Grid, attention: Callable[..., Tensor]) -> Any:
    """A timm Swin block with other windows, and an attention that is made for them."""
    kind: Any = next(kind for kind in type(block).__mro__ if kind.__module__.startswith("timm."))
    own: Any = Rewired(block, window_size=window, window_area=tokens(window), shift_size=shift, attn=attention)
    own.get_attn_mask, own._attn = partial(kind.get_attn_mask, own), partial(kind._attn, own)
    return own


def padded(size: Sequence[int], window: Grid) -> Grid:
    """Rows and columns of a feature map, padded to whole windows."""
    return math.ceil(size[0] / window[0]) * window[0], math.ceil(size[1] / window[1]) * window[1]


def count_windows(size: Sequence[int], window: Grid) -> int:
    """W, windows of a feature map."""
    return tokens(padded(size, window)) // tokens(window)


def in_windows(x: Tensor, window: Grid) -> Tensor:
    """(B, rows, columns, C) to (B·W, N, C), padded with zeros."""
    rows, columns = padded(x.shape[1:3], window)
    if (rows, columns) != x.shape[1:3]:  # padding by zero would copy
        x = nn.functional.pad(x, (0, 0, 0, columns - x.shape[2], 0, rows - x.shape[1]))
    return window_partition(x, window).flatten(1, 2)


def from_windows(x: Tensor, window: Grid, size: Grid) -> Tensor:
    """(B·W, N, C) to (B, rows, columns, C), without padding."""
    whole = padded(size, window)
    x = window_reverse(x.reshape(-1, *window, x.shape[-1]), window, *whole)
    return x if whole == size else x[:, : size[0], : size[1]].contiguous()


def window_sizes(x: Tensor, window: Grid) -> Tensor:
    """(B·W, N) float32 for a (B, rows, columns, D) map: 1 for its tokens, `PADDING_SIZE` for padding."""
    batch, rows, columns, _ = x.shape
    if padded((rows, columns), window) == (rows, columns):
        n = tokens(window)
        return x.new_ones(batch * rows * columns // n, n, dtype=torch.float32)
    inside = in_windows(x.new_ones(1, rows, columns, 1, dtype=torch.float32), window).squeeze(-1)
    return inside.clamp_min(PADDING_SIZE).repeat(batch, 1)


def to_merging_windows(x: Tensor, window: Grid, shift: Sequence[int], size: Grid, merging: Grid) -> Tensor:
    """(B·W, N, C) of windows that timm's Swin has shifted to those of a size that merge; zeros where there is padding.

    `size`: rows and columns of the feature map.
    """
    if padded(size, merging) != size:
        x = from_windows(x, window, size)
        return in_windows(torch.roll(x, shifts=tuple(shift), dims=(1, 2)) if any(shift) else x, merging)
    if merging == window and not any(shift):
        return x
    (places,) = constant_tensors(_merging_places, window, tuple(shift), size, merging, device=x.device)
    # One gather of whole rows instead of three or four copies of the map, as above.
    return rows_by_image(x, places, tokens(padded(size, window))).view(-1, tokens(merging), x.shape[-1])


def _merging_places(window: Grid, shift: Sequence[int], size: Grid, merging: Grid) -> np.ndarray:
    """For each token of an image, window by window of those that merge: its place among those of shifted windows."""
    (down, right), whole = window, padded(size, window)
    places = np.arange(tokens(whole)).reshape(whole[0] // down, whole[1] // right, down, right)
    places = np.roll(places.swapaxes(1, 2).reshape(whole)[: size[0], : size[1]], shift, axis=(0, 1))
    down, right = merging
    return places.reshape(size[0] // down, down, size[1] // right, right).swapaxes(1, 2).flatten()
