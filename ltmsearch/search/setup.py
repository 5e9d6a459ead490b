"""Set-up of a study: supernet, data, costs, space and budgets. Bad input is refused before anything is written."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.costs import GIGA, Budget, ChainedCosts, CostModel, backbone_costs, cost_model, sample_by_cost
from ltmsearch.costs.split import check_split_layer, describe_split
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.linear_probe import probe_images
from ltmsearch.engine.runtime import Runtime, find_device
from ltmsearch.engine.steps import WarmUp, warm_up
from ltmsearch.latency import StudyLatency, settings_target, study_latency
from ltmsearch.merging import get_operator
from ltmsearch.models import check_operator, create_backbone, get_adapter, input_config, load_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace, colliding_ratios
from ltmsearch.schedules.space_file import SpaceFile
from ltmsearch.search.budgets import check_budgets, make_budgets
from ltmsearch.search.checkpoint import WEIGHTS
from ltmsearch.search.expected import TrialRates, expected_seconds, measure_probe, measure_trial, measure_warm_up
from ltmsearch.search.measured import MeasuredCosts, cost_images, measure_thresholds, refuse_unmeasurable
from ltmsearch.search.settled import Conditions, Settled, conditions, settle
from ltmsearch.search.timing import OVERHEAD, PROBE, PROFILING, TIMING, WARM_UP, Clock
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
    evaluator: Evaluator
    settled: Settled
    conditions: Conditions
    """Number format and threads, as settled and as this machine allows."""
    prior: Prior | None = None
    """Earlier study that this one starts from."""
    new_classifiers: tuple[str, ...] = ()
    """timm paths of the classifiers that are fitted before the warm-up: those that the given weights lack."""

    def tokens_sent(self, schedule: MergeSchedule) -> float | None:
        """Tokens sent after the split layer, if the study has one."""
        layer = self.settings.split_layer
        return None if layer is None else self.costs.tokens_sent(schedule, layer)

    @cached_property
    def probe_images(self) -> list[int]:
        """Numbers of the training images that new classifiers are fitted to."""
        return probe_images(self.evaluator.data, seed=self.settings.seed)

    def warm_up(self, optimizer: Optimizer | None = None, first_step: int = 0) -> Iterator[float]:
        """Train the shared weights from where they are; yields the plain net's loss after every step."""
        s, space, plan = self.settings, self.space, warm_up_plan(self.settings)
        return warm_up(
            self.evaluator.supernet,
            plan,
            batches=self.evaluator.data.train_batches(
                batch_size=s.batch_size, steps=plan.steps, seed=s.seed, first_step=first_step
            ),
            cheapest=space.schedule(space.cheapest),
            draw=lambda rng: space.schedule(space.random(rng, 1)[0]),
            seed=s.seed,
            runtime=self.evaluator.runtime,
            optimizer=optimizer,
            first_step=first_step,
        )

    def describe(self) -> list[str]:
        """Notes for the user: network, data, device and search."""
        s, (low, high) = self.settings, self.costs.table(self.space.choices).reachable()
        growth = f"{s.proxy_img_size} px"
        if s.base_img_size < s.proxy_img_size:
            growth = f"{s.base_img_size} px growing to {s.proxy_img_size}"
        reach = f"{low / GIGA:.3f} to {high / GIGA:.3f} GFLOPs"
        if self.measured is not None:
            number = sum(map(len, self.measured.images))
            reach = f"{low / GIGA:.3f} GFLOPs or more, measured on {number} training images before each trial,"
        lines = [
            f"{s.backbone} with {s.operator} merging: {len(self.space.layers)} layers, "
            f"{self.space.size:,} schedules, {reach} at {s.img_size} px "
            f"(plain network {self.costs.base / GIGA:.3f}; multiply-adds per image)" + self._budget_in_gflops(),
            *self._latency_lines(),
            *([] if s.split_layer is None else [describe_split(s.split_layer, self.costs, self.space)]),
            f"data: {self.evaluator.data.description}",
            *self._output_lines(),
            f"device: {self.conditions}",
            *self.conditions.notes,
            f"warm-up: {s.base_steps} steps of the plain network at {growth}, {s.sandwich_steps} sandwich steps "
            f"at {s.proxy_img_size}, batch {s.batch_size}, learning rate {s.warmup_lr:g}",
            f"trials: {s.trials}, each {s.proxy_steps} steps at {s.proxy_img_size} px, learning rate {s.proxy_lr:g}, "
            f"scored on {s.val_images} images; best {s.rescore_candidates} scored again on {s.rescore_images}",
            self._ib_line(),
        ]
        if self.new_classifiers:
            lines.append(
                f"classifier: new, and fitted to the features of {len(self.probe_images):,} training images before the "
                "warm-up (--head random: not fitted)"
            )
        elif s.head == "probe":
            lines.append("classifier: that of the given weights fits the data, and is kept")
        if self.prior is not None:
            lines.insert(1, f"starts from the weights of {self.prior.run} and tries its front first")
        alike = colliding_ratios(self.space, self.proxy_costs)
        if alike:
            by_groups: dict[str, list[str]] = {}
            for layer, groups in alike.items():
                text = ", ".join(" = ".join(f"{ratio:g}" for ratio in group) for group in groups)
                by_groups.setdefault(text, []).append(layer)
            shown = "; ".join(
                f"{text} at {layers[0]}" + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")
                for text, layers in by_groups.items()
            )
            lines.append(
                f"at {s.proxy_img_size} px these keep ratios keep the same tokens and have equal scores: {shown}"
            )
        return lines

    def _output_lines(self) -> list[str]:
        outputs, data = self.settings.num_classes, self.evaluator.data
        return [] if outputs in (None, data.num_classes) else [data.about_outputs(outputs)]

    def _budget_in_gflops(self) -> str:
        high, low = self.settings.budget_gflops, self.settings.lowest_gflops
        if high is None:
            return ""
        return f", budget {high:g}" if low is None else f", budgets {low:g} to {high:g}"

    def _latency_lines(self) -> list[str]:
        if self.latency is None:
            return []
        low, high = self.budgets[0].reachable()
        reach = f"{self.space.size:,} schedules reach {low:.2f} to {high:.2f} ms, budget {self.settings.budget_ms:g}"
        return [*self.latency.describe(), reach]

    def _ib_line(self) -> str:
        weights = self.space.ib_weights
        if weights is None:
            return "IB loss: none in this search space"
        return f"IB loss: weights 0 and {weights.low:g} to {weights.high:g}, β {self.settings.ib_beta:g}"

    @cached_property
    def trial_rates(self) -> TrialRates:
        """Measured seconds of the parts of a trial; measuring takes seconds and leaves no trace."""
        if self.measured is not None:
            return measure_trial(self.evaluator, self.space.schedule(self.space.cheapest // 2))
        rng = np.random.default_rng(self.settings.seed)
        *_, cheaper = sample_by_cost(self.space, self.budgets, number=3, rng=rng)[:2]  # from the middle of the range
        return measure_trial(self.evaluator, self.space.schedule(cheaper))

    def expected_seconds(
        self, *, first_step: int | None, trials: int, baselines: int, probe: bool = False
    ) -> dict[str, float]:
        """Expected wall time in seconds of each part of `search.timing` that is still to come, after a measurement.

        Args:
            first_step: The first step of the warm-up that is to be taken; None after the warm-up.
            trials: Number of trials that are to be trained.
            baselines: Number of baselines that are scored again at the end.
            probe: Whether new classifiers are still to be fitted.
        """
        s, plan = self.settings, warm_up_plan(self.settings)
        parts = expected_seconds(s, self.trial_rates, trials=trials, baselines=baselines)
        if probe:
            parts[PROBE] = measure_probe(self.evaluator, self.probe_images)
            parts[PROBE] += self.trial_rates.scoring(s, s.rescore_images)
        if first_step is not None:
            warming = measure_warm_up(self.evaluator, self.space, plan, first_step)
            parts[WARM_UP] = warming.seconds(plan, s.proxy_img_size, first_step)
        if self.measured is not None:
            parts[OVERHEAD] += self.measured.expected_seconds(trials)
        if self.latency is not None and self.latency.can_measure:
            parts[TIMING] = self.latency.measuring_seconds(s.rescore_candidates)
        return parts

    def trial_limit(self) -> float:
        """Time limit of a trial, in seconds."""
        s = self.settings
        if s.trial_timeout is not None:
            return s.trial_timeout
        expected = self.trial_rates.training(s) + self.trial_rates.scoring(s, s.val_images)
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
    evaluator = make_evaluator(supernet, data, current.runtime, resolved)
    proxy_size = (resolved.proxy_img_size, resolved.proxy_img_size)
    proxy_costs = cost_model(resolved.backbone, supernet.model, proxy_size, resolved.operator)
    costs = _costs_of_recipes(resolved, supernet)
    images: tuple[Tensor, ...] = ()
    if get_operator(resolved.operator).adaptive:
        images = cost_images(resolved, data, callbacks)
        settled = _with_thresholds(settled, space_file, evaluator, costs, images)
        space_file = space_file.with_thresholds(settled.thresholds or {})
    latency = _latency(resolved, space_file, costs, data, callbacks, clock or Clock())
    space = _space(resolved, space_file, costs, latency)
    measured = MeasuredCosts.on(images, costs, space, evaluator) if images else None
    budgets = make_budgets(resolved, space, costs, latency, measured)
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
        evaluator=evaluator,
        settled=settled,
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


def _space(settings: ResolvedSettings, file: SpaceFile, costs: CostModel, latency: StudyLatency | None) -> SearchSpace:
    """The space of the merges that save something of every cost with a budget."""
    limited: list[ChainedCosts] = [costs] if settings.budget_gflops is not None else []
    limited += [] if latency is None else [latency.model]
    return SearchSpace.build(
        file, costs, reduces_cost=lambda layer, choice: all(cost.reduces_cost(layer, choice) for cost in limited)
    )


def _with_thresholds(
    settled: Settled, file: SpaceFile, evaluator: Evaluator, costs: CostModel, images: tuple[Tensor, ...]
) -> Settled:
    """The same choices with the thresholds of the layers for which the file has none, measured by the first call."""
    refuse_unmeasurable(evaluator.settings, file, evaluator.supernet, costs)
    if settled.thresholds is not None:
        return settled
    found = measure_thresholds(file, evaluator.supernet, costs, images, evaluator.runtime)
    return settled.model_copy(update={"thresholds": found})


def _costs_of_recipes(settings: ResolvedSettings, supernet: Supernet) -> CostModel:
    """Costs at `settings.img_size` of the network that recipes build, which may not pad images as the supernet does.

    Raises:
        InputError: If timm refuses that size.
    """
    model, size = supernet.model, settings.img_size
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


def open_supernet_and_data(settings: ResolvedSettings, callbacks: Callbacks) -> tuple[Supernet, ImageData]:
    """Read the data, and build the supernet for their classes.

    Raises:
        InputError: If data or weights are not available.
    """
    torch.manual_seed(settings.seed)
    start = time.perf_counter()
    data = load_data(
        dataset=settings.dataset,
        data_dir=Path(settings.data_dir) if settings.data_dir else None,
        img_size=settings.proxy_img_size,
        **input_config(settings.backbone, settings.images),
        val_images=settings.rescore_images,
        calibration_images=settings.calibration_images,
        seed=settings.seed,
        layout=settings.layout,
        callbacks=callbacks,
    )
    if settings.num_classes is not None:
        data.refuse_more_classes("num_classes", settings.num_classes)
    _log.info("data read in %.1f s: %s", time.perf_counter() - start, data.description)
    start = time.perf_counter()
    supernet = Supernet(
        settings.backbone,
        operator=settings.operator,
        pretrained=settings.pretrained,
        checkpoint=Path(settings.checkpoint) if settings.checkpoint else None,
        num_classes=settings.num_classes or data.num_classes,
        img_size=settings.img_size,
        **settings.network,
    )
    _log.info("supernet built in %.1f s", time.perf_counter() - start)
    return supernet, data


def make_evaluator(supernet: Supernet, data: ImageData, runtime: Runtime, settings: ResolvedSettings) -> Evaluator:
    """Move the supernet to the device, in place, and evaluate its subnets there."""
    runtime.prepare(supernet)
    _log.info("supernet on %s", runtime)
    return Evaluator(supernet=supernet, data=data, runtime=runtime, settings=settings)


def warm_up_plan(settings: ResolvedSettings) -> WarmUp:
    return WarmUp(
        base_steps=settings.base_steps,
        base_img_size=settings.base_img_size,
        sandwich_steps=settings.sandwich_steps,
        subnets=settings.sandwich_subnets,
        lr=settings.warmup_lr,
    )
