"""Scoring a subnet: fresh BatchNorm statistics, then one fixed set of validation images, the same for every subnet."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from ltmsearch.engine.ib_loss import IBLoss, IBMeter, IBTerms, input_features
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import TrialDiverged
from ltmsearch.models import pooled_features

Batches = Iterable[tuple[Tensor, Tensor]]
"""(B, 3, height, width) images and (B,) labels."""

TOP = 5
"""Guesses that top-5 counts."""
IB_IMAGES = 256
IB_IMAGES_PER_CLASS = 4
"""Images that statistics of the IB loss come from, whichever are more, where only they need the pass."""


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
    top5: float | None = None
    """Top-5 accuracy, 0-100; None with five classes or fewer, where it says nothing."""
    ib: IBTerms | None = None
    """The information terms, where statistics for them were given."""

    def is_at_chance(self, num_classes: int) -> bool:
        """Whether top-1 cannot be told from guessing, by three standard errors."""
        return self.top1 - 100 / num_classes < 3 * self.top1_se


@contextmanager
def preserve_batchnorm(model: nn.Module) -> Iterator[None]:
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


def recalibrate(model: nn.Module, batches: Batches, runtime: Runtime) -> None:
    """Replace BatchNorm statistics by those of the given images under the active schedule.

    Shared running statistics fit no subnet: each shifts the activations in its own way (Yu & Huang, 2019).

    Args:
        model: As it is to be scored.
        batches: Images by the evaluation transform; their labels are not looked at.
        runtime: Device and number format.
    """
    with runtime.autocast():
        update_bn((runtime.images(images) for images, _ in batches), model)


def recalibrate_and_fit(ib: IBLoss, model: nn.Module, batches: Batches, runtime: Runtime) -> None:
    """`recalibrate`, and fit an IB loss to the features that come by.

    Args:
        ib: Fitted in place.
        model: A timm model, as it is to be scored. Without BatchNorm, some of the images pass for the fit alone.
        batches: Images by the evaluation transform, and labels.
        runtime: Device and number format.

    Raises:
        TrialDiverged: If a feature is not finite.
    """
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        with _noted_for_ib(model, batches, runtime) as (coming, notes):
            recalibrate(model, coming, runtime)
    else:
        notes = _noted_on_a_pass(model, ib_batches(batches, ib.num_classes), runtime)
    notes.fit(ib)


def fit_ib(ib: IBLoss, model: nn.Module, batches: Batches, runtime: Runtime) -> bool:
    """Take the statistics of an IB loss from images, in evaluation mode; the model's mode is restored.

    Args:
        ib: Fitted in place.
        model: A timm model, as it stands.
        batches: Images and labels.
        runtime: Device and number format.

    Returns:
        Whether the features are finite; if not, nothing was fitted.
    """
    try:
        _noted_on_a_pass(model, batches, runtime).fit(ib)
    except TrialDiverged:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class IBSamples:
    """What an IB loss is fitted to, noted while images pass through a model."""

    features: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

    def add(self, features: Tensor, images: Tensor, targets: Tensor) -> None:
        """Note a batch: (B, D') features of (B, 3, height, width) images, and their labels."""
        self.features.append(features.detach())
        self.inputs.append(input_features(images))
        self.targets.append(targets)

    def fit(self, ib: IBLoss) -> None:
        """Fit to all that was noted.

        Raises:
            TrialDiverged: If a feature is not finite; then nothing is fitted.
        """
        features = torch.cat(self.features)
        if not bool(features.isfinite().all()):
            raise TrialDiverged("the features are not finite")
        ib.fit(features, torch.cat(self.inputs), torch.cat(self.targets).to(features.device), seed=0)


def _noted_on_a_pass(model: nn.Module, batches: Batches, runtime: Runtime) -> IBSamples:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _noted_for_ib(model, batches, runtime) as (coming, notes):
            for images, _ in coming:
                with runtime.autocast():
                    model(images)
    finally:
        model.train(was_training)
    return notes


@contextmanager
def _noted_for_ib(model: nn.Module, batches: Batches, runtime: Runtime) -> Iterator[tuple[Batches, IBSamples]]:
    """The same batches, and notes of each that was passed through the model."""

    def coming() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            images = runtime.images(images)
            yield images, labels
            notes.add(features.pop(), images, labels)

    with pooled_features(model) as features:
        notes = IBSamples()
        yield coming(), notes


def ib_batches(batches: Batches, num_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches, up to the images that statistics of the IB loss need."""
    needed = max(IB_IMAGES, IB_IMAGES_PER_CLASS * num_classes)
    for images, labels in batches:
        yield images, labels
        needed -= len(images)
        if needed <= 0:
            return


def score(
    model: nn.Module,
    batches: Batches,
    runtime: Runtime,
    *,
    ib: IBLoss | None = None,
    add_up: Callable[[Tensor], Tensor] = lambda totals: totals,
) -> Score:
    """Top-1, top-5 and cross-entropy in evaluation mode, on wish the information terms; the model's mode is restored.

    Args:
        model: Classifier, as it stands.
        batches: Images and labels.
        runtime: Device and number format.
        ib: Fitted statistics for the information terms; None: none.
        add_up: Adds up a float64 vector of totals over the processes that share the images.

    Raises:
        ValueError: If there are no images.
    """
    was_training = model.training
    model.eval()
    meter = IBMeter(ib) if ib is not None else None
    counts = torch.zeros(4, dtype=torch.float64, device=runtime.device)  # right, right among five, loss, images
    classes = 0
    try:
        with torch.inference_mode(), ExitStack() as stack:
            seen = stack.enter_context(pooled_features(model)) if meter is not None else []
            for batch, labels in batches:
                images, labels = runtime.images(batch), labels.to(runtime.device, non_blocking=True)
                with runtime.autocast():
                    logits = model(images)
                logits, classes = logits.float(), logits.shape[1]
                ranks = logits.topk(min(TOP, classes), dim=1).indices == labels[:, None]
                loss = F.cross_entropy(logits, labels, reduction="sum")
                counts += torch.stack((ranks[:, 0].sum(), ranks.sum(), loss, loss.new_full((), len(labels))))
                if meter is not None:
                    meter.add(seen.pop(), input_features(images), labels)
    finally:
        model.train(was_training)
    totals = add_up(counts if meter is None else torch.cat((counts, meter.totals)))
    right, among_five, loss_sum, number = totals[:4].tolist()
    if not number:
        raise ValueError("`batches` must hold at least one image.")
    if meter is not None:
        meter.totals.copy_(totals[4:])
    share = right / number
    return Score(
        top1=100 * share,
        top1_se=100 * math.sqrt(share * (1 - share) / number),
        top5=100 * among_five / number if classes > TOP else None,
        loss=loss_sum / number,
        images=round(number),
        ib=meter.terms() if meter is not None else None,
    )
