"""Swin V2: windows that merge behind an attention that normalises what comes out of it."""

import copy

import pytest
import torch
from support.nets import SMALL, randomise, without_corrections
from torch import Tensor, nn

from ltmsearch.costs import cost_model
from ltmsearch.errors import InputError
from ltmsearch.merging import OPERATORS
from ltmsearch.models import create_subnet
from ltmsearch.models.supernet import Supernet
from ltmsearch.models.windows import even_window, from_windows, in_windows, window_sizes
from ltmsearch.schedules.grid import Grid

NAME = "swinv2_tiny_window8_256"


def net(operator: str) -> nn.Module:
    options = {**SMALL[NAME], "strict_img_size": False, "num_classes": 5}
    return randomise(create_subnet(NAME, keep_ratios=0.5, operator=operator, **options)).eval()


@pytest.mark.parametrize(
    "operator", sorted(n for n, operator in OPERATORS.items() if not (operator.adaptive or operator.drops))
)
def test_merging_equal_tokens_changes_nothing(operator: str) -> None:
    merging = without_corrections(net(operator))
    plain = copy.deepcopy(merging)
    for module in plain.modules():
        if hasattr(module, "keep_ratio"):
            module.keep_ratio = 1.0
    image = torch.full((1, 3, 256, 256), 0.3)
    noise = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(merging(image), plain(image), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(merging(noise), plain(noise), atol=1e-3)


def test_tome_sees_the_keys_that_attention_compares() -> None:
    """They come from shifted windows; each must arrive at the token it was made from, at length one per head."""
    block = net("tome").layers[0].blocks[1]
    assert any(block.shift_size)
    x = torch.randn(2, 9, 16, 16)  # padded, shifted; merges in windows of 5 × 8
    seen: list[Tensor] = []
    block.merging.register_forward_hook(lambda _m, args, out: seen.append(args[4]))
    with torch.no_grad():
        block(x)
        keys = nn.functional.linear(in_windows(x, (8, 8)), block.attn.qkv.weight[16:32])
        keys = nn.functional.normalize(keys.unflatten(-1, (block.num_heads, -1)), dim=-1).flatten(2)
    keys = in_windows(from_windows(keys, (8, 8), (9, 16)), (5, 8)).unflatten(-1, (block.num_heads, -1))
    real = window_sizes(x, (5, 8)) == 1
    torch.testing.assert_close(seen[0][real], keys[real])


@pytest.mark.parametrize(
    ("size", "largest", "window"), [((64, 64), (8, 8), (8, 8)), ((7, 16), (14, 14), (7, 8)), ((9, 16), (8, 8), (5, 8))]
)
def test_windows_pad_as_little_as_their_number_allows(size: Grid, largest: Grid, window: Grid) -> None:
    assert even_window(size, largest) == window


def test_images_of_broken_patches_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"size that the network accepts, but got 70×70 px: Input height \(70\)"):
        cost_model(NAME, Supernet(NAME, num_classes=5, **SMALL[NAME]).model, (70, 70))
