"""Scoring a subnet: fresh BatchNorm statistics, then one fixed set of validation images, the same for every subnet."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from ltmsearch.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one subnet classifies."""

    top1: float
    """Top-1 accuracy, 0-100."""
    top1_se: float
    """Its standard error, in points."""
    loss: float
    """Mean cross-entropy, nats."""
    images: int
    """Number of validation images."""

    def is_chance(self, num_classes: int) -> bool:
        """Whether top-1 cannot be told from guessing, by three standard errors."""
        return self.top1 - 100 / num_classes < 3 * self.top1_se


@contextmanager
def batchnorm_kept(model: nn.Module) -> Iterator[None]:
    """Restore every BatchNorm's statistics and momentum on exit, also on error: nothing leaks between subnets."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    kept = [({name: buffer.clone() for name, buffer in norm.named_buffers()}, norm.momentum) for norm in norms]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, (buffers, momentum) in zip(norms, kept, strict=True):
                norm.momentum = momentum
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])


def recalibrate(model: nn.Module, batches: Iterable[Tensor], runtime: Runtime) -> None:
    """Replace BatchNorm statistics by those of the given images under the active schedule.

    Shared running statistics fit no subnet: each shifts the activations in its own way (Yu & Huang, 2019).

    Args:
        model: As it is to be scored.
        batches: (B, 3, height, width) images, evaluation transform.
        runtime: Device and number format.
    """
    with runtime.autocast():
        update_bn((runtime.images(batch) for batch in batches), model)


def score(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], runtime: Runtime) -> Score:
    """Top-1 and cross-entropy in evaluation mode; the model's mode is restored.

    Args:
        model: Classifier, as it stands.
        batches: (B, 3, height, width) images and (B,) labels.
        runtime: Device and number format.

    Raises:
        ValueError: If there are no images.
    """
    was_training = model.training
    model.eval()
    correct, loss, images = 0, 0.0, 0
    try:
        with torch.inference_mode():
            for batch, labels in batches:
                with runtime.autocast():
                    logits = model(runtime.images(batch))
                logits, labels = logits.float(), labels.to(logits.device)
                correct += int((logits.argmax(dim=1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
                images += len(labels)
    finally:
        model.train(was_training)
    if not images:
        raise ValueError("`batches` must hold at least one image.")
    share = correct / images
    return Score(
        top1=100 * share,
        top1_se=100 * math.sqrt(share * (1 - share) / images),
        loss=loss / images,
        images=images,
    )
