"""Measurement of a latency profile: choice of subnets and duration."""

import math
import time

import numpy as np
import torch

from ltmsearch.callbacks import Callbacks, about
from ltmsearch.costs import WHOLE_NET, CostModel, cost_model
from ltmsearch.errors import InputError
from ltmsearch.latency.measurement import InterleavedTimer
from ltmsearch.latency.profile import LatencyProfile, TimedSubnet
from ltmsearch.latency.runtimes import open_runner
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.merging import get_operator
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile

SECONDS = 100.0
"""Intended duration of a profile, as far as `FEWEST` subnets allow."""
FEWEST, MOST = 32, 72
"""Subnets of a profile; more only if a layer has more choices."""
MERGING_SHARE = 2 / 3
"""Share of the subnets that merge at a given layer."""
ROUNDS = 2
"""Samples of each subnet."""
PLAIN_SAMPLES = 5
"""Samples of the plain network before anything else."""


def profile_space(file: SpaceFile, costs: CostModel) -> SearchSpace:
    """Return all choices of a search-space file, including those that save time but no multiply-adds."""
    file = file.model_copy(update={"ib_weight": None})  # does not affect the network
    return SearchSpace.build(file, costs, reduces_cost=lambda _layer, _choice: True)


def refuse_thresholds(operator: str) -> None:
    """Raise an `InputError` for an unknown operator, or one that merges by threshold: its time depends on the image."""
    if get_operator(operator).adaptive:
        raise InputError(
            f"the latency of {operator} merging depends on the image, and random images stand for none: choose another "
            "operator, or time your own images with `ltmsearch validate`"
        )


def target_costs(backbone: str, operator: str, target: LatencyTarget) -> tuple[Supernet, CostModel]:
    """Return a supernet with random weights for a target's images and classes, and its cost model."""
    with torch.random.fork_rng():
        supernet = Supernet(backbone, operator=operator, any_size=False, img_size=target.img_size, **target.network)
    size = (target.img_size, target.img_size)
    return supernet, cost_model(backbone, supernet.model, size, operator)


def build_profile(
    backbone: str, operator: str, file: SpaceFile, target: LatencyTarget, callbacks: Callbacks
) -> LatencyProfile:
    """Time the plain network and random subnets, and fit the model that predicts all others."""
    start = time.monotonic()
    supernet, costs = target_costs(backbone, operator, target)
    space = profile_space(file, costs)
    plain = MergeSchedule.uniform(costs.layers, 1.0, operator)
    with open_runner(target, supernet, sorted({chain.module for chain in costs.chains})) as runner:
        timer = InterleavedTimer(runner, plain, device=target.device, threads=target.threads)
        seconds = _seconds_per_subnet(timer, plain, target)
        schedules = subnets_to_time(space, int(SECONDS / seconds))
        callbacks.note(f"timing {len(schedules)} subnets on {target}: {about(len(schedules) * seconds)}")
        callbacks.phase("timing subnets", len(schedules) * ROUNDS)
        for done, _ in enumerate(timer.sample(schedules, ROUNDS), start=1):
            callbacks.advance(done)
        plain_latency = timer.measurement(plain)
        subnets = []
        for schedule in schedules:
            latency = timer.measurement(schedule)
            subnets.append(
                TimedSubnet(
                    keep_ratios=dict(schedule.keep_ratios),
                    forms=dict(schedule.forms),
                    reading=latency,
                    extra_ms=timer.extra_module_ms(schedule) or {WHOLE_NET: latency.ms - plain_latency.ms},
                )
            )
    return LatencyProfile.fitted(
        costs,
        plain_latency,
        subnets,
        backbone=backbone,
        space=space.digest(),
        target=target,
        load=timer.load,
        seconds=time.monotonic() - start,
    )


def _seconds_per_subnet(timer: InterleavedTimer, plain: MergeSchedule, target: LatencyTarget) -> float:
    start = time.monotonic()
    samples = timer.sample([plain], 1 + PLAIN_SAMPLES)
    next(samples)
    first = time.monotonic() - start
    for _ in samples:
        pass
    seconds = 1.7 * ROUNDS * (time.monotonic() - start - first) / PLAIN_SAMPLES  # with the plain network's samples
    return seconds if target.runtime == "torch" else seconds + first  # each network is compiled or exported


def subnets_to_time(space: SearchSpace, number: int = FEWEST) -> list[MergeSchedule]:
    """Draw random schedules in which every choice of every layer occurs about equally often.

    About a third of the choices of each layer stay plain: more merging would leave few tokens to later layers.
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
