"""What merging at each layer does to the score and saves in cost, estimated from a study's scored trials.

A linear model. A layer's input is how often its merge halves the tokens, −log2 of the keep ratio. Where
merges accumulate ratios multiply, so that their halvings add up as a linear model takes them to; where every layer is
unmerged at its end it is a scale as good as another, and steeper towards small ratios, as losses are. Beside the layers
stands the version of the shared weights, or else a layer that the sampler came to like late would pass for a good one
because the weights were better by then.

The score is the one of the trial's own time, also where there is one with the final weights: the trials that are scored
again were chosen for their score, and in a mixture of both the choice would take a part of the effects. It is the
cross-entropy loss that decides, the steadier measure: top-1 of a few hundred images moves by whole images. Top-1 is
fitted in the same way and stands beside it.

Least squares and not a fitted prior (as BayesianRidge has): that shrinks its standard errors with its effects, and 24
simulated trials of 9 layers with small effects had only four fifths of them within two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ltmsearch.search.records import TrialRecord

Floats = NDArray[np.float64]

SPARE = 5
"""Scored trials beyond the unknowns below which a fit says more of noise than of layers."""
FALSE_ALARMS = 0.05
"""Share of studies without any effect in which some layer may pass for having one. Two standard errors for each layer
alone would let that happen in a third of the studies with 9 layers, and in two thirds of those with 24."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A fitted number."""

    value: float
    se: float
    """Its standard error."""


@dataclass(frozen=True, kw_only=True)
class LayerEffect:
    """What merging at one layer does, the others left as they are. None: the trials cannot tell."""

    layer: str
    keep_ratio: float | None
    """The middle of what was tried: the median over the scored trials that merge there. All else here is of a merge to
    it. None where no trial merges there."""
    loss: Estimate | None = None
    """Added to the cross-entropy loss, in nats."""
    top1: Estimate | None = None
    """Added to top-1, in points."""
    gflops_saved: Estimate | None = None
    """Of one image, on average over what the other layers did in these trials. Costs are exact; the error is of that
    average."""
    distinct: bool = False
    """Whether the effect on the loss can be told from zero (see `Importance.threshold`), and top-1 does not point the
    other way."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What the scored trials tell of each layer."""

    layers: tuple[LayerEffect, ...]
    """In the order of the net."""
    trials: int
    """How many scored trials there are."""
    needed: int
    """How many it takes to tell layers apart; with fewer no layer has an effect."""
    threshold: float | None = None
    """Standard errors that an effect must exceed to be told from zero, 2 or more: the more layers are asked about and
    the fewer trials answer, the more, see `FALSE_ALARMS`. None without a fit."""


def layer_importance(records: Iterable[TrialRecord]) -> Importance:
    """Estimate the effect of every layer.

    Args:
        records: All trials of a study. Those without a score, or with a top-1 alone, have no say.
    """
    records = list(records)
    layers = list(records[0].schedule.keep_ratios) if records else []
    scored = [r for r in records if r.top1 is not None and r.loss is not None]
    halvings = np.array([[-np.log2(r.schedule.keep_ratios[layer]) for layer in layers] for r in scored])
    halvings = halvings.reshape(len(scored), len(layers))
    middles = [_middle(scored, layer) for layer in layers]
    versions = [float(r.supernet_version or 0) for r in scored]
    # The plain net's level, and its trend where the weights moved at all.
    beside = np.array([[1.0, version] if len(set(versions)) > 1 else [1.0] for version in versions])
    varied = [i for i in range(len(layers)) if len(set(halvings[:, i])) > 1]
    needed = len(varied) + 2 + SPARE
    if len(scored) < needed or not varied:
        nothing = tuple(LayerEffect(layer=n, keep_ratio=m) for n, m in zip(layers, middles, strict=True))
        return Importance(layers=nothing, trials=len(scored), needed=needed)
    # What the level and the trend explain is taken out beforehand, in coordinates that leave independent rows.
    rest = np.linalg.qr(beside, mode="complete")[0][:, beside.shape[1] :].T
    inputs = rest @ halvings[:, varied]
    known, free = _known(inputs), len(inputs) - int(np.linalg.matrix_rank(inputs))
    threshold = max(2.0, float(stdtrit(free, 1 - FALSE_ALARMS / 2 / len(varied))))
    loss = _fit(inputs, rest @ [r.loss for r in scored], free)
    top1 = _fit(inputs, rest @ [r.top1 for r in scored], free)
    gflops = _fit(inputs, rest @ [r.gflops for r in scored], free)
    effects = {i: (loss[k], top1[k], gflops[k]) for k, i in enumerate(varied) if known[k]}
    return Importance(
        layers=tuple(_effect(layers[i], middles[i], effects.get(i), threshold) for i in range(len(layers))),
        trials=len(scored),
        needed=needed,
        threshold=threshold,
    )


def _middle(scored: Sequence[TrialRecord], layer: str) -> float | None:
    tried = [r.schedule.keep_ratios[layer] for r in scored if r.schedule.keep_ratios[layer] < 1]
    return float(np.median(tried)) if tried else None


def _known(inputs: Floats) -> list[bool]:
    """Which columns are no mixture of the others: only their weights are determined."""
    return [bool(share > 1 - 1e-6) for share in np.diag(np.linalg.pinv(inputs) @ inputs)]


def _fit(inputs: Floats, outputs: Floats, free: int) -> list[Estimate]:
    """Weights by least squares, with standard errors from what they leave unexplained."""
    inverse = np.linalg.pinv(inputs)
    weights = inverse @ outputs
    variance = float(np.sum((outputs - inputs @ weights) ** 2)) / free
    errors = np.sqrt(variance * np.sum(inverse**2, axis=1))
    return [Estimate(value=float(w), se=float(e)) for w, e in zip(weights, errors, strict=True)]


def _effect(
    layer: str, middle: float | None, per_halving: tuple[Estimate, Estimate, Estimate] | None, threshold: float
) -> LayerEffect:
    if middle is None or per_halving is None:
        return LayerEffect(layer=layer, keep_ratio=middle)
    times = -float(np.log2(middle))
    loss, top1, gflops = (Estimate(value=times * e.value, se=times * e.se) for e in per_halving)
    return LayerEffect(
        layer=layer,
        keep_ratio=middle,
        loss=loss,
        top1=top1,
        gflops_saved=replace(gflops, value=-gflops.value),
        distinct=abs(loss.value) > threshold * loss.se and loss.value * top1.value <= 0,
    )
