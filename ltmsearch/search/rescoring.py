"""Which trials are scored again with the final weights, and what those scores let expect."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from ltmsearch.config.objective import CostName
from ltmsearch.search.pareto import is_non_dominated
from ltmsearch.search.records import TrialRecord

LEAST = 4
"""Nets that a line of top-1 over loss is drawn through at least."""


def select_candidates(records: Iterable[TrialRecord], number: int, cost: CostName = "gflops") -> list[TrialRecord]:
    """The trials most likely to be on the front, front after front, and the baselines to compare with.

    Early scores come from younger shared weights, so the trend over their versions is taken out first. And a trial is
    as good as the better of its ranks by top-1 and by loss, each as the number of the front it lies on: the loss is
    the steadier measure, top-1 the one that counts. Half of the places go by rank; for the other half the range of
    costs is cut into equal parts, and the best of each part is taken, so that the front is looked for everywhere.

    Args:
        records: All trials.
        number: How many feasible trials; scored baselines come on top.
        cost: What the front weighs against top-1.

    Returns:
        Distinct trials in their order.
    """
    scored = [r for r in records if r.state == "scored"]
    baselines = [r for r in scored if r.kind == "baseline"]
    rivals = [r for r in scored if r.feasible and r.kind != "baseline"]
    versions = [r.supernet_version or 0 for r in rivals]
    top1 = remove_trend([_known(r.top1) for r in rivals], versions)
    loss = remove_trend([_known(r.loss) for r in rivals], versions)
    costs = [r.cost(cost) for r in rivals]
    by_top1 = front_ranks(list(zip(top1, costs, strict=True)), (True, False))
    by_loss = front_ranks(list(zip(loss, costs, strict=True)), (False, False))
    order = sorted(
        range(len(rivals)), key=lambda i: (min(by_top1[i], by_loss[i]), by_top1[i] + by_loss[i], rivals[i].trial)
    )
    places = order[: number - number // 2]
    places += _best_by_cost([i for i in order if i not in places], costs, number // 2)
    places += [i for i in order if i not in places][: number - len(places)]
    return sorted([rivals[i] for i in places] + baselines, key=lambda r: r.trial)


def with_expected_top1(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The records with the top-1 that the front goes by: see `expected_top1`; where no loss is known, the measured one.

    Args:
        records: All trials.
    """
    records = list(records)
    known = [r for r in records if r.rescored_top1 is not None and r.rescored_loss is not None]
    values = expected_top1([_known(r.rescored_top1) for r in known], [_known(r.rescored_loss) for r in known])
    expected = dict(zip((r.trial for r in known), values, strict=True))
    return [replace(record, expected_top1=expected.get(record.trial, record.rescored_top1)) for record in records]


def expected_top1(top1: Sequence[float], losses: Sequence[float]) -> list[float]:
    """The mean of the measured top-1 and of what the loss lets expect, net by net.

    Of a few hundred images top-1 tells nets apart by whole images, the loss by how sure each answer is; the loss is the
    steadier of the two, top-1 the one that counts. What a loss lets expect is read off the straight line of top-1 over
    loss through all nets. Where the two do not go together (fewer than `LEAST` nets, or no lower top-1 at a higher
    loss), the measured top-1 stands alone.

    Args:
        top1: In percent, of nets scored with the same weights on the same images.
        losses: Of the same nets, in nats.
    """
    if len(top1) < LEAST or np.ptp(losses) == 0:
        return list(top1)
    slope, start = np.polyfit(losses, top1, deg=1)
    if slope >= 0:
        return list(top1)
    told = np.clip(start + slope * np.asarray(losses), 0, 100)
    return [float(value) for value in (np.asarray(top1) + told) / 2]


def same_nets(records: Iterable[TrialRecord], net: Callable[[TrialRecord], Hashable]) -> list[tuple[TrialRecord, ...]]:
    """Scored trials in groups that are one net to the proxy: one score serves all of a group.

    Args:
        records: All trials.
        net: What tells nets apart at the size of proxy training.

    Returns:
        Groups with a baseline first where they have one, else the cheapest feasible trial.
    """
    groups: dict[Hashable, list[TrialRecord]] = {}
    for record in records:
        if record.state == "scored":
            groups.setdefault(net(record), []).append(record)
    return [
        tuple(sorted(group, key=lambda r: (r.kind != "baseline", not r.feasible, r.gflops, r.trial)))
        for group in groups.values()
    ]


def _best_by_cost(order: Sequence[int], costs: Sequence[float], parts: int) -> list[int]:
    """The first index in `order` within each of `parts` equal parts of the range of costs that has any."""
    if not order or not parts:
        return []
    low, high = min(costs), max(costs)
    part = {i: min(int((costs[i] - low) / ((high - low) or 1.0) * parts), parts - 1) for i in order}
    return [next(i for i in order if part[i] == p) for p in sorted(set(part.values()))]


def remove_trend(values: Sequence[float], versions: Sequence[int]) -> list[float]:
    """Values less what a straight line through them explains by the version of the shared weights.

    Args:
        values: One score per trial.
        versions: How often the shared weights had moved before.

    Returns:
        The differences from the line; the values themselves where fewer than three versions leave no line to fit.
    """
    if len(set(versions)) < 3:
        return list(values)
    slope, start = np.polyfit(versions, values, deg=1)
    return [float(value - (start + slope * version)) for value, version in zip(values, versions, strict=True)]


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a scored trial must have top-1 and loss.")
    return value


def front_ranks(points: list[tuple[float, float]], maximize: tuple[bool, bool]) -> list[int]:
    """The number of the front each point lies on: 0 for the non-dominated, 1 for those left without them, …"""
    ranks = [0] * len(points)
    left, rank = list(range(len(points))), 0
    while left:
        on_front = is_non_dominated(np.array([points[i] for i in left]), maximize)
        if not on_front.any():
            on_front[:] = True
        for index, is_on in zip(list(left), on_front, strict=True):
            ranks[index] = rank
            if is_on:
                left.remove(index)
        rank += 1
    return ranks
