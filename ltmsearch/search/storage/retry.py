"""A storage that retries lost connections, and reads again only the trials that changed."""

import copy
import os
import time
from abc import ABCMeta
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tenacity
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import StorageLost
from ltmsearch.search.storage.errors import STORAGE_ERRORS, describe, is_temporary
from ltmsearch.search.storage.optuna_private import trial_id as id_of

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 9)
"""Seconds between attempts, about five minutes in all."""


def _forward(name: str) -> Callable[..., Any]:
    def method(self: "RetryingStorage", *args: Any, **kwargs: Any) -> Any:
        if name.startswith("set_trial_"):
            self.changed.add(args[0] if args else kwargs["trial_id"])
        return self.retry(lambda: getattr(self.storage, name)(*args, **kwargs))

    method.__name__ = name
    return method


_Forwarding: Any = ABCMeta(
    "_Forwarding",
    (BaseStorage,),
    {n: _forward(n) for n, method in vars(BaseStorage).items() if callable(method) and not n.startswith("_")},
)
"""A storage that forwards every method."""


class RetryingStorage(_Forwarding):
    """Retries temporary errors with growing pauses, and caches the trials of a study.

    A failed call may have been written and only its answer lost. Attributes and parameters are simply written again;
    before a trial is created again, it is looked up. The lookup is exact because the only driver of a study is the only
    process that adds trials while it runs.

    Optuna's own cache reads every running trial again at each step, because other processes might have changed it: with
    hundreds of workers that takes most of a driver's time. Here only trials that were written through this object, and
    new ones, are read.
    """

    def __init__(
        self,
        storage: BaseStorage,
        settings: StudySettings,
        callbacks: Callbacks,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.storage, self.callbacks = storage, callbacks
        self.where = f"the storage {settings.storage}" if settings.storage else f"the storage in {settings.run_dir}"
        self.pauses: Sequence[float] = PAUSES
        self.changed: set[int] = set()
        """Ids of trials that may differ from the cache. A trial is added before the write, which may fail midway."""
        self._password, self._sleep = settings.storage_password, sleep
        self._trials: dict[int, list[FrozenTrial]] = {}
        url = storage.engine.url if isinstance(storage, RDBStorage) else None
        self._file = Path(url.database) if url is not None and url.drivername == "sqlite" and url.database else None
        self._identity = _identity(self._file)

    def retry(self, call: Callable[[], Any], repeat: Callable[[], Any] | None = None) -> Any:
        """The result of a call, once it succeeds; after a failure `repeat` is called instead, if there is one.

        Raises:
            STORAGE_ERRORS: If the error is permanent, or all attempts fail.
            StorageLost: If the file of an SQLite database was removed or replaced since it was opened.
        """
        # SQLite goes on with the file that is no longer there, and whatever it writes is lost.
        if _identity(self._file) != self._identity:
            raise StorageLost(
                f"{self.where} was lost: {self._file} was removed or replaced while it was in use; put it back and "
                "repeat the command, or start another study with --study NAME or --out DIR"
            )
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_temporary),
            wait=tenacity.wait_chain(*map(tenacity.wait_fixed, self.pauses or (0.0,))),
            stop=tenacity.stop_after_attempt(len(self.pauses) + 1),
            before_sleep=self._note_retry,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            for attempt in attempts:
                with attempt:
                    result = (call if attempt.retry_state.attempt_number == 1 else repeat or call)()
        except (*STORAGE_ERRORS, KeyboardInterrupt, SystemExit):
            self.pauses = ()  # calls made while the run ends are not retried
            raise
        if attempt.retry_state.attempt_number > 1:
            self.callbacks.note(f"{self.where} answers again after {attempt.retry_state.idle_for:.0f} s")
        return result

    def close(self) -> None:
        """Close the connections, so that SQLite moves its write-ahead log into the database file."""
        self.storage.remove_session()
        if isinstance(self.storage, RDBStorage):
            self.storage.engine.dispose()

    def _note_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Exception) and state.next_action:
            pause = state.next_action.sleep
            self.callbacks.note(
                f"{self.where} does not answer: {describe(error, self._password)}; trying again in {pause:g} s"
            )

    def delete_study(self, study_id: int) -> None:
        with suppress(KeyError):  # it was deleted, and only the answer was lost
            self.retry(lambda: self.storage.delete_study(study_id))
        self._trials.pop(study_id, None)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = len(self.get_all_trials(study_id, deepcopy=False))

        def repeat() -> int:
            found = self._find(study_id, number)
            return self.storage.create_new_trial(study_id, template_trial) if found is None else found

        return self.retry(lambda: self.storage.create_new_trial(study_id, template_trial), repeat)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self.changed.add(trial_id)

        def repeat() -> bool:
            stored = self.storage.get_trial(trial_id)
            if stored.state == state and stored.values == (None if values is None else list(values)):
                return True
            return self.storage.set_trial_state_values(trial_id, state, values)

        return self.retry(lambda: self.storage.set_trial_state_values(trial_id, state, values), repeat)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self.retry(lambda: self._read_changed(study_id))
        trials = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _read_changed(self, study_id: int) -> list[FrozenTrial]:
        if study_id not in self._trials:
            self._trials[study_id] = list(self.storage.get_all_trials(study_id, deepcopy=False))
        trials = self._trials[study_id]
        for place in [place for place, trial in enumerate(trials) if id_of(trial) in self.changed]:
            trials[place] = self.storage.get_trial(id_of(trials[place]))
            self.changed.discard(id_of(trials[place]))
        while (new := self._find(study_id, len(trials))) is not None:
            trials.append(self.storage.get_trial(new))
            self.changed.discard(new)
        return trials

    def _find(self, study_id: int, number: int) -> int | None:
        try:
            return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        except KeyError:
            return None


def _identity(file: Path | None) -> tuple[int, int] | None:
    """Device and number of a file; None if there is none."""
    if file is None:
        return None
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
