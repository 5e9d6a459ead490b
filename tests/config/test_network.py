"""Keys of a network and its images: how they are written, what they refuse, and that recipes and studies keep them."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm.utils

from ltmsearch.config.continuation import refuse_other_settings
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.errors import InputError

GIVEN = ["depth=3", "window_size=(4, 4)", "act_layer=gelu", "qkv_bias=False", "mlp_ratio=2.5", "name=a=b", "empty="]
KEYS: dict[str, Any] = {
    "in_chans": 1, "mean": [0.4], "std": 0.3, "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "border",
}  # fmt: skip


def settings(**keys: Any) -> StudySettings:
    return StudySettings.make("run", backbone="vit_tiny_patch16_224", budget_gflops=0.3, **keys)


def recipe(**keys: Any) -> Recipe:
    fixed: dict[str, Any] = {"model": "ltm_vit_tiny_patch16_224", "operator": "ltm", "num_classes": 5, "img_size": 64}
    return Recipe(schedule={"blocks.0": 0.5}, **fixed, **keys)


def test_arguments_are_read_as_timms_scripts_read_them() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-kwargs", nargs="*", action=timm.utils.ParseKwargs)
    assert settings(model_kwargs=GIVEN).model_kwargs == parser.parse_args(["--model-kwargs", *GIVEN]).model_kwargs


def test_a_study_continues_from_its_file_with_the_same_arguments(tmp_path: Path) -> None:
    """YAML has no tuples; arguments that are read must equal those that are given."""
    given = settings(model_kwargs=[*GIVEN, "nested=[(1, 2), {'a': [3]}]"], **KEYS)
    (tmp_path / "settings.yaml").write_text(given.resolved("cpu").to_yaml())
    stored = ResolvedSettings.load(tmp_path / "settings.yaml")
    assert stored.network == given.network | {"in_chans": 1}
    assert stored.images == given.images
    assert stored.images.mean == (0.4,)
    refuse_other_settings(given.resolved("cpu"), stored, tmp_path)
    with pytest.raises(InputError, match="model_kwargs was .* and is now"):
        refuse_other_settings(settings(**KEYS).resolved("cpu"), stored, tmp_path)


def test_settings_and_recipes_of_earlier_versions_are_read(tmp_path: Path) -> None:
    data = ("train_split", "val_split", "class_map")
    new = (
        *data,
        "model_kwargs",
        "num_classes",
        "in_chans",
        "registers",
        "readout",
        "mean",
        "std",
        "interpolation",
        "crop_pct",
        "crop_mode",
    )
    lines = settings().resolved("cpu").to_yaml().splitlines()
    old = [line for line in lines if line.partition(":")[0] not in new]
    assert len(old) == len(lines) - len(new)
    (tmp_path / "settings.yaml").write_text("\n".join(old))
    refuse_other_settings(settings().resolved("cpu"), ResolvedSettings.load(tmp_path / "settings.yaml"), tmp_path)
    lines = recipe().to_yaml().splitlines()
    (tmp_path / "recipe.yaml").write_text(
        "\n".join(x for x in lines if x.partition(":")[0] not in set(new) - {"num_classes"})
    )
    assert load_recipe(tmp_path / "recipe.yaml") == recipe()


def test_a_recipe_has_the_arguments_of_its_network(tmp_path: Path) -> None:
    written = recipe(model_kwargs=["depth=3", "num_heads=(3)"], **KEYS)
    assert load_recipe(written.save(tmp_path / "r.yaml")) == written
    assert written.model_kwargs() == {
        "keep_ratios": {"blocks.0": 0.5}, "operator": "ltm", "forms": {}, "num_classes": 5, "img_size": 64,
        "in_chans": 1, "depth": 3, "num_heads": 3,
    }  # fmt: skip
    assert written.changed({"model_kwargs": {"depth": 2}}).network == {"num_classes": 5, "in_chans": 1, "depth": 2}


def test_recipes_and_studies_keep_registers(tmp_path: Path) -> None:
    added: dict[str, Any] = {"registers": 2, "readout": "register"}
    written = recipe(**added)
    assert load_recipe(written.save(tmp_path / "r.yaml")) == written
    assert written.network == {"num_classes": 5, **added}
    assert written.model_kwargs() == recipe().model_kwargs() | added
    given = settings(**added).resolved("cpu")
    (tmp_path / "settings.yaml").write_text(given.to_yaml())
    stored = ResolvedSettings.load(tmp_path / "settings.yaml")
    assert stored.network == settings(registers="2", readout="register").network == added
    with pytest.raises(InputError, match="registers was 2 and is now 0; readout was 'register' and is now 'timm'"):
        refuse_other_settings(settings().resolved("cpu"), stored, tmp_path)
    with pytest.raises(ValueError, match="readout 'register' needs registers, but got registers=0"):
        recipe(readout="register")


def test_a_class_map_may_move_but_splits_stay(tmp_path: Path) -> None:
    """What a class map says is compared with the study's classes when the data are read."""
    before = settings(data_dir="x", val_split="images/val", class_map="a/map.txt")
    assert before.absolute().class_map == str(Path("a/map.txt").absolute())
    refuse_other_settings(settings(data_dir="x", val_split="images/val", class_map="map.txt"), before, tmp_path)
    with pytest.raises(InputError, match="val_split was 'images/val' and is now 'val'"):
        refuse_other_settings(settings(data_dir="x", val_split="val", class_map="a/map.txt"), before, tmp_path)
    with pytest.raises(InputError, match="train_split must be the name of a split, or a folder .*, but got '../x'"):
        settings(data_dir="x", train_split="../x")


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"model_kwargs": ["depth"]}, "must be KEY=VALUE, such as depth=6, but got"),
        ({"model_kwargs": ["depth=2", "depth=3"]}, "must have each name once"),
        ({"model_kwargs": ["num_classes=3"]}, "must not have num_classes: use --num-classes"),
        ({"model_kwargs": {"img_size": 64}}, "must not have img_size: use --img-size"),
        ({"model_kwargs": {"keep_ratios": 0.5}}, "must not have keep_ratios: the schedule has it"),
        ({"model_kwargs": {"depth": {1, 2}}}, "depth must be a number, true or false"),
        ({"model_kwargs": {"x": float("inf")}}, "x must be a number"),
        ({"model_kwargs": {1: 2}}, "names must be text, but got 1"),
        ({"model_kwargs": 3}, "must be a valid dictionary, but got 3"),
        ({"model_kwargs": {"registers": 2}}, "must not have registers: use --registers"),
        ({"model_kwargs": {"readout": "register"}}, "must not have readout: use --readout"),
        ({"registers": -1}, "registers must be greater than or equal to 0, but got -1"),
        ({"registers": 1025}, "registers must be less than or equal to 1024, but got 1025"),
        ({"registers": True}, "registers must be a number, but got True"),
        ({"registers": 1.5}, "registers must be a valid integer"),
        ({"readout": "register"}, "readout 'register' needs registers, but got registers=0: set registers to 1"),
        ({"registers": 1, "readout": "registers"}, "did you mean register"),
        ({"in_chans": 2}, r"must be 1 \(grey\), 3 \(RGB\) or 4 \(RGBA\), but got 2"),
        ({"in_chans": "grey"}, "must be 1"),
        ({"in_chans": True}, "must be 1"),
        ({"mean": (0.1, 0.2)}, "mean must be one number or 3, one per channel, but got 2"),
        ({"in_chans": 1, "std": (0.1, 0.2, 0.3)}, "std must be one number or 1, one per channel, but got 3"),
        ({"mean": ()}, "mean must be one number or 3, one per channel, but got 0"),
        ({"mean": (123.7, 116.3, 103.5)}, "less than or equal to 1, but got 123.7"),
        ({"std": 0}, "greater than 0, but got 0"),
        ({"crop_pct": 0}, "greater than 0, but got 0"),
        ({"crop_pct": 1.1}, "less than or equal to 1, but got 1.1"),
        ({"interpolation": "bicubi"}, "did you mean bicubic"),
        ({"num_classes": 1}, "greater than or equal to 2"),
    ],
)
def test_invalid_keys_are_refused(keys: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        settings(**keys)
    assert "\n" not in str(caught.value)


def test_policies_of_timm_know_no_transparency() -> None:
    with pytest.raises(ValueError, match="aa must be none for in_chans 4"):
        recipe(in_chans=4)
    assert recipe(in_chans=4, aa=None).in_chans == 4


def test_an_option_with_its_own_default_continues_a_study(tmp_path: Path) -> None:
    given, without = (settings(checkpoint="w.safetensors", **head).resolved("cpu") for head in ({"head": "probe"}, {}))
    refuse_other_settings(given, without, tmp_path)
    refuse_other_settings(without, given, tmp_path)
    with pytest.raises(InputError, match="head was None and is now 'random'"):
        refuse_other_settings(settings(checkpoint="w.safetensors", head="random").resolved("cpu"), without, tmp_path)
