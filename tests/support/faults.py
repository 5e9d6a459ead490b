"""Searches in separate processes that tests can kill, started without importing everything each time."""

import hashlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch

from ltmsearch.search.checkpoint import WEIGHTS, load_checkpoint
from ltmsearch.study import run_study
from support.command_line import tiny
from support.launch import end_with_parent

CONTEXT = multiprocessing.get_context("forkserver")
"""A server that imports this module once and forks every process."""
CONTEXT.set_forkserver_preload([__name__])
# The server has only the default path of Python and PYTHONPATH.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))


def _search(folder: Path, log: Path, changes: dict[str, Any]) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())  # shows its traceback
        import ltmsearch.io.figures

        ltmsearch.io.figures._write_png = lambda *_: None  # type: ignore[assignment]
        run_study(tiny(folder, **changes))


@contextmanager
def searching(folder: Path, **changes: Any) -> Iterator[Any]:
    """Start a process that runs or continues a study of a few seconds; it is killed at the end of the `with` block."""
    process = CONTEXT.Process(target=_search, args=(folder, folder.with_suffix(".log"), changes))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


Trials = dict[int, tuple[str, tuple[float, ...] | None, tuple[tuple[str, float], ...]]]
"""Number of a trial → its state, values and parameters."""


def finished_trials(folder: Path, storage: str | None = None) -> Trials:
    """The finished trials in the database of a study."""
    with tempfile.TemporaryDirectory() as scratch:
        if storage is None:
            for part in folder.glob("study.db*"):  # a copy: reading must not repair what the next run has to repair
                shutil.copy(part, scratch)
            if not Path(scratch, "study.db").exists():
                return {}
            storage = f"sqlite:///{scratch}/study.db"
        opened = optuna.storages.RDBStorage(storage)
        try:
            names = optuna.get_all_study_names(opened)
            trials = [t for name in names for t in optuna.load_study(study_name=name, storage=opened).get_trials()]
        finally:
            opened.engine.dispose()
    ended = [trial for trial in trials if trial.state.is_finished()]
    assert len({trial.number for trial in ended}) == len(ended), "a trial is stored twice"
    return {
        t.number: (t.state.name, tuple(t.values) if t.values else None, tuple(sorted(t.params.items()))) for t in ended
    }


def assert_weights_are_whole(folder: Path, trials: Trials) -> None:
    """The shared weights match their hash, and their number of trials matches the study."""
    if not (folder / WEIGHTS).exists():
        assert not trials, "trials were stored and no weights were saved"
        return
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    scored = sum(state == "COMPLETE" for state, *_ in trials.values())
    assert checkpoint.state.scored in (scored, scored + 1)


def fingerprint(folder: Path) -> str:
    """Hash of the final weights alone."""
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    total = hashlib.sha256()
    for name, tensor in sorted(checkpoint.weights.items()):
        total.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
