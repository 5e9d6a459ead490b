"""Short trainings of one backbone on one data set, by the steps of `ltmsearch train` on images decoded once."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.distributed import Ranks
from ltmsearch.engine.evaluation import Score, preserve_batchnorm, recalibrate, score
from ltmsearch.engine.runtime import Runtime, amp_runtime
from ltmsearch.errors import TrainingDiverged
from ltmsearch.io.files import write_atomic
from ltmsearch.models import input_config
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.training.builders import make_network, open_data
from ltmsearch.training.learner import Learner
from ltmsearch.training.options import TrainingOptions

COMMON: dict[str, Any] = {
    "model_ema": False,
    "aa": None,
    "reprob": 0.0,
    "color_jitter": 0.0,
    "scale": (0.35, 1.0),
    "ib_weight": 0.0,
    "batch_size": 32,
    "warmup_lr": 1e-4,
    "min_lr": 2e-5,
}
"""Training keys of every recipe."""
BASE_EPOCHS = 8
TUNED: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "lr": 3e-4}
"""Training keys of the contenders."""
TEST_DIGITS, TEST_SEED = 2000, 1
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
    tuned_steps: int = 60
    score_images: int | None = None
    """Images of each score; None: all."""
    bases: int = 3
    """Number of trained bases; with one, seeds share it and differ in their training."""

    @property
    def name(self) -> str:
        """Name in options and tables."""
        return f"{self.backbone}:{self.data}"


class ShortTraining:
    """Trainings of a case from its trained, unmerged bases.

    Args:
        case: Backbone and data set.
        folder: Folder of finished parts.
        data_dir: Image folder of a case with `folder`.
    """

    def __init__(self, case: Case, folder: Path, data_dir: Path | None) -> None:
        self.case, self.folder = case, folder
        self.data_dir = data_dir if case.data == "folder" else None
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def classes(self) -> int:
        """Number of classes."""
        return len([p for p in (self.data_dir / "train").iterdir() if p.is_dir()]) if self.data_dir else 10

    @cached_property
    def runtime(self) -> Runtime:
        """CPU, with as many threads as the environment allows."""
        return amp_runtime(torch.device("cpu"), amp=self.case.amp, dtype="bfloat16")

    @cached_property
    def data(self) -> ImageData:
        """Training and validation images."""
        options = TrainingOptions(out=self.folder, dataset=self.case.data, data_dir=self.data_dir)
        return open_data(self.make_recipe(MergeSchedule(keep_ratios={})), options, Callbacks())

    @cached_property
    def test(self) -> ImageData | None:
        """Data whose validation split is the test images; None where a folder has none."""
        place = self.folder / "held-out"
        if self.data_dir is not None:
            if not (self.data_dir / "test").is_dir():
                return None
            place.mkdir(exist_ok=True)
            for name, split in (("train", "validation"), ("validation", "test")):
                if not (place / name).exists():
                    (place / name).symlink_to((self.data_dir / split).resolve())
        return load_data(
            dataset=self.case.data,
            data_dir=place if self.data_dir else None,
            img_size=self.case.img_size,
            **input_config(self.case.backbone),
            val_images=None if self.data_dir else TEST_DIGITS,
            calibration_images=1,
            seed=TEST_SEED,
        )

    def make_recipe(self, schedule: MergeSchedule, **keys: Any) -> Recipe:
        """Recipe of a net of this case."""
        model, size = f"ltm_{self.case.backbone}", self.case.img_size
        fixed = {"img_size": size, "num_classes": self.classes, "amp": self.case.amp, **COMMON}
        return Recipe(model=model, schedule=schedule, **fixed, **keys)

    def base(self, seed: int) -> Path:
        """Weights of the trained unmerged net of a seed; trained where they are missing."""
        number = seed % self.case.bases
        path = self.folder / f"trained-base-{number}.safetensors"
        if not path.exists():
            steps = self.case.base_steps // BASE_EPOCHS
            keys = {"epochs": BASE_EPOCHS, "warmup_epochs": 1, "train_steps_per_epoch": steps, "lr": self.case.lr}
            recipe = self.make_recipe(MergeSchedule(keep_ratios={})).changed({**keys, "seed": number})
            model = self._model(recipe, None)
            self._fit(recipe, model)
            print(f"{self.case.name}, trained base {number}: {self.score(model, self.data).top1:.1f}", flush=True)
            write_atomic(path, pack_weights(model.state_dict(), {}))
        return path

    def fine_tune(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Train a net from the base of a seed; its scores before and after."""
        begun = time.perf_counter()
        # Another seed than the base's, or the net would see the base's first images again.
        keys = {**TUNED, "train_steps_per_epoch": self.case.tuned_steps // TUNED["epochs"], "seed": 1000 + seed}
        recipe = recipe.changed(keys)
        model, scores = self._model(recipe, self.base(seed)), {}
        with preserve_batchnorm(model):
            recalibrate(model, self.data.train_batches(batch_size=SCORING_BATCH, steps=4, seed=98), self.runtime)
            scores["before"] = self.score(model, self.data)
        self._fit(recipe, model)
        scores["validation"] = self.score(model, self.data)
        if self.test is not None:
            scores["test"] = self.score(model, self.test)
        content = {
            name: {key: getattr(each, key) for key in ("top1", "loss", "images")} for name, each in scores.items()
        }
        return {**content, "seconds": round(time.perf_counter() - begun, 1)}

    def score(self, model: nn.Module, data: ImageData) -> Score:
        """Score on the validation images of some data."""
        return score(
            model, data.validation_batches(batch_size=SCORING_BATCH, limit=self.case.score_images), self.runtime
        )

    def _model(self, recipe: Recipe, init: Path | None) -> nn.Module:
        torch.manual_seed(recipe.seed)
        options = TrainingOptions(out=self.folder, init=init)
        return self.runtime.prepare(make_network(recipe, options, "cpu", Callbacks())[0])

    def _fit(self, recipe: Recipe, model: nn.Module) -> None:
        assert recipe.train_steps_per_epoch is not None
        learner = Learner(
            recipe, model, runtime=self.runtime, ranks=Ranks(), steps_per_epoch=recipe.train_steps_per_epoch
        )
        for epoch in range(recipe.epochs):
            seed = int(np.random.SeedSequence((recipe.seed, epoch)).generate_state(1)[0])
            images: dict[str, Any] = {"batch_size": recipe.batch_size, "steps": learner.steps_per_epoch, "seed": seed}
            losses = [learner.step(*batch).total for batch in self.data.train_batches(**images)]
            if not torch.stack(losses).isfinite().all():
                raise TrainingDiverged(f"the loss of {recipe.model} is not finite in epoch {epoch + 1}")
            learner.end_epoch()
