"""Logits of schedules trained alone, and of the same schedules with shared weights; kept in files."""

import io
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from harness.loops import all_logits, fine_tune, train_plain
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import GIGA, backbone_costs, sample_by_cost
from ltmsearch.engine.evaluation import preserve_batchnorm, recalibrate
from ltmsearch.engine.steps import proxy_train
from ltmsearch.io.files import write_atomic
from ltmsearch.models import get_adapter
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.teacher import trial_batches
from ltmsearch.search.trial import SCORING_BATCH, load_parameters, parameters

NEAR = 0.02
"""Largest relative distance of the costs of comparable schedules from the middle cost."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Training lengths of a backbone."""

    img_size: int
    base_steps: int
    """Steps of the truth's plain nets."""
    tune_steps: int
    """Steps of each subnet from there."""
    tune_lr: float
    shared_steps: int | None = None
    """Steps of the plain net before the sandwich steps of a supernet; None: a study's default."""
    schedules: int = 16
    val_images: int = 1000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to score schedules with shared weights."""

    name: str
    sandwich: bool = True
    """Whether sandwich steps follow those of the plain net."""
    steps: int | None = None
    """Training steps of a trial; None: a study's default."""
    calibration: int = 32
    """Images of the BatchNorm statistics."""
    share: float | None = None
    """Trials run one after the other and move the shared weights by this share; None: each starts from the warm-up."""
    images: int | None = 512
    """Validation images; None: all."""


class RankStudy:
    """Nets and logits of the schedules of one backbone.

    Args:
        backbone: timm name.
        sizes: Training lengths.
        folder: Folder of finished parts.
        data_dir: Image folder; None: the digits.
        calibration_images: Largest number of images for BatchNorm statistics.
    """

    def __init__(
        self, backbone: str, sizes: Sizes, folder: Path, data_dir: Path | None, calibration_images: int
    ) -> None:
        self.backbone, self.sizes, self.folder = backbone, sizes, folder
        self.data_dir, self.calibration_images = data_dir, calibration_images
        self.folder.mkdir(parents=True, exist_ok=True)
        described, path = asdict(sizes), folder / "sizes.json"
        if path.exists() and json.loads(path.read_text()) != described:
            raise SystemExit(f"{folder} has nets of other sizes: {path.read_text()}; give another `--work`")
        write_atomic(path, json.dumps(described))
        self.context = self.prepare(0)
        self.schedules = [self.context.space.schedule(row) for row in self._draw()]

    def prepare(self, seed: int) -> StudyContext:
        """Supernet, data and space with a study's defaults, for all budgets."""
        px, costs = self.sizes.img_size, backbone_costs(self.backbone, self.sizes.img_size, num_classes=10)
        file = SpaceFile.load(None, family=get_adapter(self.backbone).family)
        cheapest = costs.table(SearchSpace.build(file, costs).choices).reachable()[0]
        settings = StudySettings.make(
            backbone=self.backbone,
            img_size=px,
            proxy_img_size=px,
            budget_gflops=0.999 * costs.base / GIGA,
            lowest_gflops=1.001 * cheapest / GIGA,
            seed=seed,
            device="cpu",
            base_steps=self.sizes.shared_steps,
            data_dir=self.data_dir,
            rescore_images=self.sizes.val_images,
            calibration_images=self.calibration_images,
        )
        return prepare(settings, Callbacks())

    def _draw(self) -> np.ndarray:
        """(schedules, L) choice indices: half spread over the costs, half near the middle one. No two are one net."""
        space, budget, rng, number = self.context.space, self.context.budgets[0], np.random.default_rng(0), self.sizes
        rows = list(sample_by_cost(space, [budget], number=number.schedules - number.schedules // 2, rng=rng))
        nets = {self.context.costs.network_key(space.schedule(row)) for row in rows}
        middle = sum(budget.table.reachable()) / 2
        pool = space.random(rng, 100_000)
        for row in pool[np.abs(budget.table.costs(pool) / middle - 1) <= NEAR]:
            net = self.context.costs.network_key(space.schedule(row))
            if net not in nets and len(rows) < number.schedules:
                nets.add(net)
                rows.append(row)
        return np.array(rows)

    def _kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            start, stream = time.perf_counter(), io.BytesIO()
            np.save(stream, make())
            write_atomic(path, stream.getvalue())
            print(f"{self.backbone} {name}: {time.perf_counter() - start:.0f} s", flush=True)
        return cast(np.ndarray, np.load(path))

    def _load_state(self, name: str, net: nn.Module, train: Callable[[], None]) -> None:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            train()
            self._save_state(name, net)
        net.load_state_dict(safetensors.torch.load(path.read_bytes()))

    def _save_state(self, name: str, net: nn.Module) -> None:
        state = {key: value.clone(memory_format=torch.contiguous_format) for key, value in net.state_dict().items()}
        write_atomic(self.folder / f"{name}.safetensors", safetensors.torch.save(state))

    def alone(self, seed: int) -> np.ndarray:
        """(schedules + 1, images, classes) logits of the subnets trained from one plain net, and of that net."""
        evaluator, sizes = self.context.evaluator, self.sizes
        data, runtime, s = evaluator.data, evaluator.runtime, evaluator.settings
        torch.manual_seed(seed)
        net = Supernet(self.backbone, num_classes=data.num_classes, img_size=sizes.img_size)
        runtime.prepare(net)

        def train() -> None:
            plan: dict[str, Any] = {"steps": sizes.base_steps, "batch_size": s.batch_size, "lr": s.warmup_lr}
            train_plain(net, data, runtime, seed=seed, first_img_size=s.base_img_size, **plan)

        def tuned(schedule: MergeSchedule) -> np.ndarray:
            subnet = runtime.prepare(net.extract(schedule))
            batches = data.train_batches(batch_size=s.batch_size, steps=sizes.tune_steps, seed=1000 + seed)
            fine_tune(subnet, batches, steps=sizes.tune_steps, lr=sizes.tune_lr, runtime=runtime)
            return all_logits(subnet, data, runtime)

        self._load_state(f"alone-{seed}", net, train)
        every = [
            self._kept(f"alone-{seed}-{number:02d}", partial(tuned, schedule))
            for number, schedule in enumerate(self.schedules)
        ]
        return np.stack([*every, self._kept(f"alone-{seed}-plain", lambda: all_logits(net, data, runtime))])

    def shared(self, seed: int, variants: Iterable[Variant]) -> dict[str, np.ndarray]:
        """Variant -> (schedules + 1, images, classes) logits with the shared weights, the plain net's last."""
        context, scores, names = self.prepare(seed), {}, {True: f"shared-{seed}", False: f"shared-{seed}-no-sandwich"}
        supernet = context.evaluator.supernet

        def train() -> None:
            for step, _ in enumerate(context.warm_up(), start=1):
                if step == context.settings.base_steps:
                    self._save_state(names[False], supernet)

        for variant in variants:
            self._load_state(names[True], supernet, train)
            if not variant.sandwich:
                self._load_state(names[False], supernet, train)
            make = self._independent if variant.share is None else self._moving
            logits = self._kept(f"shared-{seed}-{variant.name}", partial(make, context, variant, seed))
            if variant.share is None:
                scores[variant.name] = logits
            else:
                scores |= {f"{variant.name}, when run": logits[0], f"{variant.name}, scored again": logits[1]}
        return scores

    def _independent(self, context: StudyContext, variant: Variant, seed: int) -> np.ndarray:
        """Logits of trials that all start from the same weights."""
        weights = parameters(context.evaluator.supernet)
        every = [self._trial(context, variant, weights, schedule) for schedule in self.schedules]
        return np.stack([*every, self._trial(context, variant, weights, None, steps=0)])

    def _moving(self, context: StudyContext, variant: Variant, seed: int) -> np.ndarray:
        """(2, schedules + 1, images, classes) logits of trials that move the weights: when run, and at the end."""
        supernet = context.evaluator.supernet
        weights = parameters(supernet)
        plain = self._trial(context, variant, weights, None, steps=0)
        when_run: dict[int, np.ndarray] = {}
        for number in np.random.default_rng(seed).permutation(len(self.schedules)).tolist():
            when_run[number] = self._trial(context, variant, weights, self.schedules[number])
            trained = parameters(supernet)
            weights = {name: torch.lerp(old, trained[name], variant.share or 0.0) for name, old in weights.items()}
        again = [self._trial(context, variant, weights, schedule, steps=0) for schedule in (*self.schedules, None)]
        return np.stack([np.stack([*(when_run[n] for n in sorted(when_run)), plain]), np.stack(again)])

    def _trial(
        self,
        context: StudyContext,
        variant: Variant,
        weights: dict[str, Tensor],
        schedule: MergeSchedule | None,
        *,
        steps: int | None = None,
    ) -> np.ndarray:
        """(images, classes) logits after a trial's training and recalibration; the trained weights stay.

        All trials of a supernet train on the same images in the same order.
        """
        evaluator, s = context.evaluator, context.settings
        supernet, data, runtime = evaluator.supernet, evaluator.data, evaluator.runtime
        schedule = schedule or MergeSchedule.uniform(supernet.layers, 1.0)
        steps = next(n for n in (steps, variant.steps, s.proxy_steps) if n is not None)
        load_parameters(supernet, weights)
        with preserve_batchnorm(supernet):
            if steps:
                batches = trial_batches(data, s.model_copy(update={"proxy_steps": steps}), s.batch_size)
                proxy_train(supernet, schedule, batches, lr=s.proxy_lr, runtime=runtime)
            calibration = data.calibration_batches(batch_size=SCORING_BATCH)
            with supernet.active(schedule):
                recalibrate(supernet, islice(calibration, -(-variant.calibration // SCORING_BATCH)), runtime)
                return all_logits(supernet.model, data, runtime, variant.images)
