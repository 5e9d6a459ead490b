"""The operators: invariants that hold whatever the weights, and brute force against the tensor code."""

from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.nets import unused_weights
from torch import Tensor, nn

from ltmsearch.errors import InputError
from ltmsearch.merging import (
    CONTENT_GAIN,
    OPERATORS,
    PLACE_GAIN,
    LearnableTokenMerging,
    MaskStart,
    Merge,
    MergeOperator,
    check_form,
    get_operator,
)
from ltmsearch.merging.assignment import HardAssignment, SoftAssignment
from ltmsearch.merging.ltm import EMPTY_SIZE, NEAR
from ltmsearch.merging.matching import match_once, rounds, similarity
from ltmsearch.merging.prior import SPREAD, area_overlap, local_cells
from ltmsearch.models import create_backbone, create_subnet
from ltmsearch.schedules.grid import Grid, kept_tokens, target_grid, tokens
from ltmsearch.schedules.schedule import Form

B, G, D, H = 2, 4, 32, 2
CASES = [((8, 8), (5, 5)), ((6, 4), (4, 3)), ((3, 3), (1, 1)), ((5, 7), (5, 6))]
MORE_CASES = [*CASES, ((4, 6), (1, 4)), ((9, 1), (4, 1)), ((14, 14), (10, 10)), ((7, 3), (2, 2))]
"""With targets of one row, of one column, and far smaller ones."""
VARIANTS = [
    (name, form) for name, operator in sorted(OPERATORS.items()) if not operator.adaptive for form in operator.forms
]


def make(name: str, form: Form | None = None, *, trained: bool = False, kappa: float = 7.0) -> MergeOperator:
    """An operator, with weights as training might leave them."""
    torch.manual_seed(0)
    operator = OPERATORS[name](D)
    operator.form = form or operator.form
    if trained:
        with torch.no_grad():
            for parameter in operator.parameters():
                parameter.add_(torch.randn_like(parameter))
            if isinstance(operator, LearnableTokenMerging):
                operator.log_gain.fill_(log(kappa))
    return operator


def make_ltm(form: Form | None = None, *, trained: bool = False, kappa: float = 7.0) -> LearnableTokenMerging:
    operator = make("ltm", form, trained=trained, kappa=kappa)
    assert isinstance(operator, LearnableTokenMerging)
    return operator


def inputs(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, sizes and keys."""
    generator = torch.Generator().manual_seed(1)
    n = tokens(grid)
    x = torch.randn(B, G, n, D, generator=generator)
    sizes = torch.rand(B, n, generator=generator) * 3 + 0.5
    return x, sizes, torch.randn(B, n, H, 8, generator=generator)


def merge(operator: MergeOperator, grid: Grid, target: Grid) -> tuple[Tensor, Tensor, Merge]:
    x, sizes, keys = inputs(grid)
    if operator.form not in operator.grid_forms:
        target = (tokens(target),)
    operator.train(not operator.drops)  # while training, every token goes on by a share
    return x, sizes, operator(x, sizes, grid, target, keys)


def overlap(i: int, n: int, j: int, m: int) -> float:
    """Share of the i-th of n equal segments that lies in the j-th of m."""
    return max(0.0, min((i + 1) / n, (j + 1) / m) - max(i / n, j / m)) * n


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("grid", "target"), CASES)
@pytest.mark.parametrize(("name", "form"), VARIANTS)
class TestEveryOperator:
    def test_mass_is_conserved_but_for_what_is_left_out(
        self, name: str, form: Form, grid: Grid, target: Grid, trained: bool
    ) -> None:
        operator = make(name, form, trained=trained)
        _, sizes, out = merge(operator, grid, target)
        assert out.tokens.shape == (B, G, tokens(target), D)
        assert (out.left_out is not None) == operator.drops
        if out.left_out is not None:
            assert (out.left_out.sum(1) == tokens(grid) - tokens(target)).all()
            sizes = sizes * (1 - out.left_out)
        empty = out.sizes <= EMPTY_SIZE
        torch.testing.assert_close(out.sizes.masked_fill(empty, 0).sum(1), sizes.sum(1))
        torch.testing.assert_close(out.sizes.sum(1), sizes.sum(1), atol=tokens(target) * EMPTY_SIZE, rtol=1e-6)
        assert (out.sizes > 0).all()
        assert form == "hard" or not empty.any()

    def test_merged_tokens_lie_within_the_range_of_their_sources(
        self, name: str, form: Form, grid: Grid, target: Grid, trained: bool
    ) -> None:
        operator = make(name, form, trained=trained)
        if isinstance(operator, LearnableTokenMerging):
            for correction in (operator.length_power, operator.scale, operator.shift):
                correction.data.zero_()
        x, _, out = merge(operator, grid, target)
        within = (out.tokens <= x.amax(2, keepdim=True) + 1e-5) & (out.tokens >= x.amin(2, keepdim=True) - 1e-5)
        assert within[(out.sizes > EMPTY_SIZE)[:, None].expand(-1, G, -1)].all()

    def test_unmerge_is_the_identity_when_nothing_changed(
        self, name: str, form: Form, grid: Grid, target: Grid, trained: bool
    ) -> None:
        x, _, out = merge(make(name, form, trained=trained), grid, target)
        assert torch.equal(out.unmerge(x, out.tokens), x)

    def test_unmerge_hands_a_common_change_to_every_token(
        self, name: str, form: Form, grid: Grid, target: Grid, trained: bool
    ) -> None:
        x, _, out = merge(make(name, form, trained=trained), grid, target)
        change = torch.randn(D)
        # Rows of A sum to one, so a common change arrives whole everywhere; those of dropped tokens sum to zero.
        arrives = change if out.left_out is None else change * (1 - out.left_out[:, None, :, None])
        torch.testing.assert_close(out.unmerge(x, out.tokens + change), x + arrives)


@pytest.mark.parametrize(("grid", "target"), CASES)
def test_prior_equals_brute_force_area_overlap(grid: Grid, target: Grid) -> None:
    prior = torch.tensor(area_overlap(grid, target))
    (h, w), (p, q) = grid, target
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


@pytest.mark.parametrize(("grid", "target"), MORE_CASES)
def test_near_cells_hold_all_of_the_prior(grid: Grid, target: Grid) -> None:
    prior = area_overlap(grid, target)
    cells, log_prior = local_cells(grid, target)
    assert cells.shape == log_prior.shape == (tokens(grid), NEAR)
    scattered = np.full_like(prior, -np.inf)
    for n in range(tokens(grid)):
        inside = [k for k in range(NEAR) if log_prior[n, k] > -np.inf]
        assert len({cells[n, k] for k in inside}) == len(inside), "each cell stands once"
        # The 3×3 around the middle one, as far as they lie in the target; those outside have its index.
        middle = divmod(int(cells[n, NEAR // 2]), target[1])
        around = [(middle[0] + i, middle[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        valid = [0 <= i < target[0] and 0 <= j < target[1] for i, j in around]
        assert inside == [k for k in range(NEAR) if valid[k]]
        assert [divmod(int(cell), target[1]) for cell in cells[n]] == [
            cell if ok else middle for cell, ok in zip(around, valid, strict=True)
        ]
        for k in inside:
            scattered[n, cells[n, k]] = log_prior[n, k]
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(scattered, np.log(prior))


def test_ltm_without_gain_and_importance_is_area_pooling() -> None:
    for grid, target in CASES:
        operator = make_ltm()
        operator.log_gain.data.fill_(-50.0)
        _, _, ltm = merge(operator, grid, target)
        _, _, pool = merge(make("pool"), grid, target)
        torch.testing.assert_close(ltm.tokens, pool.tokens)
        torch.testing.assert_close(ltm.sizes, pool.sizes)


def test_the_gain_is_a_logarithm_near_one_from_scratch() -> None:
    assert PLACE_GAIN == 1
    assert float(LearnableTokenMerging(D).log_gain.detach()) == 0
    content = LearnableTokenMerging(D, start="content").log_gain.detach()
    assert float(content.exp()) == pytest.approx(CONTENT_GAIN)


def test_matched_ltm_at_its_start_is_tome_by_all_heads() -> None:
    for grid, target in CASES:
        x, sizes, keys = inputs(grid)
        ltm, count = make_ltm("matched").eval(), (tokens(target),)
        all_heads = make("tome")(x, sizes, grid, count, keys.flatten(2)[:, :, None])
        torch.testing.assert_close(ltm(x, sizes, grid, count, keys).tokens, all_heads.tokens)
        ltm.on_merges_stay()
        out = ltm(x, sizes, grid, count, keys)
        torch.testing.assert_close(out.sizes, all_heads.sizes)
        torch.testing.assert_close(F.normalize(out.tokens, dim=-1), F.normalize(all_heads.tokens, dim=-1))
        lengths = x.norm(dim=-1)
        for b, p in np.ndindex(B, tokens(target)):
            members = out.assignment.position[b] == p  # type: ignore[attr-defined]
            wanted = (lengths[b, :, members] * sizes[b, members]).sum(1) / sizes[b, members].sum()
            torch.testing.assert_close(out.tokens[b, :, p].norm(dim=-1), wanted)


@pytest.mark.parametrize("needs_grid", [False, True])
@pytest.mark.parametrize("keep_ratio", [0.7, -3, -100, 1.0, 0.999])
@pytest.mark.parametrize(("name", "form"), VARIANTS)
def test_targets_are_grids_or_numbers(name: str, form: Form, keep_ratio: float, needs_grid: bool) -> None:
    operator = OPERATORS[name]
    target = operator.target((6, 4), keep_ratio, form, needs_grid=needs_grid)
    if form in operator.grid_forms or needs_grid:
        assert target == target_grid((6, 4), keep_ratio)
        with pytest.raises(InputError, match="merges by place need tokens on a grid, but an earlier merge"):
            operator.target((24,), keep_ratio, form, needs_grid=needs_grid)
    else:
        kept = kept_tokens(24, keep_ratio)
        assert target == ((6, 4) if kept == 24 else (kept,))
        assert operator.target((24,), keep_ratio, form) == (kept,)


def test_forms_by_place_and_by_keys_are_forms() -> None:
    for operator in OPERATORS.values():
        assert {*operator.grid_forms, *operator.keyed_forms} <= set(operator.forms)
        for form in operator.forms:
            instance = operator(D)
            instance.form = form
            assert instance.needs_keys == (form in operator.keyed_forms)


@pytest.mark.parametrize(("grid", "target"), MORE_CASES)
@pytest.mark.parametrize("kappa", [1e-9, 7.0, 50.0])
def test_hard_form_takes_the_largest_soft_share(grid: Grid, target: Grid, kappa: float) -> None:
    operator = make_ltm("soft", trained=True, kappa=kappa)
    x, sizes, _ = inputs(grid)
    soft, soft_weights = operator.assign(x, sizes, grid, target)
    operator.form = "hard"
    hard, hard_weights = operator.assign(x, sizes, grid, target)
    assert isinstance(soft, SoftAssignment)
    assert isinstance(hard, HardAssignment)
    assert hard.count == tokens(target)
    share = soft.shares.gather(2, hard.position[..., None]).squeeze(-1)
    torch.testing.assert_close(share, soft.shares.amax(-1), atol=1e-5, rtol=0)  # also where two are alike
    assert torch.equal(soft_weights, hard_weights)


def empty_case() -> tuple[LearnableTokenMerging, Tensor, Tensor, Grid, Grid]:
    """Three kinds of tokens on an 8×8 grid, and a sharp mask: of the 5×5 merged tokens some get none."""
    generator = torch.Generator().manual_seed(4)
    kinds = torch.randn(3, D, generator=generator)
    kind = torch.randint(3, (B, 1, 64), generator=generator).expand(-1, G, -1)
    x = kinds[kind] + 0.1 * torch.randn(B, G, 64, D, generator=generator)
    return make_ltm("hard", trained=True, kappa=50.0), x, torch.rand(B, 64, generator=generator) + 0.5, (8, 8), (5, 5)


@pytest.mark.parametrize("fills", [False, True])
def test_empty_merged_tokens_are_small_and_zero_or_pooled(fills: bool) -> None:
    operator, x, sizes, grid, target = empty_case()
    assignment, _ = operator.assign(x, sizes, grid, target)
    assert isinstance(assignment, HardAssignment)
    operator.needs_grid = fills
    out = operator(x, sizes, grid, target)
    empty = torch.ones(B, 25, dtype=torch.bool).scatter(1, assignment.position, False)
    assert empty.any()
    assert not empty.all()
    assert (out.sizes[empty] == torch.tensor(EMPTY_SIZE)).all()
    assert (out.sizes[~empty] >= 0.5).all()
    for b, p in empty.nonzero().tolist():
        area = [overlap(n // 8, 8, p // 5, 5) * overlap(n % 8, 8, p % 5, 5) for n in range(64)]
        pooled = sum(a / sum(area) * x[b, :, n] for n, a in enumerate(area))
        wanted = pooled if fills else torch.zeros(G, D)
        torch.testing.assert_close(out.tokens[b, :, p], wanted, atol=1e-5, rtol=1e-5)
    operator.needs_grid = False
    kept = (~empty)[:, None].expand(-1, G, -1)
    assert torch.equal(out.tokens[kept], operator(x, sizes, grid, target).tokens[kept])


def test_empty_merged_tokens_merge_again() -> None:
    operator, x, sizes, grid, target = empty_case()
    first = operator(x, sizes, grid, target)
    second = operator(first.tokens, first.sizes, target, (3, 3))
    assert torch.isfinite(second.tokens).all()
    torch.testing.assert_close(second.sizes.sum(1), sizes.sum(1), atol=34 * EMPTY_SIZE, rtol=1e-6)
    for form in OPERATORS["ltm"].forms:
        operator.form = form
        keys = torch.randn(B, tokens(grid), H, 8)
        operator(x.requires_grad_(), sizes, grid, target, keys).tokens.square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in operator.parameters() if p.grad is not None), form


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_hard_assignment_equals_one_hot_product(groups: int, exporting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: exporting)
    generator = torch.Generator().manual_seed(0)
    n, p = 12, 5
    position = torch.randint(p, (B, n), generator=generator)
    before = torch.randn(B, groups, n, 3, generator=generator, dtype=torch.float64)
    after = torch.randn(B, groups, p, 3, generator=generator, dtype=torch.float64)
    gate = torch.ones(B, n, dtype=torch.float64, requires_grad=True)
    gated_matrix = F.one_hot(position, p).double() * gate[..., None]
    hard = HardAssignment(position, p, gate)
    for got, wanted in (
        (hard.collect(before), torch.einsum("bnp,bgnc->bgpc", gated_matrix, before)),
        (hard.spread(after), torch.einsum("bnp,bgpc->bgnc", gated_matrix, after)),
    ):
        torch.testing.assert_close(got, wanted)
        weight = torch.randn(got.shape, generator=generator, dtype=torch.float64)
        gradients = (torch.autograd.grad((out * weight).sum(), gate, retain_graph=True) for out in (got, wanted))
        torch.testing.assert_close(*gradients)
    plain = HardAssignment(position, p)
    torch.testing.assert_close(plain.collect(before), hard.collect(before))
    torch.testing.assert_close(plain.spread(after), hard.spread(after))


@pytest.mark.parametrize("form", LearnableTokenMerging.forms)
def test_gradients_reach_mask_parameters_but_not_tokens(form: Form) -> None:
    operator = make_ltm(form, trained=True)
    x = torch.randn(B, G, 36, D, requires_grad=True)
    sizes, keys = torch.ones(B, 36), torch.randn(B, 36, H, 8, requires_grad=True)
    operator(x, sizes, (6, 6), (4, 4), keys).tokens.square().sum().backward()
    silent = unused_weights(operator)
    for name, parameter in operator.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0) == (name not in silent), name
    x.grad = None
    assert keys.grad is None
    if form == "gradient":
        return
    assignment, w = operator.assign(x, sizes, (6, 6), (4, 4), keys)
    spread = assignment.spread(torch.randn(B, 1, 16, 3))
    assert spread.requires_grad == (form != "matched")
    assert w.requires_grad
    (spread.square().sum() + w.sum()).backward()
    assert x.grad is None


def test_fresh_operators_are_alike_and_leave_the_random_state() -> None:
    state = torch.get_rng_state()
    first, second = LearnableTokenMerging(D), LearnableTokenMerging(D)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.directions, second.directions)
    torch.testing.assert_close(first.directions.T @ first.directions, torch.eye(first.directions.shape[1]))


LAYER, OTHER = "stages.2.blocks.1", "stages.3.blocks.1"
"""Layers of efficientvit_b0, with weights and, in its norms, statistics."""


def network(start: MaskStart) -> tuple[nn.Module, nn.Parameter]:
    """A network with one mask, and the logarithm of its gain."""
    model = create_subnet("efficientvit_b0", keep_ratios={LAYER: 0.5}, mask_start=start)
    ((_, gain),) = [(name, value) for name, value in model.named_parameters() if name.endswith(".log_gain")]
    return model, gain


@pytest.mark.parametrize(
    ("start", "fresh", "loaded"),
    [
        ("auto", PLACE_GAIN, CONTENT_GAIN),
        ("place", PLACE_GAIN, PLACE_GAIN),
        ("content", CONTENT_GAIN, CONTENT_GAIN),
    ],
)
def test_masks_start_by_place_until_weights_are_loaded(start: MaskStart, fresh: float, loaded: float) -> None:
    plain = create_backbone("efficientvit_b0").state_dict()
    model, gain = network(start)
    assert float(gain.detach().exp()) == pytest.approx(fresh)
    statistics = {name: value for name, value in plain.items() if ".running_" in name}
    assert any(name.startswith(f"{LAYER}.") for name in statistics)
    model.load_state_dict(statistics, strict=False)
    assert float(gain.detach().exp()) == pytest.approx(fresh), "statistics alone are no trained weights"
    model.load_state_dict({name: plain[name] for name in plain if name.startswith(f"{OTHER}.")}, strict=False)
    assert float(gain.detach().exp()) == pytest.approx(fresh), "weights of another layer"
    model.load_state_dict(plain)  # strict
    assert float(gain.detach().exp()) == pytest.approx(loaded)


def test_masks_that_are_in_the_file_are_loaded_as_they_are() -> None:
    (source, given), (model, gain) = network("place"), network("auto")
    with torch.no_grad():
        given.fill_(3.0)
    model.load_state_dict(source.state_dict())
    assert float(gain.detach()) == 3.0
    half = {name: value for name, value in source.state_dict().items() if not name.endswith("log_gain")}
    with pytest.raises(RuntimeError, match="log_gain"):
        model.load_state_dict(half)


@pytest.mark.parametrize("dim", [30, 8])
def test_ltm_refuses_widths_it_cannot_divide(dim: int) -> None:
    with pytest.raises(ValueError, match="`dim` must be"):
        LearnableTokenMerging(dim)


def test_tome_merges_the_most_similar_pairs() -> None:
    # Even tokens 0, 2, 4, 6 look for a partner among 1, 3, 5: 4 is 5's twin, 0 is nearly 3, the others point elsewhere.
    keys = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, -1], [1, 0.1, 0], [0, 0, 1], [0, 0, 1], [0, -1, 0]])
    position = match_once(similarity(keys[None]), merges=2)
    # What stays in order: 1, 2, 3, 5, 6; token 0 goes to 3's place, 4 to 5's.
    assert position.tolist() == [[2, 0, 1, 2, 3, 3, 4]]


def test_tome_counts_of_rounds() -> None:
    assert rounds(10, 8) == [2]
    assert rounds(10, 2) == [5, 2, 1]
    assert rounds(7, 7) == []


@pytest.mark.parametrize("name", ["ltm", "tome"])
def test_matching_needs_keys(name: str) -> None:
    with pytest.raises(ValueError, match="`keys` must be given"):
        make(name, "matched")(torch.randn(1, 1, 9, D), torch.ones(1, 9), (3, 3), (4,))


def test_unknown_operator_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean tome"):
        get_operator("tom")


def test_forms_that_an_operator_does_not_have_are_told() -> None:
    assert [check_form("ltm", form) for form in ("soft", "matched", "gradient")] == ["soft", "matched", "gradient"]
    assert check_form("tome", "matched") == "matched"
    with pytest.raises(InputError, match="the form of a merge by 'pool' must be soft, but got 'hard'"):
        check_form("pool", "hard")
    with pytest.raises(InputError, match="by 'ltm' must be soft, hard, matched, gradient, but got 'firm'"):
        check_form("ltm", "firm")


def test_matched_form_joins_equal_tokens_anywhere() -> None:
    operator = make_ltm("matched").eval()
    generator = torch.Generator().manual_seed(4)
    x, keys = torch.randn(1, 1, 9, D, generator=generator), torch.randn(1, 9, H, 8, generator=generator)
    x[0, 0, 8], keys[0, 8] = x[0, 0, 1], keys[0, 1]  # opposite ends of the grid
    sizes = torch.arange(1.0, 10.0)[None]
    with torch.no_grad():
        out = operator(x, sizes, (3, 3), (8,), keys)
    position = out.assignment.position[0]  # type: ignore[attr-defined]
    assert position[8] == position[1]
    assert sorted(set(position.tolist())) == list(range(8))
    assert out.sizes[0, position[8]] == 2 + 9
    torch.testing.assert_close(out.tokens[0, 0, position[8]], x[0, 0, 1])
