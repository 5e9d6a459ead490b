"""Training steps: what they must move, what they must not, and what they do when they diverge."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ltmsearch.engine.evaluation import preserve_batchnorm, recalibrate_and_fit
from ltmsearch.engine.ib_loss import IBLoss
from ltmsearch.engine.optimizers import set_rates
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.steps import LossMonitor, WarmUp, downscale, proxy_train, supernet_optimizer, warm_up
from ltmsearch.errors import TrialDiverged
from ltmsearch.merging import TokenSelection
from ltmsearch.models import feature_dim, output_and_own_loss, pooled_features
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.search.trial import parameters

RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="test")


def fresh() -> Supernet:
    torch.manual_seed(0)
    return Supernet("mobilevit_xxs", num_classes=3)


def batches(number: int, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(4, 3, size, size, generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(number)]


def test_images_grow_from_base_to_full_size() -> None:
    plan = WarmUp(base_steps=100, base_img_size=64, sandwich_steps=10, lr=1e-3)
    sizes = [plan.img_size(step, full=112) for step in range(110)]
    assert sizes[:51] == [64] * 51
    assert sizes == sorted(sizes)
    assert set(sizes[:100]) == {64, 80, 96, 112}, "the plain net sees full size before subnets do"
    for full in (80, 100, 110):
        assert {plan.img_size(step, full=full) for step in range(96, 110)} == {full}
    assert sizes[100:] == [112] * 10
    assert WarmUp(base_steps=5, base_img_size=128, sandwich_steps=0, lr=1).img_size(0, full=112) == 112
    assert downscale(torch.rand(1, 3, 112, 112), 64).shape == (1, 3, 64, 64)


def test_warm_up_trains_every_parameter_and_ends_plain() -> None:
    supernet = fresh()
    before = parameters(supernet)
    plan = WarmUp(base_steps=2, base_img_size=48, sandwich_steps=5, lr=1e-3)
    drawn: list[MergeSchedule] = []

    def draw(rng: np.random.Generator) -> list[MergeSchedule]:
        # Centroids have a gradient as soon as scores have left zero.
        forms: tuple[Form, ...] = ("gradient", "gradient", "matched", "gradient", "matched")
        ratio, form = float(rng.choice([0.5, 0.7])), forms[len(drawn)]
        drawn.append(MergeSchedule.uniform(supernet.layers, ratio, "ltm", form))
        return [drawn[-1], MergeSchedule.uniform(supernet.layers, 0.25, form="soft")]

    losses = list(warm_up(supernet, plan, batches=batches(7, 128), draw=draw, seed=0, runtime=RUNTIME))
    assert len(losses) == 7
    assert len(drawn) == 5  # once in each sandwich step
    assert supernet.schedule.merging_layers == ()
    after = parameters(supernet)
    moved = {name: float((after[name] - value).abs().max()) for name, value in before.items()}
    # On the small grids of the later stages some layers have one token left and nothing to merge.
    used = [name for name in moved if ".merging." not in name or "stages.2." in name]
    assert all(moved[name] > 0 for name in used)
    # By more than rounding: the mask's rate is ten times the backbone's, and peaks in the sandwich steps.
    masks = [name for name in used if ".merging." in name]
    assert {name.rpartition(".")[2] for name in masks} == {
        "directions", "importance", "length_power", "log_gain", "scale", "shift",
        "centroids", "scores", "readout", "log_rate",
    }  # fmt: skip
    still = {name: moved[name] for name in masks if not moved[name] > 1e-4}
    # Where the last merge of a chain is undone, its tokens have passed only the MLP, whose norm removes their length.
    assert list(still) in ([], ["model.stages.2.1.transformer.1.merging.length_power"]), still


def test_masks_have_rates_of_their_own() -> None:
    plan = WarmUp(base_steps=100, base_img_size=48, sandwich_steps=50, lr=1e-3)
    optimizer = supernet_optimizer(fresh(), plan.lr)
    by_masks = {}
    for step in (0, 100, 105, 149):
        set_rates(optimizer, backbone=plan.rate(step), masks=plan.mask_rate(step))
        by_masks[step] = {bool(group["masks"]): group["lr"] for group in optimizer.param_groups}
    assert by_masks[0] == {False: pytest.approx(5e-5), True: pytest.approx(5e-4)}
    assert by_masks[105][True] > 9.5e-3, "the peak, five steps into the sandwich steps"
    assert by_masks[105][False] < 3e-4, "near the end of the only cosine"
    assert by_masks[149][True] < 6e-4
    taught = WarmUp(base_steps=100, base_img_size=48, sandwich_steps=50, lr=1e-3, taught=True)
    assert taught.rate(99) < 6e-5, "the base steps end low"
    assert [taught.rate(step) for step in (100, 105, 149)] == [taught.mask_rate(step) for step in (100, 105, 149)]
    assert taught.rate(105) > 9.5e-4, "and the subnets start at the peak again"


def test_proxy_training_moves_only_the_layers_it_uses() -> None:
    supernet = fresh()
    before = parameters(supernet)
    schedule = MergeSchedule(keep_ratios={supernet.layers[2]: 0.5})
    loss = proxy_train(supernet, schedule, batches(2), lr=1e-3, runtime=RUNTIME)
    assert loss is not None
    assert loss > 0
    after = parameters(supernet)
    changed = {name for name in before if ".merging." in name and not torch.equal(before[name], after[name])}
    assert {name.split(".merging.")[0] for name in changed} == {f"model.{supernet.layers[2]}"}
    assert torch.equal(after["model.stem.conv.weight"], before["model.stem.conv.weight"])
    assert not torch.equal(after["model.final_conv.conv.weight"], before["model.final_conv.conv.weight"])
    assert proxy_train(supernet, schedule, [], lr=1e-3, runtime=RUNTIME) is None


def test_proxy_training_adds_the_weighted_ib_loss() -> None:
    start, schedule = fresh(), MergeSchedule(keep_ratios={fresh().layers[2]: 0.5})
    ib = IBLoss(feature_dim=feature_dim(start.model), num_classes=3)
    with start.active(schedule), preserve_batchnorm(start):
        recalibrate_and_fit(ib, start.model, batches(2), RUNTIME)
        with torch.no_grad(), pooled_features(start.model) as seen:
            images, labels = batches(1)[0]
            start.train()(RUNTIME.images(images))
    expected = float(ib(seen.pop(), labels))

    def one_step(weight: float | None) -> tuple[float, dict[str, Tensor]]:
        supernet = fresh()
        pair = None if weight is None else (weight, ib)
        loss = proxy_train(supernet, schedule, batches(1), lr=1e-3, runtime=RUNTIME, ib=pair)
        assert loss is not None
        return loss, parameters(supernet)

    (plain, without), (one, with_one), (ten, with_ten) = one_step(None), one_step(1.0), one_step(10.0)
    again = one_step(1.0)[1]
    assert one - plain == pytest.approx(expected, abs=1e-5)
    assert ten - plain == pytest.approx(10 * expected, abs=1e-4)
    assert not all(torch.equal(without[name], value) for name, value in with_one.items())
    assert not all(torch.equal(with_ten[name], value) for name, value in with_one.items())
    assert all(torch.equal(again[name], value) for name, value in with_one.items())


def selecting() -> Supernet:
    torch.manual_seed(0)
    return Supernet("mobilevit_xxs", operator="select", num_classes=3)


def test_warm_up_adds_own_losses_by_the_share_of_its_sandwich_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = selecting()
    drawn = [MergeSchedule.uniform(supernet.layers, 0.25, "select")]
    seen: list[float] = []

    def weight(_operator: TokenSelection, progress: float) -> float:
        if supernet.schedule.merging_layers:
            seen.append(progress)
        return progress

    monkeypatch.setattr(TokenSelection, "own_loss_weight", weight)
    plan = WarmUp(base_steps=1, base_img_size=48, sandwich_steps=4, lr=1e-3)
    steps = warm_up(supernet, plan, batches=batches(5), draw=lambda _: drawn, seed=0, runtime=RUNTIME)
    assert len(list(steps)) == 5
    assert sorted(set(seen)) == [0, 0.25, 0.5, 0.75]


def test_proxy_training_adds_own_losses_with_their_final_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = MergeSchedule(keep_ratios={selecting().layers[2]: 0.5}, operator="select")
    by_factor: dict[float, float] = {}
    for factor in (0.0, 1.0, 3.0):
        monkeypatch.setattr(TokenSelection, "own_loss_weight", lambda _operator, progress, f=factor: f * progress)
        loss = proxy_train(selecting(), schedule, batches(1), lr=1e-3, runtime=RUNTIME)
        assert loss is not None
        by_factor[factor] = loss
    start = selecting().train()
    with start.active(schedule):
        _, own = output_and_own_loss(start, batches(1)[0][0], progress=1.0)
    assert own is not None
    assert by_factor[3.0] - by_factor[0.0] == pytest.approx(float(own.detach()), abs=1e-5)
    assert by_factor[1.0] - by_factor[0.0] == pytest.approx(float(own.detach()) / 3, abs=1e-5)


def test_activations_write_elsewhere_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, autograd copies what they are about to overwrite."""
    supernet, in_place = fresh(), fresh()
    loss = proxy_train(supernet, supernet.schedule, batches(2), lr=1e-3, runtime=RUNTIME)
    assert not any(module.inplace for module in supernet.modules() if isinstance(module, nn.SiLU))
    monkeypatch.setattr("ltmsearch.engine.steps.disable_inplace_activations", lambda _: None)
    assert proxy_train(in_place, in_place.schedule, batches(2), lr=1e-3, runtime=RUNTIME) == loss
    assert any(module.inplace for module in in_place.modules() if isinstance(module, nn.SiLU))
    assert all(torch.equal(value, parameters(in_place)[name]) for name, value in parameters(supernet).items())


def test_losses_are_read_together_where_reading_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = fresh(), fresh()
    mean = proxy_train(one, one.schedule, batches(3), lr=1e-3, runtime=RUNTIME)
    counts: list[int] = []
    read = LossMonitor.read

    def counted(monitor: LossMonitor) -> None:
        counts.append(len(monitor._unread))
        read(monitor)

    monkeypatch.setattr(LossMonitor, "read", counted)
    monkeypatch.setattr("ltmsearch.engine.steps.read_interval", lambda _: 16)
    assert proxy_train(other, other.schedule, batches(3), lr=1e-3, runtime=RUNTIME) == mean
    assert counts == [1, 2]  # the first at once, for whoever watches; the rest at the end
    assert all(torch.equal(value, parameters(other)[name]) for name, value in parameters(one).items())


def test_a_training_that_diverges_between_readings_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.engine.steps.read_interval", lambda _: 16)
    good, (_, labels) = batches(3), batches(1)[0]
    broken = [good[0], (torch.full((4, 3, 64, 64), float("nan")), labels), *good[1:]]
    with pytest.raises(TrialDiverged, match="the proxy training diverged"):
        proxy_train(fresh(), fresh().schedule, broken, lr=1e-3, runtime=RUNTIME)
    plan = WarmUp(base_steps=4, base_img_size=64, sandwich_steps=0, lr=1e-3)
    supernet = fresh()
    with pytest.raises(TrialDiverged, match="the warm-up diverged"):
        list(warm_up(supernet, plan, batches=broken, draw=lambda _: [], seed=0, runtime=RUNTIME))


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    supernet = fresh()
    before = parameters(supernet)
    images = torch.full((2, 3, 64, 64), float("nan"))
    with pytest.raises(TrialDiverged, match="not finite"), preserve_batchnorm(supernet):
        proxy_train(supernet, supernet.schedule, [(images, torch.tensor([0, 1]))], lr=1e-3, runtime=RUNTIME)
    after = parameters(supernet)
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert all(torch.isfinite(buffer).all() for buffer in supernet.buffers())


def test_optimizer_decays_weights_but_not_importance() -> None:
    supernet = fresh()
    optimizer = supernet_optimizer(supernet, 1e-3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_kind = {name.rsplit(".", 1)[1]: decay[id(p)] for name, p in supernet.named_parameters() if ".merging." in name}
    assert by_kind["importance"] == by_kind["log_gain"] == 0
    assert by_kind["directions"] > 0
