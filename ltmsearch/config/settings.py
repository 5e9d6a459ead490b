"""What a study is told: every choice in one place, checked, written to `settings.yaml` and compared on the way back."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ltmsearch.config.defaults import ACCELERATOR, CPU, TRAINED, UNTRAINED, Learning
from ltmsearch.config.objective import CostAxis
from ltmsearch.config.storage_url import read_address
from ltmsearch.errors import InputError
from ltmsearch.io.yaml_models import check, load, to_yaml

SETTINGS = "settings.yaml"
"""Name of the file in a run directory, which makes it one of a study."""
BUDGETS = ("budget_gflops", "lowest_gflops", "budget_ms")
"""The settings that limit costs. A study may go on with other limits, but not with another kind of cost."""
WORKERS = ("workers", "ray_address", "gpus_per_worker", "trial_timeout")
"""The settings of who evaluates trials, which a study need not keep."""
MAY_CHANGE = frozenset({"trials", "timeout", "out", "storage_password", *BUDGETS, *WORKERS})
"""Settings that a study may be continued with at another value."""

HEADER = """Settings of one ltmsearch study, every default filled in. The study continues only with these;
budgets, `trials` and `timeout` may change. Sizes in pixels, costs in 1e9 multiply-adds per image, times in seconds."""

Sampler = Literal["auto", "tpe", "gp", "nsga2", "random"]
Precision = Literal["auto", "fp32", "bf16"]


class StudySettings(BaseModel):
    """Settings of one study. Those that are None are filled in by `resolved` for the device and the family.

    Raises:
        InputError: Through `make`, for a name or value that does not fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    """Version of this format."""

    # What is searched
    backbone: str
    """timm name."""
    operator: str = "ltm"
    """Merging operator."""
    space: str | None = None
    """Search-space file, or the name of a shipped one; None: the one of the backbone's family."""
    budget_gflops: float | None = Field(default=None, gt=0)
    """Largest cost of one image at `img_size`, in 1e9 multiply-adds; "1.1-1.4" stands for a range of budgets."""
    lowest_gflops: float | None = Field(default=None, gt=0)
    """The lower end of that range: schedules much cheaper than this are not tried. None: down to the cheapest."""
    budget_ms: float | None = Field(default=None, gt=0)
    """Largest latency of one batch at `img_size`, in milliseconds; the front then weighs latency against top-1."""
    img_size: int = Field(default=224, ge=32, le=2048)
    """Side of the images that costs are counted and latencies measured for."""

    # Whose latency
    latency_device: str | None = None
    """`cpu`, `cuda`, `cuda:1`, …; None: the device of the study."""
    latency_batch: int = Field(default=1, ge=1)
    """Images per forward pass."""
    latency_runtime: Literal["torch", "compile", "onnxruntime"] = "torch"
    """What runs the net."""
    latency_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and images."""
    latency_memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """How images lie in memory."""
    latency_threads: int | None = Field(default=None, ge=1)
    """On a CPU; None: one."""
    latency_profile: str | None = None
    """File that `ltmsearch profile` wrote, here or on another machine; None: this machine is timed."""

    # On which data
    dataset: str = "digits"
    """`digits` (built in), `folder`, or a timm data set name."""
    data_dir: str | None = None
    """Where the data lie."""

    # How
    trials: int = Field(default=24, ge=1)
    """Trained trials, baselines included; proposals over the budget do not count."""
    timeout: float | None = Field(default=None, gt=0)
    """No new trial begins after this many seconds; re-scoring and results follow."""
    sampler: Sampler = "auto"
    """Optuna sampler; `auto` is `tpe`."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything random."""
    pretrained: bool = False
    """Start from timm's published weights."""
    checkpoint: str | None = None
    """Start from the weights in this file."""
    resume_from: str | None = None
    """Start from the shared weights of the study in this run directory, and try its front first."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    precision: Precision = "auto"
    """`auto` takes bf16 where the hardware has it and it is measured to be faster."""

    # Who evaluates trials
    workers: int = Field(default=1, ge=1, le=4096)
    """How many trials run at once: one in this process, several on Ray."""
    ray_address: str | None = None
    """Of a Ray cluster, `auto` or HOST:PORT; None: with several workers this machine alone."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs of each worker on Ray, fractions too; None: on CUDA an equal part of all, one at most, else none."""
    trial_timeout: float | None = Field(default=None, gt=0)
    """Seconds after which a trial is given up; None: 20 times what is expected, five minutes at least."""

    # Warm-up of the shared weights
    batch_size: int | None = Field(default=None, ge=2)
    """Images per training step."""
    base_steps: int | None = Field(default=None, ge=0)
    """Steps of the plain net alone."""
    base_img_size: int | None = Field(default=None, ge=32)
    """Side of the images at first; they grow to `proxy_img_size` in the second half of these steps."""
    sandwich_steps: int | None = Field(default=None, ge=0)
    """Steps in which subnets learn to match the plain net."""
    sandwich_subnets: int = Field(default=1, ge=0)
    """Random subnets per such step, beside the plain net and the cheapest."""
    warmup_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the warm-up."""

    # One trial
    proxy_img_size: int | None = Field(default=None, ge=32)
    """Side of the images that trials train and are scored on."""
    proxy_steps: int | None = Field(default=None, ge=0)
    """Training steps of one trial."""
    proxy_lr: float = Field(default=2e-4, gt=0)
    """Their learning rate."""
    ib_beta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How sharply an image belongs to its nearest centroid in the information-bottleneck loss."""
    update_share: float = Field(default=0.25, ge=0, le=1)
    """How much of a trial's change the shared weights keep: W ← W + share · (W' − W). A larger share learns faster, but
    then scores say more about when a trial ran than about its schedule."""
    staleness_power: float = Field(default=0.5, ge=0)
    """How quickly that share falls with age, where several workers move the weights: share / (1 + age)^power."""
    calibration_images: int | None = Field(default=None, ge=8)
    """Training images that BatchNorm statistics are taken from before a subnet is scored."""
    val_images: int | None = Field(default=None, ge=8)
    """Validation images that score a trial."""

    # The end
    rescore_candidates: int = Field(default=8, ge=1)
    """Trials that are scored again with the final weights."""
    rescore_images: int | None = Field(default=None, ge=8)
    """Validation images of that."""

    # Where
    study: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study; None: made of backbone, operator, budget and data."""
    out: str | None = None
    """Run directory; None: `runs/<study>`."""
    storage: str | None = None
    """URL of the database or journal that holds the Optuna study, without a password; None: `study.db` in the run
    directory."""
    storage_password: SecretStr | None = None
    """Of that database, where one stood in the URL that was given; written nowhere."""

    @field_validator("trials", "batch_size", "seed", "img_size", "proxy_img_size", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a number")
        return value

    @model_validator(mode="before")
    @classmethod
    def _range_of_budgets(cls, values: Any) -> Any:
        """Take "1.1-1.4" apart."""
        given = values.get("budget_gflops") if isinstance(values, dict) else None
        if not isinstance(given, str):
            return values
        try:
            return {**values, "budget_gflops": float(given)}
        except ValueError:
            low, dash, high = (part.strip() for part in given.partition("-"))
        return {**values, "lowest_gflops": low, "budget_gflops": high} if low and dash and high else values

    @model_validator(mode="before")
    @classmethod
    def _password_apart(cls, values: Any) -> Any:
        """Take it out of the URL, so that whatever prints or writes settings cannot tell it."""
        given = values.get("storage") if isinstance(values, dict) else None
        if not isinstance(given, str):
            return values
        try:
            url, password = read_address(given)
        except InputError as error:  # which pydantic would let pass without the file and its line
            raise ValueError(str(error)) from None
        return {**values, "storage": url} | ({} if password is None else {"storage_password": password})

    @model_validator(mode="after")
    def _goes_together(self) -> "StudySettings":
        starts = [name for name in ("pretrained", "checkpoint", "resume_from") if getattr(self, name)]
        if len(starts) > 1:
            raise ValueError(f"{starts[0]} and {starts[1]} cannot both be given")
        if self.lowest_gflops is not None and not self.lowest_gflops < (self.budget_gflops or 0):
            raise ValueError(
                "a range of budgets must be LOW-HIGH with LOW < HIGH, such as 1.1-1.4, but got "
                f"{self.lowest_gflops:g}-{self.budget_gflops or 0:g}"
            )
        if self.gpus_per_worker is not None and self.workers == 1 and self.ray_address is None:
            raise ValueError("gpus_per_worker needs workers on Ray: give workers or ray_address too")
        if (self.gpus_per_worker or 0) > 1 and self.gpus_per_worker != int(self.gpus_per_worker or 0):
            raise ValueError(
                f"gpus_per_worker must be a fraction below 1 or a whole number, but got {self.gpus_per_worker:g}"
            )
        if self.dataset == "folder" and self.data_dir is None:
            raise ValueError("dataset 'folder' needs data_dir")
        if self.budget_gflops is None and self.budget_ms is None:
            raise ValueError("budget_gflops, budget_ms or both must be given")
        fields = type(self).model_fields.items()
        given = [name for name, field in fields if name.startswith("latency_") and getattr(self, name) != field.default]
        if given and self.budget_ms is None:
            raise ValueError(f"{given[0]} needs budget_ms")
        if self.latency_profile is not None and len(given) > 1:
            raise ValueError(f"latency_profile says whose latency it is; {given[0]} cannot be given beside it")
        return self

    @classmethod
    def make(cls, where: str = "settings", **values: Any) -> Self:
        """Check values from a command line, a file or a program.

        `data_dir` without `dataset` means an image folder. None means "not given".

        Args:
            where: Put before an error message.
            values: Names and values of settings.

        Raises:
            InputError: For the first name or value that does not fit.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if given.get("data_dir") is not None and "dataset" not in given:
            given["dataset"] = "folder"
        return check(cls, given, where)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a whole settings file, as `save` writes it.

        Raises:
            InputError: If it is missing or does not fit.
        """
        return cls.make(str(path), **load(cls, path).model_dump(exclude_unset=True))

    def to_yaml(self) -> str:
        """The text of `settings.yaml`."""
        return to_yaml(self.public(), HEADER)

    def public(self) -> dict[str, Any]:
        """All that may be written or told: every setting but the password of the storage."""
        return self.model_dump(mode="json", exclude={"storage_password"})

    @property
    def study_name(self) -> str:
        """`study`, or the name made of what makes studies differ."""
        if self.study is not None:
            return self.study
        data = Path(self.data_dir).resolve().name if self.dataset == "folder" and self.data_dir else self.dataset
        budgets = [] if self.budget_gflops is None else [f"{self._gflops}gflops"]
        budgets += [] if self.budget_ms is None else [f"{self.budget_ms:g}ms"]
        parts = [self.backbone, self.operator, *budgets, str(self.img_size), data]
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in "-".join(parts))

    @property
    def _gflops(self) -> str:
        lowest = "" if self.lowest_gflops is None else f"{self.lowest_gflops:g}-"
        return f"{lowest}{self.budget_gflops:g}"

    @property
    def run_dir(self) -> Path:
        """`out`, or `runs/<study>`."""
        return Path(self.out) if self.out else Path("runs") / self.study_name

    @property
    def axis(self) -> CostAxis:
        """What the front weighs against top-1: latency where it has a budget, else multiply-adds."""
        if self.budget_ms is None:
            title = f"GFLOPs per image at {self.img_size} px (one multiply-add = one FLOP)"
            return CostAxis(name="gflops", title=title, budget=self.budget_gflops, lowest=self.lowest_gflops)
        batch, where = "batch", self.latency_profile
        if where is None:
            batch = f"batch of {self.latency_batch}"
            where = f"{self.latency_device or self.device}, {self.latency_runtime}, {self.latency_dtype}"
        title = f"ms per {batch} at {self.img_size} px, predicted ({where})"
        return CostAxis(name="latency_ms", title=title, budget=self.budget_ms)

    def resolved(
        self, device: str, learning: Learning = UNTRAINED, earlier: "StudySettings | None" = None
    ) -> "ResolvedSettings":
        """The same settings with every None filled in.

        Args:
            device: `cpu` or an accelerator's type, e.g. `cuda`.
            learning: How the backbone learns from scratch; trained weights are trained on with care instead.
            earlier: Settings of the study that this one starts from. What its weights know needs no warm-up: the
                plain net on the same data, and with the same operator the subnets too.
        """
        if self.pretrained or self.checkpoint or self.resume_from:
            learning = TRAINED
        defaults: dict[str, Any] = CPU if device == "cpu" else ACCELERATOR | {"proxy_img_size": self.img_size}
        proxy = self.proxy_img_size or defaults["proxy_img_size"]
        small = defaults.get("base_img_size", proxy) if learning.grows else proxy
        defaults = defaults | {
            "base_img_size": min(small, proxy),
            "batch_size": defaults["batch_size"] * learning.patience,
            "base_steps": defaults["base_steps"] * learning.patience,
            "warmup_lr": learning.lr,
        }
        if earlier is not None and (earlier.dataset, earlier.data_dir) == (self.dataset, self.data_dir):
            defaults["base_steps"] = 0
            defaults["sandwich_steps"] *= self.operator != earlier.operator
        if self.budget_ms is not None and self.latency_profile is None:
            defaults["latency_device"] = device if self.device == "auto" else self.device
        filled = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        names = {"study": self.study_name, "out": str(self.run_dir)}
        return ResolvedSettings(**{**self.model_dump(), **filled, **names})

    def refuse_unless_continues(self, stored: "StudySettings", path: Path) -> None:
        """Raise unless these settings continue a study that was begun with `stored`.

        Raises:
            InputError: Naming each setting that differs.
        """
        self.refuse_other_costs(stored, path)
        differing = [
            f"{name} is {getattr(stored, name)!r} there and {getattr(self, name)!r} now"
            for name in type(self).model_fields
            if name not in MAY_CHANGE and getattr(stored, name) != getattr(self, name)
        ]
        if differing:
            raise InputError(
                f"{path} holds a study with other settings ({'; '.join(differing)}); continue it with its own, "
                "or begin another with --study NAME or --out DIR"
            )

    def refuse_other_costs(self, stored: "StudySettings", path: Path) -> None:
        """Raise if these settings limit another kind of cost than a study that was begun with `stored`.

        Raises:
            InputError: Naming the kind.
        """
        for budget, unit in (("budget_gflops", "GFLOPs"), ("budget_ms", "ms")):
            before, now = getattr(stored, budget), getattr(self, budget)
            if (before is None) != (now is None):
                raise InputError(
                    f"{path} holds a study {'without' if before is None else 'with'} a budget in {unit}; it can go on "
                    "with another limit but not with another kind of cost: begin another with --study NAME or --out DIR"
                )


class ResolvedSettings(StudySettings):
    """Settings with nothing left open: what a study runs with and `settings.yaml` holds."""

    batch_size: int = Field(ge=2)
    base_steps: int = Field(ge=0)
    base_img_size: int = Field(ge=32)
    sandwich_steps: int = Field(ge=0)
    warmup_lr: float = Field(gt=0)
    proxy_img_size: int = Field(ge=32)
    proxy_steps: int = Field(ge=0)
    calibration_images: int = Field(ge=8)
    val_images: int = Field(ge=8)
    rescore_images: int = Field(ge=8)
    study: str = Field(pattern=r"^[^\p{C}\p{Z}./\\][^\p{C}\p{Z}/\\]*$")  # names made of a folder's may have any letters
    out: str
