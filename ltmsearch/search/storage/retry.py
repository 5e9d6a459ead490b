"""A storage that waits for a database which goes away for a minute, so that no caller has to."""

import abc
import time
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ltmsearch.config.settings import StudySettings
from ltmsearch.search.storage.cache import cached
from ltmsearch.search.storage.errors import FAILURES, may_pass, reason

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 9)
"""Seconds between two tries, about five minutes in all."""


def patient(storage: BaseStorage, settings: StudySettings, tell: Callable[[str], None]) -> "PatientStorage":
    """A study's storage for whoever drives the study.

    Args:
        storage: What `open_storage` gave.
        settings: Of the study.
        tell: Receives a note on each wait in one line.
    """
    where = f"the storage {settings.storage}" if settings.storage else f"the storage in {settings.run_dir}"
    said = partial(reason, password=settings.storage_password)
    return PatientStorage(storage, where, tell, said)  # type: ignore[abstract]


def _patiently(name: str) -> Callable[..., Any]:
    def method(self: "PatientStorage", *args: Any, **kwargs: Any) -> Any:
        return self.wait_for(lambda: getattr(self.storage, name)(*args, **kwargs))

    method.__name__ = name
    return method


def _every_method_waits(cls: type) -> type:
    """Give a class all of the storage's methods that it does not have of its own."""
    for name, method in vars(BaseStorage).items():
        if callable(method) and not name.startswith("_") and name not in vars(cls):
            setattr(cls, name, _patiently(name))
    return abc.update_abstractmethods(cls)


@_every_method_waits
class PatientStorage(BaseStorage):
    """Tries again what may pass, with growing pauses, and tells of each.

    A try that fails may have been written, and only the answer lost. Attributes and parameters are written again
    without harm; what would be there twice is looked for first. That is certain, as the one driver of a study alone
    adds trials to it.

    Args:
        storage: What is asked.
        where: It, as a line begins with it.
        tell: Receives a note on each wait.
        reason: What an error says, in one line.
        pauses: Seconds between two tries; None: `PAUSES`.
        sleep: Waits.
    """

    def __init__(
        self,
        storage: BaseStorage,
        where: str,
        tell: Callable[[str], None],
        reason: Callable[[Exception], str],
        *,
        pauses: Sequence[float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.storage = cached(storage)
        self.where = where
        self.pauses = tuple(PAUSES if pauses is None else pauses)
        self._tell, self._reason, self._sleep = tell, reason, sleep
        self._newest: dict[int, int] = {}

    def wait_for(self, call: Callable[[], Any], again: Callable[[], Any] | None = None) -> Any:
        """What a call gives, once it succeeds.

        Args:
            call: The first try.
            again: Each further one; None: the same.

        Raises:
            FAILURES: If waiting does not help, or no longer.
        """
        waited = 0.0
        for pause in (*self.pauses, None):
            try:
                given = call() if not waited or again is None else again()
            except FAILURES as error:
                if pause is None or not may_pass(error):
                    self.pauses = ()  # whatever is asked while the run ends is not waited for anew
                    raise
                self._tell(f"{self.where} does not answer: {self._reason(error)}; trying again in {pause:g} s")
                self._pause(pause)
                waited += pause
            else:
                if waited:
                    self._tell(f"{self.where} answers again after {waited:.0f} s")
                return given
        raise AssertionError("the last try has no pause behind it")

    def _pause(self, seconds: float) -> None:
        try:
            self._sleep(seconds)
        except BaseException:  # Ctrl-C: as above
            self.pauses = ()
            raise

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """See `BaseStorage`."""

        def again() -> int:
            try:
                return self.storage.create_new_study(directions, study_name)
            except DuplicatedStudyError:
                return self.storage.get_study_id_from_name(study_name or "")

        return self.wait_for(lambda: self.storage.create_new_study(directions, study_name), again)

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage`."""

        def again() -> None:
            if any(study._study_id == study_id for study in self.storage.get_all_studies()):
                self.storage.delete_study(study_id)

        self.wait_for(lambda: self.storage.delete_study(study_id), again)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See `BaseStorage`."""
        if study_id not in self._newest:
            self.get_all_trials(study_id, deepcopy=False)
        newest = self._newest[study_id]

        def again() -> int:
            trials = self.storage.get_all_trials(study_id, deepcopy=False)
            made = [trial._trial_id for trial in trials if trial._trial_id > newest]
            return made[-1] if made else self.storage.create_new_trial(study_id, template_trial)

        number = self.wait_for(lambda: self.storage.create_new_trial(study_id, template_trial), again)
        self._newest[study_id] = number
        return number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See `BaseStorage`."""
        trials = self.wait_for(lambda: self.storage.get_all_trials(study_id, deepcopy, states))
        if states is None:
            self._newest[study_id] = max((trial._trial_id for trial in trials[-1:]), default=-1)
        return trials

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `BaseStorage`."""

        def again() -> bool:
            held = self.storage.get_trial(trial_id)
            if held.state == state and held.values == (None if values is None else list(values)):
                return True
            return self.storage.set_trial_state_values(trial_id, state, values)

        return self.wait_for(lambda: self.storage.set_trial_state_values(trial_id, state, values), again)
