"""Warm start: the shared weights and the front of an earlier study."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltmsearch.config.settings import SETTINGS, ResolvedSettings
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import THRESHOLDS, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.checkpoint import WEIGHTS
from ltmsearch.search.records import TRIALS, TrialRecord
from ltmsearch.search.run import Run


@dataclass(frozen=True, kw_only=True)
class Prior:
    """An earlier study of the same backbone, with any data, budget and operator."""

    run: Path
    settings: ResolvedSettings
    front: tuple[TrialRecord, ...]
    """Best first."""

    @classmethod
    def open(cls, run: Path, *, backbone: str) -> "Prior":
        """Read the run directory of an earlier study.

        Raises:
            InputError: If the folder holds no study with trials, or one of another backbone.
        """
        for name in (SETTINGS, WEIGHTS, TRIALS):
            if not (run / name).is_file():
                raise InputError(
                    f"--resume-from must be the run directory of a finished or stopped study, but {run} has no {name}"
                )
        earlier = Run.open(run)
        settings = earlier.settings
        if settings.backbone != backbone:
            raise InputError(
                f"--resume-from must be a study of {backbone}, but {run} is of {settings.backbone}: weights and "
                "schedules cannot be reused"
            )
        return cls(run=run, settings=settings, front=tuple(earlier.front))

    def schedules(self, space: SearchSpace) -> list[tuple[str, np.ndarray]]:
        """The schedules of the front as (name, (I,) choice indices), each layer at the nearest choice of the space.

        Keep ratios say nothing about thresholds, nor the other way round.
        """
        if (self.settings.operator in THRESHOLDS) != (space.operator in THRESHOLDS):
            return []
        return [
            (f"trial {record.trial} of {self.settings.study}", nearest(space, record.schedule)) for record in self.front
        ]


def nearest(space: SearchSpace, schedule: MergeSchedule) -> np.ndarray:
    """(I,) choice indices nearest to a schedule, which may be of another operator.

    The share of kept tokens is matched first, then the form; a plain layer stays plain.
    """
    indices = space.plain
    if schedule.img_size in space.img_sizes[: space.searched_sizes]:
        indices[-1] = space.img_sizes.index(schedule.img_size)
    for place, layer in enumerate(space.layers):
        ratio, form = schedule.keep_ratio(layer), schedule.form(layer)
        if ratio < 1:
            indices[place] = space.nearest_choice(place, ratio, form, merging=True)
    return indices
