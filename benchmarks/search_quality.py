"""Fronts that searches find, by number of trials and by time.

Claim:    searches with shared weights find as good a front as independent training of every trial, in less time.
Command:  python benchmarks/search_quality.py --work FOLDER
Duration: two hours of one thread; a method takes one to two minutes per seed
Result:   benchmarks/results/search_quality.json and .html
Page:     docs/benchmarks/search.md

Every seed starts from one base net, from which shared weights are warmed up by the sandwich rule. Each method trains
the same number of trials:

    default            `ltmsearch run`: baselines, then the schedules that screening proposes
    tpe, gp, nsga2,    Optuna's samplers behind first trials: baselines, and schedules that cover the range of costs
    random
    no start           TPE from the first trial on
    script             Optuna's own TPE as a short script has it: nothing enqueued, costs are learned by training
    uniform            one keep ratio and one form for all layers, all that the space has within the budget
    independent        no sharing: each trial trains the base net for --independent-steps, sampled as in `no start`

Trials learn from the base net and are scored by their KL divergence from it on search images. Of the first n trials the
front is chosen by that, and its schedules are scored by a reference: a supernet per seed trained longer from the same
base, on report images, which no search used. The reference shares its weights among schedules too, and so may favour
sharing. The value of a front is the mean, over the costs from the cheapest schedule to the budget, of the least
divergence that one can have at each cost: the hypervolume, taken from the divergence of the worst uniform schedule.
Less is better.

Seconds are processor time of the thread with warm-up, without the base.
"""

import argparse
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
from harness.arguments import add_seeds, add_work, benchmark_parser, parse
from harness.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    Drawing,
    Panel,
    Series,
    draw,
    log_axis,
    save_figure,
)
from harness.records import finished, settings_of, write_results
from harness.search_methods import METHODS, run_method
from harness.search_study import QUICK, Reference, SavedNets, add_search_options, prepare_study
from harness.statistics import differences, mean_sd
from harness.tables import print_table

from ltmsearch.search.pareto import is_non_dominated

MARKS = (5, 10, 20, 30, 40, 50, 60, 100)
"""Numbers of trials after which the front is scored."""
LOOKS = {
    "default": (BLUE, "solid", "ltmsearch"),
    "tpe": (GREEN, "solid", "TPE"),
    "gp": (PINK, "solid", "GP"),
    "nsga2": (YELLOW, "solid", "NSGA-II"),
    "random": (GREY, "solid", "random"),
    "no start": (SKY, "dash", "without first trials"),
    "script": (YELLOW, "dash", "Optuna script"),
    "uniform": (BLACK, "dot", "uniform ratios"),
    "independent": (ORANGE, "solid", "independent training"),
}
"""Method -> colour, dash, name."""

Curve = list[dict[str, Any]]


def own_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials on the front by their own divergence, within the budget."""
    inside = [row for row in rows if row["feasible"]]
    points = np.array([(row["kl"], row["gflops"]) for row in inside]).reshape(-1, 2)
    return [row for row, kept in zip(inside, is_non_dominated(points, (False, False)), strict=True) if kept]


def measure_curve(run: dict[str, Any], reference: Reference) -> Curve:
    """Value and seconds of a method after each mark."""
    rows, curve = run["rows"], []
    for n in sorted({n for n in MARKS if n < len(rows)} | {len(rows)}):
        front = own_front(rows[:n])
        curve.append(
            {
                "trials": n,
                "value": reference.mean_divergence_of(row["indices"] for row in front),
                "top1_gain": reference.gain_of(row["indices"] for row in front),
                "wall": rows[n - 1]["wall"] + run["warm_up"][0],
                "processor": rows[n - 1]["processor"] + run["warm_up"][1],
            }
        )
    return curve


def run_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Value of all methods for one seed."""
    folder = args.work / args.backbone / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    context = prepare_study(args, seed)
    nets = SavedNets(context, folder, seed, args)
    runs = {
        name: finished(
            folder / f"{name.replace(' ', '-')}.json",
            partial(run_method, name, context, nets, args.independent_steps),
        )
        for name in args.methods
    }
    reference = Reference(nets)
    methods = {}
    for name, run in runs.items():
        methods[name] = {"curve": measure_curve(run, reference), "proposals": run["proposals"]}
        if "rescored_front" in run:
            methods[name]["rescored"] = reference.mean_divergence_of(run["rescored_front"])
    return {"corner": reference.corner, "methods": methods}


def by_method(seeds: dict[str, Any]) -> dict[str, list[Curve]]:
    """Method -> its curve of every seed."""
    first = next(iter(seeds.values()))
    return {name: [seed["methods"][name]["curve"] for seed in seeds.values()] for name in first["methods"]}


def at(curves: list[Curve], trials: int, key: str = "value") -> list[float]:
    """Values after a number of trials; empty unless all curves have it."""
    values = [point[key] for curve in curves for point in curve if point["trials"] == trials]
    return values if len(values) == len(curves) else []


def trials_until(curve: Curve, share: float = 0.05) -> int:
    """First mark from which on the value stays within a share above the last one."""
    reached = [point["value"] <= (1 + share) * curve[-1]["value"] for point in curve]
    first = len(curve) - 1
    while first and reached[first - 1]:
        first -= 1
    return curve[first]["trials"]


def time_share(curve: Curve, independent: Curve) -> str:
    """Share of independent training's time after which a method has its final value."""
    goal = independent[-1]
    reached = [point["processor"] for point in curve if point["value"] <= goal["value"]]
    return f"{reached[0] / goal['processor']:.2f}" if reached else "never"


def print_tables(curves: dict[str, list[Curve]], trials: int) -> None:
    """Print values by number of trials, paired differences to the default, and times."""
    marks = [n for n in MARKS if n <= trials]
    rows, paired = [], []
    for method, of in curves.items():
        last, until = [curve[-1] for curve in of], ", ".join(str(trials_until(curve)) for curve in of)
        shares = ""
        if method != "independent" and "independent" in curves:
            shares = ", ".join(time_share(*pair) for pair in zip(of, curves["independent"], strict=True))
        cells = [mean_sd(at(of, n), 4) for n in marks]
        final = [mean_sd([point["value"] for point in last], 4), mean_sd([point["processor"] for point in last], 0)]
        rows.append([method, *cells, *final, until, shares])
        if method not in ("default", "uniform") and "default" in curves:
            pairs = [(at(of, n), at(curves["default"], n)) for n in marks]
            gaps = [mean_sd(differences(*pair), 4, sign=True) if all(pair) else "" for pair in pairs]
            paired.append([method, *gaps])
    numbers = [f"{n} trials" for n in marks]
    ends = ("at the end", "seconds", "within 5 % from", "share of independent's time")
    print_table("mean KL divergence of the front, nats; mean ± sd of seeds", ("method", *numbers, *ends), rows)
    print_table("difference to default, paired by seed", ("method", *numbers), paired)


def drawing(results: dict[str, Any]) -> Drawing:
    """Means of the value against trials and seconds; bands of one standard deviation."""
    curves, trials = by_method(results["seeds"]), results["settings"]["trials"]
    panels = [
        Panel(title="by trained trials", series=[], x_axis={"title": "trained trials"}),
        Panel(title="by time", series=[], x_axis=log_axis("seconds of one thread", numbers=(1, 2, 3, 5))),
    ]
    longest = max(point["processor"] for of in curves.values() for curve in of for point in curve)
    for method, of in curves.items():
        color, dash, name = LOOKS[method]
        marks = [point["trials"] for point in of[0] if at(of, point["trials"])]
        values = [at(of, n) for n in marks]
        seconds = [mean(at(of, n, "processor")) for n in marks]
        if method == "uniform":  # a line at its final value
            values, marks, seconds = [values[-1]] * 2, [MARKS[0], trials], [seconds[-1], longest]
        banded = method in ("default", "independent") and len(of) > 1
        band = [float(np.std(each, ddof=1)) for each in values] if banded else None
        for panel, x in zip(panels, (marks, seconds), strict=True):
            y = [mean(each) for each in values]
            panel.series.append(Series(x=x, y=y, color=color, dash=dash, name=name, band=band, mode="lines"))
    panels[0].y_axis = {"title": "mean KL divergence of the front, nats"}
    figure = draw("Fronts found: means of the seeds, bands ± 1 sd", panels, share_y=True)
    return Drawing(figure=figure, stem="search_quality", title="Fronts that searches find")


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_work(parser)
    add_seeds(parser, 5)
    add_search_options(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--independent-steps", type=int, default=12, help="steps of a trial of `independent`")
    args = parse(parser, **QUICK, independent_steps=1, methods=["default", "independent", "uniform"])
    seeds = {str(seed): run_seed(seed, args) for seed in range(args.seeds)}
    results = {"settings": settings_of(args), "seeds": seeds}
    print_tables(by_method(seeds), args.trials)
    write_results(args.out / "search_quality.json", **results)
    save_figure(drawing(results), args.out)


if __name__ == "__main__":
    main()
