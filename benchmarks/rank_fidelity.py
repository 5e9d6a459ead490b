"""Ranking of schedules by the score that a search minimises, against fine-tuning each schedule's network alone.

Claim:    the score with shared weights ranks schedules as separate fine-tunings do, also where all cost the same.
Command:  python benchmarks/rank_fidelity.py --work FOLDER --backbone vit_small_patch14_dinov2 --checkpoint WEIGHTS
              --data-dir IMAGES --img-size 112 --shares 0.35
Duration: an hour of one thread for each training seed, and a search for each seed
Result:   benchmarks/results/rank_fidelity.json and .html
Page:     docs/benchmarks/search.md

Schedules are drawn as screening draws them: half at equal cost, within 3 % below the budget (a share of the plain
network's), half spread over all costs of the space. Image sizes are drawn too, where the studies search them.

The truth: from the plain network of seed 0 every schedule's own network is fine-tuned by distillation, on the same
images in the same order, with each training seed; its KL divergence from the plain network on the reported images. The
scores are by the shared weights of studies with each search seed, whose folder is that of `search_gain.py`: KL
divergence on the search images, which no training sees.

τ is Kendall's τ-b with a 95 % interval of 1,000 bootstraps over schedules and seeds. The ceiling is the mean τ of a
perfect predictor, since the truth is noisy too; it takes two training seeds.
"""

import argparse
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
from harness.arguments import benchmark_parser, parse, study_settings
from harness.figures import BLUE, ORANGE, Panel, Series, draw, save_figure
from harness.gain_options import QUICK, add_gain_options
from harness.gain_study import GainStudy
from harness.records import finished, settings_of, write_results
from harness.statistics import rank_agreement, rank_reliability
from harness.tables import print_table

from ltmsearch.costs import within_budgets
from ltmsearch.search.checkpoint import load_checkpoint
from ltmsearch.search.screening import few_images

EQUAL = 0.03
"""Largest relative distance of equal costs from the budget."""
DRAWN = 100_000
"""Schedules from which those near the budget are taken."""
SEARCHED = "shared weights, all search images"
"""The score that trials have; drawn in the figure."""


def draw_schedules(study: GainStudy, number: int) -> np.ndarray:
    """(2 number, I) choice indices: so many at equal cost, and as many evenly spread over the costs up to the plain."""
    context, rng = study.context, np.random.default_rng(0)
    pool = np.unique(context.space.random(rng, DRAWN), axis=0)
    pool = pool[rng.permutation(len(pool))]
    budget = context.budgets[0]
    costs, taken, nets = budget.costs(pool), [], set()
    equal = pool[within_budgets(context.budgets, pool) & (costs >= (1 - EQUAL) * budget.limit / budget.per_unit)]
    for row in equal:
        net = context.network_key(context.space.schedule(row))
        if net not in nets and len(taken) < number:
            nets.add(net)
            taken.append(row)
    spread = [pool[np.abs(costs - target).argmin()] for target in np.linspace(costs.min(), costs.max(), number)]
    return np.array([*taken, *spread])


def shared_scores(study: GainStudy, share: float, rows: np.ndarray) -> dict[str, list[float]]:
    """Divergences by the weights of a study at its end, and by those of the plain network."""
    study.search(share)
    folder, evaluator, space = study.run_folder(share), study.context.evaluator, study.context.space
    evaluator.teacher.load(folder, evaluator.data, study.context.settings)
    loaded = load_checkpoint(folder)
    assert loaded is not None
    schedules, few = [space.schedule(row) for row in rows], few_images(evaluator.data.search_size)
    evaluator.supernet.load_state_dict(loaded.weights)
    found = {
        SEARCHED: [evaluator.screening_score(schedule, None) for schedule in schedules],
        "shared weights, a quarter of them": [evaluator.screening_score(schedule, few) for schedule in schedules],
    }
    evaluator.supernet.load_state_dict(study.plain_weights)
    return found | {"the plain network's weights": [evaluator.screening_score(s, None) for s in schedules]}


def compare(studies: list[GainStudy], args: argparse.Namespace) -> dict[str, Any]:
    """Truth, scores and their agreement."""
    share, first = args.shares[0], studies[0]
    rows, space = draw_schedules(first, args.schedules), first.context.space
    costs = first.context.budgets[0].costs(rows)
    place = first.folder / f"share-{share:g}" / "ranking"
    by_study = [
        finished(place / f"scores-{study.seed}.json", partial(shared_scores, study, share, rows)) for study in studies
    ]

    def alone(number: int, seed: int) -> dict[str, Any]:
        return first.fine_tuned(f"schedule {number}", first.plain_weights, space.schedule(rows[number]), seed)

    truth = np.array(
        [
            [finished(place / f"alone-{n}-{seed}.json", partial(alone, n, seed))["kl"] for n in range(len(rows))]
            for seed in range(args.train_seeds)
        ]
    )
    scores = {name: np.array([each[name] for each in by_study]) for name in by_study[0]} | {"GFLOPs": -costs[None]}
    subsets = {"equal cost": np.arange(args.schedules), "all costs": np.arange(len(rows))}
    return {
        "share": share,
        "schedules": [
            {"gflops": cost, "img_size": s.img_size, "keep_ratios": dict(s.keep_ratios), "forms": dict(s.forms)}
            for cost, s in zip(costs, map(space.schedule, rows), strict=True)
        ],
        "truth": truth,
        "scores": scores,
        "reliability": {name: rank_reliability(truth[:, some]) for name, some in subsets.items()},
        "agreement": {
            score: {
                name: rank_agreement(-values[:, some], -truth[:, some], costs[some]) for name, some in subsets.items()
            }
            for score, values in scores.items()
        },
    }


def interval(agreement: dict[str, Any]) -> str:
    """τ with the ends of its interval."""
    low, high = agreement["interval"]
    return f"{agreement['tau']:.2f} [{low:.2f}, {high:.2f}]"


def figure(result: dict[str, Any], name: str) -> go.Figure:
    """The score of the search against the truth."""
    number = len(result["schedules"]) // 2
    x, y = np.mean(result["scores"][SEARCHED], axis=0), np.mean(result["truth"], axis=0)
    looks = {"equal cost": (slice(number), ORANGE), "all costs": (slice(number, None), BLUE)}
    series = [
        Series(x=x[some], y=y[some], color=color, name=label, mode="markers") for label, (some, color) in looks.items()
    ]
    axes = [{"title": f"KL divergence, {how}", "type": "log"} for how in ("shared weights", "fine-tuned alone")]
    panel = Panel(title=name, series=series, x_axis=axes[0], y_axis=axes[1])
    return draw("Schedules by the score of a search, and fine-tuned alone", [panel], columns=1)


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_gain_options(parser)
    parser.add_argument("--schedules", type=int, default=16, help="at equal cost, and as many over all costs")
    args = parse(parser, **QUICK, schedules=4)
    studies = [GainStudy(args, seed, study_settings(args)) for seed in range(args.seeds)]
    result = compare(studies, args)
    rows = []
    for score, by_subset in result["agreement"].items():
        cells = [f"{interval(each)}, p {max(each['p']):.3f}" for each in by_subset.values()]
        rows.append([score, *cells])
    for name, each in result["reliability"].items():
        if each:
            print(f"{name}: τ between training seeds {each['tau_between_seeds']:.2f}, ceiling {each['ceiling']:.2f}")
    title = f"{args.backbone} at {result['share']:g} of its cost: Kendall's τ with {args.train_seeds} fine-tunings"
    print_table(title, ("score", *result["agreement"][SEARCHED]), rows)
    write_results(args.out / "rank_fidelity.json", settings=settings_of(args), **result)
    save_figure(figure(result, title), args.out, "rank_fidelity", title="Rank fidelity", height=520)


if __name__ == "__main__":
    main()
