"""Device, number format and memory layout in which networks run."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ltmsearch.engine.cpu_kernels import CpuKernels
from ltmsearch.errors import InputError, check_choice

AmpDtype = Literal["bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Device and number format; images and convolution weights are stored channels last."""

    device: torch.device
    dtype: torch.dtype
    """Number format of matrix products and convolutions (torch autocast); float16 needs loss scaling."""
    reason: str
    """Reason for this precision, in one phrase."""

    @property
    def precision(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return _SHORT[self.dtype]

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and memory layout in place; on a CPU, also `keep_freed_memory`."""
        if self.device.type == "cpu":
            keep_freed_memory()
        return model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) images on the device and in the memory layout."""
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # only then is the copy asynchronous
        return images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The number format of forward passes; with gradients on a CPU, also the kernels of `CpuKernels`."""
        kernels = CpuKernels() if self.device.type == "cpu" and torch.is_grad_enabled() else nullcontext()
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32), kernels:
            yield

    def __str__(self) -> str:
        autocast = "" if self.dtype == torch.float32 else " autocast"
        return f"{self.device}, {self.precision}{autocast} ({self.reason}), channels last"


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for later tensors, for the whole process; False for other C libraries.

    By default glibc returns every block of 32 MiB and more to the system, which zeroes it page by page when it is
    allocated again. For activations that takes longer than many layers: 50 ms against 9 for an addition with 50 MB of
    results.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def free_memory(device: torch.device) -> None:
    """Free unreferenced memory after an out-of-memory error."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait for all work that was queued on a GPU, as before the time is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names and numbers of mallopt(3)

_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: If torch does not know the name or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")  # e.g. mps, which lacks the float64 of scores
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].partition(" (")[0]
        if reason.startswith("Expected one of"):  # followed by a list of twenty
            reason = "torch has no such device"
        raise InputError(f"`--device` must be auto, cpu or cuda, but got {name!r} ({reason})") from error
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware supports bfloat16; emulated, it is many times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("arm_bf16"))


def amp_runtime(device: torch.device, *, amp: bool, dtype: AmpDtype) -> Runtime:
    """The number format of a full training; on a CPU without bf16 instructions fp32 replaces bf16.

    Raises:
        InputError: If a GPU lacks bf16.
    """
    check_choice("the dtype of mixed precision", dtype, AmpDtype)
    chosen, reason = getattr(torch, dtype) if amp else torch.float32, "as requested"
    if chosen == torch.bfloat16 and not has_bf16(device):
        if device.type != "cpu":
            raise InputError(f"{device} does not support bfloat16: give --amp-dtype float16 or --no-amp")
        chosen, reason = torch.float32, "no bf16 instructions"
    return Runtime(device=device, dtype=chosen, reason=reason)
