"""Score a subnet: recompute BatchNorm statistics, then evaluate on validation images fixed for all subnets."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from ltmsearch.engine.ib_loss import IBLoss, IBMeter, IBTerms, input_features
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError, TrialDiverged
from ltmsearch.models import pooled_features

Batches = Iterable[tuple[Tensor, Tensor]]
"""(B, 3, height, width) images and (B,) labels."""

TOP = 5
"""Number of guesses in top-5."""
IB_IMAGES = 256
IB_IMAGES_PER_CLASS = 4
"""Images to fit the IB loss to, whichever are more."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Classification scores of one subnet."""

    top1: float
    """Top-1 accuracy, 0-100."""
    top1_se: float
    """Standard error of top-1, in points."""
    loss: float
    """Mean cross-entropy, nats."""
    kl: float | None = None
    """Mean KL divergence of the predictions from a teacher's, nats; None without one."""
    images: int
    top5: float | None = None
    """Top-5 accuracy, 0-100; None with five classes or fewer."""
    ib: IBTerms | None = None
    """Information terms, if requested."""
    predictions: np.ndarray = field(compare=False, repr=False)
    """Predicted class of each image that this process scored, int64, in the order of the batches."""

    def is_at_chance(self, num_classes: int) -> bool:
        """Whether top-1 is within three standard errors of guessing."""
        return self.top1 - 100 / num_classes < 3 * self.top1_se


@contextmanager
def preserve_batchnorm(model: nn.Module) -> Iterator[None]:
    """Restore the statistics and momentum of all BatchNorm layers on exit."""
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

    Shared running statistics fit no subnet (Yu & Huang, 2019, https://arxiv.org/abs/1903.05134).

    Images come by the evaluation transform; labels are ignored.
    """
    with runtime.autocast():
        update_bn((runtime.images(images) for images, _ in batches), model)


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a network has statistics that `recalibrate` replaces."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def recalibrate_and_fit(ib: IBLoss, model: nn.Module, batches: Batches, runtime: Runtime) -> None:
    """`recalibrate`, and fit an IB loss in place to the features of the same pass; without BatchNorm, of a shorter one.

    Raises:
        TrialDiverged: If a feature is not finite.
    """
    if has_batchnorm(model):
        with _recorded(model, batches, runtime) as (recorded, samples):
            recalibrate(model, recorded, runtime)
    else:
        samples = _forward_samples(model, ib_batches(batches, ib.num_classes), runtime)
    samples.fit(ib)


def fit_ib(ib: IBLoss, model: nn.Module, batches: Batches, runtime: Runtime) -> bool:
    """Fit an IB loss in place to images in evaluation mode; False, and no fit, if features are not finite."""
    try:
        _forward_samples(model, batches, runtime).fit(ib)
    except TrialDiverged:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class _IBSamples:
    """Samples to fit an IB loss to."""

    features: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

    def add(self, features: Tensor, images: Tensor, targets: Tensor) -> None:
        """Record a batch: (B, D') features of (B, 3, height, width) images, and their labels."""
        self.features.append(features.detach())
        self.inputs.append(input_features(images))
        self.targets.append(targets)

    def fit(self, ib: IBLoss) -> None:
        """Fit an IB loss in place; raises as `IBLoss.fit`."""
        features = torch.cat(self.features)
        ib.fit(features, torch.cat(self.inputs), torch.cat(self.targets).to(features.device), seed=0)


def _forward_samples(model: nn.Module, batches: Batches, runtime: Runtime) -> _IBSamples:
    with evaluating(model), torch.no_grad(), _recorded(model, batches, runtime) as (recorded, samples):
        for images, _ in recorded:
            with runtime.autocast():
                model(images)
    return samples


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the `with` block; the mode is restored on exit."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _recorded(model: nn.Module, batches: Batches, runtime: Runtime) -> Iterator[tuple[Batches, _IBSamples]]:
    """The same batches, and samples of those that were passed through the model."""

    def recorded() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            images = runtime.images(images)
            yield images, labels
            samples.add(features.pop(), images, labels)

    with pooled_features(model) as features:
        samples = _IBSamples()
        yield recorded(), samples


def ib_images(num_classes: int) -> int:
    """Number of images to fit an IB loss to."""
    return max(IB_IMAGES, IB_IMAGES_PER_CLASS * num_classes)


def ib_batches(batches: Batches, num_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches, with enough images to fit the IB loss."""
    needed = ib_images(num_classes)
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
    teacher: Tensor | None = None,
    add_up: Callable[[Tensor], Tensor] = lambda totals: totals,
) -> Score:
    """Score a classifier in evaluation mode; the mode is restored.

    Args:
        ib: Fitted IB loss for the information terms, if wanted.
        teacher: (images, classes) log-probabilities of another network for the same images in the same order.
        add_up: Sums a float64 vector of totals over the processes that share the images.

    Raises:
        ValueError: If there are no images.
    """
    meter = IBMeter(ib) if ib is not None else None
    counts = torch.zeros(5, dtype=torch.float64, device=runtime.device)  # correct, correct in top-5, loss, KL, images
    classes, predictions, done = 0, [], 0
    with evaluating(model), torch.inference_mode(), ExitStack() as stack:
        features = stack.enter_context(pooled_features(model)) if meter is not None else []
        for batch, labels in batches:
            images, labels = runtime.images(batch), labels.to(runtime.device, non_blocking=True)
            with runtime.autocast():
                logits = model(images)
            logits, classes = logits.float(), logits.shape[1]
            guesses = _guesses(logits)
            predictions.append(guesses[:, 0])
            hits = guesses == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            kl = loss.new_zeros(())
            if teacher is not None:
                kl = divergence(logits, teacher[done : done + len(labels)].to(logits.device)).sum()
            counts += torch.stack((hits[:, 0].sum(), hits.sum(), loss, kl, loss.new_full((), len(labels))))
            done += len(labels)
            if meter is not None:
                meter.add(features.pop(), input_features(images), labels)
    totals = add_up(counts if meter is None else torch.cat((counts, meter.totals)))
    correct, in_top5, loss_sum, kl_sum, number = totals[:5].tolist()
    if not number:
        raise ValueError("`batches` must contain at least one image.")
    if meter is not None:
        meter.totals.copy_(totals[5:])
    top1, top1_se = _percentage(correct, number)
    return Score(
        top1=top1,
        top1_se=top1_se,
        top5=100 * in_top5 / number if classes > TOP else None,
        loss=loss_sum / number,
        kl=max(0.0, kl_sum / number) if teacher is not None else None,  # rounding may take it below
        images=round(number),
        ib=meter.terms() if meter is not None else None,
        predictions=torch.cat(predictions).cpu().numpy(),
    )


def log_probabilities(model: nn.Module, batches: Batches, runtime: Runtime) -> Tensor:
    """(n, classes) float32 log-probabilities of a network in evaluation mode, on the CPU; the mode is restored.

    Without images: (0, 0).
    """
    with evaluating(model), torch.inference_mode():
        rows = []
        for images, _ in batches:
            with runtime.autocast():
                logits = model(runtime.images(images))
            rows.append(logits.float().log_softmax(dim=1).cpu())
    return torch.cat(rows) if rows else torch.empty(0, 0)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """(B,) KL divergences, in nats, of (B, classes) logits from a teacher's (B, classes) log-probabilities."""
    return F.kl_div(logits.log_softmax(dim=1), teacher, reduction="none", log_target=True).sum(dim=1)


def predict(model: nn.Module, images: Tensor, runtime: Runtime) -> Tensor:
    """(B,) classes that a network in evaluation mode predicts for (B, 3, height, width) images, as `score` does."""
    with torch.inference_mode(), runtime.autocast():
        logits = model(runtime.images(images))
    return _guesses(logits.float())[:, 0]


def agreement(predictions: np.ndarray, plain: np.ndarray) -> tuple[float, float]:
    """Share of images for which two networks predict the same class, right or wrong.

    Args:
        predictions: (images,) classes that a subnet predicts.
        plain: The plain network's classes for the same images.

    Returns:
        The share in percent, and its binomial standard error in points.

    Raises:
        InputError: If the numbers of images differ, because an image became unreadable in between.
    """
    if len(predictions) != len(plain):
        raise InputError(
            f"validation images must stay readable while networks are scored, but {len(plain)} were and then "
            f"{len(predictions)}; repeat the command"
        )
    return _percentage(int((predictions == plain).sum()), len(plain))


def _guesses(logits: Tensor) -> Tensor:
    """(B, up to 5) most likely classes; one function for all networks, so that ties fall the same way."""
    return logits.topk(min(TOP, logits.shape[1]), dim=1).indices


def _percentage(count: float, number: float) -> tuple[float, float]:
    """A share in percent, and its binomial standard error in points."""
    share = count / number
    return 100 * share, 100 * math.sqrt(share * (1 - share) / number)
