"""Costs: the formula equals fvcore's traced count as integers, and both equal counts derived by hand."""

import itertools
import logging
import random
from functools import cache

import numpy as np
import pytest
import timm
import torch
from torch import nn

from ltmsearch.backbones import create_subnet, known_backbones
from ltmsearch.costs import CostModel, cost_model, covering_schedules, traced_macs
from ltmsearch.merging import OPERATORS, get_operator
from ltmsearch.merging.ltm import HEADS, RANK
from ltmsearch.schedule import MergeSchedule
from ltmsearch.space import SearchSpace

RATIOS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)


@cache
def model_of(backbone: str, img_size: tuple[int, int], operator: str = "ltm") -> CostModel:
    return cost_model(backbone, timm.create_model(backbone, num_classes=10), img_size, operator)


def check_random_schedules(backbone: str, img_size: tuple[int, int], operator: str, number: int, seed: int) -> None:
    costs = model_of(backbone, img_size, operator)
    rng = random.Random(seed)
    for _ in range(number):
        ratios = {layer: rng.choice(RATIOS) for layer in costs.layers}
        subnet = create_subnet(backbone, keep_ratios=ratios, operator=operator, num_classes=10)
        schedule = MergeSchedule(keep_ratios=ratios, operator=operator)
        assert costs.macs(schedule) == traced_macs(subnet, img_size), schedule


@pytest.mark.parametrize(("img_size", "number"), [((224, 224), 20), ((160, 96), 20)])
@pytest.mark.parametrize("backbone", known_backbones())
def test_formula_equals_trace(backbone: str, img_size: tuple[int, int], number: int) -> None:
    check_random_schedules(backbone, img_size, "ltm", number, seed=0)


@pytest.mark.parametrize("operator", sorted(set(OPERATORS) - {"ltm"}))
def test_formula_equals_trace_for_the_baselines(operator: str) -> None:
    check_random_schedules("mobilevit_xxs", (128, 160), operator, 6, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("img_size", [(224, 224), (160, 96)])
@pytest.mark.parametrize("operator", sorted(OPERATORS))
@pytest.mark.parametrize("backbone", known_backbones())
def test_formula_equals_trace_for_many(backbone: str, img_size: tuple[int, int], operator: str) -> None:
    check_random_schedules(backbone, img_size, operator, 200 if operator == "ltm" else 10, seed=2)


@pytest.mark.parametrize(
    ("backbone", "img_size", "gflops"),
    [
        ("mobilevit_xxs", 224, 0.3099),
        ("mobilevit_xs", 224, 0.7926),
        ("mobilevit_s", 224, 1.5467),
        ("mobilevit_s", 256, 2.0334),
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


def test_trace_leaves_mode_and_logger_alone() -> None:
    model = timm.create_model("mobilevit_xxs").train()
    traced_macs(model, (64, 64))
    assert model.training
    assert logging.getLogger("fvcore.nn.jit_analysis").level == logging.NOTSET


def test_ltm_merge_as_derived_by_hand() -> None:
    n, p, d, g = 49, 25, 64, 4
    norm, projection = 4 * n * d, n * d * (RANK + HEADS)
    seeds, logits = RANK * n * p, n * RANK * p
    values, totals = g * p * n * d, p * n * (HEADS + 1)
    wanted = norm + projection + seeds + logits + values + totals
    ltm = get_operator("ltm")
    assert ltm.merge_macs(n, p, dim=d, key_dim=16, groups=g) == wanted
    assert ltm.unmerge_macs(n, p, dim=d, groups=g) == g * n * p * d


def test_table_equals_the_model_and_its_range_is_exact() -> None:
    costs = model_of("mobilevit_xxs", (160, 96))
    # Few enough choices to try them all: 2·2·3·2·2·2·1·2·2 schedules.
    choices = [
        (1.0, 0.5),
        (1.0, 0.3),
        (1.0, 0.7, 0.2),
        (1.0, 0.5),
        (1.0, 0.5),
        (1.0, 0.4),
        (1.0,),
        (1.0, 0.5),
        (1.0, 0.1),
    ]
    table = costs.table(choices)
    every = np.array(list(itertools.product(*[range(len(options)) for options in choices])))
    wanted = [
        costs.macs(MergeSchedule(keep_ratios={n: o[i] for n, o, i in zip(costs.layers, choices, row, strict=True)}))
        for row in every
    ]
    assert table.macs(every).tolist() == wanted
    assert table.reachable() == (min(wanted), max(wanted))
    assert table.macs(every[:0]).tolist() == []


def test_table_refuses_a_wrong_number_of_layers() -> None:
    with pytest.raises(ValueError, match="one entry per layer"):
        model_of("mobilevit_xxs", (160, 96)).table([(1.0,)])


def test_merging_everywhere_can_cost_more_than_it_saves() -> None:
    costs = model_of("mobilevit_s", (224, 224))
    assert costs.macs(MergeSchedule(keep_ratios={"stages.2.1.transformer.1": 0.9})) > costs.base_macs


def test_cost_model_refuses_a_net_that_merges() -> None:
    net = create_subnet("mobilevit_xxs", keep_ratios={"stages.2.*": 0.5})
    with pytest.raises(ValueError, match="must be plain"):
        cost_model("mobilevit_xxs", net, (64, 64))


def test_covering_schedules_spread_up_to_the_budget() -> None:
    costs = model_of("mobilevit_s", (224, 224))
    space = SearchSpace(layers=costs.layers, choices=((1.0, 0.7, 0.5, 0.35, 0.25),) * 9)
    table = costs.table(space.choices)
    low, _ = table.reachable()
    budget = 1_300_000_000
    drawn = covering_schedules(space, table, max_macs=budget, number=6, rng=np.random.default_rng(0))
    macs = table.macs(drawn)
    assert len(np.unique(drawn, axis=0)) == 6
    assert macs.max() <= budget
    wanted = np.linspace(budget, low, 6)
    assert np.abs(macs - wanted).max() < 0.02 * (budget - low)
    again = covering_schedules(space, table, max_macs=budget, number=6, rng=np.random.default_rng(0))
    assert np.array_equal(drawn, again)
    assert len(covering_schedules(space, table, max_macs=low - 1, number=6, rng=np.random.default_rng(0))) == 0
