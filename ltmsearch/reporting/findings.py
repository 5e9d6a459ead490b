"""Findings of a search: its verdict, and which layers the front merges."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from ltmsearch.config.objective import CostAxis, tokens_text
from ltmsearch.io.files import write_atomic
from ltmsearch.reporting.ib_effect import IBEffect, ib_effect
from ltmsearch.reporting.verdict import Verdict, judge, verdict_sentences
from ltmsearch.schedules.schedule import amount_of
from ltmsearch.search.answers import Answers
from ltmsearch.search.curve_points import CurvePoint
from ltmsearch.search.records import FRONT_COLUMNS, TrialRecord, select_front
from ltmsearch.search.run import Run

NAMES = 4
"""Most layer names or ranges in a list of a sentence; in longer lists the last entry counts the others."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Summary of a study beside its table."""

    axis: CostAxis
    """The front's measure and costs."""
    front: tuple[TrialRecord, ...]
    """The non-dominated rescored trials, lowest cost first."""
    layers: tuple[str, ...]
    """Every layer that may merge, in network order."""
    verdict: Verdict | None = None
    """None before the final scores."""
    ib_effect: IBEffect | None = None
    """None where the IB weight is not searched."""
    by_tokens: tuple[TrialRecord, ...] = ()
    """Points of a front with three objectives that are on it only because they send fewer tokens."""
    curves: tuple[CurvePoint, ...] = ()
    """Baselines at costs around the budget."""

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

    def _merging(self, layer: str) -> int:
        return sum(record.schedule.keep_ratios[layer] < 1 for record in self.front)


def find(
    records: Iterable[TrialRecord],
    axis: CostAxis,
    answers: Answers | None = None,
    tolerance: float = 0.5,
    curves: Iterable[CurvePoint] = (),
) -> Findings:
    """Compute the findings from all trials of a study, and from the answers of its finalists.

    `tolerance` is the loss of top-1 that the study's user accepts, in points.
    """
    records = list(records)
    front = sorted(select_front(records, axis), key=lambda record: record.costs(axis.costs))
    without_tokens = select_front(front, replace(axis, second=None))
    return Findings(
        axis=axis,
        front=tuple(front),
        by_tokens=tuple(record for record in front if record not in without_tokens),
        layers=tuple(records[0].schedule.keep_ratios) if records else (),
        ib_effect=ib_effect(records, axis),
        verdict=None if answers is None else judge(records, answers, axis, tolerance=tolerance),
        curves=tuple(curves),
    )


def findings_of(run: Run) -> Findings:
    """Compute the findings of a run directory."""
    return find(run.trials, run.settings.axis, run.answers, run.settings.tolerance, run.curves)


def sentences(findings: Findings) -> list[str]:
    """The findings in a few sentences, short for any number of layers: the verdict, then the front."""
    return verdict_lines(findings) + front_lines(findings)


def verdict_lines(findings: Findings) -> list[str]:
    """The verdict in sentences; none before the final scores."""
    return [] if findings.verdict is None else verdict_sentences(findings.verdict, findings.axis)


def write_findings(findings: Findings, path: str | Path) -> Path:
    """Write `findings.json` atomically."""
    document = json.dumps(findings_record(findings), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(path, document + "\n")


def findings_record(findings: Findings) -> dict[str, Any]:
    """The findings as a JSON object, in the units of the records' fields."""
    return {
        "sentences": sentences(findings),
        "verdict": None if findings.verdict is None else findings.verdict.as_json(),
        "front": [_point(record) for record in findings.front],
        "always_merge": list(findings.always),
        "never_merge": list(findings.never),
        "changing": list(findings.changing),
        "ib_weight": None if findings.ib_effect is None else findings.ib_effect.as_json(),
        "on_front_by_tokens_sent": [record.trial for record in findings.by_tokens],
    }


def _point(record: TrialRecord) -> dict[str, Any]:
    schedule = record.schedule
    parts = {"img_size": schedule.img_size, "keep_ratios": dict(schedule.keep_ratios), "forms": dict(schedule.forms)}
    return {name: getattr(record, name) for name in FRONT_COLUMNS if name not in parts} | parts


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


def front_lines(findings: Findings) -> list[str]:
    """The layers that the front merges, the tokens that it sends, and what the IB weight does, in a sentence each."""
    effect = findings.ib_effect
    return _layer_lines(findings) + ([] if effect is None else [effect.sentence(findings.axis)])


def _layer_lines(findings: Findings) -> list[str]:
    front, always, never, changing = findings.front, findings.always, findings.never, findings.changing
    if not front:
        return ["There is no front yet: no trial within the budget was rescored."]
    if len(front) == 1 and not always:
        size = front[0].schedule.img_size
        return [f"The only point of the front is the plain network{f' at {size} px' if size else ''}."]
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
    return lines


def _tokens_sentence(findings: Findings) -> str:
    sent = sorted(record.tokens_sent or 0.0 for record in findings.front)
    few, most = tokens_text(sent[0]), tokens_text(sent[-1])
    words = f"Points of the front send {few if few == most else f'{few} to {most}'} tokens"
    number = len(findings.by_tokens)
    if number:
        words += f"; {number} of {len(sent)} {'is' if number == 1 else 'are'} on it only because of fewer tokens"
    return f"{words}."
