"""A study as JSON, and the provenance of its recipes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.records import BEST, OPEN, OVER, RECORDS, START_UP, UNIFORM, make_answers, make_run, reported

from ltmsearch.config.recipe import load_recipe
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.reporting.json_summary import front_rows, study_document
from ltmsearch.reporting.recipes import make_recipe, recipe_path, write_recipes


def settings(**changes: Any) -> ResolvedSettings:
    given = {"backbone": "mobilevit_s", "budget_gflops": 1.2, "study": "s", "objective": "kl", **changes}
    return StudySettings.make("test", **given).resolved("cpu")


def test_a_study_is_json(tmp_path: Path) -> None:
    answers = make_answers(RECORDS)
    run = make_run(tmp_path, settings(), reported(RECORDS, answers), answers)
    found = study_document(run)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["trial"] for row in found["front"]] == [3, 1, 2]
    assert found["front"][0]["rescored_kl"] == BEST.rescored_kl
    assert found["front"][0]["difference"] == -3.0
    assert found["verdict"]["recommendation"]["trial"] == 3
    assert found["verdict"]["searched_less_best_baseline"]["baseline"] == 1
    assert found["findings"][0].startswith("Take trial 3")
    plain, uniform = found["baselines"]
    assert (plain["label"], plain["top1"], plain["final"], plain["difference"]) == ("plain", 87.0, True, 0.0)
    assert (uniform["rescored_kl"], uniform["kl"]) == (UNIFORM.rescored_kl, UNIFORM.kl)
    assert found["trials"] == {"scored": 5, "over budget": 1}


def test_an_interrupted_study_has_no_verdict(tmp_path: Path) -> None:
    found = study_document(make_run(tmp_path, settings(), [OPEN, OVER]))
    assert (found["verdict"], found["front"]) == (None, [])
    assert found["findings"] == ["There is no front yet: no trial within the budget was rescored."]
    assert front_rows([OPEN, OVER], settings().axis) == []


@pytest.mark.parametrize(("objective", "value"), [("kl", 0.4), ("loss", 0.8)])
def test_a_recipe_tells_what_was_measured_before_its_training(objective: str, value: float) -> None:
    recipe = make_recipe(BEST, settings(objective=objective), num_classes=10, report_images=1000)
    assert recipe.provenance["proxy"] == {
        "report_top1": 84.0,
        "report_top1_se": 0.7,
        "difference": -3.0,
        "difference_se": 0.4,
        "agreement": None,
        "agreement_se": None,
        "measure": objective,
        "value": value,
        "scored_with": "final weights",
        "mi_x": BEST.mi_x,
        "mi_y": BEST.mi_y,
        "ibb": BEST.ibb,
        "img_size": 112,
        "supernet_version": 20,
        "report_images": 1000,
    }


def test_a_recipe_of_a_running_study_has_the_values_of_its_trial() -> None:
    proxy = make_recipe(OPEN, settings(), num_classes=10).provenance["proxy"]
    assert (proxy["value"], proxy["scored_with"]) == (OPEN.kl, "weights of the trial")
    assert (proxy["report_top1"], proxy["difference"], proxy["report_images"]) == (None, None, None)


def test_a_recipe_has_the_image_size_of_its_trial(tmp_path: Path) -> None:
    small = replace(BEST, schedule=replace(BEST.schedule, img_size=192))
    recipe = make_recipe(small, settings(), num_classes=10)
    assert (recipe.img_size, make_recipe(BEST, settings(), num_classes=10).img_size) == (192, 224)
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_recipes_are_those_of_the_front(tmp_path: Path) -> None:
    answers = make_answers(RECORDS, 250)
    run = make_run(tmp_path, settings(), reported(RECORDS, answers), answers)
    (tmp_path / "recipes").mkdir()
    stale = recipe_path(tmp_path, OPEN)
    stale.write_text("of an earlier front")
    write_recipes(tmp_path, run.front, run.settings, num_classes=10)
    assert sorted(path.stem for path in (tmp_path / "recipes").iterdir()) == ["1", "2", "3"]
    recipe = load_recipe(recipe_path(tmp_path, START_UP))
    assert recipe.provenance["proxy"]["report_images"] == 250
    assert recipe.schedule == START_UP.schedule
