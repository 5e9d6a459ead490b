"""Training steps: the network, its average, the optimizer and the IB statistics.

Random numbers of a step depend only on the recipe's seed and the step's number. The state of a training therefore has
no generators, and a resumed training ends with exactly the weights of an uninterrupted one.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad, distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ltmsearch.config.recipe import Recipe
from ltmsearch.engine.distributed import Ranks
from ltmsearch.engine.ib_loss import IBLoss, input_features
from ltmsearch.engine.optimizers import backbone_rate, make_optimizer
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.steps import downscale
from ltmsearch.errors import InputError, unknown_name
from ltmsearch.models import ReturningOwnLoss, feature_dim, pooled_features

LOOKAHEAD = "lookahead_"
"""Prefix by which timm wraps any of its optimizers in Lookahead."""
IB_IMAGES_PER_CLASS = 20
IB_IMAGES = 16_384
"""Images at the end of an epoch for the IB statistics: `IB_IMAGES`, or more if that is too few per class."""


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """Mean losses of one step on this process, as tensors, since reading their values waits for the device."""

    total: Tensor
    """Training loss."""
    ib: Tensor | None
    """IB loss without its weight; None while it is off."""


class Learner:
    """Train one network by a recipe; `classes` of the data are the first outputs, None: all.

    Raises:
        InputError: If timm cannot build the optimizer or the learning-rate schedule.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        *,
        runtime: Runtime,
        ranks: Ranks,
        steps_per_epoch: int,
        teacher: nn.Module | None = None,
        classes: int | None = None,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.runtime = runtime
        self.ranks = ranks
        self.steps_per_epoch = steps_per_epoch
        self.teacher = teacher
        self.steps = 0
        self.ib = IBLoss(
            feature_dim=feature_dim(model),
            num_classes=recipe.num_classes if classes is None else classes,
            in_chans=recipe.in_chans,
            beta=recipe.ib_beta,
        ).to(runtime.device)
        self.optimizer = _optimizer(recipe, model)
        self.lr_schedule = _lr_schedule(recipe, self.optimizer, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        self.ema = (
            ModelEmaV3(model, decay=recipe.model_ema_decay, use_warmup=recipe.model_ema_warmup)
            if recipe.model_ema
            else None
        )
        self.mixup = _mixup(recipe)
        self._trained: nn.Module = ReturningOwnLoss(model)
        if ranks.world > 1:
            # Some operators get no gradient: those on a grid of one token, and those behind the last attention of a
            # network that pools its class token.
            self._trained = DistributedDataParallel(
                self._trained,
                device_ids=[runtime.device] if runtime.device.type == "cuda" else None,
                find_unused_parameters=True,
            )
        self._ib_samples: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def epochs_done(self) -> int:
        """Number of complete epochs."""
        return self.steps // self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return self.steps / (self.steps_per_epoch * self.recipe.epochs)

    @property
    def lr(self) -> float:
        """Learning rate of the backbone in the last step."""
        return backbone_rate(self.optimizer)

    @property
    def ib_weight(self) -> float:
        """Weight of the IB loss in the current epoch: zero during its warm-up."""
        return self.recipe.ib_weight if self.epochs_done >= ib_start(self.recipe) else 0.0

    def step(self, images: Tensor, labels: Tensor) -> StepLosses:
        """Update the weights by one batch: (B, 3, height, width) images of this process and their (B,) labels."""
        recipe = self.recipe
        epoch, ib_weight = self.epochs_done, self.ib_weight
        self._seed()
        if recipe.sched_on_updates:
            self.lr_schedule.step_update(self.steps)
        else:
            self.lr_schedule.step(epoch)
        self._trained.train()
        images, targets = self.runtime.images(images), labels.to(self.runtime.device)
        if self.mixup is not None and not 0 < recipe.mixup_off_epoch <= epoch:
            images, targets = self.mixup(images, targets)
        parts = list(zip(images.chunk(recipe.grad_accum_steps), targets.chunk(recipe.grad_accum_steps), strict=True))
        total, ib_total = torch.zeros((), device=self.runtime.device), torch.zeros((), device=self.runtime.device)
        for index, (part, part_targets) in enumerate(parts):
            last = index == len(parts) - 1
            context = nullcontext() if last or self.ranks.world == 1 else self._trained.no_sync()  # type: ignore[operator]
            with context:
                loss, ib = self._loss(part, part_targets, ib_weight)
                share = len(part) / len(images)
                self.scaler.scale(loss * share).backward()
            total += loss.detach() * share
            ib_total += ib.detach() * share
        self.scaler.unscale_(self.optimizer)
        if recipe.clip_grad is not None:
            dispatch_clip_grad(self.model.parameters(), recipe.clip_grad, mode=recipe.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.steps)
        return StepLosses(total=total, ib=ib_total if ib_weight else None)

    def end_epoch(self) -> None:
        """Average BatchNorm statistics over the processes, and compute IB statistics from the epoch's last images."""
        if self.ranks.world > 1 and not self.recipe.sync_bn:
            for net in [self.model] if self.ema is None else [self.model, self.ema.module]:
                distribute_bn(net, self.ranks.world, reduce=True)
        features, inputs, targets = (
            self.ranks.gather_interleaved(torch.cat(column)) for column in zip(*self._ib_samples, strict=True)
        )
        self._ib_samples = []
        if self.ranks.is_main:
            self.ib.fit(features, inputs, targets, seed=self.recipe.seed)
        for buffer in self.ib.buffers():
            self.ranks.broadcast_(buffer)

    def state(self) -> dict[str, Any]:
        """Return everything that further steps depend on."""
        return {
            "steps": self.steps,
            "model": dict(self.model.state_dict()),
            "ema": dict(self.ema.module.state_dict()) if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ib": dict(self.ib.state_dict()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            KeyError, ValueError, RuntimeError: If it belongs to another network or optimizer.
        """
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.ib.load_state_dict(state["ib"])
        self.steps = state["steps"]

    def _seed(self) -> None:
        seeds = np.random.SeedSequence((self.recipe.seed, self.steps, self.ranks.rank)).generate_state(2)
        torch.manual_seed(int(seeds[0]))
        np.random.seed(int(seeds[1]))  # timm's Mixup draws from the global generator

    def _loss(self, images: Tensor, targets: Tensor, ib_weight: float) -> tuple[Tensor, Tensor]:
        """Return the training loss and the IB loss, which is zero while it is off, of a part of a batch."""
        own = downscale(images, self.recipe.img_size)  # those of a teacher may be larger
        with pooled_features(self.model) as seen, self.runtime.autocast():
            logits, own_loss = self._trained(own, self.progress)
        features, logits = seen.pop().float(), logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.recipe.smoothing)
        if own_loss is not None:
            loss = loss + own_loss
        ib = loss.new_zeros(())
        if ib_weight:
            ib = self.ib(features, self._of_data(targets))
            loss = loss + ib_weight * ib
        if self.teacher is not None:
            with torch.no_grad(), self.runtime.autocast():
                teacher_logits = self.teacher(images).float()
            distillation = distillation_loss(logits, teacher_logits, self.recipe.kd_temperature)
            loss = loss + self.recipe.distill_loss_weight * distillation
        self._store_ib_samples(features, own, targets)
        return loss, ib

    def _of_data(self, targets: Tensor) -> Tensor:
        """(B,) labels as they are, or the part of (B, outputs) distributions that belongs to classes of the data."""
        return targets if targets.ndim == 1 else targets[:, : self.ib.num_classes]

    @torch.no_grad()
    def _store_ib_samples(self, features: Tensor, images: Tensor, targets: Tensor) -> None:
        number = max(IB_IMAGES, IB_IMAGES_PER_CLASS * self.ib.num_classes)
        steps = math.ceil(number / self.recipe.batch_size)
        if self.steps % self.steps_per_epoch >= self.steps_per_epoch - steps:
            self._ib_samples.append(
                (features.detach(), input_features(images), self.ib.distributions(self._of_data(targets)))
            )


def ib_start(recipe: Recipe) -> int:
    """Return the first epoch, from 0, with the IB loss; never 0, since statistics need one epoch."""
    return max(1, math.ceil(recipe.ib_warmup_ratio * recipe.epochs))


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² KL(teacher ‖ student) at temperature T, mean over the images of (B, C) logits.

    Source: Hinton, Vinyals & Dean, 2015, https://arxiv.org/abs/1503.02531.
    """
    student = (logits / temperature).log_softmax(dim=1)
    teacher = (teacher_logits / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    if recipe.opt.removeprefix(LOOKAHEAD) not in list_optimizers():
        raise unknown_name("optimizer", recipe.opt, list_optimizers())
    try:
        optimizer = make_optimizer(
            model,
            recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            layer_decay=recipe.layer_decay,
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:  # e.g. a missing library
        raise InputError(f"opt: timm cannot build the optimizer {recipe.opt!r} ({error})") from error
    if getattr(optimizer, "is_second_order", False):
        raise InputError(f"opt: {recipe.opt} needs second derivatives, which ltmsearch does not compute")
    return optimizer


def _lr_schedule(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.epochs - recipe.cooldown_epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            cooldown_epochs=recipe.cooldown_epochs,
            decay_epochs=recipe.decay_epochs,
            decay_rate=recipe.decay_rate,
            step_on_epochs=not recipe.sched_on_updates,
            updates_per_epoch=steps_per_epoch,
        )
    except ValueError as error:
        raise InputError(f"sched: {error}") from error
    return schedule


def _mixup(recipe: Recipe) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    if not (recipe.mixup or recipe.cutmix):
        return None
    # Without smoothing, which cross-entropy applies equally, and which the IB loss must not see.
    mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        mode=recipe.mixup_mode,
        label_smoothing=0.0,
        num_classes=recipe.num_classes,
    )
    return mixup
