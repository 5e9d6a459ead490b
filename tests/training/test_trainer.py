"""Training of a recipe: files, resuming, refused input and the command line."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.command_line import Ltmsearch
from support.nets import randomise
from support.processes import completed, started
from test_learner import VIT, recipe
from torch import nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import load_recipe
from ltmsearch.errors import InputError, TrainingDiverged
from ltmsearch.io.safetensors_state import load_state
from ltmsearch.models import create_subnet
from ltmsearch.models.supernet import Supernet
from ltmsearch.search.checkpoint import CheckpointState, save_checkpoint
from ltmsearch.training.builders import make_network
from ltmsearch.training.epoch_records import read_log, select_best
from ltmsearch.training.options import BEST, LAST, LOG, RECIPE, STATE, TrainingOptions, default_folder
from ltmsearch.training.trainer import train_recipe


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


def options(out: Path, images: Path, **changes: Any) -> TrainingOptions:
    return TrainingOptions(**{"out": out, "dataset": "folder", "data_dir": images, "device": "cpu"} | changes)


class _Interrupt(Callbacks):
    """Interrupts in the middle of an epoch."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, done: int, status: str = "") -> None:
        if status and done > self.after:
            raise KeyboardInterrupt


class TestTraining:
    def test_files_and_records(self, tmp_path: Path, images: Path) -> None:
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

    @pytest.mark.long
    def test_interrupted_training_resumes_exactly(self, tmp_path: Path, images: Path) -> None:
        of = recipe(ib_weight=0.1, mixup=0.2)
        train_recipe(of, options(tmp_path / "whole", images))
        with pytest.raises(KeyboardInterrupt):
            train_recipe(of, options(tmp_path / "parts", images), _Interrupt(after=6))
        assert len(read_log(tmp_path / "parts" / LOG)) == 2
        with pytest.raises(InputError, match="already has a training; use --resume to continue it"):
            train_recipe(of, options(tmp_path / "parts", images))
        with pytest.raises(InputError, match=r"a different training \(lr was 0.001 and is now 0.01\)"):
            train_recipe(of.changed({"lr": 0.01}), options(tmp_path / "parts", images, resume=True))
        train_recipe(of, options(tmp_path / "parts", images, resume=True))
        for name in (BEST, LAST):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        again = train_recipe(of, options(tmp_path / "parts", images, resume=True))  # finished: nothing to do
        assert (tmp_path / "parts" / LAST).read_bytes() == (tmp_path / "whole" / LAST).read_bytes()
        assert len(again.records) == 3

    @pytest.mark.slow
    def test_killed_training_resumes_exactly(self, tmp_path: Path, images: Path) -> None:
        of = recipe(ib_weight=0.1, epochs=4)
        of.save(tmp_path / "r.yaml")
        train_recipe(of, options(tmp_path / "whole", images))
        command = [
            sys.executable, "-m", "ltmsearch", "train", str(tmp_path / "r.yaml"), "--data-dir", str(images),
            "--device", "cpu", "--out", str(tmp_path / "parts"), "--quiet", "--resume",
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with started(command, env=environment):  # killed at its end
            deadline = time.monotonic() + 120
            while not (tmp_path / "parts" / STATE).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        assert len(load_state(tmp_path / "parts" / STATE)["records"]) < 4, "it was killed too late to show anything"
        train_recipe(of, options(tmp_path / "parts", images, resume=True))
        for name in (BEST, LAST):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_infinite_loss_is_an_error(self, tmp_path: Path, images: Path) -> None:
        with pytest.raises(TrainingDiverged, match="not finite in epoch 1; try a lower lr"):
            train_recipe(recipe(lr=1e30, min_lr=1e30, warmup_lr=1e30), options(tmp_path / "t", images))
        assert not (tmp_path / "t" / STATE).exists()

    @pytest.mark.parametrize(
        ("keys", "others", "message"),
        [
            ({"batch_size": 3, "mixup": 0.1}, {}, "even number of images per process, but got 3"),
            ({"batch_size": 5, "grad_accum_steps": 2}, {}, r"a multiple of .* but got 5 and 1 × 2"),
            ({"opt": "adamm"}, {}, "unknown optimizer 'adamm': did you mean adam"),
            ({"opt": "lookahead_adamm"}, {}, "unknown optimizer 'lookahead_adamm'"),
            ({"grad_accum_steps": 4, "img_size": 32}, {}, "1 image of 32 px in a pass ends as a map of one"),
            ({"sync_bn": True}, {}, "sync_bn needs GPUs, but the device is cpu"),
            ({"distill_loss_weight": 1.0}, {}, "distill_loss_weight above 0 needs a teacher's weights"),
            ({}, {"teacher": Path("t.pt")}, "--teacher needs --distill-loss-weight above 0"),
            ({}, {"init": Path("none.pt")}, "none.pt does not exist"),
            ({}, {"data_dir": Path("nowhere")}, "existing image folder"),
            ({"model": "ltm_mobilevit_xxl"}, {}, "unknown backbone 'mobilevit_xxl'"),
            ({"schedule": {"stages.9": 0.5}}, {}, "stages.9"),
        ],
    )
    def test_conflicting_input_writes_nothing(
        self, tmp_path: Path, images: Path, keys: dict[str, Any], others: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            train_recipe(recipe(**keys), options(tmp_path / "t", images, **others))
        assert not (tmp_path / "t").exists()

    def test_efficientvit_has_no_stochastic_depth(self, tmp_path: Path, images: Path) -> None:
        of = recipe("efficientvit_b0", schedule={}, drop_path=0.1)
        with pytest.raises(InputError, match="drop_path: efficientvit_b0 has no stochastic depth"):
            train_recipe(of, options(tmp_path / "t", images))


def test_training_starts_from_shared_weights(tmp_path: Path) -> None:
    of = recipe()
    supernet = Supernet(of.backbone, num_classes=2)
    randomise(supernet)
    state = CheckpointState(class_names=["a", "b"], version=0, scored=0, space="s", trial=None, outcome=None)
    save_checkpoint(tmp_path, supernet.state_dict(), state)
    net = make_network(of, TrainingOptions(out=tmp_path, init=tmp_path), "cpu", Callbacks())[0].eval()
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(x), supernet.extract(of.schedule).eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("backbone", ["mobilevit_xxs", "efficientvit_b0"])
def test_sync_bn_keeps_activations(tmp_path: Path, backbone: str) -> None:
    """timm norms contain activations, which torch's own conversion drops."""
    nets = []
    for sync_bn in (False, True):
        torch.manual_seed(0)
        of = recipe(backbone, schedule={}, sync_bn=sync_bn)
        nets.append(make_network(of, TrainingOptions(out=tmp_path), "cuda", Callbacks())[0].eval())
    plain, synchronised = nets
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(synchronised(x), plain(x))


def test_default_folder_names() -> None:
    assert default_folder(recipe(), Path("x/my.yaml")) == Path("trainings/my")
    origin = recipe(provenance={"study": "a/b", "trial": 3})
    assert default_folder(origin, Path("x/3.yaml")) == Path("trainings/a-b-3")


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["ltm", "select"])  # the latter with a loss of its own
def test_two_processes_match_one(tmp_path: Path, images: Path, operator: str) -> None:
    """A net without BatchNorm: its statistics would be those of each process's images."""
    of = recipe(VIT, ib_weight=1.0, ib_warmup_ratio=0, opt="sgd", reprob=0.5, grad_accum_steps=2, amp=False)
    # Patch tokens behind the last attention are unused: that operator gets no gradient.
    of = of.changed({"operator": operator, "schedule": {"blocks.1": 0.5, "blocks.11": 0.5}})
    train_recipe(of, options(tmp_path / "one", images))
    of.save(tmp_path / "r.yaml")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29731", "-m",
        "ltmsearch", "train", str(tmp_path / "r.yaml"), "--data-dir", str(images), "--device", "cpu",
        "--out", str(tmp_path / "two"), "--quiet",
    ]  # fmt: skip
    completed(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    one, two = (load_file(tmp_path / name / LAST) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    for first, second in zip(*(read_log(tmp_path / name / LOG) for name in ("one", "two")), strict=True):
        assert second.train_loss == pytest.approx(first.train_loss, rel=1e-5)
        assert (second.top1, second.mi_y) == (first.top1, pytest.approx(first.mi_y, abs=1e-5))
        assert (second.train_ib is None) == (first.epoch == 1)
        assert second.train_ib == (None if first.train_ib is None else pytest.approx(first.train_ib, rel=1e-4))


class TestCommand:
    def test_output_and_changed_keys(
        self, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
    ) -> None:
        recipe().save(tmp_path / "r.yaml")
        monkeypatch.chdir(tmp_path)
        code, out, err = ltmsearch(
            "train", "r.yaml", "--data-dir", str(images), "--epochs", "2", "--no-amp", "--aa", "none", "--scale", "0.3",
            "1", "--lr", "0.01"
        )  # fmt: skip
        assert code == 0, err
        assert "2 epochs of 3 steps of 4 images, adamw, learning rate 0.01" in err
        assert "expected to take about" in err
        assert "expected to take about" not in out, "notes are no results"
        assert "trainings/r (best.safetensors, last.safetensors)" in out
        written = load_recipe(tmp_path / "trainings" / "r" / RECIPE)
        assert (written.epochs, written.amp, written.aa) == (2, False, None)
        assert (written.scale, written.lr) == ((0.3, 1.0), 0.01)

    def test_what_follows_from_fewer_epochs_and_smaller_images_is_said(
        self, tmp_path: Path, images: Path, ltmsearch: Ltmsearch
    ) -> None:
        schedule = {"stages.2.1.transformer.0": 0.5, "stages.4.1.transformer.0": 0.7}  # 2 × 2 tokens, then one at 32 px
        recipe(epochs=300, warmup_epochs=5, train_steps_per_epoch=None, schedule=schedule).save(tmp_path / "r.yaml")
        code, _, err = ltmsearch(
            "train", str(tmp_path / "r.yaml"), "--data-dir", str(images), "--epochs", "1", "--no-amp", "--img-size",
            "32", "--batch-size", "24", "--out", str(tmp_path / "t"),
        )  # fmt: skip
        assert code == 0, err
        lines = err.splitlines()
        assert lines[0] == "to fit epochs 1 instead of 300, in proportion: warmup_epochs 5 → 0"
        assert any(line.startswith("ltm_mobilevit_xxs: 1 layers merge by ltm, ") for line in lines)
        assert (
            "at 32 px 1 of the recipe's 2 merging layers keep all tokens: their grids are too small for their keep "
            "ratios"
        ) in lines
        assert (
            "an epoch is one step of batch_size 24, but there are 12 training images: each is seen 2.0 times in it"
        ) in lines
        written = load_recipe(tmp_path / "t" / RECIPE)
        assert (written.epochs, written.warmup_epochs) == (1, 0)

    def test_json_output(self, tmp_path: Path, images: Path, ltmsearch: Ltmsearch) -> None:
        recipe().save(tmp_path / "r.yaml")
        arguments = ("train", str(tmp_path / "r.yaml"), "--data-dir", str(images), "--epochs", "2", "--no-amp")
        folder = tmp_path / "t"
        where = ("--out", str(folder), "--json", "--quiet")
        code, out, err = ltmsearch(*arguments, *where)
        assert (code, err) == (0, "")
        record = json.loads(out, parse_constant=pytest.fail)
        epochs = read_log(folder / LOG)
        best = select_best(epochs)
        assert (record["folder"], record["model"], record["epochs"]) == (str(folder), "ltm_mobilevit_xxs", 2)
        assert (record["best"]["epoch"], record["best"]["weights"]) == (best.epoch, best.weights)
        assert (record["last"]["epoch"], record["last"]["top1"]) == (2, epochs[-1].top1)
        assert all(Path(file).is_file() for file in record["files"].values())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("--epochs", "1", "--warmup-epochs", "1"),
                "warmup_epochs + cooldown_epochs must be less than epochs, but got 1 + 0 and 1",
            ),
            (("--epochs", "0"), "epochs must be greater than or equal to 1, but got '0'"),
            (("--sched", "cosin"), "sched must be 'cosine'"),
            (("--lr", "-1"), "recipe: lr must be greater than 0, but got '-1'"),
        ],
    )
    def test_invalid_keys_are_refused(
        self, tmp_path: Path, arguments: tuple[str, ...], message: str, ltmsearch: Ltmsearch
    ) -> None:
        recipe().save(tmp_path / "r.yaml")
        code, _, err = ltmsearch("train", str(tmp_path / "r.yaml"), *arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
