"""Is a searched schedule better than a uniform one, and than one learned by gradient, at equal GFLOPs?

    python benchmarks/better_schedules.py --work schedules --data-dir my-images [--cases mobilevit_xs:folder …]

For every backbone and data set the same short training, from the same trained unmerged base, of

    base              the unmerged net
    ltm, tome, pool   uniform: one ratio at all layers, in a ViT, where merges accumulate, at three evenly spaced ones
    ltm matched       in a ViT: the uniform schedule in the form that suits trained ViTs best
    learned           by gradient under a FLOPs penalty, the way of DiffRate and LTMP: see learned_schedule.py
    searched          the best point of the front of `ltmsearch run` under the target
    searched in range the same of another search, for the budgets from 0.95 of the target on: where top-1 cannot tell
                      schedules apart, a front of top-1 and cost ends in a point that is much cheaper than it need be

Wanted is 0.7 of the plain net's GFLOPs, or where merging cannot save that much, a third of the way from the least that
the search space reaches up to the plain net. Grids of tokens make costs jump, so the target is the cost of that uniform
`ltm` (its ratio a real number) which comes closest to what is wanted. No other contender may exceed it; ratios of
uniform `tome` and `pool` are those that come closest to it. Search and learning see the base of seed 0 alone.

Scores are of the weights after the last step, on all validation images and, once per training, on a test set that
neither training nor search have seen: the folder's test/ where there is one, 2,000 newly drawn digits. Differences are
between trainings of one seed. `before` is the score of the merged net with the base's weights before it is trained, on
validation images.

A training takes 20 to 40 s of one thread, a base 1 to 10 minutes, a case 15 to 25. Finished parts are kept in --work,
so that the benchmark can be stopped and started; after --minutes no new training begins. Trainings run in this process,
by the steps of `ltmsearch train` on images decoded once. Prints tables and the verdicts; writes JSON and a figure.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from learned_schedule import learn_schedule
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from torch import nn
from training import shown

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe, library_versions, load_recipe
from ltmsearch.costs import GIGA, CostTable, backbone_costs
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.distributed import Ranks
from ltmsearch.engine.evaluation import Score, preserve_batchnorm, recalibrate, score
from ltmsearch.engine.runtime import Runtime, amp_runtime
from ltmsearch.errors import TrainingDiverged
from ltmsearch.io.figures import write_drawing
from ltmsearch.io.files import write_atomic
from ltmsearch.models import get_adapter, input_config
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace, SpaceFile
from ltmsearch.training.builders import make_network, open_data
from ltmsearch.training.learner import Learner
from ltmsearch.training.options import TrainingOptions

RESULTS = Path(__file__).parent / "results"
NETS = ("base", "ltm", "ltm matched", "tome", "pool", "learned", "searched", "searched in range")
COMMON: dict[str, Any] = {
    "model_ema": False, "aa": None, "reprob": 0.0, "color_jitter": 0.0, "scale": (0.35, 1.0), "ib_weight": 0.0,
    "batch_size": 32, "warmup_lr": 1e-4, "min_lr": 2e-5,
}  # fmt: skip
BASE_EPOCHS, BASE_WARMUP = 8, 1
TUNED: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "lr": 3e-4}
TUNED_STEPS = 60
SHARE = 0.7
"""Target cost over that of the plain net, where merging reaches it."""
RANGE = 0.95
"""Share of the target that the range of `searched in range` begins with."""
AIMS = {"ltm": 1.0, "tome": 2.0, "base": -0.5}
"""Points of top-1 by which the searched schedule is to be ahead."""
TEST_DIGITS, TEST_SEED = 2000, 1
SEARCH = [
    "--trials", "24", "--base-steps", "0", "--sandwich-steps", "20", "--batch-size", "32", "--val-images", "512",
    "--rescore-images", "1000", "--calibration-images", "128", "--device", "cpu", "--quiet",
]  # fmt: skip
LEARNING_STEPS, LEARNING_DRAWS = 100, 6
SCORING_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """A backbone on a data set."""

    backbone: str
    data: str
    """`digits` or `folder`."""
    img_size: int
    lr: float = 5e-4
    """Peak learning rate of the base's training."""
    amp: bool = False
    """Whether in bf16 where the processor has it: slower than fp32 in nets that are mostly convolutions."""
    base_steps: int = 240
    bases: int = 3
    """How many bases are trained; with one, seeds share it and differ in what follows."""

    @property
    def name(self) -> str:
        return f"{self.backbone}:{self.data}"


MOBILEVIT = Case(backbone="mobilevit_xs", data="", img_size=64, lr=1e-3)
# After 240 steps it is hardly beyond the most frequent class: one base of its own length stands for three.
VIT = Case(backbone="vit_tiny_patch16_224", data="", img_size=96, amp=True, base_steps=880, bases=1)
EFFICIENTVIT = Case(backbone="efficientvit_b0", data="", img_size=96, base_steps=480)
SWIN = Case(backbone="swin_tiny_patch4_window7_224", data="", img_size=64, amp=True)
CASES = (
    replace(MOBILEVIT, data="folder"), replace(MOBILEVIT, data="digits"), replace(VIT, data="folder"),
    replace(EFFICIENTVIT, data="folder"), replace(EFFICIENTVIT, data="digits"),
    replace(VIT, data="digits"),
    replace(SWIN, data="folder"),
)  # fmt: skip


def main() -> None:
    """Run what is missing, case by case; tables, JSON, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where finished parts are kept")
    parser.add_argument("--data-dir", type=Path, help="image folder; without it the digits alone")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="some of them, in this order")
    parser.add_argument("--starts", nargs="+", choices=("fine-tuned", "scratch"), default=["fine-tuned"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no new training after so many")
    args = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    cases = [by_name[name] for name in args.cases or by_name if args.data_dir or name.endswith(":digits")]
    ends = time.monotonic() + 60 * args.minutes
    trials = [Trials(case, start, args, ends) for start in args.starts for case in cases]
    try:
        for each in trials:
            each.run()
    except OutOfTime:
        print(f"stopped after {args.minutes:g} minutes: the same command goes on")
    report([each for each in trials if each.done], args)


class OutOfTime(Exception):
    """No new training is to begin."""


class Trials:
    """The trainings of one case from one start, and what came of them."""

    def __init__(self, case: Case, start: str, args: argparse.Namespace, ends: float) -> None:
        self.case, self.start, self.ends = case, start, ends
        self.seeds = range(args.seeds)
        self.folder = args.work / case.name.replace(":", "-")
        self.data_dir = args.data_dir if case.data == "folder" else None
        self.folder.mkdir(parents=True, exist_ok=True)
        family = get_adapter(case.backbone).family
        self.nets = [net for net in NETS if net != "ltm matched" or family == "vit"]

    # -- what is trained -----------------------------------------------------------------------------------------

    @cached_property
    def classes(self) -> int:
        """Number of classes."""
        return len([p for p in (self.data_dir / "train").iterdir() if p.is_dir()]) if self.data_dir else 10

    @cached_property
    def space(self) -> tuple[SearchSpace, CostTable]:
        """What the family's file offers here, and what it costs."""
        case = self.case
        costs = backbone_costs(case.backbone, case.img_size, "ltm", num_classes=self.classes)
        file = SpaceFile.load(None, family=get_adapter(case.backbone).family)
        space = SearchSpace.build(file, costs.layer_grids, "ltm", reduces_cost=costs.reduces_cost)
        return space, costs.table(space.choices)

    @cached_property
    def target(self) -> int:
        """Multiply-adds that no contender but the base may exceed: those of uniform `ltm`."""
        _, table = self.space
        low, plain = table.reachable()[0], table.base
        wanted = max(SHARE * plain, low + (plain - low) / 3)
        return min((macs for _, macs in self.uniforms("ltm")), key=lambda macs: abs(macs - wanted))

    def uniform(self, operator: str, form: Form | None = None) -> MergeSchedule:
        """The uniform schedule whose cost comes closest to the target from below."""
        kept = [(each, macs) for each, macs in self.uniforms(operator, form) if macs <= self.target]
        return max(kept, key=lambda pair: pair[1])[0]

    def uniforms(self, operator: str, form: Form | None = None) -> list[tuple[MergeSchedule, int]]:
        """Uniform schedules and their costs, dearest first."""
        case = self.case
        costs = backbone_costs(case.backbone, case.img_size, operator, num_classes=self.classes)
        layers = costs.layers
        if get_adapter(case.backbone).family == "vit":
            layers = tuple(layers[len(layers) * quarter // 4] for quarter in (1, 2, 3))
        tried = [MergeSchedule.uniform(layers, place / 200, operator, form) for place in range(199, 19, -1)]
        return [(each, costs.macs(each)) for each in tried]

    def recipe(self, net: str) -> Recipe:
        """Net and cost; made when it is first asked for."""
        path = self.folder / f"{net.replace(' ', '-')}.yaml"
        if not path.exists():
            schedule = self.make_schedule(net)
            costs = backbone_costs(self.case.backbone, self.case.img_size, schedule.operator, num_classes=self.classes)
            Recipe(
                model=f"ltm_{self.case.backbone}", operator=schedule.operator, schedule=dict(schedule.keep_ratios),
                forms=dict(schedule.forms), img_size=self.case.img_size, num_classes=self.classes,
                provenance={"gflops": costs.gflops(schedule), "of_plain": costs.macs(schedule) / costs.base_macs},
                amp=self.case.amp, **COMMON,
            ).save(path)  # fmt: skip
        return load_recipe(path)

    def make_schedule(self, net: str) -> MergeSchedule:
        """The schedule of a contender."""
        if net == "base":
            return MergeSchedule(keep_ratios={})
        if net == "searched":
            return self.search("search", f"{self.target / GIGA:.7f}")
        if net == "searched in range":
            return self.search("search-range", f"{RANGE * self.target / GIGA:.7f}-{self.target / GIGA:.7f}")
        if net == "learned":
            return self.learn()
        operator, _, form = net.partition(" ")
        return self.uniform(operator, "matched" if form else None)

    def search(self, name: str, budget: str) -> MergeSchedule:
        """The best of the front that `ltmsearch run` finds under a budget, from the base of seed 0."""
        run, begun = self.folder / name, time.perf_counter()
        size = str(self.case.img_size)
        command = ["run", "--backbone", self.case.backbone, "--budget-gflops", budget, "--out", str(run), *SEARCH]
        command += ["--img-size", size, "--proxy-img-size", size, "--checkpoint", str(self.base(0))]
        call([*command, *(["--data-dir", str(self.data_dir)] if self.data_dir else [])], run.with_suffix(".log"))
        call(["export", str(run), "--top", "1"], run.with_suffix(".log"))
        self.note_seconds(name, begun)
        (exported,) = run.glob("export/*/recipe.yaml")
        return load_recipe(exported).schedule

    def learn(self) -> MergeSchedule:
        """The schedule learned by gradient, from the same base."""
        space, table = self.space
        begun, case = time.perf_counter(), self.case
        supernet = Supernet(
            case.backbone, checkpoint=self.base(0), num_classes=self.classes, img_size=case.img_size
        )  # fmt: skip
        self.runtime.prepare(supernet)
        batches = self.data.train_batches(batch_size=COMMON["batch_size"], steps=LEARNING_STEPS, seed=99)
        learned = learn_schedule(
            supernet, space, table, self.target, batches, draws=LEARNING_DRAWS, runtime=self.runtime, seed=0
        )  # fmt: skip
        self.note_seconds("learned", begun)
        choices = [[str(choice) for choice in options] for options in space.choices]
        content = {"choices": choices, "probabilities": learned.probabilities, "history": learned.history}
        write_atomic(self.folder / "learned.json", json.dumps(content, indent=1) + "\n")
        return learned.schedule

    def note_seconds(self, what: str, begun: float) -> None:
        """Keep how long something took."""
        write_atomic(self.folder / f"{what}.seconds", f"{time.perf_counter() - begun:.0f}\n")

    # -- on what -------------------------------------------------------------------------------------------------

    @cached_property
    def runtime(self) -> Runtime:
        """On one CPU thread, if the environment says so."""
        return amp_runtime(torch.device("cpu"), amp=self.case.amp, dtype="bfloat16")

    @cached_property
    def data(self) -> ImageData:
        """Training and validation images, decoded once for all trainings of the case."""
        options = TrainingOptions(out=self.folder, dataset=self.case.data, data_dir=self.data_dir)
        return open_data(self.recipe("base"), options, Callbacks())

    @cached_property
    def test(self) -> ImageData | None:
        """As its validation split, the test images; None where a folder has none."""
        place = self.folder / "held-out"
        if self.data_dir is not None:
            if not (self.data_dir / "test").is_dir():
                return None
            place.mkdir(exist_ok=True)
            for name, split in (("train", "validation"), ("validation", "test")):
                if not (place / name).exists():
                    (place / name).symlink_to((self.data_dir / split).resolve())
        return load_data(
            dataset=self.case.data, data_dir=place if self.data_dir else None, img_size=self.case.img_size,
            **input_config(self.case.backbone), val_images=None if self.data_dir else TEST_DIGITS,
            calibration_images=1, seed=TEST_SEED,
        )  # fmt: skip

    # -- training ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train what has not been trained, seed by seed."""
        for seed in self.seeds:
            for net in self.nets:
                if not self.result(net, seed).exists():
                    self.train(net, seed)
        self.__dict__.pop("data", None)  # decoded images: a case is done with them
        self.__dict__.pop("test", None)

    @property
    def done(self) -> list[int]:
        """Seeds of which every training is done."""
        return [seed for seed in self.seeds if all(self.result(net, seed).exists() for net in self.nets)]

    def result(self, net: str, seed: int) -> Path:
        """File of what came of a training."""
        return self.folder / f"{self.start}-{net.replace(' ', '-')}-{seed}.json"

    def scratch_keys(self, seed: int) -> dict[str, Any]:
        """Training keys of the base, and of all nets from scratch."""
        steps = self.case.base_steps // BASE_EPOCHS
        keys = {"epochs": BASE_EPOCHS, "warmup_epochs": BASE_WARMUP, "train_steps_per_epoch": steps}
        return {**keys, "lr": self.case.lr, "seed": seed}

    def base(self, seed: int) -> Path:
        """Weights of the trained unmerged net; trained when first asked for."""
        number = seed % self.case.bases
        path = self.folder / f"trained-base-{number}.safetensors"
        if not path.exists():
            recipe = self.recipe("base").changed(self.scratch_keys(number))
            model = self.new_model(recipe, None)
            self.fit(recipe, model)
            print(f"{self.case.name}, trained base {number}: {self.score(model, self.data).top1:.1f}", flush=True)
            write_atomic(path, pack_weights(model.state_dict(), {}))
        return path

    def train(self, net: str, seed: int) -> None:
        """One training, and its scores into a file."""
        if time.monotonic() > self.ends:
            raise OutOfTime
        tuned, begun = self.start == "fine-tuned", time.perf_counter()
        steps = TUNED_STEPS // TUNED["epochs"]
        # Another seed than the base's, or it would see the base's first images again.
        keys = {**TUNED, "train_steps_per_epoch": steps, "seed": 1000 + seed} if tuned else self.scratch_keys(seed)
        recipe = self.recipe(net).changed(keys)
        model, scores = self.new_model(recipe, self.base(seed) if tuned else None), {}
        if tuned:
            with preserve_batchnorm(model):
                recalibrate(model, self.data.train_batches(batch_size=SCORING_BATCH, steps=4, seed=98), self.runtime)
                scores["before"] = self.score(model, self.data)
        self.fit(recipe, model)
        scores["validation"] = self.score(model, self.data)
        if self.test is not None:
            scores["test"] = self.score(model, self.test)
        content = {name: {k: getattr(s, k) for k in ("top1", "loss", "images")} for name, s in scores.items()}
        content["seconds"] = round(time.perf_counter() - begun, 1)
        write_atomic(self.result(net, seed), json.dumps(content) + "\n")
        said = f"{scores['validation'].top1:.1f} in {content['seconds']:.0f} s"
        print(f"{self.case.name}, {self.start}, {net}, seed {seed}: {said}", flush=True)

    def new_model(self, recipe: Recipe, init: Path | None) -> nn.Module:
        """The recipe's net, fresh or with weights."""
        torch.manual_seed(recipe.seed)
        options = TrainingOptions(out=self.folder, init=init)
        return self.runtime.prepare(make_network(recipe, options, "cpu", Callbacks()))

    def fit(self, recipe: Recipe, model: nn.Module) -> None:
        """What `ltmsearch train` does between its files."""
        assert recipe.train_steps_per_epoch is not None
        learner = Learner(
            recipe, model, runtime=self.runtime, ranks=Ranks(), steps_per_epoch=recipe.train_steps_per_epoch
        )  # fmt: skip
        for epoch in range(recipe.epochs):
            seed = int(np.random.SeedSequence((recipe.seed, epoch)).generate_state(1)[0])
            losses = [
                learner.step(*batch).total
                for batch in self.data.train_batches(
                    batch_size=recipe.batch_size, steps=learner.steps_per_epoch, seed=seed
                )
            ]
            if not torch.stack(losses).isfinite().all():
                raise TrainingDiverged(f"the loss of {recipe.model} is not finite in epoch {epoch + 1}")
            learner.end_epoch()

    def score(self, model: nn.Module, data: ImageData) -> Score:
        """On all validation images of some data."""
        return score(model, data.validation_batches(batch_size=SCORING_BATCH), self.runtime)

    # -- outcome -------------------------------------------------------------------------------------------------

    def values(self, net: str, split: str, key: str = "top1") -> list[float]:
        """Of a contender, seed by seed."""
        return [json.loads(self.result(net, seed).read_text())[split][key] for seed in self.done]

    def less(self, net: str, other: str, split: str, key: str = "top1") -> list[float]:
        """Differences to another contender, seed by seed."""
        pairs = zip(self.values(net, split, key), self.values(other, split, key), strict=True)
        return [a - b for a, b in pairs]

    @property
    def splits(self) -> list[str]:
        """What was scored after training; the last is what the verdicts rest on."""
        known = json.loads(self.result("base", self.done[0]).read_text())
        return [name for name in ("validation", "test") if name in known]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        recipes = {net: self.recipe(net) for net in self.nets}
        seconds = {p.stem: float(p.read_text()) for p in sorted(self.folder.glob("*.seconds"))}
        learned = json.loads((self.folder / "learned.json").read_text())
        front = (self.folder / "search" / "front.csv").read_text().splitlines()
        return {
            "case": asdict(self.case), "start": self.start, "target_gflops": self.target / GIGA,
            "plain_gflops": self.space[1].base / GIGA, "least_gflops": self.space[1].reachable()[0] / GIGA,
            "nets": {
                net: {
                    **recipe.provenance, "operator": recipe.schedule.operator, "keep_ratios": recipe.schedule,
                    "forms": recipe.forms,
                    "runs": [json.loads(self.result(net, seed).read_text()) for seed in self.done],
                }
                for net, recipe in recipes.items()
            },
            "search_front": front, "learned": learned, "seconds": seconds,
        }  # fmt: skip


def call(command: Sequence[str], log: Path) -> None:
    """`ltmsearch` with its output in a file; an error ends everything."""
    with log.open("a") as stream:
        print("$ ltmsearch", *command, file=stream, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "ltmsearch", *command], stdout=stream, stderr=subprocess.STDOUT, env=dict(os.environ)
        )
    if done.returncode:
        raise SystemExit(f"ltmsearch {command[0]} ended with {done.returncode}: see {log}")


def report(trials: Sequence[Trials], args: argparse.Namespace) -> None:
    """Tables, verdicts, JSON and figure."""
    if not trials:
        return
    console = Console(width=150)
    for data, start in dict.fromkeys((each.case.data, each.start) for each in trials):
        group = [each for each in trials if (each.case.data, each.start) == (data, start)]
        for split in group[0].splits:
            console.print(table(group, f"{data}, {start}: top-1 on {split}, mean ± sd over seeds", split))
    for each in trials:
        for line in verdicts(each):
            console.print(line)
    settings = {"seeds": args.seeds, "tuned_steps": TUNED_STEPS, "search": SEARCH, "common": COMMON, "tuned": TUNED}
    settings |= {"learning_steps": LEARNING_STEPS, "learning_draws": LEARNING_DRAWS, "aims": AIMS}
    content = {"settings": settings, "cases": [each.as_dict() for each in trials], "versions": dict(library_versions())}
    RESULTS.mkdir(exist_ok=True)
    write_atomic(RESULTS / "better_schedules.json", json.dumps(content, indent=1) + "\n")
    title = "Schedules at equal GFLOPs"
    written = write_drawing(figure(trials), RESULTS, "better_schedules", title=title, height=height(trials))
    console.print("written:", *map(str, written.paths), written.note or "")


def table(group: Sequence[Trials], title: str, split: str) -> Table:
    """One data set from one start."""
    result = Table(title=title)
    for heading in ("backbone", "net", "GFLOPs", "of plain", "before", "top-1", "loss", "− base", "− ltm", "− tome"):
        result.add_column(heading, justify="left" if heading in ("backbone", "net") else "right")
    for each in group:
        for net in each.nets:
            about = each.recipe(net).provenance
            before = shown(each.values(net, "before")) if each.start == "fine-tuned" else ""
            differences = (
                "" if net == other else signed(each.less(net, other, split)) for other in ("base", "ltm", "tome")
            )
            result.add_row(
                each.case.backbone if net == "base" else "", net, f"{about['gflops']:.5f}", f"{about['of_plain']:.3f}",
                before, shown(each.values(net, split)), f"{mean(each.values(net, split, 'loss')):.3f}", *differences,
            )  # fmt: skip
        result.add_section()
    return result


def verdicts(trials: Trials) -> list[str]:
    """What the searched schedule was to reach, and whether it did."""
    split = trials.splits[-1]
    lines = []
    for net in ("searched", "searched in range"):
        for other, aim in AIMS.items():
            ahead = trials.less(net, other, split)
            word = "reached" if mean(ahead) >= aim else "not reached"
            if abs(mean(ahead) - aim) < 2 * standard_error(ahead):
                word += ", within two standard errors of the aim"
            name = other if other == "base" else f"uniform {other}"
            start = f"{trials.case.name}, {trials.start}, {len(ahead)} seeds"
            lines.append(f"{start}: {net} − {name} {signed(ahead)} on {split}, aim {aim:+.1f}: {word}")
    return lines


def signed(values: Sequence[float]) -> str:
    """Mean and standard deviation of differences."""
    return f"{mean(values):+.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):+.1f}"


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, from the spread over seeds."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


MARKS = (("searched", "#0072B2", 0.22), ("searched in range", "#009E73", 0.0), ("learned", "#E69F00", -0.22))
"""Net, colour (of Okabe and Ito), and place beside the middle of its row."""


def figure(trials: Sequence[Trials]) -> go.Figure:
    """Differences of the searched and of the learned schedule to what they are held against, and the aims."""
    names = [f"{t.case.backbone.partition('_patch')[0]}<br>{t.case.data}{label(t.start)}" for t in trials]
    titles = [f"less {other if other == 'base' else f'uniform {other}'}" for other in AIMS]
    result = make_subplots(rows=1, cols=3, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04)
    for column, (other, aim) in enumerate(AIMS.items(), start=1):
        for net, colour, shift in MARKS:
            ahead = [t.less(net, other, t.splits[-1]) for t in trials]
            rows = [len(trials) - 1 - place + shift for place in range(len(trials))]
            result.add_trace(
                go.Scatter(
                    x=[value for each in ahead for value in each],
                    y=[row for row, each in zip(rows, ahead, strict=True) for _ in each],
                    mode="markers", marker={"color": colour, "size": 6, "opacity": 0.4}, showlegend=False,
                    hovertemplate="%{x:+.2f}",
                ), row=1, col=column,
            )  # fmt: skip
            result.add_trace(
                go.Scatter(
                    name=net, x=[mean(each) for each in ahead], y=rows, mode="markers", showlegend=column == 1,
                    marker={"color": colour, "size": 10, "line": {"width": 1, "color": "#ffffff"}},
                    error_x={"array": [stdev(each) if len(each) > 1 else 0 for each in ahead], "color": colour},
                    hovertemplate="%{x:+.2f}",
                ), row=1, col=column,
            )  # fmt: skip
        result.add_vline(x=0, line={"color": "#6b6b6b", "width": 1}, row=1, col=column)
        result.add_vline(x=aim, line={"color": "#D55E00", "width": 1.5, "dash": "dash"}, row=1, col=column)
        result.update_xaxes(title={"text": "points of top-1", "font": {"size": 12}}, row=1, col=column)
    result.update_annotations(font={"size": 14})
    result.update_xaxes(showgrid=True, gridcolor="#ececec", zeroline=False)
    places = list(range(len(trials) - 1, -1, -1))
    result.update_yaxes(tickvals=places, ticktext=names, range=[-0.6, len(trials) - 0.4], zeroline=False)
    result.update_layout(
        template="plotly_white",
        title={
            "text": "<b>Schedules at equal GFLOPs, trained alike</b><br><span style='font-size:13px'>differences of "
            "one seed, mean ± sd; small marks are seeds; dashed red is what the search was to reach</span>",
            "x": 0.01, "y": 0.99, "yref": "container", "yanchor": "top", "pad": {"t": 14},
        },
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 0.99, "yanchor": "top", "yref": "container"},
        margin={"l": 130, "r": 20, "t": 100, "b": 60},
    )  # fmt: skip
    return result


def label(start: str) -> str:
    """How the figure names a start."""
    return "" if start == "fine-tuned" else f", {start}"


def height(trials: Sequence[Trials]) -> int:
    """Of the figure, in points."""
    return 220 + 85 * len(trials)


if __name__ == "__main__":
    main()
