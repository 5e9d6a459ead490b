"""Networks of transformers and those of timm with their weights compute the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.nets import randomise
from torch import Tensor, nn

from ltmsearch.models.weights import load_weights

transformers = pytest.importorskip("transformers")
# Of safetensors' and torch's interfaces, by transformers' own code.
pytestmark = pytest.mark.filterwarnings("default")

PLAIN = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
# The default is 1e-12, and 1e-6 in timm.
VIT = {**PLAIN, "image_size": 64, "layer_norm_eps": 1e-6, "num_labels": 7}
DINOV2 = {**PLAIN, "image_size": 56, "patch_size": 14, "num_labels": 7}
DINOV3 = {**PLAIN, "image_size": 64, "num_register_tokens": 4}
SWIN = {
    "image_size": 64, "embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 2,
    "num_labels": 7,
}  # fmt: skip
IN_TIMM = {"embed_dim": 24, "depth": 2, "num_heads": 2}
VIT_IN_TIMM = {**IN_TIMM, "img_size": 64, "num_classes": 7}
DINOV2_IN_TIMM = {**IN_TIMM, "img_size": 56, "num_classes": 7}
DINOV3_IN_TIMM = {**IN_TIMM, "img_size": 64, "num_classes": 0, "mlp_ratio": 4}
SWIN_IN_TIMM = {
    "img_size": 64, "embed_dim": 8, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 2,
    "num_classes": 7,
}  # fmt: skip
DEIT, TINY, SWIN_TINY = "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"

CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("ViTForImageClassification", VIT, TINY, VIT_IN_TIMM),
    ("ViTModel", VIT, TINY, VIT_IN_TIMM),
    ("ViTForMaskedImageModeling", VIT, TINY, VIT_IN_TIMM),
    ("DeiTForImageClassificationWithTeacher", VIT, DEIT, VIT_IN_TIMM),
    ("DeiTForImageClassification", VIT, DEIT, VIT_IN_TIMM),
    ("DeiTModel", VIT, DEIT, VIT_IN_TIMM),
    ("Dinov2ForImageClassification", DINOV2, "vit_small_patch14_dinov2", DINOV2_IN_TIMM),
    ("Dinov2Model", DINOV2, "vit_small_patch14_dinov2", DINOV2_IN_TIMM),
    (
        "Dinov2Model",
        {**DINOV2, "use_swiglu_ffn": True},
        "vit_giant_patch14_dinov2",
        {**DINOV2_IN_TIMM, "mlp_ratio": 128 / 24},  # hidden width in both: two thirds of 96
    ),
    ("Dinov2WithRegistersForImageClassification", DINOV2, "vit_small_patch14_reg4_dinov2", DINOV2_IN_TIMM),
    ("Dinov2WithRegistersModel", DINOV2, "vit_small_patch14_reg4_dinov2", DINOV2_IN_TIMM),
    ("DINOv3ViTModel", DINOV3, "vit_small_patch16_dinov3_qkvb", DINOV3_IN_TIMM),
    (
        "DINOv3ViTModel",
        {**DINOV3, "use_gated_mlp": True, "hidden_act": "silu"},
        "vit_small_plus_patch16_dinov3_qkvb",
        DINOV3_IN_TIMM,
    ),
    ("SwinForImageClassification", SWIN, SWIN_TINY, SWIN_IN_TIMM),
    ("SwinModel", SWIN, SWIN_TINY, SWIN_IN_TIMM),
    ("SwinForMaskedImageModeling", SWIN, SWIN_TINY, SWIN_IN_TIMM),
    ("Swinv2ForImageClassification", SWIN, "swinv2_tiny_window8_256", SWIN_IN_TIMM),
]


def features(model: nn.Module, images: Tensor) -> Tensor:
    """(B, N, D): the normed tokens of a model of transformers, or of the bare model in it."""
    inside = model.base_model if "For" in type(model).__name__ else model
    tokens: Tensor = inside(images).last_hidden_state
    return tokens


@pytest.mark.parametrize("save", ["save_pretrained", "state_dict"])
@pytest.mark.parametrize(("name", "config", "backbone", "kwargs"), CASES)
def test_outputs_are_equal(
    tmp_path: Path, name: str, config: dict[str, Any], backbone: str, kwargs: dict[str, Any], save: str
) -> None:
    kind: Callable[[Any], nn.Module] = getattr(transformers, name)
    source = randomise(kind(kind.config_class(**config))).eval()  # type: ignore[attr-defined]
    path = tmp_path if save == "save_pretrained" else tmp_path / "w.pth"
    source.save_pretrained(path) if path.is_dir() else torch.save(source.state_dict(), path)
    model = timm.create_model(backbone, **kwargs).eval()
    report = load_weights(model, path)
    assert report.converted.startswith(f"converted from Hugging Face transformers' {name}")

    images = torch.randn(2, 3, kwargs["img_size"], kwargs["img_size"])
    with torch.no_grad():
        tokens = model.forward_features(images)
        tokens = tokens.flatten(1, 2) if tokens.dim() == 4 else tokens
        torch.testing.assert_close(tokens, features(source, images), atol=1e-5, rtol=1e-5)
        classifiers = {each for each in report.initialised if each.startswith("head")}
        if "ForImageClassification" in name and not classifiers:
            torch.testing.assert_close(model(images), source(images).logits, atol=1e-5, rtol=1e-5)
    loaded = "ForImageClassification" in name and "Dinov2" not in name
    assert bool(classifiers) == (not loaded and kwargs["num_classes"] > 0)
    assert not any("encoder" in each or "layer." in each for each in report.ignored)


def test_the_classifier_of_dinov2_is_not_half_loaded(tmp_path: Path) -> None:
    source = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**DINOV2))
    source.save_pretrained(tmp_path)
    model = randomise(timm.create_model("vit_small_patch14_dinov2", **DINOV2_IN_TIMM))
    before = model.head.bias.clone()
    report = load_weights(model, tmp_path)
    assert torch.equal(model.head.bias, before)
    assert report.initialised.keys() == {"head.weight", "head.bias"}
    assert "whose classifier does not fit timm's: it takes class token and mean patch together" in str(report)
    assert {"classifier.weight", "classifier.bias"} <= set(report.ignored)
