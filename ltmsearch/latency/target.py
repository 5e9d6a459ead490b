"""Where and how latency is measured. A latency holds for one target, and for nothing else."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field

from ltmsearch.config.names import Engine, MemoryFormat, NumberFormat
from ltmsearch.engine.runtime import find_device, has_bf16
from ltmsearch.errors import InputError, not_among
from ltmsearch.io.yaml_models import check
from ltmsearch.programs import require_onnx


class LatencyTarget(BaseModel):
    """A device, what runs the net on it, and on what batches."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str
    """torch's name of the device: `cpu`, `cuda` or `cuda:1`, …"""
    hardware: str
    """What the device calls itself."""
    threads: int | None = Field(ge=1)
    """Threads on a CPU; None on a GPU."""
    runtime: Engine
    """What runs the net."""
    dtype: NumberFormat
    """Number format of weights and images; merging operators compute their masks in fp32 in any."""
    memory_format: MemoryFormat
    """How images and convolution weights lie in memory."""
    batch_size: int = Field(ge=1)
    """Images per forward pass."""
    img_size: int = Field(ge=32, le=2048)
    """Side of the images, in pixels."""
    num_classes: int = Field(ge=1)
    """Width of the classifier."""
    versions: dict[str, str]
    """Of the libraries that latency depends on."""

    @classmethod
    def here(
        cls,
        *,
        device: str = "auto",
        runtime: str = "torch",
        dtype: str = "fp32",
        memory_format: str = "channels_last",
        batch_size: int = 1,
        threads: int | None = None,
        img_size: int = 224,
        num_classes: int = 1000,
    ) -> Self:
        """The target on this machine.

        Args:
            device: `auto`, `cpu`, `cuda`, `cuda:1`, …
            runtime: See `Engine`.
            dtype: `fp32`, `bf16` or `fp16`.
            memory_format: `channels_last` or `contiguous`.
            batch_size: Images per forward pass.
            threads: On a CPU; None: one, which gives the steadiest figures.
            img_size: Side of the images, in pixels.
            num_classes: Width of the classifier.

        Raises:
            InputError: If this machine or the runtime cannot do that.
        """
        for name, value, known in (
            ("runtime", runtime, get_args(Engine)),
            ("dtype", dtype, get_args(NumberFormat)),
            ("memory format", memory_format, get_args(MemoryFormat)),
        ):
            if value not in known:
                raise not_among(f"the {name} of a latency", value, known)
        found = find_device(device)
        on_cpu = found.type == "cpu"
        if threads is not None and not (on_cpu and 1 <= threads <= (os.cpu_count() or 1)):
            rule = f"from 1 to {os.cpu_count()}, the CPUs of this machine" if on_cpu else "left out on a GPU"
            raise InputError(f"the threads of a latency must be {rule}, but got {threads}")
        if runtime == "onnxruntime":
            require_onnx()
            if not on_cpu or dtype != "fp32":
                raise InputError(f"onnxruntime is measured in fp32 on the CPU, but got {dtype} on {found}")
        if on_cpu and dtype == "fp16":
            raise InputError("fp16 is not measured on a CPU, where most operations lack it; fp32 or bf16 would do")
        if dtype == "bf16" and not has_bf16(found):
            raise InputError(f"{found} has no bf16 instructions: emulated, it is many times slower; fp32 would do")
        libraries = ["ltmsearch", "torch", "timm", *(["onnxruntime"] if runtime == "onnxruntime" else [])]
        content: dict[str, Any] = {
            "device": str(found),
            "hardware": hardware_name(found),
            "threads": (threads or 1) if on_cpu else None,
            "runtime": runtime,
            "dtype": dtype,
            "memory_format": memory_format if runtime != "onnxruntime" else "contiguous",
            "batch_size": batch_size,
            "img_size": img_size,
            "num_classes": num_classes,
            "versions": {library: version(library) for library in libraries},
        }
        return check(cls, content, "latency")

    def differences(self, other: "LatencyTarget") -> list[str]:
        """In what this target differs from another, as phrases: what it has and what that has."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{name} {mine[name]!r} and {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items() if name != "ltmsearch")
        return (
            f"{self.hardware}{threads}; {self.runtime} ({versions}), {self.dtype}, "
            f"{self.memory_format.replace('_', ' ')}; batch {self.batch_size} at {self.img_size} px"
        )


def hardware_name(device: torch.device) -> str:
    """What a device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def target_file_name(target: LatencyTarget) -> str:
    """A short name for files, readable but not unique."""
    device = target.device.replace(":", "")
    return f"{target.img_size}px-b{target.batch_size}-{target.runtime}-{target.dtype}-{device}"
