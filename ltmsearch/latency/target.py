"""Conditions of a latency measurement: device, runtime and batches. A latency is valid for one target only."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ltmsearch.config.names import Engine, MemoryFormat, NumberFormat, Readout
from ltmsearch.config.network import (
    InChans,
    ModelKwargs,
    NetworkKeys,
    ReadoutKey,
    Registers,
    check_readout,
    network_keys,
)
from ltmsearch.engine.runtime import find_device, has_bf16
from ltmsearch.errors import InputError, check_choice
from ltmsearch.io.yaml_models import check
from ltmsearch.programs import require_onnx


class LatencyTarget(BaseModel):
    """A device, the runtime on it, and the batches."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    device: str
    """torch name of the device: `cpu`, `cuda` or `cuda:1`, …"""
    hardware: str
    """Model name of the device."""
    threads: int | None = Field(ge=1)
    """Threads on a CPU; None on a GPU."""
    runtime: Engine
    """Runtime of the network."""
    dtype: NumberFormat
    """Number format of weights and images; merging operators always compute their masks in fp32."""
    memory_format: MemoryFormat
    """Memory layout of images and convolution weights."""
    batch_size: int = Field(ge=1)
    """Images per forward pass."""
    img_size: int = Field(ge=32, le=2048)
    """Side of the images, in pixels."""
    num_classes: int = Field(ge=1)
    """Width of the classifier."""
    in_chans: InChans = 3
    model_kwargs: ModelKwargs = {}
    registers: Registers = 0
    readout: ReadoutKey = "timm"
    versions: dict[str, str]
    """Versions of the libraries that affect latency."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        check_readout(self.readout, self.registers)
        return self

    @classmethod
    def local(
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
        in_chans: int = 3,
        model_kwargs: Mapping[str, Any] | None = None,
        registers: int = 0,
        readout: Readout = "timm",
    ) -> Self:
        """Return a target on this machine; arguments are the fields of the same name.

        Args:
            device: Also `auto`.
            threads: None: one on a CPU, which gives the most stable latencies.

        Raises:
            InputError: If this machine or the runtime does not support it.
        """
        for name, value, choices in (
            ("runtime", runtime, Engine),
            ("dtype", dtype, NumberFormat),
            ("memory format", memory_format, MemoryFormat),
        ):
            check_choice(f"the {name} of a latency target", value, choices)
        found = find_device(device)
        _refuse_unsupported(found, runtime, dtype, threads)
        libraries = ["ltmsearch", "torch", "timm", *(["onnxruntime"] if runtime == "onnxruntime" else [])]
        content: dict[str, Any] = {
            "device": str(found),
            "hardware": hardware_name(found),
            "threads": (threads or 1) if found.type == "cpu" else None,
            "runtime": runtime,
            "dtype": dtype,
            "memory_format": memory_format if runtime != "onnxruntime" else "contiguous",
            "batch_size": batch_size,
            "img_size": img_size,
            "num_classes": num_classes,
            "in_chans": in_chans,
            "model_kwargs": model_kwargs or {},
            "registers": registers,
            "readout": readout,
            "versions": {library: version(library) for library in libraries},
        }
        return check(cls, content, "latency")

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of `create_backbone` for the network besides its image size."""
        return {"num_classes": self.num_classes, **NetworkKeys(**network_keys(self)).arguments()}

    def differences(self, other: "LatencyTarget") -> list[str]:
        """List the fields that differ, each with both values."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{name} {mine[name]!r} and {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]

    def differences_to_local(self) -> list[str]:
        """List the differences to this machine in its current state, or why it does not support the target."""
        options = self.model_dump(exclude={"hardware", "versions"})
        try:
            return self.differences(LatencyTarget.local(**options))
        except InputError as error:
            return [str(error)]

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items() if name != "ltmsearch")
        return (
            f"{self.hardware}{threads}; {self.runtime} ({versions}), {self.dtype}, "
            f"{self.memory_format.replace('_', ' ')}; batch {self.batch_size} at {self.img_size} px"
        )


def _refuse_unsupported(device: torch.device, runtime: str, dtype: str, threads: int | None) -> None:
    on_cpu, cpus = device.type == "cpu", os.cpu_count() or 1
    if threads is not None and not (on_cpu and 1 <= threads <= cpus):
        rule = f"from 1 to {cpus}, the number of CPUs of this machine" if on_cpu else "omitted on a GPU"
        raise InputError(f"the threads of a latency target must be {rule}, but got {threads}")
    if runtime == "onnxruntime":
        require_onnx("the runtime onnxruntime")
        if not on_cpu or dtype != "fp32":
            raise InputError(f"onnxruntime needs fp32 on the CPU, but got {dtype} on {device}")
    if on_cpu and dtype == "fp16":
        raise InputError("fp16 needs a GPU, since most operations lack it on a CPU; use fp32 or bf16")
    if dtype == "bf16" and not has_bf16(device):
        raise InputError(f"bf16 needs bf16 instructions, which {device} lacks; use fp32, which is many times faster")


def hardware_name(device: torch.device) -> str:
    """Return the model name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
