"""Training of a plain net as a study's warm-up does it, training of one subnet alone, and its logits."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.data.loading import ImageData
from ltmsearch.engine.evaluation import divergence
from ltmsearch.engine.optimizers import cosine_rate, make_optimizer, set_rates
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.steps import (
    CLIP_NORM,
    LABEL_SMOOTHING,
    LR_FLOOR,
    WEIGHT_DECAY,
    WarmUp,
    disable_inplace_activations,
    downscale,
    warm_up,
)
from ltmsearch.models.supernet import Supernet

SCORING_BATCH = 32
"""Images per forward pass."""


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
    plan = WarmUp(base_steps=steps, base_img_size=first_img_size, sandwich_steps=0, lr=lr)
    batches = data.train_batches(batch_size=batch_size, steps=steps, seed=seed)
    for _ in warm_up(supernet, plan, batches=batches, draw=lambda _: [], seed=seed, runtime=runtime):
        pass


def fine_tune(
    subnet: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    runtime: Runtime,
    teacher: nn.Module | None = None,
    side: int | None = None,
) -> None:
    """Train a subnet by itself, on labels or on the predictions of a teacher: AdamW, cosine.

    Args:
        side: Side of the subnet's images, to which they are downscaled; None, and for the teacher: as they are.
    """
    optimizer = make_optimizer(subnet, "adamw", lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    disable_inplace_activations(subnet)
    subnet.train()
    for step, (images, labels) in enumerate(batches):
        rate = cosine_rate(step, steps, peak=lr, floor=LR_FLOOR * lr, ramp=min(20, steps // 10))
        set_rates(optimizer, backbone=rate, masks=rate)
        images = runtime.images(images)
        with runtime.autocast():
            logits = subnet(images if side is None else downscale(images, side))
        if teacher is None:
            loss = F.cross_entropy(logits.float(), labels.to(logits.device), label_smoothing=LABEL_SMOOTHING)
        else:
            with torch.no_grad(), runtime.autocast():
                target = teacher(images)
            loss = divergence(logits.float(), target.float().log_softmax(dim=1)).mean()
        loss.backward()
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
