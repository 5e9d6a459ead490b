"""Learning from a teacher: the divergence by definition, who is trained, and on what."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.nets import SMALL, randomise
from torch import Tensor, nn

from ltmsearch.engine.evaluation import divergence, evaluating, log_probabilities, score
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.steps import WarmUp, proxy_train, warm_up
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.trial import parameters

RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="test")
VIT = "vit_tiny_patch16_224"  # without BatchNorm: equal weights mean equal predictions in training too
Batches = list[tuple[Tensor, Tensor]]


def fresh(seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    supernet = Supernet(VIT, num_classes=4, img_size=64, **SMALL[VIT])
    randomise(supernet.model, seed)
    return supernet


def batches(*sizes: int, label: int | None = None) -> Batches:
    """Equal images whatever the labels."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(size, 3, 64, 64, generator=generator) for size in sizes]
    return [
        (each, torch.arange(len(each)) % 4 if label is None else torch.full((len(each),), label)) for each in images
    ]


def plain(supernet: Supernet) -> MergeSchedule:
    return MergeSchedule.uniform(supernet.layers, 1.0)


def half(supernet: Supernet) -> MergeSchedule:
    return MergeSchedule.uniform(supernet.layers, 0.5)


def equal(one: Supernet, other: Supernet) -> bool:
    weights = parameters(other)
    return all(torch.equal(value, weights[name]) for name, value in parameters(one).items())


def test_divergence_of_a_case_by_hand() -> None:
    teacher = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]).log()
    logits = torch.tensor([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]]).log() + torch.tensor([[3.0], [-2.0]])
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert divergence(logits, teacher).tolist() == pytest.approx([by_hand, 0.0], abs=1e-6)


def test_divergence_is_from_the_teacher() -> None:
    """Not the other way round: where the teacher is sure, the network must be."""
    sure, unsure = torch.tensor([[6.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    missed = float(divergence(unsure, sure.log_softmax(1)))
    p = 1 / (1 + math.exp(-6))
    assert missed == pytest.approx(math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p), abs=1e-6)
    assert missed < float(divergence(sure, unsure.log_softmax(1)))


def test_equal_predictions_have_no_gradient() -> None:
    logits = torch.randn(16, 10, requires_grad=True)
    loss = divergence(logits, logits.detach().log_softmax(1)).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-7)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7


def test_a_network_diverges_from_itself_only_where_it_merges() -> None:
    supernet, images = fresh(), batches(5, 3)
    teacher = log_probabilities(supernet.model, images, RUNTIME)
    with supernet.active(plain(supernet)):
        assert score(supernet.model, images, RUNTIME, teacher=teacher).kl == pytest.approx(0, abs=1e-6)
    with supernet.active(half(supernet)):
        merged = score(supernet.model, images, RUNTIME, teacher=teacher)
    assert merged.kl is not None
    assert merged.kl > 1e-4


def test_score_has_the_mean_over_images() -> None:
    """Also of batches of different sizes, and of the first images only."""
    supernet, images = fresh(), batches(5, 5, 3)
    teacher = torch.randn(13, 4).log_softmax(1)
    with evaluating(supernet), torch.no_grad():
        rows = torch.cat([supernet.model(each) for each, _ in images]).double().log_softmax(1)
    kls = (teacher.double().exp() * (teacher.double() - rows)).sum(1)
    assert score(supernet.model, images, RUNTIME, teacher=teacher).kl == pytest.approx(float(kls.mean()), abs=1e-6)
    assert score(supernet.model, images[:2], RUNTIME, teacher=teacher[:10]).kl == pytest.approx(float(kls[:10].mean()))
    assert score(supernet.model, images, RUNTIME).kl is None


def test_processes_add_up_their_divergences() -> None:
    supernet, images = fresh(), batches(5, 5, 3)
    teacher = torch.randn(13, 4).log_softmax(1)
    parts: list[Tensor] = []

    def keep(totals: Tensor) -> Tensor:
        parts.append(totals.clone())
        return totals

    score(supernet.model, images[:1], RUNTIME, teacher=teacher[:5], add_up=keep)
    rest = score(supernet.model, images[1:], RUNTIME, teacher=teacher[5:], add_up=lambda totals: totals + parts[0])
    assert rest.kl == pytest.approx(score(supernet.model, images, RUNTIME, teacher=teacher).kl)


def test_log_probabilities_are_those_of_evaluation() -> None:
    supernet, images = fresh(), batches(5, 3)
    supernet.model.train()
    found = log_probabilities(supernet.model, images, RUNTIME)
    assert supernet.model.training
    assert found.dtype == torch.float32
    with evaluating(supernet), torch.no_grad():
        by_hand = torch.cat([supernet.model(each).log_softmax(1) for each, _ in images])
    torch.testing.assert_close(found, by_hand)


class TestTrial:
    def test_the_loss_is_the_divergence_batch_by_batch(self) -> None:
        supernet, images, teacher = fresh(), batches(4, 4, 2), torch.randn(10, 4).log_softmax(1)
        with supernet.active(half(supernet)), torch.no_grad():
            supernet.train()
            rows = [supernet.model(each) for each, _ in images]
        means = [float(divergence(row, part).mean()) for row, part in zip(rows, teacher.split((4, 4, 2)), strict=True)]
        found = proxy_train(supernet, half(supernet), images, lr=0.0, runtime=RUNTIME, teacher=teacher)
        assert found == pytest.approx(float(np.mean(means)), abs=1e-6)

    def test_labels_have_no_say(self) -> None:
        nets, teacher = (fresh(), fresh()), torch.randn(8, 4).log_softmax(1)
        for supernet, label in zip(nets, (0, 3), strict=True):
            proxy_train(supernet, half(supernet), batches(4, 4, label=label), lr=1e-3, runtime=RUNTIME, teacher=teacher)
        assert equal(*nets)
        assert not equal(nets[0], fresh())

    def test_training_brings_the_subnet_to_the_teacher(self) -> None:
        supernet, images = fresh(), batches(4)
        teacher = log_probabilities(fresh(seed=1).model, images, RUNTIME)
        twenty: dict[str, Any] = {"teacher": teacher.repeat(20, 1), "lr": 1e-3, "runtime": RUNTIME}
        first, second = (proxy_train(supernet, half(supernet), images * 20, **twenty) for _ in range(2))
        assert first is not None
        assert second is not None
        assert second < first / 2

    def test_a_net_that_is_the_teacher_has_nothing_to_learn(self) -> None:
        supernet, images = fresh(), batches(4, 4)
        teacher = log_probabilities(supernet.model, images, RUNTIME)
        loss = proxy_train(supernet, plain(supernet), images, lr=1e-9, runtime=RUNTIME, teacher=teacher)
        assert loss == pytest.approx(0, abs=1e-6)


class Called:
    """A teacher that notes the steps in which it is asked for."""

    def __init__(self, seed: int = 1) -> None:
        self.net, self.step, self.at = fresh(seed).eval(), 0, list[int]()

    def __call__(self) -> nn.Module:
        self.at.append(self.step)
        return self.net.model

    def warm_up(self, supernet: Supernet, images: Batches, plan: WarmUp, *ratios: float) -> list[float]:
        """The losses of a warm-up whose sandwich steps train the subnets with these keep ratios."""
        drawn = [MergeSchedule.uniform(supernet.layers, ratio) for ratio in ratios]
        losses = []
        for loss in warm_up(
            supernet, plan, batches=images, draw=lambda _: drawn, seed=0, runtime=RUNTIME, teacher=self
        ):
            losses.append(loss)
            self.step += 1
        return losses


class TestWarmUp:
    PLAN = WarmUp(base_steps=2, base_img_size=64, sandwich_steps=3, lr=1e-3)

    def test_the_teacher_is_first_asked_for_after_the_base_steps(self) -> None:
        teacher = Called()
        assert len(teacher.warm_up(fresh(), batches(*[4] * 5), self.PLAN, 0.5)) == 5
        assert teacher.at == [2, 3, 4]

    def test_labels_have_no_say_in_sandwich_steps(self) -> None:
        """The plain network learns from labels before, and is not trained any more."""
        nets = [fresh(), fresh(), fresh()]
        for supernet, labels in zip(nets, ([0] * 5, [0, 0, 3, 3, 3], [3] * 5), strict=True):
            images = [(image, torch.full((4,), labels[i])) for i, (image, _) in enumerate(batches(*[4] * 5))]
            Called().warm_up(supernet, images, self.PLAN, 0.5)
        assert equal(nets[0], nets[1])
        assert not equal(nets[0], nets[2])

    def test_without_merging_there_is_nothing_to_learn(self) -> None:
        plan = WarmUp(base_steps=0, base_img_size=64, sandwich_steps=2, lr=1e-9)
        assert Called(seed=0).warm_up(fresh(), batches(4, 4), plan, 1.0) == pytest.approx([0, 0], abs=1e-6)
        assert min(Called(seed=0).warm_up(fresh(), batches(4, 4), plan, 0.5)) > 1e-4

    def test_the_loss_is_the_mean_over_the_subnets(self) -> None:
        plan = WarmUp(base_steps=0, base_img_size=64, sandwich_steps=1, lr=0.0)
        both, one, other = (Called().warm_up(fresh(), batches(4), plan, *r)[0] for r in ((0.7, 0.5), (0.7,), (0.5,)))
        assert both == pytest.approx((one + other) / 2)
        assert one != other

    def test_the_teacher_is_left_as_it_was(self) -> None:
        teacher = Called()
        before = parameters(teacher.net)
        teacher.warm_up(fresh(), batches(*[4] * 5), self.PLAN, 0.5)
        assert all(torch.equal(value, before[name]) for name, value in parameters(teacher.net).items())
        assert all(parameter.grad is None for parameter in teacher.net.parameters())
