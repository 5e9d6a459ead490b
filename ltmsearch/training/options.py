"""Where a training takes its data and weights from, and where it leaves its own."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltmsearch.config.recipe import Recipe
from ltmsearch.errors import shortened

STATE, RECIPE, LOG = "state.safetensors", "recipe.yaml", "log.csv"
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What a training needs beside its recipe."""

    out: Path
    """Folder of the training."""
    dataset: str = "digits"
    """`digits` (built in), `folder`, or a timm data set name."""
    data_dir: Path | None = None
    """Where the data lie."""
    init: Path | None = None
    """Weights to start from: a checkpoint file, or the run directory of a study for its shared weights."""
    teacher: Path | None = None
    """Checkpoint of the unmerged net, for distillation; None: the weights of `init`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    resume: bool = False
    """Go on with the training in `out`."""

    def decisive(self) -> dict[str, Any]:
        """What a training that goes on must have the same."""
        values = {name: value for name, value in asdict(self).items() if name not in ("out", "device", "resume")}
        return {name: None if value is None else str(value) for name, value in values.items()}


def default_folder(recipe: Recipe, path: Path) -> Path:
    """`trainings/<study>-<trial>`, or with the recipe's file name where its origin is unknown."""
    origin = [str(recipe.provenance[name]) for name in ("study", "trial") if name in recipe.provenance]
    name = "-".join(origin) if len(origin) == 2 else path.stem
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in shortened(name, 100))
    return Path("trainings") / (plain.lstrip(".") or "recipe")  # no `..`, and nothing that is hidden
