"""The Optuna study on disk, the samplers that propose to it, and the dashboard that shows it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from sqlalchemy import event

from ltmsearch.axis import UNITS, CostName
from ltmsearch.errors import InputError

DATABASE = "study.db"


def open_study(folder: Path, name: str, *, cost: CostName = "gflops") -> optuna.Study:
    """The Optuna study in `study.db`, created where there is none: top-1 up, the cost down."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / DATABASE).resolve()}")
    _write_ahead(storage)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
    )
    study.set_metric_names(["top-1 (%)", UNITS[cost]])
    return study


def serve_dashboard(folder: Path, *, host: str, port: int) -> None:
    """Run optuna-dashboard on the study of a run directory until it is interrupted.

    Raises:
        InputError: If there is no study, or the address cannot be listened on.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise InputError(f"{folder} must be the run directory of a study, but it holds no {DATABASE}")
    from optuna_dashboard import run_server

    try:
        run_server(f"sqlite:///{path.resolve()}", host=host, port=port)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _write_ahead(storage: optuna.storages.RDBStorage) -> None:
    """SQLite's write-ahead log: several times fewer waits for the disk, and readers never block the writer."""

    @event.listens_for(storage.engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # connections made before the listener


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The Optuna sampler of that name; `auto` is multivariate TPE.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in _SAMPLERS:
        raise InputError(f"unknown sampler {name!r}: known are auto, {', '.join(_SAMPLERS)}")
    return _SAMPLERS[name](seed)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(multivariate=True, n_startup_trials=8, seed=seed)


# GP takes seconds a proposal and does not learn from rejected ones, so TPE is what `auto` means.
_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "auto": _tpe,
    "tpe": _tpe,
    "gp": lambda seed: GPSampler(n_startup_trials=8, seed=seed),
    "nsga2": lambda seed: NSGAIISampler(population_size=20, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
