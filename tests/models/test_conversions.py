"""Checkpoints of other libraries: names, values, and the outputs of transformers' own networks."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.nets import randomise
from torch import Tensor, nn

from ltmsearch.errors import InputError
from ltmsearch.models.conversions import rename
from ltmsearch.models.weights import create_backbone, load_weights

State = dict[str, Tensor]

VIT = "vit_tiny_patch16_224"
DINOV2, REGISTERS = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}
PATCHES_14: dict[str, Any] = {**SMALL, "img_size": 56}


def build(backbone: str, seed: int, **kwargs: Any) -> nn.Module:
    return randomise(timm.create_model(backbone, **kwargs), seed).eval()


def like_transformers(state: State, prefix: str) -> State:
    """The names that transformers 4 has for timm's ViT."""
    parts = {
        "cls_token": "embeddings.cls_token",
        "dist_token": "embeddings.distillation_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm": "layernorm",
    }
    other: State = {}
    for name, value in state.items():
        stem, end = (name, "") if name in parts else (name.rpartition(".")[0], "." + name.rpartition(".")[2])
        where, inside = prefix, stem
        if name.startswith("blocks."):
            _, number, inside = stem.split(".", 2)
            where = f"{prefix}encoder.layer.{number}."
        if inside == "attn.qkv":
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                other[f"{where}attention.attention.{part}{end}"] = third
        elif inside == "head":
            other[f"classifier{end}"] = value
        else:
            other[f"{where}{parts[inside]}{end}"] = value
    return other


def write(path: Path, state: State) -> Path:
    save_file({name: value.clone().contiguous() for name, value in state.items()}, path)
    return path


def assert_equal(model: nn.Module, wanted: State) -> None:
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []


class TestNamesOfTransformers:
    @pytest.mark.parametrize("before", ["", "module.", "model."])
    def test_every_tensor_finds_its_place(self, tmp_path: Path, before: str) -> None:
        wanted, model = build(VIT, 0, **SMALL).state_dict(), build(VIT, 1, **SMALL)
        source = {f"{before}{name}": value for name, value in like_transformers(wanted, "vit.").items()}
        report = load_weights(model, write(tmp_path / "w.safetensors", source))
        assert_equal(model, wanted)
        assert str(report) == "converted from Hugging Face transformers' ViTForImageClassification"

    def test_a_converted_checkpoint_is_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = write(tmp_path / "w.safetensors", like_transformers(build(VIT, 0, **SMALL).state_dict(), "vit."))
        with caplog.at_level(logging.WARNING, logger="ltmsearch"):
            create_backbone(VIT, checkpoint=path, **SMALL)
        assert [record.getMessage() for record in caplog.records] == [
            f"checkpoint {path}: converted from Hugging Face transformers' ViTForImageClassification"
        ]

    def test_what_has_no_place_is_named_as_in_the_file(self, tmp_path: Path) -> None:
        wanted, model = build(VIT, 0, **SMALL, num_classes=0).state_dict(), build(VIT, 1, **SMALL, num_classes=0)
        source = like_transformers(wanted, "") | {"pooler.dense.bias": torch.ones(24)}
        torch.save({"state_dict": source}, tmp_path / "w.pth")
        report = load_weights(model, str(tmp_path / "w.pth"))
        assert_equal(model, wanted)
        assert str(report) == (
            "read from state_dict; converted from Hugging Face transformers' ViTModel; "
            "ignored, without a place in this network: pooler.dense.bias"
        )

    def test_a_classifier_of_the_users_own_class_is_not_taken_for_that_of_transformers(self, tmp_path: Path) -> None:
        """It may be one of the pooler's outputs, or of a mean."""
        wanted, model = build(VIT, 0, **SMALL).state_dict(), build(VIT, 1, **SMALL)
        report = load_weights(model, write(tmp_path / "w.safetensors", like_transformers(wanted, "backbone.")))
        assert report.initialised.keys() == {"head.weight", "head.bias"}
        assert set(report.ignored) == {"classifier.weight", "classifier.bias"}

    def test_positions_and_first_convolution_are_adapted_as_those_of_timm(self, tmp_path: Path) -> None:
        source, size = build(VIT, 0, **SMALL).state_dict(), {**SMALL, "img_size": 96, "in_chans": 1}
        one, other = build(VIT, 1, **size), build(VIT, 1, **size)
        load_weights(one, write(tmp_path / "timm.safetensors", source))
        load_weights(other, write(tmp_path / "hf.safetensors", like_transformers(source, "vit.")))
        assert_equal(other, one.state_dict())

    def test_misfits_are_named_as_in_the_file(self, tmp_path: Path) -> None:
        deit = build("deit_tiny_distilled_patch16_224", 0, **SMALL).state_dict()
        source = like_transformers({n: v for n, v in deit.items() if not n.startswith("head_dist")}, "deit.")
        del source["deit.encoder.layer.1.attention.attention.key.weight"]
        source["deit.encoder.layer.0.lambda_1"] = torch.ones(24)
        model = build(VIT, 1, **SMALL)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(InputError) as caught:
            load_weights(model, write(tmp_path / "w.safetensors", source))
        message = str(caught.value)
        assert message.startswith(
            f"the checkpoint {tmp_path / 'w.safetensors'} (converted from Hugging Face transformers' "
            f"DeiTForImageClassification) does not fit {VIT}: missing blocks.1.attn.qkv.weight; unknown deit."
        )
        for name in ("embeddings.distillation_token", "encoder.layer.0.lambda_1", "encoder.layer.1.attention.att"):
            assert f"deit.{name}" in message
        assert "pos_embed (1×18×24 in the file as deit.embeddings.position_embeddings, 1×17×24 in the net" in message
        assert_equal(model, before)

    def test_values_that_are_not_finite_are_named_as_in_the_file(self, tmp_path: Path) -> None:
        source = like_transformers(build(VIT, 0, **SMALL).state_dict(), "vit.")
        source["vit.encoder.layer.1.attention.attention.key.bias"][3] = torch.nan
        with pytest.raises(InputError, match=r"but vit\.en\S+query\.bias and 2 more has 1 NaN or infinite"):
            load_weights(build(VIT, 1, **SMALL), write(tmp_path / "w.safetensors", source))

    @pytest.mark.parametrize("shape", [(), (24,), (24, 7), (3, 24, 24)])
    def test_a_query_of_any_shape_is_refused_in_one_line(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        source = like_transformers(build(VIT, 0, **SMALL).state_dict(), "vit.")
        source["vit.encoder.layer.0.attention.attention.query.weight"] = torch.ones(shape)
        with pytest.raises(InputError, match=r"unknown vit\.encoder\.layer\.0\.attention\.attention\.") as caught:
            load_weights(build(VIT, 1, **SMALL), write(tmp_path / "w.safetensors", source))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("classes", [1000, 3])
    def test_the_one_classifier_of_a_deit(self, tmp_path: Path, classes: int) -> None:
        """timm's logits are the mean of two classifiers."""
        deit = "deit_tiny_distilled_patch16_224"
        state, model = build(deit, 0, **SMALL).state_dict(), build(deit, 1, **SMALL, num_classes=classes)
        source = like_transformers({n: v for n, v in state.items() if not n.startswith("head_dist")}, "deit.")
        report = load_weights(model, write(tmp_path / "w.safetensors", source))
        loaded = classes == 1000
        assert ("whose one classifier is doubled beside a zero one" in str(report)) == loaded
        assert len(report.initialised) == (0 if loaded else 4)
        if loaded:
            tokens = torch.randn(2, 2, 24)
            logits = tokens[:, 0] @ source["classifier.weight"].T + source["classifier.bias"]
            torch.testing.assert_close(model.forward_head(tokens), logits)

    def test_biases_that_timm_lacks_are_dropped_only_if_zero(self) -> None:
        layer = "layer.0.attention.{}_proj.{}"
        source = {layer.format(part, "weight"): torch.ones(4, 4) for part in "qkv"}
        source |= {"embeddings.patch_embeddings.weight": torch.ones(4, 3, 2, 2)}
        source |= {"embeddings.register_tokens": torch.ones(1, 4, 4)}
        source |= {layer.format("q", "bias"): torch.zeros(4), layer.format("v", "bias"): torch.ones(4)}
        wanted = {"blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "storage_tokens"}
        assert rename(source, {}).tensors.keys() == wanted | {"blocks.0.attn.v_bias"}
        assert rename(source, {"blocks.0.attn.q_bias": torch.ones(4)}).tensors.keys() >= {"blocks.0.attn.q_bias"}


class TestMetasDinov2:
    def chunked(self, state: State) -> State:
        """Of one block each: those of earlier chunks are replaced, so that the second number counts on."""
        return {n.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): v for n, v in state.items()}

    def meta(self, state: State, *, mask: bool) -> State:
        state = {n.replace("reg_token", "register_tokens"): v for n, v in state.items()}
        if "register_tokens" in state:  # its position table has a class token, which timm adds to the token
            state["pos_embed"] = torch.cat([torch.zeros(1, 1, 24), state["pos_embed"]], 1)
        return state | ({"mask_token": torch.ones(1, 24)} if mask else {})

    @pytest.mark.parametrize("backbone", [DINOV2, REGISTERS])
    @pytest.mark.parametrize("mask", [True, False])
    @pytest.mark.parametrize("chunks", [True, False])
    def test_every_tensor_finds_its_place(self, tmp_path: Path, backbone: str, mask: bool, chunks: bool) -> None:
        wanted, model = build(backbone, 0, **PATCHES_14).state_dict(), build(backbone, 1, **PATCHES_14)
        source = self.meta(wanted, mask=mask)
        report = load_weights(model, write(tmp_path / "w.safetensors", self.chunked(source) if chunks else source))
        assert_equal(model, wanted)
        assert str(report) == ("converted from chunks of blocks, as Meta's DINOv2 has them" if chunks else "")

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"teacher": {f"backbone.{n}": v for n, v in state.items()} | {"dino_head.x": torch.ones(1)}},
            lambda state: {
                "model": {f"teacher.backbone.{n}": v for n, v in state.items()}
                | {f"student.backbone.{n}": torch.zeros_like(v) for n, v in state.items()}
                | {"dino_loss.center": torch.ones(1)}
            },
        ],
        ids=["teacher", "training"],
    )
    def test_the_teacher_of_a_training(self, tmp_path: Path, wrap: Callable[[State], dict[str, Any]]) -> None:
        wanted, model = build(DINOV2, 0, **PATCHES_14).state_dict(), build(DINOV2, 1, **PATCHES_14)
        torch.save(wrap(self.chunked(self.meta(wanted, mask=True))), tmp_path / "w.pth")
        report = load_weights(model, tmp_path / "w.pth")
        assert_equal(model, wanted)
        assert "backbone. in its names" in str(report)

    def test_swiglu_without_mask_token(self, tmp_path: Path) -> None:
        giant = "vit_giant_patch14_dinov2"
        wanted, model = build(giant, 0, **PATCHES_14).state_dict(), build(giant, 1, **PATCHES_14)
        source = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for n, v in wanted.items()}
        load_weights(model, write(tmp_path / "w.safetensors", source))
        assert_equal(model, wanted)

    def test_numbers_that_repeat_in_each_chunk_are_refused(self, tmp_path: Path) -> None:
        source = build(DINOV2, 0, **PATCHES_14).state_dict()
        source = {
            n.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.0."): v for n, v in source.items()
        }
        with pytest.raises(InputError, match=r"unknown blocks\.0\.0\."):
            load_weights(build(DINOV2, 1, **PATCHES_14), write(tmp_path / "w.safetensors", source))

    def test_another_network_is_refused_by_names_of_the_file(self, tmp_path: Path) -> None:
        source = self.meta(build(REGISTERS, 0, **PATCHES_14).state_dict(), mask=False)
        with pytest.raises(InputError, match="does not fit mobilevit_xxs") as caught:
            load_weights(timm.create_model("mobilevit_xxs"), write(tmp_path / "w.safetensors", source))
        assert "mask_token" not in str(caught.value)


class TestFolders:
    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_weights_in_a_folder_of_save_pretrained(self, tmp_path: Path, name: str) -> None:
        wanted, model = build(VIT, 0, **SMALL).state_dict(), build(VIT, 1, **SMALL)
        source = like_transformers(wanted, "vit.")
        write(tmp_path / name, source) if name.endswith("tensors") else torch.save(source, tmp_path / name)
        (tmp_path / "config.json").write_text("{}")
        load_weights(model, tmp_path)
        assert_equal(model, wanted)

    def test_safetensors_are_preferred(self, tmp_path: Path) -> None:
        wanted, model = build(VIT, 0, **SMALL).state_dict(), build(VIT, 1, **SMALL)
        (tmp_path / "pytorch_model.bin").write_bytes(b"of an older version")
        write(tmp_path / "model.safetensors", wanted)
        load_weights(model, tmp_path)
        assert_equal(model, wanted)

    @pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
    def test_weights_in_several_files_are_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("{}")
        for path in (tmp_path, tmp_path / name):
            with pytest.raises(InputError) as caught:
                load_weights(build(VIT, 0, **SMALL), path)
            assert str(caught.value) == (
                f"the checkpoint must be one file, but {tmp_path / name} lists several; save the model again as one, "
                'in transformers by save_pretrained(folder, max_shard_size="100GB")'
            )

    def test_timms_networks_in_transformers(self, tmp_path: Path) -> None:
        wanted, model = build(VIT, 0, **SMALL).state_dict(), build(VIT, 1, **SMALL)
        write(tmp_path / "model.safetensors", {f"timm_model.{name}": value for name, value in wanted.items()})
        load_weights(model, tmp_path)
        assert_equal(model, wanted)
