"""The linear probe: scikit-learn's own predictions, in every family, from nothing but the classifier's inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.images import open_data
from support.nets import SMALL, randomise
from torch import nn

from ltmsearch.data.loading import ImageData
from ltmsearch.engine import linear_probe
from ltmsearch.engine.evaluation import score
from ltmsearch.engine.linear_probe import fit_classifiers, fit_linear, probe_images, record_inputs
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError
from ltmsearch.models import get_adapter

RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="test")
DEIT = "deit_tiny_distilled_patch16_224"
TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
NETS: dict[str, dict[str, Any]] = SMALL | {
    DEIT: TINY,
    "vit_tiny_patch16_384": TINY,  # pools its class token
    "vit_base_patch16_siglip_224": TINY,  # pools by attention
}
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (210, 60, 40)}


def samples(classes: int, number: int = 90, width: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Features on very different scales, which overlap between classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(number) % classes
    features = rng.normal(size=(number, width)) + rng.normal(size=(classes, width))[labels]
    return (features * 10.0 ** np.arange(-3, width - 3) + 5).astype(np.float32), labels


def reference(features: np.ndarray, labels: np.ndarray) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(features, labels)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """Noisy images of one colour per class; the last number of training images differs between classes."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, number in (("train", 12), ("validation", 8)):
        for place, (name, colour) in enumerate(COLOURS.items()):
            (folder / split / name).mkdir(parents=True)
            for index in range(number + place):
                pixels = np.clip(np.array(colour) + rng.normal(0, 40, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return open_data(folder, img_size=64, mean=(0.5,) * 3, std=(0.5,) * 3)


def net_of(backbone: str, classes: int = 3) -> nn.Module:
    size = {"img_size": 64} if get_adapter(backbone).fixed_size else {}
    net: nn.Module = timm.create_model(backbone, num_classes=classes, **NETS[backbone], **size)
    return randomise(net).train()


def heads_of(net: nn.Module) -> tuple[str, ...]:
    names = net.pretrained_cfg["classifier"]  # type: ignore[index]
    return (names,) if isinstance(names, str) else tuple(names)


class TestRegression:
    @pytest.mark.parametrize("classes", [2, 3, 5])
    def test_folded_weights_predict_what_scikit_learn_predicts(self, classes: int) -> None:
        features, labels = samples(classes)
        before = features.copy()
        fit, wanted = fit_linear(features, labels, classes), reference(features, labels)
        logits = torch.from_numpy(features @ fit.weight.T + fit.bias)
        np.testing.assert_allclose(logits.softmax(dim=1), wanted.predict_proba(features), atol=1e-5)
        assert (logits.argmax(dim=1).numpy() == wanted.predict(features)).all()
        assert fit.converged
        assert (features == before).all()

    def test_classes_without_images_are_never_predicted(self) -> None:
        features, labels = samples(3)
        fit, seen = fit_linear(features, 2 * labels, 6), fit_linear(features, labels, 3)  # 0, 2 and 4 of 6
        logits = features @ fit.weight.T + fit.bias
        np.testing.assert_array_equal(logits[:, ::2], features @ seen.weight.T + seen.bias)
        assert not fit.weight[1::2].any()
        assert np.isfinite(fit.bias).all()
        assert (logits.argmax(axis=1) % 2 == 0).all()
        assert (logits[:, 1::2] <= logits[:, ::2].min() + 1e-4).all()

    def test_constant_features_and_single_images(self) -> None:
        features, _ = samples(4, number=4)
        features[:, 2] = 1e4
        fit = fit_linear(features, np.arange(4), 4)
        assert np.abs(fit.weight[:, 2]).max() < 1e-6
        assert (((features @ fit.weight.T + fit.bias).argmax(axis=1)) == np.arange(4)).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_features_that_are_not_finite(self, value: float) -> None:
        features, labels = samples(3)
        features[[4, 7], 1] = value
        with pytest.raises(InputError, match="must be finite to fit a classifier, but those of 2 of 90 images are not"):
            fit_linear(features, labels, 3)

    def test_a_single_class(self) -> None:
        with pytest.raises(InputError, match="at least two classes, but got 90 of 1; use --head random"):
            fit_linear(samples(3)[0], np.ones(90, dtype=int), 3)

    def test_a_fit_that_is_cut_short_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linear_probe, "MAX_ITERATIONS", 2)
        assert not fit_linear(*samples(5), 5).converged


class TestNetworks:
    @pytest.mark.parametrize("backbone", NETS)
    def test_every_family_tells_colours_apart(self, backbone: str, data: ImageData) -> None:
        net = net_of(backbone)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        names, images = heads_of(net), probe_images(data, seed=0)
        probe = fit_classifiers(net, names, data, RUNTIME, images=images)
        assert (probe.images, probe.classes) == (12 + 13 + 14, 3)
        result = score(net, data.validation_batches(batch_size=8), RUNTIME)
        assert min(probe.train_top1, result.top1) > 90
        assert net.training
        after = {name: value.clone() for name, value in net.state_dict().items()}
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
        net.load_state_dict(before)
        fit_classifiers(net, names, data, RUNTIME, images=images)
        assert all(torch.equal(value, after[name]) for name, value in net.state_dict().items())
        assert str(probe.record(64, result)).startswith("classifier fitted to the features of 39 training images at 64")

    @pytest.mark.parametrize("backbone", SMALL)
    def test_features_are_those_before_timms_logits(self, backbone: str, data: ImageData) -> None:
        net = net_of(backbone).eval()
        (name,) = heads_of(net)
        seen, labels = record_inputs(
            net, {name: net.get_submodule(name)}, data.ordered_batches([0, 20], batch_size=2), RUNTIME
        )
        images, wanted = next(data.ordered_batches([0, 20], batch_size=2))
        with torch.no_grad():
            before = net.forward_head(net.forward_features(images), pre_logits=True)  # type: ignore[operator]
        torch.testing.assert_close(torch.from_numpy(seen[name]), before, rtol=1e-4, atol=1e-4)
        assert labels.tolist() == wanted.tolist() == [0, 1]

    def test_each_head_of_a_distilled_net_has_its_own_token(self, data: ImageData) -> None:
        net, images = net_of(DEIT).eval(), probe_images(data, seed=0)
        fit_classifiers(net, ("head", "head_dist"), data, RUNTIME, images=images)
        with torch.no_grad():
            tokens = net.forward_features(torch.cat([x for x, _ in data.ordered_batches(images, batch_size=8)]))  # type: ignore[operator]
        for place, name in enumerate(("head", "head_dist")):
            wanted = fit_linear(tokens[:, place].numpy(), data.train.labels, 3)
            torch.testing.assert_close(
                net.get_submodule(name).weight, torch.from_numpy(wanted.weight).float(), rtol=1e-3, atol=1e-4
            )
        untouched = net.get_submodule("head").weight.clone()
        fit_classifiers(net, ("head_dist",), data, RUNTIME, images=images[:20])
        assert torch.equal(net.get_submodule("head").weight, untouched)

    def test_classifiers_that_are_not_linear_are_refused(self, data: ImageData) -> None:
        net = net_of("mobilevit_xxs")
        with pytest.raises(
            InputError, match="must be a linear layer with a bias .* but stem.conv is a Conv2d; use --h"
        ):
            fit_classifiers(net, ("stem.conv",), data, RUNTIME, images=[0, 20])
        net.get_submodule("head.fc").bias = None
        with pytest.raises(InputError, match=r"but head.fc has no bias"):
            fit_classifiers(net, ("head.fc",), data, RUNTIME, images=[0, 20])


class TestImages:
    def test_all_of_few_and_a_balanced_sample_of_many(self, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
        assert probe_images(data, seed=0) == list(range(39))
        monkeypatch.setattr(linear_probe, "MAX_IMAGES", 9)
        assert np.bincount(data.train.labels[probe_images(data, seed=0)]).tolist() == [3, 3, 3]
        assert probe_images(data, seed=0) == probe_images(data, seed=0) != probe_images(data, seed=1)

    def test_images_can_be_set_aside(self, data: ImageData) -> None:
        assert probe_images(data, seed=0, of=range(5, 39)) == list(range(5, 39))


def test_damaged_images_are_left_out(tmp_path: Path) -> None:
    for name in COLOURS:
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "validation" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (40, 40), COLOURS[name]).save(tmp_path / "train" / name / f"{index}.png")
        Image.new("RGB", (40, 40), COLOURS[name]).save(tmp_path / "validation" / name / "0.png")
    opened = open_data(tmp_path, img_size=32, memory_limit_bytes=0, workers=0)
    for file in ("train/green/1.png", "train/red/2.png"):
        (tmp_path / file).write_bytes(b"")
    batches = list(opened.ordered_batches(range(9), batch_size=2))
    assert [labels.tolist() for _, labels in batches] == [[0, 0], [0, 1], [1, 2], [2]]
    assert sorted(opened.train.unreadable) == [4, 8]
    assert probe_images(opened, seed=0) == [0, 1, 2, 3, 5, 6, 7]
    assert list(opened.ordered_batches([4, 8], batch_size=2)) == []
