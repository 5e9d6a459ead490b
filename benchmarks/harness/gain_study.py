"""A plain network, studies from its weights at shares of its cost, and their networks fine-tuned alike; kept in files.

Everything of one seed has the same images: those that train, score trials, choose and are reported, as the data have
them, or with a fold of them to report. The classifier is fitted without the images that score trials, and so is all
fine-tuning.
"""

import argparse
import time
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.folds import fold
from harness.gain_findings import described
from harness.loops import fine_tune, train_plain
from harness.records import finished
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.engine.evaluation import Batches, divergence, log_probabilities
from ltmsearch.engine.steps import downscale
from ltmsearch.io.files import write_atomic
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.answers import Answers
from ltmsearch.search.checkpoint import load_checkpoint
from ltmsearch.search.run import Run
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.trial import Evaluator
from ltmsearch.study import run_study

TRAIN_SEED = 1 << 20
"""Seeds of the batches of fine-tuning begin here: no study trains on them in that order."""


class GainStudy:
    """Everything of one search seed.

    Args:
        args: Options of `search_gain.py`.
        seed: Seed of the data, the classifier and all searches.
        settings: Further settings of the studies.
        kind: Names the studies with these settings where others share the folder.
    """

    def __init__(self, args: argparse.Namespace, seed: int, settings: dict[str, str], kind: str = "") -> None:
        self.args, self.seed, self.given, self.kind = args, seed, settings, kind
        self.folder: Path = args.work / args.backbone / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def data_dir(self) -> Path | None:
        """The images: those given, in other splits where each seed has a fold of them to test."""
        args, folds = self.args, self.args.folds
        if args.data_dir is None or not folds:
            return args.data_dir
        return fold(args.data_dir, folds, self.seed % folds, args.work / f"fold-{self.seed % folds}-of-{folds}")

    @cached_property
    def plain_gflops(self) -> float:
        """Cost of the plain network."""
        args = self.args
        classes = len([p for p in (self.data_dir / "train").iterdir() if p.is_dir()]) if self.data_dir else 10
        return backbone_costs(args.backbone, args.img_size, num_classes=classes, **args.model_kwargs).base / GIGA

    def settings(self, share: float, **more: Any) -> StudySettings:
        """Settings of a study at a share of the plain network's cost."""
        args = self.args
        size = dict.fromkeys(("img_size", "proxy_img_size", "base_img_size"), args.img_size)
        network = {"backbone": args.backbone, "model_kwargs": args.model_kwargs, "data_dir": self.data_dir}
        budget = f"{share * self.plain_gflops:.8f}"
        own = {"budget_gflops": budget, "seed": self.seed}
        values: dict[str, Any] = {"objective": "kl", **size, **self.given, **network, **own, **more}
        texts = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        return StudySettings.make("benchmark", **texts)

    @cached_property
    def context(self) -> StudyContext:
        """Network and data of the first share, with which others are fine-tuned, with the plain network's weights."""
        return self.context_at(self.args.shares[0])

    def context_at(self, share: float) -> StudyContext:
        """A new network, data and costs of a share, with the plain network's weights."""
        return prepare(self.settings(share, checkpoint=self.base, base_steps=0), Callbacks())

    def place(self, share: float) -> Path:
        """Folder of a share."""
        return self.folder / f"share-{share:g}{self.kind}"

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
            context = prepare(self.settings(args.shares[0], checkpoint=args.checkpoint), Callbacks())
            evaluator, settings = context.evaluator, context.settings
            if context.new_classifiers:
                images = context.probe_images
                evaluator.fit_classifiers(context.new_classifiers, images=images, watch=lambda batches: batches)
            if args.checkpoint is None:
                plan: dict[str, Any] = {"steps": args.base_steps, "first_img_size": args.img_size}
                plan |= {"batch_size": settings.batch_size, "lr": args.base_lr, "seed": self.seed}
                train_plain(evaluator.supernet, evaluator.data, evaluator.training, **plan)
            net = plain_subnet(evaluator.supernet)
            if args.base_tuning_steps:
                self._tune_base(net, evaluator)
            write_atomic(path, pack_weights(net.state_dict(), {}))
        return path

    def _tune_base(self, net: nn.Module, evaluator: Evaluator) -> None:
        """All weights on labels, after the classifier alone (LP-FT: https://arxiv.org/abs/2202.10054)."""
        args, data = self.args, evaluator.data
        plan: dict[str, Any] = {"batch_size": args.train_batch, "steps": args.base_tuning_steps}
        batches = data.train_batches(**plan, seed=self.seed)
        torch.manual_seed(self.seed)

        def right() -> float:
            labels = torch.cat([labels for _, labels in self.reported(None, evaluator)])
            answers = log_probabilities(net, self.reported(None, evaluator), evaluator.scoring).argmax(dim=1)
            return 100 * (answers.cpu() == labels).float().mean().item()

        before = right()
        fine_tune(net, batches, steps=args.base_tuning_steps, lr=args.base_tuning_lr, runtime=evaluator.training)
        print(f"seed {self.seed}, plain network: top-1 {before:.1f}, then {right():.1f}", flush=True)

    @cached_property
    def teacher(self) -> nn.Module:
        """The plain network, frozen."""
        net = plain_subnet(self.context.evaluator.supernet)
        net.load_state_dict(load_file(self.base))
        return net.eval().requires_grad_(False)

    # -- the search ----------------------------------------------------------------------------------------------------

    def run_folder(self, share: float) -> Path:
        """Run directory of a study."""
        return self.place(share) / "run"

    def search(self, share: float) -> dict[str, Any]:
        """What a study found: its best searched schedule beside each baseline, before any fine-tuning."""

        def run() -> dict[str, Any]:
            folder = self.run_folder(share)
            more = {"checkpoint": self.base, "out": folder, "base_steps": 0}
            found = described(run_study(self.settings(share, **more)))
            print(f"seed {self.seed}, {share:g} of the cost: {found['verdict'][-1]}", flush=True)
            return found

        return finished(self.place(share) / "search.json", run)

    # -- fine-tuning ---------------------------------------------------------------------------------------------------

    def tuned(self, share: float, trial: int) -> list[dict[str, Any]]:
        """Answers to the reported images of a trial's network, fine-tuned from the shared weights with each seed."""

        def tune(seed: int) -> dict[str, Any]:
            trials = Run.open(self.run_folder(share)).trials
            schedule = next(each.schedule for each in trials if each.trial == trial)
            return self.fine_tuned(f"trial {trial}", self.shared_weights(share), schedule, seed)

        seeds = range(self.args.train_seeds)
        return [finished(self.place(share) / f"tuned-{trial}-{seed}.json", partial(tune, seed)) for seed in seeds]

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
        target = log_probabilities(self.teacher, self.reported(None), runtime)
        before = log_probabilities(subnet, self.reported(side), runtime)
        fine_tune(subnet, batches, steps=args.train_steps, **options)
        after = log_probabilities(subnet, self.reported(side), runtime)
        first, last = (divergence(log_p, target).mean().item() for log_p in (before, after))
        seconds = round(time.perf_counter() - begun, 1)
        print(f"seed {self.seed}, {name}, training seed {seed}: KL {first:.4f}, then {last:.4f}", flush=True)
        found = {"kl_before": first, "kl": last, "seconds": seconds}
        return {"predicted_before": before.argmax(dim=1).numpy(), "predicted": after.argmax(dim=1).numpy(), **found}

    def reported(self, side: int | None, evaluator: Evaluator | None = None) -> Batches:
        """The reported images, downscaled to a side in pixels if one is given."""
        evaluator = evaluator or self.context.evaluator
        batches = evaluator.data.report_batches(batch_size=evaluator.settings.scoring_batch_size)
        return ((images if side is None else downscale(images, side), labels) for images, labels in batches)

    def answers(self, share: float) -> Answers:
        """Answers of the finalists before fine-tuning."""
        return Answers.load(self.run_folder(share) / "answers.csv")


def plain_subnet(supernet: Supernet) -> nn.Module:
    """The plain network."""
    return supernet.extract(MergeSchedule.uniform(supernet.layers, 1.0, supernet.operator))
