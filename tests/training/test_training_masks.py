"""Gradient masks of a training: fitted before the first epoch, in network and average, if weights are trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_learner import recipe
from test_training_probe import options, weights_of

from ltmsearch.callbacks import Callbacks
from ltmsearch.engine.distributed import Ranks
from ltmsearch.training import masks
from ltmsearch.training.masks import fit_new_masks
from ltmsearch.training.options import LAST
from ltmsearch.training.trainer import _Trainer, train_recipe

LAYER = "stages.2.1.transformer.0"


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


def never(*_: object, **__: object) -> None:
    raise AssertionError("masks are fitted")


def test_network_and_average_start_from_the_same_fit(tmp_path: Path, images: Path) -> None:
    of = recipe(forms={LAYER: "gradient"})
    given = options(tmp_path / "t", images, init=weights_of(tmp_path, 2))
    trainer = _Trainer(of, given, Ranks(), "cpu", Callbacks())
    fit_new_masks(trainer.learner, of, trainer.data, trainer.runtime, Ranks(), Callbacks())
    assert trainer.learner.ema is not None
    nets = trainer.learner.model, trainer.learner.ema.module
    net, average = (each.get_submodule(f"{LAYER}.merging.step") for each in nets)
    assert net.fitted
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.long
def test_trained_masks_are_kept(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = recipe(forms={LAYER: "gradient"}, epochs=2)
    train_recipe(of, options(tmp_path / "first", images, init=weights_of(tmp_path, 2)))
    assert load_file(tmp_path / "first" / LAST)[f"{LAYER}.merging.step.readout"].any()
    monkeypatch.setattr(masks, "fit_layer", never)
    train_recipe(of, options(tmp_path / "second", images, init=tmp_path / "first" / LAST))
    train_recipe(recipe(epochs=2), options(tmp_path / "soft", images, init=weights_of(tmp_path, 2)))
    train_recipe(of, options(tmp_path / "random", images))
    assert not load_file(tmp_path / "soft" / LAST)[f"{LAYER}.merging.step.readout"].any()
