"""How images are prepared for a backbone, as `ltmsearch.models.registry` takes it from timm and writes it."""

import json
from pathlib import Path

import pytest
import timm

from ltmsearch.models import input_config, write_config


@pytest.mark.parametrize("backbone", ["mobilevit_xxs", "vit_base_patch16_clip_384", "swin_tiny_patch4_window7_224"])
def test_images_are_prepared_as_timm_does(backbone: str, tmp_path: Path) -> None:
    """Also in the `config.json` of an exported net: `vit_base_patch16_clip_384` sees images squashed."""
    pretrained = timm.get_pretrained_cfg(backbone)
    assert pretrained is not None
    wanted = timm.data.resolve_data_config({}, pretrained_cfg=pretrained.to_dict())
    config = input_config(backbone)
    assert config == {name: wanted[name] for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    assert (config["crop_mode"] == "squash") == (backbone == "vit_base_patch16_clip_384")
    net = timm.create_model("ltm_mobilevit_xxs", num_classes=2)
    write_config(tmp_path / "config.json", net, name="x", img_size=64, inputs=config, class_names=None)
    written = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert {name: tuple(v) if isinstance(v := written[name], list) else v for name in config} == config
