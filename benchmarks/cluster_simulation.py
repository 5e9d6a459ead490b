"""Throughput, load of the driver, staleness and fronts of a search on 1 to 256 workers, by simulation.

    python benchmarks/cluster_simulation.py [--parts constants random tpe] [--trials 10000] [--tpe-trials 2000]

The real driver and the real samplers run on workers that exist in a virtual time only (`virtual_cluster.py`): trials
last 60 s on average (log-normal, 25 %), 2 % take four times as long, 0.5 % fail, and over 0.5 % a worker dies, whose
place is empty for 90 s. Scores are made up: they fall smoothly with what a schedule merges, layer by layer otherwise,
and carry 1 point of noise. They do not fall with age: what stale updates do to scores, `staleness.py` measures for
real; what is seen here is what it does to the sampler not to know of the trials that run.

What the driver does takes processor time, which is measured while it does it, and the virtual clock runs on by as much:
a worker that ends meanwhile idles until the driver has time for it. What grows with the study is done for real: asking
the sampler, looking through the trials. What takes the same in every trial would take hours to do ten thousand times
for every number of workers; it is measured on a small study (part `constants`) and charged to the clock: writing to the
database (SQLite in a temporary folder; in the simulation it is in memory), notes and pictures for the dashboard, moving
and saving 5.6 million shared parameters (mobilevit_s), and what Ray takes for them (put and get of 22 MB). Two
simulations of a short study, one that does it all and one that charges it, tell how well that fits.

Told of each number of workers:

    trials/h   told trials over the virtual time in all
    linear     that over so many times one worker's
    load       share of the time in which the driver is busy
    busy       share of the workers' time that they evaluate
    age        mean and largest number of versions that an update was behind
    value      hypervolume of the true scores of all trials so far: mean points of top-1 over the worst uniform
               schedule, over the range of costs

Prints tables, writes JSON, and draws `cluster.html` and `.png`.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from virtual_cluster import Durations, VirtualWorkers

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import library_versions
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import within_budgets
from ltmsearch.engine.evaluation import Score
from ltmsearch.io.figures import write_drawing
from ltmsearch.io.files import write_atomic
from ltmsearch.reporting.dashboard.pages import DashboardHooks
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.driver import Driver
from ltmsearch.search.pareto import hypervolume
from ltmsearch.search.setup import Workbench, prepare
from ltmsearch.search.shared_weights import SharedWeights
from ltmsearch.search.storage import open_storage, patient
from ltmsearch.search.trial import ExampleMerges, TrialResult, parameters
from ltmsearch.search.workers import Answer, Task

RESULTS = Path("benchmarks/results")
WORKERS = (256, 1, 16, 64, 4, 128, 32, 8, 2)
TPE_WORKERS = (256, 1, 16, 64)
CHECKED = (1, 256)
"""Numbers of workers at which doing and charging are compared."""
SHORT = 150
"""Trials of the study that constants are measured on."""
MARKS = (30, 60, 100, 200, 300, 500, 1000, 2000, 3000, 5000, 10_000)
NOISE = 1.0
"""Standard deviation of a made-up score, in points."""


# -- what is made up -------------------------------------------------------------------------------------------------


class MadeUp:
    """Scores by the keep ratios; the same for the same schedule but for noise.

    Args:
        bench: What the study works with.
        merges: What a real trial found, for the driver to draw; None: it draws nothing.
    """

    def __init__(self, bench: Workbench, merges: ExampleMerges | None) -> None:
        self.layers = bench.evaluator.supernet.layers
        self.merges = merges
        self.weights = np.random.default_rng(1).uniform(0.2, 1.8, len(self.layers))

    def truth(self, schedule: MergeSchedule) -> float:
        """Top-1 without noise: what each layer's merging costs, and a little for neighbours that both merge."""
        lost = 1 - np.array([schedule.keep_ratio(layer) for layer in self.layers])
        return 80 - 20 * float((self.weights * lost**2).mean() + 0.5 * (lost[1:] * lost[:-1]).mean())

    def __call__(self, task: Task, _: Any) -> Answer:
        top1 = self.truth(task.schedule) + NOISE * np.random.default_rng(task.seed).normal()
        score = Score(top1=top1, top1_se=2.0, loss=5 - top1 / 20, images=384)
        return Answer(
            trial=task.trial,
            result=TrialResult(weights={}, score=score, seconds=60.0, scoring_seconds=20.0, merges=self.merges),
        )


class CountedWeights(SharedWeights):
    """Versions without weights that move; what moving and saving takes is charged."""

    def move(self, trained: Any, start: Any, *, age: int) -> None:
        self.state = replace(self.state, version=self.version + 1)

    def save(self) -> None:
        pass


class Simulated(Driver):
    """The driver on virtual workers.

    Args:
        bench: What the study works with.
        folder: The run directory.
        workers: Virtual.
        storage: Of the study.
        charges: Seconds of what is not done; empty: everything is done, but nothing saved and moved.
    """

    workers: VirtualWorkers

    def __init__(
        self, bench: Workbench, folder: Path, workers: VirtualWorkers, storage: BaseStorage, charges: dict[str, float]
    ) -> None:
        hooks = None if charges else DashboardHooks(bench, folder)
        super().__init__(bench, folder, Callbacks(), storage=storage, workers=workers, hooks=hooks)
        own = self.shared
        self.shared = CountedWeights(own.supernet, folder, own.state, share=0.25, staleness_power=0.5)
        self.charges = charges
        self.busy = {"proposal": 0.0, "answer": 0.0}
        """Processor seconds of handing out proposals, and of taking answers in."""
        self.done = {"proposal": 0, "answer": 0}
        self.ended: dict[int, float] = {}
        """Virtual time at which each trial was told."""

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        before = time.process_time()
        yield
        self.busy[part] += time.process_time() - before

    def _next_trial(self, *known: Any) -> Any:
        with self._timed("proposal"):
            return super()._next_trial(*known)

    def _begin(self, *asked: Any) -> None:
        with self._timed("proposal"):
            super()._begin(*asked)
        self.done["proposal"] += 1
        self.workers.spend(self.charges.get("proposal", 0.0))

    def _finish(self, *ended: Any) -> None:
        with self._timed("answer"):
            super()._finish(*ended)
        self.done["answer"] += 1
        self.workers.spend(sum(self.charges.get(part, 0.0) for part in ("answer", "weights", "ray")))
        self.ended[ended[0].trial.number] = self.workers.now


# -- what is measured ------------------------------------------------------------------------------------------------


def prepared(folder: Path, sampler: str, trials: int) -> Workbench:
    """A study of mobilevit_s; its images are small, as nothing is trained."""
    settings: dict[str, Any] = {"backbone": "mobilevit_s", "budget_gflops": 1.2, "proxy_img_size": 64}
    made = StudySettings.make(**settings, trials=trials, sampler=sampler, out=str(folder), precision="fp32")
    return prepare(made, Callbacks())


def changed(bench: Workbench, **settings: Any) -> Workbench:
    """The same with other settings."""
    return replace(bench, settings=bench.settings.model_copy(update=settings))


def least(repeats: int, do: Callable[[], Any]) -> tuple[float, float]:
    """Processor and wall seconds of something, the least of some."""
    processor, wall = [], []
    for _ in range(repeats):
        before = time.process_time(), time.perf_counter()
        do()
        processor.append(time.process_time() - before[0])
        wall.append(time.perf_counter() - before[1])
    return min(processor), min(wall)


def weights_seconds(bench: Workbench) -> dict[str, Any]:
    """What moving and saving the shared weights takes, and their size."""
    supernet = bench.evaluator.supernet
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(changed(bench, out=folder), Path(folder), Callbacks())
        start = driver.shared.weights
        trained = {name: value + 1e-4 for name, value in start.items()}
        moving = least(5, lambda: driver.shared.move(trained, start, age=3))
        saving = least(5, driver.shared.save)
    size = sum(value.numel() for value in parameters(supernet).values())
    return {"parameters": size, "moving": moving, "saving": saving}


def ray_seconds(bench: Workbench) -> dict[str, Any]:
    """What Ray takes of the driver for one trial: weights put, a call, its end awaited, weights got."""
    from ltmsearch.search.workers.actor import to_arrays
    from ltmsearch.search.workers.ray_connection import connect

    connection = connect(changed(bench, workers=2).settings)
    try:
        ray = connection.ray
        arrays = to_arrays(parameters(bench.evaluator.supernet))

        class Echo:
            def trained(self, weights: Any) -> Any:
                return {name: array + 1 for name, array in weights.items()}

        actor = ray.remote(num_cpus=1)(Echo).remote()

        def once() -> None:
            call = actor.trained.remote(ray.put(arrays))
            ray.wait([call], num_returns=1)
            ray.get(call)

        once()
        processor, wall = least(10, once)
        put = least(10, lambda: ray.put(arrays))
        return {"round": (processor, wall), "put": put}
    finally:
        connection.close()


def measure_constants(bench: Workbench, merges: ExampleMerges) -> dict[str, Any]:
    """Seconds of the driver a proposal and a trial for what the simulation leaves out; and how well that fits."""
    weights, ray = weights_seconds(bench), ray_seconds(bench)
    done = {n: simulate(changed(bench, trials=SHORT), n, merges=merges) for n in CHECKED}
    plain = simulate(changed(bench, trials=SHORT), CHECKED[0], charges={"none": 0.0})
    charges = {
        part: done[CHECKED[0]]["each"][part] - plain["each"][part] for part in ("proposal", "answer")
    } | {"weights": weights["moving"][0] + weights["saving"][0], "ray": ray["round"][0]}  # fmt: skip
    before = simulate(changed(bench, trials=SHORT), CHECKED[-1], merges=merges, known=False)
    unpictured = simulate(changed(bench, trials=SHORT), CHECKED[0])
    charged = {n: simulate(changed(bench, trials=SHORT), n, charges=charges) for n in CHECKED}
    extra = charges["weights"] + charges["ray"]
    fits = {
        str(n): {"done": done[n]["driver_each"] + extra, "charged": charged[n]["driver_each"]} for n in CHECKED
    }  # fmt: skip
    return {
        "weights": weights, "ray": ray, "charges": charges, "fits": fits,
        "without_cache": {"workers": CHECKED[-1], "driver_each": before["driver_each"] + extra},
        "pictures": done[CHECKED[0]]["each"]["answer"] - unpictured["each"]["answer"],
    }  # fmt: skip


def simulate(
    bench: Workbench,
    workers: int,
    *,
    merges: ExampleMerges | None = None,
    charges: dict[str, float] | None = None,
    known: bool = True,
) -> dict[str, Any]:
    """One search.

    Args:
        bench: What the study works with.
        workers: How many.
        merges: What the driver draws of every trial.
        charges: Seconds a proposal, an answer, and for weights and Ray, of what is not done; None: all is done, with
            SQLite.
        known: Whether trials that run are read from the database only once.
    """
    made_up = MadeUp(bench, merges)
    cluster = VirtualWorkers(workers, Durations(), made_up, seed=bench.settings.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = changed(bench, out=name)
        storage: BaseStorage = InMemoryStorage() if charges else open_storage(bench.settings, folder)
        if not charges and known:
            storage = patient(storage, bench.settings, print)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        driver = Simulated(bench, folder, cluster, storage, charges or {})
        before = time.process_time()
        cluster.resume()
        driver.search(until=None)
        seconds = time.process_time() - before
        trials = driver.study.get_trials(deepcopy=False)
    told = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.FAIL)]
    return {
        "workers": workers, "trials": len(told), "proposals": len(trials), "virtual_seconds": cluster.now,
        "trials_an_hour": 3600 * len(told) / cluster.now, "load": cluster.driver_seconds / cluster.now,
        "busy": cluster.worker_seconds / cluster.now / workers, "driver_each": cluster.driver_seconds / len(told),
        "each": {part: driver.busy[part] / driver.done[part] for part in driver.busy}, "deaths": cluster.deaths,
        "failed": sum(t.state == TrialState.FAIL for t in told), **ages(told), "processor_seconds": seconds,
        "curve": curve(bench, made_up, driver, trials),
    }  # fmt: skip


def ages(told: Sequence[FrozenTrial]) -> dict[str, Any]:
    """How many versions updates were behind."""
    known = [t.user_attrs["age"] for t in told if "age" in t.user_attrs]
    return {"age": mean(known), "max_age": max(known)}


def curve(bench: Workbench, made_up: MadeUp, driver: Simulated, trials: list[FrozenTrial]) -> list[dict[str, float]]:
    """The value of what was tried after so many scored trials, in the order in which they ended, and the time then."""
    budget, space = bench.budgets[0], bench.space
    ended = driver.ended
    scored = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda trial: ended[trial.number])
    indices = np.array([[t.params[layer] for layer in space.layers] for t in scored])
    costs, inside = budget.costs(indices), within_budgets(bench.budgets, indices)
    truth = np.array([made_up.truth(space.schedule(each)) for each in indices])
    low, limit = budget.reachable()[0], budget.limit / budget.per_unit
    corner = min(made_up.truth(space.schedule(each)) for each in uniform(bench))
    points = []
    for n in sorted({*(mark for mark in MARKS if mark < len(scored)), len(scored)}):
        some = [(t, c) for t, c, i in zip(truth[:n], costs[:n], inside[:n], strict=True) if i]
        value = hypervolume(some, (corner, limit), (True, False)) / (limit - low)
        points.append({"trials": n, "value": value, "hours": ended[scored[n - 1].number] / 3600})
    return points


def uniform(bench: Workbench) -> list[np.ndarray]:
    """Schedules of one keep ratio in all layers, in the form that each begins with, within the budget."""
    ratios = sorted({choice.keep_ratio for options in bench.space.choices for choice in options})
    line = [bench.space.nearest(ratio, form) for ratio in ratios for form in bench.space.forms]
    return [indices for indices in line if within_budgets(bench.budgets, indices[None])[0]]


# -- tables and the figure -------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> None:
    """What was measured, and a table for each sampler."""
    console = Console(width=150)
    if constants := results.get("constants"):
        weights, ray, charges = constants["weights"], constants["ray"], constants["charges"]
        milliseconds = {name: f"{1e3 * seconds:.0f} ms" for name, seconds in charges.items()}
        console.print(f"{weights['parameters']:,} parameters; the driver's processor time: {milliseconds}")
        console.print(
            f"of the answer, the picture: {1e3 * constants['pictures']:.0f} ms; Ray's put: {ray['put'][0]:.4f} s"
        )
        for n, fit in constants["fits"].items():
            console.print(f"{n} workers: {fit['done']:.3f} s a trial when all is done, {fit['charged']:.3f} s charged")
        slow = constants["without_cache"]
        console.print(f"{slow['workers']} workers, running trials read again: {slow['driver_each']:.3f} s a trial")
    for sampler in ("random", "tpe"):
        if sampler in results:
            console.print(table(sampler, by_workers(results, sampler)))


def by_workers(results: dict[str, Any], sampler: str) -> list[dict[str, Any]]:
    """The runs with a sampler, fewest workers first."""
    return sorted(results[sampler].values(), key=lambda run: run["workers"])


def table(sampler: str, runs: list[dict[str, Any]]) -> Table:
    """One row for each number of workers."""
    headings = ("workers", "trials/h", "linear", "load", "busy", "age", "largest", "s a trial", "value", "hours")
    shown = Table(*headings, title=f"{sampler}, {runs[0]['trials']:,} trials")
    for run in runs:
        share = run["trials_an_hour"] / runs[0]["trials_an_hour"] * runs[0]["workers"] / run["workers"]
        last = run["curve"][-1]
        shown.add_row(
            str(run["workers"]), f"{run['trials_an_hour']:,.0f}", f"{share:.0%}", f"{run['load']:.1%}",
            f"{run['busy']:.0%}", f"{run['age']:.1f}", str(run["max_age"]), f"{run['driver_each']:.3f}",
            f"{last['value']:.2f}", f"{last['hours']:.1f}",
        )  # fmt: skip
    return shown


BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"
SHADES = {1: "#56B4E9", 16: "#0072B2", 64: "#CC79A7", 256: "#D55E00"}


def draw(results: dict[str, Any]) -> go.Figure:
    """Throughput, load, and the value of the front against trials and hours."""
    titles = (
        "Trials an hour", "The driver's load, and how busy workers are", "Value by trials", "Value by hours"
    )  # fmt: skip
    figure = make_subplots(2, 2, subplot_titles=titles, horizontal_spacing=0.12, vertical_spacing=0.17)

    def line(x: Any, y: Any, row: int, col: int, color: str, name: str, dash: str = "solid", legend: str = "") -> None:
        figure.add_trace(
            go.Scatter(
                x=list(x), y=list(y), mode="lines+markers", name=name, legend=legend or "legend",
                line={"color": color, "dash": dash, "width": 2.5}, marker={"size": 6},
                showlegend=bool(name), legendgroup=name,
            ), row=row, col=col,
        )  # fmt: skip

    random = by_workers(results, "random")
    workers = [run["workers"] for run in random]
    line(workers, [random[0]["trials_an_hour"] * n for n in workers], 1, 1, GREY, "linear", "dot")
    for sampler, color in (("random", BLUE), ("tpe", ORANGE)):
        runs = by_workers(results, sampler)
        if len(runs) < 2:
            continue
        n = [run["workers"] for run in runs]
        title = f"{SAMPLERS[sampler]}, {runs[0]['trials']:,} trials"
        line(n, [run["trials_an_hour"] for run in runs], 1, 1, color, title)
        line(n, [100 * run["load"] for run in runs], 1, 2, color, "")
        line(n, [100 * run["busy"] for run in runs], 1, 2, color, "", "dash")
    for run in by_workers(results, "tpe"):
        color = SHADES[run["workers"]]
        for col, key in ((1, "trials"), (2, "hours")):
            name = f"TPE, {run['workers']} worker{'s' * (run['workers'] > 1)}" if col == 1 else ""
            line([p[key] for p in run["curve"]], [p["value"] for p in run["curve"]], 2, col, color, name)
    for run in random:
        if run["workers"] in (1, 256):
            for col, key in ((1, "trials"), (2, "hours")):
                name = f"random, {run['workers']} worker{'s' * (run['workers'] > 1)}" if col == 1 else ""
                color = SHADES[run["workers"]]
                line([p[key] for p in run["curve"]], [p["value"] for p in run["curve"]], 2, col, color, name, "dot")
    for col in (1, 2):
        figure.update_xaxes(type="log", tickvals=workers, title="workers", row=1, col=col)
        figure.update_xaxes(type="log", row=2, col=col, tickvals=[n * 10**p for p in range(-2, 5) for n in (1, 3)])
    figure.update_yaxes(type="log", row=1, col=1, tickvals=[n * 10**p for p in range(5) for n in (1, 3)])
    figure.update_yaxes(title="% (solid: driver, dashed: workers)", range=[0, 103], row=1, col=2)
    figure.update_yaxes(title="mean points of top-1", row=2, col=1)
    figure.update_xaxes(title="scored trials", row=2, col=1)
    figure.update_xaxes(title="virtual hours", row=2, col=2)
    figure.update_layout(
        title="A simulated cluster: trials of 60 s, the real driver", template="plotly_white", font={"size": 13},
        margin={"l": 70, "r": 20, "t": 90, "b": 60},
        legend={"orientation": "h", "y": -0.12, "x": 0.5, "xanchor": "center"},
    )  # fmt: skip
    return figure


SAMPLERS = {"random": "random", "tpe": "TPE"}


def main() -> None:
    """Measure and simulate, print the tables, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="*", choices=("constants", "random", "tpe"), default=("constants", "random", "tpe")
    )
    parser.add_argument("--trials", type=int, default=10_000, help="with the random sampler")
    parser.add_argument("--tpe-trials", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    path = args.out / "cluster.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    args.out.mkdir(parents=True, exist_ok=True)

    def keep(part: str, measured: Any) -> None:
        results[part] = measured
        results["durations"], results["versions"] = vars(Durations()), dict(library_versions())
        results["machine"] = {"cores": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()[0]}
        write_atomic(path, json.dumps(results, indent=1) + "\n")

    if args.parts:
        with tempfile.TemporaryDirectory() as name:
            bench = prepared(Path(name), "random", SHORT)
            if "constants" in args.parts:
                keep("constants", measure_constants(bench, merges_of(bench)))
            charges = results["constants"]["charges"]
            for sampler, trials, numbers in (
                ("random", args.trials, WORKERS), ("tpe", args.tpe_trials, TPE_WORKERS)
            ):  # fmt: skip
                if sampler not in args.parts:
                    continue
                runs = {}
                for n in numbers:
                    study = changed(bench, sampler=sampler, trials=trials)
                    runs[str(n)] = simulate(study, n, charges=charges)
                    seconds = runs[str(n)]["processor_seconds"]
                    print(f"{sampler}, {n} workers: {seconds:.0f} s of a processor", file=sys.stderr, flush=True)
                    keep(sampler, runs)
    report(results)
    if not {"random", "tpe"} <= results.keys():
        return
    written = write_drawing(draw(results), args.out, "cluster", title="A simulated cluster", height=900)
    print(f"written: {path}, {', '.join(str(each) for each in written.paths)}", written.note or "")


def merges_of(bench: Workbench) -> ExampleMerges:
    """What a real trial found at keep ratio 0.5."""
    evaluator = bench.evaluator
    schedule = bench.space.schedule(bench.space.nearest(0.5))
    found = evaluator.evaluate(parameters(evaluator.supernet), schedule, seed=0, steps=1).merges
    if found is None:
        raise RuntimeError("trials look at merges")
    return found


if __name__ == "__main__":
    main()
