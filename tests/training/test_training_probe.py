"""The linear probe of a training: once, before the first epoch, in the network and its average."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import Ltmsearch, Notes
from support.nets import randomise
from support.processes import completed
from test_learner import VIT, recipe
from torch import Tensor

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import load_recipe
from ltmsearch.engine.distributed import Ranks
from ltmsearch.errors import InputError
from ltmsearch.models import create_backbone
from ltmsearch.training import probe
from ltmsearch.training.builders import make_network, make_teacher
from ltmsearch.training.options import LAST, RECIPE, TrainingOptions
from ltmsearch.training.trainer import _Trainer, train_recipe


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


def weights_of(folder: Path, classes: int, backbone: str = "mobilevit_xxs") -> Path:
    net = randomise(create_backbone(backbone, num_classes=classes, img_size=64))
    save_file(net.state_dict(), path := folder / f"{classes}.safetensors")
    return path


def options(out: Path, images: Path, **changes: Any) -> TrainingOptions:
    return TrainingOptions(**{"out": out, "dataset": "folder", "data_dir": images, "device": "cpu"} | changes)


def heads(trainer: _Trainer) -> list[dict[str, Tensor]]:
    assert trainer.learner.ema is not None
    nets = (trainer.learner.model, trainer.learner.ema.module)
    return [{n: v.clone() for n, v in net.state_dict().items() if n.startswith("head.fc.")} for net in nets]


def no_probe(*_: object, **__: object) -> None:
    raise AssertionError("the classifier is fitted again")


class _Interrupt(Callbacks):
    """Interrupts in the second epoch."""

    def advance(self, done: int, status: str = "") -> None:
        if "epoch 2" in status:
            raise KeyboardInterrupt


@pytest.mark.long
def test_it_is_told_recorded_and_not_repeated(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, init, notes = recipe(), weights_of(tmp_path, 0), Notes()
    train_recipe(of, options(tmp_path / "whole", images, init=init), notes)
    (line,) = (
        line for line in notes.lines if line.startswith("classifier fitted to the features of 12 training images")
    )
    record = load_recipe(tmp_path / "whole" / RECIPE).provenance["training"]["probe"]
    assert (record["images"], record["classes"], record["img_size"], record["val_images"]) == (12, 2, 64, 12)
    assert f"top-1 {record['train_top1']:.1f} % on them, {record['top1']:.1f} ± " in line
    with pytest.raises(KeyboardInterrupt):
        train_recipe(of, options(tmp_path / "parts", images, init=init), _Interrupt())
    monkeypatch.setattr(probe, "fit_classifiers", no_probe)
    train_recipe(of, options(tmp_path / "parts", images, init=init, resume=True))
    assert (tmp_path / "parts" / LAST).read_bytes() == (tmp_path / "whole" / LAST).read_bytes()
    again = load_recipe(tmp_path / "parts" / RECIPE).provenance["training"]["probe"]
    assert again | {"seconds": 0} == record | {"seconds": 0}


@pytest.mark.parametrize(("classes", "head"), [(0, "random"), (5, "random"), (2, None), (2, "probe")])
def test_a_classifier_that_is_not_fitted_stays_bit_for_bit(
    tmp_path: Path, images: Path, classes: int, head: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "fit_classifiers", no_probe)
    of, init = recipe(), weights_of(tmp_path, classes)
    given = options(tmp_path / "t", images, init=init, head=head)
    trainer = _Trainer(of, given, Ranks(), "cpu", Callbacks())
    assert not trainer.new_classifiers
    assert ("and is kept" in "".join(trainer._describe())) == (head == "probe")
    torch.manual_seed(of.seed)
    wanted = make_network(of, given, "cpu", Callbacks())[0].state_dict()
    for found in heads(trainer):
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_network_and_average_start_from_the_same_fit(tmp_path: Path, images: Path) -> None:
    trainer = _Trainer(
        recipe(), options(tmp_path / "t", images, init=weights_of(tmp_path, 5)), Ranks(), "cpu", Callbacks()
    )
    before, _ = heads(trainer)
    trainer._fit_classifiers()
    net, average = heads(trainer)
    assert all(
        torch.equal(value, average[name]) and not torch.equal(value, before[name]) for name, value in net.items()
    )


def test_registers_that_the_weights_lack_are_those_of_the_fit(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New registers are random: the unmerged network that the classifier is fitted to must have the very same."""
    fitted = []
    fit = probe.fit_classifiers
    monkeypatch.setattr(
        probe, "fit_classifiers", lambda net, *rest, **options: fitted.append(net) or fit(net, *rest, **options)
    )
    of, notes = recipe(VIT, registers=2, readout="register"), Notes()
    init = weights_of(tmp_path, 2, VIT)
    trainer = _Trainer(of, options(tmp_path / "t", images, init=init), Ranks(), "cpu", notes)
    assert trainer.new_classifiers == ("head",)
    assert any("2 new registers left as initialised" in line for line in notes.lines)
    trainer._fit_classifiers()
    trained, (plain,) = trainer.learner.model.state_dict(), fitted
    assert all(torch.equal(value, trained[name]) for name, value in plain.state_dict().items())


@pytest.mark.slow
def test_two_processes_start_from_one_fit(tmp_path: Path, images: Path) -> None:
    of = recipe(VIT, opt="sgd", amp=False, ib_weight=0.0, img_size=32)
    init = weights_of(tmp_path, 0, VIT)
    train_recipe(of, options(tmp_path / "one", images, init=init))
    of.save(tmp_path / "r.yaml")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29733", "-m",
        "ltmsearch", "train", str(tmp_path / "r.yaml"), "--data-dir", str(images), "--device", "cpu",
        "--init", str(init), "--out", str(tmp_path / "two"), "--quiet",
    ]  # fmt: skip
    completed(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    one, two = (load_file(tmp_path / name / LAST) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_without_weights_there_is_nothing_to_fit_to(tmp_path: Path, images: Path, ltmsearch: Ltmsearch) -> None:
    recipe().save(tmp_path / "r.yaml")
    code, _, err = ltmsearch(
        "train", tmp_path / "r.yaml", "--data-dir", images, "--head", "probe", "--out", tmp_path / "t"
    )
    assert code == 2
    assert (
        err == "error: --head probe needs trained weights, whose features a classifier is fitted to: use --init FILE\n"
    )
    assert not (tmp_path / "t").exists()


def test_a_teacher_needs_a_classifier_of_its_own(tmp_path: Path, images: Path) -> None:
    of = recipe(distill_loss_weight=1.0)
    with pytest.raises(InputError, match=r"the teacher must classify the data, but .* no classifier of 2 classes; use"):
        train_recipe(of, options(tmp_path / "t", images, init=weights_of(tmp_path, 0)))
    assert not (tmp_path / "t").exists()


def test_weights_without_registers_teach_by_their_own_network(tmp_path: Path) -> None:
    """Here a network that classifies by its class token teaches one that reads a register."""
    of = recipe(VIT, distill_loss_weight=1.0, registers=1, readout="register")
    given = options(tmp_path / "t", tmp_path, init=weights_of(tmp_path, 2, VIT))
    batch = torch.randn(2, 3, 64, 64)
    wanted = create_backbone(VIT, checkpoint=given.init, num_classes=2, img_size=64).eval()
    teacher = make_teacher(of, given)
    assert teacher is not None
    assert torch.equal(teacher.eval()(batch), wanted(batch))
