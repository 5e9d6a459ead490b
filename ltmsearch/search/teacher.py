"""The teacher: what the plain network predicts for every image that a trial learns from or is scored on.

The network is the plain one as it is when the warm-up's sandwich steps begin. Its predictions are computed once and
saved, so that they stay the same while the shared weights change, and are the same in every worker.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.evaluation import Batches, log_probabilities
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError, check_choice
from ltmsearch.io.safetensors_state import load_state, save_state

TEACHER = "teacher.safetensors"
"""File in a run directory."""

Images = Literal["search", "validation", "report", "train"]
"""Sets of images: those that score trials, that choose the front, that are reported, and that all trials train on."""


@dataclass(kw_only=True)
class Teacher:
    """Log-probabilities of the plain network by set of images, (images, classes) float32 each, on the CPU."""

    predictions: dict[str, Tensor] = field(default_factory=dict)
    """By the names of `Images`; empty while the warm-up runs, and in a study that learns from labels."""

    def of(self, images: Images, number: int | None = None) -> Tensor | None:
        """Predictions for the first images of a set; None without a teacher."""
        check_choice("the set of images", images, Images)
        found = self.predictions.get(images)
        return None if found is None else found[:number]

    def learn(self, network: nn.Module, data: ImageData, runtime: Runtime, settings: ResolvedSettings) -> None:
        """Compute the predictions of a network for all sets."""
        sets = _sets(data, settings)
        self.predictions = {name: log_probabilities(network, batches, runtime) for name, batches in sets}

    def save(self, folder: Path) -> None:
        """Write the predictions to a run directory."""
        save_state(folder / TEACHER, dict(self.predictions))

    def load(self, folder: Path, data: ImageData, settings: ResolvedSettings) -> None:
        """Read the predictions of a run directory.

        Raises:
            InputError: If the file is missing, damaged, or has predictions for other numbers of images.
        """
        path = folder / TEACHER
        sizes: dict[Images, int] = {
            "search": data.search_size, "validation": data.validation_size, "report": data.report_size,
        }  # fmt: skip
        if settings.proxy_steps:
            sizes["train"] = settings.proxy_steps * settings.batch_size
        try:
            found = load_state(path)
        except InputError:
            found = {}
        if {name: len(rows) for name, rows in found.items() if isinstance(rows, Tensor)} != sizes:
            raise InputError(
                f"{path} must have the plain network's predictions, which trials learn from, but it is "
                f"{'damaged or of another study' if path.exists() else 'missing'}; restore it, or start another study "
                "with --out DIR"
            )
        self.predictions = {name: found[name] for name in sizes}


def trial_batches(data: ImageData, settings: ResolvedSettings, batch_size: int) -> Batches:
    """The batches of a trial: the same images in the same order for all, whatever the batch size."""
    steps = settings.proxy_steps * settings.batch_size // batch_size
    return data.train_batches(batch_size=batch_size, steps=steps, seed=TRIAL_SEED + settings.seed)


TRIAL_SEED = 1 << 32
"""Seeds of trials' batches begin here, so that they are not those of the warm-up."""
_BATCH = 32


def _sets(data: ImageData, settings: ResolvedSettings) -> Iterable[tuple[Images, Batches]]:
    yield "search", data.search_batches(batch_size=_BATCH)
    yield "validation", data.validation_batches(batch_size=_BATCH)
    yield "report", data.report_batches(batch_size=_BATCH)
    if settings.proxy_steps:
        yield "train", trial_batches(data, settings, settings.batch_size)
