"""Setting up a study: costs at the image size of the recipes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.command_line import tiny

from ltmsearch.callbacks import Callbacks
from ltmsearch.costs import traced_macs
from ltmsearch.errors import InputError
from ltmsearch.models import create_backbone, create_subnet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import prepare

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def test_costs_are_those_of_recipes_at_sizes_that_are_no_multiples_of_the_patch(tmp_path: Path) -> None:
    """113 px: the supernet pads to 8×8 patches of 16, the network of a recipe has 7×7."""
    context = prepare(
        tiny(tmp_path, backbone="vit_tiny_patch16_224", model_kwargs=SMALL, img_size=113, budget_gflops=0.0025),
        Callbacks(),
    )
    schedule = MergeSchedule.uniform(context.costs.layers, 0.5)
    classes = context.evaluator.supernet.model.num_classes
    with torch.random.fork_rng():
        recipes = create_subnet("vit_tiny_patch16_224", keep_ratios=0.5, img_size=113, num_classes=classes, **SMALL)
    assert context.costs.macs(schedule) == traced_macs(recipes, (113, 113))


def test_sizes_that_recipes_cannot_have_are_refused_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"113×113 px: Input height \(113\) should be divisible by patch size"):
        prepare(tiny(tmp_path, backbone="vit_small_patch16_dinov3", model_kwargs=SMALL, img_size=113), Callbacks())


def test_a_study_of_plain_weights_starts_with_new_registers(tmp_path: Path) -> None:
    vit, options = "vit_tiny_patch16_224", {**SMALL, "num_classes": 10, "img_size": 64}
    save_file(create_backbone(vit, **options).state_dict(), tmp_path / "w.safetensors")
    added: dict[str, Any] = {"registers": 2, "readout": "register"}
    given = tiny(
        tmp_path / "run", backbone=vit, model_kwargs=SMALL, img_size=64, budget_gflops=0.0008,
        checkpoint=str(tmp_path / "w.safetensors"), **added,
    )  # fmt: skip
    context = prepare(given, Callbacks())
    assert context.new_classifiers == ("head",)
    schedule = MergeSchedule.uniform(context.costs.layers, 0.5)
    with torch.random.fork_rng():
        subnet = create_subnet(vit, keep_ratios=0.5, **options, **added)
    assert context.costs.macs(schedule) == traced_macs(subnet, (64, 64))
    extracted = context.evaluator.supernet.extract(schedule).state_dict()
    assert {n: v.shape for n, v in extracted.items()} == {n: v.shape for n, v in subnet.state_dict().items()}


def test_families_without_registers_are_refused_before_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`registers` must be 0 for mobilevit_xxs, but got 2: it is timm's ByobNet"):
        prepare(tiny(tmp_path, registers=2, data_dir=str(tmp_path / "none"), dataset="folder"), Callbacks())
