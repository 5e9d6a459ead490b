"""A plain network, studies from its weights at shares of its cost, and their networks fine-tuned alike; kept in files.

Everything of one seed has the same images: those that train, score trials, choose and are reported. The classifier is
fitted without the images that score trials, and so is all fine-tuning.
"""

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.loops import fine_tune, train_plain
from harness.records import finished
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.objective import Measure
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.engine.evaluation import Batches, divergence, log_probabilities
from ltmsearch.engine.paired import Difference, mean_with_error
from ltmsearch.engine.steps import downscale
from ltmsearch.io.files import write_atomic
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.reporting.findings import findings_of, verdict_lines
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.answers import Answers
from ltmsearch.search.checkpoint import load_checkpoint
from ltmsearch.search.records import TrialRecord, plain_network
from ltmsearch.search.run import Run
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.timing import Times
from ltmsearch.study import run_study

TRAIN_SEED = 1 << 20
"""Seeds of the batches of fine-tuning begin here: no study trains on them in that order."""
Answered = list[np.ndarray]
"""Predicted classes of the reported images, by training seed."""


class GainStudy:
    """Everything of one search seed.

    Args:
        args: Options of `search_gain.py`.
        seed: Seed of the data, the classifier and all searches.
        settings: Further settings of the studies.
    """

    def __init__(self, args: argparse.Namespace, seed: int, settings: dict[str, str]) -> None:
        self.args, self.seed, self.given = args, seed, settings
        self.folder: Path = args.work / args.backbone / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def plain_gflops(self) -> float:
        """Cost of the plain network."""
        args = self.args
        classes = len([p for p in (args.data_dir / "train").iterdir() if p.is_dir()]) if args.data_dir else 10
        return backbone_costs(args.backbone, args.img_size, num_classes=classes, **args.model_kwargs).base / GIGA

    def _settings(self, share: float, **more: Any) -> StudySettings:
        args = self.args
        size = dict.fromkeys(("img_size", "proxy_img_size", "base_img_size"), args.img_size)
        network = {"backbone": args.backbone, "model_kwargs": args.model_kwargs, "data_dir": args.data_dir}
        budget = f"{share * self.plain_gflops:.8f}"
        own = {"budget_gflops": budget, "seed": self.seed}
        values: dict[str, Any] = {"objective": "kl", **size, **self.given, **network, **own, **more}
        texts = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        return StudySettings.make("benchmark", **texts)

    @cached_property
    def context(self) -> StudyContext:
        """Network and data of the first share, with which others are fine-tuned, with the plain network's weights."""
        return prepare(self._settings(self.args.shares[0], checkpoint=self.base, base_steps=0), Callbacks())

    def shared_weights(self, share: float) -> Mapping[str, Tensor]:
        """Those of a study at its end."""
        self.search(share)
        loaded = load_checkpoint(self.run_folder(share))
        assert loaded is not None
        return loaded.weights

    # -- the plain network ---------------------------------------------------------------------------------------------

    @cached_property
    def base(self) -> Path:
        """Weights of the plain network: those given, with a classifier; or trained from scratch for a few steps."""
        path, args = self.folder / "base.safetensors", self.args
        if not path.exists():
            context = prepare(self._settings(args.shares[0], checkpoint=args.checkpoint), Callbacks())
            evaluator, settings = context.evaluator, context.settings
            if context.new_classifiers:
                images = context.probe_images
                evaluator.fit_classifiers(context.new_classifiers, images=images, watch=lambda batches: batches)
            if args.checkpoint is None:
                plan: dict[str, Any] = {"steps": args.base_steps, "first_img_size": args.img_size}
                plan |= {"batch_size": settings.batch_size, "lr": args.base_lr, "seed": self.seed}
                train_plain(evaluator.supernet, evaluator.data, evaluator.training, **plan)
            write_atomic(path, pack_weights(plain_subnet(evaluator.supernet).state_dict(), {}))
        return path

    @cached_property
    def teacher(self) -> nn.Module:
        """The plain network, frozen."""
        net = plain_subnet(self.context.evaluator.supernet)
        net.load_state_dict(load_file(self.base))
        return net.eval().requires_grad_(False)

    # -- the search ----------------------------------------------------------------------------------------------------

    def run_folder(self, share: float) -> Path:
        """Run directory of a study."""
        return self.folder / f"share-{share:g}" / "run"

    def search(self, share: float) -> dict[str, Any]:
        """What a study found: its best searched schedule beside each baseline, before any fine-tuning."""

        def run() -> dict[str, Any]:
            folder = self.run_folder(share)
            more = {"checkpoint": self.base, "out": folder, "base_steps": 0}
            found = described(run_study(self._settings(share, **more)))
            print(f"seed {self.seed}, {share:g} of the cost: {found['verdict'][-1]}", flush=True)
            return found

        return finished(self.folder / f"share-{share:g}" / "search.json", run)

    # -- fine-tuning ---------------------------------------------------------------------------------------------------

    def tuned(self, share: float, trial: int) -> list[dict[str, Any]]:
        """Answers to the reported images of a trial's network, fine-tuned from the shared weights with each seed."""
        place = self.folder / f"share-{share:g}"

        def tune(seed: int) -> dict[str, Any]:
            trials = Run.open(self.run_folder(share)).trials
            schedule = next(each.schedule for each in trials if each.trial == trial)
            return self.fine_tuned(f"trial {trial}", self.shared_weights(share), schedule, seed)

        seeds = range(self.args.train_seeds)
        return [finished(place / f"tuned-{trial}-{seed}.json", partial(tune, seed)) for seed in seeds]

    def fine_tuned(
        self, name: str, weights: Mapping[str, Tensor], schedule: MergeSchedule, seed: int
    ) -> dict[str, Any]:
        """Answers to the reported images of a schedule's network, fine-tuned from weights of the supernet."""
        begun, args, evaluator, side = time.perf_counter(), self.args, self.context.evaluator, schedule.img_size
        evaluator.supernet.load_state_dict(weights)
        subnet = evaluator.recalibrated_subnet(schedule)
        images: dict[str, Any] = {"batch_size": args.train_batch, "steps": args.train_steps}
        batches = evaluator.data.train_batches(**images, seed=TRAIN_SEED + seed)
        torch.manual_seed(seed)
        runtime = evaluator.scoring
        options: dict[str, Any] = {
            "lr": args.train_lr,
            "runtime": evaluator.training,
            "teacher": self.teacher,
            "side": side,
        }
        target = log_probabilities(self.teacher, self._reported(None), runtime)
        before = log_probabilities(subnet, self._reported(side), runtime)
        fine_tune(subnet, batches, steps=args.train_steps, **options)
        after = log_probabilities(subnet, self._reported(side), runtime)
        first, last = (divergence(log_p, target).mean().item() for log_p in (before, after))
        seconds = round(time.perf_counter() - begun, 1)
        print(f"seed {self.seed}, {name}, training seed {seed}: KL {first:.4f}, then {last:.4f}", flush=True)
        return {"predicted": after.argmax(dim=1).numpy(), "kl_before": first, "kl": last, "seconds": seconds}

    def _reported(self, side: int | None) -> Batches:
        """The reported images, downscaled to a side in pixels if one is given."""
        batches = self.context.evaluator.data.report_batches(batch_size=self.context.settings.scoring_batch_size)
        return ((images if side is None else downscale(images, side), labels) for images, labels in batches)

    def answers(self, share: float) -> Answers:
        """Answers of the finalists before fine-tuning."""
        return Answers.load(self.run_folder(share) / "answers.csv")


def plain_subnet(supernet: Supernet) -> nn.Module:
    """The plain network."""
    return supernet.extract(MergeSchedule.uniform(supernet.layers, 1.0, supernet.operator))


def described(run: Run) -> dict[str, Any]:
    """A finished study as JSON: the networks to compare, and their differences on the reported images."""
    findings, answers, axis = findings_of(run), run.answers, run.settings.axis
    assert answers is not None
    assert findings.verdict is not None
    compared = findings.verdict.comparison
    if compared is None:
        raise SystemExit(f"{run.folder} has no searched schedule or no baseline within the budget: use more trials")
    baselines = [record for record in run.trials if record.kind == "baseline" and record.trial in answers.trials]
    rivals = [record for record in baselines if record.feasible and not record.is_plain]
    size, plain = compared.searched.schedule.img_size, plain_network(run.trials)
    assert plain is not None
    nets = {"searched": compared.searched, "best baseline": compared.baseline}
    same = [record for record in rivals if record.schedule.img_size == size]
    groups = {
        "best baseline at this size": same,
        "best baseline at another size": [record for record in rivals if record not in same],
        "one count per layer": [record for record in same if min(record.schedule.keep_ratios.values()) < 0],
    }
    for name, members in groups.items():
        best = min(members, key=lambda r: (r.rescored(axis.measure) or 0.0, r.trial), default=compared.baseline)
        if best is not compared.baseline or (members and name == "one count per layer"):
            nets[name] = best
    return {
        "nets": {name: record.trial for name, record in nets.items()},
        "trials": [_net(record, axis.measure) for record in (compared.searched, plain, *rivals)],
        "plain_top1": answers.top1().value,
        "images": len(answers.labels),
        "less_baselines": {each.name: vars(answers.difference(compared.searched.trial, each.trial)) for each in rivals},
        "verdict": verdict_lines(findings),
        "seconds": Times.load(run.folder).seconds,
    }


def _net(record: TrialRecord, measure: Measure) -> dict[str, Any]:
    values = ("trial", "kind", "label", "gflops", "report_top1", "difference", "difference_se", "agreement")
    return {
        **{name: getattr(record, name) for name in values},
        measure: record.rescored(measure),
        "img_size": record.schedule.img_size,
        "keep_ratios": dict(record.schedule.keep_ratios),
        "forms": dict(record.schedule.forms),
    }


def gain(one: Answered, other: Answered, answers: Answers) -> Difference:
    """Top-1 of a network less that of another, in points: mean over training seeds, paired by image and seed."""
    labels = answers.labels
    hits = [(a == labels).astype(float) - (b == labels) for a, b in zip(one, other, strict=True)]
    found = mean_with_error(100 * np.mean(hits, axis=0), answers.groups)
    return replace(found, se=math.hypot(found.se, 100 / answers.independent))  # as `Answers.difference`
