"""Costs: the formula equals fvcore's traced count as integers, and both equal counts derived by hand."""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from support.nets import SMALL, own_size
from torch import nn

from ltmsearch.costs import (
    GIGA,
    Budget,
    CostModel,
    CostTable,
    backbone_costs,
    cost_model,
    sample_by_cost,
    traced_macs,
    traced_macs_by_module,
    within_budgets,
)
from ltmsearch.errors import InputError
from ltmsearch.merging import OPERATORS, MergeShape, get_operator
from ltmsearch.merging.ltm import PARTS, RANK
from ltmsearch.models import create_subnet, get_adapter, known_backbones
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace

RATIOS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -1, -8, -30)
VARIANTS = [
    (name, form) for name, operator in sorted(OPERATORS.items()) if not operator.adaptive for form in operator.forms
]


@cache
def model_of(backbone: str, img_size: tuple[int, int], operator: str = "ltm") -> CostModel:
    return cost_model(backbone, timm.create_model(backbone, num_classes=10), img_size, operator)


def check_random_schedule(
    backbone: str, img_size: tuple[int, int], operator: str, forms: Sequence[Form], **kwargs: Any
) -> None:
    kwargs = {"num_classes": 10, **get_adapter(backbone).any_size_kwargs, **kwargs}
    costs = cost_model(backbone, timm.create_model(backbone, **kwargs), img_size, operator)
    rng = random.Random(1)
    ratios = {layer: rng.choice(RATIOS) for layer in costs.layers}
    schedule = MergeSchedule(
        keep_ratios=ratios, operator=operator, forms={layer: rng.choice(forms) for layer in ratios}
    )
    subnet = create_subnet(backbone, keep_ratios=ratios, operator=operator, forms=schedule.forms, **kwargs)
    assert costs.macs(schedule) == traced_macs(subnet, img_size), schedule


@pytest.mark.parametrize("img_size", [(160, 96), pytest.param((224, 224), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("operator", "form"), VARIANTS)
@pytest.mark.parametrize("backbone", sorted(SMALL))
def test_formula_equals_trace(backbone: str, operator: str, form: Form, img_size: tuple[int, int]) -> None:
    check_random_schedule(backbone, img_size, operator, [form], **SMALL[backbone])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", known_backbones())
def test_formula_equals_trace_for_every_backbone(backbone: str) -> None:
    """With fewer blocks where timm lets us: what differs between siblings is in each of them."""
    fewer = {"vit": {"depth": 2}, "swin": {"depths": (1, 1, 2, 1)}, "swinv2": {"depths": (1, 1, 2, 1)}}
    size = (64, 96) if backbone.startswith("efficientvit_l") else (128, 160)
    check_random_schedule(backbone, size, "ltm", ["soft", "hard"], **fewer.get(get_adapter(backbone).family, {}))


@pytest.mark.parametrize("backbone", sorted(SMALL))
def test_plain_layers_cost_what_their_modules_do(backbone: str) -> None:
    """The shares that are shown to people, against fvcore's count by module."""
    model = timm.create_model(backbone, num_classes=10, **SMALL[backbone])
    size = own_size(backbone), own_size(backbone)
    counted = traced_macs_by_module(model, size)
    wanted = {layer: counted[layer] for layer in get_adapter(backbone).layers(model)}
    assert cost_model(backbone, model, size).plain_layer_macs() == wanted


@pytest.mark.parametrize(
    ("backbone", "img_size", "gflops"),
    [
        ("mobilevit_xxs", 224, 0.3099),
        ("mobilevit_s", 224, 1.5467),
        ("efficientvit_b1", 224, 0.5282),
        ("vit_small_patch16_224", 224, 4.6083),
        ("swin_tiny_patch4_window7_224", 224, 4.5092),
        ("swinv2_tiny_window8_256", 256, 5.9623),
        ("tiny_vit_5m_224", 224, 1.2771),
        ("fastvit_t8", 256, 0.7048),
    ],
)
def test_published_sizes(backbone: str, img_size: int, gflops: float) -> None:
    """Golden numbers: torch 2.15, timm 1.0.31, fvcore 0.1.5, 1,000 classes."""
    assert round(traced_macs(timm.create_model(backbone), (img_size, img_size)) / 1e9, 4) == gflops


def test_attention_counts_the_same_fused_and_unfused() -> None:
    fused = timm.create_model("mobilevit_xxs")
    unfused = timm.create_model("mobilevit_xxs")
    changed = 0
    for module in unfused.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
            changed += 1
    assert changed == 9
    assert traced_macs(fused, (128, 128)) == traced_macs(unfused, (128, 128))


def test_trace_counts_a_small_net_as_derived_by_hand() -> None:
    class Small(nn.Module):
        in_chans = 3

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.norm(self.conv(x).flatten(2).transpose(1, 2))
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    n = 6 * 4
    assert traced_macs(Small(), (6, 4)) == n * 3 * 8 * 9 + 5 * n * 8 + 2 * n * n * 8


def test_trace_of_a_net_that_does_not_know_its_channels() -> None:
    features = timm.create_model("mobilevit_xxs", features_only=True)
    whole = timm.create_model("mobilevit_xxs", num_classes=0, global_pool="")
    assert traced_macs(features, (64, 64), in_chans=3) == traced_macs(whole, (64, 64))
    assert traced_macs(nn.Conv2d(1, 2, 3), (5, 5), in_chans=1) == 9 * 2 * 9


def test_trace_leaves_mode_and_logger_alone() -> None:
    model = timm.create_model("mobilevit_xxs").train()
    traced_macs(model, (64, 64))
    assert model.training
    assert logging.getLogger("fvcore.nn.jit_analysis").level == logging.NOTSET


def test_ltm_merge_as_derived_by_hand() -> None:
    n, p, d, g = 49, 30, 64, 4
    shape = MergeShape(grid=(7, 7), target=(6, 5), dim=d, heads=2, key_dim=16, groups=g, needs_grid=False)
    assert (shape.n, shape.p) == (n, p)
    norm, projection = 4 * n * d, n * d * (RANK + PARTS)
    seeds, logits = RANK * n * p, n * RANK * p
    values, totals = g * p * n * d, p * n * (PARTS + 1)
    ltm = get_operator("ltm")
    assert ltm.merge_macs(shape, "soft") == norm + projection + seeds + logits + values + totals
    assert ltm.unmerge_macs(shape, "soft") == g * n * p * d
    # By index: seeds by rows (6 of 7), then by columns (5 of 7), for both parts of the prior; nine logits per token.
    side_by_side = 6 * 7 * 7 + 6 * 5 * 7
    seeds, logits = 2 * RANK * side_by_side, n * 9 * RANK
    assert ltm.merge_macs(shape, "hard") == norm + projection + seeds + logits
    assert ltm.unmerge_macs(shape, "hard") == 0
    convolved = replace(shape, needs_grid=True)
    assert ltm.merge_macs(convolved, "hard") == norm + projection + seeds + logits + g * d * side_by_side
    assert ltm.merge_macs(convolved, "soft") == ltm.merge_macs(shape, "soft")


def test_gradient_merges_as_derived_by_hand() -> None:
    """49 tokens of 64 channels in two groups to 30, with two numbers carried: 16 clusters."""
    n, p, d, g, a = 49, 30, 64, 2, 16
    shape = MergeShape(grid=(7, 7), target=(6, 5), dim=d, heads=2, key_dim=16, groups=g, needs_grid=False, carried=2)
    norm, products, readout = 4 * n * d, n * d * a, a * a
    inside, gradient = p * n * a, n * a * p
    ltm = get_operator("ltm")
    wanted = norm + products + inside + readout + gradient + g * p * n * d + 2 * p * n
    assert ltm.merge_macs(shape, "gradient") == wanted
    assert ltm.unmerge_macs(shape, "gradient") == g * n * p * d


def test_matched_merges_as_derived_by_hand() -> None:
    """From 49 tokens on no grid to 20: 24 pairs merge, of 25 × 24; then 5 of the 25 left, of 13 × 12."""
    n, d, heads, key_dim = 49, 64, 3, 16
    shape = MergeShape(grid=(n,), target=(20,), dim=d, heads=heads, key_dim=key_dim, groups=4, needs_grid=False)
    pairs = 25 * 24 + 13 * 12
    norm, importance = 4 * n * d, n * d * PARTS
    ltm, tome = get_operator("ltm"), get_operator("tome")
    assert ltm.merge_macs(shape, "matched") == norm + importance + pairs * heads * key_dim
    assert tome.merge_macs(shape, "matched") == pairs * key_dim, "the mean of the heads"
    for operator in (ltm, tome):
        assert operator.unmerge_macs(shape, "matched") == 0
        one = replace(shape, target=(48,))
        assert operator.merge_macs(one, "matched") < operator.merge_macs(shape, "matched")
        assert operator.merge_macs(replace(shape, needs_grid=True), "matched") == operator.merge_macs(shape, "matched")


def test_tokens_of_a_vit_by_hand() -> None:
    costs = model_of("vit_tiny_patch16_224", (224, 224))
    assert costs.default_form == "matched"
    assert costs.sequences == (costs.layers,)
    assert costs.forms == ("matched", "soft", "hard", "gradient")
    ratios = {"blocks.0": -8, "blocks.1": 0.9, "blocks.2": -100, "blocks.3": 0.999}
    schedule = MergeSchedule(keep_ratios=ratios)
    # 188 · 0.9 = 169.2; of 169 at most 84 are removed; 85 · 0.999 = 84.9
    kept = [(196, 188), (188, 169), (169, 85), (85, 85), *[(85, 85)] * 8]
    assert list(costs.tokens(schedule).values()) == kept
    assert next(iter(costs.grids(schedule).values())) == ((14, 14), (188,))
    spelt = MergeSchedule(keep_ratios=ratios, forms=dict.fromkeys(ratios, "matched"))
    assert costs.network_key(spelt) == costs.network_key(schedule)
    assert costs.macs(spelt) == costs.macs(schedule)
    soft = MergeSchedule(keep_ratios={"blocks.0": 0.9, "blocks.4": 0.9}, forms={"blocks.4": "soft"})
    with pytest.raises(InputError, match="merges by place need tokens on a grid"):
        costs.macs(soft)


def test_selection_as_derived_by_hand() -> None:
    n, d = 49, 64
    shape = MergeShape(grid=(7, 7), target=(30,), dim=d, heads=4, key_dim=16, groups=4, needs_grid=False, carried=2)
    # One score for all groups: norm, mean(x) W_k and that by W_q (both 64 by 32), and its product with every token.
    assert get_operator("select").merge_macs(shape, "select") == 4 * n * d + 64 * 32 + 32 * 64 + n * d
    assert get_operator("select").unmerge_macs(shape, "select") == 0


def test_table_refuses_a_wrong_number_of_layers() -> None:
    with pytest.raises(ValueError, match="shorter"):
        model_of("mobilevit_xxs", (160, 96)).table([(Choice(1.0),)])


def test_merging_everywhere_can_cost_more_than_it_saves() -> None:
    costs = model_of("mobilevit_s", (224, 224))
    assert costs.macs(MergeSchedule.uniform(["stages.2.1.transformer.1"], 0.9, "ltm", "soft")) > costs.base


def test_cost_model_refuses_a_net_that_merges() -> None:
    net = create_subnet("mobilevit_xxs", keep_ratios={"stages.2.*": 0.5})
    with pytest.raises(ValueError, match="must be plain"):
        cost_model("mobilevit_xxs", net, (64, 64))


def test_sampled_schedules_spread_up_to_the_budget() -> None:
    costs = model_of("mobilevit_s", (224, 224))
    choices = (tuple(map(Choice, (1.0, 0.7, 0.5, 0.35, 0.25))),) * 9
    space = SearchSpace(layers=costs.layers, choices=choices, layer_tokens=(196,) * 9)
    table = costs.table(space.choices)
    low, _ = table.reachable()
    budget = 1_300_000_000

    def cover(limit: int) -> np.ndarray:
        budgets = [Budget(name="gflops", table=table, limit=limit, per_unit=GIGA)]
        return sample_by_cost(space, budgets, number=6, rng=np.random.default_rng(0))

    drawn = cover(budget)
    macs = table.costs(drawn)
    assert len(np.unique(drawn, axis=0)) == 6
    assert macs.max() <= budget
    wanted = np.linspace(budget, low, 6)
    assert np.abs(macs - wanted).max() < 0.02 * (budget - low)
    assert np.array_equal(drawn, cover(budget))
    assert len(cover(low - 1)) == 0


def test_sampled_schedules_keep_every_budget() -> None:
    costs = model_of("mobilevit_xxs", (160, 96))
    choices = tuple((Choice(1.0), Choice(0.5, "soft"), Choice(0.3, "hard")) for _ in costs.layers)
    space = SearchSpace(layers=costs.layers, choices=choices, layer_tokens=(60,) * 9)
    table = costs.table(choices)
    # A cost that knows only the first layer: 10 where it is plain, 6 and 1 where it merges.
    other = CostTable(
        base=10.0,
        step=(np.array([[0.0, -4.0, -9.0]]), *(np.zeros((1, 3)) for _ in costs.layers[1:])),
        move=tuple(np.zeros((1, 3), dtype=int) for _ in costs.layers),
        starts=(True,) * len(costs.layers),
    )
    low, high = table.reachable()
    limit = (low + high) // 2
    macs = Budget(name="gflops", table=table, limit=limit, per_unit=GIGA)
    for first, second in ((macs, Budget(name="latency_ms", table=other, limit=6.0)), (macs, macs)):
        drawn = sample_by_cost(space, [first, second], number=9, rng=np.random.default_rng(1))
        assert len(drawn) == 9
        assert within_budgets([first, second], drawn).all()
        costs_of_first = first.table.costs(drawn)
        assert np.array_equal(costs_of_first, np.sort(costs_of_first)[::-1]), "dearest first"
        assert np.ptp(costs_of_first) > 0.5 * (first.limit - low)
    impossible = Budget(name="latency_ms", table=other, limit=0.9)
    assert len(sample_by_cost(space, [macs, impossible], number=9, rng=np.random.default_rng(1))) == 0


def test_budgets_by_hand() -> None:
    table = CostTable(
        base=2_000,
        step=(np.array([[0, -500]]), np.array([[0, -100], [0, -400]])),
        move=(np.array([[0, 1]]), np.array([[0, 0], [0, 0]])),
        starts=(True, False),
    )
    every = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    budget = Budget(name="gflops", table=table, limit=1_500, per_unit=1_000)
    assert budget.constraint == "GFLOPs over budget"
    assert budget.costs(every).tolist() == [2.0, 1.9, 1.5, 1.1]
    assert budget.excess(every).tolist() == [0.5, 0.4, 0.0, -0.4]
    assert budget.reachable() == (1.1, 2.0)
    assert within_budgets([budget], every).tolist() == [False, False, True, True], "the limit itself is within"
    tighter = Budget(name="latency_ms", table=table, limit=1_499.0)
    assert tighter.constraint == "ms over budget"
    assert tighter.reachable() == (1_100, 2_000)
    assert within_budgets([budget, tighter], every).tolist() == [False, False, False, True]
    assert within_budgets([tighter, budget], every[:0]).tolist() == []


def test_costs_are_those_of_the_network_that_recipes_build() -> None:
    """timm's ViT leaves out pixels that fill no patch; the supernet, which takes images of any size, pads them."""
    small: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 10}
    costs = backbone_costs("vit_tiny_patch16_224", 113, **small)
    assert costs.layer_grids["blocks.0"] == (7, 7)
    schedule = MergeSchedule.uniform(costs.layers, 0.5)
    subnet = create_subnet("vit_tiny_patch16_224", keep_ratios=0.5, img_size=113, **small)
    assert costs.macs(schedule) == traced_macs(subnet, (113, 113))
    with pytest.raises(InputError, match=r"but got 113×113 px: Input height \(113\) should be divisible"):
        backbone_costs("vit_small_patch16_dinov3", 113, num_classes=10)
    with pytest.raises(InputError, match="but got 100×100 px$"):  # timm asserts it without a message
        backbone_costs("vit_tiny_r_s16_p8_224", 100)
