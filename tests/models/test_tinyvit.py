"""TinyViT: windows that merge behind the local convolution, and position biases that follow the weights."""

import copy

import pytest
import timm
import torch
from support.nets import SMALL, randomise
from torch import Tensor, nn

from ltmsearch.merging import OPERATORS
from ltmsearch.models import create_subnet
from ltmsearch.models.windows import from_windows, in_windows

NAME = "tiny_vit_5m_224"


def net(operator: str = "ltm", **options: object) -> nn.Module:
    given = {"keep_ratios": 0.5, **SMALL[NAME], "num_classes": 5, **options}
    return randomise(create_subnet(NAME, operator=operator, **given)).eval()


def images(size: int = 96) -> Tensor:
    return torch.randn(2, 3, size, size)


@pytest.mark.parametrize("operator", sorted(n for n, operator in OPERATORS.items() if not operator.adaptive))
def test_only_the_mlp_runs_on_merged_tokens(operator: str) -> None:
    """Without its MLP, a merging block is timm's."""
    block = net(operator).stages[1].blocks[0]
    with torch.no_grad():
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
        x = torch.randn(2, 9, 16, 16)
        merged = block(x)
        block.merging.keep_ratio = 1.0
        torch.testing.assert_close(merged, block(x))


def test_tome_sees_the_keys_of_its_own_tokens() -> None:
    """Keys come from the windows of attention, 7×7 of a padded map; merges are in windows of 5×6."""
    block = net("tome").stages[3].blocks[0]
    assert block.num_heads == 2
    x = torch.randn(2, 10, 12, 64)
    seen: list[Tensor] = []
    block.merging.register_forward_hook(lambda _m, args, out: seen.append(args[4]))
    with torch.no_grad():
        block(x)
        k = block.attn.qkv(block.attn.norm(in_windows(x, (7, 7)))).unflatten(-1, (2, -1))[..., 32:64].flatten(2)
    keys = in_windows(from_windows(k, (7, 7), (10, 12)), (5, 6)).unflatten(-1, (2, -1))
    torch.testing.assert_close(seen[0], keys)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_biases_follow_weights_in_evaluation_mode(keep_ratio: float) -> None:
    """timm keeps them from the first pass on: averaged weights would be validated with those of the first epoch."""
    model = net(keep_ratios=keep_ratio)
    batch = images()
    before = model(batch)
    copied = copy.deepcopy(model)  # after a pass with gradients
    other = randomise(copy.deepcopy(model), seed=1)
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(batch), other(batch))
        torch.testing.assert_close(copied(batch), before)
        assert not torch.allclose(model(batch), before)


def test_a_plain_network_that_has_run_merges_with_its_present_weights() -> None:
    plain = timm.create_model(NAME, num_classes=5, **SMALL[NAME]).eval()
    plain(images())
    assert plain.stages[1].blocks[0].attn.attention_bias_cache
    randomise(plain)
    merging = create_subnet(NAME, num_classes=5, **SMALL[NAME]).eval()
    merging.load_state_dict(plain.state_dict())
    batch = images()
    assert torch.equal(merging(batch), plain.train().eval()(batch))
