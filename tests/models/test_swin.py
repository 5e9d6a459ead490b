"""Swin: windows that merge alike, shifted or padded, and come back."""

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.nets import randomise, without_corrections
from torch import Tensor, nn

from ltmsearch.merging import OPERATORS
from ltmsearch.models import MERGING, create_subnet
from ltmsearch.models.supernet import Supernet
from ltmsearch.models.windows import PADDING_SIZE, fit_windows, in_windows, to_merging_windows, window_sizes

TINY_SWIN: dict[str, Any] = {"embed_dim": 32, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4), "num_classes": 5}


def net(**kwargs: Any) -> nn.Module:
    given = {"keep_ratios": {"*": 0.5}, "strict_img_size": False, **TINY_SWIN, **kwargs}
    return randomise(create_subnet("swin_tiny_patch4_window7_224", **given)).eval()


@pytest.mark.parametrize(
    "operator", sorted(n for n, operator in OPERATORS.items() if not (operator.adaptive or operator.drops))
)
def test_merging_equal_tokens_changes_nothing(operator: str) -> None:
    merging = without_corrections(net(operator=operator))
    plain = copy.deepcopy(merging)
    for module in plain.modules():
        if hasattr(module, "keep_ratio"):
            module.keep_ratio = 1.0
    image = torch.full((1, 3, 224, 224), 0.3)
    noise = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(merging(image), plain(image), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(merging(noise), plain(noise), atol=1e-3)


def block_without_attention(**kwargs: Any) -> nn.Module:
    block = net(**kwargs).layers[0].blocks[1]  # a shifted one
    assert any(block.shift_size)
    with torch.no_grad():
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
    return block


@pytest.mark.parametrize("size", [(14, 14), (8, 17), (3, 4)])
@pytest.mark.parametrize(
    "operator", sorted(n for n, operator in OPERATORS.items() if not (operator.adaptive or operator.drops))
)
def test_padding_weighs_next_to_nothing(operator: str, size: tuple[int, int]) -> None:
    """A plain feature map is a plain feature map for the MLP, whatever is padded around it."""
    block = without_corrections(block_without_attention(operator=operator))
    x = torch.randn(32).expand(2, *size, 32).contiguous()
    with torch.no_grad():
        merged = block(x)
        block.merging.keep_ratio = 1.0
        torch.testing.assert_close(merged, block(x), atol=0.02, rtol=0.02)


def test_every_window_merges_on_its_own() -> None:
    """What stands in one window does not reach another through a merge: windows are not shifted."""
    block = block_without_attention()
    x = torch.randn(1, 14, 14, 32)
    changed = x.clone()
    changed[:, :7, :7] += torch.randn(7, 7, 32)
    with torch.no_grad():
        before, after = block(x), block(changed)
    assert torch.equal(before[:, 7:], after[:, 7:])
    assert torch.equal(before[:, :, 7:], after[:, :, 7:])
    assert not torch.equal(before[:, :7, :7], after[:, :7, :7])


def test_sizes_tell_padding_from_the_image() -> None:
    sizes = window_sizes(torch.zeros(2, 5, 9, 4), (7, 7))  # one row of windows, two columns, padded to 7 x 14
    assert sizes.shape == (2 * 2, 49)
    first, second = sizes[0].view(7, 7), sizes[1].view(7, 7)
    assert (first[:5] == 1).all()
    assert (first[5:] == PADDING_SIZE).all()
    assert (second[:5, :2] == 1).all()
    assert (second[:, 2:] == PADDING_SIZE).all()
    assert torch.equal(sizes[:2], sizes[2:])


@pytest.mark.parametrize(("shifted", "rows"), [(1, 9), (1, 14), (0, 9), (0, 14)])
def test_tome_sees_the_keys_of_its_own_tokens(shifted: int, rows: int) -> None:
    """Keys come from windows, shifted and padded or not; each must arrive at the token it was made from."""
    model = net(operator="tome")
    block = model.layers[1].blocks[shifted]
    assert block.attn.num_heads == 2
    assert any(block.shift_size) == bool(shifted)
    x = torch.randn(2, rows, 14, 64)
    seen: list[Tensor] = []
    block.merging.register_forward_hook(lambda _m, args, out: seen.append(args[4]))
    with torch.no_grad():
        block(x)
        normed = in_windows(block.norm1(x), (7, 7))
        keys = block.attn.qkv(normed).unflatten(-1, (3, block.attn.num_heads, -1))[:, :, 1]
    real = window_sizes(x, (7, 7)) == 1
    torch.testing.assert_close(seen[0][real], keys[real])


@pytest.mark.parametrize("exports", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shift", [(0, 0), (3, 3), (0, 2)])
@pytest.mark.parametrize("merging", [(7, 7), (5, 3), (4, 4)])
@pytest.mark.parametrize("size", [(14, 14), (12, 8), (15, 9)])
def test_shifted_windows_come_back_to_their_places(
    size: tuple[int, int],
    merging: tuple[int, int],
    shift: tuple[int, int],
    batch: int,
    exports: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("assignment", "constants"):
        monkeypatch.setattr(f"ltmsearch.merging.{module}.exporting", lambda: exports)
    maps = torch.rand(batch, *size, 15)
    shifted = in_windows(torch.roll(maps, (-shift[0], -shift[1]), dims=(1, 2)), (7, 7))
    keys = shifted.reshape(*shifted.shape[:2], 3, 5)[:, :, 1]  # of queries, keys and values, as attention has them
    back = to_merging_windows(keys, (7, 7), shift, size, merging)
    assert torch.equal(back, in_windows(maps[..., 5:10], merging))


def test_blocks_hold_timms_parameters_and_one_merging_child() -> None:
    names = {name.split(".")[0] for name, _ in net().layers[0].blocks[0].named_parameters()}
    assert names == {"norm1", "attn", "norm2", "mlp", MERGING}


@pytest.mark.parametrize("size", [(4, 4), (3, 9)])
def test_windows_larger_than_the_map_are_those_of_a_network_for_it(size: tuple[int, int]) -> None:
    """Also after inference, and with gradients: timm resizes position biases by a matrix."""
    model = net(keep_ratios={})
    fit_windows(model, fits=True)
    block = model.layers[0].blocks[1]
    fitted = copy.deepcopy(block)
    with warnings.catch_warnings(action="ignore"):  # timm's interpolation
        fitted.set_input_size(size, (7, 7))
    x = torch.randn(2, *size, 32)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), fitted(x))
    block(x).square().sum().backward()
    table = block.attn.relative_position_bias_table
    assert table.shape == (13 * 13, 1)
    assert table.grad is not None
    assert table.grad.abs().sum() > 0


def test_windows_fit_only_under_a_schedule_for_smaller_images() -> None:
    supernet = Supernet("swin_tiny_patch4_window7_224", img_size=112, **TINY_SWIN)
    plain = supernet.schedule
    block: Any = supernet.model.get_submodule("layers.3.blocks.0")
    with pytest.raises(RuntimeError, match="inside"), supernet.active(replace(plain, img_size=84)):
        assert block.fits
        with supernet.active(plain):
            assert not block.fits
        assert block.fits
        raise RuntimeError("inside")
    assert not block.fits
    assert supernet.extract(replace(plain, img_size=84)).get_submodule("layers.3.blocks.0").fits
    assert not block.fits
