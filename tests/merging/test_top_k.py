"""The soft top-k against its definition: shares that sum to k, and the gradient through the threshold."""

import pytest
import torch
from torch import Tensor

from ltmsearch.merging.top_k import ranked, soft_top_k, top_k


def scores(batch: int = 3, n: int = 9, *, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return spread * torch.randn(batch, n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_shares_are_sigmoids_that_sum_to_k(k: int, spread: float, dtype: torch.dtype) -> None:
    s = scores(spread=spread).to(dtype)
    p = soft_top_k(s, k)
    assert p.dtype == dtype
    torch.testing.assert_close(p.sum(dim=1), torch.full((3,), float(k), dtype=dtype), atol=1e-4, rtol=0)
    # One threshold for all: the logits differ as the scores do, where the shares are not 0 or 1 to rounding.
    inside = (p > 1e-3) & (p < 1 - 1e-3)
    t = torch.where(inside, torch.logit(p) - s, torch.nan)
    torch.testing.assert_close(t.nanmean(dim=1, keepdim=True).expand_as(t)[inside], t[inside], atol=0.02, rtol=1e-3)


def test_far_scores_give_the_top_k_and_equal_ones_equal_shares() -> None:
    s = torch.tensor([[5.0, -3.0, 4.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
    wanted = torch.zeros(2, 5).scatter(1, s.topk(2).indices, 1.0)
    torch.testing.assert_close(soft_top_k(1000 * s, 2), wanted)
    torch.testing.assert_close(soft_top_k(torch.full((1, 8), 7.0), 3), torch.full((1, 8), 3 / 8))
    by_hand = soft_top_k(torch.tensor([[0.0, 2.0]]), 1)  # σ(t) + σ(2 + t) = 1 at t = −1
    torch.testing.assert_close(by_hand, torch.tensor([[-1.0, 1.0]]).sigmoid())


def test_a_common_shift_and_another_order_do_not_matter() -> None:
    s, order = scores(), torch.randperm(9)
    torch.testing.assert_close(soft_top_k(s + 123.0, 4), soft_top_k(s, 4))
    torch.testing.assert_close(soft_top_k(s[:, order], 4), soft_top_k(s, 4)[:, order])


@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_gradient_is_that_of_finite_differences(k: int) -> None:
    assert torch.autograd.gradcheck(lambda s: soft_top_k(s, k), scores().requires_grad_())


@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_gradient_is_the_implicit_formula(k: int) -> None:
    """∂p/∂s = diag(v) − v vᵀ / Σ v with v = p (1 − p), whose rows sum to zero as Σ p does not change."""
    (s,) = scores(1)
    jacobian = torch.autograd.functional.jacobian(lambda row: soft_top_k(row[None], k)[0], s)
    p = soft_top_k(s[None], k)[0]
    v = p * (1 - p)
    torch.testing.assert_close(jacobian, v.diag() - torch.outer(v, v) / v.sum())
    torch.testing.assert_close(jacobian.sum(dim=0), torch.zeros(9, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_gradient_is_zero_where_nothing_can_change() -> None:
    far = torch.tensor([[1e4, -1e4, 5e3, 0.0]], requires_grad=True)
    soft_top_k(far, 2).square().sum().backward()
    assert far.grad is not None
    assert torch.equal(far.grad, torch.zeros(1, 4))


@pytest.mark.parametrize("k", [1, 4, 8])
def test_weighted_shares_sum_to_k_with_their_gradient(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 9, generator=generator, dtype=torch.float64) + 1
    p = soft_top_k(scores(), k, weights)
    torch.testing.assert_close((weights * p).sum(dim=1), torch.full((3,), float(k), dtype=torch.float64))
    t = torch.logit(p) - scores()
    torch.testing.assert_close(t, t[:, :1].expand_as(t))
    torch.testing.assert_close(soft_top_k(scores(), k, torch.ones_like(weights)), soft_top_k(scores(), k))
    inputs = scores().requires_grad_(), weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, w: soft_top_k(s, k, w), inputs)


def test_all_shares_are_one_where_the_weights_are_too_few() -> None:
    weights = torch.tensor([[1.0, 1.0, 1e-4, 1e-4]])
    torch.testing.assert_close(soft_top_k(torch.tensor([[0.3, -2.0, 5.0, 1.0]]), 3, weights), torch.ones(1, 4))


def test_top_k_by_hand() -> None:
    s = torch.tensor([[1.0, 3.0, 2.0, 3.0, -torch.inf], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert ranked(s).tolist() == [[1, 3, 2, 0, 4], [0, 1, 2, 3, 4]]
    assert top_k(s, 3).tolist() == [[1, 2, 3], [0, 1, 2]]


@pytest.mark.parametrize("k", [0, -1, 5, 6])
def test_other_k_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"`k` must be between 1 and 4, .* of scores, but got k={k}\."):
        soft_top_k(torch.zeros(2, 5), k)
