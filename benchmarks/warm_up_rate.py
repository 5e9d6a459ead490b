"""Learning rates of the warm-up from trained weights: what they make of the plain network and of merged ones.

Claim:    a pretrained ViT wants a rate of 1e-5: at 1e-4 its fine-tuning ends points lower, and sandwich steps move the
          shared weights farther from the plain network than merging does.
Command:  python benchmarks/warm_up_rate.py --work FOLDER --checkpoint WEIGHTS --data-dir IMAGES
Duration: four minutes of one thread for each rate and seed
Result:   benchmarks/results/warm_up_rate.json
Page:     docs/benchmarks/search.md

Base steps train a pretrained network with a fitted classifier on labels: top-1 of images that nothing else has used.
Sandwich steps begin from a network that is fine-tuned at 1e-5, which teaches them: mean KL divergence from it on the
same images, of the plain network with the shared weights, and of one keep ratio within the budget before and after.
"""

import argparse
import os
from collections.abc import Mapping
from functools import partial
from statistics import mean
from typing import Any

import torch
from harness.arguments import benchmark_parser, parse, study_settings
from harness.gain_options import QUICK, add_gain_options
from harness.gain_study import GainStudy, plain_subnet
from harness.records import finished, refuse_other_options, settings_of, write_results
from harness.tables import print_table
from torch import Tensor, nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.engine.evaluation import divergence, log_probabilities
from ltmsearch.engine.runtime import has_bf16
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import StudyContext, prepare

BASE_STEPS = 300
FOLDER = "warm-up-rate"
"""Of finished parts."""


def base(study: GainStudy, rate: float) -> dict[str, float]:
    """Top-1 before and after base steps at a rate, in percent."""
    args = study.args
    steps = {"base_steps": args.base_tuning_steps, "sandwich_steps": 0}
    context = prepare(study.settings(args.shares[0], checkpoint=args.checkpoint, warmup_lr=rate, **steps), Callbacks())
    evaluator = context.evaluator
    if context.new_classifiers:
        evaluator.fit_classifiers(context.new_classifiers, images=context.probe_images, watch=lambda batches: batches)
    labels = torch.cat([labels for _, labels in study.reported(None, evaluator)])

    def top1() -> float:
        return 100 * (answers(study, context, None).argmax(dim=1).cpu() == labels).float().mean().item()

    before = top1()
    warm_up(context, None)
    return {"before": before, "after": top1()}


def sandwich(study: GainStudy, rate: float) -> dict[str, float]:
    """KL divergences from the teacher: of one ratio before, and of the plain network and one ratio after the steps."""
    settings = study.settings(study.args.shares[0], checkpoint=study.base, warmup_lr=rate, base_steps=0)
    context = prepare(settings, Callbacks())
    one = next(each for each in context.settled.baselines or () if each.label.startswith("uniform"))
    ratio = context.space.schedule(one.indices(context.space))
    target = answers(study, context, None)
    kl = partial(_divergence, study, context, target)
    before = kl(ratio)
    warm_up(context, study.teacher)
    return {"one_ratio_before": before, "plain_after": kl(None), "one_ratio_after": kl(ratio)}


def warm_up(context: StudyContext, teacher: nn.Module | None) -> None:
    """Train the shared weights as a study does."""
    torch.manual_seed(context.settings.seed)
    for _ in context.warm_up(teacher=None if teacher is None else lambda: teacher):
        pass


def answers(study: GainStudy, context: StudyContext, schedule: MergeSchedule | None) -> Tensor:
    """Log-probabilities of the reported images under a schedule; None: of the plain network."""
    evaluator = context.evaluator
    net = plain_subnet(evaluator.supernet) if schedule is None else evaluator.recalibrated_subnet(schedule)
    return log_probabilities(net, study.reported(None, evaluator), evaluator.scoring)


def _divergence(study: GainStudy, context: StudyContext, target: Tensor, schedule: MergeSchedule | None) -> float:
    return divergence(answers(study, context, schedule), target).mean().item()


def compare(args: argparse.Namespace, seed: int, settings: dict[str, str]) -> dict[str, Mapping[str, Any]]:
    """Rate → what base steps and sandwich steps do."""
    study = GainStudy(args, seed, settings)
    found: dict[str, Mapping[str, Any]] = {}
    for rate in args.rates:
        parts = {"base": partial(base, study, rate), "sandwich": partial(sandwich, study, rate)}
        folder = study.folder / FOLDER
        found[f"{rate:g}"] = {name: finished(folder / f"{name}-{rate:g}.json", part) for name, part in parts.items()}
    return found


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_gain_options(parser)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-5, 3e-5, 1e-4], help="peak learning rates")
    parser.set_defaults(base_tuning_steps=BASE_STEPS, shares=[0.5], seeds=1)
    args = parse(parser, **QUICK, base_tuning_steps=2, rates=[1e-5])
    os.environ["OMP_NUM_THREADS"] = "1"  # which studies then take as requested
    torch.set_num_threads(1)
    precision = "bf16" if has_bf16(torch.device("cpu")) else "fp32"
    settings = {"device": "cpu", "precision": precision} | study_settings(args)
    given = {name: value for name, value in settings_of(args).items() if name not in ("seeds", "rates", "quick")}
    refuse_other_options(args.work / FOLDER, given)
    seeds = [compare(args, seed, settings) for seed in range(args.seeds)]
    rows = []
    for rate in seeds[0]:
        cells = []
        for part in ("base", "sandwich"):
            values = [each[rate][part] for each in seeds]
            form = ".1f" if part == "base" else ".3f"
            cells += [format(mean(value[name] for value in values), form) for name in values[0]]
        rows.append([rate, *cells])
    headings = ("rate", "plain, top-1 before base steps", "after", "one ratio, KL before", "plain, KL after sandwich")
    print_table(f"{args.backbone}, {args.seeds} seeds: base steps, then sandwich steps", (*headings, "one ratio"), rows)
    write_results(args.out / "warm_up_rate.json", settings=settings_of(args), seeds=seeds)


if __name__ == "__main__":
    main()
