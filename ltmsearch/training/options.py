"""Inputs and files of a training beside its recipe."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ltmsearch.config.names import Head
from ltmsearch.config.recipe import Recipe
from ltmsearch.data.layout import DataLayout
from ltmsearch.errors import InputError, check_choice
from ltmsearch.io.files import safe_name

STATE, RECIPE, LOG = "state.safetensors", "recipe.yaml", "log.csv"
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Inputs of a training beside its recipe."""

    out: Path
    """Folder of the training."""
    dataset: str = "digits"
    """`digits` (built in), `folder`, or a timm data set name."""
    data_dir: Path | None = None
    """Folder of the data."""
    layout: DataLayout = field(default_factory=DataLayout)
    """Splits and class map of the data."""
    init: Path | None = None
    """Initial weights: a checkpoint as for `load_weights`, or the run directory of a study for its shared weights."""
    teacher: Path | None = None
    """Checkpoint of the unmerged network, for distillation; None: the weights of `init`."""
    head: Head | None = None
    """Start of a classifier that the weights of `init` lack: `probe` fits it to their features, `random` leaves timm's
    initialisation; None: `probe`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    resume: bool = False
    """Continue the training in `out`."""

    def __post_init__(self) -> None:
        if self.head is not None:
            check_choice("--head", self.head, Head)
        if self.head == "probe" and self.init is None:
            raise InputError(
                "--head probe needs trained weights, whose features a classifier is fitted to: use --init FILE"
            )

    def fixed(self) -> dict[str, str | None]:
        """Return the options that a resumed training must have unchanged."""
        own = {name: value for name, value in asdict(self).items() if name not in ("out", "device", "resume", "layout")}
        # The state of a training has the classes themselves, which a class map in another place may have too.
        values = {**own, "train_split": self.layout.train_split, "val_split": self.layout.val_split}
        return {name: None if value is None else str(value) for name, value in values.items()}


def default_folder(recipe: Recipe, path: Path) -> Path:
    """Return `trainings/<study>-<trial>`, or use the recipe's file name if its study is unknown."""
    origin = [str(recipe.provenance[name]) for name in ("study", "trial") if name in recipe.provenance]
    name = "-".join(origin) if len(origin) == 2 else path.stem
    return Path("trainings") / (safe_name(name) or "recipe")  # neither `..` nor a hidden folder
