"""Loading all of a trained network, or saying which tensor is wanting."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.nets import SMALL, randomise
from torch import Tensor

from ltmsearch.config.recipe import Recipe
from ltmsearch.errors import InputError
from ltmsearch.models import get_adapter
from ltmsearch.models.checkpoints import load_trained
from ltmsearch.models.supernet import Supernet

BACKBONE = "mobilevit_xxs"
LAYERS = get_adapter(BACKBONE).layers(timm.create_model(BACKBONE))
MERGING = {LAYERS[1], LAYERS[4]}


def recipe(**changes: Any) -> Recipe:
    """Merges at two layers of nine."""
    values: dict[str, Any] = {
        "model": f"ltm_{BACKBONE}", "operator": "ltm", "num_classes": 4, "img_size": 64,
        "schedule": {layer: 0.5 if layer in MERGING else 1.0 for layer in LAYERS},
    }  # fmt: skip
    return Recipe(**(values | changes))


def write(path: Path, state: Mapping[str, Tensor], facts: dict[str, Any] | None = None) -> Path:
    metadata = None if facts is None else {"ltmsearch": json.dumps(facts)}
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata=metadata)
    return path


def trained_state(of: Recipe, seed: int = 1) -> dict[str, Tensor]:
    return dict(randomise(timm.create_model(of.model, **of.model_kwargs()), seed).state_dict())


def test_every_tensor_is_that_of_the_file(tmp_path: Path) -> None:
    state = trained_state(recipe())
    network = load_trained(recipe(), write(tmp_path / "w.safetensors", state))
    loaded = network.model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert any(".merging." in name for name in state)
    assert (network.notes, network.class_names, network.shared) == ((), None, False)


def test_the_plain_net_may_lack_merging_weights_and_is_noted(tmp_path: Path) -> None:
    plain = randomise(timm.create_model(BACKBONE, num_classes=4)).state_dict()
    network = load_trained(recipe(), write(tmp_path / "plain.safetensors", plain))
    assert network.notes == ("the checkpoint is of the plain net: its ltm merging operators are untrained",)
    loaded = network.model.state_dict()
    assert all(torch.equal(loaded[name], plain[name]) for name in plain)
    assert load_trained(recipe(operator="pool"), tmp_path / "plain.safetensors").notes == ()


@pytest.mark.parametrize("wanting", ["merging.log_gain", "head.fc.bias", "stem.conv.weight"])
def test_a_trained_net_must_have_every_tensor(tmp_path: Path, wanting: str) -> None:
    state = trained_state(recipe())
    name = next(name for name in state if name.endswith(wanting))
    del state[name]
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        load_trained(recipe(), write(tmp_path / "w.safetensors", state))
    assert "\n" not in str(caught.value)


def test_weights_merging_at_other_layers_are_refused(tmp_path: Path) -> None:
    other = recipe(schedule={layer: 0.5 if layer == LAYERS[0] else 1.0 for layer in LAYERS})
    with pytest.raises(InputError, match=rf"must contain every tensor of ltm_mobilevit_xxs, .*{LAYERS[1]}\.merging"):
        load_trained(recipe(), write(tmp_path / "w.safetensors", trained_state(other)))


def test_merging_weights_that_are_not_used_are_noted(tmp_path: Path) -> None:
    fewer = recipe(schedule={layer: 0.5 if layer == LAYERS[1] else 1.0 for layer in LAYERS})
    network = load_trained(fewer, write(tmp_path / "w.safetensors", trained_state(recipe())))
    assert network.notes == (f"unused in the checkpoint: merging operators at 1 layers, such as {LAYERS[4]}",)


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", trained_state(recipe(num_classes=7)))
    with pytest.raises(InputError, match="lacks a fitting head.fc.weight .7×320 in the file, 4×320 in the network"):
        load_trained(recipe(), path)


def test_the_header_tells_the_classes(tmp_path: Path) -> None:
    facts = {"class_names": ["a", "b", "c", "d"], "epoch": 3}
    network = load_trained(recipe(), write(tmp_path / "w.safetensors", trained_state(recipe()), facts))
    assert network.class_names == ("a", "b", "c", "d")
    assert not network.shared


@pytest.mark.parametrize("header", ["no JSON", "[1]", '{"class_names": 3}'])
def test_files_without_our_header_load_without_classes(tmp_path: Path, header: str) -> None:
    save_file(trained_state(recipe()), tmp_path / "w.safetensors", metadata={"ltmsearch": header})
    torch.save({"state_dict": trained_state(recipe())}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert load_trained(recipe(), tmp_path / name).class_names is None


def test_shared_weights_of_a_study_are_known_as_such(tmp_path: Path) -> None:
    supernet = randomise(Supernet(BACKBONE, num_classes=4)).eval()
    path = write(tmp_path / "supernet.safetensors", supernet.state_dict(), {"class_names": list("abcd"), "space": "x"})
    network = load_trained(recipe(), path)
    assert network.shared
    assert network.notes == ()
    images = torch.randn(2, 3, 64, 64)
    assert isinstance(supernet, Supernet)
    with torch.no_grad(), supernet.active(recipe().schedule):
        torch.testing.assert_close(network.model.eval()(images), supernet(images))


def test_another_size_of_images_adapts_position_embeddings(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    layers = get_adapter(name).layers(timm.create_model(name, **SMALL[name]))
    vit = recipe(model=f"ltm_{name}", schedule=dict.fromkeys(layers, 1.0))
    state = trained_state(vit)
    network = load_trained(vit, write(tmp_path / "w.safetensors", state), img_size=96)
    with torch.no_grad():
        assert network.model.eval()(torch.randn(2, 3, 96, 96)).shape == (2, 4)


def test_an_exported_folder_is_its_weights_with_their_classes(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", trained_state(recipe()), {"class_names": ["a", "b", "c", "d"]})
    network = load_trained(recipe(), tmp_path)
    assert network.checkpoint == tmp_path / "model.safetensors"
    assert network.class_names == ("a", "b", "c", "d")
