"""Constant tensors: created once per device, and again inside each exported program."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def constant_tensors(make: Callable[..., Any], *args: Hashable, device: torch.device) -> tuple[Tensor, ...]:
    """The arrays that `make(*args)` returns, as read-only int64 and float32 tensors."""
    # An exported program contains its constants: cached tensors would become inputs.
    return (_to_tensors if torch.compiler.is_exporting() else _cached)(make, args, device)


def row_starts(batch: int, groups: int, count: int, device: torch.device) -> Tensor:
    """(B, G, 1) int64: the first of P consecutive rows of each image and group."""
    return constant_tensors(_row_starts, batch, groups, count, device=device)[0]


def _row_starts(batch: int, groups: int, count: int) -> np.ndarray:
    return np.arange(batch * groups).reshape(batch, groups, 1) * count


def _to_tensors(make: Callable[..., Any], args: tuple[Hashable, ...], device: torch.device) -> tuple[Tensor, ...]:
    made = make(*args)
    tables = made if isinstance(made, tuple) else (made,)
    # Outside of inference mode: a tensor created inside could not be used in training later.
    with torch.inference_mode(False):
        return tuple(
            torch.tensor(table, dtype=torch.int64 if table.dtype.kind == "i" else torch.float32, device=device)
            for table in tables
        )


# `torch.compile` must not trace NumPy: neither in a frame of its own, after a graph break, …
_cached_tensors = lru_cache(maxsize=2048)(torch.compiler.disable(_to_tensors))


@torch.compiler.assume_constant_result  # … nor as a part of another
def _cached(make: Callable[..., Any], args: tuple[Hashable, ...], device: torch.device) -> tuple[Tensor, ...]:
    return _cached_tensors(make, args, device)
