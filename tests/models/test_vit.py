"""Vision transformers: what is particular to merges that accumulate beside tokens that never merge."""

from typing import Any

import pytest
import timm
import torch
from support.nets import randomise, without_corrections
from torch import nn

from ltmsearch.merging import OPERATORS
from ltmsearch.models import MERGING, create_subnet, get_adapter
from ltmsearch.models.merge_state import MergeState, with_state
from ltmsearch.models.supernet import Supernet

TINY_VIT: dict[str, Any] = {"depth": 3, "embed_dim": 64, "num_heads": 2, "num_classes": 5}
RATIOS = {"blocks.0": 0.7, "blocks.1": 0.5}


def net(backbone: str = "vit_tiny_patch16_224", **kwargs: Any) -> nn.Module:
    model = create_subnet(backbone, **{"keep_ratios": RATIOS, **TINY_VIT, **kwargs})
    return randomise(model).eval()


@pytest.mark.parametrize("pooling", ["token", "avg", "map"])
@pytest.mark.parametrize("operator", sorted(n for n, operator in OPERATORS.items() if not operator.drops))
def test_merging_equal_tokens_changes_nothing(operator: str, pooling: str) -> None:
    """Merged tokens stand for as many as they replace, in attention and in pooling."""
    model = without_corrections(net(operator=operator, global_pool=pooling, reg_tokens=2))
    with torch.no_grad():
        model.pos_embed[:] = model.pos_embed[:, :1]  # no places: all patches of a plain image are one token
        image = torch.full((1, 3, 224, 224), 0.3)
        merged = model(image)
        for block in model.blocks:
            if hasattr(block, MERGING):
                block.merging.keep_ratio = 1.0
        torch.testing.assert_close(merged, model(image), atol=1e-4, rtol=1e-4)
        for block in model.blocks:
            if hasattr(block, MERGING):
                block.merging.keep_ratio = 0.5
        noise = torch.randn(1, 3, 224, 224)
        assert not torch.allclose(model(noise), model(image), atol=1e-3)  # and the test can fail


def test_class_and_register_tokens_never_merge() -> None:
    model = net(reg_tokens=4)
    seen = []
    operator = model.blocks[0].merging
    operator.register_forward_hook(lambda _m, args, out: seen.append((args[0].shape[2], out.tokens.shape[2])))
    features = model.forward_features(torch.randn(1, 3, 224, 224))
    assert seen == [(196, 137)]
    assert features.shape[1] == 5 + 69, "half of 137, beside class and register tokens"
    on_grids = net(reg_tokens=4, forms="soft").forward_features(torch.randn(1, 3, 224, 224))
    assert on_grids.shape[1] == 5 + 8 * 8, "0.7 of 14×14 is 12×11, and half of that 8×8"


@pytest.mark.parametrize("kind", ["avg", "avgmax", "max"])
def test_pooling_weighs_by_size(kind: str) -> None:
    model = net(global_pool=kind)
    tokens, sizes = torch.randn(2, 1 + 4, 64), torch.tensor([[3.0, 1.0, 2.0, 1.0]] * 2)
    repeated = torch.cat([tokens[:, :1], tokens[:, 1:].repeat_interleave(torch.tensor([3, 1, 2, 1]), dim=1)], dim=1)
    wanted = model.pool(with_state(repeated, MergeState(grid=(7, 1))))
    with_state(tokens, MergeState(grid=(2, 2), sizes=sizes))
    torch.testing.assert_close(model.pool(tokens), wanted)


def test_recomputed_activations_give_the_same_gradients() -> None:
    model = net().train()
    images = torch.randn(2, 3, 224, 224)
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(recompute)
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept)


def test_dropped_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_drop_rate"):
        net(patch_drop_rate=0.5).train()(torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize(
    "backbone", ["deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224", "vit_base_patch16_clip_224"]
)
def test_siblings_are_timms_own_when_plain_and_merge_otherwise(backbone: str) -> None:
    supernet = randomise(Supernet(backbone, **TINY_VIT)).eval()
    assert isinstance(supernet, Supernet)
    reference = timm.create_model(backbone, **TINY_VIT).eval()
    assert isinstance(supernet.model, type(reference))
    reference.load_state_dict({n: v for n, v in supernet.model.state_dict().items() if f".{MERGING}." not in n})
    images = torch.randn(1, 3, 224, 224)
    subnet = create_subnet(backbone, keep_ratios=RATIOS, **TINY_VIT)
    subnet.load_state_dict({n: v for n, v in supernet.model.state_dict().items() if n in subnet.state_dict()})
    with torch.no_grad():
        assert torch.equal(supernet(images), reference(images))
        assert not torch.equal(subnet.eval()(images), reference(images))


def test_layers_are_named_by_timms_paths() -> None:
    model = timm.create_model("deit_tiny_patch16_224", depth=3)
    assert get_adapter("deit_tiny_patch16_224").layers(model) == ("blocks.0", "blocks.1", "blocks.2")


def test_plain_networks_may_drop_patches_as_timm_does() -> None:
    plain = net(keep_ratios={}, patch_drop_rate=0.5).train()
    assert plain(torch.randn(2, 3, 224, 224)).shape == (2, 5)
