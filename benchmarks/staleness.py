"""Front and shared weights of a search with several workers, whose updates start from older weights.

Claim:    sixteen workers find as good a front in sixty trials as one; at staleness power 0 they harm the weights.
Command:  python benchmarks/staleness.py --work FOLDER (that of search_quality.py, whose nets it uses)
Duration: one hour of one thread
Result:   benchmarks/results/staleness.json and .html
Page:     docs/benchmarks/cluster.md

Every trial is trained for real, from the weights that it started with, and moves the weights by the real driver; only
the order in which trials end is simulated (log-normal durations, no failures), so that one process shows the effect of
several workers. Nets, reference and options are those of `search_quality.py`.

    front     value of the front scored again, its schedules scored by the reference: mean points of top-1
    own       value of the same front by the top-1 that the search itself reports
    weights   mean cross-entropy of the final shared weights over fixed schedules, on the report images, nats
    age       versions that an update is behind

Differences are paired with the search of one worker of the same seed.
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from harness.arguments import add_seeds, add_work, benchmark_parser, parse
from harness.figures import BLUE, GREEN, GREY, YELLOW, Drawing, Panel, Series, draw, save_figure
from harness.records import finished, settings_of, write_results
from harness.search_methods import UnsavedDriver
from harness.search_study import QUICK, Reference, SavedNets, add_search_options, prepare_study
from harness.statistics import half_width, mean_interval, mean_sd
from harness.tables import print_table
from harness.virtual_cluster import Durations, VirtualWorkers

from ltmsearch.callbacks import Callbacks
from ltmsearch.search.records import select_front
from ltmsearch.search.teacher import Teacher
from ltmsearch.search.trial import load_parameters
from ltmsearch.search.workers import LocalWorker
from ltmsearch.search.workers.local import evaluate_task

CASES = ((1, 0.5), (2, 0.5), (4, 0.0), (4, 0.5), (4, 1.0), (16, 0.0), (16, 0.5), (16, 1.0))
"""Workers and staleness power; with one worker the power changes nothing."""
DURATIONS = Durations(failure_share=0.0, death_share=0.0)
KEYS = {"front": 1, "own": 1, "weights_loss": 3}
"""Outcome -> digits."""
COLORS = {0.0: YELLOW, 0.5: BLUE, 1.0: GREEN}


def case_name(workers: int, power: float) -> str:
    """Name of a search in results."""
    return "1" if workers == 1 else f"{workers}, power {power:g}"


def search(nets: SavedNets, reference: Reference, workers: int, power: float) -> dict[str, Any]:
    """One search: its front, ages, and the loss of its final weights."""
    context, space, teacher = nets.context, nets.context.space, Teacher()
    teacher.learn(nets.base_net(), context.evaluator.data, context.evaluator.scoring, context.settings)
    evaluator = replace(context.evaluator, teacher=teacher)
    nets.load("warm")
    with tempfile.TemporaryDirectory() as folder:
        made = context.settings.model_copy(update={"out": folder, "staleness_power": power})
        virtual = VirtualWorkers(
            workers,
            DURATIONS,
            lambda task, weights: evaluate_task(evaluator, task, weights),
            seed=made.seed,
            counts_driver=False,
            screens=LocalWorker(evaluator),
        )
        study = replace(context, settings=made, evaluator=evaluator)
        driver = UnsavedDriver(study, Path(folder), Callbacks(), workers=virtual)
        driver.search(until=None)
        driver.rescore()
        front = select_front(driver.records(), made.axis)
        trials = [trial for trial in driver.study.get_trials(deepcopy=False) if "age" in trial.user_attrs]
        ages = [trial.user_attrs["age"] for trial in trials if trial.user_attrs.get("label") != "plain"]
        load_parameters(evaluator.supernet, driver.shared.weights)
    fixed = [space.schedule(indices) for indices in (space.cheapest, *reference.line)]
    losses = [reference.evaluator.score(schedule, "report").loss for schedule in fixed]
    print(f"seed {made.seed}, {case_name(workers, power)}: {mean(losses):.3f} nats", flush=True)
    return {
        "schedules": [space.indices(record.schedule).tolist() for record in front],
        "own": reference.gain([(record.report_top1 or 0.0, record.gflops) for record in front]),
        "weights_loss": mean(losses),
        "age": mean(ages),
        "max_age": max(ages),
        "virtual_seconds": virtual.now,
    }


def run_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """All searches of one seed."""
    folder = args.work / args.backbone / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    nets = SavedNets(prepare_study(args, seed), folder, seed, args)
    reference, runs = Reference(nets), {}
    for case in CASES:
        if case[0] <= args.max_workers:
            path = folder / f"workers-{case[0]}-{case[1]:g}.json"
            run = finished(path, partial(search, nets, reference, *case))
            runs[case_name(*case)] = run | {"front": reference.gain_of(run["schedules"])}
    return runs


def gaps(seeds: dict[str, Any], name: str, key: str, other: str = "1") -> list[float]:
    """Paired differences of a case to another, of the seeds that have both."""
    pairs = [(runs[name], runs[other]) for runs in seeds.values() if name in runs and other in runs]
    return [one[key] - two[key] for one, two in pairs if key in one and key in two]


def print_tables(seeds: dict[str, Any], names: list[str]) -> None:
    """Print all cases, and powers against each other."""
    rows = []
    for name in names:
        runs = [seed[name] for seed in seeds.values()]
        cells = []
        for key, digits in KEYS.items():
            gap = "" if name == "1" else mean_interval(gaps(seeds, name, key), digits)
            cells += [mean_sd([run[key] for run in runs], digits), gap]
        ages = f"{mean(run['age'] for run in runs):.1f}", str(max(run["max_age"] for run in runs))
        rows.append([name, *cells, *ages, f"{mean(run['virtual_seconds'] for run in runs) / 3600:.2f}"])
    less = "− 1 worker (95 %)"
    headings = ("workers", "front", less, "own", less, "weights, nats", less, "age", "largest", "hours")
    print_table(f"{len(seeds)} seeds, by workers and staleness power", headings, rows)
    rows = []
    for workers in (4, 16):
        for power in (0.0, 1.0):
            one, other = case_name(workers, power), case_name(workers, 0.5)
            if one in names:
                cells = [mean_interval(gaps(seeds, one, key, other), digits) for key, digits in KEYS.items()]
                rows.append([f"{workers} workers, power {power:g} − 0.5", *cells])
    print_table("powers, paired (95 %)", ("case", "front", "own", "weights, nats"), rows)


def drawing(results: dict[str, Any]) -> Drawing:
    """Paired differences to one worker: every seed, means with 95 % intervals."""
    seeds, trials = results["seeds"], results["settings"]["trials"]
    names = {name for runs in seeds.values() for name in runs}
    panels, cases = [], [case for case in CASES if case[0] > 1 and case_name(*case) in names]
    ticks = {
        "tickvals": list(range(len(cases))),
        "ticktext": [str(case[0]) for case in cases],
        "title": "workers",
        "zeroline": False,
    }
    shown = (
        ("front", "The front (higher is better)", "points of mean top-1"),
        ("weights_loss", "The final shared weights (lower is better)", "cross-entropy, nats"),
    )
    for key, title, measure in shown:
        series = []
        for place, (workers, power) in sorted(enumerate(cases), key=lambda each: each[1][1]):  # order of the legend
            ahead = gaps(seeds, case_name(workers, power), key)
            error = [half_width(ahead) if len(ahead) > 2 else 0.0]  # two seeds show next to nothing
            color, name = COLORS[power], f"power {power:g}"
            marks: dict[str, Any] = {"color": color, "mode": "markers"}
            series.append(Series(x=[place], y=[mean(ahead)], name=name, size=11, error_y=error, **marks))
            series.append(Series(x=[place + 0.18] * len(ahead), y=ahead, size=6, opacity=0.45, **marks))
        panels.append(
            Panel(title=title, series=series, x_axis=ticks, y_axis={"title": measure}, lines=[("y", 0, GREY)])
        )
    title = f"{trials} trials on several workers, less the same on one: up to {len(seeds)} seeds, 95 % intervals"
    return Drawing(figure=draw(title, panels), stem="staleness", title="Several workers and the front", height=520)


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_work(parser)
    add_seeds(parser, 5)
    add_search_options(parser)
    parser.set_defaults(proxy_steps=3)  # without steps no trial moves the weights
    parser.add_argument("--max-workers", type=int, default=16, help="leave out cases with more workers")
    args = parse(parser, **QUICK, max_workers=2)
    seeds = {str(seed): run_seed(seed, args) for seed in range(args.seeds)}
    results = {"settings": settings_of(args), "durations": vars(DURATIONS), "seeds": seeds}
    print_tables(seeds, list(seeds["0"]))
    write_results(args.out / "staleness.json", **results)
    save_figure(drawing(results), args.out)


if __name__ == "__main__":
    main()
