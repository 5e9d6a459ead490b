"""Networks that merge by threshold: each image keeps its own number of tokens, and its answer is its own."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from support.nets import randomise
from torch import Tensor, nn

from ltmsearch.costs import backbone_costs, cost_model, image_costs, image_macs, traced_macs
from ltmsearch.errors import InputError
from ltmsearch.models import count_tokens, create_subnet, get_adapter, set_schedule
from ltmsearch.models.merge_traces import trace_merges
from ltmsearch.models.supernet import Supernet
from ltmsearch.programs import export_onnx, export_program
from ltmsearch.schedules.schedule import MergeSchedule

VIT, EVA = "vit_tiny_patch16_224", "vit_small_patch16_rope_mixed_224"
SIZES: dict[str, Any] = {"depth": 4, "embed_dim": 64, "num_heads": 2, "num_classes": 5, "img_size": 96}
WHOLE = 6 * 6
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "token": (VIT, {}),
    "registers": (VIT, {"reg_tokens": 3, "global_pool": "avg"}),
    "avgmax": (VIT, {"global_pool": "avgmax"}),
    "max": (VIT, {"global_pool": "max"}),
    "map": (VIT, {"global_pool": "map", "class_token": False}),
    "rotary": (EVA, {"global_pool": "avg"}),
}
THRESHOLDS = {"blocks.0": 0.6, "blocks.1": 0.4, "blocks.3": 0.3}


def net(name: str = "registers", thresholds: Any = THRESHOLDS, **options: Any) -> nn.Module:
    backbone, kwargs = NETS[name]
    model = create_subnet(backbone, keep_ratios=thresholds, operator="threshold", **SIZES, **kwargs, **options)
    return randomise(model).eval()


def images() -> Tensor:
    """Five images, from nearly one colour to noise, so that their tokens are more and less alike."""
    noise = torch.randn(5, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([0.02, 0.3, 0.7, 1.0, 2.0])[:, None, None, None]


@pytest.mark.parametrize("name", NETS)
def test_an_answer_does_not_depend_on_the_batch(name: str) -> None:
    model, x = net(name), images()
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in x])
        for batches in (x.split(5), x.split(2), x.flip(0).split(3)):
            answers = torch.cat([model(batch) for batch in batches])
            answers = answers.flip(0) if torch.equal(batches[0][0], x[-1]) else answers
            torch.testing.assert_close(answers, alone, atol=1e-5, rtol=1e-5)
    assert len(set(count_tokens(NETS[name][0], model, [x]).kept(WHOLE)[:, -1].tolist())) > 2, "and their counts differ"


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_formula_equals_the_trace_of_each_image_alone(name: str) -> None:
    backbone, kwargs = NETS[name]
    model, x = net(name), images()
    costs = cost_model(backbone, timm.create_model(backbone, **SIZES, **kwargs), (96, 96), "threshold")
    schedule = MergeSchedule.from_mapping(costs.layers, THRESHOLDS, "threshold")
    together, alone = (count_tokens(backbone, model, batches).kept(WHOLE) for batches in ([x], x.split(1)))
    assert np.array_equal(together, alone)
    assert (together[:, 2] == together[:, 1]).all(), "blocks.2 does not merge"
    measured = image_costs(costs, schedule, together)
    assert measured.macs.tolist() == [traced_macs(model, (96, 96), image=image[None]) for image in x]
    assert len(set(measured.macs.tolist())) > 2


def test_a_single_image_is_truly_shorter() -> None:
    model, x = net(), images()
    seen: list[int] = []
    model.norm.register_forward_hook(lambda _module, args, _out: seen.append(args[0].shape[1]))
    with torch.no_grad():
        for image in x:
            model(image[None])
        model(x)
    kept = count_tokens(VIT, model, [x]).kept(WHOLE)[:, -1].tolist()
    assert seen[:5] == [4 + count for count in kept], "beside one class token and three registers"
    assert seen[5] == 4 + max(kept), "a batch has as many places as its largest image needs"


def test_tokens_that_keep_their_distance_all_stay() -> None:
    model, x = net(thresholds=1 - 1e-9), images()[2:]
    plain = timm.create_model(VIT, **SIZES, **NETS["registers"][1]).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), atol=1e-5, rtol=1e-5)
    assert (count_tokens(VIT, model, [x]).kept(WHOLE) == WHOLE).all()


def test_training_steps_are_finite_and_equal_alone_and_together() -> None:
    gradients, model = [], net("avgmax").train()
    for batches in (images().split(5), images().split(1)):
        model.zero_grad()
        for batch in batches:
            model(batch).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.isfinite(gradient).all(), name
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4)


def test_features_stand_on_full_grids_and_are_each_images_own() -> None:
    model, x = net(), images()
    with torch.no_grad():
        together = model.forward_intermediates(x, intermediates_only=True, norm=True)
        alone = [model.forward_intermediates(image[None], intermediates_only=True, norm=True) for image in x]
    for block, features in enumerate(together):
        assert features.shape == (5, 64, 6, 6)
        torch.testing.assert_close(features, torch.cat([each[block] for each in alone]), atol=1e-5, rtol=1e-5)


def test_traced_merges_hold_the_tokens_of_their_image() -> None:
    model, x = net(), images()
    kept = count_tokens(VIT, model, [x]).kept(WHOLE)
    for image, trace in enumerate(trace_merges(VIT, model, x)):
        counts = [int(kept[image, block]) for block in (0, 1, 3)]
        assert [(layer.before, layer.after) for layer in trace] == list(zip([WHOLE, *counts], counts, strict=False))
        for layer in trace:
            assert layer.sizes.min() >= 1
            assert layer.sizes.sum() == WHOLE
            np.testing.assert_array_equal(layer.patch_shares.sum(axis=1), 1)


def test_bf16_answers_are_finite() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(net("map")(images())).all()


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="torch 2.8 to 2.10 cannot compile these networks")
def test_compiled_networks_keep_all_places_and_answer_alike() -> None:
    model, x = net(), images()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(x)
        torch.testing.assert_close(compiled, model(x), atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


def test_supernet_and_extracted_subnet_are_equal() -> None:
    supernet = randomise(Supernet(VIT, operator="threshold", **SIZES)).eval()
    assert isinstance(supernet, Supernet)
    schedule = MergeSchedule.from_mapping(supernet.layers, THRESHOLDS, "threshold")
    with torch.no_grad(), supernet.active(schedule):
        assert torch.equal(supernet.extract(schedule)(images()), supernet(images()))


def test_programs_are_refused_with_the_reason(tmp_path: Any) -> None:
    model = net()
    for export, name in ((export_program, "a.pt2"), (export_onnx, "a.onnx")):
        with pytest.raises(InputError, match="cannot be exported: how many tokens it keeps depends on the image"):
            export(model, tmp_path / name, img_size=96)
    assert list(tmp_path.iterdir()) == []
    set_schedule(VIT, model, MergeSchedule.uniform(get_adapter(VIT).layers(model), 1.0, "threshold"))
    assert export_program(model, tmp_path / "plain.pt2", img_size=96).bytes


def test_families_that_undo_merges_are_refused() -> None:
    for backbone in ("mobilevit_xxs", "swin_tiny_patch4_window7_224"):
        with pytest.raises(
            InputError, match=r"but got 'threshold': choose another, or a network of the families eva, vit"
        ):
            create_subnet(backbone, operator="threshold")
        with pytest.raises(InputError, match="but got 'threshold'"):
            backbone_costs(backbone, 224, "threshold")


def test_costs_without_images_are_refused() -> None:
    costs = backbone_costs(VIT, 96, "threshold", **{n: v for n, v in SIZES.items() if n != "img_size"})
    schedule = MergeSchedule.uniform(costs.layers, 0.9, "threshold")
    with pytest.raises(InputError, match="depends on weights and images"):
        costs.macs(schedule)
    assert costs.macs(MergeSchedule.uniform(costs.layers, 1.0, "threshold")) == costs.base
    halved = [WHOLE // 2, WHOLE // 4, WHOLE // 8, WHOLE // 16]
    assert costs.cost(schedule) == image_macs(costs, schedule, halved), "the least that is possible"
    with pytest.raises(ValueError, match="with an image at least"):
        image_costs(costs, schedule, np.zeros((0, 4), dtype=int))


def test_mean_spread_and_quantiles_by_hand() -> None:
    costs = backbone_costs(VIT, 96, "threshold", **{n: v for n, v in SIZES.items() if n != "img_size"})
    schedule = MergeSchedule.from_mapping(costs.layers, {"blocks.3": 0.5}, "threshold")
    kept = np.array([[WHOLE, WHOLE, WHOLE, p] for p in (36, 30, 24, 18)])
    measured = image_costs(costs, schedule, kept)
    mlp_and_norms = 5 * 64 + 2 * 4 * 64 * 64 + 5 * 64  # of one token: norm and MLP of the block, norm behind it
    matching = 18 * 18 * 64
    wanted = [costs.base + matching - (36 - p) * mlp_and_norms for p in (36, 30, 24, 18)]
    assert measured.macs.tolist() == wanted
    assert measured.gflops == pytest.approx(np.mean(wanted) / 1e9)
    assert measured.gflops_sd == pytest.approx(np.std(wanted) / 1e9)
    assert measured.quantile(0.75) == wanted[1] / 1e9, "three of four images cost no more"
    assert measured.tokens == [36, 36, 36, 27]
