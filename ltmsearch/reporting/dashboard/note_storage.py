"""Notes in the storage of a study, by private functions of optuna-dashboard; `pyproject.toml` bounds its version.

`optuna_dashboard.save_note` reads the notes of all trials for each note it writes: with 300 trials writing took four
times as long, and more with every trial.
"""

import optuna
from optuna_dashboard._note import get_note_from_system_attrs, note_str_key_prefix, note_ver_key, split_body

from ltmsearch.search.storage.optuna_private import set_system_attr, system_attrs


class NoteStorage:
    """Notes of a study (id None) and of its trials."""

    def __init__(self, study: optuna.Study, *, empty: bool = False) -> None:
        """Read all notes, unless those to be written are known to be `empty`."""
        self._study = study
        self._attributes = {} if empty else system_attrs(study)

    def read(self, trial_id: int | None) -> str:
        """Markdown of a note; empty if there is none."""
        return get_note_from_system_attrs(self._attributes, trial_id)["body"]

    def write(self, trial_id: int | None, text: str) -> None:
        """Replace a note."""
        prefix = note_str_key_prefix(trial_id)
        version = get_note_from_system_attrs(self._attributes, trial_id)["version"] + 1
        parts = {name: "" for name in self._attributes if name.startswith(prefix)} | split_body(text, trial_id)
        for name, value in {note_ver_key(trial_id): version, **parts}.items():
            set_system_attr(self._study, name, value)
