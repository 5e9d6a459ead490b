"""Tables of numbers as tensors: made once per device, and anew where an exporter is watching."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensors(make: Callable[..., Any], *args: Hashable, device: torch.device) -> tuple[Tensor, ...]:
    """What `make(*args)` returns, one array or several, as int64 and float32 tensors that nobody may write to."""
    # A program that is exported holds its tables as numbers of its own: to it, kept tensors would be inputs.
    return (_to_tensors if torch.compiler.is_exporting() else _known)(make, args, device)


def row_starts(batch: int, groups: int, count: int, device: torch.device) -> Tensor:
    """(B, G, 1) int64: the row of the first of P tokens of each image and group, all P one below the other."""
    return tensors(_row_starts, batch, groups, count, device=device)[0]


def _row_starts(batch: int, groups: int, count: int) -> np.ndarray:
    return np.arange(batch * groups).reshape(batch, groups, 1) * count


def _to_tensors(make: Callable[..., Any], args: tuple[Hashable, ...], device: torch.device) -> tuple[Tensor, ...]:
    made = make(*args)
    tables = made if isinstance(made, tuple) else (made,)
    # Made outside inference mode: a tensor born inside could never take part in training later.
    with torch.inference_mode(False):
        return tuple(
            torch.tensor(table, dtype=torch.int64 if table.dtype.kind == "i" else torch.float32, device=device)
            for table in tables
        )


# Numpy's work is not for `torch.compile` to trace: neither from a frame of its own, behind a break in the graph, …
_kept_tensors = lru_cache(maxsize=2048)(torch.compiler.disable(_to_tensors))


@torch.compiler.assume_constant_result  # … nor as a part of another
def _known(make: Callable[..., Any], args: tuple[Hashable, ...], device: torch.device) -> tuple[Tensor, ...]:
    return _kept_tensors(make, args, device)
