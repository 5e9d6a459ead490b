"""The information-bottleneck (IB) loss: features should predict the class and ignore the rest of the image.

Features and images are random variables X~ and X through soft cluster memberships, and the loss is a separable upper
bound of I(X~;X) - I(X~;Y). Formulas follow the LTM paper (https://arxiv.org/abs/2407.15219); the authors set `beta = 1`
and refresh the statistics once per epoch.

Legend: B images of a batch, N of a set, D' features, P = 3 * 16 * 16 pixels, K clusters, C classes;
i an image, a a cluster of features, b a cluster of images, y a class.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from ltmsearch.errors import TrialDiverged

SIDE = 16
"""Side of the pooled images, in pixels."""
LARGE_SET = 20_000
"""Rows above which k-means uses mini-batches."""
ITERATIONS = 100
"""Largest number of k-means iterations."""
SMOOTHING = 1.0
"""Pseudo-count of images per class, spread over all clusters: Q has no zero, and absent classes have 1/K."""
FEW_PER_CLUSTER = 4
"""Points per cluster below which k-means starts at random: k-means++ would take nearly all of the time, and hardly
matter if nearly every point is a cluster."""
CHUNK = 8192
"""Rows per chunk of memberships."""


def input_features(images: Tensor) -> Tensor:
    """(B, P) input vectors of (B, channels, H, W) images: averaged by area to 16 x 16 pixels, of length 1."""
    return F.normalize(F.adaptive_avg_pool2d(images.float(), SIDE).flatten(1), dim=1)


def memberships(points: Tensor, centroids: Tensor, beta: float) -> Tensor:
    """(B, K) memberships softmax_a(-beta ||x - c_a||^2) of (B, D) points x in clusters with (K, D) centroids c_a."""
    with torch.autocast(points.device.type, enabled=False):
        points, centroids = points.float(), centroids.float()
        # ||x||^2 is the same for every a and drops out of the softmax.
        return (beta * (2 * points @ centroids.T - centroids.square().sum(1))).softmax(1)


@dataclass(frozen=True, kw_only=True)
class IBTerms:
    """The information terms of a set of images, in nats."""

    mi_x: float
    """Plug-in estimate of I(X~;X), the information of features about images."""
    mi_y: float
    """Plug-in estimate of I(X~;Y), their information about classes."""
    ibb: float
    """The bound: IB <= IBB + H(X) - H(X~), see `IBLoss`."""

    @property
    def ib(self) -> float:
        """I(X~;X) - I(X~;Y)."""
        return self.mi_x - self.mi_y


class IBLoss(nn.Module):
    """The IB loss with its statistics as buffers: centroids of features and of images, and Q(a|y).

    With phi~(i,a) the memberships of the features, phi(i,b) those of the images and t(i,y) the labels,

        IBB = mean_i [ sum_ab phi~(i,a) phi(i,b) log phi(i,b)  -  sum_a phi~(i,a) sum_y t(i,y) log Q(a|y) ]

    bounds IB from above up to the entropies of the mean memberships, IB <= IBB + H(X) - H(X~): by the log-sum
    inequality sum_ab p(a,b) log p(b|a) is at most the first term, so I(X~;X) <= H(X) + first term; and since a cross
    entropy is at least the entropy, for any conditional distribution Q, I(X~;Y) >= H(X~) - second term.

    As sum_a phi~(i,a) = 1, the first term is mean_i sum_b phi(i,b) log phi(i,b): it does not depend on the network, its
    gradient is zero, and `forward` is the second term alone. `IBMeter` reports both.

    IBB alone collapses H(X~): features that are all in one cluster lower it as well, and I(X~;Y) with it. So it is
    a term to add to cross entropy, not a loss of its own.

    Args:
        feature_dim: D', width of the classifier's input.
        num_classes: C.
        in_chans: Channels of the images.
        clusters: K of the features and of the images; None: C.
        beta: How sharply an image belongs to its nearest centroid, above 0. On vectors of length 1, memberships are
            nearly uniform at 1 (0.9 of their greatest entropy with 20 clusters) and sharp at 10 (0.2).
    """

    feature_centroids: Tensor
    input_centroids: Tensor
    q: Tensor
    fitted: Tensor

    def __init__(
        self, *, feature_dim: int, num_classes: int, in_chans: int = 3, clusters: int | None = None, beta: float = 1.0
    ) -> None:
        clusters = num_classes if clusters is None else clusters
        super().__init__()
        self.num_classes = num_classes
        self.clusters = clusters
        self.beta = beta
        self._known_fitted = False
        self.register_buffer("feature_centroids", torch.zeros(clusters, feature_dim))
        self.register_buffer("input_centroids", torch.zeros(clusters, in_chans * SIDE * SIDE))
        self.register_buffer("q", torch.full((clusters, num_classes), 1 / clusters))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """The part of IBB that depends on the network: -mean_i sum_a phi~(i,a) sum_y t(i,y) log Q(a|y).

        Features are (B, D') of any length and dtype, targets (B,) labels or (B, C) label distributions; the result is a
        float32 scalar.

        Raises:
            ValueError: Before `fit`.
        """
        self.require_fitted()
        with torch.autocast(features.device.type, enabled=False):
            log_q = self.distributions(targets) @ self.q.log().T
            return -(self.feature_memberships(features) * log_q).sum(1).mean()

    def require_fitted(self) -> None:
        """Raises ValueError before `fit`."""
        # Remembered, since reading the buffer waits for all work queued on a GPU.
        self._known_fitted = self._known_fitted or bool(self.fitted)
        if not self._known_fitted:
            raise ValueError("IBLoss must be fitted before it is used: call fit(features, inputs, targets, seed=...)")

    def _load_from_state_dict(self, *args: object) -> None:
        self._known_fitted = False
        super()._load_from_state_dict(*args)

    def feature_memberships(self, features: Tensor) -> Tensor:
        """phi~, (B, K), of features (B, D') of any length."""
        return memberships(F.normalize(features.float(), dim=1), self.feature_centroids, self.beta)

    def input_memberships(self, inputs: Tensor) -> Tensor:
        """phi, (B, K), of inputs (B, P) as `input_features` gives them."""
        return memberships(inputs, self.input_centroids, self.beta)

    def distributions(self, targets: Tensor) -> Tensor:
        """t, (B, C) float32, of labels (B,) or label distributions (B, C)."""
        if targets.ndim == 1 and not targets.is_floating_point():
            return F.one_hot(targets.long(), self.num_classes).float()
        if targets.ndim != 2 or targets.shape[1] != self.num_classes:
            rule = f"targets must be integer labels (B,) or distributions (B, {self.num_classes})"
            raise ValueError(f"{rule}, but got {targets.dtype} of shape {tuple(targets.shape)}")
        return targets.float()

    @torch.no_grad()
    def fit(self, features: Tensor, inputs: Tensor, targets: Tensor, *, seed: int) -> None:
        """Fit centroids and Q to a set of images; a repeated fit starts from the current centroids.

        Features are (N, D') of any length, inputs (N, P) of `input_features`, targets (N,) labels or (N, C) label
        distributions. The same seed and numbers give the same statistics, on any number of threads.

        Raises:
            TrialDiverged: If a feature is not finite; nothing is then fitted.
        """
        if not bool(features.isfinite().all()):
            raise TrialDiverged("the features are not finite")
        for buffer, points in (
            (self.feature_centroids, F.normalize(features.float(), dim=1)),
            (self.input_centroids, inputs.float()),
        ):
            start = buffer.cpu().numpy() if self.fitted else None
            buffer.copy_(torch.from_numpy(k_means(points.cpu().numpy(), self.clusters, start, seed)))
        joint = torch.zeros_like(self.q, dtype=torch.float64)  # (K, C)
        for some, labels in zip(features.split(CHUNK), targets.split(CHUNK), strict=True):
            phi = self.feature_memberships(some.to(self.q.device)).double()
            joint += phi.T @ self.distributions(labels.to(self.q.device)).double()
        # Memberships of one image sum to 1, so that a column's sum is the number of its class's images.
        self.q.copy_((joint + SMOOTHING / self.clusters) / (joint.sum(0) + SMOOTHING))
        self.fitted.fill_(True)


def k_means(points: np.ndarray, clusters: int, start: np.ndarray | None, seed: int) -> np.ndarray:
    """Centroids of (N, D) points, (clusters, D) float32; points are repeated if there are too few.

    `start`: centroids to start from; None: chosen by `seed`.
    """
    if len(points) <= clusters:
        return np.resize(points, (clusters, points.shape[1]))
    kind = MiniBatchKMeans if len(points) > LARGE_SET else KMeans
    careful = len(points) >= FEW_PER_CLUSTER * clusters
    init = start if start is not None else "k-means++" if careful else "random"
    # One thread: with more, the order of sums, and so the last digits, depends on their number.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: harmless here
        means = kind(clusters, init=init, n_init=1, max_iter=ITERATIONS, random_state=seed).fit(points)
    return means.cluster_centers_.astype(np.float32)


class IBMeter:
    """Accumulates the information terms of a set of images, batch by batch, with the statistics of a fitted loss."""

    totals: Tensor
    """Flat float64 sums over images on the device of `loss`; they may be summed over processes."""

    def __init__(self, loss: IBLoss) -> None:
        loss.require_fitted()
        self.loss = loss
        size = loss.clusters**2 + loss.q.numel() + 1
        self.totals = torch.zeros(size, dtype=torch.float64, device=loss.q.device)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the totals: sums of phi~ phi (K, K), of phi~ t (K, C), and of phi log phi (1,)."""
        k = self.loss.clusters
        with_x, with_y, first = self.totals.split([k * k, self.loss.q.numel(), 1])
        return with_x.view(k, k), with_y.view_as(self.loss.q), first

    @torch.no_grad()
    def add(self, features: Tensor, inputs: Tensor, targets: Tensor) -> None:
        """Add a batch: features (B, D'), inputs (B, P) of `input_features`, labels (B,) or distributions (B, C)."""
        phi_x = self.loss.input_memberships(inputs).double()
        phi = self.loss.feature_memberships(features).double()
        with torch.autocast(features.device.type, enabled=False):
            with_x, with_y, first = self._parts()
            with_x += phi.T @ phi_x
            with_y += phi.T @ self.loss.distributions(targets).double()
            first += torch.xlogy(phi_x, phi_x).sum()

    def terms(self) -> IBTerms:
        """The terms of all images added; raises ValueError if there are none."""
        with_x, with_y, first = (part.cpu() for part in self._parts())
        images = with_y.sum()
        if not images > 0:
            raise ValueError("`terms` needs images, but none was added")
        second = -(with_y * self.loss.q.cpu().double().log()).sum()
        return IBTerms(mi_x=_information(with_x), mi_y=_information(with_y), ibb=float((first + second) / images))


def _information(joint: Tensor) -> float:
    joint = joint / joint.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float((torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum())
