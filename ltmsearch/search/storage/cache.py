"""Optuna's cache of a study's trials, for whoever alone writes them."""

import copy
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.trial import FrozenTrial, TrialState


def cached(storage: BaseStorage) -> BaseStorage:
    """A storage that does not read what it knows already.

    Args:
        storage: Only a database needs that; a journal has everything in memory.
    """
    return KnownTrials(storage) if isinstance(storage, RDBStorage) else get_storage(storage)


class KnownTrials(_CachedStorage):
    """Keeps trials that run too, and reads again only those that were written here since.

    Optuna's own cache reads every trial that runs again whenever it is asked for trials, since other processes might
    write them: with hundreds of workers that is most of what a driver does. A study's one driver alone writes its
    trials. Those that others add are found nevertheless.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._written: set[int] = set()
        self._newest: dict[int, int] = {}

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        with self._lock:
            self._studies.setdefault(study_id, _StudyInfo())
            trials = self._backend._get_trials(
                study_id,
                states=None,
                included_trial_ids=self._written,
                trial_id_greater_than=self._newest.get(study_id, -1),
            )
            if trials:
                self._add_trials_to_cache(study_id, trials)
                self._written -= {trial._trial_id for trial in trials}
                self._newest[study_id] = max(self._newest.get(study_id, -1), trials[-1]._trial_id)

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        known = self._studies[study_id].trials
        last = next(reversed(known), -1)
        late = any(trial.number < last and trial.number not in known for trial in trials)
        super()._add_trials_to_cache(study_id, trials)
        if late:  # others added it while one was added here
            self._studies[study_id].trials = dict(sorted(known.items()))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See `BaseStorage`. The cache is in order: sorting it every time would be most of what a large study takes."""
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            trials = list(self._studies[study_id].trials.values())
        trials = trials if states is None else [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    # Noted before it is written: a try that fails may have been written all the same.

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See `BaseStorage`."""
        self._written.add(trial_id)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `BaseStorage`."""
        self._written.add(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See `BaseStorage`."""
        self._written.add(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._written.add(trial_id)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._written.add(trial_id)
        super().set_trial_system_attr(trial_id, key, value)

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage`."""
        super().delete_study(study_id)
        self._newest.pop(study_id, None)
