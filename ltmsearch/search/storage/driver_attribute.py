"""The record of the driver of a study in a shared storage, for copies of a run directory and other machines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages import BaseStorage

from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import LeaseLost
from ltmsearch.search.lease import Record
from ltmsearch.search.storage.optuna_private import study_id
from ltmsearch.search.storage.retry import RetryingStorage
from ltmsearch.search.storage.studies import DRIVER, find_study

SETTLING_SECONDS = 1.0
"""Storages have no locks: of two drivers that write at the same moment, both read the same holder after this time."""


class DriverAttribute:
    """A system attribute of a study: the holder of its lease and the time of the last heartbeat."""

    def __init__(self, storage: RetryingStorage, settings: StudySettings) -> None:
        self.name = settings.study_name
        self.subject = f"the study {self.name} in {storage.where}"
        self._storage = storage
        self._id: int | None = None

    def study_exists(self) -> bool:
        return find_study(self._storage, self.name) is not None

    def read(self) -> Record | None:
        return self._read(self._storage)

    def _read(self, storage: BaseStorage) -> Record | None:
        try:
            attributes = storage.get_study_system_attrs(self._find_id())
        except KeyError:  # a copy under other budgets has replaced the study
            self._id = None
            attributes = storage.get_study_system_attrs(self._find_id())
        value = attributes.get(DRIVER)
        return Record(*value) if isinstance(value, list) else None

    def write(self, text: str) -> None:
        self._set(self._storage, [text, time.time()])
        time.sleep(SETTLING_SECONDS)

    def beat(self, text: str) -> None:
        if self._holds(text):
            self._set(self._storage.storage, [text, time.time()])

    def clear(self, text: str) -> None:
        if self._holds(text):
            self._set(self._storage.storage, "")  # Optuna cannot delete attributes

    def _holds(self, text: str) -> bool:
        found = self._read(self._storage.storage)
        return found is not None and found.text == text

    def _set(self, storage: BaseStorage, value: str | list[Any]) -> None:
        storage.set_study_system_attr(self._find_id(), DRIVER, value)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def _find_id(self) -> int:
        if self._id is None:
            study = find_study(self._storage, self.name)
            if study is None:
                raise LeaseLost(f"{self.subject} is gone: it was deleted")
            self._id = study_id(study)
        return self._id
