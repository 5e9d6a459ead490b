"""Masks of the gradient form continue from layer to layer, in every family, as long as tokens are the network's own."""

from typing import Any

import pytest
import torch
from support.nets import SMALL, randomise
from torch import Tensor, nn

from ltmsearch.merging import LearnableTokenMerging, MaskChange
from ltmsearch.models import attached_operators, create_subnet, get_adapter
from ltmsearch.models.adapter import MergingLayer
from ltmsearch.schedules.schedule import Form

DEEPER: dict[str, dict[str, Any]] = {
    "tiny_vit_5m_224": {"depths": (1, 3, 1, 1)},
    "fastvit_sa12": {"layers": (3, 1, 1, 1)},
    "swinv2_tiny_window8_256": {"depths": (3, 1)},
    "swin_tiny_patch4_window7_224": {"depths": (3, 1, 1, 1)},
}
"""Where no stage of `SMALL` has three layers."""
FIRST = {"mobilevit_xxs": "stages.3.", "vit_tiny_patch16_224": "blocks.", "vit_small_patch16_rope_mixed_224": "blocks."}
"""Beginning of the names of three layers that follow each other; else those of the first stage that merges."""


def net(backbone: str, form: Form, plain: int | None = None) -> tuple[nn.Module, list[str]]:
    """A network of which three layers that follow each other merge, but for number `plain`, and their names."""
    size = {"img_size": 96} if get_adapter(backbone).fixed_size else {}
    options: dict[str, Any] = {"num_classes": 5, **SMALL[backbone], **DEEPER.get(backbone, {}), **size}
    if backbone == "efficientvit_b0":
        options["depths"] = (1, 2, 2, 4)
    layers = get_adapter(backbone).layers(create_subnet(backbone, **options))
    first = FIRST.get(backbone, layers[-3 if backbone == "efficientvit_b0" else 0].rpartition(".")[0])
    three = [layer for layer in layers if layer.startswith(first)][:3]
    ratios = {layer: 0.6 for place, layer in enumerate(three) if place != plain}
    return randomise(create_subnet(backbone, keep_ratios=ratios, forms=form, **options)).eval(), three


def changes_into(model: nn.Module, layers: list[str], images: Tensor) -> dict[str, tuple[MaskChange | None, Any]]:
    """What each operator receives and what it hands on."""
    seen = {}
    for name, operator in attached_operators(model, layers).items():
        operator.register_forward_hook(lambda _m, args, merge, n=name: seen.update({n: (args[5], merge.change)}))
    model(images)
    return seen


@pytest.mark.parametrize("backbone", sorted(SMALL))
class TestChangesTravel:
    def test_every_layer_continues_from_the_one_before(self, backbone: str) -> None:
        model, layers = net(backbone, "gradient")
        seen = changes_into(model, layers, torch.randn(2, 3, 96, 96))
        assert list(seen) == layers
        assert [seen[layer][0] for layer in layers] == [None, *(seen[layer][1] for layer in layers[:2])]
        assert all(change is not None for _, change in seen.values())

    def test_a_plain_layer_passes_it_on(self, backbone: str) -> None:
        model, (first, _, last) = net(backbone, "gradient", plain=1)
        seen = changes_into(model, [first, last], torch.randn(2, 3, 96, 96))
        assert seen[last][0] is seen[first][1]

    def test_other_forms_have_none(self, backbone: str) -> None:
        model, layers = net(backbone, "soft")
        assert set(changes_into(model, layers, torch.randn(2, 3, 96, 96)).values()) == {(None, None)}

    def test_what_a_layer_learns_changes_the_masks_after_it(self, backbone: str) -> None:
        model, layers = net(backbone, "gradient")
        operator = attached_operators(model, layers)[layers[0]]
        assert isinstance(operator, LearnableTokenMerging)
        images = torch.randn(2, 3, 96, 96)
        before = changes_into(model, layers, images)[layers[2]][1].log_ratio
        operator.step.scores.data.mul_(-3)
        assert not torch.allclose(changes_into(model, layers, images)[layers[2]][1].log_ratio, before, atol=1e-3)

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_recomputed_activations_give_the_same_gradients(self, backbone: str) -> None:
        model, _ = net(backbone, "gradient")
        results = []
        for recompute in (False, True):
            model.zero_grad()
            model.set_grad_checkpointing(recompute)  # type: ignore[operator]
            model(torch.ones(2, 3, 96, 96).cumsum(dim=2) / 50).square().sum().backward()
            results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-3) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backbone", sorted(n for n in SMALL if n not in FIRST))
def test_blocks_refuse_maps_whose_change_was_lost(backbone: str) -> None:
    model, (_, second, _) = net(backbone, "gradient")
    block = model.get_submodule(second)
    assert isinstance(block, MergingLayer)
    block.register_forward_pre_hook(lambda _m, args: (args[0] + 0,))
    with pytest.raises(ValueError, match="the change of the mask travels with it: leave out operations between blocks"):
        model(torch.randn(1, 3, 96, 96))
    other, (_, second, _) = net(backbone, "soft")
    other.get_submodule(second).register_forward_pre_hook(lambda _m, args: (args[0] + 0,))
    assert other(torch.randn(1, 3, 96, 96)).isfinite().all(), "others need none"


def test_a_step_starts_as_none() -> None:
    """Until scores are trained or fitted the mask is the prior's, as of pooling."""
    options: dict[str, Any] = {"depth": 3, "embed_dim": 64, "num_heads": 2, "num_classes": 5, "img_size": 96}
    model, pool = (
        create_subnet("vit_tiny_patch16_224", keep_ratios=0.6, operator=operator, **options).eval()
        for operator in ("ltm", "pool")
    )
    operators = attached_operators(model, ["blocks.0", "blocks.1", "blocks.2"])
    for operator in operators.values():
        assert isinstance(operator, LearnableTokenMerging)
        operator.form = "gradient"
        assert not operator.step.fitted
    model.load_state_dict({**model.state_dict(), **randomise(pool).state_dict()})
    torch.testing.assert_close(model(images := torch.randn(2, 3, 96, 96)), pool(images), atol=1e-4, rtol=1e-4)
