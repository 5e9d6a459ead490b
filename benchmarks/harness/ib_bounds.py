"""The bound IBB of merges in a trained network: of tokens one by one, and of all merged tokens of an image together.

Shapes: B images or windows, N tokens, P merged tokens, A clusters, D channels, C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltmsearch.engine.evaluation import Batches
from ltmsearch.engine.mask_fit import LayerInputs, StepFit, fit_step, layer_inputs
from ltmsearch.engine.runtime import Runtime
from ltmsearch.merging import Merge, MergeOperator
from ltmsearch.merging.assignment import SoftAssignment
from ltmsearch.merging.ib_step import BETA, memberships
from ltmsearch.models import attached_operators, pooled_features
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule


def inputs_of(
    net: Supernet, layer: str, ratio: float, batches: Batches, runtime: Runtime, form: Form = "gradient"
) -> Iterator[LayerInputs]:
    """What a layer's operator receives while it alone merges, batch by batch."""
    operator = attached_operators(net.model, net.layers)[layer]
    with net.active(_alone(net, layer, ratio, form)):
        yield from layer_inputs(net.model, operator, batches, runtime)


def _alone(net: Supernet, layer: str, ratio: float, form: Form = "gradient") -> MergeSchedule:
    return MergeSchedule.from_mapping(net.layers, {layer: ratio}, net.operator, {layer: form})


def pooled_by_mask(
    net: Supernet, layer: str, ratio: float, images: Tensor, make: Callable[[LayerInputs], Tensor] | None
) -> Tensor:
    """(B, D') pooled features of the network whose layer merges by a mask that `make` gives; None: of the plain one."""
    operator = attached_operators(net.model, net.layers)[layer]

    def by_mask(_module: MergeOperator, args: tuple[Any, ...], merge: Merge) -> Merge:
        assert make is not None  # the plain network does not merge
        mask = make(LayerInputs(arguments=args, labels=torch.zeros(0)))
        weights = mask * merge.sizes[:, None]
        shares = SoftAssignment(weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-12))
        tokens = SoftAssignment(mask).collect(args[0])
        return Merge(tokens=tokens, sizes=shares.collect_few(args[1][:, None])[:, 0], assignment=shares)

    hook = operator.register_forward_hook(by_mask)
    try:
        schedule = _alone(net, layer, 1.0 if make is None else ratio)
        with net.active(schedule), torch.no_grad(), pooled_features(net.model) as seen:
            net(images)
            return seen.pop()
    finally:
        hook.remove()


def mask_of(merge: Merge, sizes: Tensor) -> Tensor:
    """(B, N, P) G of a merge whose tokens weigh by size: A·s with columns that sum to 1."""
    batch, count = merge.sizes.shape
    shares = merge.assignment.spread(torch.eye(count).expand(batch, 1, -1, -1))[:, 0]
    weighted = shares * sizes[..., None]
    return weighted / weighted.sum(dim=1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """IBB without its first term, which no mask changes: per image −Σ_a φ̃_a log Q(a|y)."""

    centroids: Tensor
    """(A, D), or (A, P·D) of all merged tokens together."""
    log_q: Tensor
    """(A, C)."""
    whole: bool
    """Whether the merged tokens of an image are one point, as in the paper."""

    def __call__(self, mask: Tensor, units: Tensor, labels: Tensor) -> Tensor:
        """(B,) from masks (B, N, P), tokens (B, N, D) and labels."""
        merged = torch.bmm(mask.transpose(-2, -1), units)
        if self.whole:
            merged = _as_points(merged)
        inside = memberships(merged @ self.centroids.T, self.centroids, BETA).mean(dim=1)
        return -(inside * self.log_q.T[labels]).sum(dim=-1)

    def gradient(self, mask: Tensor, units: Tensor, labels: Tensor) -> Tensor:
        """(B, N, P) gradient of each image's bound, by autograd."""
        mask = mask.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self(mask, units, labels).sum(), mask)
        return gradient


def fit_bounds(inputs: list[LayerInputs], classes: int, clusters: int, seed: int) -> tuple[StepFit, dict[str, Bound]]:
    """The step of a layer and both bounds at the prior: `tokens`, with the clusters of the step, and `image`."""
    units, masks, labels = (
        torch.cat([getattr(each, name) for each in inputs]) for name in ("units", "prior", "labels")
    )
    fit = fit_step(units, masks, labels, classes=classes, clusters=clusters, seed=seed)
    points = _as_points(torch.bmm(masks.transpose(-2, -1), units))
    whole = fit_step(points, torch.ones(len(points), 1, 1), labels, classes=classes, clusters=classes, seed=seed)
    by_token = Bound(centroids=fit.centroids, log_q=fit.log_q, whole=False)
    return fit, {"tokens": by_token, "image": Bound(centroids=whole.centroids, log_q=whole.log_q, whole=True)}


def _as_points(merged: Tensor) -> Tensor:
    """(B, 1, P·D), scaled to lengths of at most 1."""
    return merged.flatten(1)[:, None] / merged.shape[1] ** 0.5
