"""What `ltmsearch profile` does, for a backbone and for a recipe."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import load_recipe
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.errors import InputError
from ltmsearch.io.files import refuse_unwritable
from ltmsearch.latency.build import build_profile, profile_space
from ltmsearch.latency.console import profile_record
from ltmsearch.latency.profile import find_profile, profile_path
from ltmsearch.latency.study import measure
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.merging import get_operator
from ltmsearch.models import get_adapter
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SpaceFile

_log = logging.getLogger(__name__)


def profile_backbone(
    backbone: str,
    operator: str,
    space: str | None,
    target: Mapping[str, Any],
    *,
    again: bool = False,
    out: Path | None = None,
    callbacks: Callbacks | None = None,
) -> tuple[LatencyTarget, dict[str, Any]]:
    """The latency profile of a backbone: the one that was kept, or made now and kept.

    Args:
        backbone: timm name.
        operator: Merging operator.
        space: Search-space file, or the name of a shipped one; None: the family's own.
        target: Arguments of `LatencyTarget.here`.
        again: Make it anew.
        out: Write it here as well.
        callbacks: Receives progress.

    Returns:
        The target, and what is told of the profile.

    Raises:
        InputError: If a name is unknown, or this machine cannot do what is asked.
    """
    callbacks = callbacks or Callbacks()
    if out is not None:
        refuse_unwritable(out.parent, "the folder")
        if out.is_dir():
            raise InputError(f"--out must be a file, but {out} is a folder")
    file = SpaceFile.load(space, family=get_adapter(backbone).family)
    get_operator(operator)
    here = LatencyTarget.here(**target)
    costs = backbone_costs(backbone, here.img_size, operator, num_classes=here.num_classes)
    choices = profile_space(file, costs)
    path = profile_path(backbone, operator, choices, here)
    profile = None if again else find_profile(path)
    _log.info("profile %s: %s", path, "to be made" if profile is None else "found")
    if profile is None:
        profile = build_profile(backbone, operator, file, here, callbacks)
        profile.save(path)
    if out is not None:
        profile.save(out)
    return here, profile_record(profile, costs, choices, str(path))


def profile_recipe(
    path: Path, target: Mapping[str, Any], callbacks: Callbacks | None = None
) -> tuple[LatencyTarget, dict[str, Any]]:
    """A recipe's net and the plain one, timed beside each other.

    Args:
        path: The recipe.
        target: Arguments of `LatencyTarget.here`; image size and classes are the recipe's where they are not given.
        callbacks: Receives progress.

    Returns:
        The target, and per net its reading and cost.

    Raises:
        InputError: If the recipe is missing or damaged, or this machine cannot do what is asked.
    """
    recipe = load_recipe(path)
    here = LatencyTarget.here(**{"img_size": recipe.img_size, "num_classes": recipe.num_classes, **target})
    costs = backbone_costs(recipe.backbone, here.img_size, recipe.schedule.operator, num_classes=here.num_classes)
    operator = recipe.schedule.operator
    plain = MergeSchedule.uniform(costs.layers, 1.0, operator)
    schedules = {f"plain {recipe.backbone}": plain, path.name: recipe.schedule}
    readings = measure(
        recipe.backbone, recipe.schedule.operator, here, list(schedules.values()), callbacks or Callbacks()
    )
    nets = {
        name: {"reading": readings[schedule].model_dump(), "gflops": costs.macs(schedule) / GIGA}
        for name, schedule in schedules.items()
    }
    return here, {"backbone": recipe.backbone, "recipe": str(path), "target": here.model_dump(), "nets": nets}
