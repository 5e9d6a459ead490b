"""Start of the gradient step of a merge from data: clusters of merged tokens, and what each costs in IBB.

Shapes: M images or windows, G groups that share a mask, N tokens, P merged tokens, A clusters, D channels, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.data.loading import ImageData
from ltmsearch.engine.evaluation import Batches, evaluating
from ltmsearch.engine.ib_loss import SMOOTHING, k_means
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError
from ltmsearch.merging import LearnableTokenMerging, MergeOperator
from ltmsearch.merging.gradient import CLUSTERS, START_RATE
from ltmsearch.merging.ib_step import BETA, changed_mask, expected_scores, mask_gradient, memberships, unit_tokens
from ltmsearch.merging.prior import log_overlap

IMAGES = 256
"""Images to fit to, at most."""
BATCH = 32
"""Images per forward pass."""
WINDOWS = 4
"""Windows per image to fit to, at most, evenly spaced."""
SPREAD = 0.25
"""Standard deviation of the logarithm of what one step changes, over the tokens in a merged token and all images: η is
chosen for it, since gradients differ by orders of magnitude between layers and networks."""
RIDGE = 1e-3
"""Ridge of the regression of scores, over the mean variance of memberships."""


LEAST_SPREAD = 1e-6
"""Spread of a gradient below which there is nothing to step down."""


class _Reached(Exception):
    """Ends a forward pass at the operator."""


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """What the operator of one layer receives in a batch."""

    arguments: tuple[Any, ...]
    """Of `MergeOperator.forward`: tokens (M, G, N, D), sizes (M, N), grid, target, and more."""
    labels: Tensor
    """(M,) int64."""

    @property
    def units(self) -> Tensor:
        """(M, N, D) `unit_tokens` of the mean of the groups."""
        tokens: Tensor = self.arguments[0]
        return unit_tokens(tokens.float().mean(dim=1), tokens.shape[-1])

    @property
    def log_prior(self) -> Tensor:
        """(N, P)."""
        return torch.from_numpy(log_overlap(*self.arguments[2:4])).to(self.arguments[1])

    @property
    def log_sizes(self) -> Tensor:
        """(M, N)."""
        return self.arguments[1].log()

    @property
    def prior(self) -> Tensor:
        """(M, N, P) mask of the prior."""
        return changed_mask(self.log_prior, self.log_sizes, None)


def layer_inputs(
    model: nn.Module, operator: MergeOperator, batches: Batches, runtime: Runtime
) -> Iterator[LayerInputs]:
    """What an operator receives in evaluation mode under the active schedule, batch by batch; passes end there.

    Nothing, if it does not merge under that schedule, or at the size of the images.
    """
    found: list[tuple[Any, ...]] = []

    def stop(_module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args)
        raise _Reached

    hook = operator.register_forward_pre_hook(stop)
    try:
        with evaluating(model):
            for images, labels in batches:
                try:
                    with torch.no_grad(), runtime.autocast():
                        model(runtime.images(images))
                except _Reached:
                    yield _some_windows(found.pop(), labels.to(runtime.device))
                else:
                    return
    finally:
        hook.remove()


def _some_windows(arguments: tuple[Any, ...], labels: Tensor) -> LayerInputs:
    """The arguments of an operator for at most `WINDOWS` windows per image."""
    windows = len(arguments[0]) // len(labels)
    few = min(windows, WINDOWS)
    chosen = torch.linspace(0, windows - 1, few, device=labels.device).round().long()
    rows = (torch.arange(len(labels), device=labels.device)[:, None] * windows + chosen).flatten()
    kept = tuple(value[rows] if isinstance(value, Tensor) else value for value in arguments)
    return LayerInputs(arguments=kept, labels=labels.repeat_interleave(few))


@dataclass(frozen=True, kw_only=True)
class StepFit:
    """Weights of a gradient step, and the statistics that they come from."""

    centroids: Tensor
    """(A, D) C."""
    scores: Tensor
    """(A,) s."""
    readout: Tensor
    """(A, A) S: s + φ̄ S is the linear regression of −log Q(a|y) on an image's mean memberships φ̄."""
    rate: float
    """η."""
    log_q: Tensor
    """(A, C) log Q(a|y)."""


def fit_layer(
    model: nn.Module, operator: LearnableTokenMerging, data: ImageData, runtime: Runtime, *, seed: int
) -> None:
    """Fit the gradient step of a layer to training images, in place, if it merges under the active schedule.

    Raises:
        InputError: If its tokens are not finite.
    """
    batches = data.ordered_batches(data.training_sample(IMAGES, seed=seed), batch_size=BATCH)
    parts = [(given.units, given.prior, given.labels) for given in layer_inputs(model, operator, batches, runtime)]
    if not parts:
        return
    units, masks, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    if not bool(units.isfinite().all()):
        raise InputError("the tokens of a layer must be finite to fit its mask, but are not; use other weights")
    fit = fit_step(units, masks, labels, classes=data.num_classes, clusters=CLUSTERS, seed=seed)
    operator.step.set(fit.centroids, fit.scores, fit.readout, fit.rate)


def fit_step(tokens: Tensor, masks: Tensor, labels: Tensor, *, classes: int, clusters: int, seed: int) -> StepFit:
    """Fit the step of one layer.

    k-means gives the centroids of merged tokens. With their memberships, averaged over the tokens of each image,
    Q(a|y) is that of the IB loss.

    Args:
        tokens: (M, N, D) `unit_tokens`.
        masks: (M, N, P) masks of the prior.
        labels: (M,) int64.
        classes: C.
        clusters: A.
        seed: Of k-means.
    """
    merged = torch.bmm(masks.transpose(-2, -1), tokens)  # (M, P, D)
    points = merged.flatten(0, 1).cpu().numpy()
    centroids = torch.from_numpy(k_means(points, clusters, None, seed)).to(tokens)
    inside = memberships(merged @ centroids.T, centroids, BETA)
    mean = inside.mean(dim=1)  # (M, A)
    of_class = F.one_hot(labels, classes).to(mean)  # (M, C)
    log_q = ((mean.T @ of_class + SMOOTHING / clusters) / (of_class.sum(dim=0) + SMOOTHING)).log()
    scores, readout = _regression(mean, -log_q.T[labels])
    expected = expected_scores(inside, scores, readout)
    gradient = mask_gradient(tokens @ centroids.T, inside, expected, BETA)
    gradient = gradient - (masks * gradient).sum(dim=1, keepdim=True)
    spread = (masks * gradient.square()).sum(dim=1).mean().sqrt()
    rate = SPREAD / float(spread) if spread > LEAST_SPREAD else START_RATE
    return StepFit(centroids=centroids, scores=scores, readout=readout, rate=rate, log_q=log_q)


def _regression(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Intercept (A,) and coefficients (A, A) of the ridge regression of (M, A) outputs on (M, A) inputs."""
    x, y = inputs - inputs.mean(dim=0), outputs - outputs.mean(dim=0)
    gram = (x.T @ x).double()
    ridge = (RIDGE * gram.trace() / len(gram)).clamp_min(1e-12) * torch.eye(len(gram)).to(gram)
    readout = torch.linalg.solve(gram + ridge, (x.T @ y).double()).to(inputs)
    return outputs.mean(dim=0) - inputs.mean(dim=0) @ readout, readout
