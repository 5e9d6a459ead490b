"""Training of shared weights: the warm-up of the supernet, and the proxy training of a trial."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ltmsearch.engine.evaluation import Batches, divergence
from ltmsearch.engine.ib_loss import IBLoss
from ltmsearch.engine.optimizers import cosine_rate, make_optimizer, set_rates
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import TrialDiverged
from ltmsearch.models import output_and_own_loss, pooled_features
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

WEIGHT_DECAY = 0.01
CLIP_NORM = 5.0
"""Largest norm of the gradient of one step."""
LABEL_SMOOTHING = 0.1
SIZE_STRIDE = 16
"""Increment of growing images, in pixels; kernels need set-up time for each new size."""
LR_FLOOR = 0.05
"""The learning rate ends at this share of its peak."""
GPU_READ_INTERVAL = 16
"""Number of steps whose losses are read together on a GPU."""


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Plan of the supernet's training before the first trial: the plain network alone, then the sandwich rule."""

    base_steps: int
    """Steps of the plain network on labels."""
    base_img_size: int
    """Initial side of the images, in pixels; in the second half of the base steps they grow to full size (progressive
    learning: EfficientNetV2, https://arxiv.org/abs/2104.00298, section 4). A jump to full size instead cost 26 points
    of the plain network's top-1 on the digits."""
    sandwich_steps: int
    """Steps in which subnets learn to match the plain network."""
    lr: float
    """Peak learning rate (AdamW)."""
    taught: bool = False
    """Whether subnets learn from a network that does not change any more. Their steps then have a cosine of their own:
    in the tail of the first one, what the base steps leave of the rate, they would hardly learn."""

    def img_size(self, step: int, full: int) -> int:
        """Side of the images of a step, in pixels, in increments of `SIZE_STRIDE`."""
        progress = step / self.base_steps if self.base_steps else 1.0
        if progress >= 1 or self.base_img_size >= full:
            return full
        grown = (full - self.base_img_size) * max(0.0, 2 * progress - 1)
        # Rounded, so that the last of these steps use full size.
        size = self.base_img_size + SIZE_STRIDE * int(grown / SIZE_STRIDE + 0.5)
        return full if size + SIZE_STRIDE / 2 >= full else size

    @property
    def steps(self) -> int:
        return self.base_steps + self.sandwich_steps

    def rate(self, step: int) -> float:
        """Learning rate of the backbone in a step, from 0: along one cosine, or two if the subnets are taught."""
        if not self.taught:
            return _rate(self.lr, step, self.steps)
        return self.mask_rate(step) if step >= self.base_steps else _rate(self.lr, step, self.base_steps)

    def mask_rate(self, step: int) -> float:
        """Rate that the operators' is a multiple of: along a cosine of the sandwich steps, the only ones that merge."""
        return _rate(self.lr, max(0, step - self.base_steps), self.sandwich_steps)


def _rate(lr: float, step: int, steps: int) -> float:
    return cosine_rate(step, max(1, steps), peak=lr, floor=LR_FLOOR * lr, ramp=min(20, steps // 10))


def supernet_optimizer(supernet: Supernet, lr: float) -> Optimizer:
    """AdamW: see `make_optimizer`."""
    # Fused: the other implementations take three times as long on a CPU.
    return make_optimizer(supernet, "adamw", lr=lr, weight_decay=WEIGHT_DECAY, fused=True)


def disable_inplace_activations(model: nn.Module) -> None:
    """Disable in-place activations whose gradient needs their input, which autograd would have to copy."""
    for module in model.modules():
        if isinstance(module, nn.SiLU | nn.Hardswish):
            module.inplace = False


def warm_up(
    supernet: Supernet,
    plan: WarmUp,
    *,
    batches: Batches,
    draw: Callable[[np.random.Generator], Sequence[MergeSchedule]],
    seed: int,
    runtime: Runtime,
    teacher: Callable[[], nn.Module] | None = None,
    sides: Mapping[int, int] | None = None,
    optimizer: Optimizer | None = None,
    first_step: int = 0,
) -> Iterator[float]:
    """Train the shared weights; yields the loss after every step (on a GPU, the last one read).

    The base steps train the plain network on labels. In a sandwich step a few subnets learn from the plain network's
    logits, and their gradients are summed (sandwich rule and in-place distillation: https://arxiv.org/abs/1903.05134).
    Without a teacher the plain network learns from labels in the same step; with one, the teacher's logits are the
    target, the plain network is not trained any more, and the loss is the mean divergence of the subnets.

    Args:
        draw: Draws the schedules of a sandwich step.
        teacher: Returns the network to learn from; called first when the base steps are done.
        sides: Image size of a schedule → image side in training; images are downscaled to it.
        first_step: Number of steps that are done; `batches` are those of the steps from there on, and `optimizer` is
            that of the earlier steps.

    Raises:
        TrialDiverged: If the loss is not finite.
    """
    if not plan.steps:
        return
    rng = np.random.default_rng(seed)
    for _ in range(max(0, first_step - plan.base_steps)):
        draw(rng)
    optimizer = optimizer or supernet_optimizer(supernet, plan.lr)
    monitor = LossMonitor("the warm-up", interval=read_interval(runtime.device))
    disable_inplace_activations(supernet)
    supernet.train()
    for step, (images, labels) in enumerate(batches, start=first_step):
        sandwich = step >= plan.base_steps
        images = downscale(images, plan.img_size(step, full=images.shape[-1]))
        images, labels = runtime.images(images), labels.to(runtime.device, non_blocking=True)
        set_rates(optimizer, backbone=plan.rate(step), masks=plan.mask_rate(step))
        progress = (step - plan.base_steps) / plan.sandwich_steps if sandwich else 0.0
        if sandwich and teacher is not None:
            with torch.inference_mode(), runtime.autocast():
                target = teacher()(images).float().log_softmax(dim=1)
            loss = _distil(supernet, images, target.clone(), draw(rng), runtime, progress, sides)
        else:
            loss, logits = _label_loss(supernet, images, labels, runtime)
            loss.backward()
            if sandwich:
                target = logits.detach().log_softmax(dim=1)
                _distil(supernet, images, target, draw(rng), runtime, progress, sides)
        _step(supernet, optimizer, loss, monitor)
        yield monitor.last
    monitor.read()


def downscale(images: Tensor, img_size: int) -> Tensor:
    """(B, 3, S, S) images resized to a smaller side in pixels; unchanged if they are not larger."""
    if images.shape[-1] <= img_size:
        return images
    return F.interpolate(images, size=(img_size, img_size), mode="bilinear", antialias=True)


def proxy_train(
    supernet: Supernet,
    schedule: MergeSchedule,
    batches: Batches,
    *,
    lr: float,
    runtime: Runtime,
    teacher: Tensor | None = None,
    ib: tuple[float, IBLoss] | None = None,
) -> float | None:
    """Train one subnet for a few steps, in place, and return the mean loss (None without steps).

    It learns from labels by cross-entropy, or from a teacher by KL divergence.

    Parameters before the first layer, which all subnets share unchanged, are not trained.

    Args:
        lr: Constant learning rate (AdamW).
        teacher: (images, classes) log-probabilities of the teacher for the images in the order of the batches.
        ib: Weight of the IB loss added to that of the predictions, and that loss, fitted; None: no IB loss.

    Raises:
        TrialDiverged: If the loss is not finite.
    """
    optimizer = supernet_optimizer(supernet, lr)
    set_rates(optimizer, backbone=lr, masks=lr)
    monitor = LossMonitor("the proxy training", interval=read_interval(runtime.device))
    disable_inplace_activations(supernet)
    supernet.train()
    with supernet.active(schedule), supernet.frozen_prefix(), ExitStack() as stack:
        features = stack.enter_context(pooled_features(supernet.model)) if ib else []
        done = 0
        for images, labels in batches:
            images, labels = runtime.images(images), labels.to(runtime.device, non_blocking=True)
            if teacher is None:
                loss, _ = _label_loss(supernet, images, labels, runtime)
            else:
                target = teacher[done : done + len(labels)].to(runtime.device)
                loss = _teacher_loss(supernet, images, target, runtime, progress=1.0)
            done += len(labels)
            if ib:
                ib_weight, ib_loss = ib
                loss = loss + ib_weight * ib_loss(features.pop(), labels)
            loss.backward()
            _step(supernet, optimizer, loss, monitor)
    monitor.read()
    return monitor.mean


def _label_loss(supernet: Supernet, images: Tensor, labels: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Cross-entropy under the active schedule, and the (B, classes) float32 logits.

    Trials come after the warm-up, at whose end the operators' own losses have their final weight.
    """
    with runtime.autocast():
        logits, own_loss = output_and_own_loss(supernet, images, progress=1.0)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING)
    return loss if own_loss is None else loss + own_loss, logits.float()


def _teacher_loss(supernet: Supernet, images: Tensor, target: Tensor, runtime: Runtime, progress: float) -> Tensor:
    """Mean KL divergence from (B, classes) log-probabilities under the active schedule, with the operators' losses."""
    with runtime.autocast():
        logits, own_loss = output_and_own_loss(supernet, images, progress)
    loss = divergence(logits.float(), target).mean()
    return loss if own_loss is None else loss + own_loss


def _distil(
    supernet: Supernet,
    images: Tensor,
    target: Tensor,
    schedules: Sequence[MergeSchedule],
    runtime: Runtime,
    progress: float,
    sides: Mapping[int, int] | None,
) -> Tensor:
    """Add the gradients of subnets that learn from (B, classes) log-probabilities, and return their mean loss.

    `progress`: share of the sandwich steps that are done.
    """
    losses = []
    with supernet.frozen_prefix():
        for schedule in schedules:
            own = images if schedule.img_size is None or sides is None else downscale(images, sides[schedule.img_size])
            with supernet.active(schedule):
                loss = _teacher_loss(supernet, own, target, runtime, progress)
            loss.backward()
            losses.append(loss.detach())
    return torch.stack(losses).mean()


class LossMonitor:
    """Monitors the losses of a training without synchronising with the device at every step.

    Reading a number waits for all work queued on a GPU, so losses are read together there. A training that diverged
    stops at the next reading; on a CPU, with an interval of 1, before the step.
    """

    def __init__(self, name: str, *, interval: int) -> None:
        self.name = name
        self.interval = interval
        self.last = math.nan
        """The last loss that was read. The first is read at once."""
        self._unread: list[Tensor] = []
        self._total, self._steps = 0.0, 0

    @property
    def mean(self) -> float | None:
        """Mean of the losses read so far, None before the first."""
        return self._total / self._steps if self._steps else None

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Add the loss and gradient norm of a step, and read them at the end of an interval.

        Raises:
            TrialDiverged: If a number that is read is not finite.
        """
        self._unread.append(torch.stack((loss.detach(), norm.detach())))
        if len(self._unread) == self.interval or not self._steps:
            self.read()

    def read(self) -> None:
        """Read all unread losses; raises as `add`."""
        if not self._unread:
            return
        numbers = torch.stack(self._unread).tolist()
        self._unread = []
        if not all(math.isfinite(loss) and math.isfinite(norm) for loss, norm in numbers):
            raise TrialDiverged(f"{self.name} diverged: the loss or its gradient is not finite")
        self.last = numbers[-1][0]
        self._total += sum(loss for loss, _ in numbers)
        self._steps += len(numbers)


def read_interval(device: torch.device) -> int:
    """Number of steps whose losses are read together on a device."""
    return 1 if device.type == "cpu" else GPU_READ_INTERVAL


def _step(supernet: Supernet, optimizer: Optimizer, loss: Tensor, monitor: LossMonitor) -> None:
    norm = torch.nn.utils.clip_grad_norm_(supernet.parameters(), CLIP_NORM)
    try:
        monitor.add(loss, norm)
        optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
