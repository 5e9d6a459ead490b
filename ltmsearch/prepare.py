"""From settings to everything a study works with. Bad input is refused here, before anything is written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ltmsearch.backbones import get_adapter, input_config
from ltmsearch.costs import GIGA, CostModel, CostTable, cost_model
from ltmsearch.data import ImageData, load_data
from ltmsearch.errors import InputError
from ltmsearch.merging import get_operator
from ltmsearch.runtime import choose_runtime, find_device, step_seconds
from ltmsearch.settings import ResolvedSettings, StudySettings
from ltmsearch.space import SearchSpace, SpaceFile, indistinct_choices
from ltmsearch.supernet import Supernet
from ltmsearch.training import WarmUp, warm_up
from ltmsearch.trial import SCORING_BATCH, Evaluator


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Everything a study works with."""

    settings: ResolvedSettings
    """The settings."""
    costs: CostModel
    """Costs at `settings.img_size`, with the data's number of classes."""
    proxy_costs: CostModel
    """Costs, and above all grids, at `settings.proxy_img_size`."""
    space: SearchSpace
    """What is searched."""
    table: CostTable
    """Costs of the space."""
    evaluator: Evaluator
    """Supernet, data and runtime."""
    seconds_per_image: tuple[float, float]
    """Measured on a batch of the plain net at `settings.proxy_img_size`: training, scoring."""

    def warm_up(self) -> Iterator[float]:
        """Train the shared weights from where they are; yields the plain net's loss after every step.

        Raises:
            TrialDiverged: If the loss is not finite.
        """
        s, space, plan = self.settings, self.space, warm_up_plan(self.settings)
        return warm_up(
            self.evaluator.supernet,
            plan,
            batches=self.evaluator.data.train_batches(batch_size=s.batch_size, steps=plan.steps, seed=s.seed),
            cheapest=space.schedule(space.cheapest),
            draw=lambda rng: space.schedule(space.random(rng, 1)[0]),
            seed=s.seed,
            runtime=self.evaluator.runtime,
        )

    def describe(self) -> list[str]:
        """Lines for a person: what is searched, on what, how, and how long it will take."""
        s, (low, high) = self.settings, self.table.reachable()
        threads = f", {torch.get_num_threads()} threads" if self.evaluator.runtime.device.type == "cpu" else ""
        growth = f"{s.proxy_img_size} px"
        if s.base_img_size < s.proxy_img_size:
            growth = f"{s.base_img_size} px growing to {s.proxy_img_size}"
        lines = [
            f"{s.backbone} with {s.operator} merging: {len(self.space.layers)} layers, "
            f"{self.space.size:,} schedules, {low / GIGA:.3f} to {high / GIGA:.3f} GFLOPs at {s.img_size} px "
            f"(plain net {self.costs.base_macs / GIGA:.3f}; multiply-adds per image), budget {s.budget_gflops:g}",
            f"data: {self.evaluator.data.description}",
            f"device: {self.evaluator.runtime}{threads}",
            f"warm-up: {s.base_steps} steps of the plain net at {growth}, {s.sandwich_steps} sandwich steps "
            f"at {s.proxy_img_size}, batch {s.batch_size}, learning rate {s.warmup_lr:g}",
            f"trials: {s.trials}, each {s.proxy_steps} steps at {s.proxy_img_size} px, learning rate {s.proxy_lr:g}, "
            f"scored on {s.val_images} images; best {s.rescore_candidates} scored again on {s.rescore_images}",
            self._ib_line(),
            f"expected to take about {self.estimated_seconds() / 60:.1f} minutes",
        ]
        alike = indistinct_choices(self.space, self.proxy_costs.layer_grids)
        if alike:
            by_groups: dict[str, list[str]] = {}
            for layer, groups in alike.items():
                text = ", ".join(" = ".join(f"{ratio:g}" for ratio in group) for group in groups)
                by_groups.setdefault(text, []).append(layer)
            shown = "; ".join(
                f"{text} at {layers[0]}" + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")
                for text, layers in by_groups.items()
            )
            lines.append(f"at {s.proxy_img_size} px these keep ratios give one grid and score alike: {shown}")
        return lines

    def _ib_line(self) -> str:
        weights = self.space.ib_weights
        if weights is None:
            return "IB loss: none in this search space"
        return f"IB loss: weights 0 and {weights.low:g} to {weights.high:g}, β {self.settings.ib_beta:g}"

    def estimated_seconds(self) -> float:
        """Expected wall time of the whole study, from the measured seconds per image."""
        s, (train, score) = self.settings, self.seconds_per_image
        plan = warm_up_plan(s)
        pixels = sum(plan.img_size(step, full=s.proxy_img_size) ** 2 for step in range(s.base_steps))
        base = pixels / s.proxy_img_size**2 * s.batch_size * train
        sandwich = s.sandwich_steps * s.batch_size * train * (2 + s.sandwich_subnets)
        trial = s.proxy_steps * s.batch_size * train + (s.calibration_images + s.val_images) * score
        if self.space.ib_weights is not None:  # the IB loss takes its statistics before most trials
            trial += s.calibration_images * score
        rescore = (s.rescore_candidates + 2) * (s.calibration_images + s.rescore_images) * score
        return base + sandwich + s.trials * trial + rescore


def prepare(settings: StudySettings, *, on_progress: Callable[[int, int], None] | None = None) -> Workbench:
    """Build the supernet, count costs, read the space and the data, choose the number format.

    Args:
        settings: What the user asked for.
        on_progress: Called while images are decoded: how many so far, of how many.

    Raises:
        InputError: If some setting cannot be followed: the first that is found, cheap checks first.
    """
    adapter = get_adapter(settings.backbone)
    get_operator(settings.operator)
    device = find_device(settings.device)
    resolved = settings.resolved(device.type, adapter.learning)
    space_file = SpaceFile.load(resolved.space, family=adapter.family)
    torch.manual_seed(resolved.seed)
    data = _load_data(resolved, on_progress)
    supernet = Supernet(
        resolved.backbone,
        operator=resolved.operator,
        pretrained=resolved.pretrained,
        checkpoint=Path(resolved.checkpoint) if resolved.checkpoint else None,
        num_classes=data.num_classes,
        img_size=resolved.img_size,
    )
    costs, proxy_costs = (
        cost_model(resolved.backbone, supernet.model, (size, size), resolved.operator)
        for size in (resolved.img_size, resolved.proxy_img_size)
    )
    space = SearchSpace.build(space_file, costs.layer_grids, resolved.operator, pays=costs.pays)
    table = costs.table(space.choices)
    check_budget(resolved, table)
    images = next(data.train_batches(batch_size=resolved.batch_size, steps=1, seed=resolved.seed))[0]
    runtime = choose_runtime(device, resolved.precision, supernet, images)
    runtime.prepare(supernet)
    many = images.repeat(-(-SCORING_BATCH // len(images)), 1, 1, 1)[:SCORING_BATCH]
    seconds = (
        step_seconds(runtime, supernet, images) / len(images),
        step_seconds(runtime, supernet, many, train=False) / len(many),
    )
    return Workbench(
        settings=resolved,
        costs=costs,
        proxy_costs=proxy_costs,
        space=space,
        table=table,
        evaluator=Evaluator(supernet=supernet, data=data, runtime=runtime, settings=resolved),
        seconds_per_image=seconds,
    )


def warm_up_plan(settings: ResolvedSettings) -> WarmUp:
    """The warm-up that the settings ask for."""
    return WarmUp(
        base_steps=settings.base_steps,
        base_img_size=settings.base_img_size,
        sandwich_steps=settings.sandwich_steps,
        subnets=settings.sandwich_subnets,
        lr=settings.warmup_lr,
    )


def check_budget(settings: StudySettings, table: CostTable) -> None:
    """Refuse a budget that no schedule, or every schedule, meets.

    Raises:
        InputError: With the reachable range.
    """
    low, high = table.reachable()
    if not low <= settings.max_macs < high:
        rule = "is below what merging can reach" if settings.max_macs < low else "constrains nothing"
        raise InputError(
            f"--budget-gflops {settings.budget_gflops:g} {rule}: {settings.backbone} at {settings.img_size} px reaches "
            f"{low / GIGA:.4f} to {high / GIGA:.4f} GFLOPs (multiply-adds per image)"
        )


def _load_data(settings: ResolvedSettings, on_progress: Callable[[int, int], None] | None) -> ImageData:
    return load_data(
        dataset=settings.dataset,
        data_dir=Path(settings.data_dir) if settings.data_dir else None,
        img_size=settings.proxy_img_size,
        **input_config(settings.backbone),
        val_images=settings.rescore_images,
        calibration_images=settings.calibration_images,
        seed=settings.seed,
        on_progress=on_progress,
    )
