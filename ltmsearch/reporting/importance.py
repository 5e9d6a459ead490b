"""Effect of merging at each layer on score and cost, estimated from a study's scored trials.

A linear model. The input of a layer is the number of times its merge halves the tokens, −log2 of the kept share: where
merges accumulate, shares multiply and their halvings add up; elsewhere it is steeper for small shares, as losses are.
The version of the shared weights is a covariate: otherwise a layer that the sampler tried late would seem good because
the weights were better by then.

Scores are those from when the trial ran, also for rescored trials: those were selected by their score, and mixing both
would bias the effects. Cross-entropy loss decides on significance, because top-1 of a few hundred images is coarser;
top-1 is fitted in the same way.

Plain least squares, because a fitted prior (as in BayesianRidge) shrinks the standard errors with the effects: of small
effects in 24 simulated trials of 9 layers, only four fifths were within two standard errors.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from ltmsearch.search.records import TrialRecord

SPARE = 5
"""Scored trials beyond the unknowns that a fit needs."""
FALSE_ALARMS = 0.05
"""Share of studies without any effect in which some layer may be reported as significant. Two standard errors for each
layer alone would report one in a third of the studies with 9 layers, and in two thirds of those with 24."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A fitted number."""

    value: float
    se: float
    """Standard error."""


@dataclass(frozen=True, kw_only=True)
class LayerEffect:
    """Effect of merging at one layer, with the others unchanged. None: not determined by the trials."""

    layer: str
    keep_ratio: float | None
    """Share of the tokens kept by the merge described here: the median over the scored trials that merge; None without
    any. A keep ratio is such a share; a number of tokens to remove has that of its trial."""
    loss: Estimate | None = None
    """Added cross-entropy loss in nats."""
    top1: Estimate | None = None
    """Added top-1 in points."""
    gflops_saved: Estimate | None = None
    """GFLOPs saved per image, on average over the other layers' choices in these trials. Costs are exact; the error is
    that of this average."""
    distinct: bool = False
    """Whether the effect on the loss is significant (see `Importance.threshold`) and top-1 does not contradict it."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Effects of all layers."""

    layers: tuple[LayerEffect, ...]
    """In network order."""
    trials: int
    """Number of scored trials."""
    needed: int
    """Number of scored trials needed; with fewer no layer has an effect."""
    threshold: float | None = None
    """Standard errors that a significant effect must exceed, 2 or more, so that `FALSE_ALARMS` holds over all layers.
    None without a fit."""


def layer_importance(records: Iterable[TrialRecord]) -> Importance:
    """Estimate the effect of every layer from all trials of a study; those without top-1 and loss are ignored."""
    records = list(records)
    layers = list(records[0].schedule.keep_ratios) if records else []
    scored = [r for r in records if r.top1 is not None and r.loss is not None]
    shares = np.array([[r.kept_share(layer) for layer in layers] for r in scored])
    halvings = -np.log2(shares.reshape(len(scored), len(layers)))
    versions = [float(r.supernet_version or 0) for r in scored]
    # The plain network's level, and its trend if the weights changed.
    covariates = np.array([[1.0, version] if len(set(versions)) > 1 else [1.0] for version in versions])
    varied = [i for i in range(len(layers)) if len(set(halvings[:, i])) > 1]
    needed = len(varied) + 2 + SPARE
    effects = [LayerEffect(layer=layer, keep_ratio=_median_share(scored, layer)) for layer in layers]
    if len(scored) < needed or not varied:
        return Importance(layers=tuple(effects), trials=len(scored), needed=needed)
    # Project out the covariates, in coordinates that leave independent rows.
    rest = np.linalg.qr(covariates, mode="complete")[0][:, covariates.shape[1] :].T
    inputs = rest @ halvings[:, varied]
    free = len(inputs) - int(np.linalg.matrix_rank(inputs))
    threshold = max(2.0, float(stdtrit(free, 1 - FALSE_ALARMS / 2 / len(varied))))
    inverse = np.linalg.pinv(inputs)
    fits = []
    for name in ("loss", "top1", "gflops"):
        outputs = rest @ np.array([getattr(r, name) for r in scored])
        weights = inverse @ outputs
        variance = float(np.sum((outputs - inputs @ weights) ** 2)) / free
        fits.append((weights, np.sqrt(variance * np.sum(inverse**2, axis=1))))
    # Columns that are a mixture of others have no determined weight.
    determined = np.diag(inverse @ inputs) > 1 - 1e-6
    for place, i in enumerate(varied):
        if determined[place]:
            times = -float(np.log2(effects[i].keep_ratio or 1.0))  # from a halving to the layer's median share
            loss, top1, gflops = (Estimate(value=times * float(w[place]), se=times * float(e[place])) for w, e in fits)
            effects[i] = replace(
                effects[i],
                loss=loss,
                top1=top1,
                gflops_saved=replace(gflops, value=-gflops.value),
                distinct=abs(loss.value) > threshold * loss.se and loss.value * top1.value <= 0,
            )
    return Importance(layers=tuple(effects), trials=len(scored), needed=needed, threshold=threshold)


def _median_share(scored: list[TrialRecord], layer: str) -> float | None:
    tried = [r.kept_share(layer) for r in scored if r.kept_share(layer) < 1]
    return float(np.median(tried)) if tried else None
