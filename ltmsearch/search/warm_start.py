"""What an earlier study knows: its shared weights, and the schedules of its front."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltmsearch.config.settings import SETTINGS, ResolvedSettings
from ltmsearch.errors import InputError
from ltmsearch.models import LoadReport, load_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Choice, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.checkpoint import WEIGHTS
from ltmsearch.search.records import TRIALS, TrialRecord
from ltmsearch.search.run import Run


@dataclass(frozen=True, kw_only=True)
class Prior:
    """An earlier study of the same backbone, with whatever data, budget and operator."""

    run: Path
    """Its run directory."""
    settings: ResolvedSettings
    """Its settings."""
    front: tuple[TrialRecord, ...]
    """Its front, best first."""

    @classmethod
    def open(cls, run: Path, *, backbone: str) -> "Prior":
        """Read a run directory.

        Args:
            run: Where it is.
            backbone: Of the study that is to start from it.

        Raises:
            InputError: If it holds no study that came to trials, or one of another backbone.
        """
        for name in (SETTINGS, WEIGHTS, TRIALS):
            if not (run / name).is_file():
                raise InputError(
                    f"--resume-from must be the run directory of a study that ended or was stopped, but {run} holds no "
                    f"{name}"
                )
        earlier = Run.open(run)
        settings = earlier.settings
        if settings.backbone != backbone:
            raise InputError(
                f"--resume-from must be a study of {backbone}, but {run} is one of {settings.backbone}: "
                "weights and schedules do not carry over"
            )
        return cls(run=run, settings=settings, front=tuple(earlier.front))

    def load_into(self, supernet: Supernet) -> LoadReport:
        """Give a supernet the earlier shared weights, in place: with another operator or other classes what fits.

        Returns:
            What stayed as initialised and what was not used.

        Raises:
            InputError: If the file is damaged.
        """
        return load_weights(supernet.model, self.run / WEIGHTS)

    def schedules(self, space: SearchSpace) -> list[tuple[str, np.ndarray]]:
        """The front's schedules as (name, (L,) choice indices), each layer at what the space has nearest."""
        return [
            (f"trial {record.trial} of {self.settings.study}", nearest(space, record.schedule)) for record in self.front
        ]


def nearest(space: SearchSpace, schedule: MergeSchedule) -> np.ndarray:
    """(L,) choice indices nearest to a schedule, which may be of another operator.

    Per layer the nearest keep ratio counts first, then the same form; a plain layer stays plain.
    """
    return np.array(
        [
            _nearest(options, schedule.keep_ratio(layer), schedule.form(layer))
            for layer, options in zip(space.layers, space.choices, strict=True)
        ]
    )


def _nearest(options: Sequence[Choice], ratio: float, form: str | None) -> int:
    if ratio == 1:
        return 0
    merging = range(1, len(options))
    return min(merging, key=lambda i: (abs(options[i].keep_ratio - ratio), options[i].form != form), default=0)
