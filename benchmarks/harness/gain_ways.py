"""Ways to make a network cheaper: schedules within the same cost, each with the seconds that it took to find.

By hand: the best of a few candidates with the plain network's own weights, by KL divergence from it on validation
images, as a careful person chooses. The searches are those of `ltmsearch run`, which chooses with shared weights.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.gain_study import GainStudy
from harness.learned_schedule import learn_schedule
from harness.records import finished
from ltmsearch.engine.evaluation import Batches, divergence, log_probabilities
from ltmsearch.engine.steps import downscale
from ltmsearch.models import get_adapter
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile
from ltmsearch.search.baselines import Baseline, with_choices
from ltmsearch.search.run import Run
from ltmsearch.search.setup import StudyContext

SMALLER = "plain, smaller images"
ONE_AT_BEST = "one ratio, best image size"
TOME = "ToMe, constant r"
ONE = "one ratio, best form"
BY_HAND = "best of all baselines"
LEARNED = "learned by gradient"
FIXED = "searched, one image size"
SEARCHED = "searched, image sizes too"
SHARED = "the same from the study's weights"
WAYS = (SMALLER, ONE_AT_BEST, TOME, ONE, BY_HAND, LEARNED, FIXED, SEARCHED, SHARED)
NOT_FINDING = ("loading libraries", "setting up", "writing results")
"""Parts of a study that are not counted: the other ways have them too, before the clock starts."""
DRAWS = 6
"""Schedules per step of the learned one."""


class Ways:
    """The schedules of one seed, at each share of the plain network's cost.

    Args:
        args: Options of `gain_table.py`.
        seed: Seed of the data, the plain network and all searches.
        settings: Further settings of the studies.
    """

    def __init__(self, args: argparse.Namespace, seed: int, settings: dict[str, str]) -> None:
        self.args = args
        self.sized = GainStudy(args, seed, {**settings, "search_img_size": "auto"}, "-sizes")
        self.fixed = GainStudy(args, seed, settings)
        self.tome = GainStudy(args, seed, {**settings, "operator": "tome"}, "-tome")

    def study(self, way: str) -> GainStudy:
        """The study whose network has the operator of a way."""
        return {TOME: self.tome, ONE: self.fixed, LEARNED: self.fixed, FIXED: self.fixed}.get(way, self.sized)

    def schedules(self, share: float) -> dict[str, dict[str, Any]]:
        """Way → its schedule, cost and seconds; a way that has none within this cost is left out."""
        out = {}
        for way in WAYS:
            path = self.study(way).place(share) / f"{way.replace(' ', '-').replace(',', '')}.json"
            found = finished(path, partial(self._find, way, share))
            if found:
                out[way] = found
        return out

    def _find(self, way: str, share: float) -> dict[str, Any]:
        study = self.study(way)
        if way in (FIXED, SEARCHED, SHARED):
            return self._searched(study, share)
        context = study.context_at(share)
        target = log_probabilities(self.sized.teacher, _validation(context, None), context.evaluator.scoring)
        begun = time.perf_counter()
        if way == LEARNED:
            found = self._learn(context)
        else:
            fitting = list(_candidates(way, context, study.args.img_size))
            if not fitting:
                return {}
            found = min(fitting, key=partial(_divergence, context, target)) if len(fitting) > 1 else fitting[0]
        return _described(context, found, time.perf_counter() - begun)

    def _searched(self, study: GainStudy, share: float) -> dict[str, Any]:
        found = study.search(share)
        trials = Run.open(study.run_folder(share)).trials
        schedule = next(each.schedule for each in trials if each.trial == found["nets"]["searched"])
        seconds = sum(value for part, value in found["seconds"].items() if part not in NOT_FINDING)
        about = _described(study.context_at(share), schedule, seconds)
        return about | {"verdict": found["verdict"][-1]}

    def _learn(self, context: StudyContext) -> MergeSchedule:
        """By gradient, on the images that score trials, over the choices that the search has at one image size."""
        evaluator, args = context.evaluator, self.args
        family = get_adapter(args.backbone).family
        file = with_choices(SpaceFile.load(None, family=family), _own_size(context.settled.baselines or ()))
        space = SearchSpace.build(file, context.costs)
        images, labels = (torch.cat(parts) for parts in zip(*evaluator.data.search_batches(batch_size=64), strict=True))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            rng = np.random.default_rng(context.settings.seed)
            for _ in range(args.learning_steps):
                some = rng.choice(len(images), size=args.train_batch, replace=False)
                yield images[some], labels[some]

        target = context.budgets[0].limit
        options: dict[str, Any] = {"draws": DRAWS, "runtime": evaluator.scoring, "seed": context.settings.seed}
        table = context.costs.table(space.choices)
        supernet = evaluator.supernet
        return learn_schedule(supernet, space, table, target, batches(), teacher=self.sized.teacher, **options).schedule


def _validation(context: StudyContext, side: int | None) -> Batches:
    """The validation images that choose, downscaled to a side in pixels if one is given."""
    settings = context.settings
    options: dict[str, Any] = {"batch_size": settings.scoring_batch_size, "limit": settings.rescore_images}
    batches = context.evaluator.data.validation_batches(**options)
    return ((x if side is None else downscale(x, side), labels) for x, labels in batches)


def _divergence(context: StudyContext, target: Tensor, schedule: MergeSchedule) -> float:
    """KL divergence from the plain network on validation images."""
    evaluator = context.evaluator
    batches = _validation(context, schedule.img_size)
    found = log_probabilities(evaluator.recalibrated_subnet(schedule), batches, evaluator.scoring)
    return divergence(found, target).mean().item()


def _candidates(way: str, context: StudyContext, img_size: int) -> Iterator[MergeSchedule]:
    """Schedules by hand that fit the budget."""
    kinds: dict[str, Callable[[Baseline], bool]] = {
        SMALLER: lambda one: one.label.startswith("plain at"),
        ONE_AT_BEST: lambda one: one.label.startswith("uniform") and one.form in (None, forms[0]),
        TOME: lambda one: "per layer" in one.label,
        BY_HAND: lambda one: True,
        ONE: lambda one: one.label.startswith("uniform") and one.img_size in (None, img_size),
    }
    forms = context.space.forms
    for one in context.settled.baselines or ():
        if kinds[way](one):
            schedule = context.space.schedule(one.indices(context.space))
            yield _filled(context, schedule) if way == TOME else schedule


def _filled(context: StudyContext, schedule: MergeSchedule) -> MergeSchedule:
    """A constant r whose last layers merge one token less, as many as the budget permits: the next r costs too much."""
    layers, ratios = list(schedule.keep_ratios), dict(schedule.keep_ratios)
    for number in range(1, len(layers)):
        fewer = ratios | {layer: ratios[layer] + 1 for layer in layers[-number:]}
        tried = MergeSchedule(keep_ratios=fewer, operator=schedule.operator)
        if context.costs.macs(tried) > context.budgets[0].limit:
            break
        schedule = tried
    return schedule


def _own_size(baselines: Sequence[Baseline]) -> list[Baseline]:
    return [one for one in baselines if one.img_size is None]


def _described(context: StudyContext, schedule: MergeSchedule, seconds: float) -> dict[str, Any]:
    return {
        "gflops": context.costs_at(schedule).gflops(schedule),
        "seconds": seconds,
        "schedule": {
            "keep_ratios": dict(schedule.keep_ratios),
            "operator": schedule.operator,
            "forms": dict(schedule.forms),
            "img_size": schedule.img_size,
        },
    }


class FineTuned:
    """The networks of the ways, without training and fine-tuned alike from the plain network's own weights."""

    def __init__(self, ways: Ways) -> None:
        self.ways = ways

    @cached_property
    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Operator → weights of its supernet before any training."""
        studies = (self.ways.sized, self.ways.tome)
        nets = {study.context.settings.operator: study.context.evaluator.supernet for study in studies}
        return {name: {key: value.clone() for key, value in net.state_dict().items()} for name, net in nets.items()}

    def answers(self, way: str, share: float, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Answers to the reported images, by training seed."""
        study, schedule = self.ways.study(way), MergeSchedule(**found["schedule"])
        trainer = self.ways.tome if schedule.operator == "tome" else self.ways.sized

        def tune(seed: int) -> dict[str, Any]:
            shared = way == SHARED
            weights = study.shared_weights(share) if shared else self.weights[schedule.operator]
            return trainer.fine_tuned(f"{share:g}, {way}", weights, schedule, seed)

        named = repr((way == SHARED, sorted(found["schedule"].items(), key=str)))
        digest = hashlib.sha256(named.encode()).hexdigest()[:12]  # ways may have the same schedule
        seeds = range(self.ways.args.train_seeds)
        return [finished(trainer.folder / f"tuned-{digest}-{seed}.json", partial(tune, seed)) for seed in seeds]
