"""Distributed training: the process group of torchrun, or a single process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ltmsearch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Rank of this process in its group, and collective operations."""

    rank: int = 0
    world: int = 1
    """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """Argument of `ImageData` that gives each process its own images."""
        return self.rank, self.world

    def all_reduce_(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def broadcast_(self, values: Tensor) -> Tensor:
        """Overwrite a tensor with that of the main process."""
        if self.world > 1:
            dist.broadcast(values, src=0)
        return values

    def gather_interleaved(self, rows: Tensor) -> Tensor:
        """Gather (n, …) rows of every process, equally many, as (n · world, …), in the order of a single process."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def process_group(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the process group of torchrun inside the `with` block; without torchrun, a single process.

    Yields:
        The ranks, and the name of this process's device.

    Raises:
        InputError: If a machine has fewer CUDA devices than processes, or `device` names a single one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or not dist.is_torchelastic_launched():
        yield Ranks(), device
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        local = int(os.environ["LOCAL_RANK"])
        if device.startswith("cuda:"):
            raise InputError(f"`--device` must be cuda or auto if torchrun starts {world} processes, but got {device}")
        if local >= torch.cuda.device_count():
            raise InputError(
                f"each process needs its own CUDA device, but got {torch.cuda.device_count()} for process {local}: "
                "start fewer processes, or give --device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks(rank=dist.get_rank(), world=world), device
    finally:
        dist.destroy_process_group()
