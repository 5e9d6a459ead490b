"""One trial: Optuna suggests a schedule and an IB weight, the supernet answers with a short proxy training."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import optuna
import torch
from optuna.samplers import BaseSampler
from torch import Tensor, nn

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.evaluation import Batches, Score, preserve_batchnorm, recalibrate, recalibrate_and_fit, score
from ltmsearch.engine.ib_loss import IBLoss
from ltmsearch.engine.prefix_cache import PrefixCache
from ltmsearch.engine.runtime import Runtime, free_memory
from ltmsearch.engine.steps import proxy_train
from ltmsearch.errors import TrialOutOfMemory, TrialTooLong, is_out_of_memory
from ltmsearch.models import Chain, feature_dim, get_adapter
from ltmsearch.models.merge_traces import LayerMerges, trace_merges
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace

SCORING_BATCH = 32
"""Images per forward pass when nothing is trained."""
EXAMPLES = 2
"""Validation images whose merges are looked at in every trial, the first."""
IB_WEIGHT = "ib_weight"
"""Name of the parameter for the IB weight, beside one per layer."""


def suggest(trial: optuna.Trial, space: SearchSpace, sampler: Callable[[int], BaseSampler]) -> tuple[np.ndarray, float]:
    """(L,) choice indices, one integer per layer, which samplers do best with, and the weight of the IB loss.

    A suggestion does not depend on how many were drawn before it in this process: a trial that was interrupted
    half way is suggested the rest as if it had not been.

    Args:
        trial: A running trial.
        space: What to choose from.
        sampler: The sampler for the i-th parameter, for those that Optuna draws one by one.
    """
    indices: list[int] = []
    for layer, options in zip(space.layers, space.choices, strict=True):
        trial.study.sampler = sampler(len(indices))
        indices.append(trial.suggest_int(layer, 0, len(options) - 1))
    ib_weight = 0.0
    if (weights := space.ib_weights) is not None:
        trial.study.sampler = sampler(len(indices))
        ib_weight = weights.weight(trial.suggest_float(IB_WEIGHT, weights.floor, weights.high, log=True))
    return np.array(indices), ib_weight


@dataclass(frozen=True, kw_only=True)
class ExampleMerges:
    """What a subnet merges in a few images."""

    images: np.ndarray
    """(B, 3, height, width), as the network takes them."""
    layers: list[tuple[LayerMerges, ...]]
    """For each image the layers that merge."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What one trial gives back."""

    weights: dict[str, Tensor]
    """The trained parameters W', by name; empty if there was no training."""
    score: Score
    """On the validation images, with the information terms."""
    seconds: float
    """Wall time."""
    scoring_seconds: float = 0.0
    """How much of it recalibrating and scoring took."""
    merges: ExampleMerges | None = None
    """As it was scored; None where nobody looked."""
    batch_size: int | None = None
    """Images of a training step where they had to be fewer than the settings say; else None."""


class Deadline:
    """The time by which a trial must have ended.

    Args:
        limit: Seconds from now.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._end = time.monotonic() + limit

    def watched(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches.

        Raises:
            TrialTooLong: Once the time is up.
        """
        for batch in batches:
            if time.monotonic() > self._end:
                raise TrialTooLong(f"it took longer than the {self.limit:g} s that a trial may (--trial-timeout)")
            yield batch


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Answers trials on one device. It holds no state between them beside the supernet it works in, and what of a
    forward pass is the same in all."""

    supernet: Supernet
    data: ImageData
    runtime: Runtime
    settings: ResolvedSettings
    """Of the study."""

    @cached_property
    def prefix_cache(self) -> PrefixCache:
        """The modules ahead of the first layer."""
        return PrefixCache(self.supernet)

    def evaluate(
        self,
        weights: Mapping[str, Tensor],
        schedule: MergeSchedule,
        *,
        ib_weight: float = 0.0,
        seed: int,
        steps: int | None = None,
        limit: float = math.inf,
    ) -> TrialResult:
        """Start from shared weights, train the subnet for a few steps, recalibrate, score.

        BatchNorm statistics come back as they were: only the result carries anything away. Where the memory of the
        device is full, it is tried once more with half the images a step.

        Args:
            weights: The shared parameters W, by name.
            schedule: The subnet.
            ib_weight: Weight of the IB loss beside cross entropy. It sets in after the first half of the steps, whose
                images give its statistics; where there is but one step, the calibration images do.
            seed: Of the training images, and of whatever a net draws while it trains.
            steps: Training steps; None: `settings.proxy_steps`.
            limit: Seconds that it may take, looked at between batches.

        Raises:
            TrialDiverged: If the loss or a feature is not finite.
            TrialTooLong: If it takes longer.
            TrialOutOfMemory: If the memory is full the second time too.
        """
        steps = self.settings.proxy_steps if steps is None else steps
        ends = Deadline(limit)
        whole = self.settings.batch_size
        for batch_size in (whole, max(2, whole // 2)):
            try:
                with self._seeded(seed):
                    result = self._evaluated(weights, schedule, ib_weight, seed, steps, batch_size, ends)
                return result if batch_size == whole else replace(result, batch_size=batch_size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            free_memory(self.runtime.device)  # outside of `except`, whose traceback holds the tensors
        raise TrialOutOfMemory(f"memory is full with {whole} and with {batch_size} images a step")

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """What nets draw while they train, such as paths to drop, is drawn from a seed; generators come back as they
        were."""
        device = self.runtime.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _evaluated(
        self,
        weights: Mapping[str, Tensor],
        schedule: MergeSchedule,
        ib_weight: float,
        seed: int,
        steps: int,
        batch_size: int,
        ends: Deadline,
    ) -> TrialResult:
        start, settings = time.perf_counter(), self.settings
        load_parameters(self.supernet, weights)
        with preserve_batchnorm(self.supernet):
            if steps:
                batches = self.data.train_batches(batch_size=batch_size, steps=steps, seed=seed)
                half, ib = steps // 2, None
                if ib_weight:
                    ib = (ib_weight, self._new_ib() if half else self._fitted_by_calibration(schedule))
                proxy_train(
                    self.supernet, schedule, ends.watched(batches), lr=settings.proxy_lr, runtime=self.runtime, ib=ib,
                    ib_from=half,
                )  # fmt: skip
            trained = time.perf_counter()
            with self._as_scored(schedule, information=True) as fitted:
                result, merges = self._validated(settings.val_images, fitted, ends), self._example_merges()
            scored = time.perf_counter()
        return TrialResult(
            weights=parameters(self.supernet) if steps else {},
            score=result,
            seconds=time.perf_counter() - start,
            scoring_seconds=scored - trained,
            merges=merges,
        )

    def score(self, schedule: MergeSchedule, *, images: int, information: bool = False) -> Score:
        """Score the supernet's present weights under a schedule, with BatchNorm statistics of its own.

        Args:
            schedule: The subnet.
            images: How many of the fixed validation images.
            information: Whether to measure the information terms as well, by statistics of the calibration images.
        """
        with self._as_scored(schedule, information=information) as ib:
            return self._validated(images, ib)

    @contextmanager
    def _as_scored(self, schedule: MergeSchedule, *, information: bool) -> Iterator[IBLoss | None]:
        """The supernet under a schedule, with BatchNorm statistics of its own; gives the IB loss if it is wanted."""
        with self.supernet.active(schedule), preserve_batchnorm(self.supernet):
            batches = self.data.calibration_batches(batch_size=SCORING_BATCH)
            if information:
                yield self._recalibrated(schedule, batches)
                return
            with self.prefix_cache.replay("calibration"):
                recalibrate(self.supernet, batches, self.runtime)
            yield None

    def _validated(self, images: int, ib: IBLoss | None, ends: Deadline | None = None) -> Score:
        validation: Batches = self.data.validation_batches(batch_size=SCORING_BATCH, limit=images)
        if ends is not None:
            validation = ends.watched(validation)
        with self.prefix_cache.replay("validation", images):
            return score(self.supernet.model, validation, self.runtime, ib=ib)

    @cached_property
    def _chains(self) -> tuple[Chain, ...]:
        """Of the images that trials see."""
        size = self.settings.proxy_img_size
        return get_adapter(self.settings.backbone).chains(self.supernet.model, (size, size))

    def _example_merges(self) -> ExampleMerges:
        images = next(iter(self.data.validation_batches(batch_size=EXAMPLES, limit=EXAMPLES)))[0]
        layers = trace_merges(self.settings.backbone, self.supernet.model, images, self._chains)
        return ExampleMerges(images=images.numpy(), layers=layers)

    def _recalibrated(self, schedule: MergeSchedule, batches: Batches) -> IBLoss:
        """An IB loss fitted to a subnet, on the pass that gives it BatchNorm statistics of its own."""
        ib = self._new_ib()
        with self.supernet.active(schedule), self.prefix_cache.replay("calibration"):
            recalibrate_and_fit(ib, self.supernet.model, batches, self.runtime)
        return ib

    def _fitted_by_calibration(self, schedule: MergeSchedule) -> IBLoss:
        return self._recalibrated(schedule, self.data.calibration_batches(batch_size=SCORING_BATCH))

    def _new_ib(self) -> IBLoss:
        width, classes = feature_dim(self.supernet.model), self.data.num_classes
        return IBLoss(feature_dim=width, num_classes=classes, beta=self.settings.ib_beta).to(self.runtime.device)

    def recalibrated_subnet(self, schedule: MergeSchedule) -> nn.Module:
        """The stand-alone subnet of the supernet's present weights, with BatchNorm statistics of its own."""
        subnet = self.supernet.extract(schedule)
        recalibrate(subnet, self.data.calibration_batches(batch_size=SCORING_BATCH), self.runtime)
        return subnet


def parameters(supernet: Supernet) -> dict[str, Tensor]:
    """A copy of the shared parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in supernet.named_parameters()}


def load_parameters(supernet: Supernet, weights: Mapping[str, Tensor]) -> None:
    """Overwrite the supernet's parameters."""
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            parameter.copy_(weights[name])
