"""Selection: scores and choice by hand, the relaxed training, the loss of its own, and what dropped tokens keep."""

from math import log, sqrt
from typing import Any

import pytest
import torch
from support.nets import SMALL, own_size, randomise
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from ltmsearch.merging import OPERATORS, Merge, TokenSelection
from ltmsearch.merging.assignment import PartialSelection, Selection
from ltmsearch.merging.select import indecision
from ltmsearch.models import attached_operators, create_subnet, get_adapter, output_and_own_loss
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.grid import tokens
from ltmsearch.schedules.schedule import MergeSchedule

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
D = 16


def scorer(*, training: bool = False, sharpness: float = 1.0) -> TokenSelection:
    """An operator whose scores differ by about `sharpness`."""
    operator = TokenSelection(D).train(training)
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.copy_(torch.randn_like(parameter))
        operator.query.mul_(sharpness / 10)
    return operator


def vit(**options: Any) -> nn.Module:
    """Three blocks that keep 27, 16 and 16 of 36 tokens."""
    small = {"depth": 3, "embed_dim": 64, "num_heads": 2, "num_classes": 5, "img_size": 96}
    ratios = {"blocks.0": 0.75, "blocks.1": 0.6}
    return randomise(create_subnet(VIT, **{"operator": "select", "keep_ratios": ratios, **small, **options})).eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 96, 96, generator=torch.Generator().manual_seed(0))


class TestChoice:
    def test_scores_by_hand(self) -> None:
        operator = TokenSelection(4)
        with torch.no_grad():
            operator.query.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 2, 0]]))
            operator.key.copy_(torch.tensor([[0.0, 1, 0, 0], [3, 0, 0, 0]]))
            operator.key_bias.copy_(torch.tensor([0.5, 0]))
        # Of mean 0 and variance 1, as a norm leaves them.
        x = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [-1, -1, 1, 1]])
        # The mean by sizes 1, 1, 2 is (0, −1/2, 1/2, 0): key (−1/2 + 1/2, 0) = (0, 0).
        even = operator.scores(x[None, None], torch.tensor([[1.0, 1, 2]]))
        torch.testing.assert_close(even, torch.zeros(1, 3))
        # By sizes 1, 3, 0.0001 nearly (1, −1/2, 1/2, −1): key (0, 3); queries (1, −2), (1, 2), (−1, 2).
        scores = operator.scores(x[None, None], torch.tensor([[1.0, 3, 1e-4]]))
        torch.testing.assert_close(scores, torch.tensor([[-6.0, 6, 6]]) / sqrt(2), atol=1e-3, rtol=0)

    @pytest.mark.parametrize(
        ("grid", "ratio", "needs_grid", "target"),
        [
            ((3, 3), 0.5, False, (5,)),  # 4.5 tokens
            ((3, 3), 0.01, False, (1,)),
            ((3, 3), 0.99, False, (3, 3)),
            ((10,), -3, False, (7,)),
            ((4, 4), 0.5, True, (3, 3)),  # of 9 and of 6 tokens, 9 is nearer to 8
        ],
    )
    def test_how_many_stay_by_hand(
        self, grid: tuple[int, ...], ratio: float, needs_grid: bool, target: tuple[int, ...]
    ) -> None:
        assert TokenSelection.target(grid, ratio, "select", needs_grid=needs_grid) == target
        if target != grid:
            x = torch.randn(2, 3, tokens(grid), D)
            merge = scorer()(x, torch.ones(2, tokens(grid)), grid, target)
            assert merge.tokens.shape == (2, 3, tokens(target), D)

    def test_the_best_stay_in_their_order_and_of_equal_ones_the_first(self) -> None:
        operator, x = scorer(), torch.randn(3, 2, 12, D)
        x[:, :, 7] = x[:, :, 2]
        scores = operator.scores(x, torch.ones(3, 12))
        for stay in range(1, 12):
            merge = operator(x, torch.ones(3, 12), (3, 4), (stay,))
            for image in range(3):
                best = sorted(range(12), key=lambda i: (-float(scores[image, i].detach()), i))[:stay]
                assert torch.equal(merge.tokens[image], x[image, :, sorted(best)])
                dropped = [i not in best for i in range(12)]
                assert merge.left_out is not None
                assert merge.left_out[image].tolist() == dropped
        assert torch.equal(merge.sizes, torch.ones(3, 11))

    def test_padding_is_dropped_first(self) -> None:
        sizes = torch.tensor([[1.0, 1e-4] * 6])
        merge = scorer(sharpness=1e4)(torch.randn(1, 1, 12, D), sizes, (3, 4), (6,))
        assert isinstance(merge.assignment, Selection)
        assert merge.assignment.kept.tolist() == [[0, 2, 4, 6, 8, 10]]

    def test_one_scorer_serves_every_ratio_and_size(self) -> None:
        supernet = randomise(Supernet(VIT, operator="select", num_classes=3, **SMALL[VIT]))
        layer = supernet.layers[1]
        chosen: list[set[int]] = []
        for ratio in (0.8, 0.5, 0.2):
            subnet = supernet.extract(MergeSchedule(keep_ratios={layer: ratio}, operator="select")).eval()
            (operator,) = attached_operators(subnet, supernet.layers).values()
            own = supernet.model.get_submodule(f"{layer}.merging").state_dict()
            assert all(torch.equal(value, own[name]) for name, value in operator.state_dict().items())
            seen: list[Merge] = []
            operator.register_forward_hook(lambda _module, _args, merge, seen=seen: seen.append(merge))
            with torch.no_grad():
                subnet(torch.ones(1, 3, 64, 96).normal_(generator=torch.Generator().manual_seed(1)))
            assert isinstance(seen[0].assignment, Selection)
            chosen.append(set(seen[0].assignment.kept[0].tolist()))
        assert [len(kept) for kept in chosen] == [19, 12, 5]
        assert chosen[2] < chosen[1] < chosen[0]

    def test_fresh_operators_are_alike_and_leave_the_random_state(self) -> None:
        state = torch.get_rng_state()
        first, second = TokenSelection(D), TokenSelection(D)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
        assert first.query.shape == first.key.shape == (D // 2, D)
        assert not torch.equal(first.query, first.key)
        assert 0.005 < first.query.std() < 0.02


class TestTraining:
    def test_all_tokens_go_on_by_shares_that_sum_to_those_that_stay(self) -> None:
        x, sizes = torch.randn(2, 1, 12, D), torch.rand(2, 12) + 0.5
        merge = scorer(training=True)(x, sizes, (3, 4), (5,))
        assert torch.equal(merge.tokens, x)
        torch.testing.assert_close(merge.sizes.sum(dim=1), torch.full((2,), 5.0), atol=1e-4, rtol=0)
        assert isinstance(merge.assignment, PartialSelection)
        change = torch.randn_like(x)
        wanted = x + merge.assignment.shares[:, None, :, None] * change
        torch.testing.assert_close(merge.unmerge(x, x + change), wanted)

    @pytest.mark.parametrize("backbone", sorted(SMALL))
    def test_decided_shares_compute_what_the_choice_does(self, backbone: str) -> None:
        """So that λ closes the gap between training and evaluation."""
        side = own_size(backbone)  # without padding, whose size is small, but not zero
        model = randomise(create_subnet(backbone, operator="select", keep_ratios=0.6, **SMALL[backbone])).eval()
        x = torch.randn(2, 3, side, side)
        for operator in attached_operators(model, get_adapter(backbone).layers(model)).values():
            operator.query.data.mul_(1e5)
        wanted = model(x)
        for operator in attached_operators(model, get_adapter(backbone).layers(model)).values():
            operator.train()
        torch.testing.assert_close(model(x), wanted, atol=2e-3, rtol=2e-3)

    def test_gradients_of_a_token_that_is_dropped(self) -> None:
        """Its score is heard in training: attention and pooling count the token by its share."""
        model = vit(global_pool="avg").train()
        seen: list[Merge] = []
        model.blocks[0].merging.register_forward_hook(lambda _module, _args, merge: seen.append(merge))
        logits = model(images())
        (by_share,) = torch.autograd.grad(logits.square().sum(), seen[0].sizes)
        assert (by_share != 0).all()

    def test_where_a_convolution_follows_the_choice_is_made_in_training_too(self) -> None:
        operator = scorer(training=True)
        operator.needs_grid = True
        x = torch.randn(2, 1, 16, D)
        merge = operator(x, torch.ones(2, 16), (4, 4), (3, 3))
        assert merge.tokens.shape == (2, 1, 9, D)
        merge.assignment.spread(torch.randn(2, 1, 9, D)).square().sum().backward()
        assert operator.query.grad is not None
        assert operator.query.grad.abs().sum() > 0

    def test_gradients_do_not_reach_tokens_through_scores(self) -> None:
        x = torch.randn(2, 1, 12, D, requires_grad=True)
        merge = scorer(training=True)(x, torch.ones(2, 12), (3, 4), (5,))
        merge.sizes.square().sum().backward()
        assert x.grad is None

    def test_compiled_as_one_graph_with_the_loss_of_its_own(self) -> None:
        torch._dynamo.reset()
        model, counter = vit().train(), CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        torch.testing.assert_close(compiled(images()), model(images()))
        for progress in (0.0, 0.5, 1.0):
            output, own = output_and_own_loss(compiled, images(), progress)
            wanted = output_and_own_loss(model, images(), progress)
            torch.testing.assert_close((output, own), wanted)
        assert counter.frame_count == 2  # without the loss, and with it


class TestOwnLoss:
    def test_weight_grows_linearly(self) -> None:
        assert [TokenSelection(D).own_loss_weight(progress) for progress in (0.0, 0.5, 1.0)] == [0.1, 1.05, 2.0]

    def test_indecision_by_hand(self) -> None:
        shares, stays = torch.tensor([[0.9, 0.2], [0.5, 1.0]]), torch.tensor([[True, False], [False, True]])
        even = -(log(0.9) + log(0.8) + log(0.5) + log(1.0)) / 4
        assert indecision(shares, stays, torch.ones(2, 2)).item() == pytest.approx(even, abs=1e-6)
        by_size = -((3 * log(0.9) + log(0.8)) / 4 + (log(0.5) + log(1.0)) / 2) / 2
        sizes = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        assert indecision(shares, stays, sizes).item() == pytest.approx(by_size, abs=1e-6)
        wrong = torch.tensor([[1.0, 0.0]])
        assert indecision(wrong, wrong == 0, torch.ones(1, 2)).isfinite()

    def test_sum_over_layers_by_the_progress(self) -> None:
        model = vit().train()
        _, first = output_and_own_loss(model, images(), 0.0)
        _, last = output_and_own_loss(model, images(), 1.0)
        assert first is not None
        assert last is not None
        torch.testing.assert_close(last, 20 * first)
        by_layer = []
        for muted in (0, 1):
            merging = model.blocks[muted].merging
            merging.own_loss_weight = lambda _progress: 0.0
            by_layer.append(output_and_own_loss(model, images(), 0.0)[1])
            del merging.own_loss_weight
        assert all(one > 0.01 for one in by_layer)
        torch.testing.assert_close(sum(by_layer), first)

    def test_less_of_it_makes_shares_decided_and_moves_scorers_alone(self) -> None:
        model = vit().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        for _ in range(8):
            _, own = output_and_own_loss(model, images(), 0.5)
            assert own is not None
            optimizer.zero_grad()
            own.backward()
            moved = {name for name, weight in model.named_parameters() if weight.grad is not None}
            assert all(".merging." in name for name in moved)
            assert len(moved) == 6
            optimizer.step()
            losses.append(float(own.detach()))
        assert losses == sorted(losses, reverse=True)

    def test_none_in_evaluation_and_of_other_operators(self) -> None:
        assert output_and_own_loss(vit(), images(), 0.5)[1] is None
        for operator in sorted(set(OPERATORS) - {"select"}):
            model = vit(operator=operator).train()
            output, own = output_and_own_loss(model, images(), 0.5)
            assert own is None
            assert torch.equal(output, model(images()))

    def test_nothing_is_left_behind_also_after_an_error(self) -> None:
        model = vit().train()
        output_and_own_loss(model, images(), 0.5)
        with pytest.raises(RuntimeError):
            output_and_own_loss(model, torch.zeros(1, 7, 96, 96), 0.5)
        assert {module.own_losses for module in model.modules() if isinstance(module, TokenSelection)} == {None}


class TestDroppedTokens:
    def test_they_pass_a_swin_block_by_unchanged(self) -> None:
        model = randomise(create_subnet(SWIN, operator="select", keep_ratios=0.5, **SMALL[SWIN])).eval()
        block, (merge,) = model.layers[0].blocks[0], self._watched(model, "layers.0.blocks.0")
        x = torch.randn(1, 14, 21, 32)  # 2×3 windows
        with torch.no_grad():
            attended = x + block._attn(block.norm1(x))
            plain = attended + block.mlp(block.norm2(attended))
            out = block(x)
        left_out = merge().left_out
        assert left_out is not None
        dropped = left_out.view(2, 3, 7, 7).transpose(1, 2).reshape(14, 21).bool()
        assert dropped.sum() == 6 * 24
        assert torch.equal(out[0, dropped], attended[0, dropped])
        torch.testing.assert_close(out[0, ~dropped], plain[0, ~dropped])

    def test_they_pass_an_efficientvit_block_by_unchanged(self) -> None:
        model = create_subnet("efficientvit_b0", operator="select", keep_ratios=0.5).eval()
        block, (merge,) = model.get_submodule("stages.2.blocks.1"), self._watched(model, "stages.2.blocks.1")
        x = torch.randn(1, 64, 6, 6)
        with torch.no_grad():
            context = block.context_module(x)
            out = block(x)
        left_out = merge().left_out
        assert left_out is not None
        dropped = left_out.view(6, 6).bool()
        assert dropped.sum() == 16  # the grid of 5×4 is nearest to 18 tokens, the larger of two
        assert torch.equal(out[0, :, dropped], context[0, :, dropped])
        assert not torch.isclose(out[0, :, ~dropped], context[0, :, ~dropped]).all()

    def _watched(self, model: nn.Module, layer: str) -> tuple[Any]:
        seen: list[Merge] = []
        model.get_submodule(f"{layer}.merging").register_forward_hook(lambda _module, _args, merge: seen.append(merge))
        return (lambda: seen[-1],)

    def test_features_have_their_last_value(self) -> None:
        model = vit()
        befores: dict[int, Tensor] = {}
        merges: dict[int, Merge] = {}

        def watch(index: int) -> Any:
            def look(_module: nn.Module, args: tuple[Tensor, ...], merge: Merge) -> None:
                befores[index], merges[index] = args[0][:, 0], merge

            return look

        for index in (0, 1):
            model.blocks[index].merging.register_forward_hook(watch(index))
        last: list[Tensor] = []
        model.blocks[2].register_forward_hook(lambda _module, _args, out: last.append(out[:, 1:]))
        final, maps = model.forward_intermediates(images())
        wanted = last[0].new_empty(2, 36, 64)
        for image in range(2):
            kept = [merges[index].assignment.kept[image].tolist() for index in (0, 1)]  # type: ignore[attr-defined]
            assert [len(numbers) for numbers in kept] == [27, 16]
            for patch in range(36):
                value = befores[0][image, patch]
                if patch in kept[0]:
                    place = kept[0].index(patch)
                    value = befores[1][image, place]
                    if place in kept[1]:
                        value = last[0][image, kept[1].index(place)]
                wanted[image, patch] = value
        assert torch.equal(maps[2].flatten(2).mT, wanted)
        assert torch.equal(final[:, 1:], model.norm(wanted))

    @pytest.mark.parametrize("pooling", ["token", "avg", "map"])
    def test_features_give_the_networks_own_logits(self, pooling: str) -> None:
        """What was dropped is not pooled."""
        model = vit(global_pool=pooling, class_token=pooling != "map")
        final, _ = model.forward_intermediates(images())
        assert final.shape[1] == 36 + (pooling != "map")
        torch.testing.assert_close(model.forward_head(final), model(images()))

    @pytest.mark.parametrize("layers", [["blocks.0"], ["blocks.0", "blocks.1"]])
    def test_features_in_training_are_between_both(self, layers: list[str]) -> None:
        """A token that half stays has the mean of its value and its last one."""
        model = vit(keep_ratios=dict.fromkeys(layers, 0.5))
        wanted = model.forward_intermediates(images())[1][-1]
        for name in layers:
            operator = model.get_submodule(name).merging
            operator.query.data.mul_(1e5)
        hard = model.forward_intermediates(images())[1][-1]
        assert torch.equal(hard, wanted) or len(layers) == 2
        for name in layers:
            model.get_submodule(name).merging.train()
        torch.testing.assert_close(model.forward_intermediates(images())[1][-1], hard, atol=1e-2, rtol=1e-2)
