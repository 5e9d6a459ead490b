"""A search in a process of its own that a test can kill, without importing everything anew each time."""

import hashlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
import torch

from ltmsearch.search.checkpoint import WEIGHTS, load_checkpoint
from ltmsearch.study import run_study
from support.command_line import tiny

CONTEXT = multiprocessing.get_context("forkserver")
"""Its server imports this module once; every process it starts has all that is needed already."""
CONTEXT.set_forkserver_preload([__name__])
# The server looks for it where every Python does, whatever this process has on its path.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))


def _search(folder: Path, told: Path, changes: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    with told.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())  # a traceback of it is to be seen
        import ltmsearch.io.figures

        ltmsearch.io.figures._write_png = lambda *_: None  # type: ignore[assignment]
        run_study(tiny(folder, **changes))


def searching(folder: Path, **changes: Any) -> Any:
    """A process that runs, or continues, a study that takes seconds."""
    process = CONTEXT.Process(target=_search, args=(folder, folder.with_suffix(".told"), changes))
    process.start()
    return process


Told = dict[int, tuple[str, tuple[float, ...] | None, tuple[tuple[str, float], ...]]]
"""Trial → its state, values and parameters."""


def told(folder: Path, storage: str | None = None) -> Told:
    """The trials that have ended, as the study's database holds them."""
    with tempfile.TemporaryDirectory() as scratch:
        if storage is None:
            for part in folder.glob("study.db*"):  # a copy: looking is not to mend what the next run must mend
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
    assert len({trial.number for trial in ended}) == len(ended), "a trial is there twice"
    return {
        t.number: (t.state.name, tuple(t.values) if t.values else None, tuple(sorted(t.params.items()))) for t in ended
    }


def assert_weights_are_whole(folder: Path, trials: Told) -> None:
    """The shared weights load, which compares them with their hash, and know of as many trials as the study does."""
    if not (folder / WEIGHTS).exists():
        assert not trials, "trials were told and no weights were saved"
        return
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    scored = sum(state == "COMPLETE" for state, *_ in trials.values())
    assert checkpoint.state.scored in (scored, scored + 1)


def fingerprint(folder: Path) -> str:
    """Of the final weights, whatever else the file says."""
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    total = hashlib.sha256()
    for name, tensor in sorted(checkpoint.weights.items()):
        total.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
