"""Parts of the screening left out one by one: what each is worth.

Claim:    the parts of the screening earn their place: see the page for those that do not show it.
Command:  python benchmarks/screening_parts.py --work FOLDER (that of search_quality.py, whose base net it uses)
Duration: half an hour of one thread
Result:   benchmarks/results/screening_parts.json
Page:     docs/benchmarks/search.md

Every variant screens from the same base net for one budget. Its best schedule is fine-tuned alone from the base, by
distillation, on the same images in the same order for all; the value is the KL divergence of that network from the base
on report images, which no screening uses. Less is better. The best uniform schedule is the best by these very images,
which favours it. Seeds change the sandwich steps, the screening and the order
of the images of the fine-tuning.

    whole            as `ltmsearch run` screens
    additive model   the model of the scores without products of pairs of layers
    no model         children are scored in random order
    random draws     no children: the best of schedules drawn near the budget
    no sieve         every schedule on all search images, and so many fewer schedules
    cross-entropy    the score is the cross-entropy with the labels, not the divergence from the base
    half, quarter    so many of the schedules
    all costs        sandwich steps draw schedules of all costs, not only near the budget
    no sandwich      the base's weights as they are
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from harness.arguments import add_seeds, add_work, benchmark_parser, parse
from harness.loops import fine_tune
from harness.records import finished, settings_of, write_results
from harness.search_methods import TrialLog, logged
from harness.search_study import QUICK, SavedNets, add_search_options, prepare_study, uniform_line
from harness.statistics import differences, mean_interval, mean_sd
from harness.tables import print_table
from torch import nn

from ltmsearch.costs import sample_by_cost
from ltmsearch.engine.evaluation import divergence, log_probabilities
from ltmsearch.engine.steps import WarmUp, warm_up
from ltmsearch.search import screening
from ltmsearch.search.screening import Screening, few_images
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.surrogate import Surrogate

PROMOTED = 4


class AdditiveModel(Surrogate):
    """Without products of pairs of layers."""

    def features(self, rows: np.ndarray) -> np.ndarray:
        pairs = len(self.halvings) + bool(len(self.log_pixels))
        return super().features(rows)[:, : -(pairs * (pairs - 1) // 2)]


class NoModel(Surrogate):
    """Expects the same of all schedules."""

    def fit(self, rows: np.ndarray, scores: np.ndarray) -> None:
        pass

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros(len(rows))


CHANGES: dict[str, dict[str, Any]] = {
    "whole": {},
    "additive model": {"Surrogate": AdditiveModel},
    "no model": {"Surrogate": NoModel},
    "random draws": {"START_SHARE": 1.0},
    "no sieve": {},
    "cross-entropy": {},
    "half": {},
    "quarter": {},
    "all costs": {},
    "no sandwich": {},
}
"""Variant -> names of `ltmsearch.search.screening` that it replaces."""

NUMBERS = {"half": 0.5, "quarter": 0.25}
"""Variant -> share of the schedules that it scores."""


@contextmanager
def changed(variant: str) -> Iterator[None]:
    """The screening with the parts of a variant."""
    with mock.patch.multiple(screening, **CHANGES[variant]) if CHANGES[variant] else nullcontext():
        yield


class Parts:
    """Variants of one seed."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        self.folder: Path = args.work / args.backbone / f"seed-{seed}" / "parts"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.context: StudyContext = prepare_study(args, seed)
        self.base = SavedNets(self.context, self.folder.parent, seed, args).base_net()
        self.uniform = uniform_line(self.context)
        self.start = {name: value.clone() for name, value in self.context.evaluator.supernet.state_dict().items()}

    def prepare_weights(self, variant: str) -> None:
        """Give the supernet the weights that a variant scores with."""
        context, args = self.context, self.args
        supernet, space, data = context.evaluator.supernet, context.space, context.evaluator.data
        supernet.load_state_dict(self.start)
        if variant == "no sandwich":
            return
        draw = context.draw_subnets
        if variant == "all costs":
            everywhere = sample_by_cost(space, context.budgets, number=1000, rng=np.random.default_rng(self.seed))
            number = context.settings.sandwich_subnets

            def draw(rng: np.random.Generator) -> list[Any]:
                return [space.schedule(row) for row in everywhere[rng.integers(len(everywhere), size=number)]]

        plan = WarmUp(
            base_steps=0, base_img_size=args.img_size, sandwich_steps=args.sandwich_steps, lr=args.sandwich_lr
        )
        batches = data.train_batches(batch_size=args.batch_size, steps=plan.steps, seed=1000 + self.seed)
        options: dict[str, Any] = {"runtime": context.evaluator.training, "teacher": lambda: self.base}
        for _ in warm_up(supernet, plan, batches=batches, draw=draw, seed=1000 + self.seed, **options):
            pass

    def screen(self, variant: str) -> dict[str, Any]:
        """The schedules that a variant promotes, and the images that it scored."""
        context = self.context
        objective = "loss" if variant == "cross-entropy" else "kl"
        evaluator = logged(context, TrialLog(context, self.base), objective=objective)
        self.prepare_weights(variant)
        images, schedules = evaluator.data.search_size, self.args.screened_schedules
        few = few_images(images)
        known: dict[tuple[int, ...], float] = {}
        """Choice indices and number of images -> score."""
        if variant == "no sieve":
            few, schedules = images, schedules * few // images
        schedules = round(schedules * NUMBERS.get(variant, 1))

        def score(rows: Any, number: int | None) -> list[float]:
            keys = [(*map(int, row), number or images) for row in rows]
            for key in keys:
                if key not in known:
                    known[key] = evaluator.screening_score(context.space.schedule(np.array(key[:-1])), key[-1])
            return [known[key] for key in keys]

        with changed(variant):
            found = Screening(
                space=context.space,
                budgets=context.budgets,
                score=score,
                net=lambda indices: context.proxy_key(context.space.schedule(indices)),
                few=few,
                seed=self.seed,
            ).run(starts=uniform_line(context), known=[], schedules=schedules, promoted=PROMOTED)
        return {
            "promoted": [list(one.indices) for one in found],
            "images": sum(key[-1] for key in known),
            "scores": [one.score for one in found],
        }

    def alone(self, row: list[int]) -> float:
        """Divergence of a schedule's network, fine-tuned from the base, on the report images."""
        args, context, evaluator = self.args, self.context, self.context.evaluator
        evaluator.supernet.load_state_dict(self.start)
        net = evaluator.recalibrated_subnet(context.space.schedule(np.array(row)))
        batches = evaluator.data.train_batches(batch_size=args.batch_size, steps=args.tune_steps, seed=5000 + self.seed)
        options: dict[str, Any] = {"lr": args.sandwich_lr, "runtime": evaluator.training, "teacher": self.base}
        fine_tune(net, batches, steps=args.tune_steps, **options)
        return float(divergence(self._answers(net), self._answers(self.base)).mean())

    def _answers(self, net: nn.Module) -> Any:
        evaluator = self.context.evaluator
        batches = evaluator.data.report_batches(batch_size=evaluator.settings.scoring_batch_size)
        return log_probabilities(net, batches, evaluator.scoring)

    def run(self) -> dict[str, Any]:
        """Every variant, and the best uniform schedule."""
        found = {}
        for variant in CHANGES:
            file = variant.replace(" ", "-")
            found[variant] = finished(self.folder / f"{file}.json", partial(self.screen, variant))
            make: Callable[[], float] = partial(self.alone, found[variant]["promoted"][0])
            found[variant]["value"] = finished(self.folder / f"{file}-alone.json", make)
            print(f"seed {self.seed}, {variant}: {found[variant]['value']:.4f}", flush=True)
        lines = [indices.tolist() for indices in self.uniform[: self.args.uniform]]
        values = [finished(self.folder / f"uniform-{n}.json", partial(self.alone, row)) for n, row in enumerate(lines)]
        return found | {"uniform": {"value": min(values), "values": values, "images": 0}}


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_work(parser)
    add_seeds(parser, 5)
    add_search_options(parser)
    parser.set_defaults(budget_gflops=0.04, lowest_gflops=None)
    parser.add_argument("--tune-steps", type=int, default=120, help="steps of a network trained alone")
    parser.add_argument("--uniform", type=int, default=6, help="costliest uniform schedules, of which the best counts")
    args = parse(parser, **QUICK, tune_steps=1)
    seeds = [Parts(args, seed).run() for seed in range(args.seeds)]
    rows = []
    for name in (*CHANGES, "uniform"):
        values = [seed[name]["value"] for seed in seeds]
        less = differences(values, [seed["whole"]["value"] for seed in seeds])
        images = mean_sd([seed[name]["images"] for seed in seeds], 0)
        rows.append([name, mean_sd(values, 4), "" if name == "whole" else mean_interval(less, 4), images])
    columns = ("variant", "KL, nats", "less the whole's (95 %)", "images scored")
    print_table(f"{args.backbone}: mean ± sd of {args.seeds} seeds", columns, rows)
    write_results(args.out / "screening_parts.json", settings=settings_of(args), seeds=seeds)


if __name__ == "__main__":
    main()
