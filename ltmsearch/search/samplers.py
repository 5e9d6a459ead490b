"""Optuna samplers by name."""

from collections.abc import Callable

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from ltmsearch.errors import InputError


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The Optuna sampler of that name; `auto` is multivariate TPE.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in _SAMPLERS:
        raise InputError(f"`--sampler` must be auto, {', '.join(_SAMPLERS)}, but got {name!r}")
    return _SAMPLERS[name](seed)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(multivariate=True, n_startup_trials=8, seed=seed)


# `auto` is TPE: GP takes seconds per proposal and does not learn from rejected ones.
_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "auto": _tpe,
    "tpe": _tpe,
    "gp": lambda seed: GPSampler(n_startup_trials=8, seed=seed),
    "nsga2": lambda seed: NSGAIISampler(population_size=20, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
