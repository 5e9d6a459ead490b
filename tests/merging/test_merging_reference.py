"""The fast operators against the plain one: every formula written as it reads, by N×P matrices, with its gradients."""

from collections.abc import Iterator
from math import log, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.merging import OPERATORS, LearnableTokenMerging, MergeOperator, TokenSelection
from ltmsearch.merging.gradient import GradientStep
from ltmsearch.merging.ib_step import BETA, CHANGE_LIMIT
from ltmsearch.merging.ltm import EMPTY_SIZE, IMPORTANCE_LIMIT, PARTS, RANK, any_empty, area_mean
from ltmsearch.merging.matching import similarity
from ltmsearch.merging.prior import area_overlap, log_overlap, mean_sides, seed_sides, side_shares
from ltmsearch.models import create_subnet
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Form

D, HEADS = 32, 2
CASES = [((8, 8), (5, 5)), ((6, 4), (4, 3)), ((5, 7), (5, 6)), ((9, 1), (4, 1)), ((7, 7), (3, 2))]
VARIANTS = [
    (name, form) for name, operator in sorted(OPERATORS.items()) if not operator.adaptive for form in operator.forms
]


def matched_once(pairs: Tensor, merges: int) -> list[int]:
    """The new place of each token in one round, from the similarity of even with odd tokens."""
    best = pairs.detach().max(dim=1)
    likest = sorted(range(len(pairs)), key=lambda i: -float(best.values[i]))[:merges]
    partner = {2 * i: 2 * int(best.indices[i]) + 1 for i in likest}
    staying = [n for n in range(sum(pairs.shape)) if n not in partner]
    return [staying.index(partner.get(n, n)) for n in range(sum(pairs.shape))]


def matched(keys: Tensor, sizes: Tensor, count: int) -> Tensor:
    """(N, P) the merged token of each token of one image."""
    total = torch.eye(len(keys))
    while len(keys) > count:
        merges = min(len(keys) - count, len(keys) // 2)
        unit = F.normalize(keys, dim=-1)
        step = F.one_hot(torch.tensor(matched_once(unit[0::2] @ unit[1::2].mT, merges)), len(keys) - merges).float()
        total, old, sizes = total @ step, sizes, step.mT @ sizes
        keys = step.mT @ (old[:, None] * keys) / sizes[:, None]
    return total


def selected(operator: TokenSelection, x: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best tokens; while training all of them by a share, or the best with the gradient of the shares."""
    content = F.layer_norm(x.detach().mean(dim=1), (D,))
    queries, keys = content @ operator.query.mT, content @ operator.key.mT + operator.key_bias
    products = queries @ keys.mT / sqrt(D // 2)  # of every token with every other one
    scores = (products * sizes[:, None]).sum(dim=2) / sizes.sum(dim=1, keepdim=True)
    learns = torch.is_grad_enabled()
    p = torch.stack([shares(s, count, w) for s, w in zip(scores, sizes, strict=True)]) if learns else None
    if p is not None and not operator.needs_grid:
        return x, sizes * p, torch.diag_embed(p)
    matrices = []
    for image, row in enumerate(scores + sizes.log()):
        best = sorted(sorted(range(len(row)), key=lambda i: -float(row[i].detach()))[:count])
        matrix = F.one_hot(torch.tensor(best), len(row)).float().mT
        matrices.append(matrix if p is None else matrix * (p[image] / p[image].detach())[:, None])
    a = torch.stack(matrices)
    return a.mT.detach()[:, None] @ x, (a.mT @ sizes[..., None])[..., 0], a


def shares(scores: Tensor, k: int, weights: Tensor) -> Tensor:
    """σ(s + t) with Σ w σ(s + t) = k: by bisection, and by autograd through one step of Newton's method at that t."""
    low, high = -scores.detach().double().max() - 50, -scores.detach().double().min() + 50
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if float((weights * (scores.detach() + middle).sigmoid()).sum()) > k else (middle, high)
        )
    p = (scores + low).sigmoid()
    newton = low - ((weights * p).sum() - k) / (weights * p * (1 - p)).sum().detach().clamp_min(1e-30)
    return (scores + newton).sigmoid().float()


def stepped(step: GradientStep, x: Tensor, sizes: Tensor, prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merged tokens, sizes and A after one step from the prior, token by token."""
    z, weighted = F.layer_norm(x.detach().mean(dim=1), (D,)) / D**0.5, prior * sizes[..., None]
    merged, all_sizes, shares = [], [], []
    for image in range(len(x)):
        g = weighted[image] / weighted[image].sum(0)
        points = g.mT @ z[image]
        inside = (-BETA * (points[:, None] - step.centroids).square().sum(-1)).softmax(dim=1)
        psi = step.scores + inside.mean(dim=0) @ step.readout
        changes = []
        for p in range(len(points)):
            middle = inside[p] @ step.centroids
            r = 2 * BETA * sum(inside[p, a] * psi[a] * (c - middle) for a, c in enumerate(step.centroids))
            slope = z[image] @ r
            changes.append(-step.log_rate.exp() * (slope - g[:, p] @ slope))
        change = torch.stack(changes, dim=1).clamp(-CHANGE_LIMIT, CHANGE_LIMIT).exp()
        mask, a = weighted[image] * change, prior * change
        a = a / a.sum(1, keepdim=True)
        merged.append((mask / mask.sum(0)).mT @ x[image])
        all_sizes.append(a.mT @ sizes[image])
        shares.append(a)
    return torch.stack(merged), torch.stack(all_sizes), torch.stack(shares)


def reference(
    operator: MergeOperator, x: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Merged tokens (B, G, P, D), their sizes (B, P), and A (B, N, P)."""
    count = tokens(target)
    w = sizes[..., None].expand(-1, -1, PARTS)
    if operator.form in operator.grid_forms:
        prior = torch.tensor(area_overlap(grid, target), dtype=torch.float32)
    if operator.name == "pool":
        a = prior.expand(x.shape[0], -1, -1)
    elif operator.name == "tome":
        a = torch.stack([matched(k, s, count) for k, s in zip(keys.mean(dim=2), sizes, strict=True)])
    elif isinstance(operator, TokenSelection):
        return selected(operator, x, sizes, count)
    elif operator.form == "gradient":
        assert isinstance(operator, LearnableTokenMerging)
        return stepped(operator.step, x, sizes, prior)
    else:
        assert isinstance(operator, LearnableTokenMerging)
        content = F.layer_norm(x.detach().mean(dim=1), (D,))
        directions, log_weights = content @ operator.directions, content @ operator.importance
        assert directions.shape[-1] == RANK
        v, kappa = F.normalize(directions, dim=-1), operator.log_gain.exp()
        w = sizes[..., None] * log_weights.clamp(-IMPORTANCE_LIMIT, IMPORTANCE_LIMIT).exp()
        if operator.form == "matched":
            a = torch.stack([matched(k, s, count) for k, s in zip(keys.flatten(2), sizes, strict=True)])
        else:
            seeds = F.normalize(prior.mT @ (sizes[..., None] * v), dim=-1)
            a = (prior.log() + kappa * (v @ seeds.mT)).softmax(dim=-1)
        if operator.form == "hard":
            best, position = a.max(dim=-1)
            a = F.one_hot(position, count) * (best / best.detach())[..., None]
    totals = a.mT @ w  # (B, P, K)
    empty = totals[..., :1] == 0
    summed = a.mT[:, None] @ (x.unflatten(-1, (PARTS, -1)) * w[:, None, ..., None]).flatten(-2)
    merged = (summed.unflatten(-1, (PARTS, -1)) / (totals + empty)[:, None, ..., None]).flatten(-2)
    if isinstance(operator, LearnableTokenMerging) and operator.form == "matched":
        lengths = (a.mT[:, None] @ (x.norm(dim=-1) * sizes[:, None])[..., None]) / (a.mT @ sizes[..., None])[:, None]
        merged = merged * (lengths / merged.norm(dim=-1, keepdim=True)) ** operator.length_power
        growth = (a.mT @ sizes[..., None]).log()[:, None]
        merged = merged * (1 + operator.scale * growth) + operator.shift * growth
    if operator.needs_grid and operator.form == "hard":
        rows, columns = (side_shares(*side)[0] for side in zip(grid, target, strict=True))
        area = torch.tensor(np.kron(rows, columns), dtype=torch.float32)
        merged = torch.where(empty[:, None], (area / area.sum(0)).mT @ x, merged)
    return merged, (a.mT @ sizes[..., None])[..., 0].clamp_min(EMPTY_SIZE), a


def trained(name: str, form: Form, *, kappa: float, needs_grid: bool) -> MergeOperator:
    operator = OPERATORS[name](D)
    operator.form, operator.needs_grid = form, needs_grid
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.add_(torch.randn_like(parameter))
        if isinstance(operator, LearnableTokenMerging):
            operator.log_gain.fill_(log(kappa))
            operator.step.centroids.div_(D**0.5)  # of length 1 as tokens
            operator.step.log_rate.fill_(log(kappa / 2))
    return operator


def gradients(operator: MergeOperator, x: Tensor, *outputs: Tensor) -> Iterator[Tensor]:
    """By the tokens and the operator's weights, of a random linear function of the outputs."""
    generator = torch.Generator().manual_seed(7)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    wanted = [x, *operator.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)  # type: ignore[arg-type]
    return (torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True))


@pytest.mark.parametrize("kappa", [0.5, 9.0])
@pytest.mark.parametrize(("batch", "groups"), [(1, 1), (1, 4), (3, 1), (2, 4)])
@pytest.mark.parametrize(("grid", "target"), CASES)
@pytest.mark.parametrize(("name", "form"), VARIANTS)
def test_values_and_gradients_are_the_references(
    name: str, form: Form, grid: Grid, target: Grid, batch: int, groups: int, kappa: float
) -> None:
    operator = trained(name, form, kappa=kappa, needs_grid=groups == 1)
    target = operator.target(grid, tokens(target) / tokens(grid), form, needs_grid=operator.needs_grid)
    x = torch.randn(batch, groups, tokens(grid), D, requires_grad=True)
    sizes, keys = torch.rand(batch, tokens(grid)) * 3 + 0.5, torch.randn(batch, tokens(grid), HEADS, 8)
    merged, merged_sizes, a = reference(operator, x, sizes, grid, target, keys)
    after = torch.randn(merged.shape)
    unmerged = x + a[:, None] @ (after - merged)
    out = operator(x, sizes, grid, target, keys)
    back = out.unmerge(x, after)
    got, wanted = (out.tokens, out.sizes, back), (merged, merged_sizes, unmerged)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
    rounding = 4e-3 if form == "matched" else 1e-3  # rounds of matching pass on what a softmax has rounded
    for one, other in zip(gradients(operator, x, *got), gradients(operator, x, *wanted), strict=True):
        torch.testing.assert_close(one, other, atol=rounding * max(1.0, float(other.abs().max())), rtol=0)
    with torch.inference_mode():
        again = operator(x, sizes, grid, target, keys)
        if operator.drops:  # fewer tokens than while training
            merged, merged_sizes, a = reference(operator, x, sizes, grid, target, keys)
            after = torch.randn(merged.shape)
            wanted = (merged, merged_sizes, x + a[:, None] @ (after - merged))
        for one, other in zip((again.tokens, again.sizes, again.unmerge(x, after)), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("form", LearnableTokenMerging.forms)
def test_bf16_autocast_rounds_only_the_carrying(form: Form, groups: int) -> None:
    operator = trained("ltm", form, kappa=9.0, needs_grid=True)
    x, sizes, keys = torch.randn(2, groups, 64, D), torch.rand(2, 64) + 0.5, torch.randn(2, 64, HEADS, 8)
    merged, merged_sizes, a = reference(operator, x, sizes, (8, 8), (5, 5), keys)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        out = operator(x, sizes, (8, 8), (5, 5), keys)
        back = out.unmerge(x, out.tokens + 1)
    torch.testing.assert_close(out.sizes, merged_sizes, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(out.tokens.float(), merged, atol=0.05, rtol=0.05)
    assert back.dtype == torch.float32, "the tokens keep their bits"
    torch.testing.assert_close(back, x + a[:, None] @ torch.ones_like(merged), atol=0.05, rtol=0.05)


def test_a_path_that_tells_its_change_is_handed_back_the_same() -> None:
    operator = trained("ltm", "soft", kappa=9.0, needs_grid=False)
    x, sizes = torch.randn(2, 1, 64, D), torch.ones(2, 64)
    out, change = operator(x, sizes, (8, 8), (5, 5)), torch.randn(2, 1, 25, D)
    torch.testing.assert_close(out.unmerge_change(x, change), out.unmerge(x, out.tokens + change))


def test_efficientvit_block_equals_its_reference() -> None:
    model: nn.Module = create_subnet("efficientvit_b0", keep_ratios={"*": 0.5}).eval()
    block, x = model.get_submodule("stages.2.blocks.1"), torch.randn(2, 64, 14, 10)
    with torch.no_grad():
        z = block.context_module(x)
        before = z.flatten(2).mT[:, None]
        merge = block.merging(before, torch.ones(2, 140), (14, 10), (10, 7))
        after = block.local_module(merge.tokens[:, 0].mT.unflatten(2, (10, 7)))
        wanted = merge.unmerge(before, after.flatten(2).mT[:, None])[:, 0].mT.unflatten(2, (14, 10))
        torch.testing.assert_close(block(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("grid", "target"), CASES)
def test_tables_along_the_sides_make_the_whole_tables(grid: Grid, target: Grid) -> None:
    (h, w), (p, q) = grid, target
    rows, columns = seed_sides(grid, target)
    parts = [np.kron(rows.reshape(p, 2, h)[:, k], columns.reshape(q, 2, w)[:, k]) for k in range(2)]
    np.testing.assert_allclose(sum(parts), area_overlap(grid, target).T)
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(log_overlap(grid, target), np.log(area_overlap(grid, target)))
    x = torch.randn(2, 3, h * w, 5)
    mean = torch.tensor(np.kron(*mean_sides(grid, target)), dtype=torch.float32)
    torch.testing.assert_close(mean.sum(1), torch.ones(p * q))
    torch.testing.assert_close(area_mean(x, grid, target), mean @ x)


def test_empty_tokens_are_asked_for_only_where_that_is_free() -> None:
    none, some = torch.zeros(2, 1, 5, 1, dtype=torch.bool), torch.tensor([False, True])
    assert not any_empty(none)
    assert any_empty(some)
    assert any_empty(none.to("meta"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_keys_are_compared_in_float32(dtype: torch.dtype) -> None:
    """Their products are beyond the range of float16."""
    keys = 50 * torch.randn(2, 9, 64) + 100
    with torch.autocast("cpu", dtype):
        found = similarity(keys)
    expected = torch.cosine_similarity(keys[:, 0::2, None], keys[:, None, 1::2], dim=-1)
    torch.testing.assert_close(found, expected)
