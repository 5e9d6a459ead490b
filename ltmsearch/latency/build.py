"""Making a latency profile: which subnets are timed, and for how long."""

import math
import time

import numpy as np
import torch

from ltmsearch.callbacks import Callbacks
from ltmsearch.costs import WHOLE_NET, CostModel, cost_model
from ltmsearch.latency.measurement import Session
from ltmsearch.latency.profile import LatencyProfile, TimedSubnet
from ltmsearch.latency.runtimes import open_stage
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.merging import get_operator
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace, SpaceFile

SECONDS = 100.0
"""Aim for the timing of a profile, as far as `FEWEST` subnets allow it."""
FEWEST, MOST = 32, 72
"""Subnets of a profile; more than that only where a layer has so many choices."""
MERGING_SHARE = 2 / 3
"""Of the subnets of a profile, those that merge at a given layer."""
ROUNDS = 2
"""Visits to each."""
PLAIN_VISITS = 5
"""Visits to the plain net before anything else."""


def profile_space(file: SpaceFile, costs: CostModel) -> SearchSpace:
    """All that a search-space file offers, whether it saves multiply-adds or not: time may tell otherwise."""
    file = file.model_copy(update={"ib_weight": None})  # which changes no net
    return SearchSpace.build(
        file,
        costs.layer_grids,
        costs.operator,
        get_operator(costs.operator).forms,
        reduces_cost=lambda _layer, _choice: True,
    )


def target_costs(backbone: str, operator: str, target: LatencyTarget) -> tuple[Supernet, CostModel]:
    """A backbone with any weights for a target's images and classes, and its costs."""
    with torch.random.fork_rng():
        supernet = Supernet(backbone, operator=operator, num_classes=target.num_classes, img_size=target.img_size)
    size = (target.img_size, target.img_size)
    return supernet, cost_model(backbone, supernet.model, size, operator)


def build_profile(
    backbone: str, operator: str, file: SpaceFile, target: LatencyTarget, callbacks: Callbacks
) -> LatencyProfile:
    """Time the plain net and random subnets, and fit the model that predicts all others.

    Args:
        backbone: timm name.
        operator: Merging operator.
        file: The choices whose latency is wanted.
        target: Where and how, on this machine.
        callbacks: Receives progress.
    """
    start = time.monotonic()
    supernet, costs = target_costs(backbone, operator, target)
    space = profile_space(file, costs)
    plain = MergeSchedule.uniform(costs.layers, 1.0, operator)
    with open_stage(target, supernet, sorted({chain.module for chain in costs.chains})) as stage:
        session = Session(stage, plain, device=target.device, threads=target.threads)
        visits = session.visit_all([plain], 1 + PLAIN_VISITS)
        next(visits)
        first = time.monotonic() - start
        for _ in visits:
            pass
        one = (time.monotonic() - start - first) / PLAIN_VISITS
        each = 1.7 * ROUNDS * one  # a subnet, and the plain net beside it
        if target.runtime != "torch":
            each += first  # every net is compiled or exported
        schedules = subnets_to_time(space, int(SECONDS / each))
        callbacks.note(f"timing {len(schedules)} subnets on {target}: about {len(schedules) * each / 60:.1f} minutes")
        callbacks.phase("timing subnets", len(schedules) * ROUNDS)
        for done, _ in enumerate(session.visit_all(schedules, ROUNDS), start=1):
            callbacks.advance(done)
        of_plain = session.reading(plain)
        subnets = []
        for schedule in schedules:
            reading = session.reading(schedule)
            subnets.append(
                TimedSubnet(
                    keep_ratios=dict(schedule.keep_ratios),
                    forms=dict(schedule.forms),
                    reading=reading,
                    extra_ms=session.extra_segments(schedule) or {WHOLE_NET: reading.ms - of_plain.ms},
                )
            )
    return LatencyProfile.fitted(
        costs,
        of_plain,
        subnets,
        backbone=backbone,
        space=space.digest(),
        target=target,
        load=session.load,
        seconds=time.monotonic() - start,
    )


def subnets_to_time(space: SearchSpace, number: int = FEWEST) -> list[MergeSchedule]:
    """Random schedules in which every choice of every layer comes about equally often.

    Of each layer about a third stay plain: merges that accumulate would leave few tokens to all but the first.

    Args:
        space: Of a profile: see `profile_space`.
        number: How many are wanted; kept between `FEWEST` and `MOST` as far as every choice has its turn.
    """
    most_choices = max(len(options) - 1 for options in space.choices)
    number = max(min(max(number, FEWEST), MOST), math.ceil(most_choices / MERGING_SHARE))
    rng = np.random.default_rng(0)
    columns = []
    for options in space.choices:
        column = np.zeros(number, dtype=int)
        if len(options) > 1:
            merging = math.ceil(number * MERGING_SHARE)
            column[rng.permutation(number)[:merging]] = np.resize(rng.permutation(np.arange(1, len(options))), merging)
        columns.append(column)
    rows = np.unique(np.stack(columns, axis=1), axis=0)
    return [space.schedule(row) for row in rows if row.any()]
