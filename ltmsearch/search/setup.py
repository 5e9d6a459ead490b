"""Set-up of a study: supernet, data, costs, space and budgets. Bad input is refused before anything is written."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.costs import GIGA, Budget, ChainedCosts, CostModel, cost_model, sample_by_cost
from ltmsearch.data.loading import load_data
from ltmsearch.engine.prefix_cache import PrefixCache
from ltmsearch.engine.runtime import choose_runtime, find_device, step_seconds
from ltmsearch.engine.steps import WarmUp, warm_up
from ltmsearch.errors import InputError
from ltmsearch.latency import StudyLatency, settings_target, study_latency
from ltmsearch.merging import get_operator
from ltmsearch.models import get_adapter, input_config, load_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.space import SearchSpace, SpaceFile, colliding_ratios
from ltmsearch.search.checkpoint import WEIGHTS
from ltmsearch.search.timing import PROFILING, Clock
from ltmsearch.search.trial import SCORING_BATCH, Evaluator
from ltmsearch.search.warm_start import Prior

_log = logging.getLogger(__name__)

BELOW_RANGE = 0.1
"""Margin below a range of budgets in which schedules are still tried, as a share of the range, so that the lowest
budget has points on both sides."""
MIN_TRIAL_LIMIT, TRIAL_LIMIT_FACTOR = 300.0, 20
"""Default time limit of a trial: at least so many seconds, and at least so many times the expected duration."""


class ImageSeconds(NamedTuple):
    """Measured seconds per image of the plain network at `settings.proxy_img_size`."""

    training: float
    """Training step."""
    trial: float
    """Training step with frozen modules before the first merging layer."""
    scoring: float
    """Forward pass; with cached outputs of the modules before the first merging layer."""


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
    evaluator: Evaluator
    seconds_per_image: ImageSeconds
    prior: Prior | None = None
    """Earlier study that this one starts from."""

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

    @property
    def device(self) -> str:
        """Device, number format and threads."""
        runtime = self.evaluator.runtime
        threads = torch.get_num_threads()
        return f"{runtime}, {threads} thread{'s' * (threads > 1)}" if runtime.device.type == "cpu" else str(runtime)

    def describe(self) -> list[str]:
        """Notes for the user: network, data, device, search and expected duration."""
        s, (low, high) = self.settings, self.costs.table(self.space.choices).reachable()
        growth = f"{s.proxy_img_size} px"
        if s.base_img_size < s.proxy_img_size:
            growth = f"{s.base_img_size} px growing to {s.proxy_img_size}"
        lines = [
            f"{s.backbone} with {s.operator} merging: {len(self.space.layers)} layers, "
            f"{self.space.size:,} schedules, {low / GIGA:.3f} to {high / GIGA:.3f} GFLOPs at {s.img_size} px "
            f"(plain network {self.costs.base / GIGA:.3f}; multiply-adds per image)" + self._budget_in_gflops(),
            *self._latency_lines(),
            f"data: {self.evaluator.data.description}",
            f"device: {self.device}",
            f"warm-up: {s.base_steps} steps of the plain network at {growth}, {s.sandwich_steps} sandwich steps "
            f"at {s.proxy_img_size}, batch {s.batch_size}, learning rate {s.warmup_lr:g}",
            f"trials: {s.trials}, each {s.proxy_steps} steps at {s.proxy_img_size} px, learning rate {s.proxy_lr:g}, "
            f"scored on {s.val_images} images; best {s.rescore_candidates} scored again on {s.rescore_images}",
            self._ib_line(),
            f"expected to take about {self.estimated_seconds() / 60:.1f} minutes",
        ]
        if self.prior is not None:
            lines.insert(1, f"starts from the weights of {self.prior.run} and tries its front first")
        alike = colliding_ratios(self.space, self.proxy_costs.layer_grids)
        if alike:
            by_groups: dict[str, list[str]] = {}
            for layer, groups in alike.items():
                text = ", ".join(" = ".join(f"{ratio:g}" for ratio in group) for group in groups)
                by_groups.setdefault(text, []).append(layer)
            shown = "; ".join(
                f"{text} at {layers[0]}" + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")
                for text, layers in by_groups.items()
            )
            lines.append(f"at {s.proxy_img_size} px these keep ratios give the same grid and equal scores: {shown}")
        return lines

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

    def trial_seconds(self) -> float:
        """Expected wall time of one trial, in seconds."""
        s, (_, step, score) = self.settings, self.seconds_per_image
        return s.proxy_steps * s.batch_size * step + (s.calibration_images + s.val_images) * score

    def trial_limit(self) -> float:
        """Time limit of a trial, in seconds."""
        return self.settings.trial_timeout or max(MIN_TRIAL_LIMIT, TRIAL_LIMIT_FACTOR * self.trial_seconds())

    def estimated_seconds(self) -> float:
        """Expected wall time of the study in seconds, from the measured seconds per image."""
        s, (train, step, score) = self.settings, self.seconds_per_image
        plan = warm_up_plan(s)
        pixels = sum(plan.img_size(step, full=s.proxy_img_size) ** 2 for step in range(s.base_steps))
        base = pixels / s.proxy_img_size**2 * s.batch_size * train
        sandwich = s.sandwich_steps * s.batch_size * (train + step * (1 + s.sandwich_subnets))
        rescore = (s.rescore_candidates + 2) * (s.calibration_images + s.rescore_images) * score
        return base + sandwich + math.ceil(s.trials / s.workers) * self.trial_seconds() + rescore


def prepare(settings: StudySettings, callbacks: Callbacks, clock: Clock | None = None) -> StudyContext:
    """Build the supernet, count costs, read space and data, choose the number format, profile latency.

    Raises:
        InputError: If a setting cannot be applied; quick checks come first.
    """
    adapter = get_adapter(settings.backbone)
    get_operator(settings.operator)
    device = find_device(settings.device)
    prior = Prior.open(Path(settings.resume_from), backbone=settings.backbone) if settings.resume_from else None
    resolved = settings.resolved(device.type, adapter.learning, prior.settings if prior else None)
    space_file = SpaceFile.load(resolved.space, family=adapter.family)
    if resolved.budget_ms is not None and resolved.latency_profile is None:
        settings_target(resolved, num_classes=1)  # refuse before the data are read
    evaluator = prepare_evaluator(resolved, callbacks)
    supernet = evaluator.supernet
    if prior is not None:
        report = load_weights(supernet.model, prior.run / WEIGHTS)  # as far as operator and classes match
        if report.initialised or report.ignored:
            callbacks.note(f"weights of {prior.run}: {report}")
    costs, proxy_costs = (
        cost_model(resolved.backbone, supernet.model, (size, size), resolved.operator)
        for size in (resolved.img_size, resolved.proxy_img_size)
    )
    latency = None
    limited: list[ChainedCosts] = [costs] if resolved.budget_gflops is not None else []
    if resolved.budget_ms is not None:
        with (clock or Clock()).part(PROFILING):
            latency = study_latency(resolved, space_file, costs, evaluator.data.num_classes, callbacks)
        limited.append(latency.model)
    space = SearchSpace.build(
        space_file,
        costs.layer_grids,
        resolved.operator,
        get_operator(resolved.operator).forms,
        reduces_cost=lambda layer, choice: all(cost.reduces_cost(layer, choice) for cost in limited),
    )
    budgets = make_budgets(resolved, space, costs, latency)
    check_budgets(resolved, space, budgets)
    images = next(evaluator.data.train_batches(batch_size=resolved.batch_size, steps=1, seed=resolved.seed))[0]
    many = images.repeat(-(-SCORING_BATCH // len(images)), 1, 1, 1)[:SCORING_BATCH]
    seconds = _measure(evaluator, images, many)
    _log.info("milliseconds per image: training %.2f, in a trial %.2f, scoring %.2f", *(1e3 * each for each in seconds))
    return StudyContext(
        settings=resolved,
        costs=costs,
        proxy_costs=proxy_costs,
        space=space,
        budgets=budgets,
        latency=latency,
        evaluator=evaluator,
        seconds_per_image=seconds,
        prior=prior,
    )


def _measure(evaluator: Evaluator, images: Tensor, many: Tensor) -> ImageSeconds:
    """Time a training batch and a scoring batch."""
    runtime, supernet, prefix_cache = evaluator.runtime, evaluator.supernet, PrefixCache(evaluator.supernet)
    training = step_seconds(runtime, supernet, images)
    with supernet.frozen_prefix():
        trial = step_seconds(runtime, supernet, images)
    for _ in range(2):  # the second pass uses the cached prefix
        with prefix_cache.replay("timing"):
            scoring = step_seconds(runtime, supernet, many, train=False)
    return ImageSeconds(training / len(images), trial / len(images), scoring / len(many))


def prepare_evaluator(settings: ResolvedSettings, callbacks: Callbacks) -> Evaluator:
    """Build the supernet, read the data, choose the number format.

    Raises:
        InputError: If data or weights are not available.
    """
    torch.manual_seed(settings.seed)
    start = time.perf_counter()
    data = load_data(
        dataset=settings.dataset,
        data_dir=Path(settings.data_dir) if settings.data_dir else None,
        img_size=settings.proxy_img_size,
        **input_config(settings.backbone),
        val_images=settings.rescore_images,
        calibration_images=settings.calibration_images,
        seed=settings.seed,
        callbacks=callbacks,
    )
    _log.info("data read in %.1f s: %s", time.perf_counter() - start, data.description)
    start = time.perf_counter()
    supernet = Supernet(
        settings.backbone,
        operator=settings.operator,
        pretrained=settings.pretrained,
        checkpoint=Path(settings.checkpoint) if settings.checkpoint else None,
        num_classes=data.num_classes,
        img_size=settings.img_size,
    )
    images = next(data.train_batches(batch_size=settings.batch_size, steps=1, seed=settings.seed))[0]
    runtime = choose_runtime(find_device(settings.device), settings.precision, supernet, images)
    runtime.prepare(supernet)
    _log.info("supernet on %s after %.1f s", runtime, time.perf_counter() - start)
    return Evaluator(supernet=supernet, data=data, runtime=runtime, settings=settings)


def make_budgets(
    settings: StudySettings, space: SearchSpace, costs: CostModel, latency: StudyLatency | None
) -> tuple[Budget, ...]:
    """The budgets of a study; a latency budget comes first."""
    budgets = []
    if latency is not None and settings.budget_ms is not None:
        budgets.append(Budget(name="latency_ms", table=latency.model.table(space.choices), limit=settings.budget_ms))
    if settings.budget_gflops is not None:
        table, limit, least = costs.table(space.choices), int(settings.budget_gflops * GIGA), 0.0
        if settings.lowest_gflops is not None:
            width = settings.budget_gflops - settings.lowest_gflops
            least = (settings.lowest_gflops - BELOW_RANGE * width) * GIGA
        budgets.append(Budget(name="gflops", table=table, limit=limit, per_unit=GIGA, minimum=least))
    return tuple(budgets)


def warm_up_plan(settings: ResolvedSettings) -> WarmUp:
    return WarmUp(
        base_steps=settings.base_steps,
        base_img_size=settings.base_img_size,
        sandwich_steps=settings.sandwich_steps,
        subnets=settings.sandwich_subnets,
        lr=settings.warmup_lr,
    )


def check_budgets(settings: StudySettings, space: SearchSpace, budgets: Sequence[Budget]) -> None:
    """Raise `InputError` for a budget that no schedule meets, or every schedule."""
    for budget in budgets:
        of_latency = budget.name == "latency_ms"
        option, unit, digits = ("--budget-ms", "ms", 2) if of_latency else ("--budget-gflops", "GFLOPs", 4)
        limit, (low, high) = budget.limit / budget.per_unit, budget.reachable()
        lowest = limit if of_latency or settings.lowest_gflops is None else settings.lowest_gflops
        given = f"{limit:g}" if lowest == limit else f"{lowest:g}-{limit:g}"
        net = f"{settings.backbone} at {settings.img_size} px"
        if low == high:
            advice = "; try larger images or batches, or another runtime" if of_latency else ""
            raise InputError(
                f"{option} {given} leaves nothing to search: no merge in the space saves {unit}; {net} costs "
                f"{low:.{digits}f}{advice}"
            )
        if not low <= lowest <= limit < high:
            rule = "is too low" if lowest < low else "is above the cost of the plain network"
            raise InputError(
                f"{option} {given} {rule}: merging reaches {low:.{digits}f} to {high:.{digits}f} {unit} for {net} "
                f"(per {'batch' if of_latency else 'image, multiply-adds'})"
            )
    if len(budgets) > 1 and not len(sample_by_cost(space, budgets, number=1, rng=np.random.default_rng(0))):
        raise InputError(
            f"--budget-gflops {settings.budget_gflops:g} and --budget-ms {settings.budget_ms:g} can be met separately, "
            "but no schedule meets both; raise one of them"
        )
