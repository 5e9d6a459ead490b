"""Optuna samplers by name."""

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from ltmsearch.config.names import Sampler
from ltmsearch.errors import check_choice


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    check_choice("the sampler", name, Sampler)
    match name:
        case "gp":
            return GPSampler(n_startup_trials=8, seed=seed)
        case "nsga2":
            return NSGAIISampler(population_size=20, seed=seed)
        case "random":
            return RandomSampler(seed=seed)
        case _:  # auto is TPE: GP takes seconds per proposal and does not learn from rejected ones
            return TPESampler(multivariate=True, n_startup_trials=8, seed=seed)
