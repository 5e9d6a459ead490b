"""Layout of the front's plot, computed from plain records before anything is drawn."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.numbers import points
from ltmsearch.reporting.verdict import Verdict
from ltmsearch.search.curve_points import Curve, CurvePoint
from ltmsearch.search.records import TrialRecord, plain_network, select_front

Group = Literal["searched", "start-up", "baseline", "over budget", "below range", "failed"]
Range = tuple[float, float]
Point = NDArray[np.float64]
"""(2,) place in the plot."""
UNSCORED = ("over budget", "below range", "failed")
PLOT = np.array([880, 430])
"""Usual size of the plot between its axes, in pixels."""
CHARACTER = 7.5
"""Usual width of a character, in pixels."""
WAYS = ((-1, 1), (1, -1), (1, 1), (-1, -1), (0, 1), (0, -1))
"""Directions from a mark to its label, right and up. The front's line rises: it is rarely above left or below right."""
LED_WAYS = (*WAYS, (1, 2), (-1, 2), (-1, -2), (1, -2))
"""Those of labels away from their marks."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """Words beside a mark."""

    record: TrialRecord
    words: str
    offset: tuple[float, float]
    """From the mark to the middle of the words, in pixels to the right and upwards."""
    led: bool
    """Whether a line leads from the mark to the words, which are away from it."""


@dataclass(frozen=True, kw_only=True)
class FrontLayout:
    """Everything that `front_figure` draws, as plain data."""

    marks: dict[tuple[Group, bool], tuple[TrialRecord, ...]]
    """(Group, whether its height is of reported images) → its records. No entry is empty."""
    heights: Mapping[int, float]
    """Trial → top-1 less the plain network's, in points: of finalists on reported images; of other scored trials on
    search images, when both ran. Without a score of the plain network, those others have no height."""
    plain: str
    """The plain network in words, with its top-1 on the reported images and its cost, if known."""
    front: tuple[TrialRecord, ...]
    """The non-dominated rescored trials, lowest cost first."""
    by_second: tuple[TrialRecord, ...]
    """Those that are on the front only by its second cost: not on the line."""
    not_better: tuple[TrialRecord, ...]
    """Those whose top-1 is not significantly higher than that of a cheaper one."""
    line: tuple[tuple[float, float], ...]
    """(Cost, height) of the front by the first cost."""
    labels: tuple[Label, ...]
    """Front points with their numbers and other baselines with their names, where they cover least. Baselines whose
    names would cover another label have none."""
    x_range: Range
    """Costs in view: those of the front, and slightly beyond the budget."""
    y_range: Range
    """Heights in view; 0, the plain network, is always among them."""
    beyond: tuple[TrialRecord, ...]
    """Baselines that cost more than the view shows, and have another height than the plain network, which has a line
    anyway; labels at the right edge name them."""
    hidden: tuple[TrialRecord, ...]
    """Other records outside the view."""
    unplaced: tuple[TrialRecord, ...]
    """Scored trials without a height."""
    curves: Mapping[Curve, tuple[tuple[float, float, str], ...]]
    """Curve of baselines → (cost, height, words) of its networks, the cheapest first and the plain network last."""


def front_layout(
    records: Iterable[TrialRecord], axis: CostAxis, verdict: Verdict | None = None, curves: Sequence[CurvePoint] = ()
) -> FrontLayout:
    """Compute the layout of the plot. The view ends slightly beyond the budget."""
    records = sorted(records, key=lambda r: r.trial)
    heights = _heights(records)
    placed = [r for r in records if r.trial in heights]
    front = tuple(sorted(select_front(records, axis), key=lambda r: r.costs(axis.costs)))
    drawn = tuple(r for r in front if r.trial in heights)
    best = select_front(drawn, replace(axis, second=None))
    line = sorted(best, key=lambda r: r.cost(axis.name))
    usual = _usual(placed, heights)
    x_range = _x_range(usual or records, axis, front)
    beyond = [r for r in placed if r.kind == "baseline" and r.cost(axis.name) > x_range[1]]
    in_columns = [r for r in usual if r in beyond or _inside(r.cost(axis.name), x_range)]
    lines = _curves(curves, records) if axis.name == "gflops" else {}
    ends = [end for each in lines.values() for end in each if _inside(end[0], x_range)]
    along = [height for _, height, _ in ends if height >= _floor(placed, heights)]
    y_range = _y_range(in_columns, drawn, heights, along)
    drawable = [r for r in records if not r.score or r.trial in heights]
    seen = [
        r
        for r in drawable
        if _inside(r.cost(axis.name), x_range) and _inside(heights.get(r.trial, y_range[0]), y_range)
    ]
    looks = [(group, final) for group in get_args(Group) for final in (True, False)]
    shares = _shares({r.trial: (r.cost(axis.name), heights[r.trial]) for r in placed}, x_range, y_range)
    return FrontLayout(
        marks={look: same for look in looks if (same := tuple(r for r in drawable if _look(r) == look))},
        heights=heights,
        plain=_plain_words(records, axis),
        front=drawn,
        by_second=tuple(r for r in drawn if r not in best),
        not_better=tuple(r for r in drawn if verdict is not None and r.trial in verdict.not_better),
        line=tuple((r.cost(axis.name), heights[r.trial]) for r in line),
        labels=_labels(
            _named([r for r in placed if r not in beyond], drawn, verdict),
            shares,
            _occupied(shares, drawn, line, y_range),
            {r.trial for r in drawn},
        ),
        x_range=x_range,
        y_range=y_range,
        beyond=tuple(r for r in beyond if not r.is_plain or abs(heights[r.trial]) >= 0.05),
        hidden=tuple(r for r in drawable if r not in seen and r not in beyond),
        unplaced=tuple(r for r in records if r not in drawable),
        curves=lines,
    )


def _curves(
    curves: Sequence[CurvePoint], records: Sequence[TrialRecord]
) -> dict[Curve, tuple[tuple[float, float, str], ...]]:
    plain = plain_network(records)
    end = [] if plain is None else [(plain.gflops, plain.difference or 0.0, "plain network, with the shared weights")]
    found = {}
    for curve in get_args(Curve):
        own = sorted((point for point in curves if point.curve == curve), key=lambda point: point.gflops)
        words = [f"<b>{p.label}</b><br>{p.gflops:.4f} GFLOPs<br>− plain: {_less(p)} points" for p in own]
        if own:
            found[curve] = (*((p.gflops, p.difference, text) for p, text in zip(own, words, strict=True)), *end)
    return found


def _less(point: CurvePoint) -> str:
    return points(point.difference, point.difference_se)


def _heights(records: Sequence[TrialRecord]) -> dict[int, float]:
    plain = plain_network(records)
    reference = None if plain is None else plain.top1
    heights = {}
    for record in records:
        if record.difference is not None:
            heights[record.trial] = record.difference
        elif record.top1 is not None and reference is not None:
            heights[record.trial] = record.top1 - reference
    return heights


def _plain_words(records: Sequence[TrialRecord], axis: CostAxis) -> str:
    plain, final = plain_network(records), [r for r in records if r.difference is not None]
    words = ["plain network"]
    if final:
        words.append(f"{(final[0].report_top1 or 0.0) - (final[0].difference or 0.0):.1f} %")
    return ", ".join(words if plain is None else [*words, axis.text(plain.cost(axis.name))])


def _inside(value: float, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


def _look(record: TrialRecord) -> tuple[Group, bool]:
    return record.kind if record.state == "scored" else record.state, record.difference is not None


def _usual(placed: Sequence[TrialRecord], heights: Mapping[int, float]) -> list[TrialRecord]:
    """All trials but outliers so low that they would flatten the rest of the plot."""
    return [r for r in placed if heights[r.trial] >= _floor(placed, heights)]


def _floor(placed: Sequence[TrialRecord], heights: Mapping[int, float]) -> float:
    """Height below which something is an outlier."""
    if not placed:
        return -np.inf
    quarter, most = np.quantile([heights[r.trial] for r in placed], [0.25, 0.75])
    return float(quarter - max(3 * (most - quarter), 5.0))


def _x_range(shown: Sequence[TrialRecord], axis: CostAxis, front: Sequence[TrialRecord]) -> Range:
    """From the cheapest feasible trial to slightly beyond the budget; more expensive scored trials only if near."""
    useful = [r.cost(axis.name) for r in shown if r.feasible] or [r.cost(axis.name) for r in shown]
    useful += [] if axis.budget is None else [axis.budget]
    if axis.name == "latency_ms":
        useful += [r.latency_measured_ms for r in front if r.latency_measured_ms is not None]
    if not useful:
        return 0.0, 1.0
    low, high = min(useful), max(useful)
    span = max(high - low, 0.02 * high)
    costs = [r.cost(axis.name) for r in shown if r.score]
    near = [cost + 0.08 * span for cost in costs if cost <= high + 0.4 * span]
    # The strip beyond the budget has room for the labels at its right edge.
    beyond = high + (0.08 if axis.name == "tokens_sent" else 0.25) * span
    return low - 0.08 * span, max([beyond, *near])


def _y_range(
    shown: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    heights: Mapping[int, float],
    along: Sequence[float],
) -> Range:
    ends = [0.0, *along]
    for record in shown:
        error = (record.difference_se or 0.0) * (record in front)
        ends += [heights[record.trial] - error, heights[record.trial] + error]
    height = max(ends) - min(ends) + 1
    return min(ends) - 0.08 * height, max(ends) + 0.13 * height


def _named(
    placed: Sequence[TrialRecord], front: Sequence[TrialRecord], verdict: Verdict | None
) -> list[tuple[TrialRecord, str]]:
    """The front, then the other baselines, with the words of their labels."""
    shown = [*front, *(r for r in placed if r.kind == "baseline" and r not in front)]
    words = {r.trial: str(r.trial) if r in front else r.label for r in shown}
    if verdict is not None and verdict.recommended in words:
        words[verdict.recommended] += ", recommended"
    return [(r, words[r.trial]) for r in shown]


def _shares(at: Mapping[int, tuple[float, float]], x_range: Range, y_range: Range) -> dict[int, Point]:
    """Places as shares of the view's width and height."""
    corner, size = np.array([x_range[0], y_range[0]]), np.array([np.ptp(x_range), np.ptp(y_range)])
    return {trial: (np.array(place) - corner) / size for trial, place in at.items()}


def _occupied(
    shares: Mapping[int, Point], front: Sequence[TrialRecord], line: Sequence[TrialRecord], y_range: Range
) -> list[Point]:
    """Points that labels should not cover: marks, and points along the front's line and error bars."""
    occupied = list(shares.values())
    for a, b in pairwise(shares[record.trial] for record in line):
        occupied += [a + (b - a) * part for part in np.linspace(0, 1, 20)]
    for record in front:
        bar = np.array([0, (record.difference_se or 0.0) / np.ptp(y_range)])
        occupied += [shares[record.trial] + bar * part for part in np.linspace(-1, 1, 9)]
    return occupied


def _labels(
    named: Sequence[tuple[TrialRecord, str]],
    shares: Mapping[int, Point],
    occupied: Sequence[Point],
    always: Collection[int],
) -> tuple[Label, ...]:
    """Labels, each at the place where it covers the fewest earlier labels and occupied points.

    Those that would cover an earlier label are left out, except of the trials in `always`.
    """
    labels: list[Label] = []
    written: list[Point] = []
    for record, words in named:
        half = np.array([len(words) * CHARACTER / 2, 8])
        ways = [(way, led) for led in (False, True) for way in (LED_WAYS if led else WAYS)]
        offsets = [_offset(way, half, led=led) for way, led in ways]
        middles = [shares[record.trial] + offset / PLOT for offset in offsets]
        lines = [_line(shares[record.trial], at) if led else [] for at, (_, led) in zip(middles, ways, strict=True)]
        covered = [
            _inside_box(written, at, half / PLOT + np.array([0.005, 0.02]))
            + sum(_inside_box(written, point, np.array([0.008, 0.02])) for point in line)
            for at, line in zip(middles, lines, strict=True)
        ]
        marks = [_inside_box(occupied, at, half / PLOT + 0.008) for at in middles]
        cut = [bool((np.abs(at - 0.5) > 0.5 - half / PLOT).any()) for at in middles]
        # A line to the words is better than words over three marks.
        best = min(range(len(ways)), key=lambda n: (cut[n], covered[n], marks[n] + 2.5 * ways[n][1], n))
        if record.trial in always or not covered[best]:
            right, up = offsets[best].tolist()
            labels.append(Label(record=record, words=words, offset=(right, up), led=ways[best][1]))
            written += [middles[best] + half / PLOT * (end, 0) for end in np.linspace(-1, 1, len(words) + 1)]
            written += lines[best]
    return tuple(labels)


def _line(mark: Point, words: Point) -> list[Point]:
    """Points of the line from a mark to the middle of its words, between both."""
    return [mark + (words - mark) * part for part in np.linspace(0.3, 0.75, 6)]


def _offset(way: tuple[int, int], half: Point, *, led: bool) -> Point:
    """From a mark to the middle of words of half a size, in pixels."""
    right, up = way
    if led:
        return np.array([right * (0.7 * half[0] + 8), up * 38.0])
    return np.array([right * (half[0] + 9), up * (21.0 if right else 24.0)])


def _inside_box(points: Sequence[Point], middle: Point, half: Point) -> int:
    return int((np.abs(np.array(points).reshape(-1, 2) - middle) < half).all(axis=1).sum())
