"""Write a program, and check that it computes the same logits as its network."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ltmsearch.errors import ExportError
from ltmsearch.io.files import write_atomic

TOLERANCE = 1e-4
"""Largest allowed difference of a logit, times the largest absolute logit where that exceeds 1."""
BATCHES = (1, 3)
"""Batch sizes of the check."""
POOL, NOISE = 8, 1e-5
"""Random images to choose the check images from, and the amplitude of the noise that shows how steady they are."""


Program = Callable[[Tensor], Tensor]
"""(B, channels, height, width) images to (B, classes) logits."""


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One exported file and the result of its check."""

    file: Path
    bytes: int
    check: str
    """Result of reading the file back."""
    difference: float | None = None
    """Largest absolute difference between its logits and the network's; None for files without weights, and in int8."""
    opset: int | None = None
    """Version of the ONNX operators; None for other files."""
    nodes: int | None = None
    """Operations of a program; None for other files."""
    images: int | None = None
    """Labelled images on which a file in int8 was compared with that in float32; None for other files, as the rest."""
    agreement: float | None = None
    """Share of these images, in percent, for which both give the same class."""
    agreement_se: float | None = None
    """Its standard error, in points."""
    top1_difference: float | None = None
    """Top-1 of the file in int8 less that of the one in float32, in points."""
    top1_difference_se: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {**asdict(self), "file": str(self.file)}


def write_checked(
    path: Path, net: nn.Module, save: Callable[[Path], Program], *, img_size: int, runtime: str, **about: Any
) -> ExportedFile:
    """Write a program by `save`, which returns it as read back, and check it before it replaces an older file.

    `runtime` is the package that runs it; `about`: further fields of the result.
    """
    differences: list[float] = []

    def write(draft: Path) -> None:
        differences.append(check_program(net, save(draft), img_size=img_size, runtime=runtime))

    write_atomic(path, write)
    (difference,) = differences
    check = (
        f"{runtime} {version(runtime)} agrees: largest difference {difference:.1e} "
        f"at batch {' and '.join(map(str, BATCHES))}"
    )
    return ExportedFile(file=path, bytes=path.stat().st_size, check=check, difference=difference, **about)


def check_program(net: nn.Module, run: Program, *, img_size: int, runtime: str) -> float:
    """Compare a program with its network, in evaluation mode on the CPU: the largest absolute difference of a logit.

    Where a token is equally close to two merged tokens, rounding decides which of them a hard merge chooses, and two
    correct programs differ. The check therefore uses images whose logits change least under a little noise.

    Raises:
        ExportError: If the logits differ by more than the tolerance.
    """
    images, sensitivity = steady_images(net, img_size)
    difference, largest = 0.0, 1.0
    with torch.inference_mode():
        for batch in images.split(BATCHES):
            expected, got = net(batch), run(batch)
            if got.shape != expected.shape or not torch.isfinite(got).all():
                raise ExportError(f"{runtime} gives logits of another shape, or not finite, at batch {len(batch)}")
            difference = max(difference, float((got - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    tolerance = TOLERANCE * largest
    if difference > tolerance:
        message = f"{runtime} must agree with the network up to {tolerance:.1e}, but differs by {difference:.1e}"
        if sensitivity > tolerance:
            message += f"; noise of {NOISE:g} in the images changes the network's own logits by {sensitivity:.1e}, "
            message += "because its merges are close to ties"
        raise ExportError(message)
    return difference


@torch.inference_mode()
def steady_images(net: nn.Module, img_size: int) -> tuple[Tensor, float]:
    """Choose the seeded random images whose logits change least under noise.

    Returns:
        (sum of `BATCHES`, channels, img_size, img_size) images and the largest change of a logit.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(POOL, *image_shape(net, img_size), generator=generator)
    noise = NOISE * torch.randn(images.shape, generator=generator)
    logits = net(images)
    # Both signs: next to a tie, one of them crosses it.
    change = torch.stack([(net(images + n) - logits).abs().amax(dim=1) for n in (noise, -noise)]).amax(dim=0)
    steady = change.argsort()[: sum(BATCHES)]
    return images[steady], float(change[steady].max())


def image_shape(net: nn.Module, img_size: int) -> tuple[int, int, int]:
    """Return (channels, rows, columns) of one image."""
    return cast(int, net.in_chans), img_size, img_size
