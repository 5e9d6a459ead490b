"""What several workers at once do to the front that a search finds.

    python benchmarks/staleness.py --work quality [--seeds 5] [--report]

Several workers move the shared weights by what trials learned that started from older ones. Here every trial is
trained for real, from the weights that it started with, and moves the weights by the real driver; only the order in
which trials end is made up (`virtual_cluster.py`: log-normal durations, no failures), so that one process shows what 1,
2, 4 and 16 workers come to. The sampler knows of what runs as little as in a real search. Everything else is as in
`search_quality.py`, whose nets, yardstick and command it takes: a ViT-tiny at 64 px on clean digits, 60 trials a
search, a base net, warmed-up shared weights and a reference supernet per seed, found in --work or made there.

Told of each search, in mean points of top-1 over the range of costs (hypervolume, corner: the worst uniform schedule):

    front     the re-scored front, its schedules scored by the reference: how good the schedules are
    own       the same front by the scores that the search itself shows, with its final weights
    weights   mean cross-entropy of the final shared weights over fixed schedules, on the yardstick's images (nats):
              how far the weights came
    age       mean and largest number of versions that an update was behind

Differences are paired with the search of one worker of the same seed. What is finished stays in --work.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from scipy import stats
from search_quality import Nets, Unsaved, Yardstick, make_bench, mean_gain, uniform_line
from virtual_cluster import Durations, VirtualWorkers

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import library_versions
from ltmsearch.io.figures import write_drawing
from ltmsearch.io.files import write_atomic
from ltmsearch.search.records import select_front
from ltmsearch.search.setup import Workbench
from ltmsearch.search.trial import load_parameters
from ltmsearch.search.workers.local import evaluated

RESULTS = Path("benchmarks/results")
CASES = ((1, 0.5), (16, 0.5), (4, 0.5), (2, 0.5), (16, 0.0), (16, 1.0), (4, 0.0), (4, 1.0))
"""Workers and staleness power, the most telling first; with one worker the power changes nothing."""
DURATIONS = Durations(failure_share=0.0, death_share=0.0)
QUALITY = {
    "backbone": "vit_tiny_patch16_224", "budget_gflops": 0.055, "img_size": 64, "clean_digits": True, "trials": 60,
    "batch_size": 16, "base_steps": 700, "base_lr": 5e-4, "one_base": True, "sandwich_steps": 40, "sandwich_lr": 1e-4,
    "proxy_steps": 3, "proxy_lr": 2e-4, "calibration_images": 32, "val_images": 128, "yardstick_steps": 100,
    "yardstick_images": 300,
}  # fmt: skip
"""The options of `search_quality.py`, as in docs/benchmarks/search.md."""


def case_name(workers: int, power: float) -> str:
    """Of a search, in results and files."""
    return "1" if workers == 1 else f"{workers}, power {power:g}"


def search(bench: Workbench, nets: Nets, yard: Yardstick, workers: int, power: float) -> dict[str, Any]:
    """One search with so many workers: its re-scored front, ages, and how far the weights came."""
    nets.load("warm")
    before, evaluator = time.process_time(), bench.evaluator
    with tempfile.TemporaryDirectory() as folder:
        made = bench.settings.model_copy(update={"out": folder, "staleness_power": power})
        virtual = VirtualWorkers(
            workers, DURATIONS, lambda task, weights: evaluated(evaluator, task, weights), seed=made.seed,
            counts_driver=False,
        )  # fmt: skip
        driver = Unsaved(replace(bench, settings=made), Path(folder), Callbacks(), workers=virtual)
        driver.search(until=None)
        driver.rescore()
        records = driver.records()
        trials = [trial for trial in driver.study.get_trials(deepcopy=False) if "age" in trial.user_attrs]
        ages = [trial.user_attrs["age"] for trial in trials if trial.user_attrs.get("label") != "plain"]
        load_parameters(evaluator.supernet, driver.shared.weights)
    fixed = [bench.space.cheapest, *uniform_line(bench)]
    losses = [yard.evaluator.score(bench.space.schedule(each), images=yard.images).loss for each in fixed]
    front = select_front(records)
    return {
        "front": [
            {"indices": bench.space.indices(r.schedule).tolist(), "gflops": r.gflops, "own": r.score.top1}
            for r in front
            if r.score is not None
        ],
        "weights_loss": mean(losses), "age": mean(ages), "max_age": max(ages), "trials": len(ages),
        "version": driver.shared.version, "virtual_seconds": virtual.now, "seconds": time.process_time() - before,
    }  # fmt: skip


def run_seed(seed: int, args: argparse.Namespace, quality: Namespace) -> dict[str, Any]:
    """All searches of one seed: those that are missing are run."""
    folder = args.work / quality.backbone / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    bench = make_bench(quality, seed)
    nets = Nets(bench, folder, seed, quality)
    yard = Yardstick(bench, nets, folder / "yardstick.json", quality)
    runs: dict[str, dict[str, Any]] = {}
    for workers, power in CASES[: args.cases]:
        name = case_name(workers, power)
        path = folder / f"workers-{workers}-{power:g}.json"
        if not path.exists() and args.report:
            continue
        if not path.exists():
            run = search(bench, nets, yard, workers, power)
            write_atomic(path, json.dumps(run))
            print(f"seed {seed}, {name}: {run['seconds']:.0f} s, age {run['age']:.1f}", flush=True)
        runs[name] = json.loads(path.read_text())
    line = [indices.tolist() for indices in uniform_line(bench)]
    yard.score([*line, *(point["indices"] for run in runs.values() for point in run["front"])])
    corner = min(yard.top1(indices) for indices in line)
    low, budget = bench.budgets[0].reachable()[0], quality.budget_gflops
    for run in runs.values():
        points = run.pop("front")
        run["front"] = mean_gain([(yard.top1(p["indices"]), p["gflops"]) for p in points], corner, low, budget)
        run["own"] = mean_gain([(p["own"], p["gflops"]) for p in points], corner, low, budget)
        run["points"] = len(points)
    return runs


# -- tables and the figure -------------------------------------------------------------------------------------------


def differences(seeds: dict[str, Any], name: str, key: str, base: str = "1") -> list[float]:
    """Of the seeds that have both, what a case has more than another."""
    both = [(runs.get(name, {}), runs.get(base, {})) for runs in seeds.values()]
    return [one[key] - other[key] for one, other in both if key in one and key in other]


def shown(values: list[float], digits: int) -> str:
    """Mean ± standard deviation."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}" if values else ""


def paired(values: list[float], digits: int) -> str:
    """Mean difference, with the half width of its 95 % interval."""
    if len(values) < 2:
        return shown(values, digits)
    return f"{mean(values):+.{digits}f} ± {half_width(values):.{digits}f}"


def half_width(values: list[float]) -> float:
    """Of the 95 % interval of a mean."""
    return float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def report(seeds: dict[str, Any]) -> None:
    """The table of all cases, and of powers against each other."""
    columns = (
        "workers", "front", "less 1 worker (95 %)", "own", "less 1 worker (95 %)", "weights, nats",
        "less 1 worker (95 %)", "age", "largest", "hours", "seeds",
    )  # fmt: skip
    table = Table(*columns, title="60 trials, by workers and staleness power")
    keys = (("front", 2), ("own", 2), ("weights_loss", 3))
    for name in (case_name(*case) for case in sorted(CASES)):
        runs = [seed[name] for seed in seeds.values() if name in seed]
        if not runs:
            continue
        cells = []
        for key, digits in keys:
            gaps = differences(seeds, name, key)
            cells += [shown([r[key] for r in runs if key in r], digits), "" if name == "1" else paired(gaps, digits)]
        ages = f"{mean(r['age'] for r in runs):.1f}", f"{max(r['max_age'] for r in runs)}"
        table.add_row(
            name, *cells, *ages, f"{mean(r['virtual_seconds'] for r in runs) / 3600:.2f}", str(len(runs))
        )  # fmt: skip
    console = Console(width=190)
    console.print(table)
    table = Table("workers", "powers", "front", "own", "weights, nats", title="power against power, paired (95 %)")
    for workers in (4, 16):
        for one, other in ((0.0, 0.5), (1.0, 0.5)):
            names = case_name(workers, one), case_name(workers, other)
            cells = [paired(differences(seeds, names[0], key, names[1]), digits) for key, digits in keys]
            table.add_row(str(workers), f"{one:g} less {other:g}", *cells)
    console.print(table)


COLORS = {0.0: "#E69F00", 0.5: "#0072B2", 1.0: "#009E73"}


def draw(seeds: dict[str, Any]) -> go.Figure:
    """Paired differences to one worker, of the front and of the final weights: every seed, means with intervals."""
    titles = ("The front: schedules by the reference", "The final shared weights")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    places = {case: place for place, case in enumerate(case for case in sorted(CASES) if case[0] > 1)}
    for col, key in ((1, "front"), (2, "weights_loss")):
        figure.add_hline(y=0, line={"color": "#7F7F7F", "width": 1}, row=1, col=col)
        for power, color in COLORS.items():
            cases = [case for case in places if case[1] == power and differences(seeds, case_name(*case), key)]
            gaps = [differences(seeds, case_name(*case), key) for case in cases]
            half = [half_width(each) if len(each) > 2 else 0.0 for each in gaps]  # two seeds tell next to nothing
            figure.add_trace(
                go.Scatter(
                    x=[places[case] for case in cases], y=[mean(each) for each in gaps], mode="markers",
                    marker={"color": color, "size": 11}, name=f"power {power:g}", showlegend=col == 1,
                    error_y={"array": half, "color": color, "thickness": 2, "width": 6},
                ), row=1, col=col,
            )  # fmt: skip
            figure.add_trace(
                go.Scatter(
                    x=[places[case] + 0.18 for case, each in zip(cases, gaps, strict=True) for _ in each],
                    y=[value for each in gaps for value in each], mode="markers", showlegend=False,
                    marker={"color": color, "size": 6, "opacity": 0.45}, hoverinfo="y",
                ), row=1, col=col,
            )  # fmt: skip
        figure.update_xaxes(
            tickvals=list(places.values()), ticktext=[str(case[0]) for case in places], title="workers", row=1, col=col
        )
    figure.update_yaxes(title="points of mean top-1 less one worker's", row=1, col=1)
    figure.update_yaxes(title="nats more than one worker's (lower is better)", row=1, col=2)
    figure.update_layout(
        title=f"60 trials on several workers, less the same on one: up to {len(seeds)} seeds, 95 % intervals",
        template="plotly_white", font={"size": 13}, margin={"l": 70, "r": 20, "t": 90, "b": 60},
        legend={"orientation": "h", "y": -0.18, "x": 0.5, "xanchor": "center"},
    )  # fmt: skip
    return figure


def main() -> None:
    """Run what is missing, print the tables, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where nets and searches are kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    quality, seeds = Namespace(**QUALITY), {}
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        seeds[str(seed)] = run_seed(seed, args, quality)
        results = {
            "settings": QUALITY, "durations": vars(DURATIONS), "seeds": seeds, "versions": dict(library_versions()),
            "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "threads": torch.get_num_threads()},
        }  # fmt: skip
        write_atomic(args.out / "staleness.json", json.dumps(results, indent=1) + "\n")
    report(seeds)
    written = write_drawing(draw(seeds), args.out, "staleness", title="Several workers and the front", height=520)
    print(
        f"written: {args.out / 'staleness.json'}, {', '.join(str(each) for each in written.paths)}", written.note or ""
    )


if __name__ == "__main__":
    main()
