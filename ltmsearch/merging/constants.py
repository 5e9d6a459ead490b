"""Constant tensors: created once per device, and again inside each exported program."""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache, cached
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

CACHED_BYTES = 256 << 20
"""Size of all cached tensors, at most: those that were not used for longest are dropped."""


def exporting() -> bool:
    """Whether a program for another runtime is being written: by `torch.export`, or as ONNX by either exporter."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def constant_tensors(make: Callable[..., Any], *args: Hashable, device: torch.device) -> tuple[Tensor, ...]:
    """The arrays that `make(*args)` returns, as read-only int64 and float32 tensors."""
    # An exported program contains its constants: cached tensors would become inputs. A traced one is traced twice, and
    # must not find in the cache the second time what it made the first time.
    traced = exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return (_to_tensors if traced else _cached)(make, args, device)


@torch.compiler.assume_constant_result  # `torch.compile` and strict export must not trace NumPy
def _to_tensors(make: Callable[..., Any], args: tuple[Hashable, ...], device: torch.device) -> tuple[Tensor, ...]:
    made = make(*args)
    tables = made if isinstance(made, tuple) else (made,)
    # Outside of inference mode: a tensor created inside could not be used in training later.
    with torch.inference_mode(False):
        return tuple(_to_tensor(table, device) for table in tables)


def _to_tensor(table: np.ndarray, device: torch.device) -> Tensor:
    kind = np.int64 if table.dtype.kind == "i" else np.float32
    # Not `torch.tensor`, which tracing would record as an operation.
    tensor = torch.from_numpy(np.array(table, kind))
    return tensor if device.type == "cpu" else tensor.to(device)


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


_cache: LRUCache[Any, tuple[Tensor, ...]] = LRUCache(CACHED_BYTES, getsizeof=_bytes)
_remembered = cached(_cache, lock=Lock())(_to_tensors)


@torch.compiler.assume_constant_result
def _cached(make: Callable[..., Any], args: tuple[Hashable, ...], device: torch.device) -> tuple[Tensor, ...]:
    # Where a mode intercepts all operations, tensors are its own: fake ones, for example.
    return (_to_tensors if is_in_torch_dispatch_mode() else _remembered)(make, args, device)
