"""Training of a recipe from start to end: epochs, log, files, and resuming after an interruption.

After every epoch `best.safetensors`, `last.safetensors` and `log.csv` are written first, then `state.safetensors`. A
training that dies in between repeats the epoch from the previous state, with the same result.
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

from ltmsearch.callbacks import Callbacks, about
from ltmsearch.config.recipe import Recipe, library_versions
from ltmsearch.costs import backbone_costs
from ltmsearch.engine.distributed import Ranks, process_group
from ltmsearch.engine.evaluation import Score, score
from ltmsearch.engine.image_costs import COST_IMAGES, depends_on_images
from ltmsearch.engine.linear_probe import MAX_IMAGES
from ltmsearch.engine.runtime import Runtime, amp_runtime, find_device
from ltmsearch.engine.stopwatch import step_seconds
from ltmsearch.errors import InputError, TrainingDiverged
from ltmsearch.io.files import refuse_links_outward, refuse_unwritable, write_atomic
from ltmsearch.io.safetensors_state import load_state, save_state
from ltmsearch.io.yaml_models import check
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.training.builders import make_network, make_teacher, open_data, open_training_data, present_gflops
from ltmsearch.training.curves import write_curves
from ltmsearch.training.epoch_records import EpochRecord, select_best, write_log
from ltmsearch.training.learner import Learner, ib_start
from ltmsearch.training.masks import fit_new_masks
from ltmsearch.training.options import BEST, LAST, LOG, RECIPE, STATE, TrainingOptions
from ltmsearch.training.probe import fit_new_classifiers

_log = logging.getLogger(__name__)

SCORING_BATCH = 64
"""Images per forward pass of validation."""
STATUS_EVERY = 10
"""Steps between two status reports, since reading the loss waits for a GPU."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Result of a training."""

    folder: Path
    records: list[EpochRecord]
    recipe: Recipe
    """Recipe as trained."""
    gflops: float
    """Cost of one image at `recipe.img_size`; where it depends on the image, the mean over `COST_IMAGES` training
    images with the last weights."""
    params: int


def train_recipe(recipe: Recipe, options: TrainingOptions, callbacks: Callbacks | None = None) -> TrainingResult:
    """Train a recipe's subnet, or resume an interrupted training.

    Under torchrun, all processes train together; `recipe.batch_size` is the total of all.

    Returns:
        The epochs; weights, log and curves are in `options.out`.

    Raises:
        InputError: If recipe and options do not match, or differ from those of the training in the folder.
        TrainingDiverged: If the loss is not finite.
    """
    with process_group(options.device) as (ranks, device):
        watching = (callbacks or Callbacks()) if ranks.is_main else Callbacks()
        try:
            return _Trainer(recipe, options, ranks, device, watching).run()
        finally:
            watching.close()


class _Trainer:
    """One process of a training."""

    def __init__(
        self, recipe: Recipe, options: TrainingOptions, ranks: Ranks, device: str, callbacks: Callbacks
    ) -> None:
        self.recipe, self.options, self.ranks, self.callbacks = recipe, options, ranks, callbacks
        self.folder = options.out
        refuse_unwritable(self.folder, "the folder")
        refuse_links_outward(self.folder)
        stored = self._stored_state()
        self.runtime = amp_runtime(find_device(device), amp=recipe.amp, dtype=recipe.amp_dtype)
        self.batch = _images_per_process(recipe, ranks.world)
        self.data = open_data(recipe, options, callbacks)
        self.training_data = open_training_data(recipe, options, self.data, callbacks)
        self.data.refuse_more_classes("the recipe's num_classes", recipe.num_classes)
        self._refuse_other_classes(stored)
        torch.manual_seed(recipe.seed)
        model, new_classifiers = make_network(recipe, options, self.runtime.device.type, callbacks)
        self.new_classifiers = () if stored or options.head == "random" else new_classifiers
        self.probe: dict[str, Any] | None = None
        costs = backbone_costs(recipe.backbone, recipe.img_size, recipe.schedule.operator, **recipe.network)
        self.costs = costs
        self.merging = sum(after < before for before, after in costs.tokens(recipe.schedule).values())
        self.params = sum(parameter.numel() for parameter in model.parameters())
        one_pass = max(1, self.data.training_size // recipe.batch_size)
        steps = stored["steps_per_epoch"] if stored else recipe.train_steps_per_epoch or one_pass
        self.runtime.prepare(model)
        self.gflops = present_gflops(recipe, costs, model, self.data, self.runtime)
        self.seconds = _seconds_per_image(recipe, model, self.runtime, images=self.batch // recipe.grad_accum_steps)
        teacher = make_teacher(recipe, options)
        self.learner = Learner(
            recipe,
            model,
            runtime=self.runtime,
            ranks=ranks,
            steps_per_epoch=steps,
            teacher=self.runtime.prepare(teacher).eval() if teacher is not None else None,
            classes=self.data.num_classes,
        )
        self.records: list[EpochRecord] = []
        if stored:
            self._restore(stored)

    def run(self) -> TrainingResult:
        """Train the remaining epochs."""
        recipe, learner = self.recipe, self.learner
        for line in self._describe():
            self.callbacks.note(line)
        _log.info("recipe: %s; options: %s", _as_json(recipe), self.options.fixed())
        if self.new_classifiers:
            self._fit_classifiers()
        if self.options.init is not None and not learner.epochs_done:
            fit_new_masks(learner, recipe, self.data, self.runtime, self.ranks, self.callbacks)
        if self.ranks.is_main:
            self._open_folder()
        self.callbacks.phase("training", recipe.epochs * learner.steps_per_epoch)
        for epoch in range(learner.epochs_done, recipe.epochs):
            self.records.append(self._train_epoch(epoch))
            if self.ranks.is_main:
                start = time.perf_counter()
                self._save()
                _log.info("epoch %d saved in %.2f s", epoch + 1, time.perf_counter() - start)
            self.ranks.barrier()
        self.callbacks.advance(learner.steps, self._status(recipe.epochs, self.records[-1].train_loss))
        self.gflops = present_gflops(recipe, self.costs, learner.model, self.data, self.runtime)
        if self.ranks.is_main:
            self._draw(png=True)
        return TrainingResult(
            folder=self.folder, records=self.records, recipe=recipe, gflops=self.gflops, params=self.params
        )

    def _fit_classifiers(self) -> None:
        """Fit new classifiers by a linear probe, in this network and its average, and on all processes."""
        ema = self.learner.ema
        nets = [self.learner.model] if ema is None else [self.learner.model, ema.module]
        record = fit_new_classifiers(
            nets, self.new_classifiers, self.recipe, self.options, self.data, self.runtime, self.ranks, self.callbacks
        )
        self.probe = None if record is None else record.model_dump()

    # -- one epoch -----------------------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int) -> EpochRecord:
        learner, start = self.learner, time.perf_counter()
        seed = int(np.random.SeedSequence((self.recipe.seed, epoch)).generate_state(1)[0])
        batches = self.training_data.train_batches(
            batch_size=self.batch, steps=learner.steps_per_epoch, seed=seed, shard=self.ranks.shard
        )
        ib_weight = learner.ib_weight
        total, ib = torch.zeros(2, device=self.runtime.device, dtype=torch.float64)
        for step, (images, labels) in enumerate(batches):
            losses = learner.step(images, labels)
            total += losses.total
            ib += losses.ib if losses.ib is not None else 0.0
            if step % STATUS_EVERY == 0:
                self.callbacks.advance(learner.steps, self._status(epoch + 1, float(losses.total)))
        total, ib = self.ranks.all_reduce_(torch.stack((total, ib))) / (learner.steps_per_epoch * self.ranks.world)
        if not math.isfinite(float(total)):
            resume = f"; --resume continues after epoch {epoch}" if epoch else ""
            raise TrainingDiverged(
                f"the loss is not finite in epoch {epoch + 1}; try a lower lr, clip_grad or --no-amp{resume}"
            )
        learner.end_epoch()
        seconds = time.perf_counter() - start
        trained, ema = self._validate()
        terms = {name: getattr(trained.ib, name) for name in ("mi_x", "mi_y", "ib", "ibb")} if trained.ib else {}
        if ema is not None:
            terms |= {"ema_top1": ema.top1, "ema_top5": ema.top5, "ema_loss": ema.loss}
        record = EpochRecord(
            epoch=epoch + 1,
            lr=learner.lr,
            train_loss=float(total),
            train_ib=float(ib) if ib_weight else None,
            ib_weight=ib_weight,
            top1=trained.top1,
            top5=trained.top5,
            loss=trained.loss,
            images_per_second=learner.steps_per_epoch * self.recipe.batch_size / seconds,
            seconds=time.perf_counter() - start,
            **terms,
        )
        _log.info("%s", ", ".join(f"{name} {value:.5g}" for name, value in asdict(record).items() if value is not None))
        return record

    def _validate(self) -> tuple[Score, Score | None]:
        """Score the weights as trained, with the information terms, and their average."""
        learner = self.learner
        scores = []
        for net, ib in ((learner.model, learner.ib), (learner.ema and learner.ema.module, None)):
            if net is not None:
                batches = self.data.validation_batches(batch_size=SCORING_BATCH, shard=self.ranks.shard)
                scores.append(score(net, batches, self.runtime, ib=ib, add_up=self.ranks.all_reduce_))
        return scores[0], scores[1] if len(scores) > 1 else None

    # -- files ---------------------------------------------------------------------------------------------------

    def _stored_state(self) -> dict[str, Any] | None:
        """Return the state in the folder, checked against recipe and options; None for a new training."""
        path = self.folder / STATE
        if not path.exists():
            if self.options.resume:
                self.callbacks.note(f"{self.folder} has no training yet, so a new one starts")
            return None
        if not self.options.resume:
            raise InputError(
                f"{self.folder} already has a training; use --resume to continue it or --out DIR for a new one"
            )
        stored = load_state(path)
        current = {**_as_json(self.recipe), **self.options.fixed()}
        try:
            # Through a recipe, which has the keys that an earlier version did not know.
            previous = {**_as_json(check(Recipe, stored["recipe"], str(path))), **stored["options"]}
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} must be the state of an ltmsearch training, but lacks {error}") from error
        changed = [
            f"{name} was {previous.get(name)!r} and is now {value!r}"
            for name, value in current.items()
            if previous.get(name) != value
        ]
        if changed:
            raise InputError(
                f"{self.folder} has a different training ({'; '.join(changed)}); resume it with its own recipe and "
                "options, or start a new one with --out DIR"
            )
        return stored

    def _refuse_other_classes(self, stored: dict[str, Any] | None) -> None:
        before = (stored or {}).get("class_names")  # states of earlier versions have none
        if before not in (None, list(self.data.class_names)):
            raise InputError(
                f"the training in {self.folder} must be resumed with the classes that it began with, but the data or "
                "their class map have others or another order"
            )

    def _restore(self, stored: dict[str, Any]) -> None:
        try:
            self.learner.load(stored["learner"])
            self.records = [EpochRecord(**row) for row in stored["records"]]
            self.probe = stored.get("probe")  # states of earlier versions have none
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{self.folder / STATE} does not fit this training: {reason}") from error
        self.callbacks.note(f"continuing after epoch {self.learner.epochs_done} of {self.recipe.epochs}")

    def _open_folder(self) -> None:
        origin = {
            **self.options.fixed(),
            "gflops": self.gflops,
            "params": self.params,
            "device": str(self.runtime),
            "processes": self.ranks.world,
            "versions": dict(library_versions()),
            **({"probe": self.probe} if self.probe else {}),
        }
        recipe = self.recipe.model_copy(update={"provenance": {**self.recipe.provenance, "training": origin}})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            recipe.save(self.folder / RECIPE)
        except OSError as error:
            raise InputError(f"the folder {self.folder} cannot be written: {error.strerror or error}") from error

    def _save(self) -> None:
        """Write weights and log, and then the state that refers to them."""
        learner = self.learner
        current, best = select_best(self.records[-1:]), select_best(self.records)
        net = learner.ema.module if current.weights == "EMA" and learner.ema is not None else learner.model
        content = pack_weights(net.state_dict(), {"class_names": list(self.data.class_names), **current._asdict()})
        if best.epoch == current.epoch:
            write_atomic(self.folder / BEST, content)
        write_atomic(self.folder / LAST, content)
        write_log(self.records, self.folder / LOG)
        self._draw(png=False)
        state = {
            "recipe": _as_json(self.recipe),
            "options": self.options.fixed(),
            "steps_per_epoch": learner.steps_per_epoch,
            "class_names": list(self.data.class_names),
            "records": [asdict(record) for record in self.records],
            "probe": self.probe,
            "learner": learner.state(),
        }
        save_state(self.folder / STATE, state)

    def _draw(self, *, png: bool) -> None:
        title = f"{self.recipe.model}, {self.gflops:.3f} GFLOPs"
        note = write_curves(self.records, self.folder, title=title, png=png)
        if note:
            self.callbacks.note(note)

    # -- messages ------------------------------------------------------------------------------------------------

    def _describe(self) -> list[str]:
        recipe, learner, processes = self.recipe, self.learner, self.ranks.world
        number = torch.get_num_threads()
        threads = f", {number} thread{'s' * (number > 1)}" if self.runtime.device.type == "cpu" else ""
        start = f"the weights of {self.options.init}" if self.options.init else "random weights"
        ib = "without IB loss"
        if recipe.ib_weight:
            ib = f"IB loss of weight {recipe.ib_weight:g} from epoch {ib_start(recipe) + 1}"
        measured = f", mean of {COST_IMAGES} training images now" if depends_on_images(recipe.schedule) else ""
        lines = [
            f"{recipe.model}: {self.merging} layers merge by {recipe.schedule.operator}, "
            f"{self.gflops:.4f} GFLOPs at {recipe.img_size} px (multiply-adds per image{measured}), "
            f"{self.params / 1e6:.2f} M parameters",
            f"data: {self.data.description}",
            f"device: {self.runtime}{threads}" + (f", {processes} processes" if processes > 1 else ""),
            f"from {start}: {recipe.epochs} epochs of {learner.steps_per_epoch} steps of {recipe.batch_size} images, "
            f"{recipe.opt}, learning rate {recipe.lr:g}, {ib}, seed {recipe.seed}",
        ]
        if recipe.num_classes > self.data.num_classes:
            lines.append(self.data.about_outputs(recipe.num_classes))
        named = len(recipe.schedule.merging_layers)
        if self.merging < named:
            lines.append(
                f"at {recipe.img_size} px {named - self.merging} of the recipe's {named} merging layers keep all "
                "tokens: their grids are too small for their keep ratios"
            )
        if recipe.train_steps_per_epoch is None and self.data.training_size < recipe.batch_size:
            lines.append(
                f"an epoch is one step of batch_size {recipe.batch_size}, but there are {self.data.training_size} "
                f"training images: each is seen {recipe.batch_size / self.data.training_size:.1f} times in it"
            )
        if self.new_classifiers:
            lines.append(
                f"the classifier is new, and fitted to the features of {self.options.init} before the first epoch "
                "(--head random: not fitted)"
            )
        elif self.options.head == "probe" and not self.records:
            lines.append(f"the classifier of {self.options.init} fits the data, and is kept")
        if self.options.dataset == "digits":
            lines.append("the built-in digits are drawn at random: scale, ratio and hflip do not apply")
        if recipe.ib_weight and ib_start(recipe) >= recipe.epochs:
            lines.append("the IB loss never starts: statistics and warm-up need more epochs")
        if remaining := recipe.epochs - learner.epochs_done:
            train, forward = self.seconds
            teacher = 0.5 if learner.teacher is not None else 0.0
            epoch = learner.steps_per_epoch * self.batch * (1 + teacher) * train
            epoch += self.data.validation_size / processes * forward * (2 if learner.ema is not None else 1)
            scored = min(MAX_IMAGES, self.data.training_size) + self.data.validation_size
            probe = scored * forward if self.new_classifiers else 0.0
            lines.append(f"expected to take {about(remaining * epoch + probe)}")
        return lines

    def _status(self, epoch: int, loss: float) -> str:
        best = f", best {select_best(self.records).top1:.1f} %" if self.records else ""
        return f"epoch {epoch}, loss {loss:.2f}{best}"


def _images_per_process(recipe: Recipe, processes: int) -> int:
    if recipe.batch_size % (processes * recipe.grad_accum_steps):
        raise InputError(
            f"batch_size must be a multiple of processes times grad_accum_steps, but got {recipe.batch_size} and "
            f"{processes} × {recipe.grad_accum_steps}"
        )
    images = recipe.batch_size // processes
    if (recipe.mixup or recipe.cutmix) and images % 2:
        raise InputError(f"mixup and cutmix need an even number of images per process, but got {images}")
    return images


def _seconds_per_image(recipe: Recipe, model: nn.Module, runtime: Runtime, *, images: int) -> list[float]:
    """Seconds per image of a training step and of a forward pass, with `images` in a pass."""
    batch = torch.zeros((min(images, 32), recipe.in_chans, recipe.img_size, recipe.img_size))
    try:
        return [step_seconds(runtime, model, batch, train=train) / len(batch) for train in (True, False)]
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"BatchNorm must see more than one value per channel in a pass, but {images} image of {recipe.img_size} px "
            "in a pass ends as a map of one: use a larger batch_size or img_size, or fewer grad_accum_steps"
        ) from error


def _as_json(recipe: Recipe) -> dict[str, Any]:
    content: dict[str, Any] = recipe.model_dump(mode="json", exclude={"provenance"})
    return content
