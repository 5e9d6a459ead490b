"""EfficientViT: a merge in front of a depthwise convolution."""

from math import log
from typing import Any

import torch
from support.nets import randomise
from torch import Tensor, nn

from ltmsearch.merging import LearnableTokenMerging
from ltmsearch.models import create_subnet


def block(**kwargs: Any) -> nn.Module:
    model = create_subnet("efficientvit_b0", **{"keep_ratios": {"*": 0.5}, "num_classes": 5, **kwargs})
    return randomise(model).eval().stages[2].blocks[1]


def test_the_local_module_runs_on_the_smaller_grid() -> None:
    layer = block()
    seen = []
    layer.local_module.main.register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape)))
    x = torch.randn(2, 64, 14, 10)
    with torch.no_grad():
        assert layer(x).shape == x.shape
    assert seen == [(2, 64, 10, 7)]


def test_no_hole_is_left_in_front_of_a_convolution() -> None:
    layer = block(keep_ratios={"*": 0.85}, forms="hard")
    assert isinstance(layer.merging, LearnableTokenMerging)
    assert layer.merging.needs_grid
    with torch.no_grad():
        layer.merging.log_gain.fill_(log(1000.0))
    maps: list[Tensor] = []
    sizes: list[Tensor] = []
    layer.merging.register_forward_hook(lambda _m, _a, out: sizes.append(out.sizes))
    layer.local_module.main.register_forward_pre_hook(lambda _m, args: maps.append(args[0]))
    with torch.no_grad():
        layer(torch.randn(4, 64, 14, 14))
    empty = (sizes[0] < 1).flatten()
    assert empty.any()
    tokens = maps[0].flatten(2).transpose(1, 2).flatten(0, 1)
    assert (tokens[empty].abs().sum(dim=1) > 0).all()


def test_tome_sees_the_keys_that_attention_uses() -> None:
    layer = block(operator="tome")
    seen: list[Tensor] = []
    layer.merging.register_forward_hook(lambda _m, args, out: seen.append(args[4]))
    x = torch.randn(1, 64, 6, 6)
    attention = layer.context_module.main
    with torch.no_grad():
        layer(x)
        # As timm splits them: per head q, k, v one behind the other.
        qkv = attention.qkv(x).reshape(1, -1, 3 * attention.dim, 36).transpose(-1, -2)
        keys = attention.kernel_func(qkv.chunk(3, dim=-1)[1]).transpose(1, 2)
    torch.testing.assert_close(seen[0], keys)
