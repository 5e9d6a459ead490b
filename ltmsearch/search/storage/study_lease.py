"""Who drives a study that lies in a shared storage: written there too, as its run directory may be copied or gone."""

import json
import time
from collections.abc import Callable
from typing import Any

from optuna.storages import BaseStorage

from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import LeaseLost
from ltmsearch.search.lease import Owner, Posted
from ltmsearch.search.storage.retry import PatientStorage
from ltmsearch.search.storage.studies import BEAT, HELD_BY, find_study

SETTLING_SECONDS = 1.0
"""A storage has no lock for this. Of two drivers that write at the same moment both read, this much later, the same."""


class StudyBoard:
    """Two system attributes of a study: who drives it, written once, and the last sign of life.

    Args:
        storage: Of the driver; signs of life do not wait for it.
        settings: Of the study.
        sleep: Waits.
    """

    def __init__(
        self, storage: PatientStorage, settings: StudySettings, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.name = settings.study_name
        self.what = f"the study {self.name} in {storage.where}"
        self._storage, self._impatient, self._sleep = storage, storage.storage, sleep
        self._id: int | None = None

    def is_there(self) -> bool:
        """Whether there is such a study."""
        return find_study(self._storage, self.name) is not None

    def read(self) -> Posted | None:
        """See `Board`."""
        held = self._attributes(self._storage)
        text = held.get(HELD_BY)
        if not text:
            return None
        token, at = (held.get(BEAT) or [None, 0.0])[:2]
        return Posted(text, f"{text} {token} {at}", time.time() - at)

    def post(self, owner: Owner, *, instead_of: Posted | None) -> bool:
        """See `Board`."""
        there = self.read()
        if (there and there.text) != (instead_of and instead_of.text):
            return False
        self._write(self._storage, BEAT, [owner.token, time.time()])
        self._write(self._storage, HELD_BY, owner.model_dump_json())
        self._sleep(SETTLING_SECONDS)
        return self._shows(owner, self._storage)

    def beat(self, owner: Owner) -> None:
        """See `Board`."""
        if self._shows(owner, self._impatient):
            self._write(self._impatient, BEAT, [owner.token, time.time()])

    def remove(self, owner: Owner) -> None:
        """See `Board`."""
        if self._shows(owner, self._impatient):
            self._write(self._impatient, HELD_BY, "")  # Optuna deletes no attributes

    def _shows(self, owner: Owner, storage: BaseStorage) -> bool:
        return bool(self._attributes(storage).get(HELD_BY) == owner.model_dump_json())

    def _attributes(self, storage: BaseStorage) -> dict[str, Any]:
        try:
            return storage.get_study_system_attrs(self._found(storage))
        except KeyError:  # under other budgets another study took its place
            self._id = None
            return storage.get_study_system_attrs(self._found(storage))

    def _write(self, storage: BaseStorage, name: str, value: object) -> None:
        storage.set_study_system_attr(self._found(storage), name, json.loads(json.dumps(value)))

    def _found(self, storage: BaseStorage) -> int:
        if self._id is None:
            study = find_study(storage, self.name)
            if study is None:
                raise LeaseLost(f"{self.what} is gone: somebody deleted it")
            self._id = study._study_id
        return self._id
