"""The conformance suite: what every adapter must do with every operator."""

import copy
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.nets import SMALL, odd_size, own_size, randomise, unused_weights
from torch import nn

import ltmsearch
from ltmsearch.errors import InputError
from ltmsearch.merging import CONTENT_GAIN, OPERATORS
from ltmsearch.models import MERGING, attached_operators, create_subnet, get_adapter, known_backbones, set_schedule
from ltmsearch.models.supernet import Supernet
from ltmsearch.programs.tracing import index_reductions
from ltmsearch.schedules.schedule import Form, MergeSchedule

VARIANTS = [
    (name, form) for name, operator in sorted(OPERATORS.items()) if not operator.adaptive for form in operator.forms
]
RATIOS = (1.0, 0.8, 0.5, 0.3, -2, -9)


def layers_of(backbone: str) -> tuple[str, ...]:
    return get_adapter(backbone).layers(timm.create_model(backbone))


def some_schedule(layers: tuple[str, ...], seed: int, operator: str, form: Form) -> MergeSchedule:
    rng = random.Random(seed)
    ratios = {layer: rng.choice(RATIOS) for layer in layers}
    return MergeSchedule(keep_ratios=ratios, operator=operator, forms=dict.fromkeys(layers, form))


@cache
def supernet_of(backbone: str, operator: str) -> Supernet:
    """A randomised supernet in evaluation mode."""
    return randomise(Supernet(backbone, operator=operator, num_classes=7, **SMALL[backbone])).eval()  # type: ignore[return-value]


def plain_of(backbone: str, supernet: Supernet, **kwargs: Any) -> nn.Module:
    """timm's own model with a supernet's weights, loaded strictly: names are timm's own."""
    reference: nn.Module = timm.create_model(backbone, num_classes=7, **SMALL[backbone], **kwargs)
    reference.load_state_dict({n: v for n, v in supernet.model.state_dict().items() if f".{MERGING}." not in n})
    return reference.eval()


@pytest.mark.parametrize("backbone", sorted(SMALL))
@pytest.mark.parametrize("operator", sorted(n for n, operator in OPERATORS.items() if not operator.adaptive))
@pytest.mark.parametrize(
    "img_size",
    [
        None,  # odd
        pytest.param((128, 128), marks=pytest.mark.slow),
        pytest.param((160, 96), marks=pytest.mark.slow),
        pytest.param((224, 224), marks=pytest.mark.slow),
    ],
)
def test_plain_equals_timm_bit_for_bit(backbone: str, operator: str, img_size: tuple[int, int] | None) -> None:
    supernet = supernet_of(backbone, operator)
    reference = plain_of(backbone, supernet, **get_adapter(backbone).any_size_kwargs)
    images = torch.randn(2, 3, *(img_size or odd_size(backbone)))
    with torch.no_grad():
        assert torch.equal(supernet(images), reference(images))
        with supernet.active(MergeSchedule.uniform(supernet.layers, 1.0, operator)):
            assert torch.equal(supernet(images), reference(images))


@pytest.mark.parametrize("backbone", sorted(SMALL))
def test_supernet_equals_timms_network_at_its_own_size(backbone: str) -> None:
    """Not only the network that takes images of any size."""
    supernet = supernet_of(backbone, "ltm")
    images = torch.randn(2, 3, own_size(backbone), own_size(backbone))
    with torch.no_grad():
        assert torch.equal(supernet(images), plain_of(backbone, supernet)(images))


@pytest.mark.parametrize("backbone", sorted(n for n in SMALL if get_adapter(n).fixed_size))
def test_networks_built_for_another_size_merge_too(backbone: str) -> None:
    """Where timm shrinks windows or positions to an image size, all the same: plain is timm's, merged still runs."""
    size = {"img_size": (96, 160), "num_classes": 7, **SMALL[backbone]}
    merging = randomise(create_subnet(backbone, keep_ratios={"*": 0.5}, **size)).eval()
    plain = timm.create_model(backbone, **size).eval()
    plain.load_state_dict({n: v for n, v in merging.state_dict().items() if f".{MERGING}." not in n})
    images = torch.randn(2, 3, 96, 160)
    layers = get_adapter(backbone).layers(merging)
    with torch.no_grad():
        merged = merging(images)
        set_schedule(backbone, merging, MergeSchedule.uniform(layers, 1.0))
        assert torch.equal(merging(images), plain(images))
        assert not torch.equal(merged, plain(images))
        assert torch.isfinite(merged).all()


@pytest.mark.parametrize(("operator", "form"), VARIANTS)
@pytest.mark.parametrize("backbone", sorted(SMALL))
class TestConformance:
    @pytest.mark.parametrize(
        "img_size",
        [
            None,  # odd
            pytest.param((128, 128), marks=pytest.mark.slow),
            pytest.param((224, 224), marks=pytest.mark.slow),
            pytest.param((96, 160), marks=pytest.mark.slow),
        ],
    )
    def test_extracted_equals_active_at_every_size(
        self, backbone: str, operator: str, form: Form, img_size: tuple[int, int] | None
    ) -> None:
        supernet = supernet_of(backbone, operator)
        img_size = img_size or odd_size(backbone)
        schedule = some_schedule(supernet.layers, sum(img_size), operator, form)
        images = torch.randn(1, 3, *img_size)
        with torch.no_grad():
            plain = supernet(images)
            with supernet.active(schedule):
                active = supernet(images)
            subnet = supernet.extract(schedule)
            assert torch.equal(subnet(images), active)
            assert not torch.equal(active, plain)
        assert set(attached_operators(subnet, supernet.layers)) == set(schedule.merging_layers)

    def test_registered_model_takes_the_subnets_weights(self, backbone: str, operator: str, form: Form) -> None:
        supernet = supernet_of(backbone, operator)
        schedule = some_schedule(supernet.layers, 5, operator, form)
        subnet = supernet.extract(schedule)
        model = timm.create_model(
            f"ltm_{backbone}", keep_ratios=dict(schedule.keep_ratios), operator=operator, forms=form, num_classes=7,
            img_size=own_size(backbone), **SMALL[backbone],
        )  # fmt: skip
        model.load_state_dict(subnet.state_dict())
        images = torch.randn(1, 3, own_size(backbone), own_size(backbone))
        with torch.no_grad():
            assert torch.equal(model.eval()(images), subnet(images))

    def test_batch_of_one_equals_its_row_in_a_batch(self, backbone: str, operator: str, form: Form) -> None:
        supernet = supernet_of(backbone, operator)
        images = torch.randn(3, 3, 96, 96)
        with torch.no_grad(), supernet.active(some_schedule(supernet.layers, 1, operator, form)):
            together = supernet(images)
            torch.testing.assert_close(
                torch.cat([supernet(image[None]) for image in images]), together, atol=1e-3, rtol=1e-3
            )
            assert torch.equal(supernet(images), together)

    def test_gradients_reach_all_parameters(self, backbone: str, operator: str, form: Form) -> None:
        supernet = copy.deepcopy(supernet_of(backbone, operator)).train()
        schedule = MergeSchedule.uniform(supernet.layers, 0.7, operator, form)
        with supernet.active(schedule):
            supernet(torch.randn(2, 3, 224, 224)).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in supernet.named_parameters()}
        assert [name for name, gradient in gradients.items() if gradient is None] == []
        silent = {name for name, gradient in gradients.items() if not gradient.abs().sum() > 0}
        masks = attached_operators(supernet.model, supernet.layers)
        with supernet.active(schedule):
            unused = {f"model.{layer}.{MERGING}.{name}" for layer, op in masks.items() for name in unused_weights(op)}
        assert silent == unused

    def test_bf16(self, backbone: str, operator: str, form: Form) -> None:
        supernet = supernet_of(backbone, operator)
        images = torch.randn(1, 3, 96, 96)
        with torch.no_grad(), supernet.active(some_schedule(supernet.layers, 2, operator, form)):
            exact = supernet(images)
            with torch.autocast("cpu", torch.bfloat16):
                rough = supernet(images)
        assert torch.isfinite(rough).all()
        if form == "soft":  # near ties are decided otherwise in another precision
            assert (rough.float() - exact).norm() < 0.2 * exact.norm()

    @pytest.mark.slow
    def test_exported_program_merges_by_matrix_products(self, backbone: str, operator: str, form: Form) -> None:
        supernet = supernet_of(backbone, operator)
        subnet = supernet.extract(some_schedule(supernet.layers, 4, operator, form))
        side = own_size(backbone)  # padding has tokens that are all alike: rounding decides which of them are matched
        images = torch.randn(2, 3, side, side)
        program = torch.export.export(subnet, (images,))
        assert index_reductions(program) == []
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), subnet(images), atol=1e-3, rtol=1e-3)


def test_everything_merged_to_one_token_still_runs() -> None:
    supernet = Supernet("mobilevit_xxs", num_classes=3).eval()
    with torch.no_grad(), supernet.active(MergeSchedule.uniform(supernet.layers, 0.01)):
        assert torch.isfinite(supernet(torch.randn(1, 3, 64, 64))).all()


def test_timm_arguments_pass_through() -> None:
    model = timm.create_model(
        "ltm_mobilevit_xxs", keep_ratios={"stages.2.*": 0.5}, operator="ltm", num_classes=10, img_size=224,
        in_chans=1, drop_path_rate=0.1,
    )  # fmt: skip
    assert model.eval()(torch.randn(1, 1, 96, 96)).shape == (1, 10)
    assert model.forward_features(torch.randn(1, 1, 96, 96)).dim() == 4


@pytest.mark.parametrize("backbone", sorted(SMALL))
def test_timm_checkpoint_path_starts_masks_by_content(backbone: str, tmp_path: Path) -> None:
    plain = timm.create_model(backbone, num_classes=3, **SMALL[backbone])
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    model = timm.create_model(
        f"ltm_{backbone}", keep_ratios={"*": 0.5}, num_classes=3, checkpoint_path=str(tmp_path / "plain.safetensors"),
        **SMALL[backbone],
    )  # fmt: skip
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    operators = attached_operators(model, get_adapter(backbone).layers(model)).values()
    assert {round(float(operator.log_gain.detach().exp()), 4) for operator in operators} == {CONTENT_GAIN}


def test_one_keep_ratio_for_all_layers() -> None:
    net = timm.create_model("ltm_mobilevit_xxs", keep_ratios=0.5, forms="hard", num_classes=2)
    operators = attached_operators(net, get_adapter("mobilevit_xxs").layers(net))
    assert [(operator.keep_ratio, operator.form) for operator in operators.values()] == [(0.5, "hard")] * 9
    with pytest.raises(InputError, match=r"keep ratios must be given by layer, .* but got \[0\.5\]"):
        timm.create_model("ltm_mobilevit_xxs", keep_ratios=[0.5])
    with pytest.raises(InputError, match=r"keep ratios must be in \(0, 1\], or negative .*, but every layer has 0"):
        timm.create_model("ltm_mobilevit_xxs", keep_ratios=0)


def test_layer_names_and_registry() -> None:
    assert layers_of("mobilevit_s") == (
        "stages.2.1.transformer.0", "stages.2.1.transformer.1",
        "stages.3.1.transformer.0", "stages.3.1.transformer.1", "stages.3.1.transformer.2", "stages.3.1.transformer.3",
        "stages.4.1.transformer.0", "stages.4.1.transformer.1", "stages.4.1.transformer.2",
    )  # fmt: skip
    assert ltmsearch.__version__
    for backbone in known_backbones():
        assert timm.is_model(f"ltm_{backbone}")


def test_unknown_backbone_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean mobilevit_s\?"):
        get_adapter("mobilvit_s")


def test_deep_copies_do_not_share_state() -> None:
    original = create_subnet("mobilevit_xxs", keep_ratios={"stages.2.*": 0.5}, num_classes=3).eval()
    copied = copy.deepcopy(original)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        wanted = original(images)
        original(torch.randn(1, 3, 64, 128))  # another grid in the original
        assert torch.equal(copied(images), wanted)
    assert not any(
        a is b for a, b in zip(original.modules(), copied.modules(), strict=True) if isinstance(a, nn.Linear)
    )
