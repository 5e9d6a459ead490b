"""Whether a program computes what the net does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ltmsearch.errors import ExportError

TOLERANCE = 1e-4
"""Largest difference of logits that is put down to the order of sums; times the largest logit where that exceeds 1."""
BATCHES = (1, 3)
"""Sizes of the batches that a program is checked on."""
POOL, NOISE = 8, 1e-5
"""Steady images are taken from so many, by how far noise of this size moves their logits."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near a program comes to the net."""

    difference: float
    """Largest absolute difference between their logits."""
    tolerance: float
    """What it may be: `TOLERANCE` · max(1, largest absolute logit)."""
    batch_sizes: tuple[int, ...] = BATCHES
    """The batches on which it was seen."""

    def __str__(self) -> str:
        return f"agrees: largest difference {self.difference:.1e} at batch {' and '.join(map(str, self.batch_sizes))}"


@dataclass(frozen=True, kw_only=True)
class ProgramCheck:
    """What was written, and how it was found to agree with the net."""

    path: Path
    """The file."""
    bytes: int
    """Its size."""
    runtime: str
    """What ran it, with its version."""
    opset: int | None
    """Version of ONNX's operators; None for a program of `torch.export`."""
    nodes: int
    """Operations in its graph."""
    agreement: Agreement
    """With the net."""

    def __str__(self) -> str:
        return f"{self.runtime} {self.agreement}"


def compare(net: nn.Module, run: Callable[[Tensor], Tensor], *, img_size: int, runtime: str) -> Agreement:
    """Run a program and the net it was made of on the same random images.

    Where a token belongs to two merged tokens alike, rounding decides which one a hard merge takes, and two right
    programs differ. So the images are those, out of a few, whose logits move least when a little noise is added.

    Args:
        net: On the CPU, in evaluation mode.
        run: The program.
        img_size: Side of the images, in pixels.
        runtime: What runs it, for messages.

    Raises:
        ExportError: If they differ by more than the tolerance.
    """
    images, moved = steady_images(net, img_size)
    difference, largest = 0.0, 1.0
    with torch.inference_mode():
        for batch in images.split(BATCHES):
            wanted, got = net(batch), run(batch)
            if got.shape != wanted.shape or not torch.isfinite(got).all():
                raise ExportError(f"{runtime} gives logits of another shape, or not finite, at batch {len(batch)}")
            difference = max(difference, float((got - wanted).abs().max()))
            largest = max(largest, float(wanted.abs().max()))
    agreement = Agreement(difference=difference, tolerance=TOLERANCE * largest)
    if difference <= agreement.tolerance:
        return agreement
    told = f"{runtime} must agree with the net up to {agreement.tolerance:.1e}, but differs by {difference:.1e}"
    if moved > agreement.tolerance:
        told += f"; but noise of {NOISE:g} in the images moves the net itself by {moved:.1e}: its merges are near ties"
    raise ExportError(told)


@torch.inference_mode()
def steady_images(net: nn.Module, img_size: int) -> tuple[Tensor, float]:
    """Seeded random images, as many as all batches hold, and how far their logits move under noise.

    Returns:
        (sum of `BATCHES`, channels, img_size, img_size) images and the largest change of a logit.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(POOL, *image_shape(net, img_size), generator=generator)
    noise = NOISE * torch.randn(images.shape, generator=generator)
    logits = net(images)
    # Both ways: beside a tie, one of them leads across.
    moved = torch.stack([(net(images + way) - logits).abs().amax(dim=1) for way in (noise, -noise)]).amax(dim=0)
    steady = moved.argsort()[: sum(BATCHES)]
    return images[steady], float(moved[steady].max())


def image_shape(net: nn.Module, img_size: int) -> tuple[int, int, int]:
    """(channels, rows, columns) of one image."""
    return cast(int, net.in_chans), img_size, img_size
