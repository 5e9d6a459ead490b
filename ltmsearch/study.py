"""A whole study, from its settings to its front: everything is made ready, the driver searches, results are written."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ltmsearch.axis import CostName
from ltmsearch.checkpoint import WEIGHTS, Checkpoint, load_checkpoint, load_previous
from ltmsearch.driver import Driver
from ltmsearch.errors import InputError, LeaseLost
from ltmsearch.files import refuse_unwritable, write_atomic
from ltmsearch.latency import PROFILE, hardware_name
from ltmsearch.lease import FileBoard, Lease
from ltmsearch.observer import Observer
from ltmsearch.prepare import Workbench, prepare
from ltmsearch.recipe import library_versions
from ltmsearch.records import TRIALS, TrialRecord, select_front, trials_table, write_csv
from ltmsearch.results import write_results
from ltmsearch.settings import SETTINGS, ResolvedSettings, StudySettings
from ltmsearch.storage import StudyBoard, open_storage, open_study, patient, reach_storage, told_when_lost
from ltmsearch.times import OVERHEAD, RESCORING, SET_UP, WARM_UP, WRITING, Clock
from ltmsearch.workers.cluster import RayWorkers
from ltmsearch.workers.connection import connect, wanted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study leaves behind."""

    folder: Path
    """The run directory."""
    records: list[TrialRecord]
    """Every trial."""
    cost: CostName
    """What the front weighs against top-1."""

    @property
    def front(self) -> list[TrialRecord]:
        """The trials of the front, best first."""
        return select_front(self.records, self.cost)


def run_study(settings: StudySettings, observer: Observer | None = None, *, takeover: bool = False) -> StudyResult:
    """Search, or continue a search that was interrupted or is to have more trials.

    Args:
        settings: What to search, on what, how.
        observer: Hears of progress.
        takeover: Continue a study that another driver is at work on; that one ends as soon as it notices.

    Returns:
        The trials, re-scored; their tables, plots and recipes lie in the run directory.

    Raises:
        InputError: If the settings cannot be followed, do not continue the study in the run directory, or another
            driver is at work there.
        StorageLost: If the study's database fails later.
        LeaseLost: If another driver took the study over.
    """
    observer = observer or Observer()
    try:
        refuse_unwritable(settings.run_dir, "the run directory")
        with Lease(takeover=takeover, tell=observer.note) as lease, told_when_lost(settings):
            lease.hold(FileBoard(settings.run_dir))
            return _drive(settings, observer, lease)
    finally:
        observer.close()


def _drive(settings: StudySettings, observer: Observer, lease: Lease) -> StudyResult:
    start, clock, connection = time.monotonic(), Clock(), None
    try:
        stored = _stored_settings(settings.run_dir)
        if stored is not None:
            settings.refuse_other_costs(stored, settings.run_dir)  # before anything is timed
        if stored is not None and settings.study is None:  # the name is made of the budget, which may be another now
            settings = settings.model_copy(update={"study": stored.study, "out": str(settings.run_dir)})
        begun = (settings.run_dir / WEIGHTS).exists()
        reached = reach_storage(settings, stored, begun=begun, tell=observer.note)
        storage = None if reached is None else patient(reached, settings, observer.note)
        board = None if storage is None or settings.storage is None else StudyBoard(storage, settings)
        if board is not None and board.is_there():
            lease.hold(board)
        with clock.part(SET_UP):
            if wanted(settings):
                connection = connect(settings)
            bench = prepare(settings, observer, clock)
        if stored is not None:
            bench.settings.refuse_unless_continues(stored, settings.run_dir)
        found = _last_weights(settings.run_dir, bench.space.digest())
        if not found and (settings.run_dir / TRIALS).exists():
            raise InputError(f"{settings.run_dir} has trials but no shared weights; begin anew with --out DIR")
        for line in bench.describe():
            observer.note(line)
        _log.info("settings: %s", json.dumps(bench.settings.public(), ensure_ascii=False))
        lease.confirm()
        storage = storage or patient(open_storage(settings, settings.run_dir), settings, observer.note)
        open_study(storage, bench.settings.study, cost=bench.settings.axis.name)
        if board is not None:
            lease.hold(board)
        folder = _open_run_dir(bench)
        hardware = hardware_name(bench.evaluator.runtime.device)
        clock.keep(folder, device=f"{hardware}; {bench.device}", versions=library_versions())
        driver = Driver(bench, folder, observer, clock, storage, confirm=lease.confirm)
        try:
            with clock.part(WARM_UP):
                driver.warm_up(found)
            with clock.part(OVERHEAD):
                driver.settle()
                if connection is not None and driver.wants_trials():
                    driver.workers = RayWorkers(connection, bench, observer)
                driver.search(until=None if settings.timeout is None else start + settings.timeout)
            driver.workers.close()
            with clock.part(RESCORING):
                driver.rescore()
            driver.measure()
        except KeyboardInterrupt:
            lease.confirm()
            if driver.records():  # so that `ltmsearch front` shows how far it came
                write_csv(trials_table(driver.records()), driver.folder / TRIALS)
            raise
        with clock.part(WRITING):
            lease.confirm()
            records = driver.records()
            write_results(driver.folder, bench, records, observer, clock)
            driver.pages.renew(records)
        return StudyResult(folder=driver.folder, records=records, cost=bench.settings.axis.name)
    except LeaseLost:
        clock.leave()
        raise
    finally:
        if connection is not None:
            connection.close()
        clock.save()


def _stored_settings(folder: Path) -> ResolvedSettings | None:
    path = folder / SETTINGS
    return ResolvedSettings.load(path) if path.exists() else None


def _last_weights(folder: Path, space: str) -> list[Checkpoint]:
    """The last two shared weights, newest first, as many as there are."""
    newest = load_checkpoint(folder, space=space)
    if newest is None:
        return []
    before = load_previous(folder, space=space) if (folder / WEIGHTS).exists() else None
    return [newest] if before is None else [newest, before]


def _open_run_dir(bench: Workbench) -> Path:
    folder = bench.settings.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if bench.latency is not None:
            bench.latency.profile.save(folder / PROFILE)
        write_atomic(folder / SETTINGS, bench.settings.to_yaml())
    except OSError as error:
        raise InputError(f"the run directory {folder} cannot be written: {error.strerror or error}") from error
    return folder
