"""Run directories: the settings, trials and front of a study, read from its files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from ltmsearch.config.settings import SETTINGS, ResolvedSettings
from ltmsearch.engine.probe_record import ProbeRecord
from ltmsearch.errors import InputError
from ltmsearch.io.files import read_json
from ltmsearch.io.yaml_models import read_yaml
from ltmsearch.search.answers import ANSWERS, Answers
from ltmsearch.search.curve_points import BASELINES, CurvePoint, read_curves
from ltmsearch.search.records import TRIALS, TrialRecord, read_trials, select_front

PROBE_RECORD = "probe.json"
"""File in a run directory: what the linear probe of a new classifier found."""


@dataclass(frozen=True)
class Run:
    """The run directory of a study, opened for reading. `Run.open` is the only way in."""

    folder: Path
    """The run directory."""
    settings: ResolvedSettings
    """Settings of the study, every default filled in."""

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder is the run directory of a study."""
        return (folder / SETTINGS).is_file()

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Read the settings of a run directory; trials are read when they are first used.

        Raises:
            InputError: If the folder is not a run directory, or its settings are damaged or of an earlier version.
        """
        folder = Path(folder)
        if not cls.exists(folder):
            found = f"has no {SETTINGS}" if folder.is_dir() else "is not a folder"
            raise InputError(f"expected the run directory of a study, but {folder} {found}")
        _refuse_earlier_version(folder / SETTINGS)
        return cls(folder, ResolvedSettings.load(folder / SETTINGS))

    @cached_property
    def trials(self) -> list[TrialRecord]:
        """All trials, in order.

        Raises:
            InputError: If `trials.csv` is missing or damaged.
        """
        return read_trials(self.folder / TRIALS, self.settings.operator)

    @cached_property
    def probe(self) -> ProbeRecord | None:
        """See `load_probe`."""
        return load_probe(self.folder)

    @cached_property
    def front(self) -> list[TrialRecord]:
        """The trials of the Pareto front, best first."""
        return select_front(self.trials, self.settings.axis)

    @cached_property
    def answers(self) -> Answers | None:
        """See `load_answers`."""
        return load_answers(self.folder)

    @cached_property
    def curves(self) -> list[CurvePoint]:
        """Curves of baselines; empty before the final scores, and where baselines are not fitted to the budget.

        Raises:
            InputError: If `baselines.csv` is damaged.
        """
        return read_curves(self.folder / BASELINES)


def _refuse_earlier_version(path: Path) -> None:
    """Raise `InputError` before the first setting that such a version has, or lacks, is called unknown."""
    known, found = ResolvedSettings.model_fields["schema_version"].default, read_yaml(path).get("schema_version")
    if isinstance(found, int) and found < known:
        raise InputError(
            f"{path}: schema_version must be {known} for this ltmsearch, but got {found}: an earlier version began the "
            "study, and only that can continue it; start another with --study NAME or --out DIR"
        )


def load_answers(folder: Path) -> Answers | None:
    """What the finalists of a study answer on the reported images; None before the final scores.

    Raises:
        InputError: If `answers.csv` is damaged.
    """
    path = folder / ANSWERS
    return Answers.load(path) if path.exists() else None


def load_probe(folder: Path) -> ProbeRecord | None:
    """What the linear probe before the warm-up of a study found; None if there was no new classifier to fit.

    Raises:
        InputError: If `probe.json` is damaged or of another version.
    """
    path = folder / PROBE_RECORD
    try:
        return ProbeRecord.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError):
        raise InputError(
            f"{path} is damaged or of another version; restore it, or delete it to show results without it"
        ) from None
