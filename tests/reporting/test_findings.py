import dataclasses
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.records import make_record

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.findings import find, findings_record, name_layers, sentences, write_findings
from ltmsearch.reporting.importance import SPARE, layer_importance
from ltmsearch.reporting.layer_plot import layers_figure
from ltmsearch.reporting.terminal import print_findings
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.records import TrialRecord, form_letters

MOBILEVIT = tuple(
    f"stages.{stage}.1.transformer.{i}" for stage, depth in ((2, 2), (3, 4), (4, 3)) for i in range(depth)
)
VIT = tuple(f"blocks.{i}" for i in range(12))
SWIN_BASE = tuple(f"layers.{stage}.blocks.{i}" for stage, depth in enumerate((2, 2, 18, 2)) for i in range(depth))
RATIOS = (1.0, 0.7, 0.5, 0.35, 0.25)
HARMFUL, HELPFUL = MOBILEVIT[5], MOBILEVIT[7]
PLANTED = {HARMFUL: 0.08, HELPFUL: -0.06}
"""Layer → nats that each halving of its tokens adds."""
SAVED = dict.fromkeys(MOBILEVIT, 0.03) | {HARMFUL: 0.08}
"""Layer → GFLOPs that each halving saves."""


def point(number: int, gflops: float, top1: float, ratios: Mapping[str, float], **fields: Any) -> TrialRecord:
    """A re-scored trial."""
    defaults: dict[str, Any] = {
        "kind": "searched", "state": "scored", "feasible": True, "top1": top1, "loss": 0.5, "supernet_version": number,
        "rescored_top1": top1, "rescored_top1_se": 0.1, "keep_ratios": ratios,
    }  # fmt: skip
    return make_record(trial=number, gflops=gflops, **(defaults | fields))


def study(
    layers: Sequence[str],
    trials: int,
    *,
    seed: int = 0,
    loss: Mapping[str, float] | None = None,
    saved: Mapping[str, float] | None = None,
    per_version: float = 0.0,
    noise: float = 0.01,
    late: str | None = None,
) -> list[TrialRecord]:
    """Random trials whose scores and costs are linear in halvings, of which each fourth is re-scored.

    A layer named by `late` merges in the second half of the trials only.
    """
    rng, loss, saved = np.random.default_rng(seed), loss or {}, saved or {}
    records = []
    for number in range(trials):
        ratios = {layer: float(ratio) for layer, ratio in zip(layers, rng.choice(RATIOS, len(layers)), strict=True)}
        if late is not None:
            ratios[late] = 1.0 if number < trials // 2 else float(rng.choice(RATIOS[1:]))
        halved = {layer: -np.log2(ratio) for layer, ratio in ratios.items()}
        added = sum(loss.get(layer, 0.0) * h for layer, h in halved.items())
        value = 1.0 + added + per_version * number + rng.normal(0, noise)
        top1 = 60 - 30 * (value - 1) + rng.normal(0, 30 * noise)
        gflops = 1.5 - sum(saved.get(layer, 0.01) * h for layer, h in halved.items()) * 0.5
        again = {"rescored_top1": top1, "rescored_top1_se": 2.0} if number % 4 == 0 else {"rescored_top1": None}
        records.append(point(number, gflops, top1, ratios, loss=value, **{"rescored_top1_se": None, **again}))
    return records


def test_planted_effects_are_found() -> None:
    importance = layer_importance(study(MOBILEVIT, 40, loss=PLANTED, saved=SAVED, per_version=-0.01))
    effects = {effect.layer: effect for effect in importance.layers}
    assert tuple(effects) == MOBILEVIT
    assert {layer for layer, effect in effects.items() if effect.distinct} == set(PLANTED)
    for layer, effect in effects.items():
        assert effect.loss is not None
        assert effect.top1 is not None
        assert effect.gflops_saved is not None
        assert effect.keep_ratio is not None
        halvings = -np.log2(effect.keep_ratio)
        assert effect.loss.value == pytest.approx(PLANTED.get(layer, 0.0) * halvings, abs=3 * effect.loss.se)
        assert effect.top1.value == pytest.approx(-30 * PLANTED.get(layer, 0.0) * halvings, abs=3 * effect.top1.se)
        assert effect.gflops_saved.value == pytest.approx(SAVED[layer] * 0.5 * halvings), "costs have no noise"
    records = study(MOBILEVIT, 40, loss=PLANTED)
    tried = [r.schedule.keep_ratios[HARMFUL] for r in records if r.schedule.keep_ratios[HARMFUL] < 1]
    assert effects[HARMFUL].keep_ratio == np.median(tried)


def test_progress_of_the_weights_is_not_an_effect() -> None:
    late = study(MOBILEVIT, 40, late=HELPFUL, per_version=-0.02)
    assert not any(effect.distinct for effect in layer_importance(late).layers)
    # Without the versions the same scores would be laid to the layer, or the check above would prove nothing.
    timeless = [dataclasses.replace(r, supernet_version=0) for r in late]
    effects = {effect.layer: effect for effect in layer_importance(timeless).layers}
    assert effects[HELPFUL].distinct
    assert effects[HELPFUL].loss is not None
    assert effects[HELPFUL].loss.value < 0


def test_rescored_values_are_not_used() -> None:
    records = study(MOBILEVIT, 30, loss=PLANTED)
    again = [dataclasses.replace(r, rescored_top1=99.0, rescored_loss=0.1) for r in records]
    assert layer_importance(again) == layer_importance(records)


@pytest.mark.parametrize(("layers", "trials"), [(MOBILEVIT, 24), (SWIN_BASE, 60)], ids=["9 layers", "24 layers"])
def test_false_alarms_are_rare(layers: Sequence[str], trials: int) -> None:
    studies = [layer_importance(study(layers, trials, seed=seed)) for seed in range(1000, 1200)]
    shown = sum(any(effect.distinct for effect in importance.layers) for importance in studies)
    assert shown <= 20, "10 of 200 are expected; at two standard errors it would be 60 and more"
    inside = [abs(e.loss.value) <= 2 * e.loss.se for importance in studies for e in importance.layers if e.loss]
    assert 0.9 < np.mean(inside) < 0.98, "standard errors are what they say"


def test_too_few_trials_are_reported() -> None:
    enough = len(MOBILEVIT) + 2 + SPARE
    few = find(study(MOBILEVIT, enough - 1, loss=PLANTED))
    assert few.importance.threshold is None
    assert not any(effect.loss or effect.distinct for effect in few.importance.layers)
    assert f"{enough - 1} scored trials are too few" in sentences(few)[-1]
    assert f"at least {enough} are needed." in sentences(few)[-1]
    assert layer_importance(study(MOBILEVIT, enough)).threshold is not None


def test_undetermined_layers_have_no_effect() -> None:
    always, one, other = MOBILEVIT[0], MOBILEVIT[1], MOBILEVIT[2]
    records = [
        dataclasses.replace(
            r,
            schedule=MergeSchedule(
                keep_ratios={**r.schedule.keep_ratios, always: 0.5, other: r.schedule.keep_ratios[one]}
            ),
        )
        for r in study(MOBILEVIT, 30, loss=PLANTED)
    ]
    effects = {effect.layer: effect for effect in layer_importance(records).layers}
    assert [layer for layer, effect in effects.items() if effect.loss is None] == [always, one, other]
    assert effects[always].keep_ratio == 0.5
    assert effects[HARMFUL].distinct


def test_an_effect_that_top1_contradicts_is_not_significant() -> None:
    records = study(MOBILEVIT, 40, loss=PLANTED)
    contrary = [dataclasses.replace(r, top1=120 - (r.top1 or 0)) for r in records]
    assert any(effect.distinct for effect in layer_importance(records).layers)
    assert not any(effect.distinct for effect in layer_importance(contrary).layers)


def test_always_never_and_changing_partition_the_layers() -> None:
    rng = random.Random(0)
    records = [
        point(n, 1.0 + n / 10, 60.0 + n, {layer: rng.choice([1.0, 0.5, 0.7]) for layer in VIT} | {"blocks.3": 0.5})
        for n in range(3)
    ]
    findings = find(records)
    assert [record.trial for record in findings.front] == [0, 1, 2], "cheapest first"
    merging = {layer: sum(record.schedule.keep_ratios[layer] != 1 for record in records) for layer in VIT}
    assert findings.always == tuple(layer for layer in VIT if merging[layer] == 3)
    assert findings.never == tuple(layer for layer in VIT if merging[layer] == 0)
    assert findings.changing == tuple(layer for layer in VIT if merging[layer] in (1, 2))
    assert "blocks.3" in findings.always


def test_sentence_on_three_points() -> None:
    ratios = dict.fromkeys(MOBILEVIT, 1.0) | dict.fromkeys(MOBILEVIT[:2], 0.5)
    records = [
        point(0, 1.0, 60.0, ratios | {MOBILEVIT[0]: 0.25, MOBILEVIT[3]: 0.5}),
        point(1, 1.1, 62.0, ratios),
        point(2, 1.2, 64.0, ratios),
    ]
    assert sentences(find(records))[0] == (
        "All 3 points of the front merge stages.2.1.transformer.* (keep ratio 0.25 to 0.5); "
        "stages.3.1.transformer.0, .2, .3 and stages.4.1.transformer.* never merge; "
        "stages.3.1.transformer.1 merges in some."
    )


def test_small_fronts_are_described_and_drawn(tmp_path: Path) -> None:
    merged = point(0, 1.0, 60.0, dict.fromkeys(MOBILEVIT, 0.5))
    plain = point(1, 1.5, 60.0, dict.fromkeys(MOBILEVIT, 1.0))
    open_ones = [dataclasses.replace(merged, rescored_top1=None, rescored_top1_se=None)]
    told = {"one": [merged], "plain": [plain], "open": open_ones, "none": []}
    first = {name: sentences(find(records))[0] for name, records in told.items()}
    assert first["one"] == "The only point of the front merges all 9 layers (keep ratio 0.5)."
    assert first["plain"] == "The only point of the front is the plain network."
    assert first["open"].startswith("There is no front yet")
    assert sentences(find([])) == [first["open"]]
    for name, records in told.items():
        layers_figure(find(records), title=name, axis=CostAxis())
        (tmp_path / name).mkdir()
        write_findings(find(records), tmp_path / name / "findings.json")


def test_points_within_one_standard_error_are_reported() -> None:
    ratios = dict.fromkeys(VIT, 0.5)
    near = [point(n, 1.0 + n, 60.0 + n / 10, ratios, rescored_top1_se=1.9) for n in range(3)]
    assert find(near).within_error
    assert "differ by less than their standard error" in " ".join(sentences(find(near)))
    far = [dataclasses.replace(r, rescored_top1_se=0.15) for r in near]
    assert not find(far).within_error
    unknown = [dataclasses.replace(r, rescored_top1_se=None) for r in near]
    assert not find(unknown).within_error
    assert not find(near[:1]).within_error


@pytest.mark.parametrize(
    ("among", "places", "words"),
    [
        (VIT, [3], "blocks.3"),
        (VIT, [0, 1], "blocks.0 and .1"),
        (VIT, [0, 3, 4, 5, 6, 7, 9], "blocks.0, .3 to .7 and .9"),
        (VIT, [0, 2, 4, 6, 7, 8, 9, 11], "blocks.0, .2, .4 and 5 more"),
        (VIT, range(12), "all 12 layers"),
        (SWIN_BASE, range(2, 22), "layers.1.blocks.* and layers.2.blocks.*"),
        (("stages.2.blocks.0", "stages.3.blocks.0"), [0], "stages.2.blocks.0"),
    ],
)
def test_layers_are_named_in_few_words(among: Sequence[str], places: Sequence[int], words: str) -> None:
    assert name_layers([among[i] for i in places], among) == words


def test_text_names_the_largest_effect() -> None:
    words = sentences(find(study(MOBILEVIT, 40, loss=PLANTED, saved=SAVED)))
    (effect,) = (line for line in words if "nats of loss" in line)
    assert effect.startswith(f"Merging {HARMFUL} to ")
    assert "adds" in effect
    assert "top-1 −" in effect
    assert "per 0.1 GFLOPs saved" in effect
    assert effect.endswith("; 1 more layer has a significant effect; effects of the other 7 are not significant.")
    assert words[-1].startswith(f"Merging saves most at {HARMFUL}: ")
    silent = " ".join(sentences(find(study(MOBILEVIT, 24, seed=1))))
    assert "In 24 scored trials no layer's effect on the score is statistically significant." in silent
    assert "nats" not in silent


def test_the_text_stays_short_for_24_layers() -> None:
    loss = {layer: 0.05 * (i % 3) for i, layer in enumerate(SWIN_BASE)}
    records = study(SWIN_BASE, 80, loss=loss)
    assert any(effect.distinct for effect in find(records).importance.layers)
    stream = io.StringIO()
    print_findings(Console(file=stream, width=200), find(records))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 7
    assert 2 <= len(sentences(find(records))) <= 5


def test_file_contains_the_findings(tmp_path: Path) -> None:
    findings = find(study(MOBILEVIT, 30, loss=PLANTED))
    held = json.loads(write_findings(findings, tmp_path / "findings.json").read_text(encoding="utf-8"))
    assert held == json.loads(json.dumps(findings_record(findings)))
    assert held["sentences"] == sentences(findings)
    effect = findings.importance.layers[0]
    assert effect.loss is not None
    assert held["importance"]["layers"][0]["loss"] == {"value": effect.loss.value, "se": effect.loss.se}


def test_plot_has_every_layer_and_point() -> None:
    records = study(MOBILEVIT, 40, loss=PLANTED, saved=SAVED)
    few = find(
        [point(n, 1.0 + n, 60.0 + n, records[n].schedule.keep_ratios, forms={MOBILEVIT[4]: "hard"}) for n in range(3)]
    )
    findings = dataclasses.replace(few, importance=find(records).importance)
    figure = layers_figure(findings, title="t", axis=CostAxis())
    table, losses, savings = figure.data
    assert table.y == losses.y == savings.y == MOBILEVIT
    assert figure.layout.yaxis.categoryarray == MOBILEVIT
    assert figure.layout.yaxis.range == (8.5, -0.5), "the first layer on top"
    assert table.x[0] == "trial 0<br>1.0000 GFLOPs<br>60.0 %"
    assert len(table.x) == 3
    for row, layer in enumerate(MOBILEVIT):
        for column, record in enumerate(findings.front):
            ratio = record.schedule.keep_ratios[layer]
            assert table.z[row][column] == 1 - ratio
            assert table.text[row][column] == ("" if ratio == 1 else record.short_ratio(layer, form_letters(few.front)))
    assert {"h" in words for words in table.text[4]} == {r.schedule.keep_ratios[MOBILEVIT[4]] < 1 for r in few.front}
    colours = dict(zip(losses.y, losses.marker.color, strict=True))
    assert len({colours[layer] for layer in PLANTED}) == 1
    assert {colours[layer] for layer in PLANTED}.isdisjoint(
        {colours[layer] for layer in MOBILEVIT if layer not in PLANTED}
    )
    assert losses.hoverinfo == savings.hoverinfo == "text"
    assert losses.hovertext[5].startswith(f"{HARMFUL} to ")
    assert losses.error_x.array == tuple(e.loss.se for e in findings.importance.layers if e.loss)
    assert sentences(findings)[0][:40] in figure.layout.title.subtitle.text


def counted(record: TrialRecord, tokens: int = 200) -> TrialRecord:
    """The same trial by numbers of tokens to remove, of layers that have `tokens` each."""
    ratios = record.schedule.keep_ratios
    removed = {layer: 1.0 if ratio == 1 else -round((1 - ratio) * tokens) for layer, ratio in ratios.items()}
    shares = {layer: ratio for layer, ratio in ratios.items() if ratio < 1}
    schedule = MergeSchedule(keep_ratios=removed, forms=record.schedule.forms)
    return dataclasses.replace(record, schedule=schedule, kept_shares=shares)


def test_tokens_to_remove_have_the_effects_of_their_shares() -> None:
    records = study(MOBILEVIT, 40, loss=PLANTED, saved=SAVED)
    other = [counted(record) for record in records]
    assert {ratio for r in other for ratio in r.schedule.keep_ratios.values()} == {1.0, -60, -100, -130, -150}
    assert layer_importance(other) == layer_importance(records)
    assert sentences(find(other)) == sentences(find(records))
    one, same = (layers_figure(find(each), axis=CostAxis()).data[0] for each in (records, other))
    assert one.z == same.z
    assert {text for row in same.text for text in row} <= {"", "-60", "-100", "-130", "-150"}


def test_many_points_have_units_once() -> None:
    ratios = dict.fromkeys(SWIN_BASE, 0.5)
    records = [point(n, 3.0, 60.0 + n, ratios, latency_ms=10.0 + n) for n in range(8)]
    axis = CostAxis(name="latency_ms")
    figure = layers_figure(find(records, axis.costs), title="t", axis=axis)
    assert figure.data[0].x == tuple(f"{n}<br>{10 + n}.00<br>{60 + n}.0" for n in range(8))
    assert "trial, ms, top-1 %" in figure.layout.xaxis.title.text
    words = " ".join(annotation.text for annotation in figure.layout.annotations)
    assert "8 scored trials,<br>too few for estimates" in words
    assert figure.data[1].x == ()
