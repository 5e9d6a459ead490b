"""Every structure that timm builds as a `VisionTransformer` or an `Eva`, each made small by timm's own arguments."""

from typing import Any

import onnxruntime
import pytest
import timm
import torch
from support.nets import randomise
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from ltmsearch.config.backbones import BACKBONES
from ltmsearch.costs import cost_model, traced_macs
from ltmsearch.errors import InputError
from ltmsearch.merging import Merge
from ltmsearch.merging.assignment import HardAssignment
from ltmsearch.models import MERGING, create_subnet, get_adapter
from ltmsearch.models.adapter import FAMILIES
from ltmsearch.models.rotary import places_of, rotation_at
from ltmsearch.models.supernet import Supernet
from ltmsearch.models.transformer import mean_places
from ltmsearch.programs.onnx import export_onnx
from ltmsearch.programs.tracing import index_reductions
from ltmsearch.schedules.schedule import MergeSchedule

SMALL = {"depth": 3, "embed_dim": 64, "num_heads": 2}
STRUCTURES: dict[str, dict[str, Any]] = {
    "vit_small_patch14_dinov2": SMALL,  # LayerScale, large positions
    "vit_small_patch14_reg4_dinov2": SMALL,  # registers without positions
    "vit_giant_patch14_dinov2": {**SMALL, "mlp_ratio": 2.0},  # packed SwiGLU
    "vit_small_patch8_224": SMALL,
    "vit_base_patch32_clip_224": SMALL,  # norm before the blocks
    "vit_base_patch16_siglip_224": SMALL,  # attention pooling, no class token
    "vit_base_patch16_rpn_224": SMALL,  # norms after attention and MLP
    "vit_so150m2_patch16_reg1_gap_256": SMALL,  # norms of queries and keys
    "aimv2_large_patch14_224": SMALL,  # RMS norms, SwiGLU
    "beit3_base_patch16_224": SMALL,  # norms inside attention and MLP
    "deit_tiny_distilled_patch16_224": SMALL,  # two prefix tokens, two heads
    "vit_base_mci_224": {"depth": 2, "num_heads": 2},  # convolutional stem
    "vitamin_small_224": {"depth": 2},  # convolutional stages
    "eva_large_patch14_196": SMALL,  # EVA without rotary positions
    "eva02_tiny_patch14_224": SMALL,  # axial rotary positions, separate projections, SwiGLU
    "eva02_base_patch16_clip_224": SMALL,  # norms inside attention and MLP
    "eva02_enormous_patch14_clip_224": SMALL,  # norms after attention and MLP
    "vit_small_patch16_dinov3": SMALL,  # centred rotary positions in halves, registers
    "vit_small_patch16_rope_ape_224": SMALL,  # rotary and learned positions
    "vit_small_patch16_rope_mixed_224": SMALL,  # learned rotary positions by block and head
    "vit_pe_core_tiny_patch16_384": SMALL,  # rotary positions and attention pooling
    "vit_5b_patch16_sapiens2": {**SMALL, "num_kv_heads": (2, 1, 2)},  # grouped queries
}
VARIANTS = [("ltm", "soft"), ("tome", "matched")]
ROTARY = ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"]


def supernet_of(backbone: str, operator: str = "ltm", **options: Any) -> Supernet:
    options = {"num_classes": 7, **STRUCTURES[backbone], **options}
    return randomise(Supernet(backbone, operator=operator, **options)).eval()  # type: ignore[return-value]


def images(batch: int = 2, size: tuple[int, int] = (112, 96)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", STRUCTURES)
def test_unmerged_equals_timm_bit_for_bit(backbone: str) -> None:
    supernet = supernet_of(backbone)
    options = {"num_classes": 7, **STRUCTURES[backbone]}
    reference: nn.Module = timm.create_model(backbone, **options, **get_adapter(backbone).any_size_kwargs).eval()
    reference.load_state_dict({n: v for n, v in supernet.model.state_dict().items() if f".{MERGING}." not in n})
    for size in ((70, 101), (112, 96)):
        with torch.no_grad():
            assert torch.equal(supernet(images(size=size)), reference(images(size=size)))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of RMS norms under autocast
@pytest.mark.parametrize(("operator", "form"), VARIANTS)
@pytest.mark.parametrize("backbone", STRUCTURES)
def test_merged_nets_are_extracted_counted_and_finite(backbone: str, operator: str, form: Any) -> None:
    supernet = supernet_of(backbone, operator)
    ratios = dict(zip(supernet.layers, (0.7, 1.0, 0.5), strict=False))
    schedule = MergeSchedule(keep_ratios=ratios, operator=operator, forms=dict.fromkeys(supernet.layers, form))
    subnet = supernet.extract(schedule)
    with torch.no_grad():
        plain = supernet(images())
        with supernet.active(schedule):
            active = supernet(images())
            one = supernet(images()[:1])
            odd = supernet(images(size=(70, 101)))
            with torch.autocast("cpu", torch.bfloat16):
                rough = supernet(images())
        assert torch.equal(subnet(images()), active)
    assert not torch.equal(active, plain)
    assert all(out.isfinite().all() for out in (active, odd, rough))
    torch.testing.assert_close(one, active[:1], atol=1e-3, rtol=1e-3)
    for size in ((112, 96), (70, 101)):
        counted = cost_model(backbone, supernet.model, size, operator).macs(schedule)
        assert counted == traced_macs(subnet, size)


@pytest.mark.long
@pytest.mark.parametrize("backbone", STRUCTURES)
def test_gradients_reach_what_they_reach_in_timm(backbone: str) -> None:
    net = randomise(create_subnet(backbone, keep_ratios=0.7, num_classes=7, **STRUCTURES[backbone]))
    plain = timm.create_model(backbone, num_classes=7, **STRUCTURES[backbone])
    side = net.patch_embed.img_size[0]
    for model in (net, plain):
        model.train()
        outputs = model(images(size=(side, side)))
        sum(out.square().sum() for out in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    reached = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
    wanted = {n for n, p in plain.named_parameters() if p.grad is not None}
    operators = {n for n, _ in net.named_parameters() if f".{MERGING}." in n}
    assert reached == wanted | operators


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "form"), VARIANTS)
@pytest.mark.parametrize("backbone", STRUCTURES)
def test_exported_programs_give_the_same_outputs(backbone: str, operator: str, form: Any, tmp_path: Any) -> None:
    options = {"num_classes": 7, "img_size": 112, **STRUCTURES[backbone]}
    net = randomise(create_subnet(backbone, keep_ratios=0.6, operator=operator, forms=form, **options)).eval()
    x = images(size=(112, 112))
    program = torch.export.export(net, (x,))
    assert index_reductions(program) == []
    export_onnx(net, tmp_path / "net.onnx", img_size=112)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), net(x), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(torch.from_numpy(logits), net(x), atol=1e-3, rtol=1e-3)


class TestRotation:
    @pytest.mark.parametrize("backbone", [*ROTARY, "vit_pe_core_tiny_patch16_384", "sections"])
    def test_of_unmerged_tokens_is_timms(self, backbone: str) -> None:
        sections = {"rope_type": "mrope", "rope_rotate_half": True}
        name, options = ("vit_small_patch16_dinov3", sections) if backbone == "sections" else (backbone, {})
        rope = timm.create_model(name, depth=2, dynamic_img_size=True, **options).rope
        wanted = rope.get_embed((5, 7))
        for block in range(2):
            rotation = rotation_at(rope, places_of(rope, (5, 7)), block)[0]
            timms = wanted[block] if wanted.dim() == 4 else wanted[None]
            assert torch.equal(rotation, timms)

    @pytest.mark.parametrize("backbone", ROTARY)
    def test_of_a_merged_token_is_that_of_its_mean_place(self, backbone: str) -> None:
        """Tokens of two neighbouring rows merge, of size 3 above and 1 below."""
        rope = timm.create_model(backbone, depth=2, dynamic_img_size=True).rope
        places = places_of(rope, (4, 6))
        sizes = torch.tensor([3.0] * 6 + [1.0] * 6).repeat(2).expand(3, -1)
        position = torch.arange(6).expand(2, -1).reshape(-1)
        assignment = HardAssignment(torch.cat((position, position + 6)).expand(3, -1), 12)
        merge = Merge(tokens=torch.zeros(3, 1, 12, 1), sizes=torch.full((3, 12), 4.0), assignment=assignment)
        above, below = places.view(2, 2, 6, 2).unbind(dim=1)
        wanted = (0.75 * above + 0.25 * below).reshape(1, 12, 2).expand(3, -1, -1)
        torch.testing.assert_close(mean_places(places, sizes, merge), wanted)

    def test_positions_matter_to_merged_tokens(self) -> None:
        """A net whose tokens know their places by rotation alone: the same patches elsewhere, other features."""
        net = randomise(create_subnet("vit_small_patch16_rope_224", keep_ratios=0.5, num_classes=7, **SMALL)).eval()
        x = images(1, (224, 224))
        with torch.no_grad():
            assert not torch.allclose(net(x), net(x.flip(-1).flip(-2)), atol=1e-3)

    def test_moved_places_of_training_move_merged_tokens_along(self) -> None:
        """timm's augmentation of coordinates: one draw for the full grid and for what merges of it."""
        options = {"rope_rescale_coords": 2.0, "num_classes": 7, "img_size": 64, **SMALL}
        net = create_subnet("vit_small_patch16_dinov3", keep_ratios={"blocks.0": 0.5}, **options).train()
        seen = []
        for block in net.blocks:
            block.attn.register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw["rope"]), with_kwargs=True)
        net(images(size=(64, 64)))
        full, merged, _ = seen
        fresh = net.rope.get_embed((4, 4))
        assert not torch.allclose(full[0, 0], fresh, atol=1e-4)
        sines, cosines = full[0, 0].chunk(2, dim=-1)
        low = (torch.atan2(sines, cosines)[:, -1]).sort().values  # the slowest angle, which does not wrap around
        merged_low = torch.atan2(*merged[:, 0].chunk(2, dim=-1))[..., -1]
        assert low[0] - 1e-4 <= merged_low.min() <= merged_low.max() <= low[-1] + 1e-4


class TestNames:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("efficientvit_m0", "efficientvit_m0: it is timm's EfficientVitMsra, and its attention is cascaded"),
            ("vit_base_patch16_xp_224", "attention and MLP of its blocks run in parallel"),
            ("vit_small_patch16_18x2_224", "several attentions in parallel"),
            ("vit_dlittle_patch16_reg1_gap_256", "differential attention"),
            ("beit_base_patch16_224", "biases for pairs of places"),
            ("resnet18", "it is timm's ResNet, and nobody has written an adapter"),
            ("ltm_mobilevit_xxs", "it has merging layers already; name timm's plain network, without ltm_"),
            ("ltm_vit_tiny_patch16_224", "without ltm_"),
        ],
    )
    def test_networks_that_cannot_merge_are_refused_with_the_reason(self, name: str, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            get_adapter(name)

    def test_arguments_that_change_the_structure_are_refused_too(self) -> None:
        with pytest.raises(InputError, match="vit_tiny_patch16_224: attention and MLP of its blocks run in parallel"):
            create_subnet("vit_tiny_patch16_224", depth=2, block_fn=ParallelScalingBlock)

    def test_names_may_have_pretrained_tags(self) -> None:
        name = "vit_base_patch16_clip_224.openai"
        assert get_adapter(name).family == "vit"
        supernet = Supernet(name, num_classes=7, **SMALL)
        subnet = supernet.extract(MergeSchedule.uniform(supernet.layers, 0.5))
        assert subnet.pretrained_cfg["architecture"] == "ltm_vit_base_patch16_clip_224"
        with pytest.raises(InputError, match=r"did you mean vit_base_patch16_clip_224\.openai\?"):
            get_adapter("vit_base_patch16_clip_224.openay")
        model = timm.create_model("ltm_vit_base_patch16_clip_224.openai", keep_ratios=0.5, **SMALL)
        assert model.pretrained_cfg["tag"] == "openai"

    def test_networks_of_others_are_recognised_by_their_structure(self) -> None:
        @timm.models.register_model
        def my_own_vit(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:
            options = {"img_size": 64, "patch_size": 8, **SMALL, **options}
            config = {"input_size": (3, 64, 64), "classifier": "head", "first_conv": "patch_embed.proj"}
            net: nn.Module = build_model_with_cfg(
                VisionTransformer, "my_own_vit", pretrained, pretrained_cfg=pretrained_cfg or config, **options
            )
            return net

        assert get_adapter("my_own_vit").family == "vit"
        supernet = Supernet("my_own_vit", num_classes=3).eval()
        with torch.no_grad(), supernet.active(MergeSchedule.uniform(supernet.layers, 0.5)):
            assert supernet(images(size=(64, 64))).shape == (2, 3)

    def test_networks_of_others_are_refused_in_one_line(self) -> None:
        class MyViT(VisionTransformer):
            pass

        @timm.models.register_model
        def my_derived_vit(pretrained: bool = False, pretrained_cfg: Any = None, **_: Any) -> nn.Module:
            return MyViT(patch_size=16, embed_dim=16, depth=1, num_heads=1)

        @timm.models.register_model
        def my_bare_vit(pretrained: bool = False, pretrained_cfg: Any = None, **_: Any) -> nn.Module:
            return VisionTransformer(patch_size=16, embed_dim=16, depth=1, num_heads=1)

        with pytest.raises(InputError, match=r"of the class \S*\.MyViT, which is none of timm's"):
            get_adapter("my_derived_vit")
        with pytest.raises(InputError, match="my_bare_vit has no pretrained_cfg"):
            create_subnet("my_bare_vit")

    @pytest.mark.long
    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.family)
    def test_listed_names_are_of_the_family_that_recognises_them(self, family: Any) -> None:
        listed = BACKBONES[family.family]
        for name in {listed[0], listed[len(listed) // 2], listed[-1]}:
            with torch.device("meta"):
                model = timm.create_model(name)
            assert [f.family for f in FAMILIES if f.recognises(model)] == [family.family]
            assert family.refusal(model) is None
