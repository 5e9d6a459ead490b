"""The place prior of a merge: how the cells of an h×w grid overlap those of a p×q grid.

Shapes: N = h·w tokens in, P = p·q tokens out.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ltmsearch.grid import Grid

SPREAD = 0.02
"""δ: the share of a token's mass that the prior spreads over the 3×3 target cells around it, so that content can
move the token to a cell that its own area does not touch."""


def _side_overlap(length: int, target: int) -> np.ndarray:
    """(length, target) share of each of `length` equal segments that lies in each of `target` equal segments."""
    edges_in = np.arange(length + 1) / length
    edges_out = np.arange(target + 1) / target
    low = np.maximum(edges_in[:-1, None], edges_out[None, :-1])
    high = np.minimum(edges_in[1:, None], edges_out[None, 1:])
    share = np.clip(high - low, 0.0, None) * length
    share[share < 1e-9] = 0.0  # touching edges, up to rounding
    return share / share.sum(axis=1, keepdims=True)


def _side_neighbours(overlap: np.ndarray) -> np.ndarray:
    """(length, target) indicator of the target segment nearest to each segment, and the ones beside it."""
    home = overlap.argmax(axis=1)
    return (np.abs(np.arange(overlap.shape[1])[None, :] - home[:, None]) <= 1).astype(float)


@lru_cache(maxsize=512)
def area_overlap(grid: Grid, target: Grid) -> np.ndarray:
    """The prior O: area overlap with a share `SPREAD` over the 3×3 cells around each token.

    Args:
        grid: (h, w) before the merge.
        target: (p, q) after it, p ≤ h and q ≤ w.

    Returns:
        (N, P) float64, read-only; rows sum to 1; zero outside the 3×3 target cells around a token.

    Raises:
        ValueError: If the target has more rows or columns than the grid.
    """
    if target[0] > grid[0] or target[1] > grid[1]:
        raise ValueError(f"`target` must fit into `grid`, but got {grid=} and {target=}.")
    rows, columns = (_side_overlap(length, short) for length, short in zip(grid, target, strict=True))
    area = np.kron(rows, columns)
    near = np.kron(_side_neighbours(rows), _side_neighbours(columns))
    prior = (1 - SPREAD) * area + SPREAD * near / near.sum(axis=1, keepdims=True)
    prior.setflags(write=False)
    return prior


def prior_matrix(grid: Grid, target: Grid, device: torch.device) -> Tensor:
    """`area_overlap` as an (N, P) float32 tensor on `device`; kept, unless a compiler or exporter is watching."""
    if torch.compiler.is_compiling():
        return _to_tensor(grid, target, device)
    return _kept_tensor(grid, target, device)


def _to_tensor(grid: Grid, target: Grid, device: torch.device) -> Tensor:
    # Made outside inference mode: a tensor born inside could never take part in training later.
    with torch.inference_mode(False):
        return torch.tensor(area_overlap(grid, target), dtype=torch.float32, device=device)


_kept_tensor = lru_cache(maxsize=512)(_to_tensor)
