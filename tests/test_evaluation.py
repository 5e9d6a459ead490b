"""Scoring: the numbers of hand-made cases, and nothing left behind."""

import math

import pytest
import torch
from torch import Tensor, nn

from ltmsearch.evaluation import Score, batchnorm_kept, recalibrate, score
from ltmsearch.runtime import Runtime, choose_runtime, find_device, step_seconds

RUNTIME = Runtime(device=torch.device("cpu"), bf16=False, channels_last=True, reason="test")


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
    assert model.training


@pytest.mark.parametrize(("top1", "chance"), [(10.0, True), (15.9, True), (16.1, False), (80.0, False)])
def test_guessing_is_told_from_knowing(top1: float, chance: bool) -> None:
    assert Score(top1=top1, top1_se=2.0, loss=2.3, images=256).is_chance(10) is chance
    assert not Score(top1=60.0, top1_se=2.0, loss=0.6, images=256).is_chance(2)


def test_score_needs_images() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        score(Fixed(), [], RUNTIME)


def test_recalibration_takes_the_statistics_of_exactly_these_images() -> None:
    model = Fixed().eval()
    batches = [torch.randn(8, 3, 4, 4) + 5 for _ in range(3)]
    before = {n: b.clone() for n, b in model.named_buffers()}
    with batchnorm_kept(model):
        recalibrate(model, batches, RUNTIME)
        torch.testing.assert_close(model.norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
        torch.testing.assert_close(
            model.norm.running_var, torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0)
        )
        assert model.norm.momentum == 0.1
        # The same images again give the same statistics: nothing of the first pass is mixed in.
        once = model.norm.running_mean.clone()
        recalibrate(model, batches, RUNTIME)
        assert torch.equal(model.norm.running_mean, once)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert not model.training


def test_statistics_come_back_also_on_error() -> None:
    model = Fixed()
    before = model.norm.running_mean.clone()
    with pytest.raises(RuntimeError, match="on purpose"), batchnorm_kept(model):
        model(torch.randn(4, 3, 2, 2))
        model.norm.momentum = None
        assert not torch.equal(model.norm.running_mean, before)
        raise RuntimeError("on purpose")
    assert torch.equal(model.norm.running_mean, before)
    assert model.norm.momentum == 0.1


def test_measuring_a_step_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    assert step_seconds(RUNTIME, model, torch.randn(2, 3, 8, 8)) > 0
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_precision_follows_the_user_and_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, cpu = (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
        torch.randn(2, 3, 4, 4),
        torch.device("cpu"),
    )
    assert choose_runtime(cpu, "bf16", model, images).bf16
    assert not choose_runtime(cpu, "fp32", model, images).bf16
    monkeypatch.setattr("ltmsearch.runtime.has_bf16", lambda _: False)
    assert not choose_runtime(cpu, "auto", model, images).bf16
    monkeypatch.setattr("ltmsearch.runtime.has_bf16", lambda _: True)
    monkeypatch.setattr("ltmsearch.runtime.step_seconds", lambda runtime, *_: 1.0 if runtime.bf16 else 2.0)
    assert choose_runtime(cpu, "auto", model, images).bf16
    monkeypatch.setattr("ltmsearch.runtime.step_seconds", lambda runtime, *_: 1.0 if runtime.bf16 else 1.05)
    assert not choose_runtime(cpu, "auto", model, images).bf16


def test_unusable_devices_are_told() -> None:
    from ltmsearch.errors import InputError

    with pytest.raises(InputError, match="--device 'gpu' cannot be used .* auto, cpu or cuda would do"):
        find_device("gpu")
    assert find_device("cpu").type == "cpu"
