"""Final scores: which trials are scored again with the final weights."""

from collections.abc import Callable, Hashable, Iterable, Sequence

from ltmsearch.config.objective import CostAxis
from ltmsearch.search.pareto import front_ranks
from ltmsearch.search.records import TrialRecord


def select_candidates(records: Iterable[TrialRecord], number: int, axis: CostAxis) -> list[TrialRecord]:
    """The trials most likely to be on the front, and the baselines to compare with.

    Half of the places go by front number, by the measure when the trial ran and the costs. For the other half the range
    of each cost is cut into equal parts, and the best trial of each part is taken, so that candidates cover the whole
    range; two costs share these places. Scored baselines are added to the `number` candidates.

    Returns:
        Distinct trials, by number.
    """
    scored = [r for r in records if r.state == "scored"]
    baselines = [r for r in scored if r.kind == "baseline"]
    rivals = [r for r in scored if r.feasible and r.kind != "baseline"]
    values = [r.costs(axis.costs) for r in rivals]
    measured = [_required(r.told(axis.measure)) for r in rivals]
    points = [(value, *cost) for value, cost in zip(measured, values, strict=True)]
    ranks = front_ranks(points, [False] * (1 + len(axis.costs)))
    order = sorted(range(len(rivals)), key=lambda i: (ranks[i], measured[i], rivals[i].trial))
    places = order[: number - number // 2]
    for place in range(len(axis.costs)):
        parts = (number // 2 + place) // len(axis.costs)
        places += _best_by_cost([i for i in order if i not in places], [each[place] for each in values], parts)
    places += [i for i in order if i not in places][: number - len(places)]
    return sorted([rivals[i] for i in places] + baselines, key=lambda r: r.trial)


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


def _best_by_cost(order: Sequence[int], costs: Sequence[float], parts: int) -> list[int]:
    """The first index in `order` within each of `parts` equal parts of the cost range."""
    if not order or not parts:
        return []
    low, high = min(costs), max(costs)
    part = {i: min(int((costs[i] - low) / ((high - low) or 1.0) * parts), parts - 1) for i in order}
    return [next(i for i in order if part[i] == p) for p in sorted(set(part.values()))]


def _required(value: float | None) -> float:
    if value is None:
        raise ValueError("a scored trial must have the measure of its study.")
    return value
