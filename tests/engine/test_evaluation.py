"""Scoring: the numbers of hand-made cases, and nothing left behind."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import timm
import torch
from support.nets import SMALL, randomise
from torch import Tensor, nn

from ltmsearch.engine.evaluation import (
    Score,
    agreement,
    ib_batches,
    predict,
    preserve_batchnorm,
    recalibrate,
    recalibrate_and_fit,
    score,
)
from ltmsearch.engine.ib_loss import IBLoss, IBMeter, input_features
from ltmsearch.engine.runtime import Runtime, find_device
from ltmsearch.errors import InputError, TrialDiverged
from ltmsearch.models import feature_dim, pooled_features

RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="test")


class Fixed(nn.Module):
    """Answers with the first pixels of each channel as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images)[:, :, 0, 0] if self.training else images[:, :, 0, 0]


def test_score_of_a_hand_made_case() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 0, 1], [1, 0, 0]])
    labels = torch.tensor([0, 1, 0, 0])
    images = logits[:, :, None, None].expand(-1, -1, 2, 2)
    model = Fixed().train()
    result = score(model, [(images[:3], labels[:3]), (images[3:], labels[3:])], RUNTIME)
    assert result.top1 == 75.0
    assert result.images == 4
    assert result.top1_se == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4))
    wanted = -sum(float(logits[i].log_softmax(0)[labels[i]]) for i in range(4)) / 4
    assert result.loss == pytest.approx(wanted, abs=1e-6)
    assert result.predictions.tolist() == [0, 1, 2, 0]
    assert model.training


def test_agreement_counts_equal_answers_right_or_wrong() -> None:
    plain, subnet = np.array([0, 1, 2, 0, 1, 2, 0, 1]), np.array([0, 1, 2, 0, 1, 0, 1, 2])  # 3 of 8 differ
    assert agreement(subnet, plain) == (62.5, pytest.approx(100 * math.sqrt(0.625 * 0.375 / 8)))
    assert agreement(plain, plain) == (100.0, 0.0)
    assert agreement(1 - plain, plain) == (0.0, 0.0)
    with pytest.raises(InputError, match="must stay readable .* but 8 were and then 7; repeat the command"):
        agreement(subnet[:7], plain)


@pytest.mark.parametrize("classes", [2, 5, 6, 1000])
def test_ties_fall_alike_in_scores_and_predictions(classes: int) -> None:
    """In bf16 two largest logits are often equal: a network must still agree with itself."""
    images = torch.randint(3, (64, classes, 1, 1)).float()
    scored = score(Fixed(), [(images, torch.zeros(64, dtype=torch.long))], RUNTIME).predictions
    assert predict(Fixed().eval(), images, RUNTIME).tolist() == scored.tolist()


@pytest.mark.parametrize(("top1", "chance"), [(10.0, True), (15.9, True), (16.1, False), (80.0, False)])
def test_chance_is_within_three_standard_errors(top1: float, chance: bool) -> None:
    known = {"top1_se": 2.0, "loss": 2.3, "images": 256, "predictions": np.zeros(256, int)}
    assert Score(top1=top1, **known).is_at_chance(10) is chance
    assert not Score(top1=60.0, **known).is_at_chance(2)


def test_score_needs_images() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        score(Fixed(), [], RUNTIME)


def test_recalibration_uses_exactly_the_given_images() -> None:
    model = Fixed().eval()
    batches = [torch.randn(8, 3, 4, 4) + 5 for _ in range(3)]
    pairs = [(images, torch.zeros(8, dtype=torch.long)) for images in batches]
    before = {n: b.clone() for n, b in model.named_buffers()}
    with preserve_batchnorm(model):
        recalibrate(model, pairs, RUNTIME)
        torch.testing.assert_close(model.norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
        torch.testing.assert_close(
            model.norm.running_var, torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0)
        )
        assert model.norm.momentum == 0.1
        # The same images again give the same statistics: nothing of the first pass is mixed in.
        once = model.norm.running_mean.clone()
        recalibrate(model, pairs, RUNTIME)
        assert torch.equal(model.norm.running_mean, once)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert not model.training


NETS = ("mobilevit_xxs", "vit_tiny_patch16_224")  # with BatchNorm and without


def net_of(backbone: str) -> nn.Module:
    size = {"img_size": 64} if backbone.startswith("vit") else {}
    return randomise(timm.create_model(backbone, num_classes=7, **SMALL[backbone], **size)).eval()


def labelled(number: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(5, 3, 64, 64), torch.randint(7, (5,))) for _ in range(number)]


def fitted(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> IBLoss:
    ib = IBLoss(feature_dim=feature_dim(model), num_classes=7)
    recalibrate_and_fit(ib, model, batches, RUNTIME)
    return ib


@pytest.mark.parametrize("backbone", NETS)
def test_an_ib_loss_is_fitted_on_the_pass_that_recalibrates(backbone: str) -> None:
    """The same BatchNorm statistics as without it, and the same fit as from features gathered by hand."""
    model, batches = net_of(backbone), labelled(3)
    by_hand = IBLoss(feature_dim=feature_dim(model), num_classes=7)
    # Features as they are while statistics are taken: by those of each batch.
    with preserve_batchnorm(model), pooled_features(model) as seen, torch.no_grad():
        model.train("BatchNorm" in str(model))
        for images, _ in batches:
            model(images.contiguous(memory_format=torch.channels_last))
    model.eval()
    images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    by_hand.fit(torch.cat(seen), input_features(images), labels, seed=0)
    with preserve_batchnorm(model):
        recalibrate(model, batches, RUNTIME)
        alone = {n: b.clone() for n, b in model.named_buffers()}
        calls: list[int] = []
        handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
        ib = fitted(model, batches)
        handle.remove()
        assert all(torch.equal(b, alone[n]) for n, b in model.named_buffers())
    assert len(calls) == 3, "one pass in all"
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(ib.state_dict()[name], value)
    assert not model.training
    assert not ib.feature_centroids.requires_grad


def test_features_that_are_not_finite_fail_the_trial() -> None:
    model = net_of("vit_tiny_patch16_224")
    model.get_submodule("fc_norm").weight.data.fill_(float("inf"))
    with pytest.raises(TrialDiverged, match="features are not finite"):
        fitted(model, labelled(1))


def test_statistics_alone_take_no_more_images_than_they_need() -> None:
    batches = [(torch.zeros(100, 3, 1, 1), torch.zeros(100, dtype=torch.long))] * 9
    assert len(list(ib_batches(batches, 10))) == 3  # 256
    assert len(list(ib_batches(batches, 100))) == 4  # 400
    assert len(list(ib_batches(batches, 1000))) == 9  # all there are


@pytest.mark.parametrize("backbone", NETS)
def test_information_terms_come_with_the_score(backbone: str) -> None:
    model, batches = net_of(backbone), labelled(3)
    ib = fitted(model, batches)
    plain, informed = score(model, batches, RUNTIME), score(model, batches, RUNTIME, ib=ib)
    assert plain.ib is None
    assert (informed.top1, informed.top5, informed.loss) == (plain.top1, plain.top5, plain.loss)
    meter = IBMeter(ib)
    with torch.no_grad():
        for images, labels in batches:
            meter.add(
                model.forward_head(model.forward_features(images), pre_logits=True), input_features(images), labels
            )
    wanted = meter.terms()
    assert informed.ib is not None
    assert astuple(informed.ib) == pytest.approx(astuple(wanted), abs=1e-6)


def test_top5_needs_more_than_five_classes() -> None:
    images, labels = torch.arange(7.0).flip(0).expand(4, -1)[..., None, None], torch.tensor([0, 4, 5, 6])
    result = score(nn.Flatten(), [(images, labels)], RUNTIME)
    assert (result.top1, result.top5) == (25.0, 50.0)
    assert score(Fixed(), [(torch.randn(4, 3, 2, 2), labels % 3)], RUNTIME).top5 is None


def test_processes_that_share_the_images_add_up_to_one_score() -> None:
    model, batches = net_of("mobilevit_xxs"), labelled(4)
    ib = fitted(model, batches)
    parts: list[Tensor] = []

    def keep(totals: Tensor) -> Tensor:
        parts.append(totals.clone())
        return totals

    score(model, batches[:1], RUNTIME, ib=ib, add_up=keep)
    together = score(model, batches[1:], RUNTIME, ib=ib, add_up=lambda totals: totals + parts[0])
    whole = score(model, batches, RUNTIME, ib=ib)
    assert together.images == whole.images == 20
    assert together.top1 == whole.top1
    assert together.loss == pytest.approx(whole.loss, abs=1e-6)
    assert astuple(together.ib) == pytest.approx(astuple(whole.ib), abs=1e-9)


def test_statistics_come_back_also_on_error() -> None:
    model = Fixed()
    before = model.norm.running_mean.clone()
    with pytest.raises(RuntimeError, match="on purpose"), preserve_batchnorm(model):
        model(torch.randn(4, 3, 2, 2))
        model.norm.momentum = None
        assert not torch.equal(model.norm.running_mean, before)
        raise RuntimeError("on purpose")
    assert torch.equal(model.norm.running_mean, before)
    assert model.norm.momentum == 0.1


def test_unusable_devices_are_refused() -> None:
    with pytest.raises(InputError, match="`--device` must be auto, cpu or cuda, but got 'gpu'"):
        find_device("gpu")
    assert find_device("cpu").type == "cpu"
