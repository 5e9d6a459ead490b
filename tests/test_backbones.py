"""The conformance suite: what every adapter must do with every operator."""

import copy
import random

import pytest
import timm
import torch
from conftest import randomise
from torch import nn

import ltmsearch
from ltmsearch.backbones import create_subnet, get_adapter, known_backbones, operators_of
from ltmsearch.errors import InputError
from ltmsearch.merging import CONTENT_GAIN, OPERATORS
from ltmsearch.schedule import MergeSchedule
from ltmsearch.supernet import Supernet

SMALL = ("mobilevit_xxs",)
"""One backbone per family: the others differ in widths only."""
RATIOS = (1.0, 0.8, 0.5, 0.3)


def layers_of(backbone: str) -> tuple[str, ...]:
    return get_adapter(backbone).layers(timm.create_model(backbone))


def some_schedule(layers: tuple[str, ...], seed: int, operator: str) -> MergeSchedule:
    rng = random.Random(seed)
    return MergeSchedule(keep_ratios={layer: rng.choice(RATIOS) for layer in layers}, operator=operator)


@pytest.fixture(scope="module")
def supernets() -> dict[tuple[str, str], Supernet]:
    """Randomised supernets in evaluation mode, one per backbone and operator."""
    return {
        (backbone, operator): randomise(Supernet(backbone, operator=operator, num_classes=7)).eval()  # type: ignore[misc]
        for backbone in SMALL
        for operator in OPERATORS
    }


@pytest.mark.parametrize("operator", sorted(OPERATORS))
@pytest.mark.parametrize("backbone", SMALL)
class TestConformance:
    @pytest.mark.parametrize("img_size", [(128, 128), (160, 96)])
    def test_plain_equals_timm_bit_for_bit(
        self, supernets: dict[tuple[str, str], Supernet], backbone: str, operator: str, img_size: tuple[int, int]
    ) -> None:
        supernet = supernets[backbone, operator]
        reference = timm.create_model(backbone, num_classes=7).eval()
        state = {n: v for n, v in supernet.model.state_dict().items() if ".merging." not in n}
        reference.load_state_dict(state)  # strict: names are timm's own
        images = torch.randn(2, 3, *img_size)
        with torch.no_grad():
            assert torch.equal(supernet(images), reference(images))
            with supernet.active(MergeSchedule.uniform(supernet.layers, 1.0, operator)):
                assert torch.equal(supernet(images), reference(images))

    @pytest.mark.parametrize("img_size", [(128, 128), (224, 224), (256, 256), (96, 160), (70, 101)])
    def test_extracted_equals_active_at_every_size(
        self, supernets: dict[tuple[str, str], Supernet], backbone: str, operator: str, img_size: tuple[int, int]
    ) -> None:
        supernet = supernets[backbone, operator]
        schedule = some_schedule(supernet.layers, sum(img_size), operator)
        images = torch.randn(1, 3, *img_size)
        with torch.no_grad(), supernet.active(schedule):
            active = supernet(images)
            plain_is_other = not torch.equal(
                active, supernet.extract(MergeSchedule(keep_ratios={}, operator=operator))(images)
            )
        subnet = supernet.extract(schedule)
        with torch.no_grad():
            assert torch.equal(subnet(images), active)
        assert plain_is_other
        assert set(operators_of(subnet, supernet.layers)) == set(schedule.merging_layers)

    def test_registered_model_takes_the_subnets_weights(
        self, supernets: dict[tuple[str, str], Supernet], backbone: str, operator: str
    ) -> None:
        supernet = supernets[backbone, operator]
        schedule = some_schedule(supernet.layers, 5, operator)
        subnet = supernet.extract(schedule)
        model = timm.create_model(
            f"ltm_{backbone}", keep_ratios=dict(schedule.keep_ratios), operator=operator, num_classes=7
        )
        model.load_state_dict(subnet.state_dict())
        images = torch.randn(1, 3, 96, 96)
        with torch.no_grad():
            assert torch.equal(model.eval()(images), subnet(images))

    def test_batch_of_one_equals_its_row_in_a_batch(
        self, supernets: dict[tuple[str, str], Supernet], backbone: str, operator: str
    ) -> None:
        supernet = supernets[backbone, operator]
        images = torch.randn(3, 3, 96, 96)
        with torch.no_grad(), supernet.active(some_schedule(supernet.layers, 1, operator)):
            together = supernet(images)
            torch.testing.assert_close(
                torch.cat([supernet(image[None]) for image in images]), together, atol=1e-4, rtol=1e-4
            )
            assert torch.equal(supernet(images), together)

    def test_gradients_reach_all_parameters(
        self, supernets: dict[tuple[str, str], Supernet], backbone: str, operator: str
    ) -> None:
        supernet = copy.deepcopy(supernets[backbone, operator]).train()
        for name, parameter in supernet.named_parameters():
            if name.endswith("kappa"):
                parameter.data.fill_(3.0)  # at κ = 0 the directions V have no say yet
        with supernet.active(MergeSchedule.uniform(supernet.layers, 0.7, operator)):
            supernet(torch.randn(2, 3, 224, 224)).square().sum().backward()
        silent = [n for n, p in supernet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert silent == []

    def test_bf16(self, supernets: dict[tuple[str, str], Supernet], backbone: str, operator: str) -> None:
        supernet = supernets[backbone, operator]
        images = torch.randn(1, 3, 96, 96)
        with torch.no_grad(), supernet.active(some_schedule(supernet.layers, 2, operator)):
            exact = supernet(images)
            with torch.autocast("cpu", torch.bfloat16):
                rough = supernet(images)
        assert torch.isfinite(rough).all()
        if operator != "tome":  # near ties between keys are matched otherwise in another precision
            assert (rough.float() - exact).norm() < 0.2 * exact.norm()


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


def test_plain_checkpoints_load_and_masks_keep_their_start() -> None:
    plain = timm.create_model("mobilevit_xxs", num_classes=4)
    model = timm.create_model("ltm_mobilevit_xxs", keep_ratios={"stages.3.*": 0.5}, num_classes=4)
    before = {n: v.clone() for n, v in model.state_dict().items() if ".merging." in n}
    assert before
    model.load_state_dict(plain.state_dict())  # strict
    after = model.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items())
    assert torch.equal(after["stem.conv.weight"], plain.state_dict()["stem.conv.weight"])
    half = {n: v for n, v in after.items() if not n.endswith("transformer.0.merging.kappa")}
    with pytest.raises(RuntimeError, match="kappa"):
        model.load_state_dict(half)


@pytest.mark.parametrize(("start", "gain"), [("auto", 0.0), ("place", 0.0), ("content", CONTENT_GAIN)])
def test_mask_start(start: str, gain: float) -> None:
    model = create_subnet("mobilevit_xxs", keep_ratios={"stages.2.1.transformer.0": 0.5}, mask_start=start)  # type: ignore[arg-type]
    (operator,) = operators_of(model, layers_of("mobilevit_xxs")).values()
    assert float(operator.kappa.detach()) == gain


def test_layer_names_and_registry() -> None:
    assert layers_of("mobilevit_s") == (
        "stages.2.1.transformer.0", "stages.2.1.transformer.1",
        "stages.3.1.transformer.0", "stages.3.1.transformer.1", "stages.3.1.transformer.2", "stages.3.1.transformer.3",
        "stages.4.1.transformer.0", "stages.4.1.transformer.1", "stages.4.1.transformer.2",
    )  # fmt: skip
    assert ltmsearch.__version__
    for backbone in known_backbones():
        assert timm.is_model(f"ltm_{backbone}")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"keep_ratios": {"stages.9.*": 0.5}}, "unknown layer"),
        ({"keep_ratios": {"stages.2.*": 1.4}}, r"must be in \(0, 1\]"),
        ({"keep_ratios": {"stages.2.*": 0.5}, "operator": "tomme"}, "did you mean tome"),
    ],
)
def test_wrong_arguments_are_told(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        timm.create_model("ltm_mobilevit_xxs", **kwargs)


def test_unknown_backbone_is_told_with_the_nearest() -> None:
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
