"""Recipes: a schedule and everything needed to train its subnet, as YAML with the keys of timm's training script."""

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import write_atomic
from ltmsearch.io.yaml_models import check, load, read_yaml, to_yaml
from ltmsearch.schedules.schedule import MergeSchedule

SCHEMA = 1
PREFIX = "ltm_"
"""Of the timm names of networks that merge."""

NET = ("schema_version", "model", "schedule", "provenance")
"""Fields that describe the network and its origin. All others configure training and may be overridden for it."""

HEADER = """Training recipe of a merge schedule found by ltmsearch.
The network: timm.create_model(model, keep_ratios=schedule, operator=operator, forms=forms,
  num_classes=num_classes, img_size=img_size)
after `import ltmsearch`. Training keys have the names and meanings of timm's training script."""


class Recipe(BaseModel):
    """A subnet and how to train it. The defaults are those of the published LTM-MobileViT training.

    Raises:
        InputError: Through `load_recipe`, for a name or value that does not fit.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    schema_version: int = SCHEMA
    """Version of this format."""

    model: str
    """timm name of the network, `ltm_<backbone>`."""
    schedule: MergeSchedule
    """Keep ratios, operator and forms; in the file the keys `schedule`, `operator` and `forms`."""
    num_classes: int = Field(ge=2)
    """Width of the classifier."""

    img_size: int = Field(ge=32, le=2048)
    """Side of the images, in pixels."""

    epochs: int = Field(default=300, ge=1)
    """Passes over the training images."""
    train_steps_per_epoch: int | None = Field(default=None, ge=1)
    """Steps that count as one epoch; without it one pass over the training images."""
    batch_size: int = Field(default=256, ge=2)
    """Images per optimizer step, over all devices and accumulated parts (4 × 64 in the published training)."""
    grad_accum_steps: int = Field(default=1, ge=1)
    """Parts that a batch is computed in, one after another, to save memory."""
    opt: str = "adamw"
    """timm's name of the optimizer."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of weights only: not of biases, norms and what the merging operators exempt."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of optimizers that have one."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor on the learning rate from each group of layers to the one below it."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Limit on the gradient, in the sense of clip_mode."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """What clip_grad limits: the whole norm, each value, or each unit's norm relative to its weights'."""
    sched: Literal["cosine", "tanh", "step", "constant", "poly", "wsd", "rsqrt"] = "cosine"
    """timm's name of the learning-rate schedule."""
    sched_on_updates: bool = True
    """Change the learning rate with every step, not with every epoch."""
    min_lr: float = Field(default=2e-5, ge=0)
    """Learning rate at the end."""
    warmup_epochs: int = Field(default=5, ge=0)
    """Epochs in which the learning rate rises to its peak."""
    warmup_lr: float = Field(default=1e-5, ge=0)
    """Where it rises from."""
    cooldown_epochs: int = Field(default=0, ge=0)
    """Epochs at min_lr after the schedule's end."""
    decay_epochs: float = Field(default=90, gt=0)
    """Epochs between drops of a step schedule."""
    decay_rate: float = Field(default=0.1, gt=0)
    """Factor of each drop."""

    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing."""
    aa: str | None = "rand-m9-mstd0.5"
    """timm's automatic augmentation, e.g. rand-m9-mstd0.5 or augmix-m3."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that a random crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest aspect ratio of a random crop."""
    hflip: float = Field(default=0.5, ge=0, le=1)
    """Probability of mirroring."""
    color_jitter: float | None = Field(default=0.4, ge=0)
    """Strength of random brightness, contrast and saturation; aa takes its place where both are given."""
    reprob: float = Field(default=0.2, ge=0, le=1)
    """Probability of random erasing."""
    remode: Literal["pixel", "const", "rand"] = "pixel"
    """What is put in the place of what is erased."""
    recount: int = Field(default=1, ge=1)
    """Patches erased."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of mixup; 0 is off."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha of cutmix; 0 is off."""
    mixup_prob: float = Field(default=1.0, ge=0, le=1)
    """Probability of mixup or cutmix per batch."""
    mixup_switch_prob: float = Field(default=0.5, ge=0, le=1)
    """Probability of cutmix where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Whether batches, pairs of images or images are mixed each in their own way."""
    mixup_off_epoch: int = Field(default=0, ge=0)
    """Epoch from which on nothing is mixed; 0: none."""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """Stochastic depth; without it the network's own."""

    model_ema: bool = True
    """Average the weights over the steps; the average is what is deployed where it scores better."""
    model_ema_decay: float = Field(default=0.9995, ge=0, lt=1)
    """Share of the average that each step keeps."""
    model_ema_warmup: bool = True
    """Keep less in the first steps, or a short training would end with an average of its start."""
    amp: bool = True
    """Mixed precision, where the device has it."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """Its number format; float16 scales the loss."""
    sync_bn: bool = False
    """BatchNorm statistics over all devices (not on CPUs)."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Of everything random."""

    ib_weight: float = Field(default=0.1, ge=0)
    """Weight of the information-bottleneck loss; 0 is off."""
    ib_warmup_ratio: float = Field(default=0.3, ge=0, le=1)
    """Share of the epochs before it sets in."""
    ib_beta: float = Field(default=1.0, gt=0)
    """How sharply an image belongs to its nearest centroid."""
    distill_loss_weight: float = Field(default=0.0, ge=0)
    """Weight of matching a teacher's logits, the unmerged net's; 0 is off."""
    kd_temperature: float = Field(default=4.0, gt=0)
    """Temperature of that match."""

    provenance: dict[str, Any] = Field(default_factory=dict)
    """Where the schedule comes from: study, trial, seed, versions, counted and measured costs, proxy score."""

    @model_validator(mode="before")
    @classmethod
    def _join_schedule(cls, values: Any) -> Any:
        """Build the schedule from the file's keys `schedule`, `operator` and `forms`."""
        if not isinstance(values, dict) or isinstance(values.get("schedule"), MergeSchedule):
            return values
        others = dict(values)
        ratios, operator, forms = (others.pop(key, None) for key in ("schedule", "operator", "forms"))
        _check_type("schedule", ratios, dict, "map layer names to keep ratios")
        _check_type("operator", operator, str, "name a merging operator")
        _check_type("forms", forms or {}, dict, "map layer names to forms")
        try:
            schedule = MergeSchedule(keep_ratios=ratios, operator=operator, forms=forms or {})
        except InputError as error:
            raise ValueError(f"schedule: {error}") from None
        return others | {"schedule": schedule}

    @field_serializer("schedule")
    def _schedule_keys(self, schedule: MergeSchedule) -> dict[str, Any]:
        return {
            "operator": schedule.operator,
            "schedule": dict(schedule.keep_ratios),
            "forms": dict(schedule.forms),
        }

    @model_serializer(mode="wrap")
    def _split_schedule(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the schedule as the file's three keys."""
        content: dict[str, Any] = {}
        for name, value in handler(self).items():
            content |= value if name == "schedule" else {name: value}
        return content

    @model_validator(mode="after")
    def _goes_together(self) -> "Recipe":
        if self.warmup_epochs + self.cooldown_epochs >= self.epochs and self.sched != "constant":
            raise ValueError(
                f"warmup_epochs + cooldown_epochs must be less than epochs, but got {self.warmup_epochs} + "
                f"{self.cooldown_epochs} and {self.epochs}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must be at most lr, but got {self.min_lr:g} and {self.lr:g}")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two numbers above 0 in rising order, but got {low:g} and {high:g}")
        return self

    @field_validator("model")
    @classmethod
    def _is_ours(cls, value: str) -> str:
        if not value.startswith(PREFIX):
            raise ValueError(f"must be {PREFIX}<backbone>, such as {PREFIX}mobilevit_s")
        return value

    @property
    def backbone(self) -> str:
        """timm name of the plain net."""
        return self.model.removeprefix(PREFIX)

    def model_kwargs(self) -> dict[str, Any]:
        """What `timm.create_model(recipe.model, ...)` takes beside the name."""
        return {
            "keep_ratios": dict(self.schedule.keep_ratios),
            "operator": self.schedule.operator,
            "forms": dict(self.schedule.forms),
            "num_classes": self.num_classes,
            "img_size": self.img_size,
        }

    def changed(self, keys: dict[str, Any]) -> "Recipe":
        """The same recipe with other values for some keys, checked.

        Raises:
            InputError: For a value that does not fit.
        """
        return check(Recipe, {**self.model_dump(), **keys}, "recipe")

    def to_yaml(self) -> str:
        """The text of a recipe's file."""
        return to_yaml(self.model_dump(), HEADER)

    def save(self, path: Path) -> Path:
        """Write as YAML, atomically."""
        return write_atomic(path, self.to_yaml())


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: If the file is missing, is no recipe, or is of a version that this ltmsearch does not read.
    """
    path = Path(path)
    version = read_yaml(path).get("schema_version")
    if version != SCHEMA:  # told before anything that another version may well hold
        raise InputError(
            f"{path}: schema_version must be {SCHEMA} for this ltmsearch, but got {shortened(repr(version))}"
        )
    return load(Recipe, path)


def _check_type(key: str, value: Any, kind: type, rule: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"`{key}` must {rule}, but got {shortened(repr(value))}")


@cache
def library_versions() -> Mapping[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    names = ("ltmsearch", "torch", "timm", "optuna", "fvcore", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
