"""Which settings a study keeps when it continues, and which may change."""

from pathlib import Path
from typing import Any

from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError

MAY_CHANGE = frozenset(
    {"trials", "timeout", "out", "storage_password", "budget_gflops", "lowest_gflops", "budget_ms", "tolerance"}
    | {"workers", "ray_address", "gpus_per_worker", "trial_timeout", "data_dir", "class_map", "scoring_batch_size"}
)
"""Settings that may change when a study continues; but a budget may not change to another kind of cost, and the data
must have the same classes and numbers of images."""
KEPT = ("study", "scoring_batch_size", "screened_schedules")
"""Settings of a stored study that hold unless others are given, where defaults depend on a budget or have changed."""
MEANINGS_OF_NONE = {"head": "probe"}
"""Settings that may be given or not, to the same effect."""


def continued(given: StudySettings, stored: StudySettings | None) -> StudySettings:
    """The given settings with `study` and `out` filled in, and with what a stored study keeps; None: a new study."""
    kept = {} if stored is None else {name: getattr(stored, name) for name in KEPT if getattr(given, name) is None}
    return given.model_copy(update={"study": given.study_name, "out": str(given.run_dir), **kept})


def refuse_other_settings(given: StudySettings, stored: StudySettings, path: Path) -> None:
    """Raise unless the given settings continue a study that was started with `stored` in the run directory `path`.

    Raises:
        InputError: Naming each setting that differs.
    """
    refuse_other_costs(given, stored, path)
    before, now = stored.absolute(), given.absolute()
    differing = [
        f"{name} was {getattr(before, name)!r} and is now {getattr(now, name)!r}"
        for name in type(given).model_fields
        if name not in MAY_CHANGE and _meaning(before, name) != _meaning(now, name)
    ]
    if differing:
        raise InputError(
            f"{path} contains a study with other settings ({'; '.join(differing)}): continue it with its own, "
            "or start another with --study NAME or --out DIR"
        )


def _meaning(settings: StudySettings, name: str) -> Any:
    value = getattr(settings, name)
    return MEANINGS_OF_NONE.get(name) if value is None else value


def refuse_other_costs(given: StudySettings, stored: StudySettings, path: Path) -> None:
    """Raise if the given settings limit another kind of cost than those a study was started with.

    Raises:
        InputError: Naming the kind.
    """
    for budget, unit in (("budget_gflops", "GFLOPs"), ("budget_ms", "ms")):
        before, now = getattr(stored, budget), getattr(given, budget)
        if (before is None) != (now is None):
            raise InputError(
                f"{path} contains a study {'without' if before is None else 'with'} a budget in {unit}, which may "
                "change its limit but not its kind of cost: start another with --study NAME or --out DIR"
            )
