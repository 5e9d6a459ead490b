"""Image sizes: exact costs at each, smaller images in trials, baselines on smaller images, recipes at their size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from support.command_line import tiny

import ltmsearch  # noqa: F401  # registers the networks of recipes
from ltmsearch.callbacks import Callbacks
from ltmsearch.costs import GIGA, backbone_costs, traced_macs
from ltmsearch.engine.evaluation import log_probabilities
from ltmsearch.engine.steps import downscale
from ltmsearch.errors import InputError
from ltmsearch.reporting.recipes import make_recipe
from ltmsearch.search.driver import Driver
from ltmsearch.search.img_sizes import open_sizes
from ltmsearch.search.setup import StudyContext, prepare

VIT: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224", "model_kwargs": {"depth": 3, "embed_dim": 48, "num_heads": 3}, "img_size": 96,
    "proxy_img_size": 96, "base_img_size": 96, "budget_gflops": 0.0025, "objective": "kl",
}  # fmt: skip


def opened(folder: Path, **changes: Any) -> StudyContext:
    return prepare(tiny(folder, **(VIT | changes)), Callbacks())


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    return opened(tmp_path_factory.mktemp("run"), search_img_size=(80, 64))


def test_costs_are_those_of_the_network_at_each_size(context: StudyContext) -> None:
    space, rng = context.space, np.random.default_rng(0)
    assert space.img_sizes[:3] == (96, 80, 64)
    assert space.searched_sizes == 3
    rows = space.random(rng, 6)
    rows[:3, -1] = [0, 1, 2]
    costs = context.budgets[0].costs(rows)
    for row, cost in zip(rows, costs, strict=True):
        schedule = space.schedule(row)
        size = schedule.img_size or 96
        network = {"keep_ratios": dict(schedule.keep_ratios), "forms": dict(schedule.forms), "img_size": size}
        with torch.random.fork_rng():
            net = timm.create_model("ltm_vit_tiny_patch16_224", num_classes=10, **network, **VIT["model_kwargs"])
        assert cost == pytest.approx(traced_macs(net, (size, size)) / GIGA, rel=1e-9)


def test_swin_merges_on_smaller_images_as_the_network_of_a_recipe_does(tmp_path: Path) -> None:
    """Also where the feature map is smaller than a window; schedules with equal keys are one network."""
    swin = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    options = {"backbone": "swin_tiny_patch4_window7_224", "model_kwargs": swin, "budget_gflops": 0.01}
    sizes = {"img_size": 112, "proxy_img_size": 112, "base_img_size": 112, "search_img_size": (84, 56)}
    context = opened(tmp_path, **options, **sizes)
    for size in (84, 56):
        assert context.sizes.proxy_costs[size].layer_grids == context.sizes.costs[size].layer_grids
    assert context.sizes.costs[56].layer_grids["layers.3.blocks.0"] == (2, 2)


@pytest.mark.parametrize(
    ("backbone", "own", "sizes"),
    [
        ("vit_small_patch14_dinov2", 112, (98, 84, 70, 56)),
        ("mobilevit_xxs", 224, (192, 176, 144, 112)),
        ("mobilevit_xxs", 96, (80, 64, 48)),
        ("efficientvit_b0", 224, (192, 176, 144, 112)),
        ("swin_tiny_patch4_window7_224", 224, (192, 176, 144, 112)),
    ],
)
def test_suggested_sizes_fill_patches_or_strides(backbone: str, own: int, sizes: tuple[int, ...]) -> None:
    """Patches are whole; the stride of 32 is halved, since on small images its multiples are far apart."""
    costs = backbone_costs(backbone, own)
    found = open_sizes(
        "auto",
        own=own,
        proxy=own,
        costs=costs,
        proxy_costs=costs,
        smaller=False,
        costs_at=lambda size: costs,
        proxy_costs_at=lambda size: costs,
    )
    assert found.searched == (own, *sizes)


def test_indices_and_schedules_are_inverse(context: StudyContext) -> None:
    rows = context.space.random(np.random.default_rng(1), 20)
    assert all((context.space.indices(context.space.schedule(row)) == row).all() for row in rows)
    assert {context.space.schedule(row).img_size for row in rows} == {None, 80, 64}
    assert context.space.schedule(context.space.plain).img_size is None


def test_trials_see_images_of_their_size(context: StudyContext) -> None:
    evaluator = context.evaluator
    row = context.space.plain
    row[-1] = 1
    schedule = context.space.schedule(row)
    evaluator.teacher.learn(evaluator.supernet.model, evaluator.data, evaluator.scoring, context.settings)
    found = evaluator.score(schedule, "search")
    images = torch.cat([batch for batch, _ in evaluator.held_out("search")])
    with torch.inference_mode():
        logits = evaluator.supernet.model.eval()(downscale(images, 80))
    taught = evaluator.teacher.of("search")
    assert taught is not None
    expected = F.kl_div(logits.log_softmax(1), taught, reduction="batchmean", log_target=True)
    assert found.kl == pytest.approx(float(expected), rel=1e-4)
    assert found.kl is not None
    assert found.kl > 0
    batches = evaluator.held_out("search")
    assert torch.allclose(log_probabilities(evaluator.supernet.model, batches, evaluator.scoring), taught, atol=1e-5)


def test_smaller_sizes_are_baselines_and_only_searched_if_asked(tmp_path: Path) -> None:
    context = opened(tmp_path)
    labels = [one.label for one in context.settled.baselines or []]
    assert any(label.startswith("plain at ") for label in labels)
    assert context.space.searched_sizes == 1
    assert len(context.space.img_sizes) > 1
    assert not context.space.random(np.random.default_rng(0), 50)[:, -1].any()
    assert not context.band[:, -1].any()


@pytest.mark.long
def test_a_search_over_sizes_ends_in_recipes_of_their_size(tmp_path: Path) -> None:
    context = opened(tmp_path, search_img_size="auto", trials=12, rescore_candidates=12)
    driver = Driver(context, tmp_path, Callbacks())
    driver.warm_up([])
    driver.search(until=None)
    driver.rescore()
    records = driver.records()
    assert len(set(context.band[:, -1].tolist())) > 1, "sandwich steps and screening draw smaller images"
    small = next(record for record in records if record.schedule.img_size is not None)
    recipe = make_recipe(small, context.settings, num_classes=10)
    assert recipe.img_size == small.schedule.img_size
    with torch.random.fork_rng():
        net = timm.create_model(recipe.model, **recipe.model_kwargs())
    side = (recipe.img_size, recipe.img_size)
    assert traced_macs(net, side) / GIGA == pytest.approx(small.gflops, rel=1e-9)
    assert all(record.difference is not None for record in records if record.rescored("kl") is not None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((112,), "sizes from 32 to --img-size 96, but got 112; larger images need --img-size 112"), ((16,), "got 16")],
)
def test_sizes_beyond_the_networks_own_are_refused(tmp_path: Path, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(tmp_path, search_img_size=sizes)


def test_latency_budgets_have_one_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="search_img_size needs costs at every image size"):
        tiny(tmp_path, **(VIT | {"search_img_size": (80,), "budget_ms": 5.0}))


def test_a_list_of_sizes_is_read_from_the_command_line(tmp_path: Path) -> None:
    assert tiny(tmp_path, search_img_size=["96,80", "64"]).search_img_size == (96, 80, 64)
    assert tiny(tmp_path, search_img_size=["auto"]).search_img_size == "auto"
    with pytest.raises(InputError, match="search_img_size"):
        tiny(tmp_path, search_img_size=["small"])
