"""What a study knows of latency: a profile, the model in it, and whether nets can be timed here to check it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.costs import CostModel, LatencyModel
from ltmsearch.errors import InputError
from ltmsearch.latency.build import build_profile, profile_space, target_costs
from ltmsearch.latency.measurement import Reading, Session
from ltmsearch.latency.profile import LatencyProfile, find_profile, profile_path
from ltmsearch.latency.runtimes import open_stage
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SpaceFile

_log = logging.getLogger(__name__)

PROFILE = "latency.json"
"""Name of the profile in a run directory: a study goes on with the one that it began with."""
DRIFT = 0.05
"""Change of the plain net's latency, as a share, that is worth telling."""
ROUNDS, AGAIN = 6, 2
"""Visits to each net that is timed at the close, and how often as many are added while it is unstable."""


@dataclass(frozen=True, kw_only=True)
class StudyLatency:
    """The latency of every schedule of a study."""

    profile: LatencyProfile
    model: LatencyModel
    differences: tuple[str, ...]
    """In what this machine differs from the profile's target, or why it cannot be that."""

    @property
    def here(self) -> bool:
        """Whether nets can be timed here."""
        return not self.differences

    def describe(self) -> list[str]:
        """Lines for a person."""
        profile = self.profile
        lines = [
            f"latency: {profile.target}; plain net {profile.plain.ms:.2f} ms",
            f"predicted from {len(profile.subnets)} timed subnets, {profile.check}",
        ]
        if not self.here:
            lines.append(
                "this machine is not the one that was timed, so the front cannot be timed at the close: "
                + "; ".join(self.differences)
            )
        return lines

    def measure(self, schedules: Sequence[MergeSchedule], callbacks: Callbacks) -> dict[MergeSchedule, Reading]:
        """Time subnets end to end, and the plain net beside them.

        Args:
            schedules: The subnets; the plain net may be among them.
            callbacks: Receives a note on progress, and of a machine that has become slower or faster.
        """
        profile = self.profile
        readings = measure(
            profile.backbone, profile.operator, profile.target, schedules, callbacks, plain_ms=profile.plain.ms
        )
        now = readings[MergeSchedule.uniform(self.model.layers, 1.0, profile.operator)]
        if abs(now.least_ms / profile.plain.ms - 1) > DRIFT:
            callbacks.note(
                f"the plain net takes {now.least_ms:.2f} ms now and took {profile.plain.ms:.2f} ms when profiled: "
                "the machine is in another state, and latencies are given for the faster one"
            )
        return readings


def measure(
    backbone: str,
    operator: str,
    target: LatencyTarget,
    schedules: Sequence[MergeSchedule],
    callbacks: Callbacks,
    *,
    plain_ms: float | None = None,
) -> dict[MergeSchedule, Reading]:
    """Time subnets of a backbone end to end, and the plain net beside them.

    Args:
        backbone: timm name.
        operator: Merging operator.
        target: Where and how, on this machine.
        schedules: The subnets; the plain net may be among them.
        callbacks: Receives progress.
        plain_ms: See `Session`.

    Returns:
        Schedule → its reading, the plain net's too.
    """
    supernet, costs = target_costs(backbone, operator, target)
    plain = MergeSchedule.uniform(costs.layers, 1.0, operator)
    wanted = list(dict.fromkeys(supernet.canonical(schedule) for schedule in schedules))
    merging = [schedule for schedule in wanted if schedule.merging_layers] or [plain]
    with open_stage(target, supernet) as stage:
        session = Session(stage, plain, device=target.device, threads=target.threads, plain_ms=plain_ms)
        callbacks.phase("timing nets", len(merging) * ROUNDS)
        for done, _ in enumerate(session.visit_all(merging, ROUNDS, again=AGAIN), start=1):
            callbacks.advance(min(done, len(merging) * ROUNDS))
        return {schedule: session.reading(supernet.canonical(schedule)) for schedule in (*schedules, plain)}


def study_latency(
    settings: ResolvedSettings, file: SpaceFile, costs: CostModel, num_classes: int, callbacks: Callbacks
) -> StudyLatency:
    """The latencies that a study is held to: from its run directory, a given file, an earlier run, or timed now.

    Args:
        settings: Of the study, with a latency budget.
        file: Its search-space file.
        costs: Of its backbone.
        num_classes: Of its data.
        callbacks: Receives a note on the timing.

    Raises:
        InputError: If a profile is damaged or for something else.
    """
    kept = settings.run_dir / PROFILE
    given = Path(settings.latency_profile) if settings.latency_profile else None
    space = profile_space(file, costs)
    path = kept if kept.exists() else given
    if path is None:
        target = settings_target(settings, num_classes)
        path = profile_path(settings.backbone, settings.operator, space, target)
        profile = find_profile(path)
        if profile is None:
            profile = build_profile(settings.backbone, settings.operator, file, target, callbacks)
            profile.save(path)
    else:
        profile = LatencyProfile.load_file(path)
        profile.refuse_unless_for(
            path,
            backbone=settings.backbone,
            operator=settings.operator,
            space=space.digest(),
            img_size=settings.img_size,
        )
    _log.info("latency profile %s: plain net %.3f ms, %s", path, profile.plain.ms, profile.check)
    model = profile.model(costs)
    try:
        model.table(space.choices)
    except ValueError as error:  # a file made by hand may leave something out
        raise InputError(f"{path} does not hold every choice of the search space: {error}") from None
    return StudyLatency(profile=profile, model=model, differences=tuple(differences_here(profile.target)))


def settings_target(settings: ResolvedSettings, num_classes: int) -> LatencyTarget:
    """The target that a study's settings name.

    Raises:
        InputError: If this machine cannot do that.
    """
    return LatencyTarget.here(
        device=settings.latency_device or settings.device,
        runtime=settings.latency_runtime,
        dtype=settings.latency_dtype,
        memory_format=settings.latency_memory_format,
        batch_size=settings.latency_batch,
        threads=settings.latency_threads,
        img_size=settings.img_size,
        num_classes=num_classes,
    )


def differences_here(target: LatencyTarget) -> list[str]:
    """In what a target differs from this machine as it is now, as phrases; none where it is this machine."""
    try:
        here = LatencyTarget.here(
            **target.model_dump(
                include={
                    "device", "runtime", "dtype", "memory_format", "batch_size", "threads", "img_size", "num_classes",
                }
            )
        )  # fmt: skip
    except InputError as error:
        return [str(error)]
    return target.differences(here)
