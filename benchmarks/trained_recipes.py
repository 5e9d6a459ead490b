"""Top-1 of recipes trained by `ltmsearch train`, from scratch and fine-tuned, with and without the IB loss.

Claim:    at this size neither merging, nor the search, nor the IB loss at its published setting gains top-1.
Command:  python benchmarks/trained_recipes.py --work FOLDER --data-dir IMAGES
Duration: ten hours of two cores
Result:   benchmarks/results/trained_recipes.json
Page:     docs/benchmarks/training.md

For the digits and an image folder: the unmerged net, uniform `ltm`, `tome` and `pool`, and the schedule that `ltmsearch
run` finds at the cost of uniform `ltm`; each trained from scratch with merging in the loop, and fine-tuned from a
trained base; each with and without the IB loss. The same recipe throughout. Scores are those of the last epoch on all
validation images, by which nothing was chosen. Trainings run side by side, one thread each.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from harness.arguments import add_data_dir, add_seeds, add_work, benchmark_parser, parse
from harness.commands import call_ltmsearch
from harness.records import settings_of, write_results
from harness.statistics import differences, mean_sd
from harness.tables import print_table

from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.training.epoch_records import read_log

NETS = ("unmerged", "ltm", "tome", "pool", "searched")
COMMON = (
    "--no-model-ema --aa none --reprob 0 --color-jitter 0 --scale 0.35 1 --batch-size 32 --warmup-lr 1e-4 --min-lr 2e-5"
)
STARTS = {"scratch": (5, "--warmup-epochs 1 --lr 1e-3"), "fine-tuned": (2, "--warmup-epochs 0 --lr 3e-4")}
"""Epochs and further options."""
BASE_EPOCHS = 8
"""Epochs of the base that is fine-tuned."""
IB = {"off": (0.0, 1.0), "0.1": (0.1, 1.0)}
"""Weight and sharpness (β) of the IB loss: none, and the published ones."""
SHARP_IB = {"1, β 10": (1.0, 10.0), "10, β 10": (10.0, 10.0)}
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
    def folder(self) -> str:
        """Name of its folder."""
        parts = (self.data, self.net, self.start, f"ib {self.ib}", f"seed {self.seed}")
        return "-".join(part.replace(", β", " beta").replace(" ", "_") for part in parts)


class Trainings:
    """Recipes, trainings and their scores."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.datasets, self.classes = {"digits": list[str]()}, {"digits": 10}
        if args.data_dir:
            self.datasets["folder"] = ["--data-dir", str(args.data_dir)]
            self.classes["folder"] = len([path for path in (args.data_dir / "train").iterdir() if path.is_dir()])

    def recipe(self, data: str, net: str) -> Path:
        """File of a recipe; made where it is missing."""
        path = self.work / f"{data}-{net}.yaml"
        if path.exists():
            return path
        if net == "searched":
            self._search(data).save(path)
            return path
        args, operator = self.args, "ltm" if net == "unmerged" else net
        costs = backbone_costs(args.backbone, args.img_size, operator, num_classes=self.classes[data])
        ratio = 1.0 if net == "unmerged" else args.keep
        schedule = MergeSchedule.uniform(costs.layers, ratio, operator)
        recipe = Recipe(
            model=f"ltm_{args.backbone}",
            schedule=schedule,
            img_size=args.img_size,
            num_classes=self.classes[data],
            provenance={"gflops": costs.macs(schedule) / GIGA},
        )
        recipe.save(path)
        return path

    def gflops(self, data: str, net: str) -> float:
        """Cost of a recipe."""
        return load_recipe(self.recipe(data, net)).provenance["gflops"]

    def _search(self, data: str) -> Recipe:
        """Recipe of the best of a front within the cost of uniform `ltm`."""
        args, run, size = self.args, self.work / f"search-{data}", str(self.args.img_size)
        if not (run / "front.csv").exists():
            budget = f"{self.gflops(data, 'ltm') + 5e-5:.4f}"
            command = ["run", "--backbone", args.backbone, "--budget-gflops", budget, "--out", str(run)]
            command += ["--img-size", size, "--proxy-img-size", size, "--trials", str(args.trials)]
            call_ltmsearch([*command, *self.datasets[data]], run.with_suffix(".log"))
        call_ltmsearch(["export", str(run), "--top", "1"], run.with_suffix(".log"))
        (exported,) = run.glob("export/*/recipe.yaml")
        return load_recipe(exported)

    def jobs(self) -> Iterator[Job]:
        """Every training but those of the bases."""
        nets, seeds = self.args.nets, range(self.args.seeds)
        for ib, seed, start, data, net in product(IB, seeds, STARTS, self.datasets, nets):
            yield Job(data, net, start, ib, seed)
        for seed, ib in product(seeds if "ltm" in nets else (), SHARP_IB):
            yield Job(list(self.datasets)[-1], "ltm", "scratch", ib, seed)

    def base(self, data: str, seed: int) -> Job:
        """Training of the base of a seed."""
        return Job(data, "base", "scratch", "off", seed)

    def train(self, jobs: list[Job]) -> None:
        """Run the trainings that are missing, `--jobs` at a time."""
        for job in jobs:
            self.recipe(job.data, "unmerged" if job.net == "base" else job.net)
        with ThreadPoolExecutor(self.args.jobs) as pool:
            list(pool.map(self._train, jobs))

    def _train(self, job: Job) -> None:
        out, args = self.work / job.folder, self.args
        epochs, options = STARTS[job.start]
        epochs = BASE_EPOCHS if job.net == "base" else epochs
        if (out / "log.csv").exists() and read_log(out / "log.csv")[-1].epoch >= epochs:
            return
        recipe = self.recipe(job.data, "unmerged" if job.net == "base" else job.net)
        weight, beta = (IB | SHARP_IB)[job.ib]
        command = ["train", str(recipe), *self.datasets[job.data], "--out", str(out), "--resume", "--quiet"]
        command += ["--seed", str(job.seed), *COMMON.split(), "--epochs", str(epochs), *options.split()]
        command += ["--train-steps-per-epoch", str(args.steps), "--ib-weight", str(weight), "--ib-beta", str(beta)]
        command += args.train_options.split()
        if job.start == "fine-tuned":
            command += ["--init", str(self.work / self.base(job.data, job.seed).folder / "last.safetensors")]
        call_ltmsearch(command, out.with_suffix(".log"), threads=1)
        print(f"{job.folder}: {self.top1(job):.1f}", flush=True)

    def top1(self, job: Job) -> float:
        """Top-1 of the last epoch."""
        return read_log(self.work / job.folder / "log.csv")[-1].top1

    def scores(self, data: str, net: str, start: str, ib: str) -> list[float]:
        """Top-1 of each seed."""
        return [self.top1(Job(data, net, start, ib, seed)) for seed in range(self.args.seeds)]

    def rows(self, data: str) -> Iterator[list[str]]:
        """Table rows: top-1, and in brackets the difference to the unmerged net of the same seed."""
        for net, ib in product(self.args.nets, IB):
            cells = []
            for start in STARTS:
                scores = self.scores(data, net, start, ib)
                gap = differences(scores, self.scores(data, "unmerged", start, ib))
                cells.append(mean_sd(scores) + ("" if net == "unmerged" else f" ({mean_sd(gap, sign=True)})"))
            yield [f"{data}, {net}, IB {ib}", f"{self.gflops(data, net):.5f}", *cells]


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_work(parser)
    add_data_dir(parser)
    add_seeds(parser, 3)
    parser.add_argument("--backbone", default="mobilevit_xxs")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--keep", type=float, default=0.5, help="keep ratio of the uniform schedules")
    parser.add_argument("--steps", type=int, default=48, help="steps of an epoch")
    parser.add_argument("--trials", type=int, default=24, help="trials of the search")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    parser.add_argument("--train-options", default="", help="further options of `ltmsearch train`, in one string")
    small = {"nets": ["unmerged"], "seeds": 1, "steps": 1, "train_options": "--epochs 1 --warmup-epochs 0"}
    args = parse(parser, **small)
    if "unmerged" not in args.nets:
        parser.error("`--nets` must include unmerged, which the differences are to")
    trainings = Trainings(args)
    jobs = list(trainings.jobs())
    trainings.train([trainings.base(data, seed) for data, seed in product(trainings.datasets, range(args.seeds))])
    trainings.train(jobs)
    rows = [row for data in trainings.datasets for row in trainings.rows(data)]
    last = list(trainings.datasets)[-1]
    for ib in SHARP_IB if "ltm" in args.nets else ():
        cells = [f"{trainings.gflops(last, 'ltm'):.5f}", mean_sd(trainings.scores(last, "ltm", "scratch", ib)), ""]
        rows.append([f"{last}, ltm, IB {ib}", *cells])
    title = f"{args.backbone} at {args.img_size} px: top-1, mean ± sd of {args.seeds} seeds (less the unmerged net)"
    print_table(title, ("net", "GFLOPs", *STARTS), rows)
    recipes = {f"{job.data} {job.net}": load_recipe(trainings.recipe(job.data, job.net)) for job in jobs}
    write_results(
        args.out / "trained_recipes.json",
        settings=settings_of(args),
        runs=[{**asdict(job), "top1": trainings.top1(job)} for job in jobs],
        schedules={
            name: {"keep_ratios": dict(each.schedule.keep_ratios), "forms": dict(each.schedule.forms)}
            for name, each in recipes.items()
        },
    )


if __name__ == "__main__":
    main()
