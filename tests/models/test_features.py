"""Pooled features: timm's own, collected on the way."""

import pytest
import timm
import torch
from support.nets import SMALL, randomise
from torch import nn

from ltmsearch.models import create_subnet, feature_dim, pooled_features

DISTILLED = "deit_tiny_distilled_patch16_224"


def net_of(backbone: str) -> nn.Module:
    """A merging subnet, or a plain net of two heads."""
    if backbone == DISTILLED:
        return randomise(timm.create_model(DISTILLED, num_classes=7, depth=1)).eval()
    size = {"num_classes": 7, "img_size": 96, **SMALL[backbone]}
    return randomise(create_subnet(backbone, keep_ratios={"*": 0.5}, **size)).eval()


@pytest.mark.parametrize("backbone", [*sorted(SMALL), DISTILLED])
class TestPooledFeatures:
    def test_are_what_timm_pools_and_classifies(self, backbone: str) -> None:
        model = net_of(backbone)
        side = 224 if backbone == DISTILLED else 96
        first, second = torch.randn(2, 2, 3, side, side)
        with torch.no_grad(), pooled_features(model) as seen:
            logits = model(first)
            model(second)
        assert len(seen) == 2
        with torch.no_grad():
            expected = [model.forward_head(model.forward_features(x), pre_logits=True) for x in (first, second)]
            expected = [e[0] if isinstance(e, tuple) else e for e in expected]
        assert all(features.shape == (2, feature_dim(model)) for features in seen)
        if backbone == DISTILLED:  # both tokens' features in one, by timm: the first head sees the class token
            heads = model.get_classifier()
            assert len(heads) == 2
            torch.testing.assert_close(model.forward_features(first)[:, 0], seen[0])
            return
        torch.testing.assert_close(torch.stack(seen), torch.stack(expected), rtol=0, atol=0)
        torch.testing.assert_close(model.get_classifier()(seen[0]), logits, rtol=0, atol=0)

    def test_carry_gradients_and_nothing_stays_behind(self, backbone: str) -> None:
        model = net_of(backbone).train()
        side = 224 if backbone == DISTILLED else 96
        with pooled_features(model) as seen:
            model(torch.randn(2, 3, side, side))
        seen.pop().square().sum().backward()
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        model(torch.randn(2, 3, side, side))
        assert seen == []


def test_a_hook_goes_also_after_an_error() -> None:
    model = net_of("mobilevit_xxs")
    with pytest.raises(RuntimeError, match="on purpose"), pooled_features(model) as seen:
        raise RuntimeError("on purpose")
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert seen == []


def test_nets_without_a_linear_classifier_are_refused() -> None:
    with pytest.raises(ValueError, match="must have a linear classifier"):
        feature_dim(timm.create_model("mobilevit_xxs", num_classes=0))
