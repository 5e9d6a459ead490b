"""Ranking of schedules by the score that a search minimises, against fine-tuning each schedule's network alone.

Claim:    the score with shared weights ranks schedules as separate fine-tunings do, also where all cost the same.
Command:  python benchmarks/rank_fidelity.py --work FOLDER --backbone vit_small_patch14_dinov2 --checkpoint WEIGHTS
              --data-dir IMAGES --img-size 112 --shares 0.35
Duration: an hour of one thread for each training seed, and a search for each seed
Result:   benchmarks/results/rank_fidelity.json and .html
Page:     docs/benchmarks/search.md

Schedules are drawn as screening draws them: half at equal cost, within 3 % below the budget (a share of the plain
network's), half spread over all costs of the space. Image sizes are drawn too, where the studies search them.

The truth: every schedule's own network is fine-tuned alone by distillation, from the shared weights of the first study
as `ltmsearch train --init RUN` starts, on the same images in the same order, with each training seed; its KL divergence
from the plain network on the reported images. The scores are by the shared weights of a study of each search seed, in
the folder of `search_gain.py`: KL divergence on search images, which no training sees. The first study's weights are
also those that the truth starts from; those of the others are not.

τ is Kendall's τ-b with a 95 % interval of 1,000 bootstraps over schedules and seeds. The ceiling is the mean τ of a
perfect predictor, since the truth is noisy too; it takes two training seeds.
"""

import argparse
from functools import partial
from typing import Any

import numpy as np
from harness.arguments import benchmark_parser, parse, study_settings
from harness.figures import BLUE, ORANGE, Drawing, Panel, Series, draw, log_axis, save_figure
from harness.gain_options import QUICK, add_gain_options
from harness.gain_study import GainStudy
from harness.records import finished, refuse_other_options, settings_of, write_results
from harness.statistics import rank_agreement, rank_reliability
from harness.tables import print_table

from ltmsearch.costs import within_budgets
from ltmsearch.search.screening import few_images

EQUAL = 0.03
"""Largest relative distance of equal costs from the budget."""
DRAWN = 100_000
"""Schedules from which those near the budget are taken."""
SEARCHED = "shared weights, all search images"
"""The score that trials have; drawn in the figure."""


def draw_schedules(study: GainStudy, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Choice indices of different networks: at equal cost, and spread evenly over the costs up to the plain one's."""
    context, rng = study.context, np.random.default_rng(0)
    pool = np.unique(context.space.random(rng, DRAWN), axis=0)
    pool = pool[rng.permutation(len(pool))]
    budget = context.budgets[0]
    costs, nets = budget.costs(pool), set()
    near = within_budgets(context.budgets, pool) & (costs >= (1 - EQUAL) * budget.limit / budget.per_unit)
    targets = np.linspace(costs.min(), costs.max(), number)

    def taken(rows: np.ndarray, wanted: int) -> np.ndarray:
        found: list[np.ndarray] = []
        for row in rows:
            net = context.network_key(context.space.schedule(row))
            if net not in nets and len(found) < wanted:
                nets.add(net)
                found.append(row)
        if len(found) < wanted:
            raise SystemExit(f"the space must have {number} networks of each kind, but has {len(found)}; use fewer")
        return np.array(found)

    equal = taken(pool[near], number)
    spread = [taken(pool[np.abs(costs - target).argsort(kind="stable")[: 10 * number]], 1) for target in targets]
    return equal, np.concatenate(spread)


def shared_scores(study: GainStudy, share: float, rows: np.ndarray) -> dict[str, list[float]]:
    """Divergences by the weights of a study at its end."""
    evaluator, space = study.context.evaluator, study.context.space
    evaluator.supernet.load_state_dict(study.shared_weights(share))
    evaluator.teacher.load(study.run_folder(share), evaluator.data, study.context.settings)
    schedules, few = [space.schedule(row) for row in rows], few_images(evaluator.data.search_size)
    return {
        SEARCHED: [evaluator.screening_score(schedule, None) for schedule in schedules],
        "shared weights, a quarter of them": [evaluator.screening_score(schedule, few) for schedule in schedules],
    }


def compare(studies: list[GainStudy], args: argparse.Namespace) -> dict[str, Any]:
    """Truth, scores and their agreement."""
    first, (share,) = studies[0], args.shares
    equal, spread = draw_schedules(first, args.schedules)
    rows, space = np.concatenate([equal, spread]), first.context.space
    costs = first.context.budgets[0].costs(rows)
    place = first.folder / f"share-{share:g}" / "ranking"
    tuning = {name: getattr(args, name) for name in ("train_steps", "train_batch", "train_lr", "settings")}
    refuse_other_options(place, {"rows": rows.tolist(), **tuning})
    by_study = [
        finished(place / f"scores-{study.seed}.json", partial(shared_scores, study, share, rows)) for study in studies
    ]

    start = first.shared_weights(share)

    def alone(number: int, seed: int) -> dict[str, Any]:
        return first.fine_tuned(f"schedule {number}", start, space.schedule(rows[number]), seed)

    truth = np.array(
        [
            [finished(place / f"alone-{n}-{seed}.json", partial(alone, n, seed))["kl"] for n in range(len(rows))]
            for seed in range(args.train_seeds)
        ]
    )
    names = (SEARCHED, "shared weights, a quarter of them")
    scores = {name: np.array([each[name] for each in by_study]) for name in names} | {"GFLOPs": -costs[None]}
    every = np.arange(len(rows))
    subsets = {"equal cost": every[: len(equal)], "spread costs": every[len(equal) :], "all": every}
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


def drawing(results: dict[str, Any]) -> Drawing:
    """The score of the search against the truth."""
    number, agreement = len(results["schedules"]) // 2, results["agreement"][SEARCHED]
    x, y = np.mean(results["scores"][SEARCHED], axis=0), np.mean(results["truth"], axis=0)
    looks = {"equal cost": (slice(number), ORANGE), "spread costs": (slice(number, None), BLUE)}
    about = {"equal cost": f" ({results['share']:g} of the plain network's)"}
    series = [
        Series(
            x=x[some],
            y=y[some],
            color=color,
            name=f"{label}{about.get(label, '')}: τ {interval(agreement[label])}",
            mode="markers",
        )
        for label, (some, color) in looks.items()
    ]
    names = [f"KL divergence, {how}, nats" for how in ("shared weights", "fine-tuned alone")]
    axes = [log_axis(name, numbers=(1, 2, 3, 5, 7)) for name in names]
    name = f"{results['settings']['backbone']}, {2 * number} schedules"
    panel = Panel(title=f"{name}: τ {interval(agreement['all'])}", series=series, x_axis=axes[0], y_axis=axes[1])
    figure = draw("Schedules by the score of a search, and fine-tuned alone", [panel], columns=1)
    return Drawing(figure=figure, stem="rank_fidelity", title="Rank fidelity", height=520)


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_gain_options(parser)
    parser.add_argument("--schedules", type=int, default=16, help="at equal cost, and as many over all costs")
    args = parse(parser, **QUICK, schedules=4)
    if len(args.shares) != 1:
        parser.error("--shares must be one share of the plain cost here")
    studies = [GainStudy(args, seed, study_settings(args)) for seed in range(args.seeds)]
    results = {"settings": settings_of(args), **compare(studies, args)}
    rows = []
    for score, by_subset in results["agreement"].items():
        cells = [f"{interval(each)}, p {max(each['p']):.3f}" for each in by_subset.values()]
        rows.append([score, *cells])
    for name, each in results["reliability"].items():
        if each:
            print(f"{name}: τ between training seeds {each['tau_between_seeds']:.2f}, ceiling {each['ceiling']:.2f}")
    title = f"{args.backbone} at {results['share']:g} of its cost: Kendall's τ with {args.train_seeds} fine-tunings"
    print_table(title, ("score", *results["agreement"][SEARCHED]), rows)
    write_results(args.out / "rank_fidelity.json", **results)
    save_figure(drawing(results), args.out)


if __name__ == "__main__":
    main()
