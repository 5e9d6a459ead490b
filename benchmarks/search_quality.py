"""How good a front a search finds, in how many trials and how much time.

    python benchmarks/search_quality.py --work quality [--backbone mobilevit_xxs] [--seeds 5] [--methods default …]
    python benchmarks/search_quality.py --work quality --calibrate     # how many steps `independent` needs

The figures of docs/benchmarks/search.md:
--one-base --backbone vit_tiny_patch16_224 --budget-gflops 0.055 --clean-digits --base-steps 700
--base-lr 5e-4 --sandwich-steps 40 --sandwich-lr 1e-4 --yardstick-steps 100 --yardstick-images 300, on one thread.

Every seed has a base net (the plain backbone, trained briefly; with --one-base the same for all), from which shared
weights are warmed up by the sandwich rule. Then each method trains the same number of trials:

    default      what `ltmsearch run` does: baselines, schedules that cover the range of costs, then multivariate TPE
    gp, nsga2, random   the same with another sampler behind the same first trials
    surrogate    the same first trials; then Thompson sampling of a Bayesian ridge regression of loss over schedules
    by loss      default, but TPE is told exp(-loss) instead of top-1
    no start     default without baselines and covering schedules: TPE from the first trial on
    script       Optuna's own TPE as a short script has it: nothing enqueued, and costs are learned by training
    uniform      one keep ratio and one form for all layers, every one the space has within the budget
    independent  no sharing: each trial trains the base net anew for --independent-steps, with sampler and constraints
                 as in `no start`

Nothing weighs the IB loss here: it would be one more dimension without an effect.

Yardstick: a trial's own score is noisy, and those of nets trained in different ways do not compare. So of the first n
trials the front is chosen by their own top-1, and its schedules are then scored again by one reference supernet per
seed: trained from the same base in more and richer sandwich steps, on validation images that no search has seen (the
digits: other scenes of the same held-out characters). Bias: the reference shares its weights among schedules too and
has seen most of those that sandwich steps draw, so it may rank otherwise than full trainings would, in favour of none
of the methods but perhaps of sharing.

Hypervolume: area between a front and a corner, over the range of costs from the cheapest schedule to the budget: mean
points of top-1 above the corner. The corner is the top-1 of the worst uniform schedule within the budget by the
yardstick (that of chance in the JSON). Own scores give the second column, with the same corner. The same by loss,
which is steadier: the front by own loss, in mean nats by which the yardstick's is below that of the worst uniform one.

Seconds are of the thread (processor time, which other jobs on the machine do not change) and by the wall, both in the
JSON; they count warming up where weights are shared, but not the base, from which all start. First trials that several
methods have in common run once, and count for each. What is finished stays in --work: it can be stopped and started.
Prints tables, writes JSON, and draws `search_quality-<backbone>.html` and `.png`.
"""

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import torch
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, Trial
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from sklearn.linear_model import BayesianRidge
from torch import Tensor

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import library_versions
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import within_budgets
from ltmsearch.data.digits import Clutter
from ltmsearch.engine.evaluation import Score
from ltmsearch.engine.steps import WarmUp, warm_up
from ltmsearch.io.figures import write_drawing
from ltmsearch.io.files import write_atomic
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.driver import Driver
from ltmsearch.search.initial_trials import InitialTrial
from ltmsearch.search.pareto import hypervolume, is_non_dominated
from ltmsearch.search.records import select_front
from ltmsearch.search.setup import Workbench, prepare
from ltmsearch.search.shared_weights import SharedWeights
from ltmsearch.search.trial import Evaluator, TrialResult, parameters

RESULTS = Path("benchmarks/results")
MARKS = (5, 10, 15, 20, 30, 40, 50, 60, 80, 100)
"""Numbers of trials that the front is looked at after."""
METHODS = (
    "default", "independent", "surrogate", "by loss", "script", "uniform", "random", "nsga2", "no start", "gp",
)  # fmt: skip
CHANCE = 10.0
CLEAN = Clutter(min_scale=0.8, max_scale=1.0, fragments=0, fragment_scale=0.4)
"""Digits that fill the image and have nothing beside them: what a small ViT learns from scratch in a minute."""


# -- nets ------------------------------------------------------------------------------------------------------------


def make_bench(args: argparse.Namespace, seed: int) -> Workbench:
    """Everything of one seed, without an IB weight to search."""
    settings = StudySettings.make(
        "benchmark", backbone=args.backbone, budget_gflops=args.budget_gflops, img_size=args.img_size,
        proxy_img_size=args.img_size, base_img_size=args.img_size, batch_size=args.batch_size, seed=seed,
        trials=args.trials, proxy_steps=args.proxy_steps, proxy_lr=args.proxy_lr, precision="fp32", device="cpu",
        calibration_images=args.calibration_images, val_images=args.val_images, rescore_candidates=8,
        rescore_images=args.val_images + args.yardstick_images,
    )  # fmt: skip
    bench = prepare(settings, Callbacks())
    if args.clean_digits:
        for split in (bench.evaluator.data.train, bench.evaluator.data.validation):
            split.dataset.clutter = CLEAN
            split.pixel_cache, split.tensor_cache = {}, {}
    changed = bench.settings.model_copy(update={"rescore_images": args.val_images})
    return replace(bench, space=replace(bench.space, ib_weights=None), settings=changed)


def train_shared(bench: Workbench, plan: WarmUp, seed: int) -> tuple[float, float]:
    """Train the supernet from where it is; wall and processor seconds."""
    before = time.perf_counter(), time.process_time()
    space, evaluator = bench.space, bench.evaluator
    steps = warm_up(
        evaluator.supernet,
        plan,
        batches=evaluator.data.train_batches(batch_size=bench.settings.batch_size, steps=plan.steps, seed=seed),
        cheapest=space.schedule(space.cheapest),
        draw=lambda rng: space.schedule(space.random(rng, 1)[0]),
        seed=seed,
        runtime=evaluator.runtime,
    )
    for _ in steps:
        pass
    return time.perf_counter() - before[0], time.process_time() - before[1]


class Nets:
    """The base net, the warmed-up shared weights and the reference of one seed: kept in files, loaded on request."""

    def __init__(self, bench: Workbench, folder: Path, seed: int, args: argparse.Namespace) -> None:
        self.bench, self.folder = bench, folder
        sandwich: dict[str, Any] = {"base_steps": 0, "base_img_size": args.img_size}
        base = WarmUp(
            base_steps=args.base_steps, base_img_size=args.img_size, sandwich_steps=0, subnets=0, lr=args.base_lr
        )  # fmt: skip
        warm, reference = (
            WarmUp(**sandwich, sandwich_steps=steps, subnets=subnets, lr=args.sandwich_lr)
            for steps, subnets in ((args.sandwich_steps, 1), (args.yardstick_steps, 2))
        )
        where = (0, folder.parent / "base-0") if args.one_base else (seed, folder / "base")
        self.plans = {
            "base": (base, None, *where),
            "warm": (warm, "base", 1000 + seed, folder / "warm"),
            "reference": (reference, "base", 2000 + seed, folder / "reference"),
        }

    def load(self, name: str) -> tuple[float, float]:
        """Put weights and statistics of a net into the supernet, trained where they are missing; its seconds."""
        plan, start, seed, path = self.plans[name]
        supernet, file, noted = (
            self.bench.evaluator.supernet,
            path.with_suffix(".safetensors"),
            path.with_suffix(".json"),
        )
        if not noted.exists():
            if start is not None:
                self.load(start)
            seconds = train_shared(self.bench, plan, seed)
            save_file({key: value.contiguous() for key, value in supernet.state_dict().items()}, file)
            write_atomic(noted, json.dumps(seconds))
            plain = self.bench.evaluator.score(
                self.bench.space.schedule(self.plain), images=self.bench.settings.val_images
            )
            print(f"{path}: {seconds[1]:.0f} s, plain net {plain.top1:.1f} %", flush=True)
        supernet.load_state_dict(load_file(file))
        wall, processor = json.loads(noted.read_text())
        return wall, processor

    @property
    def plain(self) -> np.ndarray:
        """(L,) indices of the plain net."""
        return np.zeros(len(self.bench.space.layers), dtype=int)


# -- trials ----------------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """The trained trials of one method, and what they took."""

    bench: Workbench
    memo: dict[Any, tuple[TrialResult, float, float]]
    """Results by the whole history of trials before: methods that begin alike share them."""
    wall: float = 0.0
    """Seconds that were saved by the memo, on top of those since the start."""
    processor: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    history: tuple[Any, ...] = ()
    tells_loss: bool = False
    """Whether the driver hears of exp(-loss) in percent as if it were top-1."""

    def __post_init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """By the wall and of the thread, since the search began."""
        return time.perf_counter() - self.start[0] + self.wall, time.process_time() - self.start[1] + self.processor


@dataclass(frozen=True, kw_only=True)
class Watched(Evaluator):
    """Notes every trained trial, and takes known results from memory."""

    log: Log
    kept: int
    """Trials from the first one on whose results are remembered."""

    def evaluate(self, weights: Any, schedule: MergeSchedule, *, seed: int, **how: Any) -> TrialResult:
        log = self.log
        indices = log.bench.space.indices(schedule)
        log.history = (*log.history, (tuple(indices.tolist()), seed, how.get("steps")))
        if log.history in log.memo:
            result, wall, processor = log.memo[log.history]
            log.wall, log.processor = log.wall + wall, log.processor + processor
        else:
            before = time.perf_counter(), time.process_time()
            result = super().evaluate(weights, schedule, seed=seed, **how)
            took = time.perf_counter() - before[0], time.process_time() - before[1]
            if len(log.history) <= self.kept:
                log.memo[log.history] = (result, *took)
        if how.get("steps") != 0:  # the plain net is not trained
            wall, processor = log.seconds()
            log.rows.append({
                "indices": indices.tolist(), "gflops": log.bench.costs.gflops(schedule), "top1": result.score.top1,
                "loss": result.score.loss, "feasible": bool(within_budgets(log.bench.budgets, indices[None])[0]),
                "wall": wall, "processor": processor,
            })  # fmt: skip
        if log.tells_loss:
            result = replace(result, score=replace(result.score, top1=100 * math.exp(-result.score.loss)))
        return result


class UnsavedWeights(SharedWeights):
    """Shared weights without checkpoints, which take the same in every trial."""

    def save(self) -> None:
        """Keep them in memory alone."""


class Unsaved(Driver):
    """The driver without checkpoints; its shared weights begin with those of the supernet."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        made, own = self.settings, self.shared
        self.shared = UnsavedWeights(
            own.supernet, own.folder, own.state, share=made.update_share, staleness_power=made.staleness_power
        )


class NoStart(Unsaved):
    """Nothing is tried before the sampler's own proposals."""

    def _first_trials(self) -> Any:
        return type(super()._first_trials())()


class Surrogate(Unsaved):
    """Behind the first trials, proposes by a regression over schedules instead of a sampler."""

    log: Log

    def _next_trial(
        self, trials: list[FrozenTrial], unfinished: list[FrozenTrial], first: deque[InitialTrial]
    ) -> tuple[Trial, Callable[[int], BaseSampler]]:
        if not first and not unfinished:
            rng = np.random.default_rng((self.settings.seed, len(trials)))
            self._enqueue(InitialTrial(indices=propose(self.bench, self.log.rows, rng), kind="searched"))
            trials = self._trials()
            unfinished = trials[-1:]
        return super()._next_trial(trials, unfinished, first)


BAND = 0.15
"""Share of the range of costs below a drawn cost that a proposal may lie in."""


def propose(bench: Workbench, rows: list[dict[str, Any]], rng: np.random.Generator) -> np.ndarray:
    """(L,) the feasible schedule of least loss near a random cost, by one draw from the posterior of a regression.

    Args:
        bench: Space and exact costs.
        rows: Trained trials, in their order.
        rng: Source of randomness.
    """
    space, budget = bench.space, bench.budgets[0]
    tried = np.array([row["indices"] for row in rows])
    losses, place = np.array([row["loss"] for row in rows]), np.arange(len(rows)) / len(rows)
    inside = np.array([row["feasible"] for row in rows])
    front = tried[inside][
        is_non_dominated(np.stack([losses[inside], budget.costs(tried[inside])], axis=1), (False, False))
    ]
    parents = front[rng.integers(len(front), size=4000)]
    steps = rng.integers(-2, 3, size=parents.shape) * (rng.random(parents.shape) < 1.5 / parents.shape[1])
    pool = np.concatenate([space.random(rng, 8000), np.clip(parents + steps, 0, space.cheapest)])
    pool = np.unique(pool[within_budgets(bench.budgets, pool)], axis=0)
    known = {bench.costs.network_key(space.schedule(indices)) for indices in tried}
    costs, low = budget.costs(pool), float(budget.costs(space.cheapest[None])[0])
    high = budget.limit / budget.per_unit
    x, candidates = features(bench, tried), features(bench, pool)
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-9
    x = np.column_stack([(x - centre) / scale, place])  # scores drift as the shared weights improve
    model = BayesianRidge().fit(x, losses)
    drawn = rng.multivariate_normal(model.coef_, model.sigma_)
    predicted = (candidates - centre) / scale @ drawn[:-1]
    level = rng.uniform(low, high)
    near = (costs <= level) & (costs >= level - BAND * (high - low))
    for place in sorted(
        range(len(pool)), key=lambda i: (not near[i], predicted[i] if near[i] else abs(costs[i] - level))
    ):
        if bench.costs.network_key(space.schedule(pool[place])) not in known:
            return pool[place]
    return pool[int(rng.integers(len(pool)))]


def features(bench: Workbench, indices: np.ndarray) -> np.ndarray:
    """(S, F) of (S, L) schedules: log2 of tokens before over after by layer and form, and the cost."""
    columns = []
    for layer, options in enumerate(bench.space.choices):
        for form in sorted({choice.form for choice in options if choice.form}):
            strength = np.array([-np.log2(c.keep_ratio) if c.form == form else 0.0 for c in options])
            columns.append(strength[indices[:, layer]])
    return np.column_stack([*columns, bench.budgets[0].costs(indices)])


def search(driver_class: type[Unsaved], bench: Workbench, log: Log, **settings: Any) -> dict[str, Any]:
    """Run the real driver from the supernet's present weights; what it shows at the end."""
    with tempfile.TemporaryDirectory() as folder:
        made = bench.settings.model_copy(update={"out": folder, **settings})
        plain = bench.evaluator
        watched = Watched(
            supernet=plain.supernet, data=plain.data, runtime=plain.runtime, settings=made, log=log,
            kept=0 if settings.get("update_share") == 0 else 4 + made.trials // 3,
        )  # fmt: skip
        driver = driver_class(replace(bench, evaluator=watched, settings=made), Path(folder), Callbacks())
        if isinstance(driver, Surrogate):
            driver.log = log
        driver.search(until=None)
        proposals = len(driver.study.get_trials(deepcopy=False))
        if settings.get("update_share") == 0:
            return {"proposals": proposals}
        driver.rescore()
        front = [bench.space.indices(r.schedule).tolist() for r in select_front(driver.records())]
        return {"proposals": proposals, "rescored_front": front, "rescored_at": log.seconds()}


def moved(weights: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """A share of the way from some weights to those that were trained from them."""
    return {name: torch.lerp(value, trained[name], share) for name, value in weights.items()}


def script(bench: Workbench, log: Log) -> dict[str, Any]:
    """Optuna as its documentation has it: every proposal is trained, and its cost told as a constraint."""
    made, plain = bench.settings, bench.evaluator
    watched = Watched(
        supernet=plain.supernet, data=plain.data, runtime=plain.runtime, settings=made, log=log, kept=0
    )  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=TPESampler(seed=made.seed))
    weights = parameters(plain.supernet)
    for number in range(made.trials):
        trial = study.ask()
        layers = zip(bench.space.layers, bench.space.choices, strict=True)
        indices = np.array([trial.suggest_int(layer, 0, len(options) - 1) for layer, options in layers])
        result = watched.evaluate(weights, bench.space.schedule(indices), seed=number)
        weights = moved(weights, result.weights, made.update_share)
        trial.set_constraint("over budget", float(bench.budgets[0].excess(indices[None])[0]))
        study.tell(trial, [result.score.top1, float(bench.budgets[0].costs(indices[None])[0])])
    return {"proposals": made.trials}


def uniform_line(bench: Workbench) -> list[np.ndarray]:
    """Schedules with one keep ratio and one form at every layer that has them, within the budget; dearest first."""
    space = bench.space
    wanted = sorted({choice for options in space.choices for choice in options if choice.keep_ratio < 1}, reverse=True)
    line: dict[Any, np.ndarray] = {}
    for choice in wanted:
        indices = np.array([
            min(range(len(options)), key=lambda i: (
                abs(options[i].keep_ratio - choice.keep_ratio), options[i].form not in (None, choice.form)
            )) for options in space.choices
        ])  # fmt: skip
        if within_budgets(bench.budgets, indices[None])[0]:
            line.setdefault(bench.costs.network_key(space.schedule(indices)), indices)
    return sorted(line.values(), key=lambda indices: -bench.budgets[0].costs(indices[None])[0])


def uniform(bench: Workbench, log: Log) -> dict[str, Any]:
    """The uniform line, trial by trial from the shared weights."""
    plain, made = bench.evaluator, bench.settings
    watched = Watched(
        supernet=plain.supernet, data=plain.data, runtime=plain.runtime, settings=made, log=log, kept=0
    )  # fmt: skip
    weights = parameters(plain.supernet)
    for number, indices in enumerate(uniform_line(bench)):
        result = watched.evaluate(weights, bench.space.schedule(indices), seed=number)
        weights = moved(weights, result.weights, made.update_share)
    return {"proposals": len(log.rows)}


def run_method(
    method: str, bench: Workbench, nets: Nets, memo: dict[Any, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """One method on one seed: its trained trials with seconds since the base net."""
    warmed = nets.load("base" if method == "independent" else "warm")
    if method == "independent":
        warmed = (0.0, 0.0)  # of the base, which counts for none
    log = Log(bench=bench, memo=memo, tells_loss=method == "by loss")
    if method == "script":
        told = script(bench, log)
    elif method == "uniform":
        told = uniform(bench, log)
    elif method == "independent":
        own = {"update_share": 0.0, "proxy_steps": args.independent_steps, "proxy_lr": args.independent_lr}
        told = search(NoStart, bench, log, sampler="tpe", **own)
    else:
        kinds: dict[str, type[Unsaved]] = {
            "surrogate": Surrogate, "no start": NoStart,
        }  # fmt: skip

        sampler = method if method in ("gp", "nsga2", "random") else "auto"
        told = search(kinds.get(method, Unsaved), bench, log, sampler=sampler)
    return {"rows": log.rows, "warm_up": warmed, "seconds": log.seconds(), "load": os.getloadavg()[0], **told}


# -- the yardstick ---------------------------------------------------------------------------------------------------


class Yardstick:
    """Top-1 of schedules by the reference supernet of a seed, kept in a file."""

    def __init__(self, bench: Workbench, nets: Nets, path: Path, args: argparse.Namespace) -> None:
        data = bench.evaluator.data
        keys = data.validation_keys[args.val_images :]
        own = replace(data, validation_keys=keys, validation_size=len(keys))
        self.evaluator = Evaluator(
            supernet=bench.evaluator.supernet, data=own, runtime=bench.evaluator.runtime, settings=bench.settings
        )  # fmt: skip
        self.bench, self.nets, self.path, self.images = bench, nets, path, len(keys)
        self.known: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}

    def score(self, wanted: list[list[int]]) -> None:
        """Make the scores of schedules known."""
        new = [indices for indices in wanted if str(indices) not in self.known]
        if not new:
            return
        self.nets.load("reference")
        by_net = {self.bench.costs.network_key(self.bench.space.schedule(json.loads(key))): key for key in self.known}
        for indices in new:
            schedule = self.bench.space.schedule(indices)
            key = by_net.setdefault(self.bench.costs.network_key(schedule), str(indices))
            if key not in self.known:
                score = self.evaluator.score(schedule, images=self.images)
                self.known[key] = [score.top1, score.top1_se, score.loss]
            self.known[str(indices)] = self.known[key]
        write_atomic(self.path, json.dumps(self.known))

    def top1(self, indices: list[int]) -> float:
        """Of a schedule that is known."""
        return self.known[str(indices)][0]

    def loss(self, indices: list[int]) -> float:
        """Of a schedule that is known."""
        return self.known[str(indices)][2]


def marks_of(rows: list[dict[str, Any]]) -> list[int]:
    """The numbers of trials that a method is looked at after."""
    return sorted({n for n in MARKS if n < len(rows)} | {len(rows)})


def own_front(rows: list[dict[str, Any]], by: str = "top1") -> list[dict[str, Any]]:
    """The trials on the front by their own top-1 or loss, within the budget."""
    inside = [row for row in rows if row["feasible"]]
    points = np.array([(row[by], row["gflops"]) for row in inside]).reshape(-1, 2)
    return [row for row, kept in zip(inside, is_non_dominated(points, (by == "top1", False)), strict=True) if kept]


def mean_gain(points: list[tuple[float, float]], corner: float, low: float, budget: float) -> float:
    """Hypervolume over the range of costs from the cheapest schedule to the budget: mean gain over the corner."""
    return hypervolume(points, (corner, budget), (True, False)) / (budget - low)


def measure_curve(
    run: dict[str, Any], yard: Yardstick, line: list[list[int]], low: float, budget: float
) -> dict[str, Any]:
    """Hypervolumes and seconds of a method after each mark; corners are those of the uniform line."""
    corner, worst = min(yard.top1(indices) for indices in line), max(yard.loss(indices) for indices in line)
    rows, curve = run["rows"], []
    for n in marks_of(rows):
        front = own_front(rows[:n])
        true = [(yard.top1(row["indices"]), row["gflops"]) for row in front]
        own = [(row["top1"], row["gflops"]) for row in front]
        by_loss = [(-yard.loss(row["indices"]), row["gflops"]) for row in own_front(rows[:n], "loss")]
        last = rows[n - 1]
        curve.append({
            "trials": n, "hypervolume": mean_gain(true, corner, low, budget),
            "over_chance": mean_gain(true, CHANCE, low, budget), "own": mean_gain(own, corner, low, budget),
            "by_loss": mean_gain(by_loss, -worst, low, budget),
            "wall": last["wall"] + run["warm_up"][0], "processor": last["processor"] + run["warm_up"][1],
        })  # fmt: skip
    result: dict[str, Any] = {"curve": curve, "proposals": run["proposals"]}
    if "rescored_front" in run:
        costs = [yard.bench.costs.gflops(yard.bench.space.schedule(indices)) for indices in run["rescored_front"]]
        again = [(yard.top1(i), cost) for i, cost in zip(run["rescored_front"], costs, strict=True)]
        result["rescored"] = mean_gain(again, corner, low, budget)
    return result


# -- one seed --------------------------------------------------------------------------------------------------------


def run_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """All methods of one seed: what is missing is run."""
    folder = args.work / args.backbone / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    bench = make_bench(args, seed)
    nets = Nets(bench, folder, seed, args)
    memo: dict[Any, Any] = {}
    runs = {}
    for method in args.methods:
        path = folder / f"{method.replace(' ', '-')}.json"
        if not path.exists() and args.report:
            continue
        if not path.exists():
            run = run_method(method, bench, nets, memo, args)
            write_atomic(path, json.dumps(run))
            print(f"seed {seed}, {method}: {len(run['rows'])} trials, {run['seconds'][1]:.0f} s", flush=True)
        runs[method] = json.loads(path.read_text())
    yard = Yardstick(bench, nets, folder / "yardstick.json", args)
    line = [indices.tolist() for indices in uniform_line(bench)]
    wanted = [[0] * len(bench.space.layers), bench.space.cheapest.tolist(), *line]
    for run in runs.values():
        wanted += [
            row["indices"]
            for n in marks_of(run["rows"])
            for by in ("top1", "loss")
            for row in own_front(run["rows"][:n], by)
        ]
        wanted += run.get("rescored_front", [])
    yard.score(wanted)
    corner = min(yard.top1(indices) for indices in line)
    low, budget = bench.budgets[0].reachable()[0], args.budget_gflops
    return {
        "corner": corner, "lowest_gflops": low, "plain": yard.top1(wanted[0]), "cheapest": yard.top1(wanted[1]),
        "uniform": {str(i): [yard.top1(i), float(bench.budgets[0].costs(np.array([i]))[0])] for i in line},
        "yardstick_images": yard.images, "scored": len(yard.known),
        "methods": {name: measure_curve(run, yard, line, low, budget) for name, run in runs.items()},
    }  # fmt: skip


def calibrate(args: argparse.Namespace) -> None:
    """What nets, trials and longer trainings from the base make of some schedules; seed 0.

    Tells how many steps a net of its own needs to come to where shared weights are, and how far schedules differ.
    """
    folder = args.work / args.backbone / "seed-0"
    folder.mkdir(parents=True, exist_ok=True)
    bench = make_bench(args, 0)
    nets = Nets(bench, folder, 0, args)
    some = [bench.space.cheapest, *uniform_line(bench)[:1], *bench.space.random(np.random.default_rng(0), 10)]
    evaluator, space = bench.evaluator, bench.space
    print("costs", [f"{cost:.4f}" for cost in bench.budgets[0].costs(np.array(some))])

    def show(name: str, scores: list[Score], seconds: float) -> None:
        print(f"{name}: {seconds / len(scores):.2f} s each, mean {mean(score.loss for score in scores):.3f}")
        print("   ", [f"{score.top1:.1f} {score.loss:.3f}" for score in scores], flush=True)

    yard = Yardstick(bench, nets, folder / "calibration.json", args)
    for name, scorer, images in (
        ("base", evaluator, args.val_images), ("warm", evaluator, args.val_images),
        ("reference", yard.evaluator, yard.images),
    ):  # fmt: skip
        nets.load(name)
        before = time.process_time()
        scores = [scorer.score(space.schedule(indices), images=images) for indices in some]
        show(name, scores, time.process_time() - before)
    trial = [("warm", args.proxy_steps, args.proxy_lr, some)]
    lrs = (args.proxy_lr, 5 * args.proxy_lr)
    alone = [("base", steps, lr, some[:5]) for lr in lrs for steps in args.calibrate_steps]
    for start, steps, lr, taken in trial + alone:
        nets.load(start)
        weights = parameters(evaluator.supernet)
        own = replace(evaluator, settings=bench.settings.model_copy(update={"proxy_steps": steps, "proxy_lr": lr}))
        before = time.process_time()
        scores = [own.evaluate(weights, space.schedule(indices), seed=7).score for indices in taken]
        show(f"{start}, {steps} steps at {lr:g}", scores, time.process_time() - before)


# -- tables and the figure -------------------------------------------------------------------------------------------


def shown(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}" if values else ""


def curves(seeds: dict[str, Any], method: str) -> list[list[dict[str, Any]]]:
    """Of a method, one curve per seed that has it."""
    return [seed["methods"][method]["curve"] for seed in seeds.values() if method in seed["methods"]]


def until_share(curve: list[dict[str, Any]], share: float = 0.95) -> int:
    """The first mark from which on the hypervolume stays at a share of the last one."""
    reached = [point["hypervolume"] >= share * curve[-1]["hypervolume"] for point in curve]
    first = len(curve) - 1
    while first and reached[first - 1]:
        first -= 1
    return curve[first]["trials"]


def time_share(methods: dict[str, Any], method: str, clock: str, key: str) -> float | None:
    """The share of independent training's time after which a method has its final hypervolume; None: never."""
    goal = methods["independent"]["curve"][-1]
    reached = [point[clock] for point in methods[method]["curve"] if point[key] >= goal[key]]
    return reached[0] / goal[clock] if reached else None


def pairs(seeds: dict[str, Any], one: str, other: str) -> list[dict[str, Any]]:
    """The methods of the seeds that have both of two."""
    return [seed["methods"] for seed in seeds.values() if one in seed["methods"] and other in seed["methods"]]


def report(results: dict[str, Any], methods: list[str]) -> None:
    """Tables of all seeds."""
    seeds, console = results["seeds"], Console(width=200)
    marks = [n for n in (5, 10, 20, 30, 40, 50, 60, 100) if n <= results["settings"]["trials"]]
    numbers = [f"{n} trials" for n in marks]
    backbone = results["settings"]["backbone"]
    quality = _table(
        f"{backbone}: hypervolume, points of top-1 over the corner; mean ± sd of {len(seeds)} seeds",
        *numbers, "own, last", "re-scored", "over chance", "by loss, last", "95 % from", "s", "s, wall", "proposals",
    )  # fmt: skip
    for method in methods:
        of = [seed["methods"][method] for seed in seeds.values() if method in seed["methods"]]
        if not of:
            continue
        name = method if len(of) == len(seeds) else f"{method} ({len(of)} of {len(seeds)} seeds)"
        last = [run["curve"][-1] for run in of]
        cells = [shown(_at([run["curve"] for run in of], n, "hypervolume")) for n in marks]
        if method == "uniform":
            cells = [shown([p["hypervolume"] for p in last]), *cells[1:]]
        quality.add_row(
            name, *cells, shown([p["own"] for p in last]), shown([r["rescored"] for r in of if "rescored" in r]),
            shown([p["over_chance"] for p in last]), shown([p["by_loss"] for p in last], 3),
            shown([float(until_share(run["curve"])) for run in of], 0), shown([p["processor"] for p in last], 0),
            shown([p["wall"] for p in last], 0), shown([float(run["proposals"]) for run in of], 0),
        )  # fmt: skip
    console.print(quality)
    against = _table(
        "share of independent training's time until its final hypervolume, seed by seed",
        "thread", "wall", "over chance", "by loss", "last hypervolume less its", "by loss",
    )  # fmt: skip
    for method in (m for m in methods if m != "independent" and pairs(seeds, m, "independent")):
        both, told = pairs(seeds, method, "independent"), []
        for clock, key in (("processor", "hypervolume"), ("wall", "hypervolume"), ("processor", "over_chance"),
                           ("processor", "by_loss")):  # fmt: skip
            shares = [time_share(m, method, clock, key) for m in both]
            told.append(", ".join("never" if share is None else f"{share:.2f}" for share in shares))
        gaps = [
            shown([m[method]["curve"][-1][key] - m["independent"]["curve"][-1][key] for m in both], digits)
            for key, digits in (("hypervolume", 2), ("by_loss", 3))
        ]
        against.add_row(method, *told, *gaps)
    console.print(against)
    paired = _table("less default, seed by seed", *numbers, "by loss, last")
    for method in (m for m in methods if m not in ("default", "uniform") and pairs(seeds, m, "default")):
        both = pairs(seeds, method, "default")
        cells = []
        for n in marks:
            own, its = (_at([m[name]["curve"] for m in both], n, "hypervolume") for name in (method, "default"))
            cells.append(shown([a - b for a, b in zip(own, its, strict=True)]))
        last = [m[method]["curve"][-1]["by_loss"] - m["default"]["curve"][-1]["by_loss"] for m in both]
        paired.add_row(method, *cells, shown(last, 3))
    console.print(paired)
    for name, seed in seeds.items():
        console.print(
            f"seed {name}: plain {seed['plain']:.1f}, cheapest {seed['cheapest']:.1f}, corner {seed['corner']:.1f}; "
            + ", ".join(f"{top1:.1f} at {cost:.4f}" for top1, cost in seed["uniform"].values())
        )


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in ("method", *headings):
        table.add_column(heading, justify="right")
    return table


def _at(curves_of: list[list[dict[str, Any]]], trials: int, key: str) -> list[float]:
    """What the curves have after a number of trials; nothing unless all have it."""
    values = [point[key] for curve in curves_of for point in curve if point["trials"] == trials]
    return values if len(values) == len(curves_of) else []


STYLES = {
    "default": ("#0072B2", "solid", 3.5), "surrogate": ("#009E73", "solid", 2.5), "gp": ("#CC79A7", "solid", 2),
    "nsga2": ("#E69F00", "solid", 2), "by loss": ("#56B4E9", "dot", 2.5),
    "random": ("#7F7F7F", "solid", 2), "no start": ("#56B4E9", "dash", 2.5),
    "script": ("#E69F00", "dash", 2.5), "uniform": ("#000000", "dot", 2), "independent": ("#D55E00", "solid", 3.5),
}  # fmt: skip
"""Colour (Okabe and Ito), dash and width."""
NAMES = {
    "default": "ltmsearch", "no start": "without first trials", "script": "Optuna script", "nsga2": "NSGA-II",
    "by loss": "told loss",
    "gp": "GP", "uniform": "uniform ratios", "independent": "independent training",
}  # fmt: skip
BANDS = ("default", "independent")


def draw(results: dict[str, Any]) -> go.Figure:
    """Hypervolume against trials and seconds: means, for two methods a band of one sd. Methods that every seed has."""
    seeds, trials = results["seeds"], results["settings"]["trials"]
    figure = make_subplots(
        1, 2, subplot_titles=("by trained trials", "by time"), shared_yaxes=True, horizontal_spacing=0.04
    )
    longest = max(run["curve"][-1]["processor"] for seed in seeds.values() for run in seed["methods"].values())
    for method, (color, dash, width) in STYLES.items():
        of = curves(seeds, method)
        if len(of) < len(seeds):
            continue
        marks = [p["trials"] for p in of[0] if all(p["trials"] in {q["trials"] for q in curve} for curve in of)]
        at = [[next(p for p in curve if p["trials"] == n) for curve in of] for n in marks]
        if method == "uniform":
            at = [[curve[-1] for curve in of]] * 2
        middle = [mean(p["hypervolume"] for p in points) for points in at]
        spread = [stdev(p["hypervolume"] for p in points) if len(points) > 1 else 0.0 for points in at]
        seconds = [mean(p["processor"] for p in points) for points in at]
        for col, x in ((1, marks), (2, seconds)):
            if method == "uniform":
                x = [MARKS[0], trials] if col == 1 else [seconds[0], longest]
            if method in BANDS:
                figure.add_trace(
                    go.Scatter(
                        x=[*x, *reversed(x)], fill="toself", fillcolor=color, opacity=0.15, mode="lines",
                        line={"width": 0}, y=[m + s for m, s in zip(middle, spread, strict=True)]
                        + [m - s for m, s in zip(reversed(middle), reversed(spread), strict=True)],
                        showlegend=False, hoverinfo="skip",
                    ), row=1, col=col,
                )  # fmt: skip
            figure.add_trace(
                go.Scatter(
                    x=x, y=middle, mode="lines", name=NAMES.get(method, method), showlegend=col == 1,
                    legendgroup=method, line={"color": color, "dash": dash, "width": width},
                ), row=1, col=col,
            )  # fmt: skip
    figure.update_xaxes(title="trained trials", row=1, col=1)
    figure.update_xaxes(
        title="seconds of one thread (log)", type="log", row=1, col=2,
        tickvals=[n * 10**power for power in range(4) for n in (1, 2, 5)],
    )  # fmt: skip
    figure.update_yaxes(title="hypervolume (mean points of top-1)", row=1, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(
        title=f"Fronts found, {results['settings']['backbone']}: means of {len(seeds)} seeds, bands ± 1 sd",
        template="plotly_white", font={"size": 13}, margin={"l": 70, "r": 20, "t": 80, "b": 60},
        legend={"orientation": "h", "y": -0.18, "x": 0.5, "xanchor": "center"},
    )  # fmt: skip
    return figure


def main() -> None:
    """Run what is missing, print the tables, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where nets and trials are kept")
    parser.add_argument("--backbone", default="mobilevit_xxs")
    parser.add_argument("--budget-gflops", type=float, default=0.019)
    parser.add_argument("--img-size", type=int, default=64, help="of costs and trials")
    parser.add_argument("--clean-digits", action="store_true", help="digits without clutter")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--base-steps", type=int, default=500)
    parser.add_argument("--base-lr", type=float, default=1e-3)
    parser.add_argument("--one-base", action="store_true", help="one base net for all seeds")
    parser.add_argument("--sandwich-steps", type=int, default=60)
    parser.add_argument("--sandwich-lr", type=float, default=3e-4)
    parser.add_argument("--proxy-steps", type=int, default=3)
    parser.add_argument("--proxy-lr", type=float, default=2e-4)
    parser.add_argument("--independent-steps", type=int, default=12)
    parser.add_argument("--independent-lr", type=float, default=2e-4)
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--val-images", type=int, default=128)
    parser.add_argument("--yardstick-steps", type=int, default=80)
    parser.add_argument("--yardstick-images", type=int, default=400)
    parser.add_argument("--report", action="store_true", help="run nothing: of the methods, those that there are")
    parser.add_argument("--calibrate", action="store_true", help="compare starts and steps on seed 0, and end")
    parser.add_argument("--calibrate-steps", type=int, nargs="+", default=[12, 36])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.calibrate:
        calibrate(args)
        return
    path = args.out / "search_quality.json"
    everything = json.loads(path.read_text()) if path.exists() else {}
    settings = {name: deepcopy(value) for name, value in vars(args).items() if name not in ("work", "out", "report")}
    results: dict[str, Any] = {
        "settings": settings, "seeds": {}, "versions": dict(library_versions()),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "threads": torch.get_num_threads()},
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        results["seeds"][str(seed)] = run_seed(seed, args)
        write_atomic(path, json.dumps(everything | {args.backbone: results}, indent=1) + "\n")
    report(results, args.methods)
    stem = f"search_quality-{args.backbone}"
    written = write_drawing(draw(results), args.out, stem, title="How good a front a search finds", height=560)
    print(f"written: {path}, {', '.join(str(each) for each in written.paths)}", written.note or "")


if __name__ == "__main__":
    main()
