"""Training a recipe from start to end: epochs, log, files, and going on after an interruption.

What is written: after every epoch first `best.safetensors`, `last.safetensors` and `log.csv`, then `state.safetensors`.
A training that dies in between repeats the epoch from the state before, with the same outcome.
"""

import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe, library_versions
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.engine.distributed import Ranks, process_group
from ltmsearch.engine.evaluation import Score, score
from ltmsearch.engine.runtime import amp_runtime, find_device, step_seconds
from ltmsearch.errors import InputError, TrainingDiverged
from ltmsearch.io.files import refuse_links_outward, refuse_unwritable, write_atomic
from ltmsearch.io.safetensors_state import load_state, save_state
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.training.builders import make_network, make_teacher, open_data
from ltmsearch.training.curves import write_curves
from ltmsearch.training.epoch_records import EpochRecord, select_best, write_log
from ltmsearch.training.learner import Learner, ib_start
from ltmsearch.training.options import BEST, LAST, LOG, RECIPE, STATE, TrainingOptions

_log = logging.getLogger(__name__)

SCORING_BATCH = 64
"""Images per forward pass of validation."""
STATUS_EVERY = 10
"""Steps between two looks at the loss: looking waits for a GPU."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training leaves behind."""

    folder: Path
    """Its files."""
    records: list[EpochRecord]
    """One per epoch."""
    recipe: Recipe
    """As trained."""
    gflops: float
    """Cost of one image at `recipe.img_size`."""
    params: int
    """Parameters of the net."""


def train_recipe(recipe: Recipe, options: TrainingOptions, callbacks: Callbacks | None = None) -> TrainingResult:
    """Train a recipe's subnet, or go on with a training that was interrupted.

    Started by torchrun, all processes train together; `recipe.batch_size` is that of all.

    Args:
        recipe: The subnet and how to train it.
        options: Data, start, device, folder.
        callbacks: Receives a note on progress, in the main process alone.

    Returns:
        The epochs; weights, log and curves lie in `options.out`.

    Raises:
        InputError: If recipe and options do not go together, or do not continue what is in the folder.
        TrainingDiverged: If the loss is not finite.
    """
    with process_group(options.device) as (ranks, device):
        watching = (callbacks or Callbacks()) if ranks.is_main else Callbacks()
        try:
            return _Session(recipe, options, ranks, device, watching).run()
        finally:
            watching.close()


class _Session:
    """One process's part in a training."""

    def __init__(
        self, recipe: Recipe, options: TrainingOptions, ranks: Ranks, device: str, callbacks: Callbacks
    ) -> None:
        self.recipe, self.options, self.ranks, self.callbacks = recipe, options, ranks, callbacks
        self.folder = options.out
        refuse_unwritable(self.folder, "the folder")
        refuse_links_outward(self.folder)
        stored = self._stored()
        self.runtime = amp_runtime(find_device(device), amp=recipe.amp, dtype=recipe.amp_dtype)
        if recipe.batch_size % (ranks.world * recipe.grad_accum_steps):
            raise InputError(
                f"batch_size must be a multiple of processes times grad_accum_steps, but got {recipe.batch_size} and "
                f"{ranks.world} × {recipe.grad_accum_steps}"
            )
        self.batch = recipe.batch_size // ranks.world
        if (recipe.mixup or recipe.cutmix) and self.batch % 2:
            raise InputError(f"mixup and cutmix need an even number of images per process, but got {self.batch}")
        self.data = open_data(recipe, options, callbacks)
        if self.data.num_classes != recipe.num_classes:
            raise InputError(
                f"the recipe's num_classes must be the data's {self.data.num_classes}, but is {recipe.num_classes}; "
                f"--num-classes {self.data.num_classes} would do"
            )
        torch.manual_seed(recipe.seed)
        model = make_network(recipe, options, self.runtime.device.type, callbacks)
        costs = backbone_costs(
            recipe.backbone, recipe.img_size, recipe.schedule.operator, num_classes=recipe.num_classes
        )
        self.gflops = costs.macs(recipe.schedule) / GIGA
        self.params = sum(parameter.numel() for parameter in model.parameters())
        one_pass = max(1, self.data.training_size // recipe.batch_size)
        steps = stored["steps_per_epoch"] if stored else recipe.train_steps_per_epoch or one_pass
        self.runtime.prepare(model)
        self.seconds = self._measure(model)
        teacher = make_teacher(recipe, options)
        self.learner = Learner(
            recipe,
            model,
            runtime=self.runtime,
            ranks=ranks,
            steps_per_epoch=steps,
            teacher=self.runtime.prepare(teacher).eval() if teacher is not None else None,
        )
        self.records: list[EpochRecord] = []
        if stored:
            self._continue_from(stored)

    def run(self) -> TrainingResult:
        """Train the epochs that are left."""
        recipe, learner = self.recipe, self.learner
        self._describe()
        _log.info("recipe: %s; options: %s", _plain(self.recipe), self.options.decisive())
        if self.ranks.is_main:
            self._open_folder()
        self.callbacks.phase("training", recipe.epochs * learner.steps_per_epoch)
        for epoch in range(learner.epochs_done, recipe.epochs):
            self.records.append(self._epoch(epoch))
            if self.ranks.is_main:
                start = time.perf_counter()
                self._save()
                _log.info("epoch %d saved in %.2f s", epoch + 1, time.perf_counter() - start)
            self.ranks.barrier()
        self.callbacks.advance(learner.steps, self._standing())
        if self.ranks.is_main:
            self._draw(png=True)
        return TrainingResult(
            folder=self.folder, records=self.records, recipe=recipe, gflops=self.gflops, params=self.params
        )

    # -- one epoch -----------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> EpochRecord:
        learner, start = self.learner, time.perf_counter()
        seed = int(np.random.SeedSequence((self.recipe.seed, epoch)).generate_state(1)[0])
        batches = self.data.train_batches(
            batch_size=self.batch, steps=learner.steps_per_epoch, seed=seed, shard=self.ranks.shard
        )
        ib_weight = learner.ib_weight
        total, ib = torch.zeros(2, device=self.runtime.device, dtype=torch.float64)
        for place, (images, labels) in enumerate(batches):
            losses = learner.step(images, labels)
            total += losses.total
            ib += losses.ib if losses.ib is not None else 0.0
            if place % STATUS_EVERY == 0:
                self.callbacks.advance(
                    learner.steps, f"epoch {epoch + 1}, loss {float(losses.total):.2f}{self._best()}"
                )
        total, ib = self.ranks.all_reduce_(torch.stack((total, ib))) / (learner.steps_per_epoch * self.ranks.world)
        if not math.isfinite(float(total)):
            begun = f"; --resume goes on after epoch {epoch}" if epoch else ""
            raise TrainingDiverged(
                f"the loss is not finite in epoch {epoch + 1}: a lower lr, clip_grad or --no-amp would help{begun}"
            )
        learner.end_epoch()
        seconds = time.perf_counter() - start
        scores = self._validate()
        trained, ema = scores["trained"], scores.get("EMA")
        terms = trained.ib
        record = EpochRecord(
            epoch=epoch + 1,
            lr=learner.lr,
            train_loss=float(total),
            train_ib=float(ib) if ib_weight else None,
            ib_weight=ib_weight,
            top1=trained.top1,
            top5=trained.top5,
            loss=trained.loss,
            ema_top1=ema.top1 if ema else None,
            ema_top5=ema.top5 if ema else None,
            ema_loss=ema.loss if ema else None,
            mi_x=terms.mi_x if terms else None,
            mi_y=terms.mi_y if terms else None,
            ib=terms.ib if terms else None,
            ibb=terms.ibb if terms else None,
            images_per_second=learner.steps_per_epoch * self.recipe.batch_size / seconds,
            seconds=time.perf_counter() - start,
        )
        told = {name: value for name, value in asdict(record).items() if value is not None}
        _log.info("%s", ", ".join(f"{name} {value:.5g}" for name, value in told.items()))
        return record

    def _validate(self) -> dict[str, Score]:
        """Scores of the weights as trained and of their average, and the information terms of the former."""
        learner = self.learner
        scores = {}
        nets = {"trained": learner.model} | ({"EMA": learner.ema.module} if learner.ema is not None else {})
        for name, net in nets.items():
            batches = self.data.validation_batches(batch_size=SCORING_BATCH, shard=self.ranks.shard)
            ib = learner.ib if name == "trained" else None
            scores[name] = score(net, batches, self.runtime, ib=ib, add_up=self.ranks.all_reduce_)
        return scores

    # -- files ---------------------------------------------------------------------------------------------------

    def _stored(self) -> dict[str, Any] | None:
        """The state in the folder, checked to be one that goes on; None where the training begins."""
        path = self.folder / STATE
        if not path.exists():
            if self.options.resume:
                self.callbacks.note(f"{self.folder} holds no training yet: it begins")
            return None
        if not self.options.resume:
            raise InputError(f"{self.folder} holds a training already: --resume continues it, --out DIR begins another")
        stored = load_state(path)
        try:
            then, now = {**stored["recipe"], **stored["options"]}, {**_plain(self.recipe), **self.options.decisive()}
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} must be the state of an ltmsearch training, but lacks {error}") from error
        differing = [
            f"{name} is {then.get(name)!r} there and {now[name]!r} now" for name in now if then.get(name) != now[name]
        ]
        if differing:
            raise InputError(
                f"{self.folder} holds a training of another kind ({'; '.join(differing)}); resume it with its own, "
                "or begin another with --out DIR"
            )
        return stored

    def _continue_from(self, stored: dict[str, Any]) -> None:
        try:
            self.learner.load(stored["learner"])
            self.records = [EpochRecord(**row) for row in stored["records"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{self.folder / STATE} does not fit this training: {error}") from error
        self.callbacks.note(f"continuing after epoch {self.learner.epochs_done} of {self.recipe.epochs}")

    def _open_folder(self) -> None:
        origin = {
            **self.options.decisive(), "gflops": self.gflops, "params": self.params, "device": str(self.runtime),
            "processes": self.ranks.world, "versions": dict(library_versions()),
        }  # fmt: skip
        recipe = self.recipe.model_copy(update={"provenance": {**self.recipe.provenance, "training": origin}})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            recipe.save(self.folder / RECIPE)
        except OSError as error:
            raise InputError(f"the folder {self.folder} cannot be written: {error.strerror or error}") from error

    def _save(self) -> None:
        """Write weights and log, then the state that says so."""
        learner = self.learner
        now, best = select_best(self.records[-1:]), select_best(self.records)
        net = learner.ema.module if now.weights == "EMA" and learner.ema is not None else learner.model
        facts = {"class_names": list(self.data.class_names), **now._asdict()}
        content = pack_weights(net.state_dict(), facts)
        if best.epoch == now.epoch:
            write_atomic(self.folder / BEST, content)
        write_atomic(self.folder / LAST, content)
        write_log(self.records, self.folder / LOG)
        self._draw(png=False)
        save_state(
            self.folder / STATE,
            {
                "recipe": _plain(self.recipe),
                "options": self.options.decisive(),
                "steps_per_epoch": learner.steps_per_epoch,
                "records": [asdict(record) for record in self.records],
                "learner": learner.state(),
            },
        )

    def _draw(self, *, png: bool) -> None:
        written = write_curves(
            self.records, self.folder, title=f"{self.recipe.model}, {self.gflops:.3f} GFLOPs", png=png
        )
        if written.note:
            self.callbacks.note(written.note)

    # -- words ---------------------------------------------------------------------------------------------------

    def _measure(self, model: nn.Module) -> tuple[float, float]:
        """Seconds per image of a training step and of a forward pass."""
        size = min(self.batch // self.recipe.grad_accum_steps, 32)
        images = torch.zeros((size, 3, self.recipe.img_size, self.recipe.img_size))
        train, score = (step_seconds(self.runtime, model, images, train=train) / size for train in (True, False))
        return train, score

    def _describe(self) -> None:
        recipe, learner = self.recipe, self.learner
        merging = len(recipe.schedule.merging_layers)
        processes = f", {self.ranks.world} processes" if self.ranks.world > 1 else ""
        number = torch.get_num_threads()
        threads = f", {number} thread{'s' * (number > 1)}" if self.runtime.device.type == "cpu" else ""
        start = f"weights of {self.options.init}" if self.options.init else "scratch"
        ib = "without IB loss"
        if recipe.ib_weight:
            ib = f"IB loss of weight {recipe.ib_weight:g} from epoch {ib_start(recipe) + 1}"
        lines = [
            f"{recipe.model}: {merging} layers merge by {recipe.schedule.operator}, {self.gflops:.4f} GFLOPs at "
            f"{recipe.img_size} px (multiply-adds per image), {self.params / 1e6:.2f} M parameters",
            f"data: {self.data.description}",
            f"device: {self.runtime}{threads}{processes}",
            f"from {start}: {recipe.epochs} epochs of {learner.steps_per_epoch} steps of {recipe.batch_size} images, "
            f"{recipe.opt}, learning rate {recipe.lr:g}, {ib}, seed {recipe.seed}",
        ]
        if self.options.dataset == "digits":
            lines.append("the built-in digits are drawn at random: scale, ratio and hflip do not apply")
        if recipe.ib_weight and ib_start(recipe) >= recipe.epochs:
            lines.append("the IB loss never sets in: it needs the statistics of an epoch and its warm-up before it")
        if left := recipe.epochs - learner.epochs_done:
            train, score = self.seconds
            teacher = 0.5 if learner.teacher is not None else 0.0
            epoch = learner.steps_per_epoch * self.batch * (1 + teacher) * train
            epoch += self.data.validation_size / self.ranks.world * score * (2 if learner.ema is not None else 1)
            lines.append(f"expected to take about {left * epoch / 60:.1f} minutes")
        for line in lines:
            self.callbacks.note(line)

    def _best(self) -> str:
        return f", best {select_best(self.records).top1:.1f} %" if self.records else ""

    def _standing(self) -> str:
        last = self.records[-1]
        return f"epoch {last.epoch}, loss {last.train_loss:.2f}{self._best()}"


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON holds it, without where it comes from."""
    content: dict[str, Any] = recipe.model_dump(mode="json", exclude={"provenance"})
    return content
