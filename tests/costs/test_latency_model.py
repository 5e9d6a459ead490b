"""The latency model: what it is fitted to comes back, fast tables equal walks, and nothing is guessed."""

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
from support.nets import SMALL
from support.profiles import feature_names, suffix, whole_space

from ltmsearch.costs import WHOLE_NET, CostModel, LatencyModel, Timing, cost_model, fit_latency
from ltmsearch.costs.latency import after_chain_features, chain_features, kind, layer_features
from ltmsearch.models import get_adapter
from ltmsearch.schedules.grid import kept_tokens, target_grid, tokens
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace

BASE_MS = 40.0
TRUTH = {
    "tokens before": 0.011, "work before": 0.07, "work after": 0.05, "weighed": 0.09, "tokens left": 0.004,
    "work": 0.03, "tokens": 0.002,
}  # fmt: skip
"""Milliseconds by what a feature is of; those by form and ratio have a rule of their own."""


@cache
def costs_of(backbone: str) -> CostModel:
    model = timm.create_model(backbone, num_classes=10, **{**get_adapter(backbone).any_size_kwargs, **SMALL[backbone]})
    return cost_model(backbone, model, (224, 224))


def truth(name: str) -> float:
    """A made-up weight: dearer per layer, form and ratio, and each width of layers another machine."""
    place, what = name.partition("×")[0], suffix(name)
    factor = 1.0 + sum(map(ord, place)) % 7 / 10
    if what in TRUTH:
        return TRUTH[what] * factor
    form, last = what.split(" ")
    share = 0.6 if form == "hard" else 1.0
    return share * factor * (TRUTH[last] if last in TRUTH else 0.2 + 0.3 * float(last))


def true_model(costs: CostModel, space: SearchSpace) -> LatencyModel:
    weights = {name: truth(name) for name in feature_names(costs, space)}
    return LatencyModel(
        chains=costs.chains, operator=costs.operator, default_form=costs.default_form, base=BASE_MS, weights=weights
    )


def true_timing(model: LatencyModel, schedule: MergeSchedule, whole: bool) -> Timing:
    by_module: dict[str, float] = {}
    for chain in model.chains:
        features = chain_features(chain, schedule, model)
        by_module[chain.module] = sum(model.weights[name] * value for name, value in features.items())
    if whole:
        return Timing(schedule=schedule, extra_ms={WHOLE_NET: sum(by_module.values())})
    return Timing(schedule=schedule, extra_ms=by_module)


@pytest.mark.parametrize("whole", [False, True], ids=["by chain", "as a whole"])
@pytest.mark.parametrize("backbone", sorted(SMALL))
def test_a_linear_truth_is_recovered_from_random_schedules(backbone: str, whole: bool) -> None:
    costs = costs_of(backbone)
    space = whole_space(costs, backbone)
    model = true_model(costs, space)
    rng = np.random.default_rng(0)
    seen, more = ([space.schedule(row) for row in space.random(rng, 250)] for _ in range(2))
    unseen = sorted(set(more) - set(seen), key=lambda schedule: more.index(schedule))
    assert len(unseen) >= 40
    fitted = fit_latency(costs, BASE_MS, [true_timing(model, schedule, whole) for schedule in seen])
    wanted = np.array([model.latency_ms(schedule) for schedule in unseen])
    predicted = np.array([fitted.latency_ms(schedule) for schedule in unseen])
    np.testing.assert_allclose(predicted, wanted, rtol=1e-3)
    assert np.abs(predicted - wanted).max() < 0.01 * np.ptp(wanted), "and not because all are alike"
    assert fitted.base == BASE_MS
    assert fitted.operator == costs.operator


def small_space(costs: CostModel, texts: list[str]) -> SearchSpace:
    """Ratios with an h for the hard form, an m for the matched one, per layer."""
    forms: dict[str, Form] = {"h": "hard", "m": "matched"}
    choices = [
        (Choice(1.0), *(Choice(float(o.rstrip("hm")), forms.get(o[-1], "soft")) for o in text.split()))
        for text in texts
    ]
    return SearchSpace(
        layers=costs.layers, choices=tuple(choices), layer_tokens=tuple(map(tokens, costs.layer_grids.values()))
    )


@pytest.mark.parametrize(
    ("backbone", "texts"),
    [
        ("mobilevit_xxs", ["0.5", "0.3", "0.7 0.2h", "0.5h", "0.5", "0.4", "", "0.5h", "0.1"]),
        ("vit_tiny_patch16_224", ["0.9 0.5h", "0.7 0.7h", "0.5 0.1h", "0.9", ""]),
        ("vit_tiny_patch16_224", ["0.9 0.5h -30", "-8m 0.7m", "-8m -60m 0.5m", "0.9m", ""]),
    ],
)
def test_the_table_equals_a_walk_for_every_schedule(backbone: str, texts: list[str]) -> None:
    costs = costs_of(backbone)
    space = small_space(costs, texts)
    model = true_model(costs, space)
    every = np.array(list(itertools.product(*[range(len(options)) for options in space.choices])))
    schedules = [space.schedule(row) for row in every]
    walked = np.array([by_hand(model, schedule) for schedule in schedules])
    table = model.table(space.choices)
    assert table.costs(every).dtype == np.float64
    np.testing.assert_allclose(table.costs(every), walked, rtol=1e-12)
    np.testing.assert_allclose([model.latency_ms(schedule) for schedule in schedules], walked, rtol=1e-12)
    np.testing.assert_allclose(table.reachable(), (walked.min(), walked.max()), rtol=1e-12)
    assert all(type(end) is float for end in table.reachable())
    assert table.costs(every[:0]).tolist() == []
    assert np.ptp(walked) > 1
    counted, macs = costs.table(space.choices), [costs.macs(schedule) for schedule in schedules]
    assert counted.costs(every).tolist() == macs
    assert counted.reachable() == (min(macs), max(macs))


def by_hand(model: LatencyModel, schedule: MergeSchedule) -> float:
    """The definition, without a walk that others share: features of each layer alone, on grids followed here."""
    total = model.base
    for chain in model.chains:
        grid = chain.grid
        for layer in chain.layers:
            ratio = schedule.keep_ratios[layer.name]
            choice = Choice(ratio, schedule.forms.get(layer.name))
            for name, value in layer_features(chain, layer, grid, choice, model).items():
                total += model.weights[name] * value
            if ratio != 1:
                grid = (kept_tokens(tokens(grid), ratio),) if choice.form == "matched" else target_grid(grid, ratio)
        if not chain.unmerges:
            total += model.weights["tokens left"] * (tokens(grid) - tokens(chain.grid)) if grid != chain.grid else 0.0
    return total


def test_the_plain_net_takes_exactly_what_was_measured() -> None:
    for backbone in sorted(SMALL):
        costs = costs_of(backbone)
        space = whole_space(costs, backbone)
        model = true_model(costs, space)
        plain = MergeSchedule.uniform(costs.layers, 1.0)
        assert model.latency_ms(plain) == BASE_MS
        assert model.latency_ms(MergeSchedule(keep_ratios={})) == BASE_MS
        assert model.latency_ms(MergeSchedule.uniform(costs.layers, 0.999)) == BASE_MS, "all tokens are kept"
        assert model.table(space.choices).costs(np.zeros((1, len(costs.layers)), dtype=int)).tolist() == [BASE_MS]


def test_features_of_a_layer_as_derived_by_hand() -> None:
    costs = costs_of("mobilevit_xxs")
    chain = costs.chains[0]
    layer = chain.layers[1]
    assert (chain.grid, layer.dim, layer.windows) == ((14, 14), 64, 1)
    whole, merged = (14, 14), target_grid((14, 14), 0.5)
    assert merged == (10, 10)
    assert layer_features(chain, layer, whole, Choice(1.0), costs) == {}
    at, mega = "64@14x14×1", 1e6
    behind_a_merge = layer_features(chain, layer, merged, Choice(1.0), costs)
    assert behind_a_merge == {
        f"{at} tokens before": 100.0 - 196.0,
        f"{at} work before": (layer.macs_before(merged) - layer.macs_before(whole)) / mega,
        f"{at} work after": (layer.macs_after(merged) - layer.macs_after(whole)) / mega,
        f"{at} weighed": 1.0,
    }
    features = layer_features(chain, layer, whole, Choice(0.5, "hard"), costs)
    own = costs.merge_balance(layer.name, Choice(0.5, "hard"))[0] / mega
    assert features == {
        f"{at} work after": (layer.macs_after(merged) - layer.macs_after(whole)) / mega,
        f"{at} hard 0.5": 1.0,
        f"{at} hard work": pytest.approx(own),
        f"{at} hard tokens": 196.0,
    }
    assert f"{at} matched 0.5" in layer_features(chain, layer, whole, Choice(0.5), costs), "the default form"
    vit = costs_of("vit_tiny_patch16_224").chains[0]
    assert after_chain_features(vit, (10, 10)) == {"tokens left": -96.0}
    assert after_chain_features(vit, vit.grid) == {}
    assert after_chain_features(chain, (10, 10)) == {}, "all is undone before"


def test_a_choice_that_was_not_timed_is_refused_by_name() -> None:
    costs = costs_of("mobilevit_xxs")
    space = small_space(costs, ["0.5h"] * 9)
    model = true_model(costs, space)
    timings = [true_timing(model, space.schedule(row), False) for row in space.random(np.random.default_rng(0), 40)]
    fitted = fit_latency(costs, BASE_MS, timings)
    layer = costs.layers[4]
    for choice, missing in ((Choice(0.7, "hard"), "hard 0.7"), (Choice(0.5, "soft"), "soft 0.5")):
        schedule = MergeSchedule.uniform([layer], choice.keep_ratio, "ltm", choice.form)
        with pytest.raises(ValueError, match="must be one that was timed, but got") as caught:
            fitted.latency_ms(schedule)
        assert layer in str(caught.value)
        assert missing in str(caught.value)
        with pytest.raises(ValueError, match="must be one that was timed"):
            fitted.table([(Choice(1.0), choice)] * 9)
    with pytest.raises(ValueError, match="at least one subnet"):
        fit_latency(costs, BASE_MS, [])


def test_chains_of_a_kind_share_weights_and_others_do_not() -> None:
    """Swin blocks of a stage are alike: what was timed of one holds for the other."""
    costs = costs_of("swin_tiny_patch4_window7_224")
    by_kind: dict[Any, list[str]] = {}
    for chain in costs.chains:
        by_kind.setdefault(kind(chain), []).append(chain.layers[0].name)
    assert sorted(by_kind.values()) == [[f"layers.{s}.blocks.0", f"layers.{s}.blocks.1"] for s in range(4)]

    assert all(chain.module == chain.layers[0].name for chain in costs.chains)
    saved = {0.7: -2.0, 0.5: -4.0}
    timings = [
        Timing(
            schedule=MergeSchedule.uniform(["layers.1.blocks.0"], ratio, "ltm", "hard"),
            extra_ms={chain.module: ms if chain.module == "layers.1.blocks.0" else 0.0 for chain in costs.chains},
        )
        for ratio, ms in saved.items()
    ]
    model = fit_latency(costs, BASE_MS, timings)
    for ratio, ms in saved.items():
        one, other = (model.cost_at_one_layer(f"layers.1.blocks.{block}", Choice(ratio, "hard")) for block in (0, 1))
        assert one == other
        assert one == pytest.approx(BASE_MS + ms, abs=0.2)
    with pytest.raises(ValueError, match=r"got 0.5 hard at layers.2.blocks.0"):
        model.cost_at_one_layer("layers.2.blocks.0", Choice(0.5, "hard"))


def test_merges_that_cost_time_do_not_pay() -> None:
    costs = costs_of("mobilevit_xxs")
    space = small_space(costs, ["0.5 0.5h 0.7h"] * 9)
    weights = {name: {"hard 0.5": -2.0, "soft 0.5": 2.0}.get(suffix(name), 0.0) for name in feature_names(costs, space)}
    model = LatencyModel(chains=costs.chains, default_form="soft", base=BASE_MS, weights=weights)
    layer = costs.layers[0]
    assert model.reduces_cost(layer, Choice(0.5, "hard"))
    assert not model.reduces_cost(layer, Choice(0.5, "soft"))
    assert not model.reduces_cost(layer, Choice(0.7, "hard")), "what changes nothing does not pay"
    assert model.cost_at_one_layer(layer, Choice(0.5, "hard")) == BASE_MS - 2.0
