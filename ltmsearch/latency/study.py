"""Latency data of a study: its profile, the fitted model, and measurements of the final front."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.network import network_keys
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.costs import CostModel, LatencyModel
from ltmsearch.errors import InputError
from ltmsearch.latency.build import build_profile, profile_space, target_costs
from ltmsearch.latency.measurement import MIN_RUNS, SAMPLE_SECONDS, InterleavedTimer, Measurement
from ltmsearch.latency.profile import LatencyProfile, find_profile, profile_path
from ltmsearch.latency.runtimes import open_runner
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space_file import SpaceFile

_log = logging.getLogger(__name__)

PROFILE = "latency.json"
"""File name of the profile in a run directory; a resumed study uses it again."""
DRIFT = 0.05
"""Relative change of the plain network's latency from which it is reported."""
ROUNDS, EXTRA_ROUNDS = 6, 2
"""Samples of each network, and how often as many are added while it is unstable."""


@dataclass(frozen=True, kw_only=True)
class StudyLatency:
    """Latency of every schedule of a study."""

    profile: LatencyProfile
    model: LatencyModel
    differences: tuple[str, ...]
    """Differences between this machine and the profile's target; empty if networks can be measured here."""

    @property
    def can_measure(self) -> bool:
        """Whether this machine is the profile's target."""
        return not self.differences

    def describe(self) -> list[str]:
        """Return lines for a person."""
        profile = self.profile
        lines = [
            f"latency: {profile.target}; plain network {profile.plain.ms:.2f} ms",
            f"predicted from {len(profile.subnets)} timed subnets, {profile.check}",
        ]
        if not self.can_measure:
            reasons = "; ".join(self.differences)
            lines.append(f"this machine differs from the profile's, so the final front is not timed: {reasons}")
        return lines

    def measuring_seconds(self, networks: int) -> float:
        """Expected duration of `measure`, in seconds, as long as no network needs more samples."""
        sample = max(SAMPLE_SECONDS, MIN_RUNS * self.profile.plain.ms / 1e3)
        return networks * ROUNDS * 2 * sample  # each with a sample of the plain network

    def measure(self, schedules: Sequence[MergeSchedule], callbacks: Callbacks) -> dict[MergeSchedule, Measurement]:
        """Measure subnets and the plain network; `callbacks` receives progress and a note if the machine changed."""
        profile = self.profile
        measured = measure(
            profile.backbone, profile.operator, profile.target, schedules, callbacks, plain_ms=profile.plain.ms
        )
        plain = measured[MergeSchedule.uniform(self.model.layers, 1.0, profile.operator)]
        if abs(plain.least_ms / profile.plain.ms - 1) > DRIFT:
            callbacks.note(
                f"the plain network takes {plain.least_ms:.2f} ms now and took {profile.plain.ms:.2f} ms when "
                "profiled; latencies are scaled to the faster of both"
            )
        return measured


def measure(
    backbone: str,
    operator: str,
    target: LatencyTarget,
    schedules: Sequence[MergeSchedule],
    callbacks: Callbacks,
    *,
    plain_ms: float | None = None,
) -> dict[MergeSchedule, Measurement]:
    """Measure the latency of subnets of a backbone and of the plain network."""
    supernet, costs = target_costs(backbone, operator, target)
    plain = MergeSchedule.uniform(costs.layers, 1.0, operator)
    unique = list(dict.fromkeys(supernet.canonical(schedule) for schedule in schedules))
    merging = [schedule for schedule in unique if schedule.merging_layers] or [plain]
    with open_runner(target, supernet) as runner:
        timer = InterleavedTimer(runner, plain, device=target.device, threads=target.threads, plain_ms=plain_ms)
        callbacks.phase("timing networks", len(merging) * ROUNDS)
        for done, _ in enumerate(timer.sample(merging, ROUNDS, extra_rounds=EXTRA_ROUNDS), start=1):
            callbacks.advance(min(done, len(merging) * ROUNDS))
        return {schedule: timer.measurement(supernet.canonical(schedule)) for schedule in (*schedules, plain)}


def study_latency(
    settings: ResolvedSettings, file: SpaceFile, costs: CostModel, num_classes: int, callbacks: Callbacks
) -> StudyLatency:
    """Return the latency data of a study: from its run directory, a given file, the cache, or measured now.

    Raises:
        InputError: If a profile is damaged or does not fit the study.
    """
    space = profile_space(file, costs)
    path = settings.run_dir / PROFILE
    if not path.exists() and settings.latency_profile:
        path = Path(settings.latency_profile)
    elif not path.exists():
        target = settings_target(settings, num_classes)
        path = profile_path(settings.backbone, settings.operator, space, target)
        if find_profile(path) is None:
            build_profile(settings.backbone, settings.operator, file, target, callbacks).save(path)
    profile = LatencyProfile.load_file(path)
    profile.require(
        path,
        backbone=settings.backbone,
        operator=settings.operator,
        space=space.digest(),
        img_size=settings.img_size,
        **network_keys(settings),
    )
    _log.info("latency profile %s: plain network %.3f ms, %s", path, profile.plain.ms, profile.check)
    model = profile.model(costs)
    try:
        model.table(space.choices)
    except ValueError as error:  # a file written by hand may lack a choice
        raise InputError(f"{path} must have every choice of the search space: {error}") from None
    return StudyLatency(profile=profile, model=model, differences=tuple(profile.target.differences_to_local()))


def settings_target(settings: ResolvedSettings, num_classes: int) -> LatencyTarget:
    """Return the target named by a study's settings.

    Raises:
        InputError: If this machine does not support it.
    """
    return LatencyTarget.local(
        device=settings.latency_device or settings.device,
        runtime=settings.latency_runtime,
        dtype=settings.latency_dtype,
        memory_format=settings.latency_memory_format,
        batch_size=settings.latency_batch,
        threads=settings.latency_threads,
        img_size=settings.img_size,
        num_classes=settings.num_classes or num_classes,
        **network_keys(settings),
    )
