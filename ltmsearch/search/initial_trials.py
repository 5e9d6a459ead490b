"""Initial trials: baselines and schedules that cover the range of costs, tried before the sampler proposes."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import numpy as np

from ltmsearch.costs import in_budget_range, sample_by_cost, spread_order, within_budgets
from ltmsearch.schedules.schedule import Form
from ltmsearch.search.records import Kind
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.trial import IB_WEIGHT

STARTUP_SHARE = 1 / 3
"""Share of the trials that cover the range of costs before the sampler takes over."""
UNIFORM_BASELINES = 2
"""Schedules per form with the same choice at every layer that are tried where baselines are not fitted."""
INITIAL = "initial trials"
"""Study attribute with the initial trials where costs are measured, since they depend on the weights of the time."""


@dataclass(frozen=True, kw_only=True)
class InitialTrial:
    """A schedule to try."""

    indices: np.ndarray
    """(L,) choice indices."""
    kind: Kind
    label: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"indices": self.indices.tolist(), "kind": self.kind, "label": self.label}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The trial of such fields."""
        return cls(**fields | {"indices": np.array(fields["indices"], dtype=int)})


def initial_trials(context: StudyContext, rng: np.random.Generator) -> list[InitialTrial]:
    """The plain network, the baselines, the front of an earlier study, and schedules that cover the range of costs.

    The plain network is scored for comparison even if it is over budget; all others are within it. Schedules that give
    the same network are tried once. Where the sampler screens schedules itself, none are drawn to cover the range; else
    those of an earlier study replace up to half of them.
    """
    known: set[Hashable] = set()
    first = []
    for trial in _in_order(context, rng):
        net = context.network_key(context.space.schedule(trial.indices))
        if net not in known:
            first.append(trial)
        known.add(net)
    return first


def draw_within_budget(context: StudyContext, *place: int) -> InitialTrial:
    """A random schedule within the budget, for a sampler that proposes none."""
    rng = np.random.default_rng(derive_seed(context.settings.seed, *place))
    (indices,) = sample_by_cost(context.space, context.budgets, number=1, rng=rng)
    return InitialTrial(indices=indices, kind="start-up", label="drawn within budget")


def enqueue_params(context: StudyContext, trial: InitialTrial) -> dict[str, float]:
    """Optuna parameters of an enqueued trial, including the IB weight."""
    indices: list[int] = trial.indices.tolist()
    params: dict[str, float] = dict(zip(context.space.names, indices, strict=True))
    if (weights := context.space.ib_weights) is not None:
        # Seeded by the schedule, not by its position: a schedule that is enqueued twice has the same parameters.
        rng = np.random.default_rng(derive_seed(context.settings.seed, *indices))
        params[IB_WEIGHT] = weights.zero if trial.kind == "baseline" else weights.draw(rng)
    return params


def derive_seed(seed: int, *path: int) -> int:
    """A seed for one position in a study."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1)[0])


def _in_order(context: StudyContext, rng: np.random.Generator) -> Iterator[InitialTrial]:
    space, budgets = context.space, context.budgets
    yield InitialTrial(indices=space.plain, kind="baseline", label="plain")
    for label, indices in _baselines(context):
        yield InitialTrial(indices=indices, kind="baseline", label=label)
    earlier = context.prior.schedules(space) if context.prior is not None else []
    earlier = [(label, indices) for label, indices in earlier if in_budget_range(budgets, indices[None])[0]]
    for label, indices in earlier:
        yield InitialTrial(indices=indices, kind="start-up", label=label)
    if context.screens:
        return
    covering = STARTUP_SHARE * context.settings.trials
    covering = max(covering / 2, covering - len(earlier))
    schedules = sample_by_cost(space, budgets, number=round(covering), rng=rng)
    for place in spread_order(len(schedules)):
        yield InitialTrial(indices=schedules[place], kind="start-up")


def _baselines(context: StudyContext) -> Iterator[tuple[str, np.ndarray]]:
    """Names and (L,) indices of the baselines within the budget.

    They are fitted to a budget of multiply-adds. Where costs are measured, or limited by a latency of which only the
    choices of the space are known, they are the costliest schedules with the same choice at every layer.
    """
    space, fitted = context.space, context.settled.baselines
    if fitted is not None:
        found = [(one.label, one.indices(space)) for one in fitted]
        yield from (one for one in found if within_budgets(context.budgets, one[1][None])[0])
        return
    first = space.forms[0]
    for form in space.forms:
        uniform = _same_choices(context, form)
        within = (one for one in uniform if within_budgets(context.budgets, one[1][None])[0])
        for label, indices in islice(within, UNIFORM_BASELINES):
            yield label if form == first else f"{label} {form}", indices


def _same_choices(context: StudyContext, form: Form | None) -> Iterator[tuple[str, np.ndarray]]:
    """Names and (L,) indices of schedules with the same choice at every layer, the costliest first."""
    space = context.space
    if context.measured is not None:
        for place in range(1, max(map(len, space.choices))):
            indices = np.minimum(place, space.cheapest)
            values = {options[i].keep_ratio for options, i in zip(space.choices, indices, strict=True) if i}
            yield f"uniform {min(values):g}" if len(values) == 1 else f"uniform, choice {place}", indices
        return
    ratios = sorted({c.keep_ratio for options in space.choices for c in options if c.keep_ratio < 1}, reverse=True)
    uniform = [(f"uniform {ratio:g}", space.nearest(ratio, form)) for ratio in ratios]
    # Ratios and numbers of tokens to remove have no common order but that of their costs.
    yield from sorted(uniform, key=lambda one: context.costs.macs(space.schedule(one[1])), reverse=True)
