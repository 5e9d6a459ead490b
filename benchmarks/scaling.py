"""What a trial takes as studies grow: image size, batch size, layers, and the number of trials.

    python benchmarks/scaling.py [--parts images batch layers trials] [--max-trials 10000] [--samplers tpe nsga2 …]

The first three parts run real trials (`Evaluator.evaluate`), every point in a process of its own, so that its peak
memory is its own; the third also costs schedules and draws the first ones for ViTs up to 48 blocks deep. The last part
runs the driver with its storage and samplers, but with made-up scores instead of training and without checkpoints.
Beside wall time there is the processor time of all threads, which other jobs on the machine change little; the figure
shows it. Prints tables, writes JSON, and draws `scaling.html` and `.png` of all parts measured so far.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ltmsearch.io.figures import write_drawing

RESULTS = Path("benchmarks/results")
PARTS = ("images", "batch", "layers", "trials")
BACKBONE, BUDGETS = "mobilevit_s", {
    "mobilevit_xxs": 0.27, "mobilevit_s": 1.2, "vit_tiny_patch16_224": 0.7, "swin_tiny_patch4_window7_224": 3.5,
    "vit_small_patch16_36x1_224": 6.0,
}  # fmt: skip
IMAGE_SIZES, BATCH_SIZES, DEPTHS = (64, 96, 128, 160, 192, 224), (4, 8, 16, 32, 64), (6, 12, 24, 36, 48)
MARKS = (100, 300, 1000, 3000, 10_000)
GP_TRIALS = 300
"""As far as the GP sampler is followed: it takes seconds a proposal."""
WINDOW = 20
"""Trials that the seconds per trial at a mark are the median of."""


def peak_mib() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def point(kind: str, **options: Any) -> dict[str, Any]:
    """Measure one point in a process of its own."""
    command = [sys.executable, __file__, "--point", json.dumps({"kind": kind, **options})]
    quiet = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # or threads that wait take processor time
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode:
        raise SystemExit(f"{options}: {done.stderr.strip().splitlines()[-1]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return options | measured


# -- one real trial --------------------------------------------------------------------------------------------------


def measure_trial(backbone: str, repeats: int, **settings: Any) -> dict[str, Any]:
    """Least seconds of some trials after one that warms up, by the wall and of processors, and the peak memory."""
    from ltmsearch import StudySettings
    from ltmsearch.callbacks import Callbacks
    from ltmsearch.search.setup import prepare
    from ltmsearch.search.trial import parameters

    bench = prepare(StudySettings.make(backbone=backbone, budget_gflops=BUDGETS[backbone], **settings), Callbacks())
    weights = parameters(bench.evaluator.supernet)
    schedule = bench.space.schedule(bench.space.nearest(0.5))
    seconds, processor = [], []
    for seed in range(repeats + 1):
        before = time.process_time()
        seconds.append(bench.evaluator.evaluate(weights, schedule, ib_weight=0.1, seed=seed).seconds)
        processor.append(time.process_time() - before)
    return {
        "seconds": min(seconds[1:]),
        "processor_seconds": min(processor[1:]),
        "peak_mib": peak_mib(),
        "layers": len(bench.space.layers),
    }


# -- costs of deep nets ----------------------------------------------------------------------------------------------


def measure_costs(depth: int) -> dict[str, Any]:
    """Seconds to count a net and its table, to cost schedules, and to suggest one, for a ViT of so many blocks."""
    import numpy as np
    import optuna

    from ltmsearch.costs import cost_model
    from ltmsearch.models import create_subnet, get_adapter
    from ltmsearch.schedules.space import SearchSpace, SpaceFile
    from ltmsearch.search.samplers import make_sampler
    from ltmsearch.search.trial import suggest

    net = create_subnet("vit_tiny_patch16_224", depth=depth)
    start = time.perf_counter()
    costs = cost_model("vit_tiny_patch16_224", net, (224, 224))
    file = SpaceFile.load(None, family=get_adapter("vit_tiny_patch16_224").family)
    space = SearchSpace.build(file, costs.layer_grids, reduces_cost=costs.reduces_cost)
    table = costs.table(space.choices)
    counted = time.perf_counter()
    schedules = space.random(np.random.default_rng(0), 10_000)
    drawn = time.perf_counter()
    table.costs(schedules)
    costed = time.perf_counter()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "minimize"])
    seconds = []
    for number in range(3 * WINDOW):
        begun = time.process_time()
        study.sampler = make_sampler("tpe", number)
        trial = study.ask()
        indices, _ = suggest(trial, space, lambda place, number=number: make_sampler("tpe", 100 * number + place))  # type: ignore[misc]
        seconds.append(time.process_time() - begun)
        study.tell(trial, [-float(indices.sum()), float(table.costs(indices[None])[0])])
    return {
        "layers": len(space.layers),
        "table_seconds": counted - start,
        "cost_microseconds": 1e6 * (costed - drawn) / len(schedules),
        "suggest_seconds": median(seconds[-WINDOW:]),
    }


# -- many trials -----------------------------------------------------------------------------------------------------


def measure_trials(sampler: str, trials: int, time_limit: float) -> dict[str, Any]:
    """Seconds of a trial and memory at each mark, with the real driver and made-up scores."""
    import numpy as np

    from ltmsearch import StudySettings
    from ltmsearch.callbacks import Callbacks
    from ltmsearch.engine.evaluation import Score
    from ltmsearch.search.driver import Driver
    from ltmsearch.search.setup import prepare
    from ltmsearch.search.shared_weights import SharedWeights
    from ltmsearch.search.trial import Evaluator, TrialResult

    begun: list[float] = []
    processor: list[float] = []
    marks: dict[int, dict[str, float]] = {}

    class MadeUp(Evaluator):
        """Scores by the keep ratios and a little noise."""

        def evaluate(self, weights: Any, schedule: Any, *, seed: int, **_: Any) -> TrialResult:
            begun.append(time.perf_counter())
            processor.append(time.process_time())
            done = len(begun) - 1
            if done in MARKS or done == trials:
                marks[done] = {
                    "seconds": float(np.median(np.diff(begun[-WINDOW - 1 :]))),
                    "processor_seconds": float(np.median(np.diff(processor[-WINDOW - 1 :]))),
                    "total_seconds": begun[-1] - begun[0],
                    "proposals": len(driver.study.get_trials(deepcopy=False)),
                    "peak_mib": peak_mib(),
                }
                print(sampler, done, marks[done], file=sys.stderr, flush=True)
            if begun[-1] - begun[0] > time_limit:
                raise TimeoutError
            ratios = np.array([schedule.keep_ratio(layer) for layer in self.supernet.layers])
            noise = np.random.default_rng(seed).normal()
            top1 = 80 - 20 * float(((1 - ratios) ** 2 * np.linspace(0.3, 1, len(ratios))).mean()) + noise
            score = Score(top1=top1, top1_se=2.0, loss=5 - top1 / 20, images=256)
            return TrialResult(weights={}, score=score, seconds=0.0)

    class Unsaved(SharedWeights):
        def save(self) -> None:
            """Checkpoints take the same in every trial; see `search_time.py`."""

    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"backbone": "mobilevit_xxs", "budget_gflops": 0.27, "proxy_img_size": 64}
        made = StudySettings.make(**settings, trials=trials, sampler=sampler, out=folder, precision="fp32")
        bench = prepare(made, Callbacks())
        real = bench.evaluator
        made_up = MadeUp(supernet=real.supernet, data=real.data, runtime=real.runtime, settings=real.settings)
        driver = Driver(replace(bench, evaluator=made_up), Path(folder), Callbacks())
        state, share = driver.shared.state, made.update_share
        driver.shared = Unsaved(real.supernet, Path(folder), state, share=share, staleness_power=0)
        start = time.perf_counter()
        with suppress(TimeoutError):
            driver.search(until=None)
        before = begun[0] - start if begun else float("nan")
        size = sum(path.stat().st_size for path in Path(folder).glob("study.db*"))
    return {"marks": marks, "before_first": before, "reached": len(begun) - 1, "database_mib": size / 2**20}


# -- tables and the figure -------------------------------------------------------------------------------------------


def follow(sampler: str, args: argparse.Namespace) -> dict[str, Any]:
    """A study of many trials with one sampler, printed at its marks."""
    trials = min(args.max_trials, GP_TRIALS) if sampler == "gp" else args.max_trials
    run = point("trials", sampler=sampler, trials=trials, time_limit=args.time_limit)
    for mark, m in run["marks"].items():
        print(
            f"{sampler:>8}{mark:>8}{m['proposals']:>11.0f}{m['seconds']:>11.3f}{m['processor_seconds']:>11.3f}"
            f"{m['total_seconds']:>11.1f}{m['peak_mib']:>11.0f}",
            flush=True,
        )
    return run


def measure_part(part: str, args: argparse.Namespace) -> Any:
    """All points of one of the first three parts, printed as they come."""
    print(f"{part:10}{'backbone':34}{'layers':>8}{'s a trial':>11}{'processor':>11}{'peak MiB':>10}")
    points = []
    for settings in _points(part, args):
        points.append(point("trial", repeats=args.repeats, **settings))
        p = points[-1]
        value = p.get({"images": "proxy_img_size", "batch": "batch_size"}.get(part, "layers"))
        print(
            f"{value:<10}{p['backbone']:34}{p['layers']:8}{p['seconds']:11.2f}{p['processor_seconds']:11.2f}{p['peak_mib']:10.0f}",
            flush=True,
        )
    if part != "layers":
        return points
    print(f"{'layers':10}{'s to count':>12}{'µs a schedule':>15}{'s a suggestion':>16}")
    deep = [point("costs", depth=depth) for depth in DEPTHS]
    for p in deep:
        print(f"{p['layers']:<10}{p['table_seconds']:12.2f}{p['cost_microseconds']:15.2f}{p['suggest_seconds']:16.3f}")
    return {"backbones": points, "deep": deep}


def _points(part: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    if part == "images":
        return [{"backbone": args.backbone, "proxy_img_size": size} for size in IMAGE_SIZES]
    if part == "batch":
        return [{"backbone": args.backbone, "batch_size": size} for size in BATCH_SIZES]
    return [{"backbone": backbone} for backbone in BUDGETS]


def draw(results: dict[str, Any]) -> go.Figure:
    """Four panels: seconds, and where a part has them MiB, of what was measured."""
    titles = ("Image size", "Batch size", "Layers", "Trials in the study, made-up scores")
    specs = [[{"secondary_y": True}, {"secondary_y": True}], [{"secondary_y": True}, {}]]
    figure = make_subplots(2, 2, subplot_titles=titles, specs=specs, horizontal_spacing=0.16, vertical_spacing=0.18)

    def line(x: list[Any], y: list[Any], name: str, row: int, col: int, color: str, **more: Any) -> None:
        second = {"secondary_y": more.pop("second")} if "second" in more else {}
        dash = "dot" if second.get("secondary_y") else "solid"
        style = {"mode": "lines+markers", "line": {"color": color, "dash": dash}, **more}
        figure.add_trace(go.Scatter(x=x, y=y, name=name, **style), row=row, col=col, **second)

    for col, (part, axis) in enumerate((("images", "proxy_img_size"), ("batch", "batch_size")), start=1):
        if points := results.get(part):
            x = [p[axis] for p in points]
            line(
                x,
                [p["processor_seconds"] for p in points],
                "seconds a trial",
                1,
                col,
                BLUE,
                second=False,
                showlegend=col == 1,
            )
            line(x, [p["peak_mib"] for p in points], "peak memory", 1, col, GREY, second=True, showlegend=col == 1)
            figure.update_xaxes(type="log", tickvals=x, row=1, col=col)
    if layers := results.get("layers"):
        nets, deep = layers["backbones"], layers["deep"]
        places = ["middle left", "top center", "bottom center", "middle right", "middle left"]
        figure.add_trace(
            go.Scatter(
                x=[p["layers"] for p in nets], y=[p["processor_seconds"] for p in nets], showlegend=False,
                text=[SHORT[p["backbone"]] for p in nets], textposition=places, mode="markers+text",
                marker={"color": BLUE, "size": 8},
            ), row=2, col=1,
        )  # fmt: skip
        line(
            [p["layers"] for p in deep], [p["suggest_seconds"] for p in deep], "seconds a suggestion (TPE, 60 trials)",
            2, 1, ORANGE, second=False,
        )  # fmt: skip
        memory = {"second": True, "mode": "markers", "showlegend": False}
        line([p["layers"] for p in nets], [p["peak_mib"] for p in nets], "peak memory", 2, 1, GREY, **memory)
        figure.update_xaxes(type="log", tickvals=DEPTHS, range=[0.5, 1.8], row=2, col=1)
    for (sampler, run), color in zip(results.get("trials", {}).items(), (BLUE, ORANGE, GREEN, RED), strict=False):
        marks = sorted((int(mark), m) for mark, m in run["marks"].items())
        line(
            [mark for mark, _ in marks],
            [m["processor_seconds"] for _, m in marks],
            f"a trial by {sampler}",
            2,
            2,
            color,
        )
    figure.update_xaxes(type="log", tickvals=MARKS, row=2, col=2)
    seconds = [value for points in (results.get("images"), results.get("batch")) for value in _seconds(points)]
    low, high = min(seconds, default=1.0), max(seconds, default=10.0)
    ticks = {"tickvals": [n * 10**power for power in range(-3, 3) for n in (1, 2, 5)]}
    figure.update_yaxes(type="log", title="processor seconds", **ticks)
    for col in (1, 2):
        figure.update_yaxes(range=[math.log10(low / 1.3), math.log10(high * 1.3)], row=1, col=col)
    figure.update_yaxes(range=[-2.2, 2], tickvals=[0.01, 0.1, 1, 10, 100], row=2, col=1)
    figure.update_yaxes(range=[-2, 0.5], row=2, col=2)
    memory = {"title": "MiB", "type": "linear", "showgrid": False, "range": [0, 5000], "dtick": 1000, "tickvals": None}
    figure.update_yaxes(secondary_y=True, tickmode="linear", **memory)
    for axis, title in (("xaxis", "pixels"), ("xaxis2", "images a step"), ("xaxis3", "layers"), ("xaxis4", "trials")):
        figure.update_layout({axis: {"title": title}})
    legend = {"orientation": "h", "y": -0.12}
    figure.update_layout(title="What one trial takes", template="plotly_white", legend=legend, font={"size": 13})
    return figure


def _seconds(points: list[dict[str, Any]] | None) -> list[float]:
    return [p["processor_seconds"] for p in points or []]


BLUE, ORANGE, GREEN, RED, GREY = "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#7f7f7f"
SHORT = {
    "mobilevit_xxs": "MobileViT-XXS", "mobilevit_s": "MobileViT-S", "vit_tiny_patch16_224": "ViT-T",
    "swin_tiny_patch4_window7_224": "Swin-T", "vit_small_patch16_36x1_224": "ViT-S 36",
}  # fmt: skip
MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "trial": measure_trial,
    "costs": measure_costs,
    "trials": measure_trials,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--backbone", default=BACKBONE, help="of the parts `images` and `batch`")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-trials", type=int, default=10_000)
    parser.add_argument("--samplers", nargs="+", default=["tpe", "nsga2", "random", "gp"])
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds after which a sampler is left")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        options = json.loads(args.point)
        print(json.dumps(MEASURES[options.pop("kind")](**options)))
        return
    path = args.out / "scaling.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)

    def keep(part: str, measured: Any) -> None:
        results[part] = measured
        results["machine"] = {"cores": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()[0]}
        path.write_text(json.dumps(results, indent=2) + "\n")

    for part in (part for part in args.parts if part != "trials"):
        keep(part, measure_part(part, args))
    if "trials" in args.parts:
        columns = ("s a trial", "processor", "s in all", "peak MiB")
        print(f"{'sampler':>8}{'trials':>8}{'proposals':>11}" + "".join(f"{column:>11}" for column in columns))
        for sampler in args.samplers:
            keep("trials", {**results.get("trials", {}), sampler: follow(sampler, args)})
    written = write_drawing(draw(results), args.out, "scaling", title="How ltmsearch scales", height=900)
    print(f"written: {path}, {', '.join(str(each) for each in written.paths)}", written.note or "")


if __name__ == "__main__":
    main()
