"""Tokens on no grid in whole networks: any number of them, tokens to remove, forms that cannot follow each other."""

from typing import Any

import pytest
import timm
import torch
from support.nets import randomise

from ltmsearch.costs import backbone_costs, traced_macs
from ltmsearch.errors import InputError
from ltmsearch.models import MERGING, create_subnet
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"depth": 4, "embed_dim": 64, "num_heads": 2, "num_classes": 5}
XXS_BLOCK = "stages.3.1.transformer"


def net(keep_ratios: Any, backbone: str = VIT, **kwargs: Any) -> torch.nn.Module:
    options = SMALL if backbone == VIT else {"num_classes": 5}
    return randomise(create_subnet(backbone, keep_ratios=keep_ratios, **{**options, **kwargs})).eval()


def kept(model: torch.nn.Module, size: int = 224) -> list[tuple[int, int]]:
    """Tokens before and after each merge, in an image of 224 pixels."""
    seen: list[tuple[int, int]] = []
    for module in model.modules():
        if hasattr(module, "keep_ratio"):
            module.register_forward_hook(lambda _m, args, out: seen.append((args[0].shape[2], out.tokens.shape[2])))
    with torch.no_grad():
        model(torch.randn(1, 3, size, size))
    return seen


def test_tokens_to_remove_accumulate() -> None:
    assert kept(net(-8)) == [(196, 188), (188, 180), (180, 172), (172, 164)]
    assert kept(net(-80)) == [(196, 116), (116, 58), (58, 29), (29, 15)], "half at most: of 29 tokens, 14"
    assert kept(net(-8, operator="tome")) == kept(net(-8))
    # By place, on the nearest grid: 188 is nearer to 182 than to 196 tokens, 174 to 169 than to 182.
    assert kept(net(-8, forms="soft"))[:2] == [(196, 182), (182, 169)]


def test_any_number_of_tokens_may_remain() -> None:
    assert kept(net({"blocks.0": 0.9, "blocks.2": 0.55})) == [(196, 176), (176, 97)]  # 176.4 and 96.8


@pytest.mark.parametrize("keep_ratios", [-8, {"blocks.1": -8, "blocks.2": 0.7, "blocks.3": -200}])
@pytest.mark.parametrize("operator", ["ltm", "tome"])
def test_costs_and_extraction_of_tokens_to_remove(operator: str, keep_ratios: Any) -> None:
    supernet = randomise(Supernet(VIT, operator=operator, **SMALL)).eval()
    schedule = MergeSchedule.from_mapping(supernet.layers, keep_ratios, operator)
    subnet, costs = supernet.extract(schedule), backbone_costs(VIT, 224, operator, **SMALL)
    assert costs.macs(schedule) == traced_macs(subnet, (224, 224))
    assert [costs.tokens(schedule)[layer] for layer in schedule.merging_layers] == kept(subnet)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad(), supernet.active(schedule):
        assert torch.equal(supernet(images), subnet(images))
        assert supernet.schedule.forms == (
            {} if operator == "tome" else dict.fromkeys(schedule.merging_layers, "matched")
        )


def test_shares_that_are_kept_are_told_for_tokens_to_remove_only() -> None:
    costs = backbone_costs(VIT, 224, **SMALL)
    schedule = MergeSchedule(keep_ratios={"blocks.0": 0.5, "blocks.1": -8, "blocks.3": -60})
    assert costs.kept_shares(schedule) == {"blocks.1": 90 / 98, "blocks.3": 45 / 90}


@pytest.mark.parametrize("keep_ratios", [1.0, 0.9999, {"blocks.1": 1}])
def test_keeping_every_token_is_timms_network_bit_for_bit(keep_ratios: Any) -> None:
    merging = net(keep_ratios)
    plain = timm.create_model(VIT, **SMALL).eval()
    plain.load_state_dict({n: v for n, v in merging.state_dict().items() if f".{MERGING}." not in n})
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(merging(images), plain(images))


FORMS: dict[str, Form] = {"blocks.0": "matched", "blocks.2": "soft"}
MESSAGE = (
    "merges by place need tokens on a grid, but blocks.2 has the form 'soft' behind blocks.0, which merges by "
    "similarity and leaves the grid: give blocks.2 the form of blocks.0, or the other way round"
)


def test_forms_by_place_behind_matched_are_refused_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        net({"blocks.0": 0.7, "blocks.2": 0.7}, forms=FORMS)
    assert str(caught.value) == MESSAGE
    supernet = Supernet(VIT, **SMALL)
    schedule = MergeSchedule(keep_ratios={"blocks.0": 0.7, "blocks.2": 0.7}, forms=FORMS)
    with pytest.raises(InputError) as caught, supernet.active(schedule):
        pass
    assert str(caught.value) == MESSAGE
    assert supernet.schedule.merging_layers == ()
    with pytest.raises(InputError) as caught:
        supernet.extract(schedule)
    assert str(caught.value) == MESSAGE


def test_matched_behind_forms_by_place_is_fine() -> None:
    turned: dict[str, Form] = {"blocks.0": "soft", "blocks.1": "hard", "blocks.2": "matched"}
    assert kept(net(0.7, forms={"blocks.3": "matched", **turned})) == [(196, 132), (132, 90), (90, 63), (63, 44)]
    alone = net({"blocks.0": 1, "blocks.2": 0.7}, forms=FORMS)
    assert kept(alone) == [(196, 132)], "a plain layer has no form"


def test_layers_that_do_not_build_on_each_other_mix_all_forms() -> None:
    mixed: dict[str, Form] = {f"{XXS_BLOCK}.0": "matched", "stages.4.1.transformer.0": "soft"}
    ratios = {f"{XXS_BLOCK}.0": 0.5, "stages.4.1.transformer.0": 0.5}
    assert kept(net(ratios, "mobilevit_xxs", forms=mixed)) == [(49, 25), (16, 9)]
    inside: dict[str, Form] = {f"{XXS_BLOCK}.0": "matched", f"{XXS_BLOCK}.1": "hard"}
    with pytest.raises(InputError, match=rf"{XXS_BLOCK}.1 has the form 'hard' behind {XXS_BLOCK}.0"):
        net({f"{XXS_BLOCK}.*": 0.5}, "mobilevit_xxs", forms=inside)


@pytest.mark.parametrize("backbone", ["efficientvit_b0", "fastvit_t8"])
def test_matched_stays_on_the_grid_where_a_convolution_follows(backbone: str) -> None:
    model = net({"*": -8}, backbone, forms="matched")
    costs = backbone_costs(backbone, 224, num_classes=5)
    schedule = MergeSchedule.uniform(costs.layers, -8, form="matched")
    assert all(len(target) == 2 for _, target in costs.grids(schedule).values())
    assert costs.macs(schedule) == traced_macs(model, (224, 224))


def test_merged_tokens_have_the_length_of_theirs_where_merges_stay() -> None:
    def powers(model: torch.nn.Module) -> set[float]:
        return {weight.item() for name, weight in model.named_parameters() if name.endswith("length_power")}

    assert powers(create_subnet("vit_tiny_patch16_224", keep_ratios=0.7, depth=2)) == {1.0}
    assert powers(create_subnet("mobilevit_xxs", keep_ratios=0.7)) == {0.0}


def test_the_default_form_is_that_of_the_family() -> None:
    def forms(model: torch.nn.Module) -> set[str]:
        return {module.form for module in model.modules() if hasattr(module, "keep_ratio")}

    assert forms(net(0.7)) == {"matched"}
    assert forms(create_subnet("vit_small_patch16_rope_mixed_224", keep_ratios=0.7, depth=2)) == {"matched"}
    assert forms(net(0.7, "mobilevit_xxs")) == {"matched"}
    assert forms(net(0.7, "efficientvit_b0")) == {"soft"}
    assert forms(net(0.7, operator="pool")) == {"soft"}
