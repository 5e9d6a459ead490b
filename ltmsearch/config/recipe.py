"""Recipes: a schedule and everything needed to train its subnet, as YAML with the keys of timm's training script."""

import os
import platform
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

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

from ltmsearch.config.cli_option import CliOption
from ltmsearch.config.network import (
    CropPct,
    Cropping,
    InChans,
    Mean,
    ModelKwargs,
    NetworkKeys,
    ReadoutKey,
    Registers,
    Resizing,
    Std,
    check_channels,
    check_readout,
    image_options,
)
from ltmsearch.data.preparation import ImageOptions
from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import write_atomic
from ltmsearch.io.yaml_models import check, load, read_yaml, to_yaml
from ltmsearch.schedules.schedule import MergeSchedule

SCHEMA = 1
PREFIX = "ltm_"
"""Prefix of the timm names of networks that merge tokens."""

KWARGS = "model_kwargs"
"""timm's name of further arguments of a network, a key of the file."""
NET = ("schema_version", "model", "schedule", "timm_kwargs", "provenance")
"""Fields that describe the network and its origin. All others configure training and may be overridden for it."""

HEADER = """Training recipe of a merge schedule found by ltmsearch.
The network: timm.create_model(model, keep_ratios=schedule, operator=operator, forms=forms,
  num_classes=num_classes, img_size=img_size, in_chans=in_chans, registers=registers, readout=readout,
  **model_kwargs)
after `import ltmsearch`. Training keys have the names and meanings of timm's training script."""


_network, _optimizer, _rate, _images, _loss, _format, _switch = (
    partial(CliOption, panel=f"Recipe: {panel}")
    for panel in (
        "network and length", "optimizer", "learning rate", "augmentation and regularization",
        "information bottleneck and distillation", "weight averaging and number format",
        "switches",  # in a panel of their own: their names are wide
    )
)  # fmt: skip


class Recipe(BaseModel):
    """A subnet and its training. The defaults are those of the published LTM-MobileViT training.

    Raises:
        InputError: Through `load_recipe`, for an unknown key or an invalid value.
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
    num_classes: Annotated[int, _network()] = Field(ge=2)
    """Number of classes."""
    img_size: Annotated[int, _network()] = Field(ge=32, le=2048)
    """Image side in pixels."""
    timm_kwargs: ModelKwargs = {}
    """In the file the key `model_kwargs`."""
    in_chans: InChans = 3
    registers: Registers = 0
    readout: ReadoutKey = "timm"
    mean: Mean = None
    std: Std = None
    interpolation: Resizing = None
    crop_pct: CropPct = None
    crop_mode: Cropping = None

    epochs: Annotated[int, _network()] = Field(default=300, ge=1)
    """Number of epochs, including warm-up and cool-down."""
    train_steps_per_epoch: Annotated[int | None, _network()] = Field(default=None, ge=1)
    """Optimizer steps per epoch; without it, an epoch is one pass over the training images."""
    batch_size: Annotated[int, _network()] = Field(default=256, ge=2)
    """Images per optimizer step, over all devices and accumulated parts (4 × 64 in the published training)."""
    grad_accum_steps: Annotated[int, _network()] = Field(default=1, ge=1)
    """Parts into which a batch is split to save memory; their gradients are accumulated."""
    opt: Annotated[str, _optimizer()] = "adamw"
    """timm name of the optimizer, such as adamw or lookahead_adamw."""
    lr: Annotated[float, _rate()] = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    weight_decay: Annotated[float, _optimizer()] = Field(default=0.01, ge=0)
    """Weight decay; biases, norms and the parameters that merging operators exempt are not decayed."""
    momentum: Annotated[float, _optimizer()] = Field(default=0.9, ge=0, lt=1)
    """Momentum, for optimizers that use it."""
    layer_decay: Annotated[float | None, _optimizer()] = Field(default=None, gt=0, le=1)
    """Factor by which the learning rate falls from each group of layers to the one before it."""
    clip_grad: Annotated[float | None, _optimizer()] = Field(default=None, gt=0)
    """Gradient clipping threshold, as `clip_mode` defines it."""
    clip_mode: Annotated[Literal["norm", "value", "agc"], _optimizer()] = "norm"
    """Quantity that `clip_grad` limits: the global norm, each value, or each unit's norm relative to its weights'."""
    sched: Annotated[Literal["cosine", "tanh", "step", "constant", "poly", "wsd", "rsqrt"], _rate()] = "cosine"
    """timm name of the learning-rate schedule."""
    sched_on_updates: Annotated[bool, _switch()] = True
    """Update the learning rate after every step instead of every epoch."""
    min_lr: Annotated[float, _rate()] = Field(default=2e-5, ge=0)
    """Final learning rate."""
    warmup_epochs: Annotated[int, _rate()] = Field(default=5, ge=0)
    """Epochs over which the learning rate rises to its peak."""
    warmup_lr: Annotated[float, _rate()] = Field(default=1e-5, ge=0)
    """Initial learning rate of the warm-up."""
    cooldown_epochs: Annotated[int, _rate()] = Field(default=0, ge=0)
    """Final epochs at `min_lr`."""
    decay_epochs: Annotated[float, _rate()] = Field(default=90, gt=0)
    """Epochs between the drops of a step schedule."""
    decay_rate: Annotated[float, _rate()] = Field(default=0.1, gt=0)
    """Factor of each drop."""

    smoothing: Annotated[float, _images()] = Field(default=0.1, ge=0, lt=1)
    """Label smoothing."""
    aa: Annotated[str | None, _images(metavar="POLICY")] = "rand-m9-mstd0.5"
    """timm policy of automatic augmentation, e.g. rand-m9-mstd0.5 or augmix-m3; none is off."""
    scale: Annotated[tuple[float, float], _images(metavar="LOW HIGH")] = (0.08, 1.0)
    """Range of a random crop's area, as shares of the image."""
    ratio: Annotated[tuple[float, float], _images(metavar="LOW HIGH")] = (3 / 4, 4 / 3)
    """Range of a random crop's aspect ratio."""
    hflip: Annotated[float, _images()] = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    color_jitter: Annotated[float | None, _images()] = Field(default=0.4, ge=0)
    """Strength of random brightness, contrast and saturation; unused if `aa` is set."""
    reprob: Annotated[float, _images()] = Field(default=0.2, ge=0, le=1)
    """Probability of random erasing."""
    remode: Annotated[Literal["pixel", "const", "rand"], _images()] = "pixel"
    """Fill of erased areas: noise per pixel, zero, or one random colour."""
    recount: Annotated[int, _images()] = Field(default=1, ge=1)
    """Maximum number of erased areas per image."""
    mixup: Annotated[float, _images()] = Field(default=0.0, ge=0)
    """Alpha of mixup; 0 is off."""
    cutmix: Annotated[float, _images()] = Field(default=0.0, ge=0)
    """Alpha of CutMix; 0 is off."""
    mixup_prob: Annotated[float, _images()] = Field(default=1.0, ge=0, le=1)
    """Probability of applying mixup or CutMix to a batch."""
    mixup_switch_prob: Annotated[float, _images()] = Field(default=0.5, ge=0, le=1)
    """Probability of choosing CutMix where both are on."""
    mixup_mode: Annotated[Literal["batch", "pair", "elem"], _images()] = "batch"
    """Unit that is mixed with its own parameters: the batch, a pair of images, or each image."""
    mixup_off_epoch: Annotated[int, _images()] = Field(default=0, ge=0)
    """Epoch from which mixup and CutMix are off; 0: never."""
    drop_path: Annotated[float | None, _images()] = Field(default=None, ge=0, lt=1)
    """Stochastic depth rate; without it, the network's own."""

    model_ema: Annotated[bool, _switch()] = True
    """Keep a moving average of the weights; it is exported if it scores better."""
    model_ema_decay: Annotated[float, _format()] = Field(default=0.9995, ge=0, lt=1)
    """Decay of the moving average, per step."""
    model_ema_warmup: Annotated[bool, _switch()] = True
    """Lower `model_ema_decay` in the first steps, so that a short training does not average its initial weights."""
    amp: Annotated[bool, _switch()] = True
    """Train in mixed precision where the device supports it."""
    amp_dtype: Annotated[Literal["bfloat16", "float16"], _format()] = "bfloat16"
    """Number format of mixed precision; float16 scales the loss."""
    sync_bn: Annotated[bool, _switch()] = False
    """Synchronize BatchNorm statistics over all devices (not on CPUs)."""
    seed: Annotated[int, _network()] = Field(default=42, ge=0, lt=2**31)
    """Random seed."""

    ib_weight: Annotated[float, _loss()] = Field(default=0.1, ge=0)
    """Weight of the information-bottleneck loss; 0 is off."""
    ib_warmup_ratio: Annotated[float, _loss()] = Field(default=0.3, ge=0, le=1)
    """Share of the epochs before the information-bottleneck loss starts."""
    ib_beta: Annotated[float, _loss()] = Field(default=1.0, gt=0)
    """Sharpness with which the information-bottleneck loss assigns an image to its nearest centroid."""
    distill_loss_weight: Annotated[float, _loss()] = Field(default=0.0, ge=0)
    """Weight of the distillation loss against the unmerged network's logits; 0 is off."""
    kd_temperature: Annotated[float, _loss()] = Field(default=4.0, gt=0)
    """Temperature of the distillation loss."""
    teacher_img_size: Annotated[int | None, _loss(default="img_size")] = Field(default=None, ge=32, le=2048)
    """Image side in pixels for the unmerged network, at least that of the merged one, whose images are downscaled."""

    provenance: dict[str, Any] = Field(default_factory=dict)
    """Origin of the schedule: study, trial, seed, versions, counted and measured costs, proxy score."""

    @model_validator(mode="before")
    @classmethod
    def _join_schedule(cls, values: Any) -> Any:
        """Build the schedule from the file's keys `schedule`, `operator` and `forms`; `model_kwargs` is a method."""
        if not isinstance(values, dict):
            return values
        others = dict(values)
        if KWARGS in others:
            others["timm_kwargs"] = others.pop(KWARGS)
        if isinstance(values.get("schedule"), MergeSchedule):
            return others
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
            content |= value if name == "schedule" else {KWARGS if name == "timm_kwargs" else name: value}
        return content

    @model_validator(mode="after")
    def _check_combinations(self) -> "Recipe":
        check_channels(self)
        check_readout(self.readout, self.registers)
        if self.in_chans == 4 and self.aa is not None:
            raise ValueError(f"aa must be none for in_chans 4, since timm's policies know no RGBA, but got {self.aa!r}")
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
                raise ValueError(f"{name} must be two increasing numbers above 0, but got {low:g} and {high:g}")
        return self

    @field_validator("model")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        if not value.startswith(PREFIX):
            raise ValueError(f"must be {PREFIX}<backbone>, such as {PREFIX}mobilevit_s")
        return value

    @property
    def backbone(self) -> str:
        """timm name of the unmerged network."""
        return self.model.removeprefix(PREFIX)

    def model_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `timm.create_model(recipe.model, ...)`."""
        return {
            "keep_ratios": dict(self.schedule.keep_ratios),
            "operator": self.schedule.operator,
            "forms": dict(self.schedule.forms),
            "img_size": self.img_size,
            **self.network,
        }

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of `create_backbone(recipe.backbone, ...)` for the unmerged network, besides its image size."""
        keys = NetworkKeys(
            model_kwargs=self.timm_kwargs, in_chans=self.in_chans, registers=self.registers, readout=self.readout
        )
        return {"num_classes": self.num_classes, **keys.arguments()}

    @property
    def images(self) -> ImageOptions:
        """Options for the images of the network."""
        return image_options(self)

    def changed(self, keys: dict[str, Any]) -> "Recipe":
        """A copy with other values for some keys.

        Raises:
            InputError: For an invalid value.
        """
        return check(Recipe, {**self.model_dump(), **keys}, "recipe")

    def to_yaml(self) -> str:
        """Text of a recipe file."""
        return to_yaml(self.model_dump(), HEADER)

    def save(self, path: Path) -> Path:
        """Write as YAML, atomically."""
        return write_atomic(path, self.to_yaml())


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: If the file is missing, invalid, or of another schema version.
    """
    path = Path(path)
    if os.path.isdir(path):  # `Path.is_dir` raises for names that are too long
        inside = [*path.glob("recipe.yaml"), *sorted(path.glob("recipes/*.yaml"))]
        found = f"give a recipe in it, such as {inside[0]}" if inside else "it has no recipes"
        raise InputError(f"a recipe must be a file, but {path} is a folder; {found}")
    version = read_yaml(path).get("schema_version")
    if version != SCHEMA:  # checked first, since another version may have other keys
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
