"""The record of a linear probe: plain data, in a module that imports nothing heavy, since reports read it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Percent = Annotated[float, Field(ge=0, le=100)]


class ProbeRecord(BaseModel):
    """Images, time and accuracy of a linear probe: see `engine.linear_probe`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    """Version of this format."""
    images: int
    """Training images that were fitted to."""
    classes: int
    """Classes among their labels."""
    img_size: int
    """Side of the images in pixels."""
    seconds: float
    """Wall time of forward passes and fit."""
    converged: bool
    """Whether the regression ended before its limit of iterations."""
    train_top1: Percent
    """Top-1 on the training images."""
    top1: Percent
    """Top-1 of the plain network on validation images."""
    top1_se: float
    """Its standard error, in points."""
    val_images: int
    """Number of those images."""

    def __str__(self) -> str:
        limit = "" if self.converged else "; the fit stopped at its limit of iterations"
        return (
            f"classifier fitted to the features of {self.images:,} training images at {self.img_size} px in "
            f"{self.seconds:.0f} s: top-1 {self.train_top1:.1f} % on them, {self.top1:.1f} ± {self.top1_se:.1f} % of "
            f"the plain network on {self.val_images:,} validation images{limit}"
        )
