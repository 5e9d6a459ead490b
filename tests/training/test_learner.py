"""Training steps, and the state of a training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nets import randomise
from torch import Tensor, nn

from ltmsearch.config.recipe import Recipe
from ltmsearch.engine.distributed import Ranks
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError
from ltmsearch.io.safetensors_state import load_state, save_state
from ltmsearch.merging import TokenSelection
from ltmsearch.models import create_subnet, output_and_own_loss
from ltmsearch.training.learner import Learner, distillation_loss, ib_start

RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="test")
VIT = "vit_tiny_patch16_224"
OTHER_STATES: list[tuple[str, Any]] = [
    ("opt", "sgd"),
    ("opt", "lion"),
    ("opt", "lookahead_adamw"),
    ("model_ema", False),
]
"""Recipe keys that change what a state contains."""


def recipe(backbone: str = "mobilevit_xxs", **changes: Any) -> Recipe:
    layer = "blocks.1" if backbone == VIT else "stages.2.1.transformer.0"
    keys: dict[str, Any] = {
        "model": f"ltm_{backbone}", "operator": "ltm", "schedule": {layer: 0.5}, "img_size": 64, "num_classes": 2,
        "epochs": 3, "warmup_epochs": 1, "batch_size": 4, "lr": 1e-3, "ib_beta": 10.0,
    }  # fmt: skip
    return Recipe(**keys | changes)


def learner(of: Recipe, model: nn.Module | None = None, **changes: Any) -> Learner:
    torch.manual_seed(0)
    model = model or create_subnet(of.backbone, **of.model_kwargs())
    return Learner(of, model, **{"runtime": RUNTIME, "ranks": Ranks(), "steps_per_epoch": 2} | changes)


def batches(number: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(size, 3, 64, 64, generator=generator), torch.arange(size) % 2) for _ in range(number)]


def run_epochs(trained: Learner, number: int) -> None:
    for place, (images, labels) in enumerate(batches(number * trained.steps_per_epoch)):
        trained.step(images, labels)
        if (place + 1) % trained.steps_per_epoch == 0:
            trained.end_epoch()


def weights(trained: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


STEP = ("step.centroids", "step.log_rate", "step.readout", "step.scores")
"""Weights of the gradient form."""


class TestSteps:
    def test_learning_rate_follows_timm(self) -> None:
        trained = learner(recipe(lr=1e-3, min_lr=1e-4, warmup_lr=1e-5, epochs=4, ib_weight=0))
        seen = []
        for images, labels in batches(8):
            trained.step(images, labels)
            seen.append(trained.lr)
        assert seen[:2] == pytest.approx([1e-5, (1e-5 + 1e-3) / 2])  # rises over the two steps of the first epoch
        cosine = [1e-4 + (1e-3 - 1e-4) * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(2, 8)]
        assert seen[2:] == pytest.approx(cosine)

    def test_own_losses_are_added_by_the_share_of_the_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        of = recipe(operator="select", ib_weight=0)
        total: dict[float, float] = {}
        for factor in (0.0, 1.0):
            seen: list[float] = []

            def weight(_operator: TokenSelection, progress: float, *, f: float = factor, s: Any = seen) -> float:
                s.append(progress)
                return f

            monkeypatch.setattr(TokenSelection, "own_loss_weight", weight)
            trained = learner(of)
            total[factor] = float(trained.step(*batches(1)[0]).total)
            for images, labels in batches(3):
                trained.step(images, labels)
        assert seen == [0, 1 / 6, 2 / 6, 3 / 6]  # of three epochs of two steps
        torch.manual_seed(0)
        model = create_subnet(of.backbone, **of.model_kwargs()).train()
        _, own = output_and_own_loss(model, RUNTIME.images(batches(1)[0][0]), 0.0)
        assert own is not None
        assert total[1.0] - total[0.0] == pytest.approx(float(own.detach()), abs=1e-5)

    def test_accumulated_parts_equal_one_batch(self) -> None:
        """In a net without BatchNorm, whose statistics would be those of the parts."""
        whole, parts = (learner(recipe(VIT, opt="sgd", grad_accum_steps=n, ib_weight=0)) for n in (1, 2))
        for images, labels in batches(3):
            one, other = whole.step(images, labels), parts.step(images, labels)
            torch.testing.assert_close(one.total, other.total)
        for name, value in weights(whole).items():
            torch.testing.assert_close(weights(parts)[name], value, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("form", "unused"), [("soft", ["length_power", "scale", "shift", *STEP]), ("matched", ["log_gain", *STEP])]
    )
    def test_all_parameters_train_importance_without_decay(self, form: str, unused: list[str]) -> None:
        layer = "stages.2.1.transformer.0"
        trained = learner(recipe(forms={layer: form}))
        before = weights(trained)
        for images, labels in batches(2):  # in the first step the inner parts of residual blocks get no gradient
            trained.step(images, labels)
        still = [name for name, parameter in trained.model.named_parameters() if torch.equal(before[name], parameter)]
        assert sorted(still) == [f"{layer}.merging.{name}" for name in unused]
        decay = {id(p): group["weight_decay"] for group in trained.optimizer.param_groups for p in group["params"]}
        merging = {n.rpartition(".")[2]: decay[id(p)] for n, p in trained.model.named_parameters() if ".merging." in n}
        assert merging["importance"] == merging["log_gain"] == 0
        assert merging["directions"] > 0

    def test_randomness_depends_only_on_the_step(self) -> None:
        keys: dict[str, Any] = {"mixup": 0.5, "drop_path": 0.5}
        one, other = (
            learner(recipe(VIT, **keys), create_subnet(VIT, **recipe(VIT).model_kwargs(), drop_path_rate=0.5))
            for _ in range(2)
        )
        other.model.load_state_dict(one.model.state_dict())
        for images, labels in batches(2):
            torch.rand(7)  # whatever else draws numbers
            one.step(images.clone(), labels)
        for images, labels in batches(2):
            other.step(images.clone(), labels)
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())

    def test_clipping_limits_the_step(self) -> None:
        trained = learner(recipe(opt="momentum", momentum=0.0, weight_decay=0, lr=1.0, warmup_lr=1.0, clip_grad=1e-3))
        before = [parameter.detach().clone() for parameter in trained.model.parameters()]
        trained.step(*batches(1)[0])
        moved = [after.detach() - was for after, was in zip(trained.model.parameters(), before, strict=True)]
        assert float(torch.cat([each.flatten() for each in moved]).norm()) == pytest.approx(1e-3, rel=1e-2)

    def test_float16_scales_the_loss(self) -> None:
        runtime = Runtime(device=torch.device("cpu"), dtype=torch.float16, reason="test")
        trained = learner(recipe(VIT, amp_dtype="float16"), runtime=runtime)
        before = weights(trained)
        trained.step(*batches(1)[0])
        assert trained.scaler.get_scale() > 1
        assert not torch.equal(before["patch_embed.proj.weight"], weights(trained)["patch_embed.proj.weight"])
        assert all(value.isfinite().all() for value in weights(trained).values())

    def test_ib_statistics_use_mixed_unsmoothed_labels(self) -> None:
        trained = learner(recipe(mixup=1.0, smoothing=0.3))
        trained.step(*batches(1)[0])
        ((_, _, targets),) = trained._ib_samples
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
        assert ((targets > 0.01) & (targets < 0.99)).any()


class TestIBLoss:
    def test_ib_loss_starts_after_its_warm_up(self) -> None:
        assert [ib_start(recipe(epochs=10, ib_warmup_ratio=ratio)) for ratio in (0.0, 0.05, 0.3, 0.31, 1.0)] == [
            1, 1, 3, 4, 10,
        ]  # fmt: skip
        trained = learner(recipe(ib_weight=0.5, epochs=4, ib_warmup_ratio=0.5))
        seen = []
        for _ in range(4):
            seen.append(trained.ib_weight)
            run_epochs(trained, 1)
        assert seen == [0.0, 0.0, 0.5, 0.5]

    def test_ib_loss_is_part_of_the_loss(self) -> None:
        with_ib, without = learner(recipe(ib_weight=0.5, ib_warmup_ratio=0)), learner(recipe(ib_weight=0))
        run_epochs(with_ib, 1)
        run_epochs(without, 1)
        assert all(torch.equal(value, weights(without)[name]) for name, value in weights(with_ib).items())
        one, other = with_ib.step(*batches(3)[2]), without.step(*batches(3)[2])
        assert other.ib is None
        assert one.ib is not None
        torch.testing.assert_close(one.total, other.total + 0.5 * one.ib)
        assert any(not torch.equal(value, weights(without)[name]) for name, value in weights(with_ib).items())


class TestDistillation:
    def test_by_hand(self) -> None:
        student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
        p, q = torch.tensor([math.e, 1.0]) / (math.e + 1), torch.tensor([1.0, math.e]) / (math.e + 1)
        wanted = 4 * float((p * (p.log() - q.log())).sum())  # temperature 2: logits 0 and 1
        assert float(distillation_loss(student, teacher, 2.0)) == pytest.approx(wanted)
        assert float(distillation_loss(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-7)

    def test_the_teacher_is_not_trained(self) -> None:
        of = recipe(distill_loss_weight=1.0)
        teacher = randomise(create_subnet(of.backbone, num_classes=2)).eval().requires_grad_(False)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        taught, alone = learner(of, teacher=teacher), learner(recipe())
        assert taught.step(*batches(1)[0]).total > alone.step(*batches(1)[0]).total
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())

    def test_the_teacher_may_see_larger_images(self) -> None:
        """It sees those of the batch, and the network downscaled ones."""
        of = recipe(distill_loss_weight=1.0, img_size=32, teacher_img_size=64)
        teacher = randomise(create_subnet(of.backbone, num_classes=2)).eval().requires_grad_(False)
        taught = learner(of, teacher=teacher)
        sizes: dict[str, set[int]] = {"student": set(), "teacher": set()}
        for name, net in (("student", taught.model), ("teacher", teacher)):
            net.register_forward_pre_hook(lambda _, args, name=name: sizes[name].add(args[0].shape[-1]))
        taught.step(*batches(1)[0])
        assert sizes == {"student": {32}, "teacher": {64}}


class TestState:
    def test_round_trip(self, tmp_path: Path) -> None:
        state = {
            "a": torch.arange(3), "b": {0: [torch.rand(2), None, 1.5], "x": (True, "text")}, "nan": float("inf"),
            "half": torch.ones(2, dtype=torch.bfloat16), "scalar": torch.tensor(2.5),
        }  # fmt: skip
        save_state(tmp_path / "s", state)
        again = load_state(tmp_path / "s")
        assert torch.equal(again["a"], state["a"])
        assert torch.equal(again["b"][0][0], state["b"][0][0])
        assert again["b"][0][1:] == [None, 1.5]
        assert again["b"]["x"] == [True, "text"]
        assert (again["nan"], again["half"].dtype, float(again["scalar"])) == (float("inf"), torch.bfloat16, 2.5)

    def test_objects_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="/model must be a tensor or a plain value, but is Linear"):
            save_state(tmp_path / "s", {"model": nn.Linear(1, 1)})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(InputError, match="must be the state of an ltmsearch training"):
            load_state(tmp_path / "s")

    @pytest.mark.parametrize(
        "keys", [{}, *(pytest.param({key: value}, marks=pytest.mark.slow) for key, value in OTHER_STATES)]
    )
    def test_restored_learner_continues_exactly(self, tmp_path: Path, keys: dict[str, Any]) -> None:
        of = recipe(ib_weight=1.0, ib_warmup_ratio=0, **keys)
        whole, first = learner(of), learner(of)
        run_epochs(whole, 1)
        run_epochs(first, 1)
        save_state(tmp_path / "s", first.state())
        second = learner(of)
        second.load(load_state(tmp_path / "s"))
        for images, labels in batches(3):
            whole.step(images, labels)
            second.step(images, labels)
        assert whole.ib_weight == 1.0
        assert all(torch.equal(value, weights(second)[name]) for name, value in weights(whole).items())
        if whole.ema is not None and second.ema is not None:
            kept = second.ema.module.state_dict()
            assert all(torch.equal(value, kept[name]) for name, value in whole.ema.module.state_dict().items())
