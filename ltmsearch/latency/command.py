"""The command `ltmsearch profile`, for a backbone and for a recipe."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import load_recipe
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.errors import InputError
from ltmsearch.io.files import refuse_unwritable
from ltmsearch.latency.build import build_profile, profile_space, refuse_thresholds
from ltmsearch.latency.console import profile_record
from ltmsearch.latency.profile import find_profile, profile_path
from ltmsearch.latency.study import measure
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.models import get_adapter
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space_file import SpaceFile

_log = logging.getLogger(__name__)


def profile_backbone(
    backbone: str,
    operator: str,
    space: str | None,
    target_options: Mapping[str, Any],
    *,
    again: bool = False,
    out: Path | None = None,
    callbacks: Callbacks | None = None,
) -> tuple[LatencyTarget, dict[str, Any]]:
    """Return the latency profile of a backbone from the cache, or measure it.

    Returns:
        The target, and the profile's record for JSON.

    Raises:
        InputError: If a name is unknown, or this machine does not support the target.
    """
    callbacks = callbacks or Callbacks()
    if out is not None:
        refuse_unwritable(out.parent, "the folder")
        if out.is_dir():
            raise InputError(f"--out must be a file, but {out} is a folder")
    file = SpaceFile.load(space, family=get_adapter(backbone).family)
    refuse_thresholds(operator)
    target = LatencyTarget.local(**target_options)
    costs = backbone_costs(backbone, target.img_size, operator, **target.network)
    search_space = profile_space(file, costs)
    path = profile_path(backbone, operator, search_space, target)
    profile = None if again else find_profile(path)
    _log.info("profile %s: %s", path, "not found" if profile is None else "found")
    if profile is None:
        profile = build_profile(backbone, operator, file, target, callbacks)
        profile.save(path)
    if out is not None:
        profile.save(out)
    return target, profile_record(profile, costs, search_space, str(path))


def profile_recipe(
    path: Path, target_options: Mapping[str, Any], callbacks: Callbacks | None = None
) -> tuple[LatencyTarget, dict[str, Any]]:
    """Time a recipe's network and the plain one.

    Returns:
        The target, and a record with latency and cost of both networks for JSON.

    Raises:
        InputError: If the recipe is missing or damaged, or this machine does not support the target.
    """
    recipe = load_recipe(path)
    backbone, operator = recipe.backbone, recipe.schedule.operator
    refuse_thresholds(operator)
    names = ("img_size", "num_classes", "in_chans", "registers", "readout")
    own = {name: getattr(recipe, name) for name in names}
    target = LatencyTarget.local(**{**own, "model_kwargs": recipe.timm_kwargs, **target_options})
    costs = backbone_costs(backbone, target.img_size, operator, **target.network)
    plain = MergeSchedule.uniform(costs.layers, 1.0, operator)
    schedules = {f"plain {backbone}": plain, path.name: recipe.schedule}
    measured = measure(backbone, operator, target, list(schedules.values()), callbacks or Callbacks())
    nets = {
        name: {"reading": measured[schedule].model_dump(), "gflops": costs.macs(schedule) / GIGA}
        for name, schedule in schedules.items()
    }
    return target, {"backbone": backbone, "recipe": str(path), "target": target.model_dump(), "nets": nets}
