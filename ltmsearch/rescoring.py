"""Which trials are scored again with the final weights."""

from collections.abc import Iterable

import numpy as np

from ltmsearch.front import is_non_dominated
from ltmsearch.records import TrialRecord


def choose_candidates(records: Iterable[TrialRecord], number: int) -> list[TrialRecord]:
    """The trials most likely to be on the front, front after front, and the baselines to compare with.

    Early scores come from younger weights and few images, so both steady and unsteady measures get a say: a trial is as
    good as the better of its ranks by top-1 and by loss, each as the number of the front it lies on.

    Args:
        records: All trials.
        number: How many feasible trials; scored baselines come on top.

    Returns:
        Distinct trials in their order.
    """
    scored = [r for r in records if r.state == "scored"]
    baselines = [r for r in scored if r.kind == "baseline"]
    rivals = [r for r in scored if r.feasible and r.kind != "baseline"]
    by_top1 = front_ranks([(r.top1 or 0.0, r.gflops) for r in rivals], (True, False))
    by_loss = front_ranks([(np.inf if r.loss is None else r.loss, r.gflops) for r in rivals], (False, False))
    order = sorted(
        range(len(rivals)), key=lambda i: (min(by_top1[i], by_loss[i]), by_top1[i] + by_loss[i], rivals[i].trial)
    )
    chosen = [rivals[i] for i in order[:number]] + baselines
    return sorted(chosen, key=lambda r: r.trial)


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
