"""How images become the input of a network: names and options, in a module that imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from ltmsearch.errors import check_choice

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
"""Pillow's filters for resizing, in timm's names."""
CropMode = Literal["center", "squash", "border"]
"""timm's ways to fit an image to the square that evaluation sees: see `evaluation_transform`."""

IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Input channels of a network → Pillow's mode in which images are read; timm has the first two too."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options for the images of a network; None: timm's for that network."""

    in_chans: int = 3
    """Channels, one of `IMAGE_MODES`."""
    mean: tuple[float, ...] | None = None
    """Of each channel, on a scale from 0 to 1; one number is for all channels."""
    std: tuple[float, ...] | None = None
    """See `mean`."""
    interpolation: Interpolation | None = None
    """Filter for resizing."""
    crop_pct: float | None = None
    """Share of the resized image that evaluation sees, by its side, in (0, 1]."""
    crop_mode: CropMode | None = None

    def __post_init__(self) -> None:
        for name, choices in (("interpolation", Interpolation), ("crop_mode", CropMode)):
            if getattr(self, name) is not None:
                check_choice(f"`{name}`", getattr(self, name), choices)
