"""Set-up of a study: supernet, data, costs, space and budgets. Bad input is refused before anything is written."""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.costs import (
    GIGA,
    Budget,
    ChainedCosts,
    CostModel,
    backbone_costs,
    band_schedules,
    cost_model,
    sample_by_cost,
)
from ltmsearch.costs.split import check_split_layer
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.evaluation import has_batchnorm
from ltmsearch.engine.linear_probe import probe_images
from ltmsearch.engine.runtime import find_device
from ltmsearch.engine.steps import WarmUp, warm_up
from ltmsearch.latency import StudyLatency, settings_target, study_latency
from ltmsearch.merging import get_operator
from ltmsearch.models import check_operator, create_backbone, get_adapter, load_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.models.windows import fitting_windows
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile
from ltmsearch.search.baselines import fit_baselines, with_choices
from ltmsearch.search.budgets import check_budgets, make_budgets
from ltmsearch.search.checkpoint import WEIGHTS
from ltmsearch.search.evaluators import make_evaluator, open_supernet_and_data
from ltmsearch.search.expected import TrialRates, expected_seconds, measure_probe, measure_trial, measure_warm_up
from ltmsearch.search.img_sizes import ImgSizes, open_sizes
from ltmsearch.search.measured import MeasuredCosts, cost_images, measure_thresholds, refuse_unmeasurable
from ltmsearch.search.screening import scored_images
from ltmsearch.search.settled import Conditions, Settled, conditions, settle
from ltmsearch.search.timing import OVERHEAD, PROBE, PROFILING, SCREENING, TIMING, WARM_UP, Clock
from ltmsearch.search.trial import Evaluator
from ltmsearch.search.warm_start import Prior

_log = logging.getLogger(__name__)

MIN_TRIAL_LIMIT, TRIAL_LIMIT_FACTOR = 300.0, 20
"""Default time limit of a trial: at least so many seconds, and at least so many times the expected duration."""


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """Settings, supernet, data, costs, space and budgets of one study."""

    settings: ResolvedSettings
    costs: CostModel
    """Costs at `settings.img_size`, with the data's number of classes."""
    proxy_costs: CostModel
    """Costs and token grids at `settings.proxy_img_size`."""
    space: SearchSpace
    budgets: tuple[Budget, ...]
    """Limits on costs; the first is the cost axis of the front."""
    latency: StudyLatency | None
    """Latencies at `settings.img_size`; None without a latency budget."""
    measured: MeasuredCosts | None
    """Costs at `settings.img_size` that depend on the image; None where all images cost the same."""
    sizes: ImgSizes
    """Image sizes of the study, and the costs at each."""
    evaluator: Evaluator
    settled: Settled
    space_file: SpaceFile
    """The search space as its file has it: layers and forms, and without the choices of baselines."""
    conditions: Conditions
    """Number format and threads, as settled and as this machine allows."""
    prior: Prior | None = None
    """Earlier study that this one starts from."""
    new_classifiers: tuple[str, ...] = ()
    """timm paths of the classifiers that are fitted before the warm-up: those that the given weights lack."""

    @property
    def screens(self) -> bool:
        """Whether schedules are screened before they are trained; not where costs are measured for each."""
        return self.settings.sampler == "auto" and self.measured is None

    def costs_at(self, schedule: MergeSchedule) -> CostModel:
        """Costs at the image size of a schedule."""
        return self.sizes.costs[self.sizes.of(schedule)]

    def network_key(self, schedule: MergeSchedule) -> Hashable:
        """Key that is equal for schedules that are the same network on images of the same size."""
        return schedule.img_size, self.costs_at(schedule).network_key(schedule)

    def proxy_key(self, schedule: MergeSchedule) -> Hashable:
        """The same at the image sizes of training and scoring."""
        size = self.sizes.of(schedule)
        return self.sizes.proxy_sides[size], self.sizes.proxy_costs[size].network_key(schedule)

    def tokens_sent(self, schedule: MergeSchedule) -> float | None:
        """Tokens sent after the split layer, if the study has one."""
        layer = self.settings.split_layer
        return None if layer is None else self.costs_at(schedule).tokens_sent(schedule, layer)

    @cached_property
    def probe_images(self) -> list[int]:
        """Numbers of the training images that new classifiers are fitted to."""
        return probe_images(self.evaluator.data, seed=self.settings.seed)

    def warm_up(
        self, optimizer: Optimizer | None = None, first_step: int = 0, teacher: Callable[[], nn.Module] | None = None
    ) -> Iterator[float]:
        """Train the shared weights from where they are; yields the loss after every step.

        `teacher` returns the network that subnets learn from; None: they learn from the plain network as it is.
        """
        s, plan = self.settings, warm_up_plan(self.settings)
        return warm_up(
            self.evaluator.supernet,
            plan,
            batches=self.evaluator.data.train_batches(
                batch_size=s.batch_size, steps=plan.steps, seed=s.seed, first_step=first_step
            ),
            draw=self.draw_subnets,
            seed=s.seed,
            runtime=self.evaluator.training,
            teacher=teacher,
            sides=self.sizes.proxy_sides,
            optimizer=optimizer,
            first_step=first_step,
        )

    @cached_property
    def band(self) -> np.ndarray:
        """(S, L) random schedules whose costs are in the range that the budget asks for; see `band_schedules`."""
        return band_schedules(self.space, self.budgets, rng=np.random.default_rng(self.settings.seed))

    def draw_subnets(self, rng: np.random.Generator) -> list[MergeSchedule]:
        """Random schedules for a sandwich step, of the band; where costs are measured, of the whole space."""
        number = self.settings.sandwich_subnets
        if self.measured is not None:
            drawn = self.space.random(rng, number)
        else:
            drawn = self.band[rng.integers(len(self.band), size=number)]
        return [self.space.schedule(indices) for indices in drawn]

    @cached_property
    def trial_rates(self) -> TrialRates:
        """Measured seconds of the parts of a trial; measuring takes seconds and leaves no trace."""
        if self.measured is not None:
            return measure_trial(self.evaluator, self.space.schedule(self.space.cheapest // 2))
        rng = np.random.default_rng(self.settings.seed)
        *_, cheaper = sample_by_cost(self.space, self.budgets, number=3, rng=rng)[:2]  # from the middle of the range
        return measure_trial(self.evaluator, self.space.schedule(cheaper))

    def expected_seconds(
        self, *, first_step: int | None, trials: int, baselines: int, curves: int = 0, probe: bool = False
    ) -> dict[str, float]:
        """Expected wall time in seconds of each part of `search.timing` that is still to come, after a measurement.

        Args:
            first_step: The first step of the warm-up that is to be taken; None after the warm-up.
            trials: Number of trials that are to be trained.
            baselines: Number of baselines that are scored again at the end.
            curves: Number of further networks of the curves of baselines.
            probe: Whether new classifiers are still to be fitted.
        """
        s, plan = self.settings, warm_up_plan(self.settings)
        parts = expected_seconds(s, self.trial_rates, trials=trials, baselines=baselines, curves=curves)
        if probe:
            parts[PROBE] = measure_probe(self.evaluator, self.probe_images)
            parts[PROBE] += self.trial_rates.scoring(s, s.rescore_images)
        if first_step is not None:
            warming = measure_warm_up(self.evaluator, self.draw_subnets, plan, first_step)
            parts[WARM_UP] = warming.seconds(plan, s.proxy_img_size, first_step)
        if self.screens and trials:
            parts[SCREENING] = self._screened_images(trials) * self.trial_rates.image
        if self.measured is not None:
            parts[OVERHEAD] += self.measured.expected_seconds(trials)
        if self.latency is not None and self.latency.can_measure:
            parts[TIMING] = self.latency.measuring_seconds(s.rescore_candidates)
        return parts

    def _screened_images(self, trials: int) -> int:
        s, images = self.settings, self.evaluator.data.search_size
        calibration = s.calibration_images if has_batchnorm(self.evaluator.supernet) else 0
        ranged = bool(self.budgets[0].minimum)
        work: dict[str, Any] = {"ranged": ranged, "calibration": calibration, "workers": s.workers}
        return scored_images(s.screened_schedules, max(1, trials), images, **work)

    def trial_limit(self) -> float:
        """Time limit of a trial, in seconds."""
        s = self.settings
        if s.trial_timeout is not None:
            return s.trial_timeout
        expected = self.trial_rates.training(s) + self.trial_rates.scoring(s, s.search_images)
        return max(MIN_TRIAL_LIMIT, TRIAL_LIMIT_FACTOR * expected)


def resolve(settings: StudySettings) -> tuple[ResolvedSettings, Prior | None]:
    """The settings with every default filled in, and the earlier study that they start from.

    Raises:
        InputError: If a name is unknown, a device is missing, or there is no such study.
    """
    adapter = get_adapter(settings.backbone)
    check_operator(settings.backbone, settings.operator)
    device = find_device(settings.device)
    prior = Prior.open(Path(settings.resume_from), backbone=settings.backbone) if settings.resume_from else None
    return settings.resolved(device.type, adapter.learning, prior.settings if prior else None), prior


def prepare(settings: StudySettings, callbacks: Callbacks, clock: Clock | None = None) -> StudyContext:
    """Build the supernet, count costs, read space and data, settle number format and threads, profile latency.

    Sets torch's number of threads.

    Raises:
        InputError: If a setting cannot be applied; quick checks come first.
    """
    resolved, prior = resolve(settings)
    space_file = SpaceFile.load(resolved.space, family=get_adapter(resolved.backbone).family)
    _refuse_before_data(resolved)
    earlier = Settled.load(resolved.run_dir)
    supernet, data = open_supernet_and_data(resolved, callbacks)
    if earlier is not None:
        earlier.refuse_other_data(data, resolved.data_name)
    new_classifiers = supernet.new_classifiers
    if prior is not None:
        report = load_weights(supernet.model, prior.run / WEIGHTS)  # as far as operator and classes match
        if report.initialised or report.ignored or report.new_registers:
            callbacks.note(f"weights of {prior.run}: {report}")
        new_classifiers = report.new_classifiers
    available = torch.get_num_threads()
    settled = earlier or settle(resolved, supernet, data)
    current = conditions(settled, resolved, available=available, continues=earlier is not None)
    if current.threads is not None:
        torch.set_num_threads(current.threads)
    proxy_costs = _proxy_costs(resolved, supernet, resolved.proxy_img_size, fits=False)
    costs = _costs_of_recipes(resolved, supernet, resolved.img_size)
    sizes = _sizes(resolved, supernet, costs, proxy_costs)
    evaluator = make_evaluator(supernet, data, resolved, current.training, current.scoring, sizes.proxy_sides)
    images: tuple[Tensor, ...] = ()
    if get_operator(resolved.operator).adaptive:
        images = cost_images(resolved, data, callbacks)
        settled = _with_thresholds(settled, space_file, evaluator, costs, images)
        space_file = space_file.with_thresholds(settled.thresholds or {})
    elif resolved.budget_ms is None:
        settled = _with_baselines(settled, space_file, sizes, resolved)
    latency = _latency(resolved, space_file, costs, data, callbacks, clock or Clock())
    space = _space(resolved, with_choices(space_file, settled.baselines or ()), costs, latency, sizes)
    measured = MeasuredCosts.on(images, costs, space, evaluator) if images else None
    budgets = make_budgets(resolved, space, costs, latency, measured, list(sizes.costs.values()))
    check_budgets(resolved, space, budgets)
    if resolved.split_layer is not None:
        check_split_layer(resolved.split_layer, costs, space, backbone=resolved.backbone)
    return StudyContext(
        settings=resolved,
        costs=costs,
        proxy_costs=proxy_costs,
        space=space,
        budgets=budgets,
        latency=latency,
        measured=measured,
        sizes=sizes,
        evaluator=evaluator,
        settled=settled,
        space_file=space_file,
        conditions=current,
        prior=prior,
        new_classifiers=() if resolved.head == "random" else new_classifiers,
    )


def _latency(
    settings: ResolvedSettings, file: SpaceFile, costs: CostModel, data: ImageData, callbacks: Callbacks, clock: Clock
) -> StudyLatency | None:
    if settings.budget_ms is None:
        return None
    with clock.part(PROFILING):
        return study_latency(settings, file, costs, data.num_classes, callbacks)


def _space(
    settings: ResolvedSettings, file: SpaceFile, costs: CostModel, latency: StudyLatency | None, sizes: ImgSizes
) -> SearchSpace:
    """The space of the merges that save something of every cost with a budget."""
    limited: list[ChainedCosts] = [costs] if settings.budget_gflops is not None else []
    limited += [] if latency is None else [latency.model]
    space = SearchSpace.build(
        file, costs, reduces_cost=lambda layer, choice: all(cost.reduces_cost(layer, choice) for cost in limited)
    )
    weights = space.ib_weights if settings.proxy_steps else None  # without training it would change nothing
    return replace(space, img_sizes=sizes.choices, searched_sizes=len(sizes.searched), ib_weights=weights)


def _sizes(settings: ResolvedSettings, supernet: Supernet, costs: CostModel, proxy_costs: CostModel) -> ImgSizes:
    """Image sizes that are searched; and where the baselines are fitted to multiply-adds, smaller ones for them."""
    adaptive = get_operator(settings.operator).adaptive
    return open_sizes(
        settings.search_img_size,
        own=settings.img_size,
        proxy=settings.proxy_img_size,
        costs=costs,
        proxy_costs=proxy_costs,
        smaller=settings.sampler == "auto" and settings.budget_ms is None and not adaptive,
        costs_at=lambda size: _costs_of_recipes(settings, supernet, size),
        proxy_costs_at=lambda size: _proxy_costs(settings, supernet, size, fits=True),
    )


def _with_thresholds(
    settled: Settled, file: SpaceFile, evaluator: Evaluator, costs: CostModel, images: tuple[Tensor, ...]
) -> Settled:
    """The same choices with the thresholds of the layers for which the file has none, measured by the first call."""
    refuse_unmeasurable(evaluator.settings, file, evaluator.supernet, costs)
    if settled.thresholds is not None:
        return settled
    found = measure_thresholds(file, evaluator.supernet, costs, images, evaluator.scoring)
    return settled.model_copy(update={"thresholds": found})


def _with_baselines(settled: Settled, file: SpaceFile, sizes: ImgSizes, settings: ResolvedSettings) -> Settled:
    """The same choices with baselines fitted to the budget by the first call, so that the space stays the same."""
    if settled.baselines is not None or settings.budget_gflops is None:
        return settled
    lowest = None if settings.lowest_gflops is None else settings.lowest_gflops * GIGA
    smaller = {size: costs for size, costs in sizes.costs.items() if size != sizes.own}
    fitted = fit_baselines(file, sizes.costs[sizes.own], settings.budget_gflops * GIGA, lowest, smaller)
    return settled.model_copy(update={"baselines": fitted})


def _proxy_costs(settings: ResolvedSettings, supernet: Supernet, size: int, *, fits: bool) -> CostModel:
    """Costs and token grids of the shared weights on images of a size; `fits`: under schedules that name it."""
    with fitting_windows(supernet.model) if fits else nullcontext():
        return cost_model(settings.backbone, supernet.model, (size, size), settings.operator)


def _costs_of_recipes(settings: ResolvedSettings, supernet: Supernet, size: int) -> CostModel:
    """Costs on images of a size of the network that recipes build, which may not pad them as the supernet does.

    Raises:
        InputError: If timm refuses that size.
    """
    model = supernet.model
    if get_adapter(settings.backbone).any_size_kwargs:
        classes: Any = model.num_classes
        with torch.random.fork_rng(devices=[]):
            model = create_backbone(settings.backbone, num_classes=classes, img_size=size, **settings.network)
    return cost_model(settings.backbone, model, (size, size), settings.operator)


def _refuse_before_data(settings: ResolvedSettings) -> None:
    """Raise `InputError` for a latency target or arguments of the network that cannot be, before data are read."""
    if settings.budget_ms is not None and settings.latency_profile is None:
        settings_target(settings, num_classes=1)
    if settings.model_kwargs or settings.registers:
        backbone_costs(settings.backbone, settings.img_size, settings.operator, **settings.network)


def warm_up_plan(settings: ResolvedSettings) -> WarmUp:
    return WarmUp(
        base_steps=settings.base_steps,
        base_img_size=settings.base_img_size,
        sandwich_steps=settings.sandwich_steps,
        lr=settings.warmup_lr,
        taught=settings.axis.measure == "kl",
    )
