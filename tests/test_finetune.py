"""Training a recipe: what a step does, and that an interrupted training ends like one that was not."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomise
from safetensors import safe_open
from safetensors.torch import load_file
from test_cli import call, image_folder
from torch import Tensor, nn

from ltmsearch.backbones import create_subnet
from ltmsearch.checkpoint import CheckpointState, save_checkpoint
from ltmsearch.epochs import read_log, select_best
from ltmsearch.errors import InputError, TrainingDiverged
from ltmsearch.finetune import BEST, LAST, LOG, RECIPE, STATE, TrainingOptions, default_folder, train_recipe
from ltmsearch.finetune.learner import Learner, distillation, ib_start
from ltmsearch.finetune.parts import make_network
from ltmsearch.finetune.state import load_state, save_state
from ltmsearch.observer import Observer
from ltmsearch.ranks import Ranks
from ltmsearch.recipe import NET, Recipe, load_recipe
from ltmsearch.runtime import Runtime
from ltmsearch.schedule import MergeSchedule
from ltmsearch.supernet import Supernet

RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, channels_last=True, reason="test")
VIT = "vit_tiny_patch16_224"


def recipe(backbone: str = "mobilevit_xxs", **changes: Any) -> Recipe:
    layer = "blocks.1" if backbone == VIT else "stages.2.1.transformer.0"
    keys: dict[str, Any] = {
        "model": f"ltm_{backbone}", "operator": "ltm", "schedule": {layer: 0.5}, "img_size": 64, "num_classes": 2,
        "epochs": 3, "warmup_epochs": 1, "batch_size": 4, "lr": 1e-3, "ib_beta": 10.0,
    }  # fmt: skip
    return Recipe(**keys | changes)


def learner(of: Recipe, model: nn.Module | None = None, **changes: Any) -> Learner:
    torch.manual_seed(0)
    model = model or create_subnet(of.backbone, **of.model_kwargs())
    return Learner(of, model, **{"runtime": RUNTIME, "ranks": Ranks(), "steps_per_epoch": 2} | changes)


def batches(number: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(size, 3, 64, 64, generator=generator), torch.arange(size) % 2) for _ in range(number)]


def run_epochs(trained: Learner, number: int) -> None:
    for place, (images, labels) in enumerate(batches(number * trained.steps_per_epoch)):
        trained.step(images, labels)
        if (place + 1) % trained.steps_per_epoch == 0:
            trained.end_epoch()


def weights(trained: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


class TestSteps:
    def test_the_learning_rate_follows_timms_schedule(self) -> None:
        trained = learner(recipe(lr=1e-3, min_lr=1e-4, warmup_lr=1e-5, epochs=4, warmup_epochs=1))
        seen = []
        for images, labels in batches(8):
            trained.step(images, labels)
            seen.append(trained.lr)
        assert seen[:2] == pytest.approx([1e-5, (1e-5 + 1e-3) / 2])  # rises over the two steps of the first epoch
        cosine = [1e-4 + (1e-3 - 1e-4) * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(2, 8)]
        assert seen[2:] == pytest.approx(cosine)

    def test_accumulated_parts_are_one_batch(self) -> None:
        """In a net without BatchNorm, whose statistics would be those of the parts."""
        whole, parts = (learner(recipe(VIT, opt="sgd", grad_accum_steps=n)) for n in (1, 2))
        for images, labels in batches(3):
            one, other = whole.step(images, labels), parts.step(images, labels)
            torch.testing.assert_close(one.total, other.total)
        for name, value in weights(whole).items():
            torch.testing.assert_close(weights(parts)[name], value, rtol=1e-4, atol=1e-6)

    def test_every_parameter_is_trained_and_importance_does_not_decay(self) -> None:
        trained = learner(recipe())
        before = weights(trained)
        for images, labels in batches(2):  # in the first step the inner parts of residual blocks get no gradient
            trained.step(images, labels)
        still = [name for name, parameter in trained.model.named_parameters() if torch.equal(before[name], parameter)]
        assert still == []
        decay = {id(p): group["weight_decay"] for group in trained.optimizer.param_groups for p in group["params"]}
        merging = {n.rpartition(".")[2]: decay[id(p)] for n, p in trained.model.named_parameters() if ".merging." in n}
        assert merging["importance"] == merging["kappa"] == 0
        assert merging["directions"] > 0

    def test_randomness_depends_on_the_step_alone(self) -> None:
        keys: dict[str, Any] = {"mixup": 0.5, "drop_path": 0.5}
        one, other = (
            learner(recipe(VIT, **keys), create_subnet(VIT, **recipe(VIT).model_kwargs(), drop_path_rate=0.5))
            for _ in range(2)
        )
        other.model.load_state_dict(one.model.state_dict())
        for images, labels in batches(2):
            torch.rand(7)  # whatever else draws numbers
            one.step(images.clone(), labels)
        for images, labels in batches(2):
            other.step(images.clone(), labels)
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())

    def test_clipping_limits_the_step(self) -> None:
        trained = learner(recipe(opt="momentum", momentum=0.0, weight_decay=0, lr=1.0, warmup_lr=1.0, clip_grad=1e-3))
        before = [parameter.detach().clone() for parameter in trained.model.parameters()]
        trained.step(*batches(1)[0])
        moved = [after.detach() - was for after, was in zip(trained.model.parameters(), before, strict=True)]
        assert float(torch.cat([each.flatten() for each in moved]).norm()) == pytest.approx(1e-3, rel=1e-2)

    def test_float16_scales_the_loss(self) -> None:
        runtime = Runtime(device=torch.device("cpu"), dtype=torch.float16, channels_last=True, reason="test")
        trained = learner(recipe(VIT, amp_dtype="float16"), runtime=runtime)
        before = weights(trained)
        trained.step(*batches(1)[0])
        assert trained.scaler.get_scale() > 1
        assert not torch.equal(before["patch_embed.proj.weight"], weights(trained)["patch_embed.proj.weight"])
        assert all(value.isfinite().all() for value in weights(trained).values())

    def test_mixed_labels_reach_the_ib_statistics_as_they_are(self) -> None:
        trained = learner(recipe(mixup=1.0, smoothing=0.3))
        trained.step(*batches(1)[0])
        ((_, _, targets),) = trained._kept
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
        assert ((targets > 0.01) & (targets < 0.99)).any()


class TestIBLoss:
    def test_it_sets_in_after_its_warm_up_and_never_without_statistics(self) -> None:
        assert [ib_start(recipe(epochs=10, ib_warmup_ratio=ratio)) for ratio in (0.0, 0.05, 0.3, 0.31, 1.0)] == [
            1, 1, 3, 4, 10,
        ]  # fmt: skip
        trained = learner(recipe(ib_weight=0.5, epochs=4, ib_warmup_ratio=0.5))
        seen = []
        for _ in range(4):
            seen.append(trained.ib_weight)
            run_epochs(trained, 1)
        assert seen == [0.0, 0.0, 0.5, 0.5]

    def test_the_term_is_part_of_what_is_minimised(self) -> None:
        with_ib, without = learner(recipe(ib_weight=0.5, ib_warmup_ratio=0)), learner(recipe(ib_weight=0))
        run_epochs(with_ib, 1)
        run_epochs(without, 1)
        assert all(torch.equal(value, weights(without)[name]) for name, value in weights(with_ib).items())
        one, other = with_ib.step(*batches(3)[2]), without.step(*batches(3)[2])
        assert other.ib is None
        assert one.ib is not None
        torch.testing.assert_close(one.total, other.total + 0.5 * one.ib)
        assert any(not torch.equal(value, weights(without)[name]) for name, value in weights(with_ib).items())


class TestDistillation:
    def test_by_hand(self) -> None:
        student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
        p, q = torch.tensor([math.e, 1.0]) / (math.e + 1), torch.tensor([1.0, math.e]) / (math.e + 1)
        wanted = 4 * float((p * (p.log() - q.log())).sum())  # temperature 2: logits 0 and 1
        assert float(distillation(student, teacher, 2.0)) == pytest.approx(wanted)
        assert float(distillation(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-7)

    def test_the_teacher_is_not_trained(self) -> None:
        of = recipe(distill_loss_weight=1.0)
        teacher = randomise(create_subnet(of.backbone, num_classes=2)).eval().requires_grad_(False)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        taught, alone = learner(of, teacher=teacher), learner(recipe())
        assert taught.step(*batches(1)[0]).total > alone.step(*batches(1)[0]).total
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


class TestState:
    def test_round_trip(self, tmp_path: Path) -> None:
        state = {
            "a": torch.arange(3), "b": {0: [torch.rand(2), None, 1.5], "x": (True, "text")}, "nan": float("inf"),
            "half": torch.ones(2, dtype=torch.bfloat16), "scalar": torch.tensor(2.5),
        }  # fmt: skip
        save_state(tmp_path / "s", state)
        again = load_state(tmp_path / "s")
        assert torch.equal(again["a"], state["a"])
        assert torch.equal(again["b"][0][0], state["b"][0][0])
        assert again["b"][0][1:] == [None, 1.5]
        assert again["b"]["x"] == [True, "text"]
        assert (again["nan"], again["half"].dtype, float(again["scalar"])) == (float("inf"), torch.bfloat16, 2.5)

    def test_objects_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="/model must be a tensor or a plain value, but is Linear"):
            save_state(tmp_path / "s", {"model": nn.Linear(1, 1)})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
    def test_foreign_files_are_told(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(InputError, match="must be the state of an ltmsearch training"):
            load_state(tmp_path / "s")

    @pytest.mark.parametrize("keys", [{}, {"opt": "sgd"}, {"opt": "lion"}, {"model_ema": False}])
    def test_a_learner_goes_on_with_the_same_bits(self, tmp_path: Path, keys: dict[str, Any]) -> None:
        of = recipe(ib_weight=1.0, ib_warmup_ratio=0, **keys)
        whole, first = learner(of), learner(of)
        run_epochs(whole, 1)
        run_epochs(first, 1)
        save_state(tmp_path / "s", first.state())
        second = learner(of)
        second.load(load_state(tmp_path / "s"))
        for images, labels in batches(3):
            whole.step(images, labels)
            second.step(images, labels)
        assert whole.ib_weight == 1.0
        assert all(torch.equal(value, weights(second)[name]) for name, value in weights(whole).items())
        if whole.ema is not None and second.ema is not None:
            kept = second.ema.module.state_dict()
            assert all(torch.equal(value, kept[name]) for name, value in whole.ema.module.state_dict().items())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.drawing._write_png", lambda *_: None)


def options(out: Path, images: Path, **changes: Any) -> TrainingOptions:
    return TrainingOptions(**{"out": out, "dataset": "folder", "data_dir": images, "device": "cpu"} | changes)


class _Stops(Observer):
    """Interrupts in the middle of an epoch."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, done: int, status: str = "") -> None:
        if status and done > self.after:
            raise KeyboardInterrupt


class TestTraining:
    def test_what_it_leaves_behind(self, tmp_path: Path, images: Path) -> None:
        of = recipe(mixup=0.2, ib_weight=0.1)
        result = train_recipe(of, options(tmp_path / "t", images))
        assert {path.name for path in result.folder.iterdir()} == {BEST, LAST, LOG, RECIPE, STATE, "curves.html"}
        assert read_log(result.folder / LOG) == result.records
        assert [record.epoch for record in result.records] == [1, 2, 3]
        assert [record.ib_weight for record in result.records] == [0.0, 0.1, 0.1]
        assert all(record.mi_x is not None and record.ema_top1 is not None for record in result.records)
        written = load_recipe(result.folder / RECIPE)
        assert written.changed({"provenance": {}}) == of
        assert written.provenance["training"]["data_dir"] == str(images)
        for name in (BEST, LAST):
            net = create_subnet(of.backbone, **of.model_kwargs())
            net.load_state_dict(load_file(result.folder / name))
        with safe_open(result.folder / BEST, framework="pt") as file:
            facts = json.loads(file.metadata()["ltmsearch"])
        assert facts["class_names"] == ["cat", "dog"]
        assert (facts["epoch"], facts["top1"], facts["weights"]) == select_best(result.records)

    def test_interrupted_in_an_epoch_it_ends_the_same(self, tmp_path: Path, images: Path) -> None:
        of = recipe(ib_weight=0.1, mixup=0.2)
        train_recipe(of, options(tmp_path / "whole", images))
        with pytest.raises(KeyboardInterrupt):
            train_recipe(of, options(tmp_path / "parts", images), _Stops(after=6))
        assert len(read_log(tmp_path / "parts" / LOG)) == 2
        with pytest.raises(InputError, match="holds a training already: --resume continues it"):
            train_recipe(of, options(tmp_path / "parts", images))
        with pytest.raises(InputError, match=r"another kind \(lr is 0.001 there and 0.01 now\)"):
            train_recipe(of.changed({"lr": 0.01}), options(tmp_path / "parts", images, resume=True))
        train_recipe(of, options(tmp_path / "parts", images, resume=True))
        for name in (BEST, LAST):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        again = train_recipe(of, options(tmp_path / "parts", images, resume=True))  # finished: nothing to do
        assert (tmp_path / "parts" / LAST).read_bytes() == (tmp_path / "whole" / LAST).read_bytes()
        assert len(again.records) == 3

    def test_killed_it_ends_the_same(self, tmp_path: Path, images: Path) -> None:
        of = recipe(ib_weight=0.1, epochs=4)
        of.save(tmp_path / "r.yaml")
        train_recipe(of, options(tmp_path / "whole", images))
        command = [
            sys.executable, "-m", "ltmsearch", "train", str(tmp_path / "r.yaml"), "--data-dir", str(images),
            "--device", "cpu", "--out", str(tmp_path / "parts"), "--quiet", "--resume",
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 120
        while not (tmp_path / "parts" / STATE).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(load_state(tmp_path / "parts" / STATE)["records"]) < 4, "it was killed too late to show anything"
        train_recipe(of, options(tmp_path / "parts", images, resume=True))
        for name in (BEST, LAST):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_a_loss_that_is_not_finite_ends_it(self, tmp_path: Path, images: Path) -> None:
        with pytest.raises(TrainingDiverged, match="not finite in epoch 1: a lower lr"):
            train_recipe(recipe(lr=1e30, min_lr=1e30, warmup_lr=1e30), options(tmp_path / "t", images))
        assert not (tmp_path / "t" / STATE).exists()

    @pytest.mark.parametrize(
        ("keys", "others", "message"),
        [
            ({"num_classes": 5}, {}, "must be the data's 2, but is 5; --num-classes 2 would do"),
            ({"batch_size": 3, "mixup": 0.1}, {}, "even number of images per process, but got 3"),
            ({"batch_size": 5, "grad_accum_steps": 2}, {}, r"a multiple of .* but got 5 and 1 × 2"),
            ({"opt": "adamm"}, {}, "unknown optimizer 'adamm': did you mean adam"),
            ({"sync_bn": True}, {}, "sync_bn needs GPUs, but the device is cpu"),
            ({"distill_loss_weight": 1.0}, {}, "distill_loss_weight above 0 needs a teacher's weights"),
            ({}, {"teacher": Path("t.pt")}, "--teacher needs --distill-loss-weight above 0"),
            ({}, {"init": Path("none.pt")}, "none.pt does not exist"),
            ({}, {"data_dir": Path("nowhere")}, "existing image folder"),
            ({"model": "ltm_mobilevit_xxl"}, {}, "unknown backbone 'mobilevit_xxl'"),
            ({"schedule": {"stages.9": 0.5}}, {}, "stages.9"),
        ],
    )
    def test_what_does_not_fit_is_told_and_nothing_written(
        self, tmp_path: Path, images: Path, keys: dict[str, Any], others: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            train_recipe(recipe(**keys), options(tmp_path / "t", images, **others))
        assert not (tmp_path / "t").exists()

    def test_efficientvit_has_no_stochastic_depth(self, tmp_path: Path, images: Path) -> None:
        of = recipe("efficientvit_b0", schedule={}, drop_path=0.1)
        with pytest.raises(InputError, match="drop_path: efficientvit_b0 has no stochastic depth"):
            train_recipe(of, options(tmp_path / "t", images))


def test_it_starts_from_a_studys_shared_weights(tmp_path: Path) -> None:
    of = recipe()
    supernet = Supernet(of.backbone, num_classes=2)
    randomise(supernet)
    state = CheckpointState(class_names=["a", "b"], version=0, space="s", trial=None, outcome=None)
    save_checkpoint(tmp_path, supernet.state_dict(), state)
    net = make_network(of, TrainingOptions(out=tmp_path, init=tmp_path), "cpu", Observer()).eval()
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(x), supernet.extract(of.merge_schedule).eval()(x), rtol=0, atol=0)


def test_folders_are_named_by_where_a_recipe_comes_from() -> None:
    assert default_folder(recipe(), Path("x/my.yaml")) == Path("trainings/my")
    origin = recipe(provenance={"study": "a/b", "trial": 3})
    assert default_folder(origin, Path("x/3.yaml")) == Path("trainings/a-b-3")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path, images: Path) -> None:
    """A net without BatchNorm: its statistics would be those of each process's images."""
    of = recipe(VIT, ib_weight=1.0, ib_warmup_ratio=0, opt="sgd", reprob=0.5, grad_accum_steps=2)
    train_recipe(of, options(tmp_path / "one", images))
    of.save(tmp_path / "r.yaml")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29731", "-m",
        "ltmsearch", "train", str(tmp_path / "r.yaml"), "--data-dir", str(images), "--device", "cpu",
        "--out", str(tmp_path / "two"), "--quiet",
    ]  # fmt: skip
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    one, two = (load_file(tmp_path / name / LAST) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    for first, second in zip(*(read_log(tmp_path / name / LOG) for name in ("one", "two")), strict=True):
        assert second.train_loss == pytest.approx(first.train_loss, rel=1e-5)
        assert (second.top1, second.mi_y) == (first.top1, pytest.approx(first.mi_y, abs=1e-5))
        assert (second.train_ib is None) == (first.epoch == 1)
        assert second.train_ib == (None if first.train_ib is None else pytest.approx(first.train_ib, rel=1e-4))


class TestCommand:
    def test_it_trains_and_says_what_came_out(
        self, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe().save(tmp_path / "r.yaml")
        monkeypatch.chdir(tmp_path)
        code, out, err = call(
            "train", "r.yaml", "--data-dir", str(images), "--epochs", "2", "--no-amp", "--aa", "none", "--scale", "0.3",
            "1", "--lr", "0.01", monkeypatch=monkeypatch, capsys=capsys,
        )  # fmt: skip
        assert (code, err) == (0, "")
        assert "2 epochs of 3 steps of 4 images, adamw, learning rate 0.01" in out
        assert "expected to take about" in out
        assert "trainings/r (best.safetensors, last.safetensors)" in out
        written = load_recipe(tmp_path / "trainings" / "r" / RECIPE)
        assert (written.epochs, written.amp, written.aa) == (2, False, None)
        assert (written.scale, written.lr) == ((0.3, 1.0), 0.01)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--epochs", "1"), "warmup_epochs + cooldown_epochs must be less than epochs, but got 1 + 0 and 1"),
            (("--sched", "cosin"), "sched: Input should be 'cosine'"),
            (("--lr", "-1"), "recipe: lr: Input should be greater than 0, but got -1.0"),
        ],
    )
    def test_keys_are_checked(
        self, tmp_path: Path, arguments: tuple[str, ...], message: str,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        recipe().save(tmp_path / "r.yaml")
        code, _, err = call("train", str(tmp_path / "r.yaml"), *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1

    def test_every_training_key_is_an_option_with_the_recipes_words(self) -> None:
        from typer.main import get_command

        from ltmsearch.cli import app

        options = {p.name: p for p in get_command(app).commands["train"].params}  # type: ignore[attr-defined]
        for name, field in Recipe.model_fields.items():
            if name not in NET:
                assert options[name].help == field.description

    def test_schedules_as_objects(self) -> None:
        assert recipe().merge_schedule == MergeSchedule(keep_ratios={"stages.2.1.transformer.0": 0.5})
