"""Gradient masks of a study: fitted once, before the warm-up, if weights are trained and a layer may take them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.command_line import Callbacks, tiny
from support.nets import randomise

from ltmsearch.merging import LearnableTokenMerging
from ltmsearch.models import attached_operators, create_backbone
from ltmsearch.search import trial
from ltmsearch.search.masks import fitting_seconds, unfitted_masks
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.warmup import WarmUpRun

SPACE = """schema_version: 1
family: mobilevit
keep_ratios: [1.0]
layers:
  - {pattern: "stages.2.1.transformer.0", keep_ratios: [1.0, 0.8, 0.6, 0.4], forms: [hard, gradient]}
  - {pattern: "stages.2.1.transformer.1", keep_ratios: [1.0, 0.5], forms: [soft, hard]}
"""
FIRST, SECOND = "stages.2.1.transformer.0", "stages.2.1.transformer.1"


def context(folder: Path, *, trained: bool = True, **changes: Any) -> StudyContext:
    (folder / "space.yaml").write_text(SPACE)
    if trained:
        net = randomise(create_backbone("mobilevit_xxs", num_classes=10))
        save_file(net.state_dict(), folder / "weights.safetensors")
        changes["checkpoint"] = str(folder / "weights.safetensors")
    plan = {"base_steps": 0, "sandwich_steps": 1, "sandwich_subnets": 1, "budget_gflops": 0.3}
    return prepare(tiny(folder / "run", space=str(folder / "space.yaml"), **plan, **changes), Callbacks())


def operators(of: StudyContext) -> dict[str, LearnableTokenMerging]:
    found = attached_operators(of.evaluator.supernet.model, of.space.layers)
    return {layer: operator for layer, operator in found.items() if isinstance(operator, LearnableTokenMerging)}


@pytest.mark.long
def test_layers_that_may_take_the_form_are_fitted_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = context(tmp_path)
    ratios = [choice.keep_ratio for choice in of.space.choices[0] if choice.form == "gradient"]
    assert unfitted_masks(of) == {FIRST: ratios[len(ratios) // 2]}
    assert fitting_seconds(of) > 0
    warming = WarmUpRun(of, tmp_path)
    monkeypatch.setattr(WarmUpRun, "steps", lambda _: iter(()))
    warming.run(Callbacks(), lambda: None)
    assert operators(of)[FIRST].step.fitted
    assert not operators(of)[SECOND].step.fitted
    assert of.evaluator.supernet.schedule.merging_layers == ()
    assert unfitted_masks(of) == {}
    assert fitting_seconds(of) == 0
    kept = operators(of)[FIRST].step.readout.clone()
    warming.run(Callbacks(), lambda: None)
    assert torch.equal(operators(of)[FIRST].step.readout, kept), "once"


@pytest.mark.long
def test_a_warm_up_that_continues_keeps_its_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("masks are fitted again")

    monkeypatch.setattr(trial, "fit_layer", never)
    warming = WarmUpRun(context(tmp_path), tmp_path)
    warming.done = 1
    warming.run(Callbacks(), lambda: None)


def test_random_weights_learn_theirs(tmp_path: Path) -> None:
    assert unfitted_masks(context(tmp_path, trained=False)) == {}
