"""Baselines fitted to a budget: the costliest of their kind within it, by brute force."""

from collections.abc import Sequence

import numpy as np
import pytest

from ltmsearch.costs import CostModel, backbone_costs
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import LayerRule, SpaceFile
from ltmsearch.search.baselines import RATIOS, Baseline, BaselineFit, fit_baselines, with_choices


@pytest.fixture(scope="module")
def costs() -> CostModel:
    return backbone_costs("vit_tiny_patch16_224", 224, "ltm", depth=4)


FILE = SpaceFile(schema_version=1, family="vit", keep_ratios=(1.0, 0.8), forms=("matched",))


def fitted(costs: CostModel, share: float, file: SpaceFile = FILE, lowest: float | None = None) -> list[Baseline]:
    return fit_baselines(file, costs, share * costs.base, None if lowest is None else lowest * costs.base, {})


def uniform(costs: CostModel, ratio: float, layers: Sequence[str] | None = None) -> int:
    chosen = costs.layers if layers is None else layers
    return costs.macs(MergeSchedule(keep_ratios=dict.fromkeys(chosen, ratio), forms=dict.fromkeys(chosen, "matched")))


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_one_ratio_is_the_costliest_within_the_budget(costs: CostModel, share: float) -> None:
    found = next(one for one in fitted(costs, share) if one.label.startswith("uniform"))
    cost = uniform(costs, found.keep_ratio)
    assert cost <= share * costs.base
    assert cost == max(c for ratio in RATIOS if (c := uniform(costs, float(ratio))) <= share * costs.base)
    assert cost > 0.98 * share * costs.base, "ratios are fine enough to meet a budget to two percent"


def test_one_count_and_early_layers_are_within_the_budget(costs: CostModel) -> None:
    count, *early = fitted(costs, 0.7)[1:]
    assert count.label == f"{-count.keep_ratio:g} tokens per layer"
    assert uniform(costs, count.keep_ratio) <= 0.7 * costs.base < uniform(costs, count.keep_ratio + 1)
    assert [one.first_layers for one in early] == [1, 2]
    for one in early:
        assert 0.68 * costs.base < uniform(costs, one.keep_ratio, costs.layers[: one.first_layers]) <= 0.7 * costs.base


def test_a_kind_that_cannot_come_near_the_budget_is_left_out(costs: CostModel) -> None:
    """Merging in the first of four layers cannot save this much."""
    labels = [one.label for one in fitted(costs, 0.2)]
    assert not any("first layer" in label and "layers" not in label for label in labels)
    assert any(label.startswith("uniform") for label in labels)


def test_a_range_of_budgets_has_one_ratio_per_level(costs: CostModel) -> None:
    ratios = [one for one in fitted(costs, 0.8, lowest=0.5) if one.label.startswith("uniform")]
    shares = [uniform(costs, one.keep_ratio) / costs.base for one in ratios]
    assert shares == pytest.approx([0.8, 0.7, 0.6, 0.5], abs=0.015)


def test_each_form_has_a_ratio_of_its_own(costs: CostModel) -> None:
    file = FILE.model_copy(update={"forms": ("soft", "hard")})
    assert [one.form for one in fitted(costs, 0.6, file) if one.label.startswith("uniform")] == ["soft", "hard"]


def test_baselines_are_points_of_the_space_at_their_own_cost(costs: CostModel) -> None:
    found = fitted(costs, 0.5)
    space = SearchSpace.build(with_choices(FILE, found), costs)
    for one in found:
        layers = costs.layers if one.first_layers is None else costs.layers[: one.first_layers]
        assert costs.macs(space.schedule(one.indices(space))) == uniform(costs, one.keep_ratio, layers), one.label
    table = costs.table(space.choices)
    assert (table.costs(np.array([one.indices(space) for one in found])) <= 0.5 * costs.base).all()


def test_the_schedule_of_a_fit_is_that_of_the_space(costs: CostModel) -> None:
    """Curves of baselines are fitted to further budgets, whose ratios are no choices of the space."""
    found = fitted(costs, 0.5)
    space, fit = SearchSpace.build(with_choices(FILE, found), costs), BaselineFit(FILE, costs)
    for one in found:
        assert costs.network_key(fit.schedule(one)) == costs.network_key(space.schedule(one.indices(space))), one.label


def test_layers_that_may_not_merge_stay_plain(costs: CostModel) -> None:
    file = FILE.model_copy(update={"layers": (LayerRule(pattern="blocks.0", keep_ratios=(1.0,)),)})
    found = fitted(costs, 0.7, file)
    space = SearchSpace.build(with_choices(file, found), costs)
    assert space.choices[0] == (space.choices[0][0],), "the user kept merging out of this layer"
    for one in found:
        assert space.schedule(one.indices(space)).keep_ratio("blocks.0") == 1.0
        assert costs.macs(space.schedule(one.indices(space))) <= 0.7 * costs.base


def test_smaller_images_have_baselines_within_the_budget(costs: CostModel) -> None:
    """The plain network at the largest size that fits, and one ratio at each size above it."""
    smaller = {size: backbone_costs("vit_tiny_patch16_224", size, "ltm", depth=4) for size in (192, 160, 128)}
    assert smaller[160].base <= 0.55 * costs.base < smaller[192].base
    found = fit_baselines(FILE, costs, 0.55 * costs.base, None, smaller)
    ratio, plain = (one for one in found if one.img_size is not None)
    assert (plain.label, plain.keep_ratio, plain.img_size) == ("plain at 160 px", 1.0, 160)
    assert ratio.img_size == 192
    assert ratio.label == f"uniform {ratio.keep_ratio:g} at 192 px"
    assert 0.5 * costs.base < uniform(smaller[192], ratio.keep_ratio) <= 0.55 * costs.base
