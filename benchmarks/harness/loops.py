"""Training of a plain net as a study's warm-up does it, training of one subnet alone, and its logits."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from ltmsearch.data.loading import ImageData
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.steps import (
    CLIP_NORM,
    LABEL_SMOOTHING,
    LR_FLOOR,
    WEIGHT_DECAY,
    WarmUp,
    disable_inplace_activations,
    warm_up,
)
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.trial import SCORING_BATCH


def train_plain(
    supernet: Supernet,
    data: ImageData,
    runtime: Runtime,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    first_img_size: int,
) -> None:
    """Train the plain net; images grow from `first_img_size` in a family that permits it."""
    plan = WarmUp(base_steps=steps, base_img_size=first_img_size, sandwich_steps=0, subnets=0, lr=lr)
    plain = MergeSchedule.uniform(supernet.layers, 1.0)
    batches = data.train_batches(batch_size=batch_size, steps=steps, seed=seed)
    for _ in warm_up(supernet, plan, batches=batches, cheapest=plain, draw=lambda _: plain, seed=seed, runtime=runtime):
        pass


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
