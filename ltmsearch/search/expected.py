"""Expected duration of a study: seconds of each kind of step, measured on its own network and data."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.engine.evaluation import Batches, score
from ltmsearch.engine.linear_probe import BATCH, record_inputs
from ltmsearch.engine.prefix_cache import PrefixCache
from ltmsearch.engine.runtime import synchronize
from ltmsearch.engine.steps import WarmUp, downscale, proxy_train, warm_up
from ltmsearch.models import feature_dim
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.checkpoint import digest
from ltmsearch.search.timing import ELSEWHERE, OVERHEAD, RESCORING, SCORING, TRAINING, WRITING
from ltmsearch.search.trial import EXAMPLES, Evaluator, load_parameters, parameters

STEPS, STEPS_SECONDS = 5, 0.25
"""Steps of each kind that are timed after a first one, at most, and time after which no further one starts."""
RECORDING_SECONDS = 0.3
"""Time of a trial's proposal, storage and files for the dashboard, besides the weights."""
FIT_SECONDS = 2e-8
"""Time of a linear probe's regression, per image and weight of the classifier."""
WRITING_SECONDS = 3.0
"""Time of tables, plots and report."""
WORKERS_SECONDS = 15.0
"""Time until workers on Ray are ready."""


@dataclass(frozen=True, kw_only=True)
class WarmUpRates:
    """Wall times of the warm-up's steps, in seconds."""

    first_step: float
    """A step of the plain network at the warm-up's first image size."""
    base_step: float
    """The same at the full size."""
    sandwich_step: float

    def seconds(self, plan: WarmUp, full: int, first_step: int) -> float:
        """Expected wall time of the steps from `first_step` on, with images of up to `full` pixels a side."""
        base = sum(self._base_step(plan, step, full) for step in range(first_step, plan.base_steps))
        return base + (plan.steps - max(first_step, plan.base_steps)) * self.sandwich_step

    def _base_step(self, plan: WarmUp, step: int, full: int) -> float:
        """Linear in the pixels between the first size and the full one."""
        first, size = plan.img_size(0, full) ** 2, plan.img_size(step, full) ** 2
        share = (size - first) / (full**2 - first) if full**2 > first else 1.0
        return self.first_step + share * (self.base_step - self.first_step)


@dataclass(frozen=True, kw_only=True)
class TrialRates:
    """Wall times of the parts of a trial, in seconds."""

    step: float
    """Training step."""
    image: float
    """Image in calibration or validation, with cached outputs before the first layer."""
    first_image: float
    """Image the first time, when nothing is cached."""
    saving: float
    """Serialising the shared weights."""

    def training(self, settings: ResolvedSettings) -> float:
        return settings.proxy_steps * self.step

    def scoring(self, settings: ResolvedSettings, images: int, *, networks: int = 1) -> float:
        """Recalibration and validation of networks, on a number of validation images that are new to the first one."""
        each = settings.calibration_images + images
        return each * (self.first_image + (networks - 1) * self.image) if networks else 0.0


def expected_seconds(
    settings: ResolvedSettings, rates: TrialRates, *, trials: int, baselines: int, curves: int = 0
) -> dict[str, float]:
    """Expected wall time in seconds of a search for a number of trials, and of each part after it.

    Args:
        trials: Trials that are still to be trained.
        baselines: Networks that are scored again besides the candidates for the front.
        curves: Networks that are scored on the reported images only.
    """
    s, rounds = settings, math.ceil(trials / settings.workers)
    scored = rounds + (trials == s.trials)  # with the plain network, which is not trained
    training, scoring = rounds * rates.training(s), rates.scoring(s, s.search_images, networks=scored)
    scoring += scored * EXAMPLES * rates.first_image  # their merges are recorded
    if s.timeout is not None:
        share = min(1.0, s.timeout / (training + scoring)) if trials else 1.0
        training, scoring = share * training, share * scoring
    parts = {TRAINING: training, SCORING: scoring}
    if s.workers > 1 and trials:
        parts = {ELSEWHERE: WORKERS_SECONDS + training + scoring}
    return parts | {
        OVERHEAD: trials * (RECORDING_SECONDS + rates.saving),
        RESCORING: rates.scoring(
            s, s.rescore_images + s.report_images, networks=min(s.rescore_candidates + baselines, s.trials + 1)
        )
        + curves * (s.calibration_images + s.report_images) * rates.image,
        WRITING: WRITING_SECONDS,
    }


def measure_probe(evaluator: Evaluator, images: Sequence[int]) -> float:
    """Expected seconds of a linear probe on training images by number, after a few forward passes of the plain network.

    The supernet is unchanged afterwards.
    """
    taken: list[float] = []
    batches = evaluator.data.ordered_batches(images[: (1 + STEPS) * BATCH], batch_size=BATCH)
    with _restored(evaluator):
        timed = _timed(batches, taken, evaluator.training.device)
        record_inputs(evaluator.supernet.model, {}, timed, evaluator.scoring)
    each = statistics.median(taken[1:] or taken) / min(BATCH, len(images))
    weights = feature_dim(evaluator.supernet.model) * evaluator.data.num_classes
    return len(images) * (each + weights * FIT_SECONDS)


def measure_warm_up(
    evaluator: Evaluator, draw: Callable[[np.random.Generator], list[MergeSchedule]], plan: WarmUp, first_step: int
) -> WarmUpRates:
    """Take a few steps of each kind that the warm-up has from `first_step` on, with optimizer and data.

    The supernet is restored afterwards.
    """
    full, taught = evaluator.settings.proxy_img_size, evaluator.settings.axis.measure == "kl"
    base, sandwich = replace(plan, base_steps=1 + STEPS, sandwich_steps=0), replace(plan, base_steps=0)
    sizes = dict.fromkeys((plan.img_size(0, full), full))

    def seconds(plan: WarmUp, size: int) -> float:
        settings = evaluator.settings
        batches = evaluator.data.train_batches(batch_size=settings.batch_size, steps=1 + STEPS, seed=settings.seed)
        steps = warm_up(
            evaluator.supernet,
            replace(plan, base_img_size=full),
            batches=((downscale(images, size), labels) for images, labels in batches),
            draw=draw,
            seed=settings.seed,
            runtime=evaluator.training,
            teacher=(lambda: evaluator.supernet.model) if taught else None,
        )
        return _median_seconds(steps, evaluator.training.device)

    with _restored(evaluator):
        base_steps = [seconds(base, size) if first_step < plan.base_steps else 0.0 for size in sizes]
        return WarmUpRates(
            first_step=base_steps[0],
            base_step=base_steps[-1],
            sandwich_step=seconds(replace(sandwich, sandwich_steps=1 + STEPS), full) if plan.sandwich_steps else 0.0,
        )


def measure_trial(evaluator: Evaluator, schedule: MergeSchedule) -> TrialRates:
    """Take a few steps of a trial, with optimizer and data, and score a few batches; the supernet is restored."""
    settings, device = evaluator.settings, evaluator.training.device
    with _restored(evaluator):
        step = 0.0
        if settings.proxy_steps:
            batches = evaluator.data.train_batches(batch_size=settings.batch_size, steps=1 + STEPS, seed=settings.seed)
            taken: list[float] = []
            proxy_train(
                evaluator.supernet,
                schedule,
                _timed(batches, taken, device),
                lr=settings.proxy_lr,
                runtime=evaluator.training,
            )
            step = statistics.median(taken[1:])
        images = min(evaluator.settings.scoring_batch_size, evaluator.data.search_size)
        with evaluator.supernet.active(schedule):
            scored, start = _scored_batches(evaluator, images), time.perf_counter()
            next(scored)
            synchronize(device)
            first_image = (time.perf_counter() - start) / images
            image = _median_seconds(scored, device) / images
        start = time.perf_counter()
        weights = {name: value.detach().cpu().contiguous() for name, value in evaluator.supernet.state_dict().items()}
        digest(weights)
        save(weights)
        saving = time.perf_counter() - start
        return TrialRates(step=step, image=image, first_image=first_image, saving=saving)


def _scored_batches(evaluator: Evaluator, images: int) -> Iterator[None]:
    """Score the same images again and again, after a first time with the outputs before the first layer cached."""
    cache = PrefixCache(evaluator.supernet)
    while True:
        batches = evaluator.data.search_batches(batch_size=images, limit=images)
        with cache.replay("timing"):
            score(evaluator.supernet.model, batches, evaluator.scoring)
        yield


def _timed(batches: Batches, taken: list[float], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, up to `STEPS_SECONDS`; `taken` receives the seconds from one to the next."""
    synchronize(device)
    since = start = time.perf_counter()
    for batch in batches:
        yield batch
        synchronize(device)
        now = time.perf_counter()
        taken.append(now - since)
        since = now
        if len(taken) > 1 and now - start > STEPS_SECONDS:
            return


def _median_seconds(steps: Iterator[object], device: torch.device) -> float:
    """Median seconds of the next `STEPS` steps after a first one, or of fewer if `STEPS_SECONDS` are over."""
    next(steps)
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < STEPS and (not taken or time.perf_counter() - start < STEPS_SECONDS):
        synchronize(device)
        begun = time.perf_counter()
        next(steps)
        synchronize(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


@contextmanager
def _restored(evaluator: Evaluator) -> Iterator[None]:
    """Restore weights, buffers and random numbers on exit, whatever was trained meanwhile."""
    supernet, device = evaluator.supernet, evaluator.training.device
    weights, buffers = parameters(supernet), {name: each.clone() for name, each in supernet.named_buffers()}
    was_training = supernet.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            load_parameters(supernet, weights)
            supernet.load_state_dict(buffers, strict=False)
            supernet.zero_grad(set_to_none=True)
            supernet.train(was_training)
