"""Recipes: written files open again, and invalid ones are refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import Form, MergeSchedule

MINIMAL: dict[str, Any] = {
    "model": "ltm_mobilevit_xxs", "operator": "ltm", "schedule": {"stages.2.1.transformer.0": 0.5}, "img_size": 224,
    "num_classes": 10,
}  # fmt: skip


def test_defaults_are_the_published_training_with_timms_names(tmp_path: Path) -> None:
    content = yaml.safe_load(Recipe(**MINIMAL).save(tmp_path / "r.yaml").read_text())
    wanted = {
        "epochs": 300, "opt": "adamw", "lr": 2e-4, "min_lr": 2e-5, "sched": "cosine", "warmup_epochs": 5,
        "weight_decay": 0.01, "model_ema_decay": 0.9995, "aa": "rand-m9-mstd0.5", "reprob": 0.2, "smoothing": 0.1,
        "batch_size": 256,
    }  # fmt: skip
    assert {name: content[name] for name in wanted} == wanted


def test_forms_survive(tmp_path: Path) -> None:
    ratios = {"stages.2.1.transformer.0": 0.5, "stages.2.1.transformer.1": 0.7, "stages.3.1.transformer.0": 1.0}
    forms: dict[str, Form] = {"stages.2.1.transformer.1": "hard"}
    recipe = Recipe(**{**MINIMAL, "schedule": ratios, "forms": forms})
    again = load_recipe(recipe.save(tmp_path / "r.yaml"))
    assert again == recipe
    assert again.schedule == MergeSchedule(keep_ratios=ratios, operator="ltm", forms=forms)
    assert again.model_kwargs() == {
        "keep_ratios": ratios, "operator": "ltm", "forms": forms, "num_classes": 10, "img_size": 224,
    }  # fmt: skip


def test_tokens_to_remove_survive(tmp_path: Path) -> None:
    recipe = Recipe(**{**MINIMAL, "schedule": {"blocks.0": -8, "blocks.1": 0.9}, "forms": {"blocks.0": "matched"}})
    again = load_recipe(recipe.save(tmp_path / "r.yaml"))
    assert again == recipe
    assert dict(again.schedule.keep_ratios) == {"blocks.0": -8, "blocks.1": 0.9}
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["schedule"] == {"blocks.0": -8, "blocks.1": 0.9}


def test_recipes_without_forms_leave_them_to_the_family(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"schema_version": 1, **MINIMAL}))
    assert dict(load_recipe(path).schedule.forms) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1}, "unknown setting 'learning_rate'"),
        ({"epochs": 0}, "epochs must be greater than or equal to 1, but got 0"),
        ({"schedule": {"a": 1.5}}, r"must be in \(0, 1\], or negative integers .*, but layer a has 1.5"),
        ({"schedule": {"a": -1.5}}, r"must be in \(0, 1\], or negative integers .*, but layer a has -1.5"),
        (
            {"forms": {"a": "firm"}},
            "the form of layer a must be soft, hard, matched, gradient, select, but got 'firm'",
        ),
        ({"schedule": 0.5}, "`schedule` must map layer names to keep ratios, but got 0.5"),
        ({"schedule": [0.5]}, r"`schedule` must map layer names to keep ratios, but got \[0.5\]"),
        ({"schedule": {3: 0.5}}, "keep ratios must be given by the names of layers, but got 3"),
        ({"schedule": {"a": True}}, r"must be in \(0, 1\], or negative integers .*, but layer a has True"),
        ({"schedule": {"a": float("nan")}}, r"must be in \(0, 1\], or negative integers .*, but layer a has nan"),
        ({"forms": "hard"}, "`forms` must map layer names to forms, but got 'hard'"),
        ({"schema_version": 2}, "schema_version must be 1 for this ltmsearch, but got 2"),
    ],
)
def test_invalid_recipes_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"schema_version": 1, **MINIMAL, **change}))
    with pytest.raises(InputError, match=message):
        load_recipe(path)


def test_a_folder_names_the_recipes_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a file, but .* is a folder; it has no recipes"):
        load_recipe(tmp_path)
    (tmp_path / "settings.yaml").touch()
    with pytest.raises(InputError, match="it has no recipes"):
        load_recipe(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "7.yaml").touch()
    with pytest.raises(InputError, match=r"is a folder; give a recipe in it, such as .*recipes.7\.yaml"):
        load_recipe(tmp_path)


def test_recipes_of_version_0_1_0_still_open() -> None:
    """Written by version 0.1.0; it must not be rewritten when the format changes."""
    recipe = load_recipe(Path(__file__).parents[1] / "data" / "recipe_v1.yaml")
    assert (recipe.model, recipe.schedule.operator, recipe.img_size, recipe.num_classes) == (
        "ltm_mobilevit_s",
        "ltm",
        224,
        10,
    )
    assert recipe.schedule.keep_ratio("stages.2.1.transformer.0") == 0.25
    assert recipe.schedule.form("stages.2.1.transformer.0") == "hard"
    assert (recipe.lr, recipe.aa, recipe.scale, recipe.ib_warmup_ratio) == (2e-4, "rand-m9-mstd0.5", (0.08, 1.0), 0.3)
    assert recipe.provenance["proxy"]["top1"] == pytest.approx(84.6, abs=0.1)


def test_keys_can_be_changed_and_are_checked() -> None:
    recipe = Recipe(**MINIMAL)
    assert recipe.changed({"lr": 1e-3, "aa": None}) == Recipe(**MINIMAL, lr=1e-3, aa=None)
    with pytest.raises(InputError, match="recipe: epochs must be greater than or equal to 1, but got 0"):
        recipe.changed({"epochs": 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5, "warmup_epochs": 5}, r"warmup_epochs \+ cooldown_epochs must be less than epochs"),
        ({"min_lr": 1.0}, "min_lr must be at most lr, but got 1 and 0.0002"),
        ({"scale": (1.0, 0.1)}, "scale must be two increasing numbers above 0, but got 1 and 0.1"),
        ({"model": "mobilevit_s"}, "model must be ltm_<backbone>, such as ltm_mobilevit_s, but got 'mobilevit_s'"),
        ({"lr": float("inf")}, "lr must be a finite number"),
    ],
)
def test_invalid_combinations_of_keys_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**MINIMAL).changed(change)
