"""Which patches of an image are in which merged token, layer by layer, recorded in a forward pass as plain arrays.

Where merges accumulate (ViT with depth, MobileViT inside a block) assignments are composed, so that every merged token
is described by original patches. Class and register tokens are no patches and never merge.

Shapes: B images, W windows per image (Swin's; otherwise 1), N patches per window, P merged tokens per window.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ltmsearch.merging import Merge, MergeOperator
from ltmsearch.models.adapter import Chain, get_adapter, run_once
from ltmsearch.models.merging_layer import attached_operators
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Form

DROPPED = -1
"""Instead of the number of a merged token: the patch is in none."""


@dataclass(frozen=True, kw_only=True)
class LayerMerges:
    """The patches in the merged tokens of one layer for one image; token t is number t mod P of window t div P."""

    layer: str
    operator: str
    form: Form
    before: int
    """Tokens of a window before this merge: fewer than N if earlier layers merged too."""
    image_grid: Grid
    """(rows, columns) of all patches of the image at this layer."""
    window: Grid
    """(rows, columns) of the patches of one window; equal to `image_grid` except for Swin."""
    token_stride: tuple[float, float]
    """Pixels of the image (down, right) from one patch to the next."""
    shares: np.ndarray
    """(W, N, P) float32: share of each patch in each merged token; rows sum to 1, to 0 if the patch was dropped."""

    @property
    def windows(self) -> int:
        """W."""
        return int(self.shares.shape[0])

    @property
    def after(self) -> int:
        """P."""
        return int(self.shares.shape[2])

    @cached_property
    def labels(self) -> np.ndarray:
        """(rows, columns) int64: the merged token with the largest share of each patch; `DROPPED` if it is in none."""
        first = np.arange(self.windows)[:, None] * self.after
        largest = np.where(self.shares.any(axis=2), self.shares.argmax(axis=2) + first, DROPPED)
        return self._on_image(largest)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(W·P,) number of patches in each merged token; they sum to all patches of the image that were not dropped."""
        padding = np.ones(self.shares.shape[:2], dtype=bool)
        padding.flat[self._places] = False
        return np.where(padding[..., None], 0, self.shares).sum(axis=1).ravel()

    @cached_property
    def patch_shares(self) -> np.ndarray:
        """(rows·columns, P) shares of the image's patches, row by row, in the tokens of their own window."""
        return self.shares.reshape(-1, self.after)[self._places.ravel()]

    def size(self, token: int) -> float:
        """Number of patches in a merged token; 0 for `DROPPED`."""
        return 0.0 if token == DROPPED else float(self.sizes[token])

    def weights(self, token: int) -> np.ndarray:
        """(rows, columns): share of each patch in one merged token; zero for `DROPPED`."""
        values = np.zeros(self.shares.shape[:2], dtype=self.shares.dtype)
        if token != DROPPED:
            window, place = divmod(token, self.after)
            values[window] = self.shares[window, :, place]
        return self._on_image(values)

    def token_at(self, x: float, y: float) -> int:
        """The merged token with the largest share of the patch at a pixel, or of the nearest patch; or `DROPPED`."""
        row, column = int(y // self.token_stride[0]), int(x // self.token_stride[1])
        rows, columns = self.image_grid
        return int(self.labels[min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)])

    @cached_property
    def _places(self) -> np.ndarray:
        """(rows, columns) index of each patch of the image among the W·N of all windows, padding included."""
        (rows, columns), (height, width) = self.image_grid, self.window
        tiles = math.ceil(rows / height), math.ceil(columns / width)
        places = np.arange(self.windows * height * width).reshape(*tiles, height, width).swapaxes(1, 2)
        return places.reshape(tiles[0] * height, tiles[1] * width)[:rows, :columns]

    def _on_image(self, values: np.ndarray) -> np.ndarray:
        """(W, N) to (rows, columns), without padding."""
        return values.ravel()[self._places]


def trace_merges(
    backbone: str, model: nn.Module, images: Tensor, chains: Sequence[Chain] | None = None
) -> list[tuple[LayerMerges, ...]]:
    """Record the merges of one forward pass, for each image the layers that merge, in the order of execution.

    `images`: (B, 3, height, width), normalised; `chains`: those for this size of images; None: found by another pass.
    """
    size = int(images.shape[2]), int(images.shape[3])
    chains = get_adapter(backbone).chains(model, size) if chains is None else chains
    recorded = _record_shares(model, images, [shape.name for chain in chains for shape in chain.layers])
    traces: list[list[LayerMerges]] = [[] for _ in images]
    for chain in chains:
        composed: Tensor | None = None
        entering: list[int] = [tokens(chain.grid)] * len(images)
        for shape in (shape for shape in chain.layers if shape.name in recorded):
            operator, shares, kept = recorded[shape.name]
            composed = shares if composed is None else composed @ shares
            owns = composed.unflatten(0, (len(images), -1)).numpy()
            for trace, own, before, after in zip(traces, owns, entering, kept, strict=True):
                trace.append(
                    LayerMerges(
                        layer=shape.name,
                        operator=operator.name,
                        form=operator.form,
                        before=before,
                        image_grid=shape.image_grid(chain.grid),
                        window=chain.grid,
                        token_stride=chain.token_stride,
                        shares=own[:, :, :after],
                    )
                )
            entering = kept
    return [tuple(trace) for trace in traces]


def _record_shares(
    model: nn.Module, images: Tensor, layers: Sequence[str]
) -> dict[str, tuple[MergeOperator, Tensor, list[int]]]:
    """The operators that merged in a forward pass, by layer; (B·W, tokens before, P) shares; P of each image.

    Where images keep different numbers of tokens, the last of the P places are empty.
    """
    recorded: dict[str, tuple[MergeOperator, Tensor, list[int]]] = {}

    def record(layer: str, operator: MergeOperator, merge: Merge) -> None:
        batch, count = merge.sizes.shape
        identity = torch.eye(count, device=merge.sizes.device).expand(batch, 1, -1, -1)
        kept = (merge.sizes > 0).sum(dim=1).tolist() if operator.adaptive else [count] * len(images)
        recorded[layer] = operator, merge.assignment.spread(identity)[:, 0].cpu(), kept

    hooks = [
        operator.register_forward_hook(lambda op, _args, merge, layer=layer: record(layer, op, merge))
        for layer, operator in attached_operators(model, layers).items()
    ]
    parameter = next(model.parameters())
    run_once(model, images.to(parameter.device, parameter.dtype), hooks)
    return recorded
