"""Start or continue a run: check everything first, so that bad input changes nothing in the run directory."""

import json
import logging
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from optuna.storages import BaseStorage

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.continuation import continued, refuse_other_costs, refuse_other_settings
from ltmsearch.config.settings import SETTINGS, ResolvedSettings, StudySettings
from ltmsearch.errors import InputError
from ltmsearch.io.files import refuse_links_outward, refuse_unwritable, remove_drafts, write_atomic
from ltmsearch.latency import PROFILE
from ltmsearch.search.checkpoint import WEIGHTS, Checkpoint, load_checkpoint, load_previous, scored_trials
from ltmsearch.search.curve_points import BASELINES, read_curves
from ltmsearch.search.description import describe
from ltmsearch.search.lease import DriverFile, Lease
from ltmsearch.search.records import TRIALS
from ltmsearch.search.run import Run, load_answers, load_probe
from ltmsearch.search.settled import SETTLED, Settled
from ltmsearch.search.setup import StudyContext, prepare, resolve
from ltmsearch.search.storage import (
    DriverAttribute,
    RetryingStorage,
    connect_storage,
    open_storage,
    open_study,
    refuse_damaged_study,
    refuse_other_storage,
)
from ltmsearch.search.timing import SET_UP, Clock, Times
from ltmsearch.search.workers.connection import Connection, connect, needs_ray

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run directory that only this process may write, and everything that its search needs."""

    folder: Path
    """The run directory as the user names it."""
    context: StudyContext
    storage: BaseStorage
    found: list[Checkpoint]
    """The last two shared weights, newest first; fewer if fewer exist."""
    connection: Connection | None
    """To Ray, if the study needs it."""


def open_run(settings: StudySettings, callbacks: Callbacks, clock: Clock, lease: Lease, stack: ExitStack) -> OpenRun:
    """Check everything, fast checks first, then write `settings.yaml`.

    Raises:
        InputError: For the first check that fails; nothing is changed then.
    """
    folder = settings.run_dir
    refuse_unwritable(folder, "the run directory")
    refuse_links_outward(folder)  # before the lease, which writes a file there
    lease.acquire(DriverFile(folder))
    remove_drafts(folder)
    Times.load(folder)  # a damaged file is refused before anything is written
    load_probe(folder)
    load_answers(folder)
    read_curves(folder / BASELINES)
    stored = Run.open(folder).settings if Run.exists(folder) else None
    settings = continued(settings, stored)
    if stored is not None:
        _refuse_other_study(settings, stored, folder)  # before anything is read or timed
    refuse_other_storage(settings, stored)
    refuse_damaged_study(settings, folder, scored=scored_trials(folder))
    storage = connect_storage(settings, started=(folder / WEIGHTS).exists(), callbacks=callbacks)
    attribute = None if storage is None or settings.storage is None else DriverAttribute(storage, settings)
    if attribute is not None and attribute.study_exists():
        lease.acquire(attribute)
    connection = None
    with clock.part(SET_UP):
        if needs_ray(settings):
            connection = connect(settings)
            stack.callback(connection.close)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        context = prepare(settings, callbacks, clock)
    before, now = (stored or context.settings).data_place[1], context.settings.data_place[1]
    if before != now:
        callbacks.note(f"the data were in {before} and are in {now}, with the same classes and numbers of images")
    images = context.settings.scoring_batch_size
    if stored is not None and stored.scoring_batch_size != images:
        callbacks.note(
            f"scores take {images} images at a time from now on, {stored.scoring_batch_size} before: they differ by "
            "rounding"
        )
    found = _load_weights(context, folder)
    for line in describe(context):
        callbacks.note(line)
    _log.info("settings: %s", json.dumps(context.settings.public(), ensure_ascii=False))
    lease.confirm()
    storage = storage or RetryingStorage(open_storage(settings, folder), settings, callbacks)
    stack.callback(storage.close)
    open_study(storage, context.settings.study, context.settings.axis)
    if attribute is not None:
        lease.acquire(attribute)
    _write_settings(context, folder)
    return OpenRun(folder=folder, context=context, storage=storage, found=found, connection=connection)


def _refuse_other_study(settings: StudySettings, stored: ResolvedSettings, folder: Path) -> None:
    refuse_other_costs(settings, stored, folder)
    resolved, _ = resolve(settings)
    refuse_other_settings(resolved, stored, folder)
    if Settled.load(folder) is None and resolved.data_place != stored.data_place:
        raise InputError(
            f"{folder} has no {SETTLED}, which tells the study's data, so they must be those in {stored.data_dir}, but "
            f"got {resolved.data_dir}"
        )


def _load_weights(context: StudyContext, folder: Path) -> list[Checkpoint]:
    space = context.space.digest()
    newest = load_checkpoint(folder, space=space)
    if newest is None:
        if (folder / TRIALS).exists():
            raise InputError(f"{folder} has trials but no shared weights: start a new run with --out DIR")
        return []
    found = [newest]
    if (folder / WEIGHTS).exists():  # else the previous weights are the newest
        with suppress(InputError):  # damaged previous weights do no harm while the newest are intact
            previous = load_previous(folder, space=space)
            found += [] if previous is None else [previous]
    for checkpoint in found:
        context.evaluator.supernet.check_weights(checkpoint.weights, folder / WEIGHTS)
    return found


def _write_settings(context: StudyContext, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        context.settled.save(folder)
        if context.latency is not None:
            context.latency.profile.save(folder / PROFILE)
        write_atomic(folder / SETTINGS, context.settings.absolute().to_yaml())
    except OSError as error:
        raise InputError(f"the run directory {folder} cannot be written: {error.strerror or error}") from error
