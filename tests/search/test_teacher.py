"""The teacher of a study, and the images that trials learn from: the same for all."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Notes, tiny, tiny_study
from support.nets import randomise
from support.sizes import TINY_VIT
from torch import Tensor

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.engine.evaluation import divergence, log_probabilities
from ltmsearch.engine.steps import proxy_train
from ltmsearch.errors import InputError
from ltmsearch.io.safetensors_state import load_state, save_state
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.run import Run
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.teacher import TEACHER, Teacher
from ltmsearch.search.trial import Evaluator, load_parameters, parameters
from ltmsearch.search.workers.actor import TrialWorker, to_arrays

TAUGHT: dict[str, Any] = {**TINY_VIT, "objective": "kl", "proxy_steps": 2}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    found = prepare(tiny(tmp_path_factory.mktemp("context"), **TAUGHT), Callbacks())
    randomise(found.evaluator.supernet.model)
    return found


@pytest.fixture(scope="module")
def start(context: StudyContext) -> dict[str, Tensor]:
    """Shared weights: those of the teacher."""
    return parameters(context.evaluator.supernet)


@pytest.fixture
def evaluator(context: StudyContext, start: dict[str, Tensor]) -> Evaluator:
    """Taught by its own network."""
    found = context.evaluator
    load_parameters(found.supernet, start)
    teacher = Teacher()
    teacher.learn(found.supernet.model, found.data, found.scoring, found.settings)
    return replace(found, teacher=teacher)


@pytest.fixture
def half(context: StudyContext) -> MergeSchedule:
    return MergeSchedule.uniform(context.space.layers, 0.5)


class TestPredictions:
    def test_there_is_a_row_for_every_image(self, evaluator: Evaluator) -> None:
        sizes = {name: rows.shape for name, rows in evaluator.teacher.predictions.items()}
        assert sizes == {"search": (16, 10), "validation": (24, 10), "report": (24, 10), "train": (8, 10)}
        assert evaluator.teacher.of("search", 5) is not None
        assert Teacher().of("search") is None

    def test_rows_are_in_the_order_of_their_images(self, evaluator: Evaluator) -> None:
        """A subnet without merging is the teacher: on each image, it loses nothing."""
        plain = MergeSchedule.uniform(evaluator.supernet.layers, 1.0)
        for images in ("search", "validation", "report"):
            assert evaluator.score(plain, images).kl == pytest.approx(0, abs=1e-6)
        assert evaluator.score(plain, "search", number=7).kl == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("number", [None, 7])
    def test_the_divergence_is_that_of_the_teacher(
        self, evaluator: Evaluator, half: MergeSchedule, number: int | None
    ) -> None:
        teacher, supernet = evaluator.teacher.of("search", number), evaluator.supernet
        assert teacher is not None
        with supernet.active(half):
            rows = log_probabilities(supernet.model, evaluator.held_out("search", number), evaluator.scoring)
        by_hand = float(divergence(rows, teacher).mean())
        assert evaluator.score(half, "search", number=number).kl == pytest.approx(by_hand, rel=1e-3)
        assert by_hand > 1e-3

    def test_a_file_gives_them_back(self, evaluator: Evaluator, tmp_path: Path) -> None:
        evaluator.teacher.save(tmp_path)
        read = Teacher()
        read.load(tmp_path, evaluator.data, evaluator.settings)
        assert read.predictions.keys() == evaluator.teacher.predictions.keys()
        assert all(torch.equal(rows, read.predictions[name]) for name, rows in evaluator.teacher.predictions.items())

    def test_trials_without_training_need_no_rows(
        self, evaluator: Evaluator, half: MergeSchedule, tmp_path: Path
    ) -> None:
        settings, teacher = evaluator.settings.model_copy(update={"proxy_steps": 0}), Teacher()
        teacher.learn(evaluator.supernet.model, evaluator.data, evaluator.scoring, settings)
        teacher.save(tmp_path)
        teacher.load(tmp_path, evaluator.data, settings)
        untrained = replace(evaluator, settings=settings, teacher=teacher)
        assert untrained.evaluate(parameters(evaluator.supernet), half, seed=0).score.kl is not None

    def test_a_worker_gets_those_of_the_driver(
        self, evaluator: Evaluator, half: MergeSchedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = evaluator
        opened = lambda *_: (found.supernet, found.data)  # noqa: E731
        monkeypatch.setattr("ltmsearch.search.workers.actor.open_supernet_and_data", opened)
        worker = TrialWorker(found.settings.model_dump(exclude_none=True), 1, "fp32", found.sides)
        worker.prepare(to_arrays(found.supernet.state_dict()), to_arrays(found.teacher.predictions))
        assert worker.evaluator.score(half, "search").kl == found.score(half, "search").kl


class Seen:
    """Images and labels on which trials train."""

    def __init__(self, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.evaluator, self.images, self.fails = evaluator, list[Tensor](), 0
        original = evaluator.supernet.model.forward

        def forward(images: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                self.images.append(images.clone())
                if self.fails:
                    self.fails -= 1
                    raise MemoryError
            found: Tensor = original(images)
            return found

        monkeypatch.setattr(evaluator.supernet.model, "forward", forward)

    def of(self, schedule: MergeSchedule, **options: Any) -> list[Tensor]:
        self.images.clear()
        self.evaluator.evaluate(parameters(self.evaluator.supernet), schedule, **options)
        return list(self.images)


class TestImagesOfTrials:
    def test_all_trials_train_on_the_same(
        self, evaluator: Evaluator, half: MergeSchedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, other = Seen(evaluator, monkeypatch), MergeSchedule.uniform(evaluator.supernet.layers, 0.7)
        first, second = seen.of(half, seed=3), seen.of(other, seed=4, ib_weight=0.5)
        assert len(first) == len(second) == 2
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        assert not torch.equal(*first)

    def test_smaller_batches_have_the_same_images_first(
        self, evaluator: Evaluator, half: MergeSchedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where memory is full, and in the same order, so that the teacher's rows are theirs."""
        seen = Seen(evaluator, monkeypatch)
        whole = torch.cat(seen.of(half, seed=3))
        seen.fails = 1
        _, *halves = seen.of(half, seed=3)
        assert [len(images) for images in halves] == [2, 2]
        assert torch.equal(torch.cat(halves), whole[:4])

    def test_the_teachers_rows_are_those_of_the_images(
        self, evaluator: Evaluator, start: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also in smaller batches: without merging there is nothing to learn, and with other rows there is much."""
        plain, losses = MergeSchedule.uniform(evaluator.supernet.layers, 1.0), list[float]()

        def spy(*args: Any, **options: Any) -> None:
            losses.append(proxy_train(*args, **options) or 0.0)

        monkeypatch.setattr("ltmsearch.search.trial.proxy_train", spy)
        turned = {**evaluator.teacher.predictions, "train": evaluator.teacher.predictions["train"].flip(0)}
        still = evaluator.settings.model_copy(update={"proxy_lr": 1e-9})
        for teacher in (evaluator.teacher, Teacher(predictions=turned)):
            for batch_size in (4, 2):
                settings = still.model_copy(update={"batch_size": batch_size, "proxy_steps": 8 // batch_size})
                replace(evaluator, settings=settings, teacher=teacher).evaluate(start, plain, seed=0)
        assert losses[:2] == pytest.approx([0, 0], abs=1e-6)
        assert min(losses[2:]) > 1e-3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, not to be changed."""
    return tiny_study(tmp_path_factory.mktemp("taught"), **TAUGHT | {"trials": 2, "sampler": "tpe"})


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def continued(run: Path, notes: Callbacks | None = None) -> Run:
    return run_study(tiny(run, **TAUGHT | {"trials": 3, "sampler": "tpe"}), notes)


class TestStudies:
    def test_the_measure_is_the_divergence(self, whole: Path) -> None:
        records = Run.open(whole).trials
        assert all(record.kl is not None and record.kl > 0 for record in records)
        assert records[0].agreement is not None
        final = [record for record in Run.open(whole).front if record.rescored_kl is not None]
        assert final == sorted(final, key=lambda record: record.rescored_kl or 0.0)

    def test_the_same_teacher_goes_on(self, run: Path) -> None:
        before = (run / TEACHER).read_bytes()
        assert len(continued(run).trials) == 4
        assert (run / TEACHER).read_bytes() == before

    @pytest.mark.long
    @pytest.mark.parametrize("damage", ["missing", "cut", "another state", "no tensors", "fewer images"])
    def test_unusable_files_are_refused_in_one_line(self, run: Path, damage: str) -> None:
        path, table = run / TEACHER, (run / "trials.csv").read_bytes()
        rows = load_state(path)
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-20])
        elif damage == "another state":
            save_state(path, {"done": 3})
        elif damage == "no tensors":
            save_state(path, dict.fromkeys(rows, 1.0))
        else:
            save_state(path, {**rows, "search": rows["search"][1:]})
        notes = Notes()
        with pytest.raises(InputError) as caught:
            continued(run, notes)
        assert str(path) in str(caught.value)
        assert str(caught.value).isprintable()
        assert (run / "trials.csv").read_bytes() == table

    def test_where_labels_are_learned_there_is_none(self, tmp_path: Path) -> None:
        run = tiny_study(tmp_path, **TINY_VIT | {"trials": 1})
        assert not (run / TEACHER).exists()
        assert all(record.kl is record.rescored_kl is None for record in Run.open(run).trials)
