"""Training on a CPU: operations for which torch chooses a kernel that is slow or faulty, computed by another one.

As found with torch 2.14 (oneDNN 3.12) on a Xeon with AMX; nothing else changes, and nothing without gradients. Every
operation costs a microsecond more. Activation checkpointing computes its part again outside of the mode: enter it
there too.

* Attention and convolutions in groups run in fp32 where autocast would take bf16: their kernels in bf16 are faster
  forward, but so slow backward that a training step takes longer (benchmarks/cpu_kernels.py).
* 1×1 convolutions of stride 2 of few channels, such as in FastViT's stem, drop the pixels they skip beforehand: the
  gradient of their weights is written beyond the memory it has (https://github.com/uxlfoundation/oneDNN/issues/6035).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CHANNEL_BLOCK = 16
"""Channels from which on the kernel of strided 1×1 convolutions has enough memory."""


class CpuKernels(TorchFunctionMode):
    """Computes these operations by other kernels inside a `with` block, where gradients are wanted."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _REPLACED and _wants_gradients((*args, *kwargs.values())):
            return _REPLACED[func](*args, **kwargs)
        return func(*args, **kwargs)


def _wants_gradients(values: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """`torch.nn.functional.conv2d`, whose arguments are meant."""
    strides, unpadded = _pair(stride), padding == "valid" if isinstance(padding, str) else not any(_pair(padding))
    if groups > 1:
        return _in_fp32(F.conv2d, input, weight, bias, stride, padding, dilation, groups)
    if weight.shape[2:] == (1, 1) and weight.shape[1] < CHANNEL_BLOCK and max(strides) > 1 and unpadded:
        return F.conv2d(input[..., :: strides[0], :: strides[1]], weight, bias)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: Any) -> tuple[int, int]:
    """A number, or one or two in a sequence, as (rows, columns)."""
    rows, *columns = (value,) if isinstance(value, int) else value
    return rows, columns[0] if columns else rows


def _attention(*args: Any, **kwargs: Any) -> Any:
    return _in_fp32(F.scaled_dot_product_attention, *args, **kwargs)


def _in_fp32(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in fp32 where autocast would call it in bf16, and return bf16 as then."""
    bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    values = (*args, *kwargs.values())
    if not bf16 or any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in values):
        return func(*args, **kwargs)
    with torch.autocast("cpu", enabled=False):
        out = func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
    return out.bfloat16()


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


_REPLACED: dict[Any, Callable[..., Any]] = {F.conv2d: _conv2d, F.scaled_dot_product_attention: _attention}
