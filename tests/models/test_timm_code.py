"""Merging networks in code written for timm's: features, blocks one by one, threads, number formats, other tools."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from support.nets import SMALL, randomise
from timm.models import save_for_hf
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from ltmsearch.errors import InputError
from ltmsearch.merging import OPERATORS, constants
from ltmsearch.merging.prior import area_overlap
from ltmsearch.models import create_subnet, get_adapter
from ltmsearch.models.adapter import modules_of
from ltmsearch.models.transformer import MergingBlock
from ltmsearch.schedules.schedule import Form

VARIANTS = [
    (name, form) for name, operator in sorted(OPERATORS.items()) if not operator.adaptive for form in operator.forms
]
FAMILIES = sorted(SMALL)
VIT = "vit_tiny_patch16_224"
TINY_VIT: dict[str, Any] = {"depth": 3, "embed_dim": 64, "num_heads": 2, "num_classes": 5, "img_size": 96}
POOLINGS = ["token", "avg", "avgmax", "map"]


def net(backbone: str, **options: Any) -> nn.Module:
    sizes = {"img_size": 96} if get_adapter(backbone).fixed_size else {}
    options = {"keep_ratios": 0.6, "num_classes": 7, **SMALL[backbone], **sizes, **options}
    return randomise(create_subnet(backbone, **options)).eval()


def vit(**options: Any) -> nn.Module:
    return randomise(
        create_subnet(VIT, **{"keep_ratios": {"blocks.0": 0.7, "blocks.1": 0.5}, **TINY_VIT, **options})
    ).eval()


def images(batch: int = 2, size: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


class TestNothingOutlivesItsPass:
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_features_and_head_apart_with_another_pass_between(self, pooling: str) -> None:
        model = vit(global_pool=pooling, class_token=pooling != "map")
        wanted = model(images())
        features = model.forward_features(images())
        model(images(batch=5, seed=1))
        assert torch.equal(model.forward_head(features), wanted)

    def test_features_without_their_sizes_are_refused_where_all_are_pooled(self) -> None:
        with pytest.raises(ValueError, match="very tensor"):
            model = vit(global_pool="avg")
            model.forward_head(model.forward_features(images()).clone())
        tokens = vit(global_pool="token")
        features = tokens.forward_features(images()).clone()
        assert torch.equal(tokens.forward_head(features), tokens(images()))

    def test_blocks_one_by_one_merge_as_the_network_does(self) -> None:
        model = vit(global_pool="avg")
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images()))))
        for block in model.blocks:
            x = block(x)
        assert x.shape[1] < 37
        assert torch.equal(model.forward_head(model.norm(x)), model(images()))

    @pytest.mark.parametrize("place", [0, 2])
    def test_blocks_refuse_tokens_whose_state_was_lost(self, place: int) -> None:
        model = vit()
        x = model._pos_embed(model.patch_embed(images()))
        with pytest.raises(ValueError, match="their grid and sizes travel"):
            for index, block in enumerate(model.blocks):
                x = block(x + 0 if index == place else x)

    @pytest.mark.parametrize("option", [{"attn_mask": torch.ones(37, 37, dtype=torch.bool)}, {"is_causal": True}])
    def test_attention_masks_are_refused_while_merging(self, option: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="`attn_mask` and `is_causal` cannot be combined with merging"):
            vit()(images(), **option)
        plain = vit(keep_ratios=None)
        reference = timm.create_model(VIT, **TINY_VIT).eval()
        reference.load_state_dict(plain.state_dict())
        assert torch.equal(plain(images(), **option), reference(images(), **option))

    @pytest.mark.long
    @pytest.mark.parametrize("backbone", FAMILIES)
    @pytest.mark.parametrize("operator", ["ltm", "tome"])
    def test_threads_with_images_of_several_sizes(self, backbone: str, operator: str) -> None:
        options = get_adapter(backbone).any_size_kwargs
        model = net(backbone, operator=operator, **options)
        batches = [images(batch, size, seed=batch) for batch in (1, 2, 3) for size in (64, 96)] * 4
        with torch.no_grad():
            wanted = [model(batch) for batch in batches]
            with ThreadPoolExecutor(4) as pool:
                got = list(pool.map(lambda batch: model(batch), batches))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("backbone", FAMILIES)
    def test_hooks_of_every_layer_fire_with_one_tensor(self, backbone: str) -> None:
        model = net(backbone, operator="tome")
        layers = get_adapter(backbone).layers(model)
        seen: dict[str, Any] = {}
        for name in layers:
            model.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
        model(images())
        assert tuple(seen) == layers
        assert all(isinstance(output, Tensor) for output in seen.values())

    def test_hooks_of_attention_fire_too(self) -> None:
        model = vit(operator="tome")
        fired = []
        for name, block in modules_of(model, MergingBlock).items():
            block.attn.register_forward_hook(lambda _m, _a, _o, name=name: fired.append(name))
        model(images())
        assert fired == ["blocks.0", "blocks.1", "blocks.2"]

    def test_poolings_that_know_no_sizes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="merged tokens cannot be pooled by timm's AttentionPoolPrr"):
            vit(global_pool="prr")(images())
        assert vit(global_pool="prr", keep_ratios=None)(images()).shape == (2, 5)

    def test_blocks_and_attention_of_other_classes_are_refused(self) -> None:
        class Attention(timm.layers.Attention):
            pass

        with pytest.raises(
            InputError, match=r"its blocks must be timm's own, but are Block with test_timm_code\..*Attention"
        ):
            vit(attn_layer=Attention)

    def test_fake_passes_leave_nothing_behind(self) -> None:
        model = vit(img_size=80)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model(images(size=80))
        assert type(model(images(size=80))) is Tensor


class TestFeatures:
    @pytest.mark.parametrize("backbone", FAMILIES)
    def test_without_merging_they_are_timms(self, backbone: str) -> None:
        model = net(backbone, keep_ratios=None, features_only=True)
        reference = timm.create_model(backbone, features_only=True, **SMALL[backbone], **_size(backbone)).eval()
        reference.load_state_dict(model.state_dict())
        assert all(map(torch.equal, model(images()), reference(images())))

    @pytest.mark.parametrize("backbone", FAMILIES)
    def test_while_merging_they_stand_on_full_grids(self, backbone: str) -> None:
        model = net(backbone, features_only=True)
        reference = timm.create_model(backbone, features_only=True, **SMALL[backbone], **_size(backbone)).eval()
        wanted = reference(images())
        assert [f.shape for f in model(images())] == [f.shape for f in wanted]
        assert model.feature_info.channels() == reference.feature_info.channels()
        whole = net(backbone)
        own = {name.replace("model.", "").replace("_", "."): w for name, w in model.state_dict().items()}
        shared = {n: w for n, w in whole.state_dict().items() if n.replace("_", ".") in own}
        assert len(shared) >= len(own) - 2  # the last norm may be cut off
        assert any(".merging." in name for name in model.state_dict())

    @pytest.mark.parametrize("kind", ["getter", "hook", "dict"])
    def test_timms_other_classes(self, kind: str) -> None:
        features = net("mobilevit_xxs", features_only=True, feature_cls=kind)(images())
        maps = list(features.values()) if isinstance(features, dict) else features
        assert [f.shape[-1] for f in maps] == [48, 24, 12, 6, 3]

    @pytest.mark.parametrize("backbone", FAMILIES)
    def test_they_can_be_pickled(self, backbone: str) -> None:
        model = net(backbone, features_only=True)
        again = pickle.loads(pickle.dumps(model))
        assert all(map(torch.equal, again(images()), model(images())))

    def test_classes_whose_features_stand_on_no_grid_are_refused(self) -> None:
        with pytest.raises(InputError, match="`feature_cls` of a merging vit network must be .*getter"):
            create_subnet(VIT, features_only=True, feature_cls="hook")

    @pytest.mark.parametrize("operator", ["ltm", "tome"])
    def test_each_place_has_the_value_of_its_merged_token(self, operator: str) -> None:
        model = vit(operator=operator, forms="matched", keep_ratios={"blocks.0": 0.5, "blocks.2": 0.5})
        last = []
        model.blocks[2].register_forward_hook(lambda _m, _a, out: last.append(out))
        final, maps = model.forward_intermediates(images(), return_prefix_tokens=True)
        assert [grid.shape for grid, _ in maps] == [(2, 64, 6, 6)] * 3
        merged = last[0]
        for image in range(2):
            places = maps[2][0][image].flatten(1).T.unique(dim=0)
            assert torch.equal(places, merged[image, 1:].unique(dim=0))
        assert torch.equal(maps[2][1], merged[:, :1])
        assert final.shape == (2, 37, 64)
        torch.testing.assert_close(model.forward_head(final), model(images()))

    def test_the_last_norm_precedes_the_unmerge(self) -> None:
        """Soft shares average the tokens, and the norm of a mean is not the mean of norms."""
        model = vit(forms="soft", global_pool="avg", fc_norm=False)
        assert isinstance(model.norm, nn.LayerNorm)
        final, maps = model.forward_intermediates(images(), norm=True)
        torch.testing.assert_close(model.forward_head(final), model(images()))
        prefix = model.num_prefix_tokens
        torch.testing.assert_close(maps[-1], final[:, prefix:].mT.unflatten(2, maps[-1].shape[2:]))

    def test_the_mean_over_places_is_the_mean_by_size(self) -> None:
        model = vit(global_pool="avg", operator="tome")
        (grid,) = model.get_intermediate_layers(images(), n=1, reshape=True)
        pooled = model.forward_head(model.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(model.fc_norm(grid.mean(dim=(2, 3))), pooled)

    def test_recomputed_activations_give_the_same_features_and_gradients(self) -> None:
        model = vit().train()
        results = []
        for recompute in (False, True):
            model.zero_grad()
            model.set_grad_checkpointing(recompute)
            _, maps = model.forward_intermediates(images())
            sum(f.square().sum() for f in maps).backward()
            results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert all(map(torch.allclose, *results))

    def test_pruned_and_sliced_blocks_merge_as_before(self) -> None:
        model = vit(global_pool="avg")
        wanted = model.forward_intermediates(images(), indices=[1], intermediates_only=True)
        sliced = model.blocks[:2](model._pos_embed(model.patch_embed(images())))
        assert sliced.shape[1] < 37
        model.prune_intermediate_layers([1])
        assert len(model.blocks) == 2
        assert torch.equal(model.forward_intermediates(images(), indices=[1], intermediates_only=True)[0], wanted[0])


def _size(backbone: str) -> dict[str, int]:
    return {"img_size": 96} if get_adapter(backbone).fixed_size else {}


class TestFormats:
    @pytest.mark.long
    @pytest.mark.parametrize("backbone", FAMILIES)
    @pytest.mark.parametrize(("operator", "form"), VARIANTS)
    def test_double_equals_single_precision(self, backbone: str, operator: str, form: str) -> None:
        model = net(backbone, operator=operator, forms=form)
        single = model(images())
        if backbone == "efficientvit_b0" and form == "matched":
            pytest.skip("keys behind a ReLU have ties, which rounding decides")
        double = copy.deepcopy(model).double()(images().double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), single, atol=2e-3, rtol=2e-3)

    @pytest.mark.long
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("backbone", FAMILIES)
    @pytest.mark.parametrize(("operator", "form"), VARIANTS)
    def test_half_precision(self, backbone: str, operator: str, form: str, dtype: torch.dtype) -> None:
        size = {"img_size": 128} if backbone.startswith("swinv2") else {}  # timm's attention to padding is 0/0 in fp16
        model = net(backbone, operator=operator, forms=form, **size).to(dtype)
        logits = model(images(size=size.get("img_size", 96)).to(dtype))
        assert logits.dtype == dtype
        assert logits.isfinite().all()

    def test_built_in_half_precision(self) -> None:
        model = vit(dtype=torch.bfloat16)
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize("form", ["soft", "hard", "matched", "gradient"])
    def test_sums_of_many_large_tokens_do_not_overflow_in_float16(self, form: Form) -> None:
        operator = OPERATORS["ltm"](64)
        operator.form = form
        operator.importance.data.fill_(1.0)
        tokens = torch.full((1, 1, 196, 64), 300.0) + torch.randn(1, 1, 196, 64)
        keys = torch.randn(1, 196, 1, 8).half()
        target = operator.target((14, 14), 0.001, form)
        merge = operator.half()(tokens.half(), torch.ones(1, 196), (14, 14), target, keys)
        assert merge.tokens.dtype == torch.float16
        torch.testing.assert_close(merge.tokens.float(), tokens.mean(dim=2, keepdim=True), atol=1, rtol=0)

    @pytest.mark.parametrize(("operator", "form"), VARIANTS)
    def test_an_empty_batch_gives_no_logits(self, operator: str, form: str) -> None:
        assert net(VIT, operator=operator, forms=form)(images(batch=0)).shape == (0, 7)


class TestTools:
    @pytest.mark.parametrize("backbone", [VIT, "mobilevit_xxs"])
    def test_shapes_without_memory(self, backbone: str) -> None:
        with torch.device("meta"):
            options = {**SMALL[backbone], **({"img_size": 96} if backbone == VIT else {})}
            model = create_subnet(backbone, keep_ratios=0.6, num_classes=7, **options).eval()
            assert model(torch.empty(2, 3, 96, 96)).shape == (2, 7)

    @pytest.mark.parametrize("backbone", FAMILIES)
    @pytest.mark.parametrize(("operator", "form"), VARIANTS)
    def test_layers_too_small_to_merge_take_part_with_zero(self, backbone: str, operator: str, form: str) -> None:
        """As distributed training requires of every weight: at this ratio, grids of few tokens stay as they are."""
        model = net(backbone, operator=operator, forms=form, keep_ratios=0.99).train()
        model(images()).square().sum().backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []

    @pytest.mark.parametrize("backbone", FAMILIES)
    def test_saved_for_the_hub_and_opened_again(self, backbone: str, tmp_path: Path) -> None:
        model = net(backbone, forms="hard" if backbone != VIT else "matched")
        save_for_hf(model, tmp_path)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert torch.equal(again(images()), model(images()))
        features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
        assert all(f.isfinite().all() for f in features(images()))

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    @pytest.mark.parametrize("backbone", FAMILIES)
    def test_scripting_is_refused_in_one_line(self, backbone: str) -> None:
        with pytest.raises(TypeError, match=r"^a network that merges tokens cannot be scripted: .*trace"):
            torch.jit.script(net(backbone))

    def test_constants_of_many_image_sizes_are_dropped(self) -> None:
        for side in range(20, 60):
            constants.constant_tensors(area_overlap, (side, side), (side - 4, side), device=torch.device("cpu"))
        assert constants._cache.currsize <= constants.CACHED_BYTES

    @pytest.mark.long
    @pytest.mark.parametrize("backbone", FAMILIES)
    @pytest.mark.parametrize(
        ("operator", "form"),
        [VARIANTS[0], *(pytest.param(*variant, marks=pytest.mark.slow) for variant in VARIANTS[1:])],
    )
    @pytest.mark.filterwarnings("ignore:Converting a tensor:torch.jit.TracerWarning", "ignore:`torch.jit")
    def test_traced_by_torchscript_with_its_own_check(self, backbone: str, operator: str, form: str) -> None:
        model = net(backbone, operator=operator, forms=form)
        traced = torch.jit.trace(model, images(), check_trace=True)
        torch.testing.assert_close(traced(images(3, seed=1)), model(images(3, seed=1)))

    @pytest.mark.long
    @pytest.mark.parametrize("backbone", FAMILIES)
    @pytest.mark.parametrize(
        ("operator", "form"),
        [v if v == ("ltm", "matched") else pytest.param(*v, marks=pytest.mark.slow) for v in VARIANTS],
    )
    @pytest.mark.filterwarnings("ignore")  # the exporter is deprecated, but others build on it
    def test_onnx_by_the_older_exporter(self, backbone: str, operator: str, form: str) -> None:
        if get_adapter(backbone).family == "eva":
            pytest.skip("it cannot export timm's own networks of this family either")
        model = net(backbone, operator=operator, forms=form)
        file = io.BytesIO()
        options: dict[str, Any] = {"opset_version": 17, "input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
        torch.onnx.export(model, (images(),), file, dynamo=False, **options)
        graph = onnx.load_from_string(file.getvalue()).graph
        scatters = [node for node in graph.node if node.op_type.startswith("Scatter")]
        reductions = [a.s for node in scatters for a in node.attribute if a.name == "reduction"]
        assert set(reductions) <= {b"none"}  # as ONNX files by `export_onnx`
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        for batch in (1, 3):
            (logits,) = session.run(None, {"x": images(batch, seed=2).numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), model(images(batch, seed=2)), atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("backbone", [b if b == VIT else pytest.param(b, marks=pytest.mark.slow) for b in FAMILIES])
    @pytest.mark.parametrize(
        ("operator", "form"),
        [v if v == ("ltm", "hard") else pytest.param(*v, marks=pytest.mark.slow) for v in VARIANTS],
    )
    def test_compiled_as_one_graph_that_serves_every_batch_size(self, backbone: str, operator: str, form: str) -> None:
        torch._dynamo.reset()
        some = "stages.[13]*" if backbone.startswith("fastvit") else "*1"
        model = net(backbone, operator=operator, forms=form, keep_ratios={some: 0.6})
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        with torch.no_grad():
            for batch in (2, 3, 5):
                assert torch.equal(compiled(images(batch)), model(images(batch)))
            assert counter.frame_count == 2  # for one size, then for all, as in a plain network
            if backbone == VIT:
                for block in modules_of(model, MergingBlock).values():
                    for operator_ in block.upstream:
                        operator_.keep_ratio = 0.8
                assert torch.equal(compiled(images()), model(images()))
