"""A user's arguments for timm's network: the same network wherever it is built, and one line for wrong arguments."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ltmsearch.config.recipe import Recipe
from ltmsearch.costs import backbone_costs, traced_macs
from ltmsearch.data.preparation import ImageOptions
from ltmsearch.errors import InputError
from ltmsearch.latency import LatencyTarget
from ltmsearch.latency.build import target_costs
from ltmsearch.models import input_config, write_config
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 96, "num_heads": 3, "patch_size": 8}


def test_the_same_network_is_built_everywhere(tmp_path: Path) -> None:
    """By search, recipe, `config.json`, cost and profile; shapes of all weights, multiply-adds and logits."""
    images = ImageOptions(in_chans=1, mean=(0.4,), std=(0.3,))
    schedule = MergeSchedule(keep_ratios=dict.fromkeys(("blocks.0", "blocks.1", "blocks.2"), 0.5))
    recipe = Recipe(
        model=f"ltm_{VIT}", schedule=schedule, num_classes=7, img_size=64, in_chans=1, timm_kwargs=SMALL,
        mean=images.mean, std=images.std, registers=2, readout="register",
    )  # fmt: skip
    assert recipe.images == images
    supernet = Supernet(VIT, img_size=64, **recipe.network).eval()
    by_timm = timm.create_model(VIT, img_size=64, num_classes=7, in_chans=1, reg_tokens=2, **SMALL)
    plain = {name: value.shape for name, value in supernet.model.state_dict().items() if ".merging." not in name}
    assert plain == {name: value.shape for name, value in by_timm.state_dict().items()}

    subnet = supernet.extract(schedule)
    of_recipe = timm.create_model(recipe.model, **recipe.model_kwargs()).eval()
    of_recipe.load_state_dict(subnet.state_dict())
    (tmp_path / "model.safetensors").write_bytes(pack_weights(of_recipe.state_dict(), {}))
    inputs = input_config(VIT, recipe.images)
    write_config(
        tmp_path / "config.json", of_recipe, name=recipe.model, img_size=64, inputs=inputs, class_names=["a", "b"]
    )
    exported = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    batch = torch.randn(2, 1, 64, 64)
    with torch.no_grad(), supernet.active(schedule):
        logits = supernet(batch)
        assert torch.equal(of_recipe(batch), logits)
        assert torch.equal(exported(batch), logits)
    config = timm.data.resolve_model_data_config(exported)
    assert (config["mean"], config["std"], config["input_size"]) == ([0.4], [0.3], (1, 64, 64))
    assert "label_names" not in exported.pretrained_cfg, "two names for seven outputs"

    costs = backbone_costs(VIT, 64, **recipe.network)
    assert costs.macs(schedule) == traced_macs(of_recipe, (64, 64))
    target = LatencyTarget.local(
        device="cpu", img_size=64, num_classes=7, in_chans=1, model_kwargs=SMALL, registers=2, readout="register"
    )
    timed, timed_costs = target_costs(VIT, "ltm", target)
    assert timed_costs == costs
    assert {n: v.shape for n, v in timed.state_dict().items()} == {n: v.shape for n, v in supernet.state_dict().items()}


@pytest.mark.parametrize(
    ("backbone", "arguments", "rule"),
    [
        (VIT, {"dept": 3}, f"arguments of timm's {VIT}, but it has no dept: did you mean depth?"),
        ("mobilevit_xxs", {"foo": 1}, "arguments of timm's mobilevit_xxs, but it has no foo"),
        ("swin_tiny_patch4_window7_224", {"window_siz": 4}, "did you mean window_size?"),
        (VIT, {"embed_dim": 97}, "with embed_dim=97: dim should be divisible by num_heads"),
        (VIT, {"patch_size": 0}, "with patch_size=0: integer division"),
        (VIT, {"norm_layer": "batchnorm2d"}, "with norm_layer='batchnorm2d': expected 4D input"),
        (VIT, {"act_layer": "foo"}, "with act_layer='foo': KeyError: 'foo'"),
        (VIT, {"depth": 0}, "must have a layer that can merge, but with depth=0 it has none"),
    ],
)
def test_arguments_that_do_not_work_are_refused_in_one_line(backbone: str, arguments: Any, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        backbone_costs(backbone, 64, **arguments)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_that_the_formula_does_not_know_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments may choose blocks that no family has."""
    monkeypatch.setattr("ltmsearch.costs.macs.CostModel.macs", lambda *_: 10**9)
    with pytest.raises(InputError, match="costs are known, but with depth=1 a merging .* the formula gives 1.000000"):
        backbone_costs(VIT, 64, depth=1)
    backbone_costs(VIT, 64, num_classes=3, in_chans=1)  # nobody's arguments: not checked


def test_means_follow_the_channels_as_in_timm() -> None:
    usual = input_config("mobilevit_xxs", ImageOptions(in_chans=3))
    assert usual == input_config("mobilevit_xxs")
    clip = input_config("vit_base_patch16_clip_224")
    grey = input_config("vit_base_patch16_clip_224", ImageOptions(in_chans=1))
    assert grey["mean"] == (sum(clip["mean"]) / 3,)
    assert grey["std"] == (sum(clip["std"]) / 3,)
    given = ImageOptions(in_chans=4, mean=(0.25,), std=(0.1, 0.2, 0.3, 0.4), crop_pct=0.5, crop_mode="squash")
    assert input_config("mobilevit_xxs", given) == {
        "mean": (0.25,) * 4, "std": (0.1, 0.2, 0.3, 0.4), "interpolation": usual["interpolation"], "crop_pct": 0.5,
        "crop_mode": "squash",
    }  # fmt: skip
