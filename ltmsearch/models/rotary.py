"""Rotary positions (RoPE, https://arxiv.org/abs/2104.09864) of merged tokens.

A merged token stands at the mean of its tokens' places, weighted by their sizes, and its queries and keys are rotated
by the angles of that place. All of timm's rotary modules have angles that are linear in the place.

Shapes: B images, H heads, N tokens of the full grid, P tokens after merges, C channels per head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed, build_fourier_pos_embed
from timm.layers.pos_embed_sincos import RotaryEmbeddingMRope, _apply_coord_augs, get_mixed_grid, make_coords_dinov3
from torch import Tensor, nn

from ltmsearch.schedules.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """What one of timm's rotary modules computes, at any place."""

    places: Callable[[Any, Grid], Tensor]
    """Module and grid to the (N, 2) places of its tokens, in the module's own unit."""
    angles: Callable[[Any, Tensor, int], Tensor]
    """Module, (B, P, 2) places and number of the block to (B, P, C/2) angles or, by head, (B, H, P, C/2)."""


def _axial_places(rope: RotaryEmbeddingCat, grid: Grid) -> Tensor:
    places, _, _ = build_fourier_pos_embed(
        list(grid),
        bands=rope.bands,
        include_grid=True,
        in_pixels=rope.in_pixels,
        ref_feat_shape=rope.ref_feat_shape,
        grid_offset=rope.grid_offset,
        grid_indexing=rope.grid_indexing,
        grid_type=rope.grid_type,
        normalize_coords=rope.normalize_coords,
        device=rope.bands.device,
    )
    return places.reshape(-1, 2)


def _axial_angles(rope: RotaryEmbeddingCat, places: Tensor, _block: int) -> Tensor:
    return (places[..., None] * rope.bands).flatten(-2)


def _centred_places(rope: RotaryEmbeddingDinoV3, grid: Grid) -> Tensor:
    return make_coords_dinov3(
        *grid,
        normalize_coords=rope.normalize_coords,
        grid_indexing=rope.grid_indexing,
        grid_offset=rope.grid_offset,
        device=rope.periods.device,
    )


def _centred_angles(rope: RotaryEmbeddingDinoV3, places: Tensor, _block: int) -> Tensor:
    return (2 * torch.pi * places[..., None] / rope.periods).flatten(-2)


def _indexed_places(rope: RotaryEmbeddingMixed | RotaryEmbeddingMRope, grid: Grid) -> Tensor:
    (device,) = {tensor.device for tensor in (*rope.parameters(), *rope.buffers())}
    return torch.stack(get_mixed_grid(list(grid), rope.grid_indexing, device), dim=-1)


def _mixed_angles(rope: RotaryEmbeddingMixed, places: Tensor, block: int) -> Tensor:
    first, second = rope.freqs[:, block].float()[:, None, :, None]  # (1, H, 1, C/2) each
    return places[:, None, :, :1] * first + places[:, None, :, 1:] * second


def _sectioned_angles(rope: RotaryEmbeddingMRope, places: Tensor, _block: int) -> Tensor:
    still = torch.zeros_like(places[..., :1])  # an image has no place in time
    return torch.cat((still, places), dim=-1).index_select(-1, rope.axis) * rope.inv_freq


ROTARY: dict[type[nn.Module], Rotary] = {
    RotaryEmbeddingCat: Rotary(places=_axial_places, angles=_axial_angles),
    RotaryEmbeddingDinoV3: Rotary(places=_centred_places, angles=_centred_angles),
    RotaryEmbeddingMixed: Rotary(places=_indexed_places, angles=_mixed_angles),
    RotaryEmbeddingMRope: Rotary(places=_indexed_places, angles=_sectioned_angles),
}
"""By the exact class of timm's module."""


def places_of(rope: nn.Module, grid: Grid) -> Tensor:
    """The (1, N, 2) float32 places of a grid's tokens; in training moved at random, where the network asks for that."""
    places = ROTARY[type(rope)].places(rope, grid).float()
    if rope.training and rope.aug_active:
        places = _apply_coord_augs(places, rope.shift_coords, rope.jitter_coords, rope.rescale_coords)
    return places[None]


def rotation_at(rope: nn.Module, places: Tensor, block: int) -> Tensor:
    """Sines and cosines for timm's `apply_rot_embed_cat` at (B, P, 2) places, for the block of that number.

    (B, 1, P, 2·C) float32, or (B, H, P, 2·C) if heads differ.
    """
    angles = ROTARY[type(rope)].angles(rope, places, block).float()
    angles = angles[:, None] if angles.dim() == 3 else angles
    halves = isinstance(rope, RotaryEmbeddingMRope) or getattr(rope, "rotate_half", False)
    angles = torch.cat((angles, angles), dim=-1) if halves else angles.repeat_interleave(2, dim=-1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
