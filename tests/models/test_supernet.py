"""The supernet: schedules come and go without a trace, checkpoints load or say why not."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.nets import SMALL, randomise

from ltmsearch.errors import InputError
from ltmsearch.merging import CONTENT_GAIN
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    net = Supernet("mobilevit_xxs", num_classes=5)
    randomise(net)
    return net.eval()


def test_active_is_restored_also_on_error_and_nests(supernet: Supernet) -> None:
    plain = supernet.schedule
    half = MergeSchedule.uniform(supernet.layers, 0.5, form="matched")
    with supernet.active(MergeSchedule.uniform(supernet.layers, 0.5)):
        assert supernet.schedule == half, "with the form of every layer"
        with supernet.active(MergeSchedule(keep_ratios={supernet.layers[0]: 0.3})):
            assert supernet.schedule.merging_layers == supernet.layers[:1]
        assert supernet.schedule == half
    with pytest.raises(RuntimeError, match="on purpose"), supernet.active(half):
        raise RuntimeError("on purpose")
    assert supernet.schedule == plain
    assert plain.merging_layers == ()


def test_wrong_schedules_change_nothing(supernet: Supernet) -> None:
    with (
        pytest.raises(InputError, match="operator of the schedule must be the supernet's 'ltm'"),
        supernet.active(MergeSchedule.uniform(supernet.layers, 0.5, "tome")),
    ):
        pass
    with (
        pytest.raises(InputError, match="unknown layer"),
        supernet.active(MergeSchedule(keep_ratios={"blocks.0": 0.5})),
    ):
        pass
    assert supernet.schedule.merging_layers == ()


@pytest.mark.parametrize("schedule", [0.5, {"stages.2.1.transformer.0": 0.5}, None])
def test_what_is_no_schedule_is_refused(supernet: Supernet, schedule: Any) -> None:
    with pytest.raises(InputError, match="must be a MergeSchedule, but got .*; MergeSchedule.uniform and"):
        supernet.extract(schedule)
    with pytest.raises(InputError, match="must be a MergeSchedule"), supernet.active(schedule):
        pass


def test_extracted_weights_are_copies(supernet: Supernet) -> None:
    subnet = supernet.extract(MergeSchedule.uniform(supernet.layers, 0.5))
    before = supernet.model.state_dict()["stem.conv.weight"].clone()
    with torch.no_grad():
        subnet.stem.conv.weight.zero_()
    assert torch.equal(supernet.model.state_dict()["stem.conv.weight"], before)


STEP = ("centroids", "scores", "readout", "log_rate")
"""Weights of the gradient form."""


def test_weight_decay_spares_what_has_a_start_of_its_own(supernet: Supernet) -> None:
    spared = supernet.no_weight_decay()
    names = {name for name, _ in supernet.named_parameters()}
    assert spared <= names
    assert {name.rsplit(".", 1)[1] for name in spared} == {
        "importance",
        "log_gain",
        "length_power",
        "scale",
        "shift",
        *STEP,
    }
    assert len(spared) == 9 * len(supernet.layers)


def test_masks_of_a_loaded_checkpoint_start_by_content(tmp_path: Path) -> None:
    source = randomise(timm.create_model("mobilevit_xxs", num_classes=9)).state_dict()
    save_file(source, tmp_path / "weights.safetensors")
    state = Supernet("mobilevit_xxs", checkpoint=tmp_path / "weights.safetensors", num_classes=5).model.state_dict()
    assert torch.equal(state["stem.conv.weight"], source["stem.conv.weight"])
    assert float(state["stages.2.1.transformer.0.merging.log_gain"].exp()) == pytest.approx(CONTENT_GAIN)


@pytest.mark.parametrize("backbone", SMALL)
def test_the_beginning_is_all_that_the_first_layer_hears_of(backbone: str) -> None:
    net = Supernet(backbone, **SMALL[backbone], num_classes=5)
    randomise(net)
    entering = []
    net.model.get_submodule(net.layers[0]).register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    net.eval()(torch.randn(2, 3, 224, 224))
    grads = torch.autograd.grad(entering[0].sum(), list(net.parameters()), allow_unused=True)
    heard_of = [parameter for parameter, grad in zip(net.parameters(), grads, strict=True) if grad is not None]
    assert [id(parameter) for parameter in net.prefix_parameters()] == [id(parameter) for parameter in heard_of]


def test_the_beginning_is_held_and_let_go_also_on_error(supernet: Supernet) -> None:
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(RuntimeError, match="on purpose"), supernet.frozen_prefix():
        supernet(images).sum().backward()
        raise RuntimeError("on purpose")
    held = {id(p) for p in supernet.prefix_parameters()}
    assert all((p.grad is None) == (id(p) in held) for n, p in supernet.named_parameters() if ".merging." not in n)
    assert held
    assert all(p.requires_grad for p in supernet.parameters())
    supernet.zero_grad(set_to_none=True)
