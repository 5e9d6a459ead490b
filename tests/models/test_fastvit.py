"""FastViT: windows that merge for an MLP with a convolution, behind two kinds of token mixers."""

import pytest
import torch
from support.nets import SMALL, randomise
from timm.utils import reparameterize_model
from torch import Tensor, nn

from ltmsearch.costs import cost_model, traced_macs
from ltmsearch.merging import OPERATORS
from ltmsearch.models import create_subnet
from ltmsearch.models.windows import in_windows
from ltmsearch.schedules.schedule import MergeSchedule

NAME = "fastvit_sa12"


def net(operator: str = "ltm", **options: object) -> nn.Module:
    given = {"keep_ratios": 0.5, **SMALL[NAME], "num_classes": 5, **options}
    return randomise(create_subnet(NAME, operator=operator, **given)).eval()


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("operator", sorted(n for n, operator in OPERATORS.items() if not operator.adaptive))
def test_only_the_mlp_runs_on_merged_tokens(operator: str, stage: int) -> None:
    """Without its MLP, a merging block is timm's, with convolutions or with attention."""
    block = net(operator).stages[stage].blocks[0]
    with torch.no_grad():
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
        x = torch.randn(2, 16 if stage == 0 else 32, 9, 20)
        merged = block(x)
        block.merging.keep_ratio = 1.0
        torch.testing.assert_close(merged, block(x))


def test_the_convolution_sees_all_merged_windows_as_one_map() -> None:
    """Windows of 8×8 of a map of 16×24, merged to 6×5 each, give a map of 12×15."""
    block = net().stages[0].blocks[0]
    maps: list[Tensor] = []
    block.mlp.register_forward_pre_hook(lambda _module, args: maps.append(args[0]))
    # Each place holds its number of window, which merging inside windows keeps.
    number = torch.arange(6.0).view(2, 3).repeat_interleave(8, 0).repeat_interleave(8, 1)
    change = []
    block.token_mixer.register_forward_hook(lambda _module, _args, _out: number.expand(1, 16, 16, 24).contiguous())
    block.register_forward_hook(lambda _module, _args, out: change.append(out))
    with torch.no_grad():
        block(torch.randn(1, 16, 16, 24))
    (seen,) = maps
    rows, columns = seen.shape[2] // 2, seen.shape[3] // 3
    assert (rows, columns) == (6, 5)
    wanted = torch.arange(6.0).view(2, 3).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    torch.testing.assert_close(seen, wanted.expand_as(seen))
    assert change[0].shape == (1, 16, 16, 24)


def test_tome_sees_the_keys_of_attention() -> None:
    block = net("tome").stages[3].blocks[0]
    x = torch.randn(2, 32, 6, 10)
    seen: list[Tensor] = []
    block.merging.register_forward_hook(lambda _m, args, out: seen.append(args[4]))
    with torch.no_grad():
        block(x)
        keys = block.token_mixer.qkv(block.norm(x).permute(0, 2, 3, 1))[..., 32:64]  # one head
    torch.testing.assert_close(seen[0], in_windows(keys, (6, 5))[:, :, None])


@pytest.mark.parametrize("operator", ["ltm", "tome"])
def test_networks_whose_branches_are_fused_merge_as_before(operator: str) -> None:
    """By timm's function for inference; the formula counts their blocks too."""
    model = net(operator)
    fused = reparameterize_model(model)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), atol=1e-4, rtol=1e-3)
    for module in fused.modules():
        if hasattr(module, "keep_ratio"):
            module.keep_ratio = 1.0
    costs = cost_model(NAME, fused, (96, 96), operator)
    assert costs.base == traced_macs(fused, (96, 96))
    for module in fused.modules():
        if hasattr(module, "keep_ratio"):
            module.keep_ratio = 0.5
    assert costs.macs(MergeSchedule.uniform(costs.layers, 0.5, operator)) == traced_macs(fused, (96, 96))


def test_the_stem_stays_contiguous_where_the_rest_is_channels_last() -> None:
    """Channels last, the gradients of its depthwise convolutions end the process on a CPU."""
    model = net().to(memory_format=torch.channels_last)
    weights = [weight for weight in model.stem.parameters() if weight.dim() == 4]
    assert all(weight.stride() == torch.empty(weight.shape).stride() for weight in weights)
    assert any(weight.shape[1] == 1 for weight in weights)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    assert model.stem(x).stride() == torch.empty(model.stem(x).shape).stride()
