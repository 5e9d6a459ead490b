"""Whether scores with shared weights rank schedules as training each of them alone does.

    python benchmarks/rank_fidelity.py --work trainings/ranks [--backbones mobilevit_xxs vit_tiny_patch16_224]

Draws schedules from the family's search space, half spread over all costs, half within ±2 % of the middle one. The
truth: per seed a plain net is trained, then from it every schedule's own subnet, on the same images in the same order,
and all are scored on the same validation images; a schedule's truth is the mean over seeds. The prediction: a supernet
of another seed, warmed up on other images, scores every schedule on other validation images (with --data-dir on the
same ones), as it is set up today and with one thing changed at a time, by top-1, by cross-entropy, by the mean of
top-1 and what cross-entropy lets expect (what a front goes by), and by how far its probabilities are from the plain
net's (KL divergence). Beside them predictors that need no training.

τ is Kendall's τ-b. Its interval comes from 1,000 bootstraps over schedules and seeds (and supernets), p from
scipy's test. The truth is noisy too, and limits what any predictor can reach: "ceiling" is the mean τ of a perfect
predictor, by simulation with the truth's own variance between schedules and within them between seeds. "Regret" is how
much top-1 the schedule of the best score lacks against the best one there is.

Finished nets are kept in --work, so that it can be stopped and started; more --seeds, --supernets and --variants can
follow. Prints tables, writes JSON, where other backbones stay, and draws the default's scores against the truth.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import safetensors.torch
import torch
import torch.nn.functional as F
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import library_versions
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import GIGA, backbone_costs, sample_by_cost
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.evaluation import preserve_batchnorm, recalibrate
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.steps import (
    CLIP_NORM,
    LABEL_SMOOTHING,
    LR_FLOOR,
    WEIGHT_DECAY,
    WarmUp,
    disable_inplace_activations,
    proxy_train,
    warm_up,
)
from ltmsearch.io.figures import write_drawing
from ltmsearch.io.files import write_atomic
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.rescoring import expected_top1
from ltmsearch.search.setup import Workbench, prepare
from ltmsearch.search.trial import SCORING_BATCH, load_parameters, parameters

RESULTS = Path(__file__).parent / "results"
NEAR = 0.02
"""How far the costs of comparable schedules may be from the middle one."""
FIRST_SUPERNET = 100
"""Seed of the first supernet; those of the truth begin at 0."""
BOOTSTRAPS = 1000
SHARED_IMAGES = 512
"""Validation images that score a variant; the first two are scored on 256 and on all of them too."""
MEASURES = ("top-1", "loss", "expected", "KL")
SUBSETS = ("all", "comparable")
LOOKS = {
    "spread": ("#0072B2", "circle", "spread over all costs"),
    "comparable": ("#D55E00", "diamond", "within ±2 % of the middle cost"),
}
"""Colour, mark and words of the two kinds of schedules."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a backbone is trained."""

    img_size: int
    """Of training, scoring and counting."""
    base_steps: int
    """Steps of the truth's plain nets."""
    tune_steps: int
    """Steps of each subnet from there."""
    tune_lr: float
    """Peak learning rate of those."""
    shared_steps: int | None = None
    """Steps of the plain net before the sandwich steps of a supernet; None: a study's default."""


OPTIONS = ("img_size", "base_steps", "tune_steps", "shared_steps")
"""Sizes that the command line can change."""
SIZES = {
    "mobilevit_xxs": Sizes(img_size=80, base_steps=800, tune_steps=50, tune_lr=5e-4, shared_steps=800),
    "vit_tiny_patch16_224": Sizes(img_size=80, base_steps=600, tune_steps=40, tune_lr=3e-4),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to score schedules with shared weights. The first of `VARIANTS` is what the others differ from."""

    name: str
    sandwich: float = 1.0
    """Sandwich steps over those of the default."""
    steps: int | None = None
    """Training steps of a trial; None: the default's."""
    lr: float = 1.0
    """Learning rate of a trial over the default's."""
    calibration: int = 32
    """Images that BatchNorm statistics are taken from."""
    share: float | None = None
    """Trials run one after the other and move the shared weights by this share; None: each starts from the warm-up."""
    same_images: bool = False
    """Whether all trials train on the same images."""


VARIANTS = (
    Variant(name="as warmed up"),
    Variant(name="no proxy steps", steps=0),
    Variant(name="sandwich 3×", sandwich=3),
    Variant(name="α 0.25", share=0.25),
    Variant(name="no sandwich", sandwich=0),
    Variant(name="16 proxy steps", steps=16),
    Variant(name="sandwich 3×, no proxy", sandwich=3, steps=0),
    Variant(name="α 1", share=1.0),
    Variant(name="same trial images", same_images=True),
    Variant(name="trial lr 5×", lr=5),
    Variant(name="calibration 128", calibration=128),
    Variant(name="calibration 512", calibration=512),
    Variant(name="no sandwich, no proxy", sandwich=0, steps=0),
)
MOVING = ("when run", "re-scored")
"""The two scores of trials that move the shared weights."""
DEFAULT = "α 0.25, when run"
"""What a study's sampler sees today."""


def main() -> None:
    """Train and score what is missing, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where finished nets are kept")
    parser.add_argument("--backbones", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--data-dir", help="image folder; without it the digits")
    parser.add_argument("--schedules", type=int, default=16)
    parser.add_argument("--val-images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3, help="of the truth")
    parser.add_argument("--supernets", type=int, default=1)
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", default=names, choices=names, help="ways to score, by name")
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    args = parser.parse_args()
    console, path = Console(width=100), RESULTS / "rank_fidelity.json"
    RESULTS.mkdir(exist_ok=True)
    results = json.loads(path.read_text())["backbones"] if path.exists() else {}
    for backbone in args.backbones:
        given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name)}
        bench = Ranks(backbone, replace(SIZES[backbone], **given), args)
        for seed in range(args.seeds):
            bench.train_alone(seed)
        for seed in range(FIRST_SUPERNET, FIRST_SUPERNET + args.supernets):
            bench.score_shared(seed)
        results[backbone] = json.loads(json.dumps(bench.result(), default=np.ndarray.tolist))
        show(console, results[backbone])
        content = {"backbones": results, "versions": dict(library_versions())}
        write_atomic(path, json.dumps(content, indent=1) + "\n")
    drawing = write_drawing(figure(results), RESULTS, path.stem, title="Rank fidelity", height=520)
    console.print("written:", path, *drawing.paths, drawing.note or "")


class Ranks:
    """The schedules of one backbone, their truth and their scores."""

    def __init__(self, backbone: str, sizes: Sizes, args: argparse.Namespace) -> None:
        self.backbone, self.sizes, self.args = backbone, sizes, args
        self.folder = args.work / backbone
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check_settings()
        self.bench = self.workbench(0)
        self.indices = self.draw()
        self.schedules = [self.bench.space.schedule(row) for row in self.indices]
        self.calibrates = any(isinstance(m, nn.BatchNorm2d) for m in self.bench.evaluator.supernet.modules())

    def check_settings(self) -> None:
        """Refuse a folder whose nets were made at other sizes."""
        described = {"schedules": self.args.schedules, "val_images": self.args.val_images, **asdict(self.sizes)}
        path = self.folder / "settings.json"
        if path.exists() and json.loads(path.read_text()) != described:
            raise SystemExit(f"{self.folder} holds nets of other sizes: {path.read_text()}; give another --work")
        write_atomic(path, json.dumps(described))

    def workbench(self, seed: int) -> Workbench:
        """Supernet, data and space, with a study's defaults."""
        px, images = self.sizes.img_size, self.args.val_images
        plain = backbone_costs(self.backbone, px, num_classes=10).base_macs / GIGA
        settings = StudySettings.make(
            backbone=self.backbone, img_size=px, proxy_img_size=px, budget_gflops=0.999 * plain, seed=seed,
            device="cpu", base_steps=self.sizes.shared_steps, data_dir=self.args.data_dir,
            val_images=images, rescore_images=images,
            calibration_images=max(variant.calibration for variant in VARIANTS),
        )  # fmt: skip
        return prepare(settings, Callbacks())

    def draw(self) -> np.ndarray:
        """(schedules, L) choice indices: half spread over the costs, half near the middle one. No two are one net."""
        space, rng, half = self.bench.space, np.random.default_rng(0), self.args.schedules // 2
        budget = self.bench.budgets[0]
        rows = list(sample_by_cost(space, [budget], number=self.args.schedules - half, rng=rng))
        nets = {self.bench.costs.network_key(space.schedule(row)) for row in rows}
        middle = sum(budget.table.reachable()) / 2
        pool = space.random(rng, 100_000)
        for row in pool[np.abs(budget.table.costs(pool) / middle - 1) <= NEAR]:
            net = self.bench.costs.network_key(space.schedule(row))
            if net not in nets and len(rows) < self.args.schedules:
                nets.add(net)
                rows.append(row)
        return np.array(rows)

    # -- what is kept ----------------------------------------------------------------------------------------------

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array from its file, or made, kept, and its seconds told."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            start, stream = time.perf_counter(), io.BytesIO()
            np.save(stream, make())
            write_atomic(path, stream.getvalue())
            self.tell(name, start)
        return cast(np.ndarray, np.load(path))

    def kept_state(self, name: str, net: nn.Module, train: Callable[[], None]) -> None:
        """Give a net the weights in a file, or train it and keep them."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            start = time.perf_counter()
            train()
            self.keep_state(name, net)
            self.tell(name, start)
        net.load_state_dict(safetensors.torch.load(path.read_bytes()))

    def keep_state(self, name: str, net: nn.Module) -> None:
        """Write a net's weights."""
        state = {key: value.clone(memory_format=torch.contiguous_format) for key, value in net.state_dict().items()}
        write_atomic(self.folder / f"{name}.safetensors", safetensors.torch.save(state))

    def tell(self, name: str, start: float) -> None:
        """Note the seconds since `start`."""
        path, seconds = self.folder / "seconds.json", time.perf_counter() - start
        times = json.loads(path.read_text()) if path.exists() else {}
        write_atomic(path, json.dumps(times | {name: round(seconds, 1)}, indent=1))
        print(f"{self.backbone} {name}: {seconds:.0f} s", flush=True)

    # -- the truth -------------------------------------------------------------------------------------------------

    def train_alone(self, seed: int) -> np.ndarray:
        """(schedules + 1, images, classes) logits of the subnets trained from one plain net, and of that net.

        The plain net learns as in a study's warm-up: in a family whose images grow, on small ones until its last step.
        """
        evaluator, sizes = self.bench.evaluator, self.sizes
        data, runtime, s = evaluator.data, evaluator.runtime, evaluator.settings
        torch.manual_seed(seed)
        net = Supernet(self.backbone, num_classes=data.num_classes, img_size=sizes.img_size)
        runtime.prepare(net)
        plan = WarmUp(
            base_steps=sizes.base_steps, base_img_size=s.base_img_size, sandwich_steps=0, subnets=0, lr=s.warmup_lr
        )
        plain = MergeSchedule.uniform(net.layers, 1.0)

        def train() -> None:
            batches = data.train_batches(batch_size=s.batch_size, steps=plan.steps, seed=seed)
            for _ in warm_up(
                net, plan, batches=batches, cheapest=plain, draw=lambda rng: plain, seed=seed, runtime=runtime
            ):
                pass

        def trained(schedule: MergeSchedule) -> np.ndarray:
            subnet = runtime.prepare(net.extract(schedule))
            batches = data.train_batches(batch_size=s.batch_size, steps=sizes.tune_steps, seed=1000 + seed)
            fine_tune(subnet, batches, steps=sizes.tune_steps, lr=sizes.tune_lr, runtime=runtime)
            return all_logits(subnet, data, runtime)

        self.kept_state(f"alone-{seed}", net, train)
        every = [self.kept(f"alone-{seed}-plain", lambda: all_logits(net, data, runtime))]
        for number, schedule in enumerate(self.schedules):
            every.insert(number, self.kept(f"alone-{seed}-{number:02d}", lambda schedule=schedule: trained(schedule)))
        return np.stack(every)

    # -- the predictions -------------------------------------------------------------------------------------------

    def variants(self) -> list[Variant]:
        """Those that can differ from the default for this backbone."""
        wanted = [variant for variant in VARIANTS if variant.name in self.args.variants]
        return [v for v in wanted if self.calibrates or v.calibration == VARIANTS[0].calibration]

    def score_shared(self, seed: int) -> dict[str, np.ndarray]:
        """Variant → (schedules + 1, images, classes) logits with the shared weights, the plain net's last."""
        bench, scores = self.workbench(seed), {}
        supernet = bench.evaluator.supernet
        fresh = {name: value.clone() for name, value in supernet.state_dict().items()}
        default = bench.settings.sandwich_steps
        for factor in sorted({v.sandwich for v in self.variants()} | {1.0}, key=lambda f: (f != 1, f)):
            steps, name = round(factor * default), f"shared-{seed}-sandwich-{{}}"
            planned = replace(bench, settings=bench.settings.model_copy(update={"sandwich_steps": steps}))

            def train(planned: Workbench = planned, name: str = name) -> None:
                supernet.load_state_dict(fresh)
                for step, _ in enumerate(planned.warm_up(), start=1):
                    if step == planned.settings.base_steps and planned.settings.sandwich_steps == default:
                        self.keep_state(name.format(0), supernet)  # as it is before the sandwich

            self.kept_state(name.format(steps), supernet, train)
            for variant in (v for v in self.variants() if v.sandwich == factor):
                make = self.moving if variant.share is not None else self.independent
                logits = self.kept(f"shared-{seed}-{variant.name}", lambda m=make, v=variant: m(bench, v, seed))
                if variant.share is None:
                    scores[variant.name] = logits
                else:
                    scores |= {f"{variant.name}, {when}": logits[place] for place, when in enumerate(MOVING)}
        return scores

    def independent(self, bench: Workbench, variant: Variant, seed: int) -> np.ndarray:
        """Logits of trials that all start from the same weights."""
        weights = parameters(bench.evaluator.supernet)
        plain = self.trial(bench, variant, weights, None, steps=0)
        every = [
            self.trial(bench, variant, weights, schedule, seed=trial_seed(seed, 0 if variant.same_images else number))
            for number, schedule in enumerate(self.schedules)
        ]
        load_parameters(bench.evaluator.supernet, weights)
        return np.stack([*every, plain])

    def moving(self, bench: Workbench, variant: Variant, seed: int) -> np.ndarray:
        """(2, schedules + 1, images, classes) logits of trials that move the weights: when run, and at the end."""
        supernet = bench.evaluator.supernet
        first = weights = parameters(supernet)
        plain = self.trial(bench, variant, weights, None, steps=0)
        when_run: dict[int, np.ndarray] = {}
        for number in np.random.default_rng(seed).permutation(len(self.schedules)).tolist():
            logits = self.trial(bench, variant, weights, self.schedules[number], seed=trial_seed(seed, number))
            when_run[number] = logits
            trained = parameters(supernet)
            weights = {name: torch.lerp(w, trained[name], variant.share or 0.0) for name, w in weights.items()}
        again = [self.trial(bench, variant, weights, schedule, steps=0) for schedule in (*self.schedules, None)]
        load_parameters(supernet, first)
        return np.stack([np.stack([*(when_run[n] for n in sorted(when_run)), plain]), np.stack(again)])

    def trial(
        self,
        bench: Workbench,
        variant: Variant,
        weights: dict[str, Tensor],
        schedule: MergeSchedule | None,
        *,
        seed: int = 0,
        steps: int | None = None,
    ) -> np.ndarray:
        """(images, classes) logits after a study's proxy training and recalibration; the trained weights stay."""
        evaluator, s = bench.evaluator, bench.settings
        supernet, data, runtime = evaluator.supernet, evaluator.data, evaluator.runtime
        schedule = schedule or MergeSchedule.uniform(supernet.layers, 1.0)
        steps = next(n for n in (steps, variant.steps, s.proxy_steps) if n is not None)
        load_parameters(supernet, weights)
        with preserve_batchnorm(supernet):
            if steps:
                batches = data.train_batches(batch_size=s.batch_size, steps=steps, seed=seed)
                proxy_train(supernet, schedule, batches, lr=variant.lr * s.proxy_lr, runtime=runtime)
            calibration = data.calibration_batches(batch_size=SCORING_BATCH)
            with supernet.active(schedule):
                recalibrate(supernet, islice(calibration, -(-variant.calibration // SCORING_BATCH)), runtime)
                return all_logits(supernet.model, data, runtime, None if variant in VARIANTS[:2] else SHARED_IMAGES)

    # -- what comes of it ------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Everything per schedule, and the statistics."""
        args, costs = self.args, self.bench.costs
        data = self.bench.evaluator.data
        alone = np.stack([measured(self.train_alone(seed), labels_of(data)) for seed in range(args.seeds)])
        truth = {name: alone[:, place, :-1] for place, name in enumerate(MEASURES[:2])}
        tokens = [list(costs.tokens(schedule).values()) for schedule in self.schedules]
        gflops = np.array([costs.gflops(schedule) for schedule in self.schedules])
        predictors: dict[str, dict[str, np.ndarray]] = {
            "GFLOPs": {"": gflops[None]},
            "last layer's tokens": {"": np.array([[kept[-1][1] for kept in tokens]])},
            "mean tokens": {"": np.array([[np.mean([n for _, n in kept]) for kept in tokens]])},
        }
        plain_shared = []
        for seed in range(FIRST_SUPERNET, FIRST_SUPERNET + args.supernets):
            labels = labels_of(self.bench.evaluator.data if args.data_dir else self.workbench(seed).evaluator.data)
            for variant, logits in self.score_shared(seed).items():
                images = {variant: SHARED_IMAGES}
                if len(logits[0]) > SHARED_IMAGES:
                    images |= {f"{variant}, {number} val": number for number in (256, args.val_images)}
                for name, number in images.items():
                    values = measured(logits[:, :number], labels[:number])
                    plain_shared.append({"variant": name, "seed": seed, "top1": values[0, -1]})
                    for place, measure in enumerate(MEASURES):
                        row = values[None, place, :-1]
                        before = predictors.setdefault(name, {}).get(measure, row[:0])
                        predictors[name][measure] = np.concatenate([before, row])
        half = args.schedules - args.schedules // 2
        subsets = {"all": np.arange(args.schedules), "comparable": np.arange(half, args.schedules)}
        return {
            "backbone": self.backbone, "sizes": asdict(self.sizes),
            "settings": {
                name: getattr(self.bench.settings, name)
                for name in ("batch_size", "base_steps", "warmup_lr", "sandwich_steps", "proxy_steps", "proxy_lr")
            } | {"seeds": args.seeds, "supernets": args.supernets, "val_images": args.val_images},
            "schedules": [
                {"kind": "comparable" if number >= half else "spread", "gflops": cost, "tokens": kept,
                 "keep_ratios": dict(schedule.keep_ratios), "forms": dict(schedule.forms)}
                for number, (schedule, cost, kept) in enumerate(zip(self.schedules, gflops, tokens, strict=True))
            ],
            "plain_gflops": costs.base / GIGA, "plain_alone": alone[:, :, -1], "plain_shared": plain_shared,
            "truth": truth,
            "reliability": {
                what: {name: reliability(values[:, columns]) for name, values in truth.items()}
                for what, columns in subsets.items()
            },
            "scores": [
                {"variant": variant, "measure": measure, "values": values,
                 **{what: compare(better(measure, values), truth, gflops, some) for what, some in subsets.items()}}
                for variant, by_measure in predictors.items() for measure, values in by_measure.items()
            ],
            "seconds": json.loads((self.folder / "seconds.json").read_text()),
        }  # fmt: skip


def trial_seed(seed: int, number: int) -> int:
    """Of the training images of one trial."""
    return 10_000 * (1 + seed) + number


def fine_tune(
    subnet: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, steps: int, lr: float, runtime: Runtime
) -> None:
    """Train a subnet by itself on labels: AdamW, cosine."""
    optimizer = create_optimizer_v2(subnet, opt="adamw", lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    cosine = CosineLRScheduler(optimizer, t_initial=steps, lr_min=LR_FLOOR * lr, t_in_epochs=False)
    disable_inplace_activations(subnet)
    subnet.train()
    for step, (images, labels) in enumerate(batches):
        cosine.step_update(step)
        with runtime.autocast():
            logits = subnet(runtime.images(images))
        F.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING).backward()
        torch.nn.utils.clip_grad_norm_(subnet.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def all_logits(model: nn.Module, data: ImageData, runtime: Runtime, limit: int | None = None) -> np.ndarray:
    """(images, classes) float32 logits of the validation images, in evaluation mode; the mode is restored."""
    was_training = model.training
    model.eval()
    with torch.inference_mode(), runtime.autocast():
        batches = data.validation_batches(batch_size=SCORING_BATCH, limit=limit)
        logits = torch.cat([model(runtime.images(images)).float() for images, _ in batches])
    model.train(was_training)
    return logits.numpy()


def labels_of(data: ImageData) -> np.ndarray:
    """(images,) labels of the validation images."""
    return data.validation.labels[[index for index, _ in data.validation_keys]]


def measured(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(4, nets) `MEASURES` of (nets, images, classes) logits, the plain net's last."""
    log_p = torch.from_numpy(logits).double().log_softmax(dim=-1).numpy()
    top1 = 100 * (logits.argmax(axis=-1) == labels).mean(axis=1)
    loss = -log_p[:, np.arange(len(labels)), labels].mean(axis=1)
    divergence = (np.exp(log_p[-1]) * (log_p[-1] - log_p)).sum(axis=-1).mean(axis=1)
    return np.stack([top1, loss, expected_top1(top1.tolist(), loss.tolist()), divergence])


def better(name: str, values: np.ndarray) -> np.ndarray:
    """Values of a measure turned so that more is better."""
    return -values if name in ("loss", "KL") else values


def signs(values: np.ndarray) -> np.ndarray:
    """(n, n) which of two is more."""
    return np.sign(values[:, None] - values[None, :])


def tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's τ-b of two sign matrices; 0 where one has nothing but ties."""
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm else 0.0


def compare(
    values: np.ndarray, truth: dict[str, np.ndarray], gflops: np.ndarray, columns: np.ndarray
) -> dict[str, Any]:
    """How (supernets, schedules) scores, of which more is better, rank some schedules; by measure of the truth."""
    result: dict[str, Any] = {}
    for name, per_seed in truth.items():
        rng, (seeds, supernets) = np.random.default_rng(0), (len(per_seed), len(values))
        turned = better(name, per_seed)[:, columns]
        own, costs = values[:, columns], gflops[columns]
        tests = [kendalltau(row, turned.mean(axis=0)) for row in own]  # nan where one has nothing but ties
        drawn, gains = [], []
        for _ in range(BOOTSTRAPS):
            some = rng.integers(len(columns), size=len(columns))
            about = signs(turned[rng.integers(seeds, size=seeds)][:, some].mean(axis=0))
            taus = [tau_b(signs(row[some]), about) for row in own[rng.integers(supernets, size=supernets)]]
            drawn.append(np.mean(taus))
            gains.append(drawn[-1] - tau_b(signs(costs[some]), about))
        tau = float(np.mean([np.nan_to_num(test.statistic) for test in tests]))
        result[name] = {
            "tau": tau,
            "interval": np.quantile(drawn, [0.025, 0.975]),
            "p": [float(np.nan_to_num(test.pvalue, nan=1.0)) for test in tests],
            "over_gflops": tau - tau_b(signs(costs), signs(turned.mean(axis=0))),
            "over_gflops_interval": np.quantile(gains, [0.025, 0.975]),
        }
    top1 = truth["top-1"].mean(axis=0)[columns]
    for k in (1, 3):
        result[f"regret_{k}"] = float(np.mean([regret(row[columns], top1, gflops[columns], k) for row in values]))
    return result


def regret(score: np.ndarray, top1: np.ndarray, gflops: np.ndarray, k: int) -> float:
    """What the best of the k first by score lacks against the best schedule, mean over all costs as the limit."""
    lacks = []
    for limit in gflops:
        within = np.flatnonzero(gflops <= limit)
        first = within[np.argsort(-score[within], kind="stable")[:k]]
        lacks.append(top1[within].max() - top1[first].max())
    return float(np.mean(lacks))


def reliability(truth: np.ndarray) -> dict[str, Any]:
    """How far (seeds, schedules) measurements of one truth agree, and what that permits a perfect predictor."""
    mean, (seeds, schedules) = truth.mean(axis=0), truth.shape
    if seeds < 2:
        return {}
    rest = truth - truth.mean(axis=1, keepdims=True) - mean + mean.mean()
    noise = (rest**2).sum() / ((seeds - 1) * (schedules - 1)) / seeds  # variance of the mean
    share = max(0.0, 1 - noise / mean.var(ddof=1))
    rng, taus = np.random.default_rng(0), []
    for _ in range(BOOTSTRAPS):
        real = np.sqrt(share) * rng.permutation(mean - mean.mean())
        taus.append(tau_b(signs(real), signs(real + rng.normal(0, np.sqrt(noise), schedules))))
    pairs = [tau_b(signs(a), signs(b)) for a, b in combinations(truth, 2)]
    return {
        "tau_between_seeds": float(np.mean(pairs)), "se": float(np.sqrt(noise)), "sd": float(mean.std(ddof=1)),
        "reliability": share, "ceiling": float(np.mean(taus)), "ceiling_interval": np.quantile(taus, [0.025, 0.975]),
    }  # fmt: skip


def show(console: Console, result: dict[str, Any]) -> None:
    """Two tables: what the truth is worth, and how the scores rank it."""
    px, shared = result["sizes"]["img_size"], result["plain_shared"]
    supernets = [row["top1"] for row in shared if row["variant"] == shared[0]["variant"]]
    console.print(
        f"{result['backbone']} at {px} px ({result['plain_gflops']:.4f} GFLOPs), {len(result['schedules'])} schedules; "
        f"plain nets alone {shown([top1 for top1, *_ in result['plain_alone']])} % top-1, in supernets "
        f"{shown(supernets)} %"
    )
    table = Table(title="the truth", box=None, padding=(0, 1, 0, 0))
    for heading in ("", "", "range", "sd", "se", "reliability", "τ between seeds", "ceiling of τ"):
        table.add_column(heading, justify="right" if heading else "left")
    for what, by_measure in result["reliability"].items():
        for name, r in by_measure.items():
            mean = np.mean(result["truth"][name], axis=0)
            mean = mean[[what == "all" or s["kind"] == what for s in result["schedules"]]]
            digits = 1 if name == "top-1" else 3
            cells = [f"{mean.min():.{digits}f} to {mean.max():.{digits}f}"]
            if r:
                cells += [f"{r['sd']:.{digits + 1}f}", f"{r['se']:.{digits + 1}f}", f"{r['reliability']:.2f}"]
                cells += [f"{r['tau_between_seeds']:.2f}", interval(r["ceiling"], r["ceiling_interval"])]
            table.add_row(what, name, *cells)
    console.print(table)
    table = Table(
        title="τ of the scores with the truth by loss; by top-1; regret in points of top-1",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for heading in ("score", "by", "all", "p", "comparable", "top-1", "comp.", "regret", "comp."):
        table.add_column(heading, justify="left" if heading in ("score", "by") else "right", no_wrap=True)
    before = ""
    for row in result["scores"]:
        every, near = row["all"], row["comparable"]
        table.add_row(
            row["variant"] if row["variant"] != before else "", row["measure"],
            interval(every["loss"]["tau"], every["loss"]["interval"]), f"{max(every['loss']['p']):.3f}",
            interval(near["loss"]["tau"], near["loss"]["interval"]),
            *(f"{r['top-1']['tau']:.2f}" for r in (every, near)), *(f"{r['regret_1']:.2f}" for r in (every, near)),
        )  # fmt: skip
        before = row["variant"]
    console.print(table)


def interval(value: float, ends: Iterable[float]) -> str:
    """A value and the ends of its interval."""
    return f"{value:.2f} [{','.join(f'{end:.2f}' for end in ends)}]"


def shown(values: Iterable[float]) -> str:
    """Mean and standard deviation."""
    values = list(values)
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def figure(results: dict[str, Any]) -> go.Figure:
    """The default's cross-entropy against the truth's, one panel per backbone; bars are the truth's standard error."""
    panels, titles = [], []
    for backbone, result in results.items():
        by_loss = {row["variant"]: row for row in result["scores"] if row["measure"] == "loss"}
        row = by_loss.get(DEFAULT) or next(iter(by_loss.values()))
        flops = next(row for row in result["scores"] if row["variant"] == "GFLOPs")
        panels.append((result, row))
        tau, near = (interval(row[what]["loss"]["tau"], row[what]["loss"]["interval"]) for what in SUBSETS)
        titles.append(
            f"<b>{backbone}</b> at {result['sizes']['img_size']} px<br>τ {tau}; comparable {near}<br>"
            f"GFLOPs alone {flops['all']['loss']['tau']:.2f}; {flops['comparable']['loss']['tau']:.2f}"
        )
    drawn = make_subplots(rows=1, cols=len(panels), subplot_titles=titles, horizontal_spacing=0.1)
    for column, (result, row) in enumerate(panels, start=1):
        truth, kinds = np.array(result["truth"]["loss"]), np.array([s["kind"] for s in result["schedules"]])
        se = result["reliability"]["all"]["loss"].get("se", 0.0)
        for kind, (colour, symbol, words) in LOOKS.items():
            some = kinds == kind
            drawn.add_scatter(
                x=np.mean(row["values"], axis=0)[some], y=truth.mean(axis=0)[some], mode="markers", name=words,
                legendgroup=kind, showlegend=column == 1, marker={"color": colour, "symbol": symbol, "size": 10},
                error_y={"array": se * np.ones(some.sum()), "color": colour, "thickness": 1.2, "width": 3},
                text=[f"{s['gflops']:.4f} GFLOPs" for s in result["schedules"] if s["kind"] == kind],
                hovertemplate="%{text}<br>shared %{x:.3f}, alone %{y:.3f}<extra></extra>", row=1, col=column,
            )  # fmt: skip
        drawn.update_xaxes(title=f"cross-entropy with shared weights ({row['variant']})", row=1, col=column)
    drawn.update_yaxes(title="cross-entropy, trained alone", row=1, col=1)
    drawn.update_layout(
        template="plotly_white", font={"size": 13}, margin={"t": 80, "b": 90, "l": 70, "r": 20},
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.17, "yanchor": "top"},
    )  # fmt: skip
    drawn.update_annotations(font_size=14)
    return drawn


if __name__ == "__main__":
    main()
