"""A linear probe: a new classifier, fitted to the frozen features of a trained network by logistic regression.

Training from a random classifier distorts trained features first; training from a fitted one does not (LP-FT: Kumar
et al., 2022, https://arxiv.org/abs/2202.10054).

Shapes: N images, D features, C classes.
"""

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltmsearch.data.loading import ImageData
from ltmsearch.engine.evaluation import Batches, Score, evaluating
from ltmsearch.engine.probe_record import ProbeRecord
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError

INVERSE_REGULARISATION = 0.01
"""C of scikit-learn's logistic regression, on standardised features."""
MAX_IMAGES = 50_000
"""Largest number of images to fit to. Their features in float32 take N · D · 4 bytes, twice that for a moment (154 MB
with 384 features), and the fit about twice N · C · 4 bytes (400 MB with 1,000 classes)."""
MAX_ITERATIONS = 1000
BATCH = 32
"""Images per forward pass."""


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """A linear classifier of features as they are: logits = x Wᵀ + b."""

    weight: np.ndarray
    """(C, D) float64."""
    bias: np.ndarray
    """(C,) float64."""
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Result of `fit_classifiers`."""

    images: int
    classes: int
    seconds: float
    converged: bool
    train_top1: float
    """Percent."""

    def record(self, img_size: int, score: Score) -> ProbeRecord:
        """The record, with the score of the plain network."""
        return ProbeRecord(
            images=self.images,
            classes=self.classes,
            img_size=img_size,
            seconds=round(self.seconds, 3),
            converged=self.converged,
            train_top1=self.train_top1,
            top1=score.top1,
            top1_se=score.top1_se,
            val_images=score.images,
        )


def probe_images(data: ImageData, *, seed: int, of: Collection[int] | None = None) -> list[int]:
    """Numbers of the training images to fit to; of more than `MAX_IMAGES` a sample, balanced over the classes.

    Args:
        of: The numbers of the images to choose from, for example without those set aside; None: all.
    """
    return data.training_sample(MAX_IMAGES, seed=seed, of=of)


def fit_classifiers(
    model: nn.Module,
    classifiers: Sequence[str],
    data: ImageData,
    runtime: Runtime,
    *,
    images: Sequence[int],
    watch: Callable[[Batches], Batches] = lambda batches: batches,
) -> Probe:
    """Fit linear classifiers of a network in place, each to its own inputs in one forward pass.

    Nothing else of the network changes. The same images give the same bits on the same machine.

    Args:
        classifiers: timm paths of linear layers; two in a network with a distillation token, each of which has its own
            token.
        images: Numbers of the training images to fit to: see `probe_images`.
        watch: Wraps the batches, to report progress.

    Raises:
        InputError: If a classifier is not linear, features are not finite, or fewer than two classes have images.
    """
    start = time.perf_counter()
    layers = {name: _linear(model, name) for name in classifiers}
    features, labels = record_inputs(model, layers, watch(data.ordered_batches(images, batch_size=BATCH)), runtime)
    logits: Any = 0.0
    converged = True
    for name, layer in layers.items():
        fit = fit_linear(features[name], labels, layer.out_features)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(fit.weight))
            layer.bias.copy_(torch.from_numpy(fit.bias))
        logits += features.pop(name) @ fit.weight.astype(np.float32).T
        logits += fit.bias.astype(np.float32)
        converged &= fit.converged
    return Probe(
        images=len(labels),
        classes=len(np.unique(labels)),
        seconds=time.perf_counter() - start,
        converged=converged,
        train_top1=100 * float((logits.argmax(axis=1) == labels).mean()),
    )


def record_inputs(
    model: nn.Module, layers: dict[str, nn.Linear], batches: Batches, runtime: Runtime
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The (N, D) float32 inputs of each layer in evaluation mode, and the (N,) int64 labels of the images."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    labels: list[Tensor] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, args: seen[name].append(args[0].float().cpu().numpy())

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        with evaluating(model), torch.inference_mode():
            for images, targets in batches:
                labels.append(targets)
                with runtime.autocast():
                    model(runtime.images(images))
    finally:
        for hook in hooks:
            hook.remove()
    if not labels:
        raise InputError("a classifier can be fitted to training images only, but there is no readable one")
    return {name: np.concatenate(seen.pop(name)) for name in layers}, torch.cat(labels).numpy()


def fit_linear(features: np.ndarray, labels: np.ndarray, num_classes: int) -> LinearFit:
    """Logistic regression on standardised features, as a linear classifier of the features as they are.

    A class without images gets a zero weight and a bias so low that no image of the fit is assigned to it: its logit
    is the lowest of all. Constant features get a zero weight.

    Args:
        features: (N, D) float32, left unchanged.
        labels: (N,) class numbers below `num_classes`.

    Raises:
        InputError: If features are not finite, or all labels are the same.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if broken := int((~np.isfinite(features).all(axis=1)).sum()):
        raise InputError(
            f"the features of images must be finite to fit a classifier, but those of {broken} of {len(features)} "
            "images are not; use other weights, --precision fp32 (train: --no-amp) or --head random"
        )
    seen = np.unique(labels)
    if len(seen) < 2:
        raise InputError(
            f"a classifier can be fitted to images of at least two classes, but got {len(features)} of "
            f"{len(seen)}; use --head random"
        )
    scaler = StandardScaler().fit(features)
    regression: Any = LogisticRegression(C=INVERSE_REGULARISATION, solver="lbfgs", max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        regression.fit(scaler.transform(features), labels)
    slope, offset = regression.coef_.astype(np.float64), regression.intercept_.astype(np.float64)
    if len(seen) == 2:  # one row, the logit of the second class over the first
        slope, offset = np.concatenate((-slope, slope)) / 2, np.concatenate((-offset, offset)) / 2
    slope = slope / scaler.scale_
    offset = offset - slope @ scaler.mean_
    weight, bias = np.zeros((num_classes, features.shape[1])), np.zeros(num_classes)
    weight[seen], bias[seen] = slope, offset
    if len(seen) < num_classes:
        lowest = (features @ slope.T.astype(np.float32) + offset.astype(np.float32)).min()
        bias[np.setdiff1d(np.arange(num_classes), seen)] = float(lowest)
    return LinearFit(weight=weight, bias=bias, converged=int(regression.n_iter_.max()) < MAX_ITERATIONS)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        kind = "has no bias" if isinstance(layer, nn.Linear) else f"is a {type(layer).__name__}"
        raise InputError(
            f"a classifier must be a linear layer with a bias to be fitted to features, but {name} {kind}; use "
            "--head random"
        )
    return layer
