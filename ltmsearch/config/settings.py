"""Study settings: every choice of a study, checked, written to `settings.yaml` and compared when a study continues."""

from functools import partial
from os.path import abspath
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ltmsearch.config import names
from ltmsearch.config.backbones import backbone_names
from ltmsearch.config.cli_option import CliOption
from ltmsearch.config.combinations import check_combinations
from ltmsearch.config.defaults import CPU, TRAINED, UNTRAINED, Learning, by_device, default_name, defaults_of
from ltmsearch.config.network import (
    NETWORK,
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
    image_options,
    network_keys,
)
from ltmsearch.config.objective import CostAxis, cost_axis
from ltmsearch.config.shorthands import expanded
from ltmsearch.data.layout import DataLayout, check_split
from ltmsearch.data.preparation import ImageOptions
from ltmsearch.io.files import MAX_NAME_BYTES
from ltmsearch.io.presets import shipped_names
from ltmsearch.io.yaml_models import check, load, to_yaml

SETTINGS = "settings.yaml"
NUMBERS = ("trials", "batch_size", "scoring_batch_size", "rescore_candidates", "seed", "img_size", "proxy_img_size")
"""Settings that refuse true and false, which pydantic takes for 1 and 0."""
PATHS = ("data_dir", "class_map", "checkpoint", "resume_from", "latency_profile", "out")
"""Settings that are paths; `space` may be one."""

HEADER = """Settings of one ltmsearch study, with all defaults filled in. The study continues only with these;
budgets, `trials`, `timeout` and the paths of its data and of its folder may change. Sizes in pixels, costs in 1e9
multiply-adds per image, times in seconds."""

_network, _data, _weights, _search, _proxy, _workers, _latency, _output = (
    partial(CliOption, panel=panel)
    for panel in (
        NETWORK, "Data", "Initial weights", "Search", "Warm-up and trials", "Parallel workers", "Latency budget",
        "Output",
    )
)  # fmt: skip

Split = Annotated[str, AfterValidator(check_split)] | None


class StudySettings(BaseModel):
    """Settings of one study. `resolved` fills in those that are None, by device and backbone family.

    Raises:
        InputError: Through `make`, for an unknown name or an invalid value.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    schema_version: Literal[2] = 2
    """Version of this format."""

    backbone: Annotated[str, CliOption(metavar="NAME", suggestions=backbone_names)]
    """timm name of the backbone, e.g. mobilevit_s."""
    budget_gflops: Annotated[float | None, CliOption(metavar="X|LOW-HIGH")] = Field(default=None, gt=0)
    """Maximum compute per image at `img_size`, in 1e9 multiply-adds; a range such as 1.1-1.4 covers every budget
    in it."""
    lowest_gflops: float | None = Field(default=None, gt=0)
    """Lower end of a range of budgets; much cheaper schedules are not tried. None: no lower end."""
    budget_ms: float | None = Field(default=None, gt=0)
    """Maximum latency of one batch at `img_size`, in milliseconds; the front then weighs latency against top-1."""
    budget_quantile: float | None = Field(default=None, gt=0, lt=1)
    """Share of the images whose compute must be within the budget, where it depends on the image (operator threshold);
    without it, the mean must be."""
    split_layer: Annotated[str | None, CliOption(metavar="LAYER")] = None
    """Layer after which the tokens of an image are sent to another device, e.g. blocks.5: the mean number of tokens
    sent, class and register tokens included, becomes a third objective."""
    img_size: int = Field(default=224, ge=32, le=2048)
    """Image side in pixels for which costs are counted and latencies measured."""
    model_kwargs: ModelKwargs = {}
    num_classes: Annotated[int | None, _network(default="the data's")] = Field(default=None, ge=2)
    """Classes of the network; it may have more than the data."""
    in_chans: InChans = 3
    registers: Registers = 0
    readout: ReadoutKey = "timm"
    mean: Mean = None
    std: Std = None
    interpolation: Resizing = None
    crop_pct: CropPct = None
    crop_mode: Cropping = None

    dataset: Annotated[str, _data(metavar="NAME", suggestions=names.DATASETS)] = "digits"
    """Data set: the built-in digits, an image folder, or any data set that timm reads."""
    data_dir: Annotated[str | None, _data(metavar="DIR")] = None
    """Folder of the data. An image folder has train/ and validation/ (or val/), with one folder per class."""
    train_split: Annotated[Split, _data(metavar="NAME", default="train")] = None
    """Training images: a folder in `data_dir`, such as images/train, or a split of the data set."""
    val_split: Annotated[Split, _data(metavar="NAME", default="validation, val or valid")] = None
    """Validation images, which choose the front, likewise."""
    test_split: Annotated[Split, _data(metavar="NAME", default="test, or else half of the validation images")] = None
    """Images that the results are reported on, likewise."""
    class_map: Annotated[str | None, _data(metavar="FILE", default="folders in natural order")] = None
    """Order of the classes: a text file with one per line, as in timm. Other folders are left out."""

    pretrained: Annotated[bool, _weights()] = False
    """Start from timm's published weights."""
    checkpoint: Annotated[str | None, _weights(metavar="FILE")] = None
    """Start from the weights in this checkpoint of timm, Hugging Face transformers or Meta's DINOv2: a file, or a
    folder with model.safetensors."""
    resume_from: Annotated[str | None, _weights(metavar="RUN")] = None
    """Start from the shared weights of the study in this run directory and try its front first; data and budget may
    differ."""
    head: Annotated[names.Head | None, _weights(default="probe where weights are given")] = None
    """Start of a classifier that the given weights lack, or that has another number of classes: fitted to the features
    of the training images by logistic regression, or random."""

    trials: Annotated[int, _search()] = Field(default=24, ge=1)
    """Number of trained trials, baselines included; proposals over the budget do not count."""
    timeout: Annotated[float | None, _search()] = Field(default=None, gt=0)
    """Start no new trial after this many seconds; final scoring and results follow."""
    sampler: Annotated[names.Sampler, _search()] = "auto"
    """Optuna sampler; auto scores many schedules without training and proposes the best (tpe for threshold)."""
    screened_schedules: Annotated[int | None, _search(default=by_device("screened_schedules"))] = Field(
        default=None, ge=16
    )
    """Schedules that the sampler auto scores without training before it proposes."""
    objective: Annotated[
        names.Objective, _search(default="auto, which is kl where weights are given and loss otherwise")
    ] = "auto"
    """What is minimised beside the cost: kl, divergence from the unmerged network; or loss, cross-entropy."""
    tolerance: Annotated[float, _search()] = Field(default=0.5, ge=0, le=100)
    """Loss of top-1 against the unmerged network, in points, below which a schedule is recommended."""
    operator: Annotated[str, _search(metavar="NAME", suggestions=names.OPERATORS)] = "ltm"
    """Merging operator."""
    space: Annotated[
        str | None,
        _search(
            metavar="FILE|NAME",
            default="that of the backbone's family",
            suggestions=partial(shipped_names, "search_spaces"),
        ),
    ] = None
    """Search-space file, or the name of a shipped one."""
    search_img_size: Annotated[
        tuple[int, ...] | Literal["auto"] | None, _search(metavar="SIZES", default="only --img-size")
    ] = None
    """Image sides in pixels to search, such as 84,98,112, none above `img_size`; or auto for a few smaller ones."""
    seed: Annotated[int, _search()] = Field(default=0, ge=0, lt=2**31)
    """Random seed."""
    device: Annotated[str, _search(metavar="NAME", suggestions=names.DEVICES)] = "auto"
    """Device that runs the networks; cuda:1 is the second GPU."""
    precision: Annotated[names.Precision, _search()] = "auto"
    """Number format; auto uses bf16 where the hardware supports it and it is measured to be faster."""

    batch_size: Annotated[int | None, _proxy(default=by_device("batch_size"))] = Field(default=None, ge=2)
    """Images per training step. For families that train slowly, the default is doubled."""
    base_steps: Annotated[int | None, _proxy(default=by_device("base_steps"))] = Field(default=None, ge=0)
    """Warm-up steps of the unmerged network. For families that train slowly, the default is doubled."""
    base_img_size: Annotated[
        int | None,
        _proxy(default=f"{CPU['base_img_size']} for convolutional families on a CPU, otherwise `proxy_img_size`"),
    ] = Field(default=None, ge=32)
    """Image side in pixels at the start of the warm-up; it grows to `proxy_img_size` in the second half."""
    sandwich_steps: Annotated[
        int | None, _proxy(default=f"{by_device('sandwich_steps')}; doubled for objective kl")
    ] = Field(default=None, ge=0)
    """Warm-up steps in which merged subnets learn to match the unmerged network."""
    sandwich_subnets: Annotated[int, _proxy()] = Field(default=2, ge=1)
    """Random subnets in each of these steps, of costs near the budget."""
    warmup_lr: Annotated[
        float | None, _proxy(default=f"{UNTRAINED.lr:g} or by family; {TRAINED.lr:g} for trained weights")
    ] = Field(default=None, gt=0)
    """Peak learning rate of the warm-up, and with a teacher again of its sandwich steps."""
    proxy_img_size: Annotated[int | None, _proxy(default=f"{CPU['proxy_img_size']} on a CPU, otherwise `img_size`")] = (
        Field(default=None, ge=32)
    )
    """Image side in pixels for training and scoring trials."""
    proxy_steps: Annotated[int | None, _proxy(default=f"{by_device('proxy_steps')}; 0 for objective kl")] = Field(
        default=None, ge=0
    )
    """Training steps per trial; all trials see the same images."""
    proxy_lr: Annotated[
        float | None, _proxy(default=f"{UNTRAINED.proxy_lr:g}; {TRAINED.proxy_lr:g} for trained weights")
    ] = Field(default=None, gt=0)
    """Learning rate of a trial."""
    ib_beta: Annotated[float, _proxy()] = Field(default=1.0, gt=0)
    """Sharpness with which the information-bottleneck loss assigns an image to its nearest centroid."""
    update_share: Annotated[float, _proxy()] = Field(default=0.25, ge=0, le=1)
    """Share of a trial's weight change that the shared weights keep: W ← W + share · (W' − W). Larger shares learn
    faster, but make scores depend more on when a trial ran."""
    staleness_power: Annotated[float, _proxy()] = Field(default=0.5, ge=0)
    """With several workers, exponent that lowers `update_share` for outdated trials: share / (1 + age)^power."""
    calibration_images: Annotated[int | None, _proxy(default=by_device("calibration_images"))] = Field(
        default=None, ge=8
    )
    """Training images for recalibrating BatchNorm statistics before a subnet is scored."""
    scoring_batch_size: Annotated[int | None, _proxy(default=by_device("scoring_batch_size"))] = Field(
        default=None, ge=1
    )
    """Images per forward pass in scoring; fewer need less memory. Scores depend on it by rounding, in bf16 more."""
    search_images: Annotated[int | None, _proxy(default=by_device("search_images"))] = Field(default=None, ge=8)
    """Training images that score trials; nothing trains on them, and they are at most a fifth of all."""
    rescore_candidates: Annotated[int, _proxy()] = Field(default=8, ge=1)
    """Number of trials scored again at the end, with the final weights."""
    rescore_images: Annotated[int | None, _proxy(default=by_device("rescore_images"))] = Field(default=None, ge=8)
    """Validation images for this final scoring, which chooses the front."""
    report_images: Annotated[int | None, _proxy(default=by_device("report_images"))] = Field(default=None, ge=8)
    """Images that the front is reported on: test images, or a part of the validation images that chose nothing."""

    workers: Annotated[int, _workers()] = Field(default=1, ge=1, le=4096)
    """Trials in parallel: one runs in this process, several run on Ray."""
    ray_address: Annotated[str | None, _workers(metavar="ADDRESS", default="only this machine")] = None
    """Address of a Ray cluster, auto or HOST:PORT."""
    gpus_per_worker: Annotated[float | None, _workers(default="an equal share of all, 1 at most")] = Field(
        default=None, ge=0
    )
    """GPUs per worker on Ray; may be a fraction."""
    trial_timeout: Annotated[float | None, _workers(default="20 times the expected time, at least 300")] = Field(
        default=None, gt=0
    )
    """Abandon a trial after this many seconds."""

    latency_device: Annotated[
        str | None, _latency(metavar="NAME", default="that of `device`", suggestions=names.DEVICES[1:])
    ] = None
    """Device on which latency is measured; cuda:1 is the second GPU."""
    latency_batch: Annotated[int, _latency()] = Field(default=1, ge=1)
    """Images per forward pass."""
    latency_runtime: Annotated[names.Engine, _latency()] = "torch"
    """Runtime that executes the network."""
    latency_dtype: Annotated[names.NumberFormat, _latency()] = "fp32"
    """Number format of weights and images."""
    latency_memory_format: Annotated[names.MemoryFormat, _latency()] = "channels_last"
    """Memory layout of images."""
    latency_threads: Annotated[int | None, _latency(default="1")] = Field(default=None, ge=1)
    """Threads on a CPU."""
    latency_profile: Annotated[str | None, _latency(metavar="FILE", default="a profile kept or measured here")] = None
    """File that ltmsearch profile wrote, on this machine or another."""

    study: Annotated[str | None, _output(metavar="NAME", default="from backbone, budget and data")] = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_BYTES
    )
    """Name of the study."""
    out: Annotated[str | None, _output(metavar="DIR", default="runs/<study>")] = None
    """Run directory."""
    storage: Annotated[str | None, _output(metavar="URL", default="study.db in the run directory")] = None
    """Database of the Optuna study, e.g. postgresql://USER@HOST/DATABASE (set its password as PGPASSWORD), or
    journal:///PATH/FILE on a shared disk."""
    storage_password: SecretStr | None = None
    """Password of that database, taken out of the URL; never written."""

    @field_validator(*NUMBERS, mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a number")
        return value

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        return expanded(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_combinations(self) -> "StudySettings":
        check_combinations(self)
        return self

    @classmethod
    def make(cls, where: str = "settings", **values: Any) -> Self:
        """Check values from a command line or a program.

        `data_dir` without `dataset` means an image folder.

        Args:
            where: Prefix of an error message.
            values: Settings by name; those that are None count as not given.

        Raises:
            InputError: For the first unknown name or invalid value.
        """
        return check(cls, {name: value for name, value in values.items() if value is not None}, where)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a settings file that `to_yaml` wrote.

        Raises:
            InputError: If it is missing or does not fit.
        """
        return load(cls, path)

    def to_yaml(self) -> str:
        """Text of `settings.yaml`."""
        return to_yaml(self.public(), HEADER)

    def public(self) -> dict[str, Any]:
        """All settings but the storage's password, as JSON values."""
        return self.model_dump(mode="json", exclude={"storage_password"})

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of `create_backbone` besides image size and classes."""
        return NetworkKeys(**network_keys(self)).arguments()

    @property
    def images(self) -> ImageOptions:
        """Options for the images of the network."""
        return image_options(self)

    @property
    def study_name(self) -> str:
        """`study`, or the default."""
        return default_name(self) if self.study is None else self.study

    @property
    def run_dir(self) -> Path:
        """`out`, or `runs/<study>`."""
        return Path(self.out) if self.out else Path("runs") / self.study_name

    @property
    def data_name(self) -> str:
        """The option that names the data, for messages."""
        return f"--dataset {self.dataset}" if self.data_dir is None else f"--data-dir {self.data_dir}"

    @property
    def data_place(self) -> tuple[str | None, ...]:
        """Name of the data set, its folder in whatever way it was given, its splits and its class map."""
        at = self.absolute()
        return self.dataset, at.data_dir, self.train_split, self.val_split, self.test_split, at.class_map

    @property
    def layout(self) -> DataLayout:
        """Splits and class map of the data."""
        class_map = Path(self.class_map) if self.class_map else None
        splits = {"train_split": self.train_split, "val_split": self.val_split, "test_split": self.test_split}
        return DataLayout(**splits, class_map=class_map)

    def absolute(self) -> Self:
        """The same settings with absolute paths, so that they mean the same in every working directory."""
        paths = {name: getattr(self, name) for name in PATHS}
        if self.space is not None and Path(self.space).is_file():  # else the name of a shipped one
            paths["space"] = self.space
        return self.model_copy(update={name: abspath(path) for name, path in paths.items() if path is not None})

    @property
    def axis(self) -> CostAxis:
        """Cost axes of the front."""
        return cost_axis(self)

    def resolved(
        self, device: str, learning: Learning = UNTRAINED, earlier: "StudySettings | None" = None
    ) -> "ResolvedSettings":
        """The same settings with every default filled in; see `defaults_of` for the arguments."""
        given = self.model_dump(exclude_none=True)
        if self.objective == "auto":
            del given["objective"]
        return ResolvedSettings(**defaults_of(self, device, learning, earlier) | given)


class ResolvedSettings(StudySettings):
    """Settings with every default filled in, as a study runs with them and `settings.yaml` records them."""

    batch_size: int = Field(ge=2)
    base_steps: int = Field(ge=0)
    base_img_size: int = Field(ge=32)
    sandwich_steps: int = Field(ge=0)
    warmup_lr: float = Field(gt=0)
    proxy_lr: float = Field(gt=0)
    proxy_img_size: int = Field(ge=32)
    proxy_steps: int = Field(ge=0)
    calibration_images: int = Field(ge=8)
    scoring_batch_size: int = Field(default=32, ge=1)  # that of studies that began before it could be set
    screened_schedules: int = Field(ge=16)
    search_images: int = Field(ge=8)
    rescore_images: int = Field(ge=8)
    report_images: int = Field(ge=8)
    study: str = Field(pattern=r"^[^\p{C}\p{Z}./\\][^\p{C}\p{Z}/\\]*$")  # a data folder's name may have any letters
    out: str
