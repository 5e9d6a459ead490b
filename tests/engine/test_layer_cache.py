"""Schedules that agree up to a layer share its output: equal to the bit, in bounded memory, never stale."""

from collections.abc import Sequence

import pytest
import torch
from support.nets import SMALL, randomise
from torch import Tensor

from ltmsearch.engine.evaluation import score
from ltmsearch.engine.layer_cache import LayerCache
from ltmsearch.engine.runtime import Runtime
from ltmsearch.models import layer_modules
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

SEQUENTIAL = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_rope_mixed_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
)
SIZES = {"swinv2_tiny_window8_256": 256}
RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="a test")
Batches = list[tuple[Tensor, Tensor]]


def small(backbone: str) -> Supernet:
    net = Supernet(backbone, **SMALL[backbone], num_classes=5)
    randomise(net)
    return net


def batches(backbone: str, number: int = 2) -> Batches:
    generator, size = torch.Generator().manual_seed(0), SIZES.get(backbone, 224)
    return [
        (torch.randn(2, 3, size, size, generator=generator), torch.randint(5, (2,), generator=generator))
        for _ in range(number)
    ]


def with_last(net: Supernet, ratios: Sequence[float], form: str = "matched") -> MergeSchedule:
    """Merging in the last layers only, by these ratios."""
    kept = dict(zip(net.layers[-len(ratios) :], ratios, strict=True))
    forms = {layer: form for layer, ratio in kept.items() if ratio < 1}
    return MergeSchedule.from_mapping(net.layers, kept, "ltm", forms)


def scored(
    net: Supernet, schedule: MergeSchedule, images: Batches, cache: LayerCache | None = None
) -> tuple[float, ...]:
    with net.active(schedule):
        if cache is None:
            found = score(net.model, images, RUNTIME)
        else:
            with cache.replay("search"):
                found = score(net.model, images, RUNTIME)
    return found.loss, found.top1


class Calls:
    """Batches that pass through each layer."""

    def __init__(self, net: Supernet) -> None:
        self.number = dict.fromkeys(net.layers, 0)
        for layer in net.layers:
            first = next(m for m in net.model.get_submodule(layer).modules() if not [*m.children()])
            first.register_forward_hook(lambda *_, layer=layer: self._count(layer))

    def _count(self, layer: str) -> None:
        self.number[layer] += 1

    def taken(self) -> list[int]:
        found = list(self.number.values())
        self.number = dict.fromkeys(self.number, 0)
        return found


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("form", ["matched", "gradient", "soft"])
def test_scores_are_the_same_to_the_bit(name: str, form: str) -> None:
    net, images = small(name), batches(name)
    cache = LayerCache(net)
    assert cache.steps
    schedules = [
        with_last(net, ratios, form)
        for ratios in ((1.0, 1.0), (0.8, 0.5), (0.8, 0.8), (0.8, 1.0), (0.5, 0.5), (0.8, 0.5))
    ]
    expected = [scored(net, schedule, images) for schedule in schedules]
    assert len(set(expected)) > 3, "the schedules differ"
    for _ in range(2):
        assert [scored(net, schedule, images, cache) for schedule in schedules] == expected


def test_only_layers_after_the_common_ones_are_computed() -> None:
    net, images = small("vit_tiny_patch16_224"), batches("vit_tiny_patch16_224")
    cache, calls = LayerCache(net), Calls(net)
    expected = {
        (1.0, 1.0): [2, 2, 2, 2, 2],
        (0.8, 1.0): [2, 2, 2, 2, 2],
        (0.8, 0.5): [0, 0, 0, 0, 2],
        (0.5, 0.5): [0, 0, 0, 2, 2],
        (0.8, 1.0, 1.0): [0, 0, 2, 2, 2],
        (0.8, 0.5, 0.5): [0, 0, 0, 2, 2],
    }
    for ratios, number in expected.items():
        scored(net, with_last(net, ratios), images, cache)
        assert calls.taken() == number, ratios
    scored(net, with_last(net, (0.8, 1.0)), images[:1], cache)
    assert calls.taken() == [0] * 5, "the first images of the set are its first batches"
    scored(net, with_last(net, (0.8, 1.0), "soft"), images, cache)
    assert calls.taken() == [0, 0, 0, 2, 2], "another form is another network"


def test_other_images_are_not_mistaken() -> None:
    net, images = small("vit_tiny_patch16_224"), batches("vit_tiny_patch16_224", 3)
    schedule, cache = with_last(net, (0.8, 0.5)), LayerCache(net)
    scored(net, schedule, images, cache)
    shorter = [(images[0][0][:1], images[0][1][:1])]
    assert scored(net, schedule, shorter, cache) == scored(net, schedule, shorter)
    with net.active(schedule), cache.replay("validation"):
        assert score(net.model, images[::-1], RUNTIME).loss == scored(net, schedule, images[::-1])[0]


@pytest.mark.parametrize("room", [0, 1, 3])
def test_memory_is_bounded(room: int) -> None:
    net, images = small("vit_tiny_patch16_224"), batches("vit_tiny_patch16_224", 3)
    whole = LayerCache(net)
    plain = with_last(net, (1.0,))
    scored(net, plain, images[:1], whole)
    each = whole.bytes // len(net.layers)
    assert each >= 2 * 197 * net.model.embed_dim * 4, "batch × tokens × channels × bytes"
    cache = LayerCache(net, limit=room * each)
    for ratios in ((1.0, 1.0), (0.8, 0.5), (1.0, 0.5)):
        schedule = with_last(net, ratios)
        assert scored(net, schedule, images, cache) == scored(net, schedule, images)
        assert cache.bytes <= cache.limit


@pytest.mark.parametrize("weight", ["model.blocks.0.mlp.fc1.weight", "model.head.bias"])
def test_trained_weights_clear_the_cache(weight: str) -> None:
    net, images = small("vit_tiny_patch16_224"), batches("vit_tiny_patch16_224")
    schedule, cache = with_last(net, (0.8, 0.5)), LayerCache(net)
    before = scored(net, schedule, images, cache)
    with torch.no_grad():
        net.get_parameter(weight).mul_(1.5).add_(0.1)
    after = scored(net, schedule, images, cache)
    assert after != before
    assert after == scored(net, schedule, images)


def test_modules_are_restored_after_an_error() -> None:
    net, images = small("vit_tiny_patch16_224"), batches("vit_tiny_patch16_224")
    cache, schedule = LayerCache(net), with_last(net, (0.8, 0.5))
    expected = scored(net, schedule, images)
    net.eval()
    with pytest.raises(RuntimeError, match="on purpose"), net.active(schedule), cache.replay("search"):
        with torch.inference_mode():
            net(images[0][0])
        raise RuntimeError("on purpose")
    assert all("forward" not in vars(module) for module in net.modules())
    assert scored(net, schedule, images, cache) == expected


@pytest.mark.parametrize("backbone", [name for name in SMALL if name not in SEQUENTIAL])
def test_networks_with_statistics_of_their_own_are_left_alone(backbone: str) -> None:
    """BatchNorm statistics are recomputed for each schedule, and layers that are not in sequence have more inputs."""
    net = small(backbone)
    assert LayerCache(net).steps == ()
    assert layer_modules(net.model, net.layers)[0] == net.layers[0]


def test_sequences_have_the_modules_between_layers() -> None:
    net = small("swin_tiny_patch4_window7_224")
    found = layer_modules(net.model, net.layers)
    assert [path for path in found if path in net.layers] == list(net.layers)
    assert [path for path in found if path not in net.layers] == [f"layers.{i}.downsample" for i in (1, 2, 3)]
