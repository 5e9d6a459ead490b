"""The gradient step on IBB: the formula against autograd, the mask, and how it is carried between grids."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ltmsearch.merging.ib_step import (
    CHANGE_LIMIT,
    MaskChange,
    changed_mask,
    covered_cells,
    expected_scores,
    mask_gradient,
    memberships,
    step_down,
    unit_tokens,
)
from ltmsearch.merging.prior import area_overlap, log_overlap
from ltmsearch.schedules.grid import Grid, tokens

B, N, P, D, A, CLASSES = 5, 12, 4, 6, 3, 2
BETA = 1.7


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ibb(merged: Tensor, centroids: Tensor, psi: Tensor) -> Tensor:
    """mean_i Σ_a φ̃_ia ψ_ia as it reads, of (n, D) points in clusters with (A, D) centroids."""
    distances = (merged[:, None] - centroids).square().sum(-1)
    return ((-BETA * distances).softmax(-1) * psi).sum(-1).mean()


def label_scores() -> Tensor:
    """(B, A) ψ of images with labels: the information of memberships of the images, and Q of the classes."""
    inputs, q = drawn(B, 4, seed=5).softmax(-1), drawn(A, CLASSES, seed=6).softmax(0)
    first = (inputs * inputs.log()).sum(-1, keepdim=True)
    return first - q.log().T[torch.arange(B) % CLASSES]


def gradient(z: Tensor, mask: Tensor, centroids: Tensor, scores: Tensor) -> Tensor:
    products = z @ centroids.T
    return mask_gradient(products, memberships(mask.mT @ products, centroids, BETA), scores, BETA)


class TestGradient:
    def test_the_papers_formula_equals_autograd(self) -> None:
        # All merged tokens of an image are one vector of P·D numbers, as in the paper: its step is the same function
        # with one merged token, of N·P tokens e_p ⊗ Z_n and the mask's entries as weights.
        z, centroids, psi = drawn(B, N, D), drawn(A, P * D, seed=1), label_scores()
        mask = drawn(B, N, P, seed=2).softmax(1).requires_grad_()
        bound = ibb((mask.mT @ z).flatten(1), centroids, psi)
        (wanted,) = torch.autograd.grad(bound, mask)
        spread = torch.einsum("pq,bnd->bnpqd", torch.eye(P, dtype=z.dtype), z).reshape(B, N * P, P * D)
        whole = mask.detach().reshape(B, N * P, 1)
        found = gradient(spread, whole, centroids, psi[:, None]).reshape(B, N, P) / B
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)

    def test_it_equals_autograd_token_by_token(self) -> None:
        z, centroids, psi = drawn(B, N, D), drawn(A, D, seed=1), label_scores()
        mask = drawn(B, N, P, seed=2).softmax(1).requires_grad_()
        bound = ibb((mask.mT @ z).flatten(0, 1), centroids, psi.repeat_interleave(P, dim=0))
        (wanted,) = torch.autograd.grad(bound, mask)
        found = gradient(z, mask.detach(), centroids, psi[:, None]) / (B * P)
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)

    def test_scores_count_up_to_a_constant(self) -> None:
        z, centroids, mask = drawn(B, N, D), drawn(A, D, seed=1), drawn(B, N, P, seed=2).softmax(1)
        one, other = (gradient(z, mask, centroids, drawn(A) + shift) for shift in (0, 7))
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 1e-3

    def test_scores_are_read_out_of_the_mean_memberships(self) -> None:
        inside, scores, readout = drawn(B, P, A).softmax(-1), drawn(A, seed=1), drawn(A, A, seed=2)
        found = expected_scores(inside, scores, readout)
        for image in range(B):
            wanted = scores + sum(inside[image, :, b].mean() * readout[b] for b in range(A))
            torch.testing.assert_close(found[image, 0], wanted)

    def test_memberships_are_of_squared_distances(self) -> None:
        points, centroids = drawn(B, P, D), drawn(A, D, seed=1)
        distances = torch.cdist(points, centroids.expand(B, -1, -1)).square()
        wanted = torch.softmax(-BETA * distances, dim=-1)
        torch.testing.assert_close(memberships(points @ centroids.T, centroids, BETA), wanted)

    def test_tokens_have_length_one(self) -> None:
        lengths = unit_tokens(100 * drawn(B, N, D).float() + 3, D).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones(B, N))


class TestStep:
    grid, target = (4, 3), (2, 2)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logarithms of prior and sizes, the mask of the prior, and a gradient."""
        log_prior = torch.from_numpy(log_overlap(self.grid, self.target))
        log_sizes = drawn(B, N, seed=3).abs()
        return log_prior, log_sizes, changed_mask(log_prior, log_sizes, None), drawn(B, N, P, seed=4)

    def test_the_first_mask_is_the_area_by_size(self) -> None:
        _, log_sizes, mask, _ = self.inputs()
        weighted = torch.from_numpy(area_overlap(self.grid, self.target)) * log_sizes.exp()[..., None]
        torch.testing.assert_close(mask, weighted / weighted.sum(1, keepdim=True))

    def test_a_step_multiplies_the_mask(self) -> None:
        log_prior, log_sizes, mask, slope = self.inputs()
        rate = torch.tensor(0.3, dtype=torch.float64)
        after = changed_mask(log_prior, log_sizes, step_down(None, slope, mask, rate))
        wanted = mask * (-rate * slope).exp()
        torch.testing.assert_close(after, wanted / wanted.sum(1, keepdim=True))

    def test_two_steps_add_up(self) -> None:
        log_prior, log_sizes, mask, slope = self.inputs()
        rate = torch.tensor(0.1, dtype=torch.float64)
        first = step_down(None, slope, mask, rate)
        second = step_down(first, slope, changed_mask(log_prior, log_sizes, first), rate)
        after = changed_mask(log_prior, log_sizes, second)
        wanted = mask * (-2 * rate * slope).exp()
        torch.testing.assert_close(after, wanted / wanted.sum(1, keepdim=True))

    def test_a_small_step_lowers_the_bound(self) -> None:
        z, centroids, scores = drawn(B, N, D), drawn(A, D, seed=1), drawn(A, seed=7)
        log_prior, log_sizes, mask, _ = self.inputs()
        change = step_down(None, gradient(z, mask, centroids, scores), mask, torch.tensor(0.05, dtype=torch.float64))
        after = changed_mask(log_prior, log_sizes, change)
        before, lower = (ibb((g.mT @ z).flatten(0, 1), centroids, scores) for g in (mask, after))
        assert lower < before

    def test_no_change_exceeds_the_limit(self) -> None:
        log_prior, log_sizes, mask, slope = self.inputs()
        change = step_down(None, slope, mask, torch.tensor(1e6, dtype=torch.float64))
        assert change.abs().max() == CHANGE_LIMIT
        assert changed_mask(log_prior, log_sizes, change).isfinite().all()


GRIDS = [((8, 8), (7, 7)), ((7, 5), (4, 5)), ((4, 3), (8, 7)), ((5, 5), (1, 1)), ((1, 6), (1, 4))]


@pytest.mark.parametrize(("before", "after"), GRIDS)
class TestResampling:
    def test_cells_cover_their_area(self, before: Grid, after: Grid) -> None:
        cells, shares = covered_cells(before, after)
        for number in range(tokens(after)):
            row, column = divmod(number, after[1])
            found = dict(zip(cells[number], shares[number], strict=True))
            for old in range(tokens(before)):
                place = divmod(old, before[1])
                area = math.prod(
                    max(0.0, min((new + 1) / n, (i + 1) / m) - max(new / n, i / m)) * n
                    for new, n, i, m in zip((row, column), after, place, before, strict=True)
                )
                assert found.get(old, 0.0) == pytest.approx(area, abs=1e-9)
        np.testing.assert_allclose(shares.sum(axis=1), 1)

    def test_a_constant_change_stays(self, before: Grid, after: Grid) -> None:
        change = MaskChange(log_ratio=torch.full((B, tokens(before), 1), 0.7), grid=before, target=(1, 1))
        torch.testing.assert_close(change.on(after, (1, 1)), torch.full((B, tokens(after), 1), 0.7))


def test_a_change_is_carried_on_both_sides() -> None:
    log_ratio = torch.randn(B, 16, 4)
    found = MaskChange(log_ratio=log_ratio, grid=(4, 4), target=(2, 2)).on((2, 2), (1, 1))
    halves = log_ratio.reshape(B, 2, 2, 2, 2, 4).mean(dim=(2, 4))  # rows and columns, by two
    torch.testing.assert_close(found, halves.reshape(B, 4, 4).mean(dim=-1, keepdim=True))


def test_the_same_grids_carry_the_same_change() -> None:
    change = MaskChange(log_ratio=torch.randn(B, 12, 4), grid=(4, 3), target=(2, 2))
    assert change.on((4, 3), (2, 2)) is not None
    torch.testing.assert_close(change.on((4, 3), (2, 2)), change.log_ratio)
