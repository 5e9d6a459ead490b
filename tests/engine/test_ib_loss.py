"""The IB loss against its formulas, written out."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

from ltmsearch.engine.ib_loss import IBLoss, IBMeter, IBTerms, input_features, memberships
from ltmsearch.errors import TrialDiverged

IMAGES, DIM, CLASSES, CLUSTERS = 40, 6, 4, 5


def a_set(images: int = IMAGES, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, inputs and labels that depend on each other a little."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    features = torch.randn(images, DIM, generator=generator) + 2 * F.one_hot(labels, DIM)
    pictures = torch.randn(images, 3, 20, 24, generator=generator) + labels[:, None, None, None]
    return features, input_features(pictures), labels


def soft(labels: Tensor, seed: int = 1) -> Tensor:
    """Labels as mixup leaves them: two classes each, and none certain."""
    share = torch.rand(len(labels), 1, generator=torch.Generator().manual_seed(seed))
    return share * F.one_hot(labels, CLASSES) + (1 - share) * F.one_hot(labels.flip(0), CLASSES)


def fitted(
    *, clusters: int | None = CLUSTERS, beta: float = 3.0, targets: Callable[[Tensor], Tensor] | None = None
) -> IBLoss:
    loss = IBLoss(feature_dim=DIM, num_classes=CLASSES, clusters=clusters, beta=beta)
    features, inputs, labels = a_set()
    loss.fit(features, inputs, targets(labels) if targets else labels, seed=0)
    return loss


def metered(loss: IBLoss, features: Tensor, inputs: Tensor, targets: Tensor) -> IBTerms:
    meter = IBMeter(loss)
    meter.add(features, inputs, targets)
    return meter.terms()


def by_hand(points: list[list[float]], centroids: list[list[float]], beta: float) -> list[list[float]]:
    """softmax_a(-beta ||x - c_a||^2), number by number."""
    rows = []
    for x in points:
        scores = [-beta * sum((p - q) ** 2 for p, q in zip(x, c, strict=True)) for c in centroids]
        exps = [math.exp(score - max(scores)) for score in scores]
        rows.append([e / sum(exps) for e in exps])
    return rows


def unit(points: Tensor) -> list[list[float]]:
    rows = points.double().tolist()
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]


def information(joint: list[list[float]]) -> float:
    rows = [sum(row) for row in joint]
    columns = [sum(row[j] for row in joint) for j in range(len(joint[0]))]
    return sum(
        p * math.log(p / (rows[i] * columns[j])) for i, row in enumerate(joint) for j, p in enumerate(row) if p > 0
    )


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_all_terms_are_those_of_the_formulas_written_out(kind: str, beta: float) -> None:
    loss = fitted(beta=beta, targets=soft if kind == "soft" else None)
    features, inputs, labels = a_set(seed=5)
    targets = soft(labels) if kind == "soft" else labels
    t = (targets if kind == "soft" else F.one_hot(labels, CLASSES)).double().tolist()
    phi = by_hand(unit(features), loss.feature_centroids.tolist(), beta)  # (i, a)
    phi_x = by_hand(inputs.tolist(), loss.input_centroids.tolist(), beta)  # (i, b)
    q = loss.q.double().tolist()
    each, k, c = range(IMAGES), range(CLUSTERS), range(CLASSES)

    first = sum(phi[i][a] * phi_x[i][b] * math.log(phi_x[i][b]) for i in each for a in k for b in k) / IMAGES
    second = -sum(phi[i][a] * t[i][y] * math.log(q[a][y]) for i in each for a in k for y in c) / IMAGES
    with_x = [[sum(phi[i][a] * phi_x[i][b] for i in each) / IMAGES for b in k] for a in k]
    with_y = [[sum(phi[i][a] * t[i][y] for i in each) / IMAGES for y in c] for a in k]

    terms = metered(loss, features, inputs, targets)
    assert float(loss(features, targets)) == pytest.approx(second, abs=1e-6)
    assert terms.ibb == pytest.approx(first + second, abs=1e-6)
    assert terms.mi_x == pytest.approx(information(with_x), abs=1e-6)
    assert terms.mi_y == pytest.approx(information(with_y), abs=1e-6)
    assert terms.ib == pytest.approx(information(with_x) - information(with_y), abs=1e-6)
    assert terms.mi_y > 0.01  # or every term could be that of independent variables


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_q_is_the_smoothed_share_of_each_cluster_in_a_class(kind: str) -> None:
    loss = fitted(targets=soft if kind == "soft" else None)
    features, _, labels = a_set()
    t = (soft(labels) if kind == "soft" else F.one_hot(labels, CLASSES)).double().tolist()
    phi = by_hand(unit(features), loss.feature_centroids.tolist(), loss.beta)
    for a in range(CLUSTERS):
        for y in range(CLASSES):
            joint = sum(phi[i][a] * t[i][y] for i in range(IMAGES))
            expected = (joint + 1 / CLUSTERS) / (sum(row[y] for row in t) + 1)
            assert float(loss.q[a, y]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(loss.q.sum(0), torch.ones(CLASSES))


def full_bound(loss: IBLoss, features: Tensor, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of IBB as the formula has them, for autograd."""
    phi = memberships(F.normalize(features, dim=1), loss.feature_centroids, loss.beta)
    phi_x = memberships(inputs, loss.input_centroids, loss.beta)
    first = torch.einsum("ia,ib->", phi, phi_x * phi_x.log()) / len(features)
    second = -(phi * loss.q.log().T[labels]).sum() / len(features)
    return first, second


def test_the_first_term_has_no_gradient() -> None:
    loss = fitted()
    features, inputs, labels = a_set(seed=6)
    features.requires_grad_()
    first, second = full_bound(loss, features, inputs, labels)
    (of_first,) = torch.autograd.grad(first, features, retain_graph=True)
    (of_all,) = torch.autograd.grad(first + second, features)
    (of_forward,) = torch.autograd.grad(loss(features, labels), features)
    scale = float(of_forward.abs().max())
    assert scale > 1e-4
    assert float(of_first.abs().max()) < 1e-5 * scale
    torch.testing.assert_close(of_all, of_forward, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.5, 4.0, 30.0])
def test_the_bound_holds_for_any_q(beta: float, seed: int) -> None:
    loss = fitted(beta=beta)
    features, inputs, labels = a_set(seed=seed)
    for q in (loss.q.clone(), torch.rand(CLUSTERS, CLASSES) + 1e-3):
        loss.q.copy_(q / q.sum(0))
        terms = metered(loss, features, inputs, labels)

        def entropy(phi: Tensor) -> float:
            mean = phi.double().mean(0)
            return -float(torch.xlogy(mean, mean).sum())

        slack = entropy(loss.input_memberships(inputs)) - entropy(loss.feature_memberships(features))
        assert terms.ib <= terms.ibb + slack + 1e-9


def test_absent_classes_have_the_uniform_distribution() -> None:
    features, inputs, labels = a_set()
    loss = IBLoss(feature_dim=DIM, num_classes=CLASSES + 2, clusters=CLUSTERS, beta=1000.0)
    loss.fit(features, inputs, labels, seed=0)
    torch.testing.assert_close(loss.q[:, CLASSES:], torch.full((CLUSTERS, 2), 1 / CLUSTERS))
    assert float(loss.q.min()) > 0
    assert float(loss(features, torch.full((IMAGES,), CLASSES))) == pytest.approx(math.log(CLUSTERS), abs=1e-5)
    terms = metered(loss, features, inputs, labels)
    assert all(math.isfinite(value) for value in (terms.mi_x, terms.mi_y, terms.ibb))


@pytest.mark.parametrize("images", [1, 2, CLUSTERS])
def test_fewer_images_than_clusters(images: int) -> None:
    """Also where images are repeated, which scikit-learn must not warn of."""
    features, inputs, labels = a_set(images)
    loss = IBLoss(feature_dim=DIM, num_classes=CLASSES, clusters=CLUSTERS)
    for copies in (1, 1, 6, 6):  # k-means++, then from the centroids
        loss.fit(*(torch.cat([each] * copies) for each in (features, inputs, labels)), seed=0)
        assert math.isfinite(float(loss(features, labels)))
    loss.fit(features, inputs, labels, seed=0)
    assert {tuple(row) for row in loss.feature_centroids.tolist()} == {
        tuple(row) for row in F.normalize(features, dim=1).tolist()
    }


def test_statistics_travel_in_the_state() -> None:
    features, inputs, labels = a_set(seed=7)
    loss = fitted()
    other = IBLoss(feature_dim=DIM, num_classes=CLASSES, clusters=CLUSTERS, beta=loss.beta)
    other.load_state_dict(loss.state_dict())
    assert float(other(features, labels)) == float(loss(features, labels))
    assert metered(other, features, inputs, labels) == metered(loss, features, inputs, labels)
    fresh = IBLoss(feature_dim=DIM, num_classes=CLASSES, clusters=CLUSTERS, beta=loss.beta)
    other.load_state_dict(fresh.state_dict())
    with pytest.raises(ValueError, match="fitted"):
        other(features, labels)


def test_fitting_is_deterministic_on_any_number_of_threads() -> None:
    features, inputs, labels = a_set(300)
    states = []
    for threads in (1, 2):
        loss = IBLoss(feature_dim=DIM, num_classes=CLASSES, clusters=30)
        with threadpool_limits(limits=threads):
            loss.fit(features, inputs, labels, seed=3)
            loss.fit(features + 0.1, inputs, labels, seed=4)
        states.append(loss.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_fitting_leaves_the_random_numbers_of_others_alone() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fitted()
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_a_second_fit_starts_from_the_centroids_there_are() -> None:
    """Cluster a stays cluster a while the features move a little: Q's rows keep their meaning."""
    labels = torch.arange(CLASSES).repeat(10)
    features = 3 * F.one_hot(labels, DIM) + 0.1 * torch.randn(40, DIM)
    _, inputs, _ = a_set(40)
    loss = IBLoss(feature_dim=DIM, num_classes=CLASSES)
    loss.fit(features, inputs, labels, seed=0)
    before = loss.feature_centroids.clone()
    for seed in range(5):
        loss.fit(features + 0.1 * torch.randn(40, DIM), inputs, labels, seed=seed)
    assert torch.equal(torch.cdist(before, loss.feature_centroids).argmin(1), torch.arange(CLASSES))


def test_large_sets_are_clustered_in_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide apart groups are found by either kind."""
    labels = torch.arange(CLASSES).repeat(100)
    features = 3 * F.one_hot(labels, DIM) + 0.1 * torch.randn(400, DIM)
    _, inputs, _ = a_set(400)
    monkeypatch.setattr("ltmsearch.engine.ib_loss.LARGE_SET", 399)
    monkeypatch.setattr("ltmsearch.engine.ib_loss.KMeans", None)
    loss = IBLoss(feature_dim=DIM, num_classes=CLASSES)
    for _ in range(2):
        loss.fit(features, inputs, labels, seed=0)
        nearest = torch.cdist(F.normalize(features, dim=1), loss.feature_centroids).argmin(1)
        assert len({(int(a), int(y)) for a, y in zip(nearest, labels, strict=True)}) == CLASSES


def test_autocast_changes_nothing() -> None:
    loss = fitted()
    features, inputs, labels = a_set(seed=9)
    outside = float(loss(features, labels)), metered(loss, features, inputs, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert (float(loss(features, labels)), metered(loss, features, inputs, labels)) == outside
    assert loss(features.bfloat16(), labels).dtype == torch.float32


def test_inputs_are_means_by_area_of_length_one() -> None:
    images = torch.randn(1, 3, 32, 48)
    cells = [
        images[0, c, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3].mean()
        for c in range(3)
        for y in range(16)
        for x in range(16)
    ]
    torch.testing.assert_close(input_features(images)[0], F.normalize(torch.stack(cells), dim=0))


def test_use_before_fit_and_senseless_arguments_are_refused() -> None:
    features, inputs, labels = a_set()
    loss = IBLoss(feature_dim=DIM, num_classes=CLASSES)
    for use in (lambda: loss(features, labels), lambda: IBMeter(loss)):
        with pytest.raises(ValueError, match="fitted"):
            use()
    with pytest.raises(TrialDiverged, match="finite"):
        loss.fit(features * float("nan"), inputs, labels, seed=0)
    loss = fitted()
    for wrong in (labels.float(), soft(labels)[:, 1:]):
        with pytest.raises(ValueError, match="targets must be"):
            loss(features, wrong)
    with pytest.raises(ValueError, match="none was added"):
        IBMeter(loss).terms()
