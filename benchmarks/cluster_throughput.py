"""Throughput, load of the driver, age of updates, and fronts on 1 to 256 simulated workers.

Claim:    one driver serves about four trials per second, 250 workers with trials of a minute.
Command:  python benchmarks/cluster_throughput.py
          python benchmarks/cluster_throughput.py --sampler tpe --trials 2000 --workers 256
Duration: a day of one thread for 10,000 trials on all numbers of workers
Result:   benchmarks/results/cluster_throughput.json and .html
Page:     docs/benchmarks/cluster.md

The real driver and samplers run on virtual workers (harness/virtual_cluster.py): trials last 60 s on average
(log-normal, 25 %), 2 % take four times as long, 0.5 % fail, and over 0.5 % a worker dies and is back after 90 s. Scores
are made up: smooth in the keep ratios, with one point of noise, and without a penalty for age; `staleness.py` measures
that on real trainings. The driver's processor time is measured while it runs, and the virtual clock advances by it.

    value   hypervolume of the true scores so far: mean points of top-1 over the worst uniform schedule
"""

from typing import Any

from harness.arguments import benchmark_parser, parse
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
from harness.records import settings_of, write_results
from harness.simulated_study import prepare_simulation, simulate, with_settings
from harness.tables import print_table
from harness.virtual_cluster import Durations

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CHARGES = {"proposal": 0.051, "answer": 0.063, "weights": 0.071, "ray": 0.013}
"""Processor seconds per trial that `driver_cost.py` measured for work that is not done here."""
SAMPLERS = {"random": "random", "tpe": "TPE"}
"""Sampler -> name in the figure."""
COLORS = (SKY, BLUE, GREEN, PINK, ORANGE)


def print_runs(title: str, runs: list[dict[str, Any]]) -> None:
    """Print one row for each number of workers."""
    rows, first = [], runs[0]
    for run in runs:
        linear = run["trials_an_hour"] / first["trials_an_hour"] * first["workers"] / run["workers"]
        last = run["curve"][-1]
        cells = [f"{run['trials_an_hour']:,.0f}", f"{linear:.0%}", f"{run['driver_busy']:.1%}"]
        cells += [f"{run['workers_busy']:.0%}", f"{run['age']:.1f}", str(run["max_age"]), f"{run['driver_each']:.3f}"]
        rows.append([str(run["workers"]), *cells, f"{last['value']:.2f}", f"{last['hours']:.1f}"])
    busy = ("driver busy", "workers busy")
    headings = ("workers", "trials/h", "of linear", *busy, "age", "largest", "s a trial", "value", "hours")
    print_table(title, headings, rows)


def drawing(results: dict[str, Any]) -> Drawing:
    """Throughput and load of the sampler with the most runs; the value of the front against trials and hours."""
    by_sampler: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        by_sampler.setdefault(run["sampler"], []).append(run)
    runs = max(by_sampler.values(), key=len)
    workers, hourly = [run["workers"] for run in runs], [run["trials_an_hour"] for run in runs]
    linear = [hourly[0] * n / workers[0] for n in workers]
    log = {"type": "log", "title": "workers", "tickvals": workers}
    busy = [
        Series(x=workers, y=[100 * run[key] for run in runs], color=color, name=name)
        for key, color, name in (("driver_busy", BLACK, "driver busy"), ("workers_busy", YELLOW, "workers busy"))
    ]
    throughput = [
        Series(x=workers, y=linear, color=GREY, dash="dot", name="linear"),
        Series(x=workers, y=hourly, color=BLACK, name="measured"),
    ]
    panels = [
        Panel(title="Trials per hour", series=throughput, x_axis=log, y_axis=log_axis()),
        Panel(title="Busy, %", series=busy, x_axis=log, y_axis={"range": [-3, 104]}),
    ]
    drawn = runs[:: max(1, len(runs) // 4)]
    colors = {run["workers"]: color for run, color in zip(drawn, COLORS, strict=False)}
    drawn = [*drawn, *(run for other in by_sampler.values() if other is not runs for run in other)]
    for key, title, axis in (
        ("trials", "Value by trials", log_axis("scored trials", numbers=(1, 3))),
        ("hours", "Value by hours", log_axis("virtual hours", numbers=(1,))),
    ):
        series = [
            Series(
                x=[point[key] for point in run["curve"]],
                y=[point["value"] for point in run["curve"]],
                color=colors.get(run["workers"], YELLOW),
                dash="solid" if run["sampler"] == runs[0]["sampler"] else "dot",
                name=f"{SAMPLERS[run['sampler']]}, {run['workers']} worker{'s' * (run['workers'] > 1)}",
            )
            for run in drawn
        ]
        value = {"title": "mean points of top-1"} if key == "trials" else {}
        panels.append(Panel(title=title, series=series, x_axis=axis, y_axis=value))
    figure = draw("A simulated cluster: trials of 60 s, the real driver", panels)
    stem = "cluster_throughput" if "random" in by_sampler else f"cluster_throughput_{runs[0]['sampler']}"
    return Drawing(figure=figure, stem=stem, title="A simulated cluster", height=900)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", default="mobilevit_s")
    parser.add_argument("--budget-gflops", type=float, default=1.2)
    parser.add_argument("--sampler", default="random", choices=("random", "tpe"))
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--charges", type=float, nargs=4, metavar=tuple(CHARGES), default=list(CHARGES.values()))
    args = parse(parser, backbone="mobilevit_xxs", budget_gflops=0.27, trials=40, workers=[1, 8])
    charges = dict(zip(CHARGES, args.charges, strict=True))
    context = prepare_simulation(args.backbone, budget_gflops=args.budget_gflops, trials=args.trials, out="unused")
    context, runs = with_settings(context, sampler=args.sampler), []
    for n in sorted(args.workers):
        runs.append({"sampler": args.sampler, **simulate(context, n, charges=charges)})
        print(f"{n} workers: {runs[-1]['trials_an_hour']:,.0f} trials per hour", flush=True)
    print_runs(f"{args.sampler}, {args.trials:,} trials", runs)
    about = {"charges": charges, "durations": vars(Durations())}
    results = {"settings": settings_of(args), **about, "runs": runs}
    drawn = drawing(results)
    write_results(args.out / f"{drawn.stem}.json", **results)
    save_figure(drawn, args.out)


if __name__ == "__main__":
    main()
