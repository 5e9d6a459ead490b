"""What merging costs in accuracy at equal GFLOPs, trained by the command line alone.

    python benchmarks/training.py --work trainings/bench --data-dir my-images

For the built-in digits and an image folder: the unmerged base, uniform `ltm`, `tome` and `pool`, and the schedule that
`ltmsearch run` finds at the cost of uniform `ltm`; each trained from scratch with merging in the loop, and fine-tuned
from a trained base; each with and without the IB loss; three seeds. Same recipe throughout. Scores are those of the
last epoch on all validation images, which nothing was chosen on.

The whole takes hours of one core at the default size; finished trainings are kept in --work, so that it can be stopped
and started. Two trainings run side by side, one thread each.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from ltmsearch.config.recipe import Recipe, library_versions, load_recipe
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.io.files import write_atomic
from ltmsearch.training.epoch_records import read_log

RESULTS = Path(__file__).parent / "results" / "training.json"
NETS = ("base", "ltm", "tome", "pool", "searched")
COMMON = [
    "--no-model-ema", "--aa", "none", "--reprob", "0", "--color-jitter", "0", "--scale", "0.35", "1",
    "--batch-size", "32", "--warmup-lr", "1e-4", "--min-lr", "2e-5",
]  # fmt: skip
STARTS = {
    "scratch": ["--epochs", "5", "--warmup-epochs", "1", "--lr", "1e-3"],
    "fine-tuned": ["--epochs", "2", "--warmup-epochs", "0", "--lr", "3e-4"],
}
BASE = ["--epochs", "8", "--warmup-epochs", "1", "--lr", "1e-3", "--ib-weight", "0"]
"""The base that is fine-tuned from."""
IB = {"off": (0.0, 1.0), "0.1": (0.1, 1.0)}
"""Weight and sharpness (β) of the IB loss: none, and the published ones."""
MORE_IB = {"1, β 10": (1.0, 10.0), "10, β 10": (10.0, 10.0)}
"""Further ones, for uniform `ltm` from scratch."""


@dataclass(frozen=True)
class Job:
    """One training."""

    data: str
    net: str
    start: str
    ib: str
    seed: int

    @property
    def name(self) -> str:
        """Folder of the training."""
        parts = (self.data, self.net, self.start, f"ib {self.ib}", f"seed {self.seed}")
        return "-".join(part.replace(", β", " beta").replace(" ", "_") for part in parts)


def main() -> None:
    """Run what is missing, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where trainings are kept")
    parser.add_argument("--data-dir", type=Path, help="image folder; without it the digits alone")
    parser.add_argument("--backbone", default="mobilevit_xxs")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--keep", type=float, default=0.5, help="uniform keep ratio")
    parser.add_argument("--steps", type=int, default=48, help="steps of an epoch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=24, help="of the search")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS, help="the rest can follow in another run")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    datasets = {"digits": []} | ({"folder": ["--data-dir", str(args.data_dir)]} if args.data_dir else {})
    classes = {"digits": 10}
    if args.data_dir:
        classes["folder"] = len([p for p in (args.data_dir / "train").iterdir() if p.is_dir()])
    bench = Bench(args, datasets, classes)
    for data in datasets:
        bench.write_recipes(data)
        if "searched" in args.nets:
            bench.search(data)
    jobs = list(bench.jobs())
    bench.train([job for job in jobs if job.net == "trained base"])
    bench.train([job for job in jobs if job.net != "trained base"])
    bench.report(jobs)


class Bench:
    """The trainings and what came of them."""

    def __init__(self, args: argparse.Namespace, datasets: dict[str, list[str]], classes: dict[str, int]) -> None:
        self.args, self.datasets, self.classes = args, datasets, classes
        self.gflops: dict[tuple[str, str], float] = {}

    def write_recipes(self, data: str) -> None:
        """One recipe per net that is not searched."""
        args = self.args
        for net in (net for net in args.nets if net != "searched"):
            operator = "ltm" if net == "base" else net
            costs = backbone_costs(args.backbone, args.img_size, operator, num_classes=self.classes[data])
            schedule = {} if net == "base" else dict.fromkeys(costs.layer_grids, args.keep)
            recipe = Recipe(
                model=f"ltm_{args.backbone}", operator=operator, schedule=schedule, img_size=args.img_size,
                num_classes=self.classes[data],
            )  # fmt: skip
            recipe.save(self.recipe(data, net))
            self.gflops[data, net] = costs.macs(recipe.schedule) / GIGA

    def search(self, data: str) -> None:
        """The recipe of the best of a search's front within the cost of uniform `ltm`."""
        args = self.args
        run, budget = args.work / f"search-{data}", self.gflops[data, "ltm"] + 5e-5
        if not (run / "front.csv").exists():
            command = ["run", "--backbone", args.backbone, "--budget-gflops", f"{budget:.4f}", "--out", str(run)]
            command += ["--img-size", str(args.img_size), "--proxy-img-size", str(args.img_size)]
            command += ["--trials", str(args.trials), *self.datasets[data]]
            self.call(command, run.with_suffix(".log"), threads=2)
        self.call(["export", str(run), "--top", "1"], run.with_suffix(".log"))
        (exported,) = run.glob("export/*/recipe.yaml")
        found = load_recipe(exported)
        found.save(self.recipe(data, "searched"))
        self.gflops[data, "searched"] = found.provenance["gflops"]

    def recipe(self, data: str, net: str) -> Path:
        """File of a recipe."""
        return self.args.work / f"{data}-{net}.yaml"

    def jobs(self) -> Iterator[Job]:
        """Every training, bases to be fine-tuned first."""
        for data in self.datasets:
            for seed in range(self.args.seeds):
                yield Job(data, "trained base", "scratch", "off", seed)
        for ib in IB:
            for seed in range(self.args.seeds):
                for start in STARTS:
                    for data in self.datasets:
                        for net in self.args.nets:
                            yield Job(data, net, start, ib, seed)
        for seed in range(self.args.seeds if "ltm" in self.args.nets else 0):
            for ib in MORE_IB:
                yield Job(list(self.datasets)[-1], "ltm", "scratch", ib, seed)

    def train(self, jobs: list[Job]) -> None:
        """Run what has not been run, `--jobs` at a time."""
        with ThreadPoolExecutor(self.args.jobs) as pool:
            list(pool.map(self.train_one, jobs))

    def train_one(self, job: Job) -> None:
        """One training from the command line."""
        out = self.args.work / job.name
        base = job.net == "trained base"
        keys = BASE if base else STARTS[job.start]
        command = ["train", str(self.recipe(job.data, "base" if base else job.net)), *self.datasets[job.data]]
        command += ["--out", str(out), "--resume", "--quiet", "--seed", str(job.seed), *COMMON, *keys]
        command += ["--train-steps-per-epoch", str(self.args.steps)]
        if not base:
            weight, beta = (IB | MORE_IB)[job.ib]
            command += ["--ib-weight", str(weight), "--ib-beta", str(beta)]
        if job.start == "fine-tuned":
            start = Job(job.data, "trained base", "scratch", "off", job.seed)
            command += ["--init", str(self.args.work / start.name / "last.safetensors")]
        if not (out / "log.csv").exists() or read_log(out / "log.csv")[-1].epoch < int(
            keys[keys.index("--epochs") + 1]
        ):
            self.call(command, out.with_suffix(".log"))
            print(f"{job.name}: {self.top1(job):.1f}", flush=True)

    def call(self, command: list[str], log: Path, *, threads: int = 1) -> None:
        """`ltmsearch` with its output in a file; an error ends everything."""
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with log.open("a") as stream:
            print("$ ltmsearch", *command, file=stream, flush=True)
            done = subprocess.run(
                [sys.executable, "-m", "ltmsearch", *command], stdout=stream, stderr=subprocess.STDOUT, env=environment
            )
        if done.returncode:
            raise SystemExit(f"ltmsearch {command[0]} ended with {done.returncode}: see {log}")

    def top1(self, job: Job) -> float:
        """Of the last epoch."""
        return read_log(self.args.work / job.name / "log.csv")[-1].top1

    def report(self, jobs: list[Job]) -> None:
        """Tables and JSON."""
        args = self.args
        groups: dict[tuple[str, str, str, str], list[float]] = {}
        for job in jobs:
            groups.setdefault((job.data, job.start, job.net, job.ib), []).append(self.top1(job))
        console = Console()
        for data in self.datasets:
            for what, against in (("top-1, mean ± sd over seeds", None), ("less the base of the same seed", "base")):
                table = Table(title=f"{args.backbone} at {args.img_size} px, {data}: {what}")
                for heading in ("net", "GFLOPs", *(f"{start}, IB {ib}" for start in STARTS for ib in IB)):
                    table.add_column(heading, justify="right")
                for net in args.nets:
                    cells = []
                    for start in STARTS:
                        for ib in IB:
                            scores = groups[data, start, net, ib]
                            other = groups[data, start, against, ib] if against else [0.0] * len(scores)
                            cells.append(shown([a - b for a, b in zip(scores, other, strict=True)]))
                    table.add_row(net, f"{self.gflops[data, net]:.5f}", *cells)
                console.print(table)
            console.print("trained base:", shown(groups[data, "scratch", "trained base", "off"]))
        last = list(self.datasets)[-1]
        for ib in (*IB, *MORE_IB):
            if (last, "scratch", "ltm", ib) in groups:
                scores = shown(groups[last, "scratch", "ltm", ib])
                console.print(f"uniform ltm, {last}, from scratch, IB {ib}: {scores}")
        runs = [{**asdict(job), "top1": self.top1(job), "gflops": self.gflops.get((job.data, job.net))} for job in jobs]
        settings = {name: str(value) for name, value in vars(self.args).items() if name not in ("work", "data_dir")}
        recipes = {f"{data} {net}": load_recipe(self.recipe(data, net)) for data in self.datasets for net in args.nets}
        content = {
            "settings": settings, "common": COMMON, "starts": STARTS, "base": BASE, "runs": runs,
            "schedules": {name: {"keep_ratios": r.schedule, "forms": r.forms} for name, r in recipes.items()},
            "versions": dict(library_versions()),
        }  # fmt: skip
        RESULTS.parent.mkdir(exist_ok=True)
        write_atomic(RESULTS, json.dumps(content, indent=1, default=dict) + "\n")


def shown(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}"


if __name__ == "__main__":
    main()
