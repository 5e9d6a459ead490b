"""The samplers that propose schedules to a study, by name."""

from collections.abc import Callable

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from ltmsearch.errors import InputError


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The Optuna sampler of that name; `auto` is multivariate TPE.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in _SAMPLERS:
        raise InputError(f"unknown sampler {name!r}: known are auto, {', '.join(_SAMPLERS)}")
    return _SAMPLERS[name](seed)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(multivariate=True, n_startup_trials=8, seed=seed)


# GP takes seconds a proposal and does not learn from rejected ones, so TPE is what `auto` means.
_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "auto": _tpe,
    "tpe": _tpe,
    "gp": lambda seed: GPSampler(n_startup_trials=8, seed=seed),
    "nsga2": lambda seed: NSGAIISampler(population_size=20, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
