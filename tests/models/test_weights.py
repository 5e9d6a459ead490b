"""Weights of plain backbones: formats of checkpoints, adapted shapes, and reports of what does not fit."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.nets import randomise
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ltmsearch.errors import InputError
from ltmsearch.models import weights
from ltmsearch.models.weights import build_backbone, create_backbone, load_weights

VIT, DEIT, SWIN = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"
SMALL: dict[str, dict[str, Any]] = {
    "mobilevit_xxs": {},
    "efficientvit_b0": {},
    VIT: {"depth": 2, "embed_dim": 48},
    DEIT: {"depth": 2, "embed_dim": 48},
    SWIN: {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
}
"""What makes the smallest backbone of each family smaller still."""

State = dict[str, Tensor]


def build(backbone: str, seed: int, **kwargs: Any) -> nn.Module:
    return randomise(timm.create_model(backbone, **SMALL[backbone], **kwargs), seed)


def within(module: str, state: State) -> State:
    return {f"{module}.{name}": value for name, value in state.items()}


def write(path: Path, state: Mapping[str, Tensor]) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def assert_equal(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    assert state.keys() == wanted.keys()
    assert [name for name in wanted if name not in but and not torch.equal(state[name], wanted[name])] == []


@pytest.mark.parametrize("backbone", SMALL)
class TestEveryFamily:
    def test_all_weights_are_those_of_the_file(self, tmp_path: Path, backbone: str) -> None:
        source, model = build(backbone, 0).state_dict(), build(backbone, 1)
        report = load_weights(model, write(tmp_path / "w.safetensors", source))
        assert_equal(model.state_dict(), source)
        assert not report.initialised
        assert not report.ignored
        assert not report.new_classifiers

    @pytest.mark.parametrize("classes", [7, 0])
    def test_another_classifier_stays_as_initialised(self, tmp_path: Path, backbone: str, classes: int) -> None:
        source = build(backbone, 0, num_classes=classes).state_dict()
        model = build(backbone, 1, num_classes=5)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        report = load_weights(model, write(tmp_path / "w.safetensors", source))
        names = model.pretrained_cfg["classifier"]  # type: ignore[index]
        names = (names,) if isinstance(names, str) else names
        heads = tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))
        assert set(report.initialised) == set(heads)
        assert report.new_classifiers == tuple(names)
        after = model.state_dict()
        assert_equal(after, before | source if classes == 0 else before | source | {n: before[n] for n in heads})
        said = report.initialised[heads[0]]
        assert said == "not in the file" if classes == 0 else said.startswith("7×") and "network" in said

    def test_a_classifier_for_a_network_without_one_is_ignored(self, tmp_path: Path, backbone: str) -> None:
        source, model = build(backbone, 0, num_classes=3).state_dict(), build(backbone, 1, num_classes=0)
        report = load_weights(model, write(tmp_path / "w.safetensors", source))
        assert set(report.ignored) == source.keys() - model.state_dict().keys() != set()
        assert_equal(model.state_dict(), {n: v for n, v in source.items() if n not in report.ignored})

    @pytest.mark.parametrize(("given", "channels"), [(3, 1), (3, 5), (1, 3)])
    def test_first_convolution_sees_the_same_grey(
        self, tmp_path: Path, backbone: str, given: int, channels: int
    ) -> None:
        source, model = build(backbone, 0, in_chans=given).state_dict(), build(backbone, 1, in_chans=channels)
        load_weights(model, write(tmp_path / "w.safetensors", source))
        name = f"{model.pretrained_cfg['first_conv']}.weight"  # type: ignore[index]
        state = model.state_dict()
        if channels != 5:  # five channels take the three in turn, so that one of them counts less
            torch.testing.assert_close(state[name].sum(1), source[name].sum(1))
        assert state[name].shape[1] == channels
        assert_equal(state, source, but=(name,))

    def test_published_weights_out_of_reach_are_one_line(
        self, tmp_path: Path, backbone: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match=rf"^the pretrained weights of {backbone} .*--checkpoint FILE") as caught:
            create_backbone(backbone, pretrained=True, cache_dir=tmp_path, num_classes=4, in_chans=1)
        assert "\n" not in str(caught.value)


class TestFormats:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda right, wrong: right,
            lambda right, wrong: {"state_dict": right, "epoch": 3, "arch": "mobilevit_xxs"},
            lambda right, wrong: {"state_dict": wrong, "state_dict_ema": right, "optimizer": {"lr": 0.1}},
            lambda right, wrong: {"state_dict": {f"module.{name}": value for name, value in right.items()}},
            lambda right, wrong: {f"_orig_mod.{name}": value for name, value in right.items()},
            lambda right, wrong: {n: v for n, v in right.items() if not n.endswith("num_batches_tracked")},
            lambda right, wrong: {"epoch": 3, "model_state_dict": right, "optimizer_state_dict": {"state": {}}},
            lambda right, wrong: {"net": right, "acc": 91.5},
            lambda right, wrong: {"weights": right},
            lambda right, wrong: {"model": "mobilevit_xxs", "model_ema": None, "params": right},
            lambda right, wrong: {"model": wrong, "model_ema": within("module", right) | {"n_averaged": torch.ones(1)}},
            lambda right, wrong: {"checkpoint": 1, "model": {"state_dict": within("module.model", right)}},
            lambda right, wrong: {"student": wrong, "teacher": within("module.backbone", right)},
            lambda right, wrong: {"state_dict": within("model._orig_mod", right) | {"criterion.weight": torch.ones(2)}},
            lambda right, wrong: {"state_dict": within("backbone", right)},
            lambda right, wrong: {n.replace("stages.1.", "stages.1._orig_mod."): v for n, v in right.items()},
        ],
        ids=[
            "plain", "training", "averaged", "parallel", "compiled", "old batch norms", "tutorial", "net", "weights",
            "params beside a name", "averaged by torch", "nested", "self-distilled", "Lightning", "backbone",
            "one part compiled",
        ],
    )  # fmt: skip
    def test_torch_files(self, tmp_path: Path, wrap: Callable[[State, State], dict[str, Any]]) -> None:
        source, model = build("mobilevit_xxs", 0), build("mobilevit_xxs", 1)
        torch.save(wrap(source.state_dict(), build("mobilevit_xxs", 2).state_dict()), tmp_path / "w.pth.tar")
        assert not load_weights(model, tmp_path / "w.pth.tar").initialised
        assert_equal(model.state_dict(), source.state_dict())

    def test_what_was_around_the_weights_is_said(self, tmp_path: Path) -> None:
        source, model = build("mobilevit_xxs", 0).state_dict(), build("mobilevit_xxs", 1)
        content = {"state_dict": within("module.backbone", source) | {"module.neck.scale": torch.ones(1)}}
        torch.save(content, tmp_path / "w.pth")
        report = load_weights(model, tmp_path / "w.pth")
        assert str(report) == (
            "read from state_dict, without module. backbone. in its names; ignored, without a place in this network: "
            "neck.scale"
        )

    def test_a_classifier_beside_the_backbone(self, tmp_path: Path) -> None:
        """As in checkpoints of mmpretrain: with timm's name it is used, another one is ignored."""
        source, model = build("mobilevit_xxs", 0).state_dict(), build("mobilevit_xxs", 1)
        heads = {name: value for name, value in source.items() if name.startswith("head.")}
        trunk = within("backbone", {name: value for name, value in source.items() if name not in heads})
        torch.save({"state_dict": trunk | heads}, tmp_path / "w.pth")
        assert not load_weights(model, tmp_path / "w.pth").initialised
        assert_equal(model.state_dict(), source)
        torch.save({"state_dict": trunk | {"head.layers.head.weight": heads["head.fc.weight"]}}, tmp_path / "w.pth")
        report = load_weights(build("mobilevit_xxs", 1), tmp_path / "w.pth")
        assert report.initialised.keys() == heads.keys()
        assert report.ignored == ("head.layers.head.weight",)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_weights_that_are_not_finite(self, tmp_path: Path, value: float, dtype: torch.dtype) -> None:
        source, model = build(VIT, 0).to(dtype).state_dict(), build(VIT, 1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        source["blocks.1.mlp.fc1.weight"][0, :3] = value
        path = write(tmp_path / "w.safetensors", source)
        with pytest.raises(InputError) as caught:
            load_weights(model, path)
        assert str(caught.value) == (
            f"the checkpoint {path} must have finite weights, but blocks.1.mlp.fc1.weight has 3 NaN or infinite values "
            "of 9216; use weights from before the training diverged"
        )
        source["norm.bias"][:] = value
        with pytest.raises(InputError, match=r"of 9216 \(and 1 more tensors have some\)"):
            load_weights(model, write(path, source))
        assert_equal(model.state_dict(), before)

    def test_a_classifier_that_is_not_loaded_may_be_broken(self, tmp_path: Path) -> None:
        source = build("mobilevit_xxs", 0, num_classes=7).state_dict()
        source["head.fc.weight"][:] = torch.nan
        report = load_weights(build("mobilevit_xxs", 1), write(tmp_path / "w.safetensors", source))
        assert "head.fc.weight" in report.initialised

    def test_half_precision(self, tmp_path: Path) -> None:
        source, model = build(VIT, 0).half().state_dict(), build(VIT, 1)
        load_weights(model, write(tmp_path / "w.safetensors", source))
        assert_equal(model.state_dict(), {name: value.float() for name, value in source.items()})

    def test_pickled_objects_are_refused_with_the_reason(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2), tmp_path / "net.pth")
        with pytest.raises(InputError, match="contains more than weights.*refused because unpickling can run code"):
            load_weights(build(VIT, 0), tmp_path / "net.pth")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("w.pth", b"", "cannot be read: it is empty"),
            ("w.safetensors", b"", "cannot be read: it is empty"),
            ("w.pth", b"hello world", "damaged or no torch file"),
            ("w.safetensors", b"hello world", "damaged or no safetensors file"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_weights(build(VIT, 0), tmp_path / name)

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_cut_off_files(self, tmp_path: Path, name: str) -> None:
        state = build(VIT, 0).state_dict()
        write(tmp_path / name, state) if name.endswith("tensors") else torch.save(state, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="cannot be read: it is damaged") as caught:
            load_weights(build(VIT, 0), tmp_path / name)
        assert "\n" not in str(caught.value)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must be a file, but .*none.pth does not exist"):
            load_weights(build(VIT, 0), tmp_path / "none.pth")
        with pytest.raises(InputError) as caught:
            load_weights(build(VIT, 0), tmp_path)
        assert str(caught.value) == (
            "the checkpoint must be a file, or a folder with model.safetensors or pytorch_model.bin, but the folder "
            f"{tmp_path} has neither"
        )

    @pytest.mark.parametrize("content", [torch.ones(2), [1, 2], {1: torch.ones(1)}, {}, {"net": {"a": 1}}, {"net": {}}])
    def test_torch_files_without_weights(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InputError, match="must contain a state dict"):
            load_weights(build(VIT, 0), tmp_path / "w.pth")


class TestConversion:
    def test_position_embeddings_fit_another_image_size(self, tmp_path: Path) -> None:
        source, model = build(VIT, 0).state_dict(), build(VIT, 1, img_size=256)
        load_weights(model, write(tmp_path / "w.safetensors", source))
        assert_equal(model.state_dict(), source, but=("pos_embed",))
        torch.testing.assert_close(
            model.state_dict()["pos_embed"],
            resample_abs_pos_embed(source["pos_embed"], [16, 16], [14, 14], num_prefix_tokens=1),
        )

    def test_relative_positions_fit_another_window(self, tmp_path: Path) -> None:
        source = build(SWIN, 0).state_dict()
        tables = tuple(name for name in source if name.endswith("relative_position_bias_table"))
        for name in tables:  # a linear slope stays one
            source[name] = torch.linspace(-1, 1, 13).repeat_interleave(13)[:, None].expand_as(source[name])
        model = build(SWIN, 1, img_size=256, window_size=8)
        load_weights(model, write(tmp_path / "w.safetensors", source))
        assert_equal(model.state_dict(), source, but=tables)
        row, columns = model.state_dict()[tables[0]][:, 0].view(15, 15).mean(1), model.state_dict()[tables[0]][:, 0]
        torch.testing.assert_close(columns, row.repeat_interleave(15), atol=1e-5, rtol=0)
        assert (row.diff() > 0).all()
        assert abs(row[7]) < 1e-5

    def test_swin_of_its_authors(self, tmp_path: Path) -> None:
        wanted = build(SWIN, 0).state_dict()
        source = {}
        for name, value in wanted.items():  # theirs downsample at the end of a stage
            for stage in (1, 2, 3):
                name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
            source[name.replace("head.fc.", "head.")] = value
        source["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
        torch.save({"model": source}, tmp_path / "w.pth")
        model = build(SWIN, 1)
        load_weights(model, tmp_path / "w.pth")
        assert_equal(model.state_dict(), wanted)

    def test_layer_scales_of_deit3(self, tmp_path: Path) -> None:
        def deit3(seed: int) -> nn.Module:
            return randomise(timm.create_model("deit3_small_patch16_224", depth=1, embed_dim=48, num_heads=3), seed)

        wanted, model = deit3(0).state_dict(), deit3(1)
        old = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for n, v in wanted.items()}
        load_weights(model, write(tmp_path / "w.safetensors", old))
        assert_equal(model.state_dict(), wanted)


class TestMisfits:
    def test_missing_unknown_and_misshaped_are_told_apart(self, tmp_path: Path) -> None:
        source, model = build(VIT, 0).state_dict(), build(VIT, 1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        source = {name: value for name, value in source.items() if "blocks.1.attn" not in name}
        source |= {"foo.weight": torch.ones(1), "norm.weight": torch.ones(384)}
        with pytest.raises(InputError) as caught:
            load_weights(model, write(tmp_path / "w.safetensors", source))
        assert str(caught.value) == (
            f"the checkpoint {tmp_path / 'w.safetensors'} does not fit {VIT}: "
            "missing blocks.1.attn.qkv.weight, blocks.1.attn.qkv.bias, blocks.1.attn.proj.weight (and 1 more); "
            "unknown foo.weight; of another shape norm.weight (384 in the file, 48 in the network)"
        )
        assert_equal(model.state_dict(), before)

    def test_another_network_is_recognised(self, tmp_path: Path) -> None:
        path = write(tmp_path / "w.safetensors", build("mobilevit_xxs", 0).state_dict())
        with pytest.raises(InputError, match=r"missing cls_token, .* \(and \d+ more\); .* another network: 0 of 32 "):
            load_weights(build(VIT, 1), path)
        path = write(tmp_path / "w.safetensors", timm.create_model("mobilevit_xs").state_dict())
        with pytest.raises(InputError, match="it seems to be of another network: 6 of 279 tensors fit"):
            load_weights(build("mobilevit_xxs", 0), path)

    @pytest.mark.parametrize(("depths", "kind"), [((1, 1, 1, 2), "unknown"), ((1, 1, 1, 0), "missing")])
    def test_where_the_conversion_itself_fails(self, tmp_path: Path, depths: tuple[int, ...], kind: str) -> None:
        source = timm.create_model(SWIN, **SMALL[SWIN] | {"depths": depths})
        with pytest.raises(InputError, match=rf"does not fit {SWIN}: {kind} layers.3.blocks.[01]\.\S+, .*\(and 10 mo"):
            load_weights(build(SWIN, 1), write(tmp_path / "w.safetensors", source.state_dict()))

    def test_distillation_token(self, tmp_path: Path) -> None:
        path = write(tmp_path / "w.safetensors", build(DEIT, 0).state_dict())
        with pytest.raises(InputError, match="unknown dist_token, .*pos_embed .1×198×48 in the file, 1×197×48 in the"):
            load_weights(build(VIT, 1), path)


class TestCreateBackbone:
    def test_what_was_not_used_is_one_line(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        source = build("mobilevit_xxs", 0, num_classes=9).state_dict()
        merging = {f"stages.2.1.transformer.{i}.merging.log_gain": torch.ones(()) for i in range(2)}
        path = write(tmp_path / "w.safetensors", source | merging)
        with caplog.at_level(logging.WARNING, logger="ltmsearch"):
            model = create_backbone("mobilevit_xxs", checkpoint=path, num_classes=5, in_chans=1)
        assert torch.equal(model.state_dict()["final_conv.conv.weight"], source["final_conv.conv.weight"])
        assert [record.getMessage() for record in caplog.records] == [
            f"checkpoint {path}: left as initialised: head.fc.weight (9×320 in the file, 5×320 in the network), "
            "head.fc.bias (9 in the file, 5 in the network); ignored, without a place in this network: "
            "stages.2.1.transformer.0.merging.log_gain, stages.2.1.transformer.1.merging.log_gain"
        ]

    def test_a_checkpoint_that_fits_is_loaded_silently(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        source = build("mobilevit_xxs", 0).state_dict()
        # It stands instead of the published weights: they are not even looked for.
        model = create_backbone("mobilevit_xxs", pretrained=True, checkpoint=write(tmp_path / "w.safetensors", source))
        assert_equal(model.state_dict(), source)
        assert not [record for record in caplog.records if record.name.startswith("ltmsearch")]

    def test_timm_adapts_what_it_loads(self, tmp_path: Path) -> None:
        source = build("mobilevit_xxs", 0).state_dict()
        path = write(tmp_path / "w.safetensors", source)
        published = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
        model, new = build_backbone("mobilevit_xxs", num_classes=5, in_chans=1, **published)
        assert new == ("head.fc",)
        assert build_backbone("mobilevit_xxs", **published)[1] == ()
        assert build_backbone("mobilevit_xxs", num_classes=0, **published)[1] == ()
        state = model.state_dict()
        assert state["head.fc.weight"].shape == (5, 320)
        torch.testing.assert_close(state["stem.conv.weight"], source["stem.conv.weight"].sum(1, keepdim=True))
        assert_equal(
            {n: v for n, v in state.items() if "head" not in n and n != "stem.conv.weight"},
            {n: v for n, v in source.items() if "head" not in n and n != "stem.conv.weight"},
        )

    def test_tags_pass_through(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def refuse(url: str) -> None:
            asked.append(url)
            raise TimeoutError("timed out\nafter a while")

        monkeypatch.setattr(weights, "get_hf_file_metadata", refuse)
        with pytest.raises(InputError, match=r"cannot be loaded \(the hub cannot be reached: timed out\); connect"):
            create_backbone(
                VIT, pretrained=True, pretrained_cfg="augreg_in21k", cache_dir=tmp_path,
                pretrained_cfg_overlay={"hf_hub_filename": "other.safetensors"},
            )  # fmt: skip
        assert len(asked) == 1
        assert asked[0].endswith("timm/vit_tiny_patch16_224.augreg_in21k/resolve/main/other.safetensors")
        with pytest.raises(InputError, match=r"Invalid pretrained tag \(none_such\)"):
            create_backbone(VIT, pretrained=True, pretrained_cfg="none_such")
        with pytest.raises(InputError, match="it has no none_such"):
            create_backbone("mobilevit_xxs", none_such=1)
