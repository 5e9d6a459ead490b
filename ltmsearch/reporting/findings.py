"""What a search learned: which layers the front merges, what merging costs and saves layer by layer, in plain words."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ltmsearch.config.objective import CostName
from ltmsearch.io.files import write_atomic
from ltmsearch.reporting.importance import Estimate, Importance, LayerEffect, layer_importance
from ltmsearch.search.records import TrialRecord, select_front

NAMES = 4
"""Names of layers, or ranges of them, that a list in a sentence holds; the last counts the others where there are more.
"""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is told of a study beside its front."""

    front: tuple[TrialRecord, ...]
    """The non-dominated re-scored trials, cheapest first."""
    layers: tuple[str, ...]
    """Every layer that may merge, in the order of the net."""
    importance: Importance
    """From all scored trials, on the front or not."""

    @property
    def always(self) -> tuple[str, ...]:
        """The layers that merge in every point of the front."""
        return tuple(layer for layer in self.layers if self.front and self._merging(layer) == len(self.front))

    @property
    def never(self) -> tuple[str, ...]:
        """The layers that are plain in every point of the front."""
        return tuple(layer for layer in self.layers if self.front and self._merging(layer) == 0)

    @property
    def changing(self) -> tuple[str, ...]:
        """The layers that merge in some points of the front and are plain in others."""
        return tuple(layer for layer in self.layers if 0 < self._merging(layer) < len(self.front))

    @property
    def within_error(self) -> bool:
        """Whether the top-1 of all points of the front lie no further apart than the largest of their errors."""
        scores = [r.score for r in self.front if r.score is not None]
        errors = [s.top1_se for s in scores if s.top1_se is not None]
        top1 = [s.top1 for s in scores]
        return len(top1) > 1 and len(errors) == len(top1) and bool(max(top1) - min(top1) <= max(errors))

    def _merging(self, layer: str) -> int:
        return sum(record.schedule.keep_ratios[layer] < 1 for record in self.front)


def find(records: Iterable[TrialRecord], cost: CostName = "gflops") -> Findings:
    """Find what there is to tell of a study.

    Args:
        records: All its trials.
        cost: What its front weighs against top-1.
    """
    records = list(records)
    return Findings(
        front=tuple(reversed(select_front(records, cost))),
        layers=tuple(records[0].schedule.keep_ratios) if records else (),
        importance=layer_importance(records),
    )


def sentences(findings: Findings) -> list[str]:
    """The findings in a few sentences for people, short however many layers there are."""
    return _of_front(findings) + (_of_importance(findings) if findings.layers else [])


def write_findings(findings: Findings, path: str | Path) -> Path:
    """Writes `findings.json`; see `write_atomic` for how."""
    return write_atomic(
        path, json.dumps(findings_record(findings), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def findings_record(findings: Findings) -> dict[str, Any]:
    """The findings as a JSON object; units are those of the fields that it is made of."""
    front = [
        {
            "trial": record.trial, "gflops": record.gflops, "latency_ms": record.latency_ms,
            "top1": record.rescored_top1, "top1_se": record.rescored_top1_se, "expected_top1": record.expected_top1,
            "keep_ratios": dict(record.schedule.keep_ratios), "forms": dict(record.schedule.forms),
        }
        for record in findings.front
    ]  # fmt: skip
    return {
        "sentences": sentences(findings),
        "front": front,
        "always_merge": list(findings.always),
        "never_merge": list(findings.never),
        "changing": list(findings.changing),
        "top1_within_error": findings.within_error,
        "importance": asdict(findings.importance),
    }


def name_layers(layers: Sequence[str], among: Sequence[str]) -> str:
    """Some layers of a net in few words, such as "blocks.0, .3 to .7 and .9".

    All layers of a stage are its pattern, `stages.2.1.transformer.*`, which keep ratios may be given by.

    Args:
        layers: Which; at least one.
        among: All layers of the net in their order.
    """
    if len(layers) == len(among) > 1:
        return f"all {len(among)} layers"
    pieces: list[tuple[str, int]] = []
    for stage, members in groupby(among, key=_stage):
        runs = [list(run) for chosen, run in groupby(members, key=lambda layer: layer in layers) if chosen]
        whole = len(runs) == 1 and len(runs[0]) == sum(_stage(layer) == stage for layer in among) > 1
        named = [(f"{stage}.*", len(runs[0]))] if whole else [piece for run in runs for piece in _pieces(run)]
        pieces += [(words if i == 0 else words.removeprefix(stage), n) for i, (words, n) in enumerate(named)]
    words = [piece for piece, _ in pieces]
    if len(words) > NAMES:
        words[NAMES - 1 :] = [f"{sum(number for _, number in pieces[NAMES - 1 :])} more"]
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _pieces(run: Sequence[str]) -> list[tuple[str, int]]:
    """A run of neighbours as words, with the number of layers that each stands for."""
    if len(run) < 3:
        return [(layer, 1) for layer in run]
    return [(f"{run[0]} to {run[-1].removeprefix(_stage(run[-1]))}", len(run))]


def _stage(layer: str) -> str:
    return layer.rpartition(".")[0]


def _of_front(findings: Findings) -> list[str]:
    front, always, never, changing = findings.front, findings.always, findings.never, findings.changing
    if not front:
        return ["There is no front yet: no trial within the budget was scored again."]
    if len(front) == 1 and not always:
        return ["The only point of the front is the plain net."]
    names = {1: "The only point of the front merges", 2: "Both points of the front merge"}
    parts = []
    if always:
        ratios = sorted({record.schedule.keep_ratios[layer] for record in front for layer in always})
        kept = f"{ratios[0]:g}" if len(ratios) == 1 else f"{ratios[0]:g} to {ratios[-1]:g}"
        whole = names.get(len(front), f"All {len(front)} points of the front merge")
        parts.append(f"{whole} {name_layers(always, findings.layers)} (keep ratio {kept})")
    else:
        parts.append(f"No layer merges in all {len(front)} points of the front")
    if never:
        parts.append(f"{name_layers(never, findings.layers)} never merge{'s' * (len(never) == 1)}")
    if changing:
        parts.append(f"{name_layers(changing, findings.layers)} merge{'s' * (len(changing) == 1)} in some")
    lines = ["; ".join(parts) + "."]
    if findings.within_error:
        lines.append(
            "Its points differ in top-1 by less than their standard error: costs tell them apart, not accuracy."
        )
    return lines


def _of_importance(findings: Findings) -> list[str]:
    importance = findings.importance
    if importance.threshold is None:
        return [
            f"{importance.trials} scored trials are too few to tell what merging costs at each layer: it takes "
            f"{importance.needed}."
        ]
    told = sorted((e for e in importance.layers if e.distinct), key=lambda e: -_loss(e))
    lines = [f"From {importance.trials} scored trials no layer's effect on the score can be told from zero."]
    if told:
        parts = [_effect_words(told[0]) + (", the largest estimate" if len(told) > 1 else "")]
        if len(told) > 1:
            parts.append(f"{len(told) - 1} more {'layers have' if len(told) > 2 else 'layer has'} an effect")
        others = len(findings.layers) - len(told)
        parts += [f"for the other {others} the scores cannot tell"] if others else []
        lines = ["; ".join(parts) + "."]
    saving = max(importance.layers, key=lambda e: e.gflops_saved.value if e.gflops_saved else 0.0)
    if saving.gflops_saved and saving.gflops_saved.value > 0:
        amount = f"{saving.gflops_saved.value:.3f} GFLOPs at keep ratio {saving.keep_ratio:g}"
        lines.append(f"Merging saves most at {saving.layer}: {amount}.")
    return lines


def _effect_words(effect: LayerEffect) -> str:
    assert effect.loss is not None, effect
    assert effect.top1 is not None, effect
    words = f"Merging {effect.layer} to {effect.keep_ratio:g} "
    words += "adds" if effect.loss.value > 0 else "takes off"
    words += f" {abs(effect.loss.value):.3f} ± {effect.loss.se:.3f} nats of loss"
    points = f"top-1 {_points(effect.top1)} points"
    saved = effect.gflops_saved
    # Divided by next to nothing, points would be any number.
    if saved is not None and saved.value > 2 * saved.se:
        points += f", {_points(effect.top1, per=0.1 / saved.value)} per 0.1 GFLOPs saved"
    return f"{words} ({points})"


def _points(top1: Estimate, per: float = 1.0) -> str:
    return f"{top1.value * per:+.1f} ± {top1.se * per:.1f}".replace("-", "−")


def _loss(effect: LayerEffect) -> float:
    return effect.loss.value if effect.loss else 0.0
