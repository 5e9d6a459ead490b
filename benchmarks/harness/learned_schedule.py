"""A merge schedule learned by gradient under a FLOPs penalty, over the choices of a search space.

DiffRate (https://arxiv.org/abs/2305.17997) and LTMP (https://arxiv.org/abs/2307.10780) learn the number of tokens that
each layer of a trained ViT keeps, by gradient and for one target at a time. Here the same is done over keep ratios and
forms, without code of either, to compare it with the search. Each layer l has a distribution over its choices,

    p_l = softmax(θ_l),   s = (s_1, …, s_L),  s_l ~ p_l independently,

and with the trained weights frozen, as in DiffRate, θ minimises over training images x

    J(θ) = E_s[ CE(x; s) ]  +  λ · ( E_s[C(s)] / T − 1 )²

where C counts multiply-adds and T is the target. With a teacher, CE is the KL divergence from its predictions.

*The penalty is exact.* A cost is a walk along the grids of tokens, so under p the grids are a Markov chain: with
π_l(g) the probability that grid g reaches layer l, E_s[C] = C_plain + Σ_l Σ_g π_l(g) Σ_c p_l(c) step_l[g, c], and
π_{l+1} follows from π_l and p_l. That is differentiable in θ, so nothing is sampled.

*The accuracy is sampled.* Other ratios give other grids, whose activations have no weighted mean. So its
gradient is the score-function estimate from K schedules on the same images, each with the mean of the others as its
baseline (leave one out, which keeps it unbiased; effects of the images on all K cancel):

    ∇ E_s[CE] ≈ 1/K Σ_k ( CE_k − mean_{j≠k} CE_j ) ∇ Σ_l log p_l(s_kl)

θ starts as a straight line over a layer's choices, from plain to the smallest ratio, whose slope, the same in all
layers, makes E_s[C] = T; Adam moves it. BatchNorm takes the statistics of the batch, since stored ones do not fit
merged tokens. The result is the most probable schedule that costs at most the target and at least 98 % of it: the best
of many draws, then changed layer by layer while that makes it more probable.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltmsearch.costs import CostTable
from ltmsearch.engine.evaluation import divergence, preserve_batchnorm
from ltmsearch.engine.runtime import Runtime
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace

PENALTY = 50.0
"""λ, nats: at 2 % off the target it weighs 0.02."""
LEARNING_RATE = 0.1
CLOSE = 0.98
"""Least cost of the result over the target, where any drawn schedule has it: all nets should cost the same."""
DRAWS = 50_000
"""Schedules drawn to find the most probable one within the target; costing them takes milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Learned schedule."""

    schedule: MergeSchedule
    """The most probable one within the target."""
    probabilities: list[list[float]]
    """Per layer, in the order of the space's choices."""
    history: list[tuple[float, float]]
    """Per step: mean cross-entropy of the drawn schedules, and expected cost over the target."""


def expected_cost(table: CostTable, probabilities: list[Tensor]) -> Tensor:
    """E_s[C(s)] when layers choose independently: (choices,) probabilities per layer."""
    total = torch.tensor(float(table.base), dtype=torch.float64)
    reached = total.new_ones(1)
    for step, move, start, chosen in zip(table.step, table.move, table.starts, probabilities, strict=True):
        if start:
            reached = total.new_ones(1)
        joint = reached[:, None] * chosen  # (grids, choices)
        total = total + (joint * torch.as_tensor(step, dtype=torch.float64)).sum()
        following = total.new_zeros(int(move.max()) + 1)
        reached = following.index_add(0, torch.as_tensor(move).flatten(), joint.flatten())
    return total


def learn_schedule(
    supernet: Supernet,
    space: SearchSpace,
    table: CostTable,
    target: float,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    draws: int,
    runtime: Runtime,
    seed: int,
    teacher: nn.Module | None = None,
) -> Learned:
    """Learn a schedule by the formulas at the top of this module.

    Args:
        supernet: Net with the trained weights, which do not change.
        space: Choices of each layer.
        table: Costs of the space.
        target: T, in units of the table.
        batches: Training images and labels, one batch per step.
        draws: K, schedules per step, two or more.
        runtime: Device and number format.
        seed: Seed of the draws.
        teacher: Network whose predictions are to be kept; None: labels count.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = [each.requires_grad_(True) for each in starting_logits(table, space, target)]
    optimizer = torch.optim.Adam(logits, lr=LEARNING_RATE)
    history = []
    for images, labels in batches:
        logs = [each.log_softmax(dim=0) for each in logits]
        drawn = torch.stack([torch.multinomial(p.exp().detach(), draws, True, generator=generator) for p in logs], 1)
        schedules = [space.schedule(row) for row in drawn.numpy()]
        losses = _losses(supernet, schedules, images, labels, runtime, teacher)
        advantages = (losses - losses.mean()) * draws / (draws - 1)  # each less the mean of the others
        scores = sum(log[column] for log, column in zip(logs, drawn.unbind(1), strict=True))
        relative = expected_cost(table, [log.exp() for log in logs]) / target
        optimizer.zero_grad()
        ((advantages * scores).mean() + PENALTY * (relative - 1) ** 2).backward()
        optimizer.step()
        history.append((losses.mean().item(), relative.item()))
    probabilities = [each.detach().softmax(dim=0) for each in logits]
    best = most_probable(table, probabilities, target, generator)
    return Learned(schedule=space.schedule(best), probabilities=[p.tolist() for p in probabilities], history=history)


def most_probable(
    table: CostTable, probabilities: list[Tensor], target: float, generator: torch.Generator
) -> np.ndarray:
    """(L,) indices of the most probable schedule found whose cost is within the target and close to it."""
    logs = [p.clamp(min=1e-12).log().numpy() for p in probabilities]
    pool = torch.stack([torch.multinomial(p, DRAWS, True, generator=generator) for p in probabilities], 1).numpy()
    costs = table.costs(pool)
    least = CLOSE * target if ((costs >= CLOSE * target) & (costs <= target)).any() else 0.0

    def likeliest(rows: np.ndarray) -> tuple[float, np.ndarray]:
        rows = rows[(table.costs(rows) >= least) & (table.costs(rows) <= target)]
        likely = np.sum([log[column] for log, column in zip(logs, rows.T, strict=True)], axis=0)
        return likely.max(), rows[likely.argmax()]

    # Where no drawn schedule is within the target, the cheapest one is.
    likely, best = likeliest(pool if (costs <= target).any() else np.array([[len(p) - 1 for p in logs]]))
    while True:
        near = np.stack([_with(best, layer, c) for layer, log in enumerate(logs) for c in range(len(log))])
        more_likely, better = likeliest(near)
        if more_likely <= likely:
            return best
        likely, best = more_likely, better


def _with(row: np.ndarray, layer: int, choice: int) -> np.ndarray:
    changed = row.copy()
    changed[layer] = choice
    return changed


def starting_logits(table: CostTable, space: SearchSpace, target: float) -> list[Tensor]:
    """Straight lines over the choices at whose probabilities the expected cost is the target: slope by bisection."""
    lines = [torch.linspace(0, -1, len(options), dtype=torch.float64) for options in space.choices]
    low, high = -50.0, 50.0
    for _ in range(60):
        slope = (low + high) / 2
        if expected_cost(table, [(slope * line).softmax(dim=0) for line in lines]) < target:
            low = slope
        else:
            high = slope
    return [low * line for line in lines]


@torch.no_grad()
def _losses(
    supernet: Supernet,
    schedules: list[MergeSchedule],
    images: Tensor,
    labels: Tensor,
    runtime: Runtime,
    teacher: nn.Module | None,
) -> Tensor:
    """(K,) cross-entropies of the same images under each schedule, or divergences from a teacher."""
    images, losses = runtime.images(images), []
    target = None
    if teacher is not None:
        with runtime.autocast():
            target = teacher(images).float().log_softmax(dim=1)
    with preserve_batchnorm(supernet):
        _by_the_batch(supernet.eval())
        for schedule in schedules:
            with supernet.active(schedule), runtime.autocast():
                logits = supernet(images)
            loss = (
                F.cross_entropy(logits.float(), labels) if target is None else divergence(logits.float(), target).mean()
            )
            losses.append(loss.double())
    return torch.stack(losses)


def _by_the_batch(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
