"""Whether a study's SQLite file is whole: looked at before anything is written, since the study is continued in it."""

import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import optuna

from ltmsearch.config.settings import StudySettings
from ltmsearch.config.storage_url import database_file, file_address
from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import refuse_special
from ltmsearch.search.storage import DATABASE, find_study, open_storage

REMEDY = "put a copy of it back, or begin another study with --study NAME or --out DIR"


def refuse_damaged_study(settings: StudySettings, folder: Path, *, scored: int = 0) -> None:
    """Raise unless every trial of the study can be read; a study that a server keeps is the server's to check.

    SQLite itself notices few flipped bits, and an empty file passes for a new database.

    Args:
        settings: Of the study.
        folder: The run directory.
        scored: Trials that the shared weights know of: a study that has none of them was lost.

    Raises:
        InputError: Saying what is wrong with the file.
    """
    file = database_file(settings.storage or file_address(folder / DATABASE))
    if file is None:
        return
    refuse_special(file)
    if scored and not (file.is_file() and file.stat().st_size):
        raise InputError(f"{file} must hold the study, but is {'empty' if file.is_file() else 'not there'}: {REMEDY}")
    if not file.is_file() or not file.stat().st_size:
        return
    if (wrong := _wrong_pages(file)) is not None:
        raise InputError(f"{file} must be the database of a study, but is damaged or another file ({wrong}): {REMEDY}")
    try:
        with warnings.catch_warnings(action="ignore"):
            optuna.logging.disable_default_handler()  # it logs each way in which it fails to read
            storage = open_storage(settings, folder, existing=True)
            study = find_study(storage, settings.study_name)
            trials = [] if study is None else study.get_trials()
            if study is not None:
                _ = study.user_attrs, storage.get_study_system_attrs(study._study_id)  # read as JSON: notes, limits
    except InputError:
        raise
    except Exception as error:  # whatever SQLAlchemy, JSON and Optuna make of a flipped bit
        reason = shortened(str(error).partition("\n")[0], 120)
        raise InputError(
            f"{file} must be the database of a study, but a trial cannot be read ({type(error).__name__}: {reason}): "
            f"{REMEDY}"
        ) from None
    finally:
        optuna.logging.enable_default_handler()
    if scored and not trials:
        raise InputError(
            f"{file} must hold the study {settings.study_name}, of which the shared weights know {scored} scored "
            f"trials, but holds none of them: {REMEDY}"
        )


def _wrong_pages(file: Path) -> str | None:
    """What SQLite finds wrong with pages and indices, None where nothing is."""
    try:
        with closing(sqlite3.connect(file)) as connection:
            ((first,), *_) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.Error as error:
        return str(error)
    return None if first == "ok" else shortened(" ".join(str(first).split()), 120)
