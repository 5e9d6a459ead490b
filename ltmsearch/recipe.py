"""Recipes: a schedule and everything needed to train its subnet, as YAML with the keys of timm's training script."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ltmsearch.errors import InputError
from ltmsearch.files import write_atomic
from ltmsearch.schedule import Form, MergeSchedule
from ltmsearch.yamlfile import load, read_yaml, to_yaml

SCHEMA = 1

HEADER = """Training recipe of a merge schedule found by ltmsearch.
The network: timm.create_model(model, keep_ratios=schedule, operator=operator, forms=forms,
  num_classes=num_classes, img_size=img_size)
after `import ltmsearch`. Training keys have the names and meanings of timm's training script."""


class Recipe(BaseModel):
    """A subnet and how to train it. The defaults are those of the published LTM-MobileViT training.

    Raises:
        InputError: Through `load_recipe`, for a name or value that does not fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA
    """Version of this format."""

    model: str
    """timm name of the network, `ltm_<backbone>`."""
    operator: str
    """Merging operator."""
    schedule: dict[str, float]
    """Layer name → keep ratio in (0, 1]."""
    forms: dict[str, Form] = Field(default_factory=dict)
    """Layer name → form of its merge, where it is not the operator's first."""
    img_size: int
    """Side of the images, in pixels."""
    num_classes: int
    """Width of the classifier."""

    epochs: int = Field(default=300, ge=1)
    batch_size: int = Field(default=256, ge=1)
    """Images per step over all devices: 4 × 64 in the published training."""
    opt: str = "adamw"
    lr: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    sched: str = "cosine"
    min_lr: float = Field(default=2e-5, ge=0)
    warmup_epochs: int = Field(default=5, ge=0)
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    aa: str = "rand-m9-mstd0.5"
    reprob: float = Field(default=0.2, ge=0, le=1)
    remode: Literal["pixel", "const", "rand"] = "pixel"
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    model_ema: bool = True
    model_ema_decay: float = Field(default=0.9995, ge=0, lt=1)
    amp: bool = True

    provenance: dict[str, Any] = Field(default_factory=dict)
    """Where the schedule comes from: study, trial, seed, versions, counted and measured costs, proxy score."""

    @property
    def merge_schedule(self) -> MergeSchedule:
        """The schedule as an object."""
        return MergeSchedule(keep_ratios=self.schedule, operator=self.operator, forms=self.forms)

    def model_kwargs(self) -> dict[str, Any]:
        """What `timm.create_model(recipe.model, ...)` takes beside the name."""
        return {
            "keep_ratios": self.schedule,
            "operator": self.operator,
            "forms": self.forms,
            "num_classes": self.num_classes,
            "img_size": self.img_size,
        }

    def save(self, path: Path) -> Path:
        """Write as YAML, atomically."""
        return write_atomic(path, to_yaml(self.model_dump(), HEADER))


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: If the file is missing, is no recipe, or is of a version that this ltmsearch does not read.
    """
    path = Path(path)
    version = read_yaml(path).get("schema_version")
    if version != SCHEMA:  # told before anything that another version may well hold
        raise InputError(f"{path}: schema_version must be {SCHEMA} for this ltmsearch, but got {version!r}")
    recipe = load(Recipe, path)
    try:
        MergeSchedule(keep_ratios=recipe.schedule, operator=recipe.operator)  # the ratios' range
    except InputError as error:
        raise InputError(f"{path}: schedule: {error}") from None
    return recipe


def library_versions() -> Mapping[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    names = ("ltmsearch", "torch", "timm", "optuna", "fvcore", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
