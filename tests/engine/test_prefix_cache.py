"""What lies ahead of the first layer: found in every family, computed once for images that come again, never stale."""

from typing import Any

import pytest
import torch
from support.nets import SMALL, randomise
from torch import Tensor, nn

from ltmsearch.engine.evaluation import recalibrate, score
from ltmsearch.engine.prefix_cache import PrefixCache
from ltmsearch.engine.runtime import Runtime
from ltmsearch.models import prefix_modules
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

LEADING = {
    "mobilevit_xxs": ("stem", "stages.0", "stages.1", "stages.2.0"),
    "efficientvit_b0": ("stem", "stages.0", "stages.1", "stages.2.blocks.0"),
    "vit_tiny_patch16_224": ("patch_embed",),
    "swin_tiny_patch4_window7_224": ("patch_embed",),
    "swinv2_tiny_window8_256": ("patch_embed",),
    "tiny_vit_5m_224": ("patch_embed", "stages.0"),
    "fastvit_sa12": ("stem",),
}
SIZE = 224
RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="a test")
Batches = list[tuple[Tensor, Tensor]]


def small(backbone: str) -> Supernet:
    net = Supernet(backbone, **SMALL[backbone], num_classes=5)
    randomise(net)
    return net


def batches(number: int, seed: int = 0, size: int = SIZE) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(2, 3, size, size, generator=generator), torch.randint(5, (2,), generator=generator))
        for _ in range(number)
    ]


def scored(net: Supernet, schedule: MergeSchedule, cache: PrefixCache | None, images: Batches) -> tuple[Any, ...]:
    """The score of a schedule and the BatchNorm statistics behind it."""
    with net.active(schedule):
        if cache is None:
            recalibrate(net, batches(2, seed=1), RUNTIME)
            found = score(net.model, images, RUNTIME)
        else:
            with cache.replay("calibration"):
                recalibrate(net, batches(2, seed=1), RUNTIME)
            with cache.replay("validation", len(images)):
                found = score(net.model, images, RUNTIME)
    return found.loss, found.top1, {name: buffer.clone() for name, buffer in net.named_buffers()}


def assert_equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert one[:2] == other[:2]
    assert all(torch.equal(value, other[2][name]) for name, value in one[2].items())


def calls_of(module: nn.Module) -> list[int]:
    """One entry for each time that the module computes."""
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("backbone", SMALL)
def test_scores_and_statistics_are_the_same_to_the_bit(backbone: str) -> None:
    net, images = small(backbone), batches(3)
    if backbone in LEADING:
        assert prefix_modules(net.model, net.layers) == LEADING[backbone]
    cache = PrefixCache(net)
    schedules = [MergeSchedule.uniform(net.layers, ratio) for ratio in (1.0, 0.5, 0.25)]
    usual = [scored(net, schedule, None, images) for schedule in schedules]
    first = next(module for module in cache.modules[0].modules() if not [*module.children()])
    computed = calls_of(first)
    for _ in range(2):
        for schedule, expected in zip(schedules, usual, strict=True):
            assert_equal(scored(net, schedule, cache, images), expected)
    passes = len(images) + (2 if cache.norms else 0)  # without BatchNorm nothing is recalibrated
    assert len(computed) == passes, "each batch once, whatever the schedule"


def test_batches_beyond_the_limit_are_computed_again() -> None:
    net, images = small("mobilevit_xxs"), batches(4, size=64)
    schedule = MergeSchedule.uniform(net.layers, 0.5)
    expected = scored(net, schedule, None, images)
    for room in (0, 1, 3):
        one = PrefixCache(net)
        with torch.no_grad(), one.replay("x"):
            net(images[0][0])
        (output,) = one._outputs[("x",)]
        cache = PrefixCache(net, limit=room * output.nbytes)
        for _ in range(2):
            assert_equal(scored(net, schedule, cache, images), expected)
        assert sum(len(known) for known in cache._outputs.values()) == room


def test_trained_weights_clear_the_cache() -> None:
    net, images = small("mobilevit_xxs"), batches(2, size=64)
    schedule, cache = MergeSchedule.uniform(net.layers, 0.5), PrefixCache(net)
    before = scored(net, schedule, cache, images)
    with torch.no_grad():
        net.model.head.fc.bias.add_(1.0)  # behind: what is remembered still holds
    calls = calls_of(net.model.stem.conv)
    assert_equal(scored(net, schedule, cache, images), scored(net, schedule, None, images))
    calls.clear()
    with torch.no_grad():
        net.model.stem.conv.weight.mul_(1.5)
    after = scored(net, schedule, cache, images)
    assert calls
    assert after[0] != before[0]
    assert_equal(after, scored(net, schedule, None, images))


def test_modules_are_restored_after_an_error() -> None:
    net = small("mobilevit_xxs")
    cache = PrefixCache(net)
    schedule, images = MergeSchedule.uniform(net.layers, 0.5), batches(2, size=64)
    expected = scored(net, schedule, None, images)
    with pytest.raises(RuntimeError, match="on purpose"), cache.replay("calibration"):
        recalibrate(net, batches(2, seed=1), RUNTIME)
        raise RuntimeError("on purpose")
    assert_equal(scored(net, schedule, cache, images), expected)  # nothing half known is left
    assert all("forward" not in vars(module) for module in net.modules())
    image = batches(1, size=64)[0][0]
    with torch.no_grad():
        assert torch.equal(net.eval()(image), net(image))
