"""Trials: suggest a schedule and an IB weight, train the subnet for a few steps, score it on the search images."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice

import numpy as np
import optuna
import torch
from optuna.samplers import BaseSampler
from torch import Tensor, nn

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.evaluation import (
    Batches,
    Score,
    fit_ib,
    ib_images,
    preserve_batchnorm,
    recalibrate,
    recalibrate_and_fit,
    score,
)
from ltmsearch.engine.ib_loss import IBLoss
from ltmsearch.engine.layer_cache import LayerCache
from ltmsearch.engine.linear_probe import fit_classifiers
from ltmsearch.engine.mask_fit import fit_layer
from ltmsearch.engine.prefix_cache import PrefixCache
from ltmsearch.engine.probe_record import ProbeRecord
from ltmsearch.engine.runtime import Runtime, free_memory
from ltmsearch.engine.steps import downscale, proxy_train
from ltmsearch.errors import TrialDiverged, TrialOutOfMemory, TrialTooLong, check_choice, is_out_of_memory
from ltmsearch.merging import LearnableTokenMerging
from ltmsearch.models import Chain, attached_operators, feature_dim, get_adapter
from ltmsearch.models.merge_traces import LayerMerges, trace_merges
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.teacher import Images, Teacher, trial_batches

STATISTICS_BATCH = 32
"""Images per forward pass for BatchNorm statistics, which are means over batches, and for those of the IB loss."""
EXAMPLES = 2
"""Number of search images whose merges are recorded in every trial."""
IB_WEIGHT = "ib_weight"
"""Optuna parameter of the IB weight; the others are named after their layers."""


def suggest(trial: optuna.Trial, space: SearchSpace, sampler: Callable[[int], BaseSampler]) -> tuple[np.ndarray, float]:
    """(I,) choice indices, and the weight of the IB loss.

    Each parameter has its own sampler, so that a trial that was interrupted half way gets the same remaining
    suggestions.
    """
    indices: list[int] = []
    ib_weight = 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")  # the driver refuses it
        for name, number in zip(space.names, space.options, strict=True):
            trial.study.sampler = sampler(len(indices))
            indices.append(trial.suggest_int(name, 0, number - 1))
        if (weights := space.ib_weights) is not None:
            trial.study.sampler = sampler(len(indices))
            ib_weight = weights.weight(trial.suggest_float(IB_WEIGHT, weights.floor, weights.high, log=True))
    return np.array(indices), ib_weight


@dataclass(frozen=True, kw_only=True)
class ExampleMerges:
    """Merges of a subnet in a few images."""

    images: np.ndarray
    """(B, 3, height, width), as the network takes them."""
    layers: list[tuple[LayerMerges, ...]]
    """Merging layers of each image."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Result of one trial."""

    weights: dict[str, Tensor]
    """Trained parameters W' by name; empty if there was no training."""
    score: Score
    seconds: float
    scoring_seconds: float = 0.0
    """Part of `seconds` spent on recalibration and scoring."""
    merges: ExampleMerges | None = None
    batch_size: int | None = None
    """Batch size, if memory forced a smaller one than the settings; else None."""


def limit_time(batches: Batches, *, limit: float, end: float) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches; raises `TrialTooLong` once `time.monotonic()` is past the end."""
    for batch in batches:
        if time.monotonic() > end:
            raise TrialTooLong(f"took longer than the limit of {limit:g} s (--trial-timeout)")
        yield batch


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates trials on one device. Between trials it keeps the supernet, its prefix cache and the teacher."""

    supernet: Supernet
    data: ImageData
    settings: ResolvedSettings
    training: Runtime
    scoring: Runtime
    """For whatever needs no gradients: scores, statistics, features; on the same device."""
    teacher: Teacher = field(default_factory=Teacher)
    """Its predictions are filled in after the warm-up, where the objective is KL divergence."""
    sides: Mapping[int, int] = field(default_factory=dict)
    """Image size of a schedule → image side in training and scoring, to which images are downscaled."""

    @cached_property
    def prefix_cache(self) -> PrefixCache:
        """Cached outputs of the modules before the first merging layer."""
        return PrefixCache(self.supernet)

    @cached_property
    def layer_cache(self) -> LayerCache:
        """Cached outputs of layers, for schedules that are scored with the same weights."""
        return LayerCache(self.supernet)

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

        All trials train on the same images in the same order: on labels, or on the teacher's predictions. BatchNorm
        statistics are restored afterwards. If memory is full, the trial is repeated once with half the batch size. The
        statistics of the IB loss are those of the plain network with the shared weights.

        Args:
            steps: Training steps, at most `settings.proxy_steps`; None: that many.
            limit: Time limit in seconds, checked between batches.

        Raises:
            TrialDiverged: If the loss or a feature is not finite.
            TrialTooLong: If the time limit is exceeded.
            TrialOutOfMemory: If memory is full with the smaller batches too.
        """
        steps = self.settings.proxy_steps if steps is None else steps
        in_time = partial(limit_time, limit=limit, end=time.monotonic() + limit)
        full = self.settings.batch_size
        for batch_size in (full, max(2, full // 2)):
            try:
                with self._seeded(seed):
                    result = self._evaluated(weights, schedule, ib_weight, steps, batch_size, in_time)
                return result if batch_size == full else replace(result, batch_size=batch_size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            free_memory(self.training.device)  # outside of `except`, whose traceback holds the tensors
        scoring = self.settings.scoring_batch_size
        raise TrialOutOfMemory(
            f"memory is full with batch sizes {full} and {batch_size}, and {scoring} images at a time in scoring "
            "(--scoring-batch-size)"
        )

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Seed random layers, such as drop path, and restore the generators afterwards."""
        device = self.training.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _evaluated(
        self,
        weights: Mapping[str, Tensor],
        schedule: MergeSchedule,
        ib_weight: float,
        steps: int,
        batch_size: int,
        in_time: Callable[[Batches], Batches],
    ) -> TrialResult:
        start, settings = time.perf_counter(), self.settings
        load_parameters(self.supernet, weights)
        with preserve_batchnorm(self.supernet):
            if steps:
                batches = self.sized(islice(trial_batches(self.data, settings, batch_size), steps), schedule)
                proxy_train(
                    self.supernet,
                    schedule,
                    in_time(batches),
                    lr=settings.proxy_lr,
                    runtime=self.training,
                    teacher=self.teacher.of("train"),
                    ib=(ib_weight, self._plain_ib()) if ib_weight else None,
                )
            trained = time.perf_counter()
            with self._as_scored(schedule, information=True) as fitted:
                result = self._scored("search", None, fitted, in_time, shares_layers=not steps)
                merges = self._example_merges()
            scored = time.perf_counter()
        return TrialResult(
            weights=parameters(self.supernet) if steps else {},
            score=result,
            seconds=time.perf_counter() - start,
            scoring_seconds=scored - trained,
            merges=merges,
        )

    def score(
        self, schedule: MergeSchedule, images: Images, *, number: int | None = None, information: bool = False
    ) -> Score:
        """Score the supernet's current weights under a schedule, with recalibrated BatchNorm statistics.

        Args:
            images: Set of images to score.
            number: The first images of the set only; None: all.
            information: Add the information terms, with statistics of the calibration images.
        """
        check_choice("the set of images", images, Images)
        with self._as_scored(schedule, information=information) as ib:
            return self._scored(images, number, ib, iter)

    def screening_score(self, schedule: MergeSchedule, images: int | None) -> float:
        """The measure that trials minimise, on the first search images or on all, with the current weights."""
        measure = self.settings.axis.measure
        with self._as_scored(schedule, information=False):
            found = self._scored("search", images, None, iter, shares_layers=True)
        value = found.kl if measure == "kl" else found.loss
        assert value is not None
        return value

    def fit_classifiers(
        self, classifiers: Sequence[str], *, images: Sequence[int], watch: Callable[[Batches], Batches]
    ) -> ProbeRecord:
        """Fit classifiers to the features of the plain network, by a linear probe, and score it as trials are.

        Arguments and errors are those of `engine.linear_probe.fit_classifiers`.
        """
        settings = self.settings
        plain = MergeSchedule.uniform(self.supernet.layers, 1.0, settings.operator)
        with self._as_scored(plain, information=False):
            model, data = self.supernet.model, self.data
            probe = fit_classifiers(model, classifiers, data, self.scoring, images=images, watch=watch)
            return probe.record(settings.proxy_img_size, self._scored("validation", None, None, iter))

    def fit_mask(self, layer: str, keep_ratio: float) -> None:
        """Fit the gradient step of a layer while it alone merges; see `engine.mask_fit.fit_layer`."""
        supernet, operator = self.supernet, attached_operators(self.supernet.model, (layer,))[layer]
        assert isinstance(operator, LearnableTokenMerging)
        alone = MergeSchedule.uniform([layer], keep_ratio, supernet.operator, "gradient")
        with supernet.active(alone):
            fit_layer(supernet.model, operator, self.data, self.scoring, seed=self.settings.seed)

    @contextmanager
    def _as_scored(self, schedule: MergeSchedule, *, information: bool) -> Iterator[IBLoss | None]:
        """Activate a schedule with recalibrated BatchNorm statistics; yields the fitted IB loss if asked for."""
        with self.supernet.active(schedule), preserve_batchnorm(self.supernet):
            if information:
                yield self._recalibrated(schedule)
                return
            batches = self.sized(self.data.calibration_batches(batch_size=STATISTICS_BATCH), schedule)
            with self.prefix_cache.replay("calibration", schedule.img_size):
                recalibrate(self.supernet, batches, self.scoring)
            yield None

    def _scored(
        self,
        images: Images,
        number: int | None,
        ib: IBLoss | None,
        in_time: Callable[[Batches], Batches],
        *,
        shares_layers: bool = False,
    ) -> Score:
        """Score under the active schedule; `shares_layers`: with the layers of other schedules, see `LayerCache`."""
        schedule = self.supernet.schedule
        batches = in_time(self.sized(self.held_out(images, number), schedule))
        shared = self.layer_cache.replay(images, schedule.img_size) if shares_layers else nullcontext()
        with self.prefix_cache.replay(images, number, schedule.img_size), shared:
            return score(self.supernet.model, batches, self.scoring, ib=ib, teacher=self.teacher.of(images, number))

    def held_out(self, images: Images, number: int | None = None) -> Batches:
        """Batches of a set of images on which nothing trains, the first ones or all."""
        check_choice("the set of images", images, Images)
        data = self.data
        open_set = {
            "search": data.search_batches, "validation": data.validation_batches, "report": data.report_batches,
        }[images]  # fmt: skip
        return open_set(batch_size=self.settings.scoring_batch_size, limit=number)

    def sized(self, batches: Batches, schedule: MergeSchedule) -> Batches:
        """The batches at the image size of a schedule."""
        if schedule.img_size is None:
            return batches
        side = self.sides[schedule.img_size]
        return ((downscale(images, side), labels) for images, labels in batches)

    @cached_property
    def _chains(self) -> dict[int, tuple[Chain, ...]]:
        """Image side → shapes of the layers; filled as needed."""
        return {}

    def _example_merges(self) -> ExampleMerges:
        batches = self.data.search_batches(batch_size=EXAMPLES, limit=EXAMPLES)
        images = next(iter(self.sized(batches, self.supernet.schedule)))[0]
        side = images.shape[-1]
        if side not in self._chains:
            self._chains[side] = get_adapter(self.settings.backbone).chains(self.supernet.model, (side, side))
        layers = trace_merges(self.settings.backbone, self.supernet.model, images, self._chains[side])
        return ExampleMerges(images=images.numpy(), layers=layers)

    def _recalibrated(self, schedule: MergeSchedule) -> IBLoss:
        """Recalibrate BatchNorm statistics and fit an IB loss in the same pass."""
        ib = self._new_ib()
        batches = self.sized(self.data.calibration_batches(batch_size=STATISTICS_BATCH), schedule)
        with self.supernet.active(schedule), self.prefix_cache.replay("calibration", schedule.img_size):
            recalibrate_and_fit(ib, self.supernet.model, batches, self.scoring)
        return ib

    def _plain_ib(self) -> IBLoss:
        """An IB loss fitted to the features of the plain network: one for all schedules that start from its weights.

        From training images: labels of the search images must not reach the weights that they score.

        Raises:
            TrialDiverged: If a feature is not finite.
        """
        ib, settings, data = self._new_ib(), self.settings, self.data
        images = data.training_sample(ib_images(data.num_classes), seed=settings.seed)
        batches = data.ordered_batches(images, batch_size=STATISTICS_BATCH)
        plain = MergeSchedule.uniform(self.supernet.layers, 1.0, settings.operator)
        with self._as_scored(plain, information=False), self.prefix_cache.replay("IB statistics"):
            if not fit_ib(ib, self.supernet.model, batches, self.scoring):
                raise TrialDiverged("the features are not finite")
        return ib

    def _new_ib(self) -> IBLoss:
        ib = IBLoss(
            feature_dim=feature_dim(self.supernet.model),
            num_classes=self.data.num_classes,
            in_chans=self.settings.in_chans,
            beta=self.settings.ib_beta,
        )
        return ib.to(self.scoring.device)

    def recalibrated_subnet(self, schedule: MergeSchedule) -> nn.Module:
        """The stand-alone subnet with the supernet's current weights and recalibrated BatchNorm statistics."""
        subnet = self.supernet.extract(schedule)
        batches = self.sized(self.data.calibration_batches(batch_size=STATISTICS_BATCH), schedule)
        recalibrate(subnet, batches, self.scoring)
        return subnet


def parameters(supernet: Supernet) -> dict[str, Tensor]:
    """Copies of the supernet's parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in supernet.named_parameters()}


def load_parameters(supernet: Supernet, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            parameter.copy_(weights[name])
