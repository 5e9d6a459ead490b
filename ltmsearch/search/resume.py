"""What a search makes sure of before it begins or goes on, so that bad input changes nothing in its run directory."""

import json
import logging
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import SETTINGS, StudySettings
from ltmsearch.errors import InputError
from ltmsearch.io.files import refuse_links_outward, refuse_unwritable, remove_drafts, write_atomic
from ltmsearch.latency import PROFILE
from ltmsearch.search.checkpoint import WEIGHTS, Checkpoint, load_checkpoint, load_previous, scored_trials
from ltmsearch.search.lease import FileBoard, Lease
from ltmsearch.search.records import TRIALS
from ltmsearch.search.run import Run
from ltmsearch.search.setup import Workbench, prepare
from ltmsearch.search.soundness import refuse_damaged_study
from ltmsearch.search.storage import (
    StudyBoard,
    open_storage,
    open_study,
    patient,
    reach_storage,
    refuse_another_storage,
)
from ltmsearch.search.timing import SET_UP, Clock, Times
from ltmsearch.search.workers.ray_connection import Connection, connect, wanted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run directory that this process alone may write, and all that its search works with."""

    bench: Workbench
    storage: BaseStorage
    """Of the study."""
    found: list[Checkpoint]
    """The last two shared weights, newest first, as many as there are."""
    connection: Connection | None
    """Ray, where the study asks for workers on it."""

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.bench.settings.run_dir


def open_run(settings: StudySettings, callbacks: Callbacks, clock: Clock, lease: Lease, stack: ExitStack) -> OpenRun:
    """Check everything, cheap checks first, then write `settings.yaml`.

    Args:
        settings: What the user asked for.
        callbacks: Hears what is searched, on what, how.
        clock: Counts the time.
        lease: Held when this returns.
        stack: Lets go of what was connected.

    Raises:
        InputError: For the first thing that does not fit; nothing is changed then.
    """
    folder = settings.run_dir
    refuse_unwritable(folder, "the run directory")
    lease.hold(FileBoard(folder))
    refuse_links_outward(folder)
    remove_drafts(folder)
    Times.load(folder)  # refused where it is damaged before anything is written
    stored = Run.open(folder).settings if Run.exists(folder) else None
    if stored is not None:
        settings.refuse_other_costs(stored, folder)  # before anything is timed
    if stored is not None and settings.study is None:  # the name is made of the budget, which may be another now
        settings = settings.model_copy(update={"study": stored.study, "out": str(folder)})
    refuse_another_storage(settings, stored)
    refuse_damaged_study(settings, folder, scored=scored_trials(folder))
    storage = reach_storage(settings, begun=(folder / WEIGHTS).exists(), tell=callbacks.note)
    board = None if storage is None or settings.storage is None else StudyBoard(storage, settings)
    if board is not None and board.is_there():
        lease.hold(board)
    connection = None
    with clock.part(SET_UP):
        if wanted(settings):
            connection = connect(settings)
            stack.callback(connection.close)
        bench = prepare(settings, callbacks, clock)
    if stored is not None:
        bench.settings.refuse_unless_continues(stored, folder)
    found = _last_weights(bench)
    for line in bench.describe():
        callbacks.note(line)
    _log.info("settings: %s", json.dumps(bench.settings.public(), ensure_ascii=False))
    lease.confirm()
    storage = storage or patient(open_storage(settings, folder), settings, callbacks.note)
    open_study(storage, bench.settings.study, cost=bench.settings.axis.name)
    if board is not None:
        lease.hold(board)
    _write_settings(bench)
    return OpenRun(bench=bench, storage=storage, found=found, connection=connection)


def _last_weights(bench: Workbench) -> list[Checkpoint]:
    folder, space = bench.settings.run_dir, bench.space.digest()
    newest = load_checkpoint(folder, space=space)
    if newest is None:
        if (folder / TRIALS).exists():
            raise InputError(f"{folder} has trials but no shared weights; begin anew with --out DIR")
        return []
    found = [newest]
    if (folder / WEIGHTS).exists():  # else the previous ones are the newest
        with suppress(InputError):  # damaged, they are of no use, and of no harm while the last ones are whole
            before = load_previous(folder, space=space)
            found += [] if before is None else [before]
    for checkpoint in found:
        bench.evaluator.supernet.check_weights(checkpoint.weights, folder / WEIGHTS)
    return found


def _write_settings(bench: Workbench) -> None:
    folder = bench.settings.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if bench.latency is not None:
            bench.latency.profile.save(folder / PROFILE)
        write_atomic(folder / SETTINGS, bench.settings.to_yaml())
    except OSError as error:
        raise InputError(f"the run directory {folder} cannot be written: {error.strerror or error}") from error
