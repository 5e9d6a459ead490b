"""Check that an SQLite study is intact before anything is written, since the study continues in the same file."""

import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import optuna

from ltmsearch.config.settings import StudySettings
from ltmsearch.config.storage_url import database_file, file_url
from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import refuse_special
from ltmsearch.search.storage.connect import DATABASE, open_storage
from ltmsearch.search.storage.optuna_private import system_attrs
from ltmsearch.search.storage.studies import find_study

_REMEDY = "restore a copy of it, or start another study with --study NAME or --out DIR"


def refuse_damaged_study(settings: StudySettings, folder: Path, *, scored: int = 0) -> None:
    """Raise unless every trial of a study in an SQLite file can be read. Other storages check themselves.

    SQLite itself notices few flipped bits, and accepts an empty file as a new database. If the shared weights contain
    `scored` trials and the study none, it was lost.

    Raises:
        InputError: Naming the damage.
    """
    file = database_file(settings.storage or file_url(folder / DATABASE))
    if file is None:
        return
    refuse_special(file)
    if not file.is_file() or not file.stat().st_size:
        if scored:
            raise InputError(
                f"{file} must contain the study, but is {'empty' if file.is_file() else 'missing'}: {_REMEDY}"
            )
        return
    if (damage := _check_integrity(file)) is not None:
        raise InputError(f"{file} must be the database of a study, but is damaged or foreign ({damage}): {_REMEDY}")
    try:
        with warnings.catch_warnings(action="ignore"):
            optuna.logging.disable_default_handler()  # it logs each failed attempt to read
            study = find_study(open_storage(settings, folder, existing=True), settings.study_name)
            trials = [] if study is None else study.get_trials()
            if study is not None:
                _ = study.user_attrs, system_attrs(study)  # parses their JSON: notes, limits
    except InputError:
        raise
    except Exception as error:  # a flipped bit raises any error of SQLAlchemy, JSON and Optuna
        reason = shortened(str(error).partition("\n")[0], 120)
        raise InputError(
            f"{file} must be the database of a study, but a trial cannot be read ({type(error).__name__}: {reason}): "
            f"{_REMEDY}"
        ) from None
    finally:
        optuna.logging.enable_default_handler()
    if scored and not trials:
        raise InputError(
            f"{file} must contain the study {settings.study_name} with the {scored} scored trials of the shared "
            f"weights, but contains none of them: {_REMEDY}"
        )


def _check_integrity(file: Path) -> str | None:
    """The first damaged page or index that SQLite finds, None if there is none."""
    try:
        with closing(sqlite3.connect(file)) as connection:
            ((first,), *_) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.Error as error:
        return str(error)
    return None if first == "ok" else shortened(" ".join(str(first).split()), 120)
