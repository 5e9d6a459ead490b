"""Gradient masks that start from data: statistics by their definitions, and steps that lower IBB on unseen images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.nets import randomise
from torch import Tensor

from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.mask_fit import SPREAD, WINDOWS, StepFit, fit_layer, fit_step, layer_inputs
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError
from ltmsearch.merging import LearnableTokenMerging
from ltmsearch.merging.ib_step import BETA, changed_mask, expected_scores, mask_gradient, memberships, step_down
from ltmsearch.merging.prior import log_overlap
from ltmsearch.models import attached_operators, input_config
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="exact")
GRID, TARGET, CLASSES, CLUSTERS, D = (4, 4), (3, 3), 3, 6, 24
LOG_PRIOR = torch.from_numpy(log_overlap(GRID, TARGET)).float()


def images(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit tokens with a common background and a patch of their class, masks of the prior, and labels."""
    generator = torch.Generator().manual_seed(seed)
    kinds = F.normalize(torch.randn(CLASSES + 1, D, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(number) % CLASSES
    patch = torch.rand(number, 16, 1, generator=generator) < 0.4
    tokens = torch.where(patch, kinds[labels][:, None], kinds[-1]) + 0.1 * torch.randn(
        number, 16, D, generator=generator
    )
    masks = changed_mask(LOG_PRIOR, torch.zeros(number, 16), None)
    return F.normalize(tokens, dim=-1), masks, labels


def fit() -> StepFit:
    return fit_step(*images(240, seed=1), classes=CLASSES, clusters=CLUSTERS, seed=0)


def slope(found: StepFit, tokens: Tensor, masks: Tensor, scores: Tensor | None) -> Tensor:
    """Gradient under each column, with given scores or those that the fit reads out."""
    products = tokens @ found.centroids.T
    inside = memberships(masks.mT @ products, found.centroids, BETA)
    scores = expected_scores(inside, found.scores, found.readout) if scores is None else scores
    gradient = mask_gradient(products, inside, scores, BETA)
    return gradient - (masks * gradient).sum(1, keepdim=True)


def ibb(found: StepFit, tokens: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """(M,) without the part that no mask changes."""
    inside = memberships(masks.mT @ tokens @ found.centroids.T, found.centroids, BETA).mean(1)
    return -(inside * found.log_q.T[labels]).sum(1)


def test_steps_lower_ibb_on_unseen_images() -> None:
    found, (tokens, masks, labels) = fit(), images(90, seed=2)
    wanted = slope(found, tokens, masks, -found.log_q.T[labels][:, None])
    gradient = slope(found, tokens, masks, None)
    cosine = F.cosine_similarity((masks * gradient).flatten(1), (masks * wanted).flatten(1))
    assert cosine.mean() > 0.5
    after = changed_mask(LOG_PRIOR, torch.zeros(90, 16), step_down(None, gradient, masks, torch.tensor(found.rate)))
    change = ibb(found, tokens, after, labels) - ibb(found, tokens, masks, labels)
    assert change.mean() < 0
    assert (change < 0).float().mean() > 0.7


def test_q_is_that_of_the_ib_loss() -> None:
    found, (tokens, masks, labels) = fit(), images(240, seed=1)
    distances = (masks.mT @ tokens)[:, :, None] - found.centroids
    inside = (-BETA * distances.square().sum(-1)).softmax(-1).mean(1)
    for label in range(CLASSES):
        own = inside[labels == label]
        q = (own.sum(0) + 1 / CLUSTERS) / (len(own) + 1)
        torch.testing.assert_close(found.log_q[:, label].exp(), q)


def test_scores_are_a_regression_on_memberships() -> None:
    found, (tokens, masks, labels) = fit(), images(240, seed=1)
    inside = memberships(masks.mT @ tokens @ found.centroids.T, found.centroids, BETA)
    psi = -found.log_q.T[labels]
    left = psi - expected_scores(inside, found.scores, found.readout)[:, 0]
    best = np.linalg.lstsq(np.c_[np.ones(240), inside.mean(1).numpy()], psi.numpy(), rcond=None)[1]
    assert left.square().sum() < 1.1 * best.sum()
    torch.testing.assert_close(left.mean(0), torch.zeros(CLUSTERS), atol=1e-4, rtol=0)


def test_the_rate_gives_the_spread() -> None:
    found, (tokens, masks, _) = fit(), images(240, seed=1)
    change = found.rate * slope(found, tokens, masks, None)
    spread = (masks * change.square()).sum(1).mean().sqrt()
    torch.testing.assert_close(spread, torch.tensor(SPREAD), rtol=1e-4, atol=0)


def test_alike_tokens_leave_a_finite_step() -> None:
    alike = F.normalize(torch.ones(4, 16, D), dim=-1)
    found = fit_step(alike, images(4, seed=1)[1], torch.zeros(4).long(), classes=1, clusters=CLUSTERS, seed=0)
    assert all(weight.isfinite().all() for weight in (found.centroids, found.scores, found.readout))
    assert 0 < found.rate < 100


@pytest.fixture(scope="module")
def data() -> ImageData:
    config = input_config("swin_tiny_patch4_window7_224")
    return load_data(dataset="digits", data_dir=None, img_size=64, val_images=8, calibration_images=8, seed=0, **config)


def swin() -> Supernet:
    sizes = {"embed_dim": 32, "depths": (2, 1), "num_heads": (1, 2), "img_size": 64, "num_classes": 10}
    torch.manual_seed(0)
    return randomise(Supernet("swin_tiny_patch4_window7_224", **sizes))  # type: ignore[return-value]


def step_of(net: Supernet, layer: str) -> LearnableTokenMerging:
    operator = attached_operators(net.model, net.layers)[layer]
    assert isinstance(operator, LearnableTokenMerging)
    operator.step.scores.data.zero_()
    operator.step.readout.data.zero_()
    return operator


def alone(net: Supernet, layer: str, ratio: float = 0.5) -> MergeSchedule:
    return MergeSchedule.uniform([layer], ratio, "ltm", "gradient")


class TestLayers:
    def test_a_layer_of_windows_is_fitted_in_place(self, data: ImageData) -> None:
        net = swin().train()
        operator = step_of(net, net.layers[0])
        others = {n: v.clone() for n, v in net.state_dict().items() if f"{net.layers[0]}.merging.step" not in n}
        with net.active(alone(net, net.layers[0])):
            fit_layer(net.model, operator, data, RUNTIME, seed=0)
        assert operator.step.fitted
        assert net.training
        assert all(torch.equal(net.state_dict()[name], value) for name, value in others.items())
        again = step_of(other := swin(), net.layers[0])
        with other.active(alone(other, net.layers[0])):
            fit_layer(other.model, again, data, RUNTIME, seed=0)
        assert torch.equal(again.step.readout, operator.step.readout), "the same data give the same weights"

    def test_inputs_are_those_of_some_windows_with_their_labels(self, data: ImageData) -> None:
        net = swin().eval()
        operator, batch = step_of(net, net.layers[0]), next(data.validation_batches(batch_size=8))
        whole: list[Tensor] = []
        hook = operator.register_forward_hook(lambda _m, args, _merge: whole.append(args[0]))
        with net.active(alone(net, net.layers[0])), torch.no_grad():
            net(batch[0])
            hook.remove()
            (given,) = layer_inputs(net.model, operator, [batch], RUNTIME)
        windows = whole[0].unflatten(0, (8, -1))
        assert windows.shape[1] == 9 > WINDOWS
        torch.testing.assert_close(given.arguments[0].unflatten(0, (8, -1)), windows[:, [0, 3, 5, 8]])
        assert torch.equal(given.labels, batch[1].repeat_interleave(WINDOWS))

    def test_a_layer_that_does_not_merge_stays(self, data: ImageData) -> None:
        net = swin()
        operator = step_of(net, net.layers[0])
        for schedule in (MergeSchedule.uniform(net.layers, 1.0), alone(net, net.layers[0], 0.999)):
            with net.active(schedule):
                fit_layer(net.model, operator, data, RUNTIME, seed=0)
        assert not operator.step.fitted

    def test_tokens_that_are_not_finite_are_told(self, data: ImageData) -> None:
        net = swin()
        operator = step_of(net, net.layers[0])
        net.model.patch_embed.proj.bias.data.fill_(float("nan"))
        with net.active(alone(net, net.layers[0])), pytest.raises(InputError, match="must be finite to fit its mask"):
            fit_layer(net.model, operator, data, RUNTIME, seed=0)
        assert not operator.step.fitted
