"""Effect of the IB loss weight on the score of a trial.

Claim:    at the published β = 1 the weight changes nothing that a trial can measure; sharp memberships harm.
Command:  python benchmarks/ib_weight.py --data-dir IMAGES
Duration: ten minutes
Result:   benchmarks/results/ib_weight.json
Page:     docs/benchmarks/training.md

One warm-up, then trials of one uniform schedule from the same shared weights on the same training images with every
weight; each seed has other training images. Differences are to weight 0 of the same seed.
"""

from dataclasses import replace
from itertools import product
from statistics import mean
from typing import Any

from harness.arguments import (
    SMALL_STUDY,
    add_data_dir,
    add_seeds,
    add_settings,
    benchmark_parser,
    parse,
    study_settings,
)
from harness.records import settings_of, write_results
from harness.statistics import differences, mean_sd
from harness.tables import print_table

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import prepare
from ltmsearch.search.trial import parameters

WEIGHTS = (0.0, 0.01, 0.1, 1.0, 10.0)
BETAS = (1.0, 10.0)
"""Published sharpness, and one that makes memberships sharp."""
SETTINGS: dict[str, Any] = {
    "proxy_img_size": 64,
    "proxy_steps": 20,
    "proxy_lr": 2e-4,
    "calibration_images": 256,
    "search_images": 1000,
}


def run_trials(settings: StudySettings, keep: float, seeds: int) -> list[dict[str, Any]]:
    """Scores of every β, weight and seed."""
    context = prepare(settings, Callbacks())
    for _ in context.warm_up():
        pass
    evaluator = context.evaluator
    shared = parameters(evaluator.supernet)
    schedule = MergeSchedule.uniform(evaluator.supernet.layers, keep)
    rows = []
    for beta, weight, seed in product(BETAS, WEIGHTS, range(seeds)):
        changed = replace(evaluator, settings=context.settings.model_copy(update={"ib_beta": beta, "seed": seed}))
        score = changed.evaluate(shared, schedule, ib_weight=weight, seed=seed).score
        assert score.ib is not None
        about = {"top1": score.top1, "loss": score.loss, "mi_x": score.ib.mi_x, "mi_y": score.ib.mi_y}
        rows.append({"beta": beta, "ib_weight": weight, "seed": seed, **about})
    return rows


def table_row(rows: list[dict[str, Any]], beta: float, weight: float) -> list[str]:
    """Means of one β and weight, and differences to weight 0."""

    def column(key: str, of: float = weight) -> list[float]:
        return [row[key] for row in rows if row["beta"] == beta and row["ib_weight"] == of]

    top1, loss = (differences(column(key), column(key, 0.0)) for key in ("top1", "loss"))
    return [
        f"{beta:g}",
        f"{weight:g}",
        f"{mean(column('top1')):.1f}",
        mean_sd(top1, 2, sign=True),
        mean_sd(loss, 4, sign=True),
        f"{mean(column('mi_x')):.4f}",
        f"{mean(column('mi_y')):.4f}",
    ]


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data_dir(parser)
    add_seeds(parser, 3)
    parser.add_argument("--backbone", default="mobilevit_xxs")
    parser.add_argument("--budget-gflops", type=float, default=0.27)
    parser.add_argument("--keep", type=float, default=0.5, help="keep ratio of all layers")
    add_settings(parser)
    args = parse(parser, seeds=2, settings=SMALL_STUDY)
    given = SETTINGS | study_settings(args)
    settings = StudySettings.make(
        "benchmark", data_dir=args.data_dir, backbone=args.backbone, budget_gflops=args.budget_gflops, **given
    )
    rows = run_trials(settings, args.keep, args.seeds)
    headings = ("β", "weight", "top-1 %", "− weight 0", "loss − weight 0", "I(X̃;X)", "I(X̃;Y)")
    title = f"{args.backbone}, uniform {args.keep:g}, {settings.proxy_steps} steps, {args.seeds} seeds"
    print_table(title, headings, [table_row(rows, *case) for case in product(BETAS, WEIGHTS)])
    write_results(args.out / "ib_weight.json", settings=settings_of(args), rows=rows)


if __name__ == "__main__":
    main()
