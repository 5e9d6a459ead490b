"""A search over numbers of tokens to remove, beside keep ratios: from the space to the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import Notes, tiny

from ltmsearch.config.recipe import load_recipe
from ltmsearch.costs import GIGA, backbone_costs, traced_macs
from ltmsearch.errors import InputError
from ltmsearch.latency import profile_space
from ltmsearch.latency.console import _uniform_schedules
from ltmsearch.models import create_subnet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace, SpaceFile
from ltmsearch.search.run import Run
from ltmsearch.search.settled import Settled
from ltmsearch.search.warm_start import nearest
from ltmsearch.study import run_study

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"depth": 4, "embed_dim": 64, "num_heads": 2}
SPACE = """schema_version: 1
family: vit
keep_ratios: [1.0, 0.7]
keep_counts: [-8, -40]
forms: [matched]
ib_weight: [0.01, 1.0]
layers:
  - {pattern: blocks.3, keep_ratios: [1.0], keep_counts: [-60]}
"""


def settings(folder: Path, space: str, **changes: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(space)
    given = {
        "sampler": "tpe",
        "backbone": VIT,
        "model_kwargs": SMALL,
        "budget_gflops": 0.062,
        "space": str(folder / "space.yaml"),
    }
    return tiny(folder / "run", **given, **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    folder, notes = tmp_path_factory.mktemp("counts"), Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        run_study(settings(folder, SPACE), notes)
    return Run.open(folder / "run"), notes.lines


def test_trials_tell_the_tokens_to_remove_and_their_shares(study: tuple[Run, list[str]]) -> None:
    run, _ = study
    ratios = {ratio for record in run.trials for ratio in record.schedule.keep_ratios.values()}
    settled = Settled.load(run.folder)
    assert settled is not None
    fitted = {baseline.keep_ratio for baseline in settled.baselines or []}
    assert {-40, 1} <= ratios <= {1, 0.7, -8, -40, -60} | fitted
    costs = backbone_costs(VIT, 224, num_classes=10, **SMALL)
    for record in run.trials:
        assert set(record.schedule.forms.values()) <= {"matched"}
        assert set(record.schedule.forms) == set(record.schedule.merging_layers)
        tokens = costs.tokens(record.schedule)
        removed = {layer: -ratio for layer, ratio in record.schedule.keep_ratios.items() if ratio < 0}
        assert record.kept_shares == {layer: tokens[layer][1] / tokens[layer][0] for layer in removed}
        for layer, number in removed.items():
            before, after = tokens[layer]
            assert before - after == min(number, before // 2)
        assert record.gflops == costs.gflops(record.schedule)


def test_numbers_are_fitted_to_the_budget_too(study: tuple[Run, list[str]]) -> None:
    """A number of tokens for all layers, which the space has not named; the last layer saves nothing by so few."""
    run, _ = study
    (counted,) = (record for record in run.trials if record.label.endswith("tokens per layer"))
    first, *others, _ = counted.schedule.keep_ratios.values()
    assert counted.label == f"{-first:g} tokens per layer"
    assert first not in (-8, -40)
    assert set(others) == {first}
    assert 0.98 * 0.062 < counted.gflops <= 0.062


def test_choices_that_are_the_same_on_small_images_are_named(study: tuple[Run, list[str]]) -> None:
    _, notes = study
    named = "at 64 px these keep ratios keep the same tokens and have equal scores: "
    (note,) = (note.removeprefix(named) for note in notes if note.startswith(named))
    groups, layer = note.split(" at ")
    assert layer == "blocks.0", "others may get fewer tokens, of which such numbers leave different ones"
    assert {"-8", "-40"} <= set(groups.split(", ")[0].split(" = "))


def test_recipes_build_what_was_counted(study: tuple[Run, list[str]]) -> None:
    run, _ = study
    assert run.front
    for record in run.front:
        recipe = load_recipe(run.folder / f"recipes/{record.trial}.yaml")
        assert recipe.schedule == record.schedule
        net = create_subnet(recipe.backbone, **recipe.model_kwargs())
        assert traced_macs(net, (224, 224)) / GIGA == record.gflops


def test_report_table_and_findings_show_them(study: tuple[Run, list[str]]) -> None:
    run, _ = study
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    shown = next(record for record in run.front if min(record.schedule.keep_ratios.values()) < 0)
    ((_, ratios),) = shown.by_stage({})
    assert "-8" in ratios or "-40" in ratios or "-60" in ratios
    assert ratios in page
    front = json.loads((run.folder / "findings.json").read_text())["front"]
    assert any(min(point["keep_ratios"].values()) < 0 for point in front)


def test_earlier_fronts_move_to_the_nearest_share() -> None:
    costs = backbone_costs(VIT, 224, num_classes=10, **SMALL)
    content = {"schema_version": 1, "family": "vit", "keep_ratios": [1.0, 0.9, 0.5], "forms": ["matched"]}
    space = SearchSpace.build(SpaceFile.model_validate(content), costs)
    # Of 196 tokens, 8 less are 0.96 of them, 60 less 0.69, and 80 less 0.59.
    schedule = MergeSchedule(keep_ratios={"blocks.0": -8, "blocks.1": -60, "blocks.2": -80, "blocks.3": 1.0})
    moved = space.schedule(nearest(space, schedule))
    assert list(moved.keep_ratios.values()) == [0.9, 0.5, 0.5, 1.0]


def test_profiles_show_uniform_numbers_of_tokens() -> None:
    costs = backbone_costs(VIT, 224, num_classes=10, **SMALL)
    content = {
        "schema_version": 1,
        "family": "vit",
        "keep_ratios": [0.7],
        "keep_counts": [-8, -40],
        "forms": ["matched"],
    }
    space = profile_space(SpaceFile.model_validate(content | {"forms": ["matched"]}), costs)
    uniform = _uniform_schedules(space)
    assert list(uniform) == ["0.7 matched", "-8 matched", "-40 matched"]
    assert all(set(s.keep_ratios.values()) == {float(name.split()[0])} for name, s in uniform.items())
    table = costs.table(space.choices)
    rows = np.array([space.indices(schedule) for schedule in uniform.values()])
    assert table.costs(rows).tolist() == [costs.macs(schedule) for schedule in uniform.values()]


def test_spaces_whose_forms_cannot_follow_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run_study(settings(tmp_path, SPACE.replace("[matched]", "[soft, matched]")), Notes())
    assert str(caught.value).startswith("forms of a search space must not need a grid behind a form that leaves it")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
