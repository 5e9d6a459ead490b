"""Tokens sent after a split layer: counted by hand and in the network itself, and refused where they do not vary."""

import pytest
import torch
from support.nets import SMALL

from ltmsearch.costs import CostModel, backbone_costs
from ltmsearch.costs.split import check_split_layer, describe_split
from ltmsearch.errors import InputError
from ltmsearch.models import create_subnet
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import LayerRule, SpaceFile

VIT, ROPE = "vit_tiny_patch16_224", "vit_small_patch16_rope_mixed_224"


def space_of(pattern: str, costs: CostModel) -> SearchSpace:
    """A space with one keep ratio, at the layers of a pattern only."""
    file = SpaceFile(
        schema_version=1,
        family="any",
        keep_ratios=(1.0,),
        forms=("matched",),
        layers=(LayerRule(pattern=pattern, keep_ratios=(0.5,)),),
    )
    return SearchSpace.build(file, costs, reduces_cost=lambda _layer, _choice: True)


def test_tokens_by_hand() -> None:
    """64 px and patches of 16 give 16 tokens, beside a class token and two registers."""
    costs = backbone_costs(VIT, 64, **SMALL[VIT])
    schedule = MergeSchedule.from_mapping(costs.layers, {"blocks.1": 0.5, "blocks.3": 0.5}, forms="matched")
    assert [costs.tokens_sent(schedule, layer) for layer in costs.layers] == [19, 11, 11, 7, 7]


@pytest.mark.parametrize("backbone", [VIT, ROPE])
@pytest.mark.parametrize(("operator", "form"), [("ltm", "matched"), ("ltm", "soft"), ("tome", "matched")])
def test_tokens_counted_are_those_that_leave_the_layer(backbone: str, operator: str, form: Form) -> None:
    costs = backbone_costs(backbone, 96, operator, **SMALL[backbone])
    schedule = MergeSchedule.from_list(costs.layers, [0.7, 1.0, 0.5, 0.9, 0.8][: len(costs.layers)], operator, form)
    ratios, forms = schedule.keep_ratios, schedule.forms
    net = create_subnet(
        backbone, keep_ratios=ratios, operator=operator, forms=forms, img_size=96, **SMALL[backbone]
    ).eval()
    left: dict[str, int] = {}
    for layer in costs.layers:
        net.get_submodule(layer).register_forward_hook(
            lambda _module, _args, output, layer=layer: left.update({layer: output.shape[1]})
        )
    with torch.inference_mode():
        net(torch.zeros(1, 3, 96, 96))
    assert left == {layer: costs.tokens_sent(schedule, layer) for layer in costs.layers}
    assert len(set(left.values())) > 2


def test_layers_before_any_merge_are_refused() -> None:
    costs = backbone_costs(VIT, 64, **SMALL[VIT])
    space = space_of("blocks.2", costs)
    with pytest.raises(InputError, match=r"blocks\.1, after which every schedule sends 19 tokens; .* is blocks\.2"):
        check_split_layer("blocks.1", costs, space, backbone=VIT)
    check_split_layer("blocks.2", costs, space, backbone=VIT)
    assert describe_split("blocks.2", costs, space) == (
        "split after blocks.2: 19 tokens sent without merging, 11 at the smallest keep ratios, 3 of them class or "
        "register tokens, which never merge"
    )


def test_unknown_layers_are_refused_with_the_nearest() -> None:
    costs = backbone_costs(VIT, 64, **SMALL[VIT])
    with pytest.raises(
        InputError, match=r"unknown --split-layer 'blocks.9': did you mean blocks\.\d\? known are blocks.0"
    ):
        check_split_layer("blocks.9", costs, space_of("*", costs), backbone=VIT)


@pytest.mark.parametrize("backbone", [name for name in SMALL if name not in (VIT, ROPE)])
def test_families_that_undo_their_merges_are_refused(backbone: str) -> None:
    img_size = 256 if "swinv2" in backbone else 224
    costs = backbone_costs(backbone, img_size, **SMALL[backbone])
    layer = costs.layers[0]
    with pytest.raises(
        InputError, match=f"as every layer of a ViT or EVA, but got {layer}: {backbone} undoes"
    ) as caught:
        check_split_layer(layer, costs, space_of("*", costs), backbone=backbone)
    assert "\n" not in str(caught.value)
