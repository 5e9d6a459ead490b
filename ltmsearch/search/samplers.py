"""Optuna samplers by name, and the one that proposes what screening promoted."""

from collections.abc import Callable, Mapping
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from ltmsearch.config.names import Sampler
from ltmsearch.errors import check_choice

Proposer = Callable[[FrozenTrial], Mapping[str, Any]]
"""Parameters of a new trial by name."""


class ScreeningSampler(BaseSampler):
    """Gives each new trial all its parameters at once; trials that are enqueued keep their own.

    Args:
        space: Every parameter that a trial has, by name.
        propose: Screens when it has no proposal left, and returns the next one.
        seed: For parameters outside of the space, which are drawn at random.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], propose: Proposer, *, seed: int) -> None:
        self.space, self.propose = dict(space), propose
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters; none for a trial that was enqueued."""
        return {} if is_enqueued(trial) else self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next proposal."""
        return dict(self.propose(trial)) if search_space else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for what an enqueued trial leaves open."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def is_enqueued(trial: FrozenTrial) -> bool:
    """Whether a trial was given its parameters when it was created."""
    return "fixed_params" in trial.system_attrs


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    """A sampler of Optuna; `auto` is TPE, for studies whose schedules are not screened."""
    check_choice("the sampler", name, Sampler)
    match name:
        case "gp":
            return GPSampler(n_startup_trials=8, seed=seed)
        case "nsga2":
            return NSGAIISampler(population_size=20, seed=seed)
        case "random":
            return RandomSampler(seed=seed)
        case _:  # GP takes seconds per proposal and does not learn from rejected ones
            return TPESampler(multivariate=True, n_startup_trials=8, seed=seed)
