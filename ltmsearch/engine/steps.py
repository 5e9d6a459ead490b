"""Training steps on shared weights: the warm-up of the supernet, and the short proxy training of one trial."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from ltmsearch.engine.evaluation import Batches, IBSamples
from ltmsearch.engine.ib_loss import IBLoss
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import TrialDiverged
from ltmsearch.models import pooled_features
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

WEIGHT_DECAY = 0.01
CLIP_NORM = 5.0
"""Largest norm of the gradient of one step."""
LABEL_SMOOTHING = 0.1
SIZE_STRIDE = 16
"""Growing images gain this many pixels at a time; each new size costs the kernels a moment to set up."""
LR_FLOOR = 0.05
"""The learning rate ends at this share of its peak."""
GPU_READS = 16
"""On a GPU the losses of so many steps are read together."""


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """The supernet's training before the first trial: the plain net alone, then the sandwich rule."""

    base_steps: int
    """Steps of the plain net on labels."""
    base_img_size: int
    """Side in pixels to which images are shrunk at first: a net learns its first features there at a fraction of the
    cost. In the second half of these steps they grow to full size (progressive learning: Tan & Le, "EfficientNetV2",
    2021, section 4). Going to full size at once instead cost 26 points of the plain net's top-1 on the digits."""
    sandwich_steps: int
    """Steps in which subnets learn to match the plain net."""
    subnets: int
    """Random schedules per sandwich step, beside the plain net and the cheapest schedule."""
    lr: float
    """Peak learning rate (AdamW)."""

    def img_size(self, step: int, full: int) -> int:
        """Side in pixels of the images of a step, in strides of `SIZE_STRIDE`."""
        progress = step / self.base_steps if self.base_steps else 1.0
        if progress >= 1 or self.base_img_size >= full:
            return full
        grown = (full - self.base_img_size) * max(0.0, 2 * progress - 1)
        # To the nearest stride, so that the last of these steps see full size.
        size = self.base_img_size + SIZE_STRIDE * int(grown / SIZE_STRIDE + 0.5)
        return full if size + SIZE_STRIDE / 2 >= full else size

    @property
    def steps(self) -> int:
        """All steps."""
        return self.base_steps + self.sandwich_steps


def make_optimizer(supernet: Supernet, lr: float) -> Optimizer:
    """AdamW by timm's factory: no weight decay on biases, norms and what the operators exempt."""
    # Fused: the other forms take three times as long on a CPU, where that is felt on small images.
    return create_optimizer_v2(supernet, opt="adamw", lr=lr, weight_decay=WEIGHT_DECAY, fused=True)


def disable_inplace_activations(model: nn.Module) -> None:
    """Let activations whose gradient needs their input write elsewhere: in place, autograd copies the input first."""
    for module in model.modules():
        if isinstance(module, nn.SiLU | nn.Hardswish):
            module.inplace = False


def warm_up(
    supernet: Supernet,
    plan: WarmUp,
    *,
    batches: Batches,
    cheapest: MergeSchedule,
    draw: Callable[[np.random.Generator], MergeSchedule],
    seed: int,
    runtime: Runtime,
    optimizer: Optimizer | None = None,
    first_step: int = 0,
) -> Iterator[float]:
    """Train the shared weights; yields the plain net's loss after every step, on a GPU the one that was read last.

    In a sandwich step the plain net learns from labels, the cheapest schedule and a few random ones learn from the
    plain net's logits, and the gradients of all add up to one step (Yu & Huang, "Universally Slimmable Networks", 2019:
    sandwich rule and in-place distillation).

    Args:
        supernet: Trained in place.
        plan: Numbers of steps and the learning rate.
        batches: One per step, from `first_step` on.
        cheapest: The schedule of least cost.
        draw: Draws a random schedule.
        seed: Of the schedules.
        runtime: Device and number format.
        optimizer: As `make_optimizer` gives it; None: a new one.
        first_step: The first step; those before were taken by the same weights and optimizer.

    Raises:
        TrialDiverged: If the loss is not finite.
    """
    if not plan.steps:
        return
    rng = np.random.default_rng(seed)
    for _ in range(max(0, first_step - plan.base_steps) * plan.subnets):
        draw(rng)
    optimizer = optimizer or make_optimizer(supernet, plan.lr)
    for group in optimizer.param_groups:
        group["lr"] = plan.lr  # the schedule takes it for the peak
    lr = CosineLRScheduler(
        optimizer,
        t_initial=plan.steps,
        lr_min=LR_FLOOR * plan.lr,
        warmup_t=min(20, plan.steps // 10),
        warmup_lr_init=LR_FLOOR * plan.lr,
        t_in_epochs=False,
    )
    watch = LossMonitor("the warm-up", every=reads(runtime.device))
    disable_inplace_activations(supernet)
    supernet.train()
    for step, (images, labels) in enumerate(batches, start=first_step):
        sandwich = step >= plan.base_steps
        images = shrunk(images, plan.img_size(step, full=images.shape[-1]))
        images, labels = runtime.images(images), labels.to(runtime.device, non_blocking=True)
        lr.step_update(step)
        loss, logits = _label_loss(supernet, images, labels, runtime)
        loss.backward()
        if sandwich:
            schedules = [cheapest, *(draw(rng) for _ in range(plan.subnets))]
            _match(supernet, images, logits.detach().softmax(dim=1), schedules, runtime)
        _step(supernet, optimizer, loss, watch)
        yield watch.last
    watch.read()


def shrunk(images: Tensor, img_size: int) -> Tensor:
    """(B, 3, S, S) images at a smaller size; as they are where they are no larger."""
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
    ib: tuple[float, IBLoss] | None = None,
    ib_from: int = 0,
) -> float | None:
    """The proxy training of one trial: a few steps of one subnet on labels, in place.

    What lies ahead of the first layer is alike in all subnets, and is left as the warm-up made it.

    Args:
        supernet: Its shared weights are trained, from the first layer on.
        schedule: The subnet.
        batches: One per step.
        lr: Constant learning rate (AdamW).
        runtime: Device and number format.
        ib: Weight of the IB loss beside cross entropy, and that loss; None: none.
        ib_from: The step, from 0, that the IB loss sets in with. The images of the steps before give its statistics, as
            those of an epoch do in full training; if there are none, it must be fitted to this subnet already.

    Returns:
        Mean loss over the steps, None without steps.

    Raises:
        TrialDiverged: If the loss, or a feature that the IB loss is fitted to, is not finite.
    """
    optimizer = make_optimizer(supernet, lr)
    watch = LossMonitor("the proxy training", every=reads(runtime.device))
    before = IBSamples()
    disable_inplace_activations(supernet)
    supernet.train()
    with supernet.active(schedule), supernet.frozen_prefix(), ExitStack() as stack:
        features = stack.enter_context(pooled_features(supernet.model)) if ib else []
        for step, (images, labels) in enumerate(batches):
            images, labels = runtime.images(images), labels.to(runtime.device, non_blocking=True)
            loss, _ = _label_loss(supernet, images, labels, runtime)
            if ib:
                ib_weight, ib_loss = ib
                seen = features.pop()
                if step == ib_from > 0:
                    before.fit(ib_loss)
                if step >= ib_from:
                    loss = loss + ib_weight * ib_loss(seen, labels)
                else:
                    before.add(seen, images, labels)
            loss.backward()
            _step(supernet, optimizer, loss, watch)
    watch.read()
    return watch.mean


def _label_loss(supernet: Supernet, images: Tensor, labels: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Cross-entropy under the active schedule, and the (B, classes) float32 logits."""
    with runtime.autocast():
        logits = supernet(images)
    return F.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING), logits.float()


def _match(
    supernet: Supernet, images: Tensor, target: Tensor, schedules: Sequence[MergeSchedule], runtime: Runtime
) -> None:
    """Add the gradients of subnets that match the plain net's (B, classes) probabilities.

    What lies ahead of the first layer computes the same in all of them, so that only the plain net trains it.
    """
    with supernet.frozen_prefix():
        for schedule in schedules:
            with supernet.active(schedule), runtime.autocast():
                logits = supernet(images)
            loss = F.cross_entropy(logits.float(), target)
            loss.backward()


class LossMonitor:
    """Watches over the losses of a training, without waiting for the device at every step.

    Reading a number waits for all that was queued on a GPU. So there losses are read together, and a training that
    diverged goes on until they are; on a CPU, where `every` is 1, it ends before the step is taken.

    Args:
        what: What is trained, for the message.
        every: Steps from one reading to the next.
    """

    def __init__(self, what: str, *, every: int) -> None:
        self.what = what
        self.every = every
        self.last = math.nan
        """The loss that was read last. The first is read at once."""
        self._unread: list[Tensor] = []
        self._total, self._steps = 0.0, 0

    @property
    def mean(self) -> float | None:
        """Mean of the losses read, None before the first."""
        return self._total / self._steps if self._steps else None

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Take in the loss of a step and the norm of its gradient, and read what there is when it is time.

        Raises:
            TrialDiverged: If one that is read is not finite.
        """
        self._unread.append(torch.stack((loss.detach(), norm.detach())))
        if len(self._unread) == self.every or not self._steps:
            self.read()

    def read(self) -> None:
        """Read what is unread; arguments as in `note`."""
        if not self._unread:
            return
        numbers = torch.stack(self._unread).tolist()
        self._unread = []
        if not all(math.isfinite(loss) and math.isfinite(norm) for loss, norm in numbers):
            raise TrialDiverged(f"{self.what} diverged: the loss or its gradient is not finite")
        self.last = numbers[-1][0]
        self._total += sum(loss for loss, _ in numbers)
        self._steps += len(numbers)


def reads(device: torch.device) -> int:
    """How many steps' losses are read together on a device."""
    return 1 if device.type == "cpu" else GPU_READS


def _step(supernet: Supernet, optimizer: Optimizer, loss: Tensor, watch: LossMonitor) -> None:
    norm = torch.nn.utils.clip_grad_norm_(supernet.parameters(), CLIP_NORM)
    try:
        watch.note(loss, norm)
        optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
