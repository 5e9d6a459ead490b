"""Parallel trials: the driver with workers that answer in any order, and the options for Ray."""

import random
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from support.command_line import tiny_vit
from torch import Tensor

from ltmsearch import StudySettings, run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.errors import InputError, WorkersLost
from ltmsearch.search.checkpoint import load_checkpoint, load_previous
from ltmsearch.search.driver import Driver
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.shared_weights import decayed_share
from ltmsearch.search.workers import Answer, LocalWorker, Task
from ltmsearch.search.workers.connection import check_resources, gpu_share, needs_ray
from ltmsearch.search.workers.local import evaluate_task
from ltmsearch.search.workers.ray import worker_settings


class Shuffled:
    """Workers in this process that answer in random order, and are lost after a number of answers."""

    remote = True

    def __init__(self, context: StudyContext, number: int, *, after: int = -1) -> None:
        self.evaluator, self.number, self.left = context.evaluator, number, after
        self.handed: list[tuple[Task, int, Mapping[str, Tensor]]] = []
        self.most = 0
        self.chance = random.Random(0)

    def free(self) -> int:
        return self.number - len(self.handed)

    def start(self, task: Task, version: int, weights: Mapping[str, Tensor]) -> None:
        self.handed.append((task, version, weights))
        self.most = max(self.most, len(self.handed))

    def answers(self) -> list[Answer]:
        if self.left == 0:
            raise WorkersLost("all are gone")
        self.left -= 1
        task, _, weights = self.handed.pop(self.chance.randrange(len(self.handed)))
        return [evaluate_task(self.evaluator, task, weights)]

    def scores(self, *what: Any, **limit: Any) -> list[float]:
        return LocalWorker(self.evaluator).scores(*what, **limit)

    def close(self) -> None:
        pass


def make_context(folder: Path, **changes: Any) -> StudyContext:
    return prepare(tiny_vit(folder, trials=9, **changes), Callbacks())


def driven(context: StudyContext, folder: Path, workers: Any) -> Driver:
    """A driver after its search."""
    folder.mkdir(exist_ok=True)
    driver = Driver(context, folder, Callbacks(), workers=workers)
    found = [load(folder, space=context.space.digest()) for load in (load_checkpoint, load_previous)]
    driver.warm_up([each for each in found if each is not None])
    driver.settle()
    driver.search(until=None)
    return driver


class TestAtOnce:
    @pytest.mark.slow
    def test_each_trial_runs_once(self, tmp_path: Path) -> None:
        workers = Shuffled(context := make_context(tmp_path / "run"), 4)
        driver = driven(context, tmp_path / "run", workers)
        trials = driver.study.trials
        assert workers.most == 4
        assert Counter(t.state.name for t in trials if t.user_attrs.get("label") != "plain")["COMPLETE"] == 9
        assert not any(t.state == optuna.trial.TrialState.RUNNING for t in trials)
        nets = [tuple(sorted(t.params.items())) for t in trials]
        assert len(set(nets)) == len(nets), "parallel workers never get the same schedule"

    @pytest.mark.long
    def test_weights_sum_the_changes_of_trials_by_age(self, tmp_path: Path) -> None:
        context = make_context(tmp_path / "run", staleness_power=1.0)
        moves: list[tuple[float, Mapping[str, Tensor], Mapping[str, Tensor]]] = []

        class Watched(Shuffled):
            def answers(self) -> list[Answer]:
                handed = {task.trial: (version, weights) for task, version, weights in self.handed}
                (answer,) = super().answers()
                if answer.result is not None and answer.result.weights:
                    version, weights = handed[answer.trial]
                    age = driver.shared.version - version
                    moves.append((decayed_share(0.25, age, power=1.0), weights, answer.result.weights))
                return [answer]

        (tmp_path / "run").mkdir()
        driver = Driver(context, tmp_path / "run", Callbacks(), workers=Watched(context, 3))
        driver.warm_up([])
        expected = {name: value.clone() for name, value in driver.shared.weights.items()}
        driver.search(until=None)
        for share, start, trained in moves:
            expected = {name: value + share * (trained[name] - start[name]) for name, value in expected.items()}
        assert len({share for share, *_ in moves}) > 1
        assert all(torch.allclose(v, driver.shared.weights[n], atol=1e-5) for n, v in expected.items())
        ages = [t.user_attrs["age"] for t in driver.study.trials if "age" in t.user_attrs]
        assert max(ages) > 0

    @pytest.mark.slow
    def test_one_worker_is_the_study_without_workers(self, tmp_path: Path) -> None:
        one, other = (make_context(tmp_path / name) for name in ("here", "one"))
        here = driven(one, tmp_path / "here", LocalWorker(one.evaluator))
        shuffled = driven(other, tmp_path / "one", Shuffled(other, 1))
        assert [t.params for t in here.study.trials] == [t.params for t in shuffled.study.trials]
        assert [t.values for t in here.study.trials] == [t.values for t in shuffled.study.trials]
        assert all(torch.equal(v, shuffled.shared.weights[n]) for n, v in here.shared.weights.items())

    @pytest.mark.slow
    def test_interrupted_trials_run_again_under_their_numbers(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        with pytest.raises(WorkersLost):
            driven(context := make_context(run), run, Shuffled(context, 3, after=5))
        stored = optuna.load_study(study_name=None, storage=f"sqlite:///{run}/study.db").trials
        running = {t.number: t.params for t in stored if t.state == optuna.trial.TrialState.RUNNING}
        scored = {t.number: t.values for t in stored if t.values}
        assert len(running) in (2, 3)
        driver = driven(context := make_context(run), run, Shuffled(context, 3))
        trials = driver.study.trials
        assert all(trials[number].params == params for number, params in running.items())
        assert all(trials[number].values == values for number, values in scored.items())
        assert [t.number for t in trials] == list(range(len(trials)))
        assert sum(t.state.name == "COMPLETE" and t.user_attrs.get("label") != "plain" for t in trials) == 9
        assert driver.shared.state.scored == sum(t.state.name == "COMPLETE" for t in trials)


def settings(**changes: Any) -> StudySettings:
    return StudySettings.make("test", backbone="mobilevit_xxs", budget_gflops=0.27, **changes)


def test_workers_receive_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = settings(workers=2, data_dir="images", checkpoint="net.pth", storage="postgresql://me:secret@host/db")
    resolved = given.resolved("cpu")
    sent = worker_settings(resolved, precision="bf16", on_gpus=True)
    assert sent["data_dir"] == f"{tmp_path}/images", "workers start in other folders"
    assert (sent["precision"], sent["device"], sent["checkpoint"]) == ("bf16", "cuda", None)
    assert "secret" not in str(sent)
    ResolvedSettings(**sent)


class TestRayOptions:
    def test_one_worker_needs_no_ray(self) -> None:
        assert not needs_ray(settings())
        assert needs_ray(settings(workers=2))
        assert needs_ray(settings(ray_address="auto"))

    @pytest.mark.parametrize(
        ("changes", "cpus", "gpus", "message"),
        [
            ({"workers": 8}, 4, 0, "--workers must be at most the CPUs of here, 4, but got 8"),
            ({"workers": 2, "gpus_per_worker": 0.5}, 4, 0, "must be 0 as here has no GPUs, but got 0.5"),
            ({"workers": 4, "gpus_per_worker": 1}, 8, 2, "more than the 2 GPUs of here: use --workers 2"),
            ({"workers": 5, "gpus_per_worker": 0.4}, 8, 2, "more than the 2 GPUs of here: use --workers 4"),
            ({"workers": 2, "gpus_per_worker": 2}, 8, 1, "more than the 1 GPUs of here: use --gpus-per-worker 1"),
            ({"workers": 4, "gpus_per_worker": 0}, 4, 0, None),
            ({"workers": 4, "gpus_per_worker": 0.5}, 4, 2, None),
        ],
    )
    def test_missing_resources_are_refused(
        self, changes: dict[str, Any], cpus: float, gpus: float, message: str | None
    ) -> None:
        with nullcontext() if message is None else pytest.raises(InputError, match=message):
            check_resources(settings(**changes), cpus=cpus, gpus=gpus, where="here")

    @pytest.mark.parametrize(
        ("workers", "gpus", "share"), [(1, 4, 1.0), (4, 4, 1.0), (8, 4, 0.5), (9, 4, 0.3333), (4, 0, 0.0)]
    )
    def test_gpus_are_divided_evenly(self, workers: int, gpus: float, share: float) -> None:
        asked = settings(workers=workers, ray_address="auto")
        assert gpu_share(asked, device="cuda", gpus=gpus) == share
        assert gpu_share(asked, device="cpu", gpus=gpus) == 0
        check_resources(asked.model_copy(update={"gpus_per_worker": share}), cpus=64, gpus=gpus, where="here")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"gpus_per_worker": 1}, "gpus_per_worker needs workers on Ray"),
            ({"workers": 2, "gpus_per_worker": 1.5}, "must be a fraction below 1 or a whole number, but got 1.5"),
            ({"ray_address": "head"}, "but got 'head'; `ray start --head` prints it"),
            ({"ray_address": "ray://head:10001"}, "but got 'ray://head:10001'"),
            ({"ray_address": "127.0.0.1:1"}, r"127.0.0.1:1 cannot be reached \(Connection refused\)"),
            ({"ray_address": "127.0.0.1:99999"}, "127.0.0.1:99999 cannot be reached"),
        ],
    )
    def test_invalid_options(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            run_study(tiny_vit(tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()
