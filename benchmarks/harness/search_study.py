"""Studies whose searches are compared: options, nets kept in files, and a reference that scores fronts."""

import argparse
import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from harness.records import read_results, write_json
from harness.timing import Seconds
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import within_budgets
from ltmsearch.data.digits import Clutter
from ltmsearch.engine.steps import WarmUp, warm_up
from ltmsearch.search.pareto import hypervolume
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.teacher import Teacher

OPTIONS: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "budget_gflops": 0.055,
    "lowest_gflops": 0.0215,
    "img_size": 64,
    "clutter": False,
    "one_base": True,
    "trials": 60,
    "batch_size": 16,
    "base_steps": 700,
    "base_lr": 5e-4,
    "sandwich_steps": 40,
    "sandwich_lr": 1e-4,
    "proxy_steps": 0,
    "proxy_lr": 2e-4,
    "calibration_images": 32,
    "search_images": 128,
    "rescore_images": 128,
    "screened_schedules": 200,
    "reference_steps": 100,
    "reference_images": 300,
}
"""Options and their defaults, those of the published figures. `one_base`: all seeds start from one base net."""
QUICK: dict[str, Any] = {
    "trials": 4,
    "base_steps": 2,
    "sandwich_steps": 2,
    "batch_size": 4,
    "proxy_steps": 1,
    "calibration_images": 8,
    "search_images": 16,
    "rescore_images": 16,
    "screened_schedules": 16,
    "reference_steps": 2,
    "reference_images": 16,
    "seeds": 2,
}
CLEAN = Clutter(min_scale=0.8, max_scale=1.0, fragments=0, fragment_scale=0.4)
"""Digits that fill the image and have nothing beside them: a small ViT learns them from scratch in a minute."""


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add `OPTIONS`."""
    for name, default in OPTIONS.items():
        kind: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help="default: %(default)s", **kind)


def prepare_study(args: argparse.Namespace, seed: int) -> StudyContext:
    """Supernet, data, space and settings of one seed, without a search of the IB weight.

    Trials learn from the base net and are scored by their divergence from it, as where weights are given.
    """
    taken = ("backbone", "img_size", "batch_size", "trials", "proxy_steps", "proxy_lr", "screened_schedules")
    budgets, images = ("budget_gflops", "lowest_gflops"), ("calibration_images", "search_images", "rescore_images")
    settings = StudySettings.make(
        "benchmark",
        **{name: getattr(args, name) for name in (*taken, *budgets, *images)},
        proxy_img_size=args.img_size,
        base_img_size=args.img_size,
        seed=seed,
        precision="fp32",
        device="cpu",
        objective="kl",
        rescore_candidates=8,
        report_images=args.reference_images,
    )
    context = prepare(settings, Callbacks())
    if not args.clutter:
        data = context.evaluator.data
        assert data.search is not None
        assert data.report is not None
        for split in (data.train, data.validation, data.search.images, data.report.images):
            split.dataset.clutter = CLEAN
            split.pixel_cache, split.tensor_cache = {}, {}
    return replace(context, space=replace(context.space, ib_weights=None))


def uniform_line(context: StudyContext) -> list[np.ndarray]:
    """Uniform schedules within the budget, of every keep ratio and form of the space, costliest first."""
    space = context.space
    wanted = sorted({choice for options in space.choices for choice in options if 0 < choice.keep_ratio < 1})
    line: dict[Any, np.ndarray] = {}
    for choice in reversed(wanted):
        indices = space.nearest(choice.keep_ratio, choice.form)
        if within_budgets(context.budgets, indices[None])[0]:
            line.setdefault(context.network_key(space.schedule(indices)), indices)
    return sorted(line.values(), key=lambda indices: -context.budgets[0].costs(indices[None])[0])


@dataclass
class SavedNets:
    """Base net, warmed-up shared weights, and reference of one seed."""

    context: StudyContext
    folder: Path
    seed: int
    args: argparse.Namespace

    def load(self, name: str) -> Seconds:
        """Load a net into the supernet, trained where it is missing; the seconds of its training."""
        args, supernet = self.args, self.context.evaluator.supernet
        sandwich = {"base_steps": 0, "base_img_size": args.img_size, "lr": args.sandwich_lr}
        path, start = self.folder / name, "base"
        if name == "base":
            path = self.folder.parent / "base-0" if args.one_base else path
            seed, start = 0 if args.one_base else self.seed, ""
            plan = WarmUp(base_steps=args.base_steps, base_img_size=args.img_size, sandwich_steps=0, lr=args.base_lr)
        elif name == "warm":
            seed, plan = 1000 + self.seed, WarmUp(**sandwich, sandwich_steps=args.sandwich_steps)
        else:
            seed, plan = 2000 + self.seed, WarmUp(**sandwich, sandwich_steps=args.reference_steps)
        note = path.with_suffix(".json")
        if not note.exists():
            teacher = self.base_net() if start else None
            seconds = self._train(plan, seed, teacher)
            state = {key: value.contiguous() for key, value in supernet.state_dict().items()}
            save_file(state, path.with_suffix(".safetensors"))
            write_json(note, [seconds.wall, seconds.processor])
            print(f"{path}: {seconds.processor:.0f} s", flush=True)
        supernet.load_state_dict(load_file(path.with_suffix(".safetensors")))
        return Seconds(*json.loads(note.read_text()))

    def base_net(self) -> nn.Module:
        """The base net, which trials learn from; the supernet has its weights afterwards."""
        self.load("base")
        return deepcopy(self.context.evaluator.supernet.model).eval().requires_grad_(False)

    def _train(self, plan: WarmUp, seed: int, teacher: nn.Module | None) -> Seconds:
        start, evaluator = Seconds.now(), self.context.evaluator
        batch_size = self.context.settings.batch_size
        steps = warm_up(
            evaluator.supernet,
            plan,
            batches=evaluator.data.train_batches(batch_size=batch_size, steps=plan.steps, seed=seed),
            draw=self.context.draw_subnets,
            seed=seed,
            runtime=evaluator.training,
            teacher=None if teacher is None else lambda: teacher,
        )
        for _ in steps:
            pass
        return Seconds.now() - start


@dataclass
class Reference:
    """Scores of schedules by the reference supernet of a seed, on the report images; kept in a file."""

    nets: SavedNets
    known: dict[str, list[float]] = field(init=False)
    """Indices -> top-1, KL divergence from the base net."""

    def __post_init__(self) -> None:
        context, own, teacher = self.nets.context, self.nets.context.evaluator, Teacher()
        self.space, self.budget = context.space, context.budgets[0]
        teacher.learn(self.nets.base_net(), own.data, own.scoring, context.settings)
        self.evaluator = replace(own, teacher=teacher)  # with a cache of its own
        self.path = self.nets.folder / "reference-divergences.json"
        self.known = read_results(self.path)
        self.line = [indices.tolist() for indices in uniform_line(context)]
        self.score(self.line)

    def score(self, wanted: Iterable[list[int]]) -> None:
        """Score schedules that are not known."""
        new = [indices for indices in wanted if str(indices) not in self.known]
        if not new:
            return
        self.nets.load("reference")
        by_net = {self._key(json.loads(key)): key for key in self.known}
        for indices in new:
            schedule = self.space.schedule(indices)
            key = by_net.setdefault(self._key(indices), str(indices))
            if key not in self.known:
                score = self.evaluator.score(schedule, "report")
                assert score.kl is not None
                self.known[key] = [score.top1, score.kl]
            self.known[str(indices)] = self.known[key]
        write_json(self.path, self.known)

    def _key(self, indices: list[int]) -> Any:
        return self.nets.context.network_key(self.space.schedule(indices))

    @property
    def corner(self) -> list[float]:
        """Top-1 and divergence of the worst of the uniform schedules, in each."""
        top1, divergences = zip(*(self.known[str(indices)] for indices in self.line), strict=True)
        return [min(top1), max(divergences)]

    def gain(self, points: list[tuple[float, float]]) -> float:
        """Hypervolume of (top-1, GFLOPs) over the range of costs: mean points of top-1 above the corner."""
        return self._volume(points, self.corner[0], more_is_better=True)

    def mean_divergence(self, points: list[tuple[float, float]]) -> float:
        """Mean over the range of costs of the least divergence that one can have at each, by (divergence, GFLOPs).

        The corner's divergence less the hypervolume; costs below those of the points have that of the corner.
        """
        return self.corner[1] - self._volume(points, self.corner[1], more_is_better=False)

    def _volume(self, points: list[tuple[float, float]], corner: float, *, more_is_better: bool) -> float:
        low, limit = self.budget.reachable()[0], self.nets.args.budget_gflops
        return hypervolume(points, (corner, limit), (more_is_better, False)) / (limit - low)

    def gain_of(self, front: Iterable[list[int]]) -> float:
        """`gain` of the schedules of a front by the reference's own scores."""
        return self.gain(self._points(front, 0))

    def mean_divergence_of(self, front: Iterable[list[int]]) -> float:
        """`mean_divergence` of the schedules of a front by the reference's own scores."""
        return self.mean_divergence(self._points(front, 1))

    def _points(self, front: Iterable[list[int]], place: int) -> list[tuple[float, float]]:
        front = list(front)
        self.score(front)
        schedules = [self.space.schedule(indices) for indices in front]
        costs = [self.nets.context.costs_at(schedule).gflops(schedule) for schedule in schedules]
        return [(self.known[str(indices)][place], cost) for indices, cost in zip(front, costs, strict=True)]
