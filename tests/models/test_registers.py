"""Registers added to vision transformers, and classifiers that read them."""

import logging
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from support.nets import randomise
from torch import Tensor, nn

from ltmsearch.config.names import Readout
from ltmsearch.config.recipe import Recipe
from ltmsearch.costs import backbone_costs, cost_model, traced_macs
from ltmsearch.engine.linear_probe import record_inputs
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError
from ltmsearch.merging import OPERATORS
from ltmsearch.models import (
    MERGING,
    create_backbone,
    create_subnet,
    get_adapter,
    load_weights,
    pooled_features,
    write_config,
)
from ltmsearch.models.checkpoints import load_trained, pack_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.models.weights import build_backbone
from ltmsearch.programs.onnx import export_onnx
from ltmsearch.schedules.schedule import MergeSchedule

K = 2
SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 64, "num_heads": 2, "num_classes": 7}
NETS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": ("reg_tokens", 0, SMALL),  # class token and registers have positions
    "vit_base_patch16_siglip_224": ("reg_tokens", 0, SMALL),  # attention pooling, no class token
    "vit_small_patch14_reg4_dinov2": ("reg_tokens", 4, SMALL),  # registers of its own, positions for patches only
    "vit_base_patch32_clip_224": ("reg_tokens", 1, {**SMALL, "reg_tokens": 1, "global_pool": "avg"}),  # fc_norm
    "vit_small_patch16_dinov3": ("num_reg_tokens", 4, SMALL),  # rotary positions alone
    "vit_small_patch16_rope_ape_224": ("num_reg_tokens", 0, SMALL),  # rotary and learned positions
    "vit_pe_core_tiny_patch16_384": ("num_reg_tokens", 0, SMALL),  # attention pooling
}
"""Backbones → timm's argument, its registers without it, the other arguments."""
FIXED = [(name, operator) for name, operator in sorted(OPERATORS.items()) if not operator.adaptive]
"""Operators whose costs do not depend on the image."""
VARIANTS = [(name, form) for name, operator in FIXED for form in operator.forms]


def small(backbone: str, **changes: Any) -> dict[str, Any]:
    return {**NETS[backbone][2], **changes}


def images(side: int | tuple[int, int], batch: int = 2) -> Tensor:
    rows, columns = (side, side) if isinstance(side, int) else side
    return torch.randn(batch, 3, rows, columns, generator=torch.Generator().manual_seed(0))


def written(path: Path, net: nn.Module) -> Path:
    save_file(net.state_dict(), path)
    return path


def plain(backbone: str, seed: int = 1, **changes: Any) -> nn.Module:
    """timm's network without the added registers, with random weights."""
    return randomise(timm.create_model(backbone, **small(backbone, **changes)), seed).eval()


@pytest.mark.parametrize("backbone", NETS)
class TestNetwork:
    def test_equals_timms_bit_for_bit(self, backbone: str) -> None:
        """Initial weights too."""
        argument, own, options = NETS[backbone]
        any_size = get_adapter(backbone).any_size_kwargs
        torch.manual_seed(0)
        wanted = timm.create_model(backbone, **{**options, **any_size, argument: own + K}).eval()
        torch.manual_seed(0)
        supernet = Supernet(backbone, registers=K, **options).eval()
        built = {n: v for n, v in supernet.model.state_dict().items() if f".{MERGING}." not in n}
        assert built.keys() == wanted.state_dict().keys()
        assert all(torch.equal(built[name], value) for name, value in wanted.state_dict().items())
        with torch.no_grad():
            assert torch.equal(supernet(images((70, 101))), wanted(images((70, 101))))

    @pytest.mark.parametrize("merges", [False, True])
    def test_the_classifier_reads_the_mean_of_the_added_registers(self, backbone: str, merges: bool) -> None:
        options = small(backbone, registers=K, readout="register")
        net: Any = randomise(create_subnet(backbone, keep_ratios=0.5 if merges else 1.0, **options)).eval()
        side = net.patch_embed.img_size[0]
        with torch.no_grad():
            tokens = net.forward_features(images(side))
            first = net.num_prefix_tokens - K
            wanted = net.head(net.fc_norm((tokens[:, first] + tokens[:, first + 1]) / 2))
            torch.testing.assert_close(net(images(side)), wanted)
            assert torch.equal(net.forward_head(tokens), net(images(side)))

    @pytest.mark.parametrize("readout", ["timm", "register"])
    def test_its_name_in_timm_builds_it_again(self, backbone: str, readout: Readout, tmp_path: Path) -> None:
        """From the weights of an extracted subnet, and from an exported folder."""
        options = small(backbone, registers=K, readout=readout)
        supernet = randomise(Supernet(backbone, any_size=False, **options)).eval()
        schedule = MergeSchedule.uniform(supernet.layers, 0.5)  # type: ignore[arg-type]
        subnet = supernet.extract(schedule)  # type: ignore[operator]
        (tmp_path / "model.safetensors").write_bytes(pack_weights(subnet.state_dict(), {}))
        named = timm.create_model(f"ltm_{backbone}", keep_ratios=0.5, **options).eval()
        named.load_state_dict(subnet.state_dict())
        side = named.patch_embed.img_size[0]
        name = f"ltm_{backbone}"
        write_config(tmp_path / "config.json", named, name=name, img_size=side, inputs={}, class_names=None)
        opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        with torch.no_grad(), supernet.active(schedule):  # type: ignore[operator]
            active = supernet(images(side))
            assert torch.equal(subnet(images(side)), active)
            assert torch.equal(named(images(side)), active)
            assert torch.equal(opened(images(side)), active)


@pytest.mark.parametrize(
    ("backbone", "readout"),
    [
        ("vit_tiny_patch16_224", "timm"),
        ("vit_tiny_patch16_224", "register"),
        ("vit_small_patch16_rope_ape_224", "register"),
    ],
)
class TestMerging:
    @pytest.mark.long
    @pytest.mark.parametrize(("operator", "form"), VARIANTS)
    def test_merged_nets_are_extracted_and_counted(
        self, backbone: str, readout: Readout, operator: str, form: Any
    ) -> None:
        options = small(backbone, registers=K, readout=readout)
        supernet: Any = randomise(Supernet(backbone, operator=operator, **options)).eval()
        schedule = MergeSchedule.from_mapping(supernet.layers, {"blocks.0": 0.7, "blocks.2": 0.4}, operator, form)
        subnet = supernet.extract(schedule)
        for size in ((70, 101), (112, 96)):
            with torch.no_grad():
                unmerged = supernet(images(size))
                with supernet.active(schedule):
                    active = supernet(images(size))
                    one = supernet(images(size)[:1])
                assert torch.equal(subnet(images(size)), active)
                assert not torch.equal(active, unmerged)
                torch.testing.assert_close(one, active[:1], atol=1e-3, rtol=1e-3)
            assert cost_model(backbone, supernet.model, size, operator).macs(schedule) == traced_macs(subnet, size)

    def test_registers_never_merge(self, backbone: str, readout: Readout) -> None:
        """Neither does the class token: operators receive and return the grid alone, down to one token."""
        options = small(backbone, registers=K, readout=readout)
        net: Any = randomise(create_subnet(backbone, keep_ratios=0.01, operator="tome", **options)).eval()
        before, after = [], []
        for block in net.blocks:
            block.merging.register_forward_pre_hook(lambda _module, args: before.append(args[0].shape[2]))
            block.register_forward_hook(lambda _module, _args, output: after.append(output.shape[1]))
        with torch.no_grad():
            net(images(224))
        assert net.num_prefix_tokens == 1 + K
        assert before[0] == 14 * 14
        assert after[-1] == 1 + K + 1

    def test_every_weight_has_a_gradient(self, backbone: str, readout: Readout) -> None:
        """Also those that nobody reads, as distributed training needs it."""
        net: Any = randomise(create_subnet(backbone, keep_ratios=0.7, **small(backbone, registers=K, readout=readout)))
        net.train()(images(224)).square().sum().backward()
        assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
        assert (net.reg_token.grad.abs().sum(dim=2) > 0).all()

    @pytest.mark.slow
    def test_exported_programs_give_the_same_outputs(self, backbone: str, readout: Readout, tmp_path: Path) -> None:
        options = small(backbone, registers=K, readout=readout, img_size=112)
        net = randomise(create_subnet(backbone, keep_ratios=0.6, **options)).eval()
        export_onnx(net, tmp_path / "net.onnx", img_size=112)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: images(112).numpy()})
        with torch.no_grad():
            program = torch.export.export(net, (images(112),))
            torch.testing.assert_close(program.module()(images(112)), net(images(112)), atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(torch.from_numpy(logits), net(images(112)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("backbone", NETS)
class TestPlainWeights:
    def test_new_registers_and_their_positions_stay_as_initialised(self, backbone: str, tmp_path: Path) -> None:
        source = plain(backbone)
        net: Any = create_backbone(backbone, registers=K, **small(backbone))
        initial = {name: value.clone() for name, value in net.state_dict().items()}
        report = load_weights(net, written(tmp_path / "plain.safetensors", source))
        assert str(report) == "2 new registers left as initialised"
        assert (report.new_registers, report.new_classifiers) == (K, ())
        loaded, given, own = net.state_dict(), source.state_dict(), NETS[backbone][1]
        first = net.num_prefix_tokens - K
        assert torch.equal(loaded["reg_token"][:, own:], initial["reg_token"][:, own:])
        if own:
            assert torch.equal(loaded["reg_token"][:, :own], given["reg_token"])
        for name in loaded.keys() - {"reg_token"}:
            if loaded[name].shape == given[name].shape:
                assert torch.equal(loaded[name], given[name])
            else:
                assert name == "pos_embed"
                old, new, grid = loaded[name].split([first, K, given[name].shape[1] - first], dim=1)
                assert torch.equal(torch.cat((old, grid), dim=1), given[name])
                assert torch.equal(new, initial[name][:, first : first + K])

    def test_they_fit_another_image_size_as_without_registers(self, backbone: str, tmp_path: Path) -> None:
        path = written(tmp_path / "plain.safetensors", plain(backbone))
        wanted = create_backbone(backbone, checkpoint=path, **small(backbone, img_size=112)).state_dict()
        net: Any = create_backbone(backbone, checkpoint=path, registers=K, **small(backbone, img_size=112))
        if "pos_embed" in wanted:
            first, values = net.num_prefix_tokens - K, net.pos_embed.detach()
            if values.shape[1] != wanted["pos_embed"].shape[1]:
                values = torch.cat((values[:, :first], values[:, first + K :]), dim=1)
            assert torch.equal(values, wanted["pos_embed"])
        assert torch.equal(net.state_dict()["blocks.0.attn.proj.weight"], wanted["blocks.0.attn.proj.weight"])

    @pytest.mark.parametrize("readout", ["timm", "register"])
    def test_published_weights_are_told_of_too(
        self, backbone: str, readout: Readout, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = plain(backbone, num_classes=5)
        published: Any = {"file": str(written(tmp_path / "w.safetensors", source)), "num_classes": 5}
        options = small(backbone, num_classes=5, registers=K, readout=readout)
        with caplog.at_level(logging.WARNING, logger="ltmsearch"):
            net, new = build_backbone(backbone, pretrained=True, pretrained_cfg_overlay=published, **options)
        assert [record.getMessage() for record in caplog.records] == [
            f"published weights of {backbone}: 2 new registers left as initialised"
        ]
        assert new == (("head",) if readout == "register" else ())
        given, loaded = source.state_dict(), net.state_dict()
        assert torch.equal(loaded["head.weight"], given["head.weight"]) == (readout == "timm")
        assert torch.equal(loaded["blocks.2.mlp.fc1.weight"], given["blocks.2.mlp.fc1.weight"])
        assert loaded["reg_token"].shape[1] == NETS[backbone][1] + K

    def test_a_classifier_that_reads_new_registers_is_new(self, backbone: str, tmp_path: Path) -> None:
        path = written(tmp_path / "plain.safetensors", plain(backbone))
        supernet = Supernet(backbone, checkpoint=path, **small(backbone, registers=K, readout="register"))
        assert supernet.new_classifiers == ("head",)
        report = load_weights(supernet.model, path)
        assert report.initialised["head.weight"] == "it reads the new registers"

    def test_weights_with_registers_are_loaded_whole(self, backbone: str, tmp_path: Path) -> None:
        options = small(backbone, registers=K, readout="register")
        source = randomise(create_backbone(backbone, **options), 1)
        path = written(tmp_path / "w.safetensors", source)
        net = create_backbone(backbone, **options)
        report = load_weights(net, path)
        assert (str(report), report.new_registers) == ("", 0)
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())
        resized = load_weights(create_backbone(backbone, **options, img_size=112), path)
        assert (str(resized), resized.new_registers) == ("", 0)
        with pytest.raises(InputError, match="of another shape reg_token") as caught:
            load_weights(create_backbone(backbone, **{**options, "registers": K + 1}), path)
        assert "\n" not in str(caught.value)


def test_registers_of_other_libraries_keep_their_places(tmp_path: Path) -> None:
    """Meta's DINOv2 with registers of its own, whose class token has a position in the file and none in timm."""
    backbone = "vit_small_patch14_reg4_dinov2"
    state = dict(plain(backbone).state_dict())
    state["register_tokens"], state["mask_token"] = state.pop("reg_token"), torch.zeros(1, 64)
    state["pos_embed"] = torch.cat((torch.randn(1, 1, 64), state["pos_embed"]), dim=1)
    save_file(state, tmp_path / "meta.safetensors")
    wanted = create_backbone(backbone, checkpoint=tmp_path / "meta.safetensors", **small(backbone)).state_dict()
    net = create_backbone(backbone, **small(backbone, registers=K))
    report = load_weights(net, tmp_path / "meta.safetensors")
    loaded = net.state_dict()
    assert (report.new_registers, report.initialised) == (K, {})
    assert torch.equal(loaded["reg_token"][:, :4], state["register_tokens"])
    assert all(torch.equal(value, loaded[name]) for name, value in wanted.items() if name != "reg_token")


def test_the_linear_probe_and_ib_features_are_of_the_registers() -> None:
    options = small("vit_tiny_patch16_224", registers=K, readout="register", img_size=64)
    net: Any = randomise(create_subnet("vit_tiny_patch16_224", keep_ratios=0.5, **options)).eval()
    batch = images(64)
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="test")
    recorded, _ = record_inputs(net, {"head": net.head}, [(batch, torch.zeros(2))], runtime)
    with torch.no_grad(), pooled_features(net) as features:
        net(batch)
        wanted = net.forward_features(batch)[:, 1 : 1 + K].mean(dim=1)
    torch.testing.assert_close(features.pop(), wanted)
    torch.testing.assert_close(torch.from_numpy(recorded["head"]), wanted)


def test_features_of_published_weights_stand_on_the_grid(tmp_path: Path) -> None:
    """Registers are no part of dense features; without merges they are timm's with the same registers."""
    backbone = "vit_tiny_patch16_224"
    source = plain(backbone)
    path = written(tmp_path / "w.safetensors", source)
    options = {**small(backbone), "features_only": True, "registers": K}
    published = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path), "num_classes": 7}}
    net: Any = timm.create_model(f"ltm_{backbone}", keep_ratios=1.0, **options, **published).eval()
    reference: Any = timm.create_model(backbone, features_only=True, reg_tokens=K, **small(backbone)).eval()
    reference.load_state_dict(net.state_dict())
    assert torch.equal(net.state_dict()["model.cls_token"], source.state_dict()["cls_token"])
    with torch.no_grad():
        for ours, timms in zip(net(images(224)), reference(images(224)), strict=True):
            assert ours.shape[-2:] == (14, 14)
            assert torch.equal(ours, timms)
    merging: Any = timm.create_model(f"ltm_{backbone}", keep_ratios=0.5, **options, **published).eval()
    with torch.no_grad():
        assert [feature.shape[-2:] for feature in merging(images(224))] == [(14, 14)] * 3


def test_trained_networks_must_have_their_registers(tmp_path: Path) -> None:
    schedule = MergeSchedule(keep_ratios={f"blocks.{i}": 0.5 for i in range(3)})
    kwargs = {name: value for name, value in SMALL.items() if name != "num_classes"}
    recipe = Recipe(
        model="ltm_vit_tiny_patch16_224", schedule=schedule, num_classes=7, img_size=64, timm_kwargs=kwargs,
        registers=K, readout="register",
    )  # fmt: skip
    path = written(tmp_path / "plain.safetensors", plain("vit_tiny_patch16_224", img_size=64))
    with pytest.raises(InputError, match=r"lacks a fitting reg_token \(2 of its registers are not in the file\)"):
        load_trained(recipe, path)
    net = randomise(timm.create_model(recipe.model, **recipe.model_kwargs()))
    trained = load_trained(recipe, written(tmp_path / "w.safetensors", net)).model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "options", "rule"),
    [
        ("mobilevit_xxs", {"registers": 2}, "must be 0 for mobilevit_xxs, but got 2: it is timm's ByobNet"),
        ("swin_tiny_patch4_window7_224", {"registers": 1}, "only VisionTransformer or Eva takes registers"),
        ("deit_tiny_distilled_patch16_224", {"registers": 1}, "it is timm's VisionTransformerDistilled"),
        ("vit_tiny_patch16_224", {"registers": -1}, "must be a whole number from 0 to 1024, but got -1"),
        ("vit_tiny_patch16_224", {"registers": 1025}, "must be a whole number from 0 to 1024, but got 1025"),
        ("vit_tiny_patch16_224", {"registers": True}, "must be a whole number from 0 to 1024, but got True"),
        ("vit_tiny_patch16_224", {"registers": "2"}, "must be a whole number from 0 to 1024, but got '2'"),
        ("vit_tiny_patch16_224", {"readout": "register"}, "needs registers, but got registers=0: set registers to 1"),
        ("vit_tiny_patch16_224", {"readout": "registers"}, "`readout` must be timm, register, but got 'registers'"),
    ],
)
def test_what_a_network_cannot_have_is_refused_in_one_line(backbone: str, options: Any, rule: str) -> None:
    for build in (create_backbone, create_subnet, Supernet):
        with pytest.raises(InputError) as caught:
            build(backbone, **options)
        assert rule in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_register_costs_as_much_as_a_class_token() -> None:
    """By hand: projections 4·D², MLP 8·D², attention products and norms, for each of D = 64 channels and 3 blocks."""
    without, with_one = (backbone_costs("vit_tiny_patch16_224", 224, **SMALL, registers=k) for k in (0, 1))
    tokens, d = 197, 64
    products = 2 * d * ((tokens + 1) ** 2 - tokens**2)
    norms = 2 * 5 * d
    assert with_one.base - without.base == 3 * (12 * d * d + products + norms) + 5 * d
