"""The cache of a study's trials: what it gives is what the database holds, and it reads no more than it must."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from ltmsearch.search.storage.cache import KnownTrials, cached


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def begin(url: str) -> optuna.Study:
    return optuna.create_study(storage=cached(RDBStorage(url)), directions=["maximize", "minimize"], study_name="s")


def stored(url: str) -> list[FrozenTrial]:
    """As another process reads them."""
    return optuna.load_study(study_name="s", storage=RDBStorage(url)).get_trials()


def test_a_database_has_it_and_what_is_in_memory_does_not(url: str) -> None:
    assert isinstance(cached(RDBStorage(url)), KnownTrials)
    memory = InMemoryStorage()
    assert cached(memory) is memory


def test_it_gives_what_the_database_holds_after_every_kind_of_write(url: str) -> None:
    study = begin(url)

    def same() -> None:
        assert study.get_trials() == stored(url)

    same()
    study.enqueue_trial({"a": 3}, user_attrs={"label": "queued"})
    same()
    first, second = study.ask(), study.ask()
    same()
    assert [first.suggest_int("a", 0, 5), second.suggest_int("a", 0, 5)][0] == 3
    same()
    first.set_user_attr("gflops", 1.5)
    second.set_constraint("budget", 0.5)
    same()
    study.tell(second, state=TrialState.PRUNED)
    same()
    study.tell(first, [70.0, 1.5])
    same()
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "PRUNED"]


def test_trials_that_others_add_are_found(url: str) -> None:
    study = begin(url)
    study.ask()
    study.get_trials()
    optuna.load_study(study_name="s", storage=RDBStorage(url)).enqueue_trial({"a": 4})
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING", "WAITING"]
    assert study.ask().suggest_int("a", 0, 5) == 4


def test_they_are_in_order_though_others_add_some_meanwhile(url: str) -> None:
    study = begin(url)
    study.ask()
    study.get_trials()
    optuna.load_study(study_name="s", storage=RDBStorage(url)).ask()
    study.ask()
    assert [trial.number for trial in study.get_trials()] == [0, 1, 2]
    assert study.get_trials() == stored(url)


def test_a_write_that_failed_is_looked_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been written, and only the answer lost."""
    study = begin(url)
    trial = study.ask()
    study.get_trials()
    write = RDBStorage.set_trial_user_attr

    def lost(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        raise ConnectionError

    monkeypatch.setattr(RDBStorage, "set_trial_user_attr", lost)
    with pytest.raises(ConnectionError):
        trial.set_user_attr("gflops", 1.5)
    assert study.get_trials()[0].user_attrs == {"gflops": 1.5}


def test_it_reads_those_that_were_written_and_no_others(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study, read, get = begin(url), [], RDBStorage._get_trials
    running = [study.ask() for _ in range(20)]
    study.get_trials()

    def counted(*args: Any, **kwargs: Any) -> list[FrozenTrial]:
        trials = get(*args, **kwargs)
        read.append([trial.number for trial in trials])
        return trials

    monkeypatch.setattr(RDBStorage, "_get_trials", counted)
    running[7].set_user_attr("gflops", 1.5)
    study.get_trials()
    study.get_trials()
    assert read == [[7], []]


def test_a_study_that_is_deleted_leaves_nothing_behind(url: str) -> None:
    study = begin(url)
    study.ask()
    study.get_trials()
    storage = study._storage
    optuna.delete_study(study_name="s", storage=storage)
    again = optuna.create_study(storage=storage, directions=["maximize", "minimize"], study_name="s")
    assert again.get_trials() == []
    again.ask()
    assert [trial.number for trial in again.get_trials()] == [0]
