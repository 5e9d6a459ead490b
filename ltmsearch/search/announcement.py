"""The announcement of how long a search is expected to take."""

import numpy as np

from ltmsearch.callbacks import Callbacks, about
from ltmsearch.search.baseline_curves import further_networks
from ltmsearch.search.initial_trials import UNIFORM_BASELINES, derive_seed, initial_trials
from ltmsearch.search.masks import fitting_seconds
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.timing import SET_UP, WARM_UP, Clock


def announce(
    context: StudyContext,
    clock: Clock,
    callbacks: Callbacks,
    *,
    first_step: int | None,
    trials: int,
    probe: bool = False,
) -> None:
    """Measure steps of every kind that is left, which counts as set-up, and tell the expected duration of this call.

    Args:
        first_step: The first step of the warm-up that is to be taken; None after the warm-up.
        trials: Number of trials that are to be trained.
        probe: Whether new classifiers are still to be fitted.
    """
    with clock.part(SET_UP):
        baselines = 1 + UNIFORM_BASELINES
        if context.measured is None:  # else they depend on weights that are not trained yet
            first = initial_trials(context, np.random.default_rng(derive_seed(context.settings.seed)))
            baselines = sum(trial.kind == "baseline" for trial in first)
        scored: dict[str, int] = {"baselines": baselines, "curves": len(further_networks(context))}
        expected = context.expected_seconds(first_step=first_step, trials=trials, probe=probe, **scored)
        if first_step == 0:
            expected[WARM_UP] += fitting_seconds(context)
    clock.expect(expected)
    done = clock.seconds_so_far
    total = about(done + sum(expected.values()))
    callbacks.note(f"expected to take {total}, {about(done)} of it for the set-up, which is done")
