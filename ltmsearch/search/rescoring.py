"""Final scores: which trials are scored again with the final weights, and the top-1 predicted from the loss."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from ltmsearch.config.objective import CostName, check_costs
from ltmsearch.search.pareto import front_ranks
from ltmsearch.search.records import TrialRecord

MIN_NETWORKS = 4
"""Networks needed to fit a line of top-1 over loss."""


def select_candidates(
    records: Iterable[TrialRecord], number: int, costs: Sequence[CostName] = ("gflops",)
) -> list[TrialRecord]:
    """The trials most likely to be on the front, and the baselines to compare with.

    Early scores come from younger shared weights, so the trend over weight versions is removed first. A trial's rank is
    the better of its front numbers by top-1 and by loss: the loss is the steadier measure, top-1 the one that matters.
    Half of the places go by rank. For the other half the range of each cost is cut into equal parts, and the best trial
    of each part is taken, so that candidates cover the whole range; two costs share these places. Scored baselines are
    added to the `number` candidates.

    Returns:
        Distinct trials, by number.
    """
    check_costs("candidates", costs)
    scored = [r for r in records if r.state == "scored"]
    baselines = [r for r in scored if r.kind == "baseline"]
    rivals = [r for r in scored if r.feasible and r.kind != "baseline"]
    versions = [r.supernet_version or 0 for r in rivals]
    top1 = remove_trend([_required(r.top1) for r in rivals], versions)
    loss = remove_trend([_required(r.loss) for r in rivals], versions)
    values, cheaper = [r.costs(costs) for r in rivals], [False] * len(costs)
    by_top1 = front_ranks([(score, *cost) for score, cost in zip(top1, values, strict=True)], [True, *cheaper])
    by_loss = front_ranks([(score, *cost) for score, cost in zip(loss, values, strict=True)], [False, *cheaper])

    def rank(i: int) -> tuple[int, int, int]:
        return min(by_top1[i], by_loss[i]), by_top1[i] + by_loss[i], rivals[i].trial

    order = sorted(range(len(rivals)), key=rank)
    places = order[: number - number // 2]
    for axis in range(len(costs)):
        parts = (number // 2 + axis) // len(costs)
        places += _best_by_cost([i for i in order if i not in places], [each[axis] for each in values], parts)
    places += [i for i in order if i not in places][: number - len(places)]
    return sorted([rivals[i] for i in places] + baselines, key=lambda r: r.trial)


def with_expected_top1(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The records with `expected_top1` filled in; without a loss it is the measured top-1."""
    records = list(records)
    known = [r for r in records if r.rescored_top1 is not None and r.rescored_loss is not None]
    values = expected_top1([_required(r.rescored_top1) for r in known], [_required(r.rescored_loss) for r in known])
    expected = dict(zip((r.trial for r in known), values, strict=True))
    return [replace(record, expected_top1=expected.get(record.trial, record.rescored_top1)) for record in records]


def expected_top1(top1: Sequence[float], losses: Sequence[float]) -> list[float]:
    """The mean of the measured top-1 and of the top-1 predicted from the loss, for each network.

    On a few hundred images top-1 changes in steps of whole images, while the loss is steady. The prediction is a
    straight line of top-1 over loss through all networks. With fewer than `MIN_NETWORKS` networks, or if top-1 does not
    fall with the loss, the measured top-1 is returned. Losses are in nats, top-1 in percent.
    """
    if len(top1) < MIN_NETWORKS or np.ptp(losses) == 0:
        return list(top1)
    slope, intercept = np.polyfit(losses, top1, deg=1)
    if slope >= 0:
        return list(top1)
    predicted = np.clip(intercept + slope * np.asarray(losses), 0, 100)
    return [float(value) for value in (np.asarray(top1) + predicted) / 2]


def same_nets(records: Iterable[TrialRecord], net: Callable[[TrialRecord], Hashable]) -> list[tuple[TrialRecord, ...]]:
    """Scored trials grouped by the network they are at the proxy's image size: one score serves a group.

    A baseline comes first if there is one, else the cheapest feasible trial.
    """
    groups: dict[Hashable, list[TrialRecord]] = {}
    for record in records:
        if record.state == "scored":
            groups.setdefault(net(record), []).append(record)
    return [
        tuple(sorted(group, key=lambda r: (r.kind != "baseline", not r.feasible, r.gflops, r.trial)))
        for group in groups.values()
    ]


def remove_trend(values: Sequence[float], versions: Sequence[int]) -> list[float]:
    """Residuals of a straight line through values over weight versions; the values with fewer than three versions."""
    if len(set(versions)) < 3:
        return list(values)
    slope, intercept = np.polyfit(versions, values, deg=1)
    return [float(value - (intercept + slope * version)) for value, version in zip(values, versions, strict=True)]


def _best_by_cost(order: Sequence[int], costs: Sequence[float], parts: int) -> list[int]:
    """The first index in `order` within each of `parts` equal parts of the cost range."""
    if not order or not parts:
        return []
    low, high = min(costs), max(costs)
    part = {i: min(int((costs[i] - low) / ((high - low) or 1.0) * parts), parts - 1) for i in order}
    return [next(i for i in order if part[i] == p) for p in sorted(set(part.values()))]


def _required(value: float | None) -> float:
    if value is None:
        raise ValueError("a scored trial must have top-1 and loss.")
    return value
