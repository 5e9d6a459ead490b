"""Networks trained from scratch with merging in the loop: every operator and form against the unmerged network.

Claim:    whether merging in training gains or loses top-1 in a network that learns its task, by operator and form.
Command:  python benchmarks/merging_from_scratch.py --work FOLDER
Duration: about an hour and a half, two trainings side by side
Result:   benchmarks/results/merging_from_scratch.json
Page:     docs/benchmarks/training.md

All networks train by the same recipe on the built-in digits, with the same images in the same order for each seed,
until the unmerged one is above 90 %. Merging networks have one keep ratio in all layers, fitted to the same share of
the unmerged network's multiply-adds; masks are counted. The score is that of the last epoch on all validation images.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from harness.arguments import add_seeds, add_work, benchmark_parser, parse
from harness.commands import call_ltmsearch
from harness.operator_nets import OperatorNet, operator_nets
from harness.records import settings_of, write_results
from harness.statistics import differences, mean_interval, mean_sd
from harness.tables import print_table

from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.training.epoch_records import read_log

UNMERGED = "unmerged"
TRAINING = (
    "--no-model-ema --aa none --reprob 0 --color-jitter 0 --mixup 0 --cutmix 0 --ib-weight 0 --batch-size 32 "
    "--warmup-epochs 1 --lr 1e-3 --min-lr 2e-5 --warmup-lr 1e-4"
)
CLASSES = 10


class Trainings:
    """Recipes and trainings, by net and seed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.nets = {UNMERGED: None, **{str(net): net for net in args.nets}}

    def recipe(self, name: str) -> Path:
        """File of a net's recipe; made where it is missing."""
        path = self.work / f"{name.replace(' ', '-')}.yaml"
        if not path.exists():
            net: OperatorNet | None = self.nets[name]
            operator = net.operator if net else "ltm"
            costs = backbone_costs(self.args.backbone, self.args.img_size, operator, num_classes=CLASSES)
            schedule = net.schedule(costs, self.args.share) if net else MergeSchedule.uniform(costs.layers, 1.0)
            about = {"gflops": costs.gflops(schedule), "plain_gflops": costs.base / GIGA}
            fixed = {"img_size": self.args.img_size, "num_classes": CLASSES, "provenance": about}
            Recipe(model=f"ltm_{self.args.backbone}", schedule=schedule, **fixed).save(path)
        return path

    def folder(self, name: str, seed: int) -> Path:
        return self.work / f"{name.replace(' ', '-')}-{seed}"

    def train(self, name: str, seed: int) -> None:
        """Train a net, or continue where a stopped call ended."""
        out, args = self.folder(name, seed), self.args
        if not (out / "log.csv").exists() or read_log(out / "log.csv")[-1].epoch < args.epochs:
            command = ["train", str(self.recipe(name)), "--out", str(out), "--resume", "--quiet", *TRAINING.split()]
            command += ["--seed", str(seed), "--epochs", str(args.epochs), "--train-steps-per-epoch", str(args.steps)]
            call_ltmsearch(command + args.train_options.split(), out.with_suffix(".log"), threads=1)
        print(f"{name}, seed {seed}: {self.top1(name, seed):.1f}", flush=True)

    def top1(self, name: str, seed: int) -> float:
        """Top-1 of the last epoch, in percent."""
        return read_log(self.folder(name, seed) / "log.csv")[-1].top1

    def scores(self, name: str) -> list[float]:
        return [self.top1(name, seed) for seed in range(self.args.seeds)]


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_work(parser)
    add_seeds(parser, 3)
    parser.add_argument("--backbone", default="mobilevit_xxs")
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--share", type=float, default=0.85, help="cost over that of the unmerged net")
    parser.add_argument("--nets", nargs="+", default=["ltm", "select", "tome", "pool"], metavar="OPERATOR[:FORM]")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100, help="steps of an epoch")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--train-options", default="", help="further options of `ltmsearch train`, in one string")
    args = parse(parser, nets=["ltm:matched"], seeds=1, steps=1, epochs=1, train_options="--warmup-epochs 0")
    args.nets = operator_nets(args.nets)
    trainings = Trainings(args)
    for name in trainings.nets:
        trainings.recipe(name)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(
            pool.map(lambda job: trainings.train(*job), [(n, s) for s, n in product(range(args.seeds), trainings.nets)])
        )
    results, rows = {}, []
    for name in trainings.nets:
        scores, about = trainings.scores(name), load_recipe(trainings.recipe(name)).provenance
        gap = differences(scores, trainings.scores(UNMERGED))
        results[name] = {**about, "top1": scores, "less_unmerged": gap}
        rows.append(
            [name, f"{about['gflops']:.5f}", mean_sd(scores), "" if name == UNMERGED else mean_interval(gap, 1)]
        )
    title = f"{args.backbone} at {args.img_size} px, {args.epochs} × {args.steps} steps, {args.seeds} seeds"
    print_table(title, ("net", "GFLOPs", "top-1, mean ± sd", "less unmerged, 95 % interval"), rows)
    settings = {**settings_of(args), "nets": list(trainings.nets)}
    write_results(args.out / "merging_from_scratch.json", settings=settings, results=results)


if __name__ == "__main__":
    main()
