"""Processes that train one network together: started by torchrun, or one alone."""

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
    """This process's place among those that work together; what they exchange."""

    rank: int = 0
    """Number of this process, from 0."""
    world: int = 1
    """How many there are."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """What `ImageData` takes to give each process its own images."""
        return self.rank, self.world

    def all_reduce_(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def broadcast_(self, values: Tensor) -> Tensor:
        """Overwrite a tensor by that of the main process."""
        if self.world > 1:
            dist.broadcast(values, src=0)
        return values

    def gather_interleaved(self, rows: Tensor) -> Tensor:
        """(n, …) rows of every process to (n · world, …), in turns: the order in which one process would have them.

        Every process must have as many rows.
        """
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def barrier(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def process_group(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that torchrun started, and leave them at the end; alone without torchrun.

    Args:
        device: What the user asked for. Of CUDA devices every process of a machine takes its own.

    Yields:
        The ranks, and the name of this process's device.

    Raises:
        InputError: If a machine has fewer CUDA devices than processes, or one device is named for all.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or not dist.is_torchelastic_launched():
        yield Ranks(), device
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        local = int(os.environ["LOCAL_RANK"])
        if device.startswith("cuda:"):
            raise InputError(f"--device must be cuda or auto where torchrun starts {world} processes, but got {device}")
        if local >= torch.cuda.device_count():
            raise InputError(
                f"each process needs a CUDA device of its own, but there are {torch.cuda.device_count()} for process "
                f"{local}; start fewer, or give --device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks(rank=dist.get_rank(), world=world), device
    finally:
        dist.destroy_process_group()
