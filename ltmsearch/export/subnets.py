"""The subnets that a study or a training holds, with their weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.config.settings import SETTINGS
from ltmsearch.errors import InputError
from ltmsearch.models.checkpoints import load_trained
from ltmsearch.reporting.recipes import make_recipe
from ltmsearch.search.checkpoint import WEIGHTS, load_checkpoint
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.run import Run
from ltmsearch.search.setup import prepare_evaluator
from ltmsearch.search.trial import Evaluator
from ltmsearch.training.options import BEST, RECIPE

CALIBRATION_IMAGES = 256
"""Training images that an exported subnet's BatchNorm statistics come from, unless the study used more: what a search
saves on images does to all its scores alike, but a net that leaves is to be as good as it can."""


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """One subnet that is to leave."""

    recipe: Recipe
    """The net and how it is trained."""
    trial: int | None
    """Its number in the study; None in a training."""
    class_names: tuple[str, ...] | None
    """Classes in the order of the outputs; None: not known."""
    build: Callable[[], nn.Module]
    """The net with its weights. It may take a while, and is called only if weights are wanted."""


def is_study(run: Path) -> bool:
    """Whether a folder is the run directory of a study, or else of a training.

    Raises:
        InputError: If it is neither.
    """
    if Run.exists(run):
        return True
    if (run / RECIPE).is_file():
        return False
    lacks = f"holds neither {SETTINGS} nor {RECIPE}" if run.is_dir() else "is no folder"
    raise InputError(f"{run} must be the run directory of a study or the folder of a training, but {lacks}")


def study_subnets(run: Run, records: Sequence[TrialRecord], callbacks: Callbacks) -> list[Subnet]:
    """Trials of a study with the final shared weights, each with BatchNorm statistics of its own.

    Args:
        run: Run directory of the study.
        records: The trials.
        callbacks: Receives a note on the data being read.

    Raises:
        InputError: If the shared weights are missing or damaged.
    """
    settings = run.settings
    loaded = load_checkpoint(run.folder)
    if loaded is None:
        raise InputError(f"{run.folder} holds no shared weights")
    shared, state = loaded
    evaluators: list[Evaluator] = []

    def build(record: TrialRecord) -> nn.Module:
        if not evaluators:
            callbacks.note("reading the study's data: each subnet gets BatchNorm statistics of its own")
            images = max(CALIBRATION_IMAGES, settings.calibration_images)
            evaluator = prepare_evaluator(settings.model_copy(update={"calibration_images": images}), callbacks)
            evaluator.supernet.check_weights(shared, run.folder / WEIGHTS)
            evaluator.supernet.load_state_dict(shared)
            evaluators.append(evaluator)
        return evaluators[0].recalibrated_subnet(record.schedule)

    names = tuple(state.class_names)
    return [
        Subnet(
            recipe=make_recipe(record, settings, num_classes=len(names)),
            trial=record.trial,
            class_names=names,
            build=partial(build, record),
        )
        for record in records
    ]


def trained_subnet(run: Path, checkpoint: Path | None, callbacks: Callbacks) -> Subnet:
    """The subnet of a training.

    Args:
        run: Folder of the training.
        checkpoint: Its weights; None: the best that the training kept.
        callbacks: Receives a note on what was not loaded.

    Raises:
        InputError: If recipe or weights are missing, damaged or do not belong together.
    """
    recipe = load_recipe(run / RECIPE)
    network = load_trained(recipe, run / BEST if checkpoint is None else checkpoint)
    if network.shared:
        raise InputError(
            f"--checkpoint must be the weights of one subnet, but {network.checkpoint} holds the shared ones of a "
            "study; ltmsearch export takes its run directory"
        )
    for note in network.notes:
        callbacks.note(f"{network.checkpoint}: {note}")
    return Subnet(recipe=recipe, trial=None, class_names=network.class_names, build=lambda: network.model)
