"""The operators: invariants that hold whatever the weights, and brute force against the tensor code."""

import math

import pytest
import torch
from torch import Tensor

from ltmsearch.errors import InputError
from ltmsearch.grid import tokens
from ltmsearch.merging import OPERATORS, LearnableTokenMerging, Merge, MergeOperator, get_operator
from ltmsearch.merging.ltm import HEADS, assignment
from ltmsearch.merging.prior import SPREAD, area_overlap
from ltmsearch.merging.tome import match_once, rounds

B, G, D = 2, 4, 32
CASES = [((8, 8), (5, 5)), ((6, 4), (4, 3)), ((3, 3), (1, 1)), ((5, 7), (5, 6))]


def make(name: str, *, trained: bool) -> MergeOperator:
    """An operator, with weights as training might leave them."""
    torch.manual_seed(0)
    operator = OPERATORS[name](D)
    if trained:
        with torch.no_grad():
            for parameter in operator.parameters():
                parameter.add_(torch.randn_like(parameter))
            if isinstance(operator, LearnableTokenMerging):
                operator.kappa.fill_(7.0)
    return operator


def merge(operator: MergeOperator, grid: tuple[int, int], target: tuple[int, int]) -> tuple[Tensor, Tensor, Merge]:
    generator = torch.Generator().manual_seed(1)
    n = tokens(grid)
    x = torch.randn(B, G, n, D, generator=generator)
    sizes = torch.rand(B, n, generator=generator) * 3 + 0.5
    keys = torch.randn(B, n, 8, generator=generator)
    return x, sizes, operator(x, sizes, grid, target, keys)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("grid", "target"), CASES)
@pytest.mark.parametrize("name", sorted(OPERATORS))
class TestEveryOperator:
    def test_mass_is_conserved(self, name: str, grid: tuple[int, int], target: tuple[int, int], trained: bool) -> None:
        _, sizes, out = merge(make(name, trained=trained), grid, target)
        assert out.tokens.shape == (B, G, tokens(target), D)
        torch.testing.assert_close(out.sizes.sum(1), sizes.sum(1))
        assert (out.sizes > 0).all()

    def test_equal_tokens_stay_what_they_are(
        self, name: str, grid: tuple[int, int], target: tuple[int, int], trained: bool
    ) -> None:
        operator = make(name, trained=trained)
        x = torch.randn(D).expand(B, G, tokens(grid), D)
        sizes = torch.ones(B, tokens(grid))
        out = operator(x, sizes, grid, target, torch.randn(B, tokens(grid), 8))
        # A convex combination of equal vectors is that vector.
        torch.testing.assert_close(out.tokens, x[:, :, : tokens(target)])

    def test_merged_tokens_lie_within_the_range_of_their_sources(
        self, name: str, grid: tuple[int, int], target: tuple[int, int], trained: bool
    ) -> None:
        x, _, out = merge(make(name, trained=trained), grid, target)
        assert (out.tokens.amax(2) <= x.amax(2) + 1e-5).all()
        assert (out.tokens.amin(2) >= x.amin(2) - 1e-5).all()

    def test_unmerge_is_the_identity_when_nothing_changed(
        self, name: str, grid: tuple[int, int], target: tuple[int, int], trained: bool
    ) -> None:
        x, _, out = merge(make(name, trained=trained), grid, target)
        assert torch.equal(out.unmerge(x, out.tokens), x)

    def test_unmerge_hands_a_common_change_to_every_token(
        self, name: str, grid: tuple[int, int], target: tuple[int, int], trained: bool
    ) -> None:
        x, _, out = merge(make(name, trained=trained), grid, target)
        change = torch.randn(D)
        # Rows of A sum to one, so a change shared by all merged tokens arrives whole everywhere.
        torch.testing.assert_close(out.unmerge(x, out.tokens + change), x + change)

    def test_groups_share_one_mask(
        self, name: str, grid: tuple[int, int], target: tuple[int, int], trained: bool
    ) -> None:
        operator = make(name, trained=trained)
        x, sizes, out = merge(operator, grid, target)
        keys = torch.randn(B, tokens(grid), 8, generator=torch.Generator().manual_seed(1))
        permuted = operator(x.flip(1), sizes, grid, target, keys)
        same = operator(x, sizes, grid, target, keys)
        torch.testing.assert_close(permuted.tokens.flip(1), same.tokens)
        torch.testing.assert_close(permuted.sizes, same.sizes)
        assert out.tokens.shape == same.tokens.shape


@pytest.mark.parametrize(("grid", "target"), CASES)
def test_prior_equals_brute_force_area_overlap(grid: tuple[int, int], target: tuple[int, int]) -> None:
    prior = torch.tensor(area_overlap(grid, target))
    (h, w), (p, q) = grid, target

    def overlap(i: int, n: int, j: int, m: int) -> float:
        return max(0.0, min((i + 1) / n, (j + 1) / m) - max(i / n, j / m)) * n

    for n in range(h * w):
        area = [overlap(n // w, h, k // q, p) * overlap(n % w, w, k % q, q) for k in range(p * q)]
        rows = [overlap(n // w, h, j, p) for j in range(p)]
        columns = [overlap(n % w, w, j, q) for j in range(q)]
        home = (
            max(range(p), key=lambda j: (round(rows[j], 9), -j)),
            max(range(q), key=lambda j: (round(columns[j], 9), -j)),
        )
        near = [abs(k // q - home[0]) <= 1 and abs(k % q - home[1]) <= 1 for k in range(p * q)]
        wanted = [(1 - SPREAD) * a + SPREAD * b / sum(near) for a, b in zip(area, near, strict=True)]
        torch.testing.assert_close(prior[n], torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(prior.sum(1), torch.ones(h * w, dtype=torch.float64))


def test_prior_refuses_a_larger_target() -> None:
    with pytest.raises(ValueError, match="must fit"):
        area_overlap((3, 3), (4, 3))


@pytest.mark.parametrize("kappa", [0.0, 3.0, 40.0])
def test_assignment_equals_its_formula(kappa: float) -> None:
    grid, target = (4, 3), (3, 2)
    torch.manual_seed(3)
    content, sizes = torch.randn(1, 12, D), torch.rand(1, 12) + 0.5
    directions = torch.randn(1, 12, 5)
    prior = torch.tensor(area_overlap(grid, target), dtype=torch.float32)
    a = assignment(content, sizes, prior, directions, torch.tensor(kappa))
    v = [row / row.norm() for row in directions[0]]
    for n in range(12):
        weights = []
        for p in range(6):
            seed = sum((prior[m, p] * sizes[0, m] * v[m] for m in range(12)), start=torch.zeros(5))
            weights.append(float(prior[n, p]) * math.exp(kappa * float(v[n] @ (seed / seed.norm()))))
        torch.testing.assert_close(a[0, n], torch.tensor(weights) / sum(weights), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.sum(-1), torch.ones(1, 12))
    assert (a[0][prior == 0] == 0).all()


def test_ltm_at_its_start_is_area_pooling() -> None:
    for grid, target in CASES:
        _, _, ltm = merge(make("ltm", trained=False), grid, target)
        _, _, pool = merge(make("pool", trained=False), grid, target)
        torch.testing.assert_close(ltm.tokens, pool.tokens)
        torch.testing.assert_close(ltm.sizes, pool.sizes)


def test_importance_weighs_tokens_per_head() -> None:
    operator = make("ltm", trained=True)
    assert isinstance(operator, LearnableTokenMerging)
    x, sizes, out = merge(operator, (4, 4), (3, 3))
    a, w = operator.mask(x, sizes, (4, 4), (3, 3))
    assert w.shape == (B, 16, HEADS)
    for head in range(HEADS):
        channels = slice(head * D // HEADS, (head + 1) * D // HEADS)
        share = a * w[..., head, None]
        wanted = torch.einsum("bnp,bgnc->bgpc", share / share.sum(1, keepdim=True), x[..., channels])
        torch.testing.assert_close(out.tokens[..., channels], wanted)


def test_gradients_reach_every_mask_parameter_but_not_the_tokens_through_the_mask() -> None:
    operator = make("ltm", trained=True)
    x = torch.randn(B, G, 36, D, requires_grad=True)
    sizes = torch.ones(B, 36)
    operator(x, sizes, (6, 6), (4, 4)).tokens.square().sum().backward()
    for name, parameter in operator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    x.grad = None
    a, w = operator.mask(x, sizes, (6, 6), (4, 4))
    assert a.requires_grad
    assert w.requires_grad
    (a.square().sum() + w.sum()).backward()
    assert x.grad is None


def test_a_negative_gain_acts_as_none_and_can_come_back() -> None:
    operator = make("ltm", trained=False)
    assert isinstance(operator, LearnableTokenMerging)
    with torch.no_grad():
        operator.kappa.fill_(-2.0)
    _, _, out = merge(operator, (6, 6), (4, 4))
    _, _, pool = merge(make("pool", trained=False), (6, 6), (4, 4))
    torch.testing.assert_close(out.tokens, pool.tokens)
    out.tokens.square().sum().backward()
    assert operator.kappa.grad is not None
    assert operator.kappa.grad != 0


def test_fresh_operators_are_alike_and_leave_the_random_state() -> None:
    state = torch.get_rng_state()
    first, second = LearnableTokenMerging(D), LearnableTokenMerging(D)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.directions, second.directions)
    torch.testing.assert_close(first.directions.T @ first.directions, torch.eye(first.directions.shape[1]))


@pytest.mark.parametrize("dim", [30, 8])
def test_ltm_refuses_widths_it_cannot_divide(dim: int) -> None:
    with pytest.raises(ValueError, match="`dim` must be"):
        LearnableTokenMerging(dim)


def test_bf16_autocast_keeps_masks_and_sizes_exact() -> None:
    operator = make("ltm", trained=True)
    x = torch.randn(B, G, 36, D)
    sizes = torch.ones(B, 36)
    exact = operator(x, sizes, (6, 6), (4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        out = operator(x, sizes, (6, 6), (4, 4))
    assert torch.equal(out.sizes, exact.sizes)
    assert out.sizes.dtype == torch.float32
    torch.testing.assert_close(out.tokens.float(), exact.tokens, atol=0.05, rtol=0.05)


def test_tome_merges_the_most_similar_pairs() -> None:
    # Even tokens 0, 2, 4, 6 look for a partner among 1, 3, 5: 4 is 5's twin, 0 is nearly 3, the others point elsewhere.
    keys = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, -1], [1, 0.1, 0], [0, 0, 1], [0, 0, 1], [0, -1, 0]])
    position = match_once(keys[None], merges=2)
    # What stays in order: 1, 2, 3, 5, 6; token 0 goes to 3's place, 4 to 5's.
    assert position.tolist() == [[2, 0, 1, 2, 3, 3, 4]]


def test_tome_counts_of_rounds() -> None:
    assert rounds(10, 8) == [2]
    assert rounds(10, 2) == [5, 2, 1]
    assert rounds(7, 7) == []
    with pytest.raises(ValueError, match="from 1 to 3"):
        match_once(torch.randn(1, 7, 2), merges=4)


def test_tome_needs_keys() -> None:
    with pytest.raises(ValueError, match="`keys` must be given"):
        make("tome", trained=False)(torch.randn(1, 1, 9, D), torch.ones(1, 9), (3, 3), (2, 2))


def test_unknown_operator_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean tome"):
        get_operator("tom")
