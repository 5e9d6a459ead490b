"""What a study tries first, before the sampler proposes: no training is needed to know that these are worth a trial."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np

from ltmsearch.costs import covering_schedules, within, worth_trying
from ltmsearch.prepare import Workbench
from ltmsearch.records import Kind

STARTUP_SHARE = 1 / 3
"""Share of the trials that cover the range of costs before the sampler takes over."""
UNIFORM_BASELINES = 3
"""Uniform schedules within the budget that are tried for comparison, dearest first."""


@dataclass(frozen=True, kw_only=True)
class FirstTrial:
    """A schedule to be tried."""

    indices: np.ndarray
    """(L,) choice indices."""
    kind: Kind
    """What it is tried for."""
    label: str = ""
    """What it is called."""


def first_trials(bench: Workbench, rng: np.random.Generator) -> list[FirstTrial]:
    """The plain net, uniform schedules, the front of an earlier study, and schedules that cover the range of costs.

    The plain net is scored as a reference even where it is over the budget; the others keep it. Of schedules that are
    the same net the first stands for all. What an earlier study found takes the place of as many that cover the range.

    Args:
        bench: What the study works with.
        rng: Draws the schedules that cover the range.
    """
    known: set[Hashable] = set()
    first = []
    for trial in _in_order(bench, rng):
        net = bench.costs.net(bench.space.schedule(trial.indices))
        if net not in known:
            first.append(trial)
        known.add(net)
    return first


def _in_order(bench: Workbench, rng: np.random.Generator) -> Iterator[FirstTrial]:
    space, budgets = bench.space, bench.budgets
    yield FirstTrial(indices=np.zeros(len(space.layers), dtype=int), kind="baseline", label="plain")
    ratios = sorted({c.keep_ratio for options in space.choices for c in options if c.keep_ratio < 1}, reverse=True)
    uniform = [(f"uniform {ratio:g}", space.nearest(ratio)) for ratio in ratios]
    kept = [(label, indices) for label, indices in uniform if within(budgets, indices[None])[0]]
    for label, indices in kept[:UNIFORM_BASELINES]:
        yield FirstTrial(indices=indices, kind="baseline", label=label)
    earlier = bench.prior.schedules(space) if bench.prior is not None else []
    earlier = [(label, indices) for label, indices in earlier if worth_trying(budgets, indices[None])[0]]
    for label, indices in earlier:
        yield FirstTrial(indices=indices, kind="start-up", label=label)
    covering = max(0, round(STARTUP_SHARE * bench.settings.trials) - len(earlier))
    for indices in covering_schedules(space, budgets, number=covering, rng=rng):
        yield FirstTrial(indices=indices, kind="start-up")
