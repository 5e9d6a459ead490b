"""Findings of a search: which layers the front merges, and the cost and savings of merging at each layer."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ltmsearch.config.objective import CostName, tokens_text
from ltmsearch.io.files import write_atomic
from ltmsearch.reporting.importance import Estimate, Importance, LayerEffect, layer_importance
from ltmsearch.schedules.schedule import amount_of
from ltmsearch.search.records import TrialRecord, select_front

NAMES = 4
"""Most layer names or ranges in a list of a sentence; in longer lists the last entry counts the others."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Summary of a study beside its table."""

    front: tuple[TrialRecord, ...]
    """The non-dominated rescored trials, lowest cost first."""
    layers: tuple[str, ...]
    """Every layer that may merge, in network order."""
    importance: Importance
    """From all scored trials, on the front or not."""
    by_tokens: tuple[TrialRecord, ...] = ()
    """Points of a front with three objectives that are on it only because they send fewer tokens."""

    @property
    def amount(self) -> str:
        """What a schedule gives each layer: "keep ratio" or "threshold"."""
        return amount_of(self.front[0].schedule.operator) if self.front else "keep ratio"

    @property
    def always(self) -> tuple[str, ...]:
        """Layers that merge in every point of the front."""
        return tuple(layer for layer in self.layers if self.front and self._merging(layer) == len(self.front))

    @property
    def never(self) -> tuple[str, ...]:
        """Layers that merge in no point of the front."""
        return tuple(layer for layer in self.layers if self.front and self._merging(layer) == 0)

    @property
    def changing(self) -> tuple[str, ...]:
        """Layers that merge in some points of the front only."""
        return tuple(layer for layer in self.layers if 0 < self._merging(layer) < len(self.front))

    @property
    def within_error(self) -> bool:
        """Whether all top-1 of the front differ by no more than their largest standard error."""
        scores = [r.score for r in self.front if r.score is not None]
        errors = [s.top1_se for s in scores if s.top1_se is not None]
        top1 = [s.top1 for s in scores]
        return len(top1) > 1 and len(errors) == len(top1) and bool(max(top1) - min(top1) <= max(errors))

    def _merging(self, layer: str) -> int:
        return sum(record.schedule.keep_ratios[layer] < 1 for record in self.front)


def find(records: Iterable[TrialRecord], costs: Sequence[CostName] = ("gflops",)) -> Findings:
    """Compute the findings from all trials of a study."""
    records = list(records)
    front = sorted(select_front(records, costs), key=lambda record: record.costs(costs))
    without_tokens = select_front(front, costs[:1])
    return Findings(
        front=tuple(front),
        by_tokens=tuple(record for record in front if record not in without_tokens),
        layers=tuple(records[0].schedule.keep_ratios) if records else (),
        importance=layer_importance(records),
    )


def sentences(findings: Findings) -> list[str]:
    """The findings in a few sentences, short for any number of layers."""
    return _front_sentences(findings) + (_importance_sentences(findings) if findings.layers else [])


def write_findings(findings: Findings, path: str | Path) -> Path:
    """Write `findings.json` atomically."""
    document = json.dumps(findings_record(findings), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(path, document + "\n")


def findings_record(findings: Findings) -> dict[str, Any]:
    """The findings as a JSON object, in the units of the records' fields."""
    return {
        "sentences": sentences(findings),
        "front": [_point(record) for record in findings.front],
        "always_merge": list(findings.always),
        "never_merge": list(findings.never),
        "changing": list(findings.changing),
        "on_front_by_tokens_sent": [record.trial for record in findings.by_tokens],
        "top1_within_error": findings.within_error,
        "importance": asdict(findings.importance),
    }


def _point(record: TrialRecord) -> dict[str, Any]:
    return {
        "trial": record.trial,
        "gflops": record.gflops,
        "gflops_sd": record.gflops_sd,
        "gflops_quantile": record.gflops_quantile,
        "latency_ms": record.latency_ms,
        "tokens_sent": record.tokens_sent,
        "top1": record.rescored_top1,
        "top1_se": record.rescored_top1_se,
        "expected_top1": record.expected_top1,
        "keep_ratios": dict(record.schedule.keep_ratios),
        "forms": dict(record.schedule.forms),
    }


def name_layers(layers: Sequence[str], among: Sequence[str]) -> str:
    """Some layers of a network in few words, such as "blocks.0, .3 to .7 and .9".

    All layers of a stage are written as a pattern that search spaces accept, `stages.2.1.transformer.*`.
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
    if len(run) < 3:
        return [(layer, 1) for layer in run]
    return [(f"{run[0]} to {run[-1].removeprefix(_stage(run[-1]))}", len(run))]


def _stage(layer: str) -> str:
    return layer.rpartition(".")[0]


def _front_sentences(findings: Findings) -> list[str]:
    front, always, never, changing = findings.front, findings.always, findings.never, findings.changing
    if not front:
        return ["There is no front yet: no trial within the budget was rescored."]
    if len(front) == 1 and not always:
        return ["The only point of the front is the plain network."]
    names = {1: "The only point of the front merges", 2: "Both points of the front merge"}
    parts = []
    if always:
        shares = sorted({f"{record.kept_share(layer):.3g}" for record in front for layer in always}, key=float)
        kept = shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
        subject = names.get(len(front), f"All {len(front)} points of the front merge")
        parts.append(f"{subject} {name_layers(always, findings.layers)} (keep ratio {kept})")
    else:
        parts.append(f"No layer merges in all {len(front)} points of the front")
    if never:
        parts.append(f"{name_layers(never, findings.layers)} never merge{'s' * (len(never) == 1)}")
    if changing:
        parts.append(f"{name_layers(changing, findings.layers)} merge{'s' * (len(changing) == 1)} in some")
    lines = ["; ".join(parts) + "."]
    if front[0].tokens_sent is not None:
        lines.append(_tokens_sentence(findings))
    if findings.within_error:
        lines.append("The top-1 of these points differ by less than their standard error; their costs differ.")
    return lines


def _tokens_sentence(findings: Findings) -> str:
    sent = sorted(record.tokens_sent or 0.0 for record in findings.front)
    few, most = tokens_text(sent[0]), tokens_text(sent[-1])
    words = f"Points of the front send {few if few == most else f'{few} to {most}'} tokens"
    number = len(findings.by_tokens)
    if number:
        words += f"; {number} of {len(sent)} {'is' if number == 1 else 'are'} on it only because of fewer tokens"
    return f"{words}."


def _importance_sentences(findings: Findings) -> list[str]:
    importance = findings.importance
    if importance.threshold is None:
        return [
            f"{importance.trials} scored trials are too few to estimate the effect of each layer; at least "
            f"{importance.needed} are needed."
        ]
    effects = sorted((e for e in importance.layers if e.distinct), key=lambda e: -e.loss.value if e.loss else 0.0)
    lines = [f"In {importance.trials} scored trials no layer's effect on the score is statistically significant."]
    if effects:
        parts = [_effect_words(effects[0]) + (", the largest effect" if len(effects) > 1 else "")]
        if len(effects) > 1:
            subject = "layers have" if len(effects) > 2 else "layer has"
            parts.append(f"{len(effects) - 1} more {subject} a significant effect")
        others = len(findings.layers) - len(effects)
        parts += [f"effects of the other {others} are not significant"] if others else []
        lines = ["; ".join(parts) + "."]
    saving = max(importance.layers, key=lambda e: e.gflops_saved.value if e.gflops_saved else 0.0)
    if saving.gflops_saved and saving.gflops_saved.value > 0:
        amount = f"{saving.gflops_saved.value:.3f} GFLOPs at keep ratio {saving.keep_ratio:.3g}"
        lines.append(f"Merging saves most at {saving.layer}: {amount}.")
    return lines


def _effect_words(effect: LayerEffect) -> str:
    loss, top1, saved = effect.loss, effect.top1, effect.gflops_saved
    assert loss is not None, effect
    assert top1 is not None, effect
    points = f"top-1 {_points(top1)} points"
    # Dividing by a saving close to zero would give any number.
    if saved is not None and saved.value > 2 * saved.se:
        points += f", {_points(top1, per=0.1 / saved.value)} per 0.1 GFLOPs saved"
    change = f"{'adds' if loss.value > 0 else 'removes'} {abs(loss.value):.3f} ± {loss.se:.3f} nats of loss"
    return f"Merging {effect.layer} to {effect.keep_ratio:.3g} {change} ({points})"


def _points(top1: Estimate, per: float = 1.0) -> str:
    return f"{top1.value * per:+.1f} ± {top1.se * per:.1f}".replace("-", "−")
