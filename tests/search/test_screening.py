"""Screening: it finds what brute force finds, within its budget, and says the same again."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import kendalltau

from ltmsearch.costs import Budget, SizedCosts
from ltmsearch.schedules.schedule import Choice
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.screening import Promoted, Scorer, Screening, few_images, scored_images
from ltmsearch.search.surrogate import Surrogate

RATIOS = (1.0, 0.9, 0.7, 0.5)
LAYERS = 6
FEW = 64
SPACE = SearchSpace(
    layers=tuple(f"blocks.{i}" for i in range(LAYERS)),
    choices=tuple(tuple(Choice(ratio) for ratio in RATIOS) for _ in range(LAYERS)),
    layer_tokens=(100,) * LAYERS,
    operator="tome",
    operator_forms=("matched",),
)
ALL = np.array(list(product(range(len(RATIOS)), repeat=LAYERS)))
SAVED = np.array([0.0, 1.0, 3.0, 5.0])
"""Cost that each choice saves; early layers save more."""
HARM = np.array([0.2, 0.1, 0.4, 0.05, 0.3, 0.15])


class Costs:
    """Costs from 6 to 100."""

    measured = False

    def costs(self, indices: np.ndarray) -> np.ndarray:
        weight = np.linspace(4.0, 2.0, LAYERS)
        found: np.ndarray = 100.0 - SAVED[indices] @ weight
        return found

    def reachable(self) -> tuple[float, float]:
        return float(self.costs(ALL).min()), 100.0


class Scaled(Costs):
    """The same on smaller images."""

    def __init__(self, share: float) -> None:
        self.share = share

    def costs(self, indices: np.ndarray) -> np.ndarray:
        return self.share * super().costs(indices)


def harm(indices: np.ndarray) -> float:
    """What merging loses: more than the sum where neighbours merge too."""
    halvings = np.array([-np.log2(RATIOS[i]) for i in indices])
    return float(HARM @ halvings**1.5 + 0.2 * np.sum(halvings[1:] * halvings[:-1]) + 0.01)


def each(score: Callable[[np.ndarray, int | None], float]) -> Scorer:
    """Scores of several schedules, one by one."""
    return lambda rows, images: [score(row, images) for row in rows]


def own(indices: np.ndarray) -> Hashable:
    """Every schedule is a network of its own."""
    return tuple(indices.tolist())


def budget(limit: float, minimum: float = 0.0) -> Budget:
    return Budget(name="gflops", table=Costs(), limit=limit, minimum=minimum)


def screened(seed: int = 0, *, limit: float = 60.0, minimum: float = 0.0, promoted: int = 4) -> list[Promoted]:
    screening = Screening(
        space=SPACE,
        budgets=[budget(limit, minimum)],
        score=each(lambda indices, images: harm(indices)),
        net=own,
        few=FEW,
        seed=seed,
    )
    uniform = [np.full(LAYERS, i) for i in range(len(RATIOS))]
    return screening.run(starts=uniform, known=[], schedules=160, promoted=promoted)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_of_all_schedules_is_found(seed: int) -> None:
    costs = Costs().costs(ALL)
    inside = ALL[(costs <= 60.0) & (costs >= 54.0)]
    best = np.sort([harm(row) for row in inside])
    found = screened(seed)
    assert found[0].score <= best[2], "of 4,096 schedules with 160 scores among the three best near the budget"
    assert [one.score for one in found] == sorted(one.score for one in found)


def test_promoted_schedules_are_within_the_budget_and_distinct() -> None:
    found = screened(promoted=8)
    rows = np.array([one.indices for one in found])
    assert len({one.indices for one in found}) == 8
    assert (Costs().costs(rows) <= 60.0).all()
    assert (Costs().costs(rows) >= 54.0).all()


def test_a_range_of_budgets_is_covered() -> None:
    found = screened(limit=80.0, minimum=40.0, promoted=8)
    costs = Costs().costs(np.array([one.indices for one in found]))
    assert (costs <= 80.0).all()
    assert [int(np.sum((costs > low) & (costs <= low + 10))) for low in (40, 50, 60, 70)] == [2, 2, 2, 2]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_proposals_for_a_range_lie_near_the_front_of_all_schedules(seed: int) -> None:
    found = screened(seed, limit=80.0, minimum=40.0, promoted=16)
    costs, harms = Costs().costs(ALL), np.array([harm(row) for row in ALL])
    own_costs = Costs().costs(np.array([one.indices for one in found]))
    own_harms = np.array([one.score for one in found])
    inside = (costs >= 40.0) & (costs <= 80.0)
    excess = [
        own_harms[own_costs <= limit].min() / harms[inside & (costs <= limit)].min() for limit in range(44, 81, 4)
    ]
    assert np.mean(excess) < 1.2, "at each cost the best of 16 is nearly as good as the best of thousands"
    assert np.ptp(own_costs[:4]) > 15.0, "the first ones cover the range"


def test_a_range_without_schedules_has_no_proposal() -> None:
    costs = np.sort(Costs().costs(ALL))
    gap = int(np.argmax(np.diff(costs[:20])))
    assert screened(limit=costs[gap + 1] - 1e-6, minimum=costs[gap] + 1e-6) == []


def test_equal_seeds_give_equal_proposals() -> None:
    assert screened(3) == screened(3)


def test_few_images_sieve_and_all_decide() -> None:
    seen: list[tuple[tuple[int, ...], int | None]] = []

    def score(indices: np.ndarray, images: int | None) -> float:
        seen.append((tuple(indices.tolist()), images))
        return harm(indices) + (0.0 if images is None else 0.05 * (int(indices.sum()) % 3))

    screening = Screening(space=SPACE, budgets=[budget(60.0)], score=each(score), net=own, few=FEW, seed=0)
    found = screening.run(starts=[], known=[], schedules=60, promoted=3)
    few = [row for row, images in seen if images == FEW]
    assert len(few) == len(set(few)) == 60, "no schedule is scored twice"
    deciding = [row for row, images in seen if images is None]
    assert set(deciding) <= set(few)
    assert len(deciding) == len(set(deciding)) < 30, "most schedules are sieved out on few images"
    assert found[0].score == min(harm(np.array(row)) for row in deciding)


def test_progress_tells_what_decides() -> None:
    """Also while the schedules that few images leave are scored on all."""
    heard: list[tuple[int, str]] = []
    screening = Screening(
        space=SPACE,
        budgets=(budget(60.0, 20.0),),
        score=each(lambda row, _: harm(row)),
        net=own,
        few=FEW,
        seed=0,
        progress=lambda done, status: heard.append((done, status)),
    )
    screening.run(starts=[], known=[], schedules=40, promoted=8)
    done, statuses = zip(*heard, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == len(screening.scores)
    assert [text for text in statuses if text] == [
        "(0 of the best 12 on all images)",
        "(8 of the best 12 on all images)",
    ]
    assert statuses[-1] == ""


def test_schedules_that_are_trials_already_are_not_proposed() -> None:
    first = screened()
    screening = Screening(
        space=SPACE, budgets=[budget(60.0)], score=each(lambda indices, images: harm(indices)), net=own, few=FEW, seed=0
    )
    known = [np.array(one.indices) for one in first]
    second = screening.run(starts=known, known=known, schedules=160, promoted=4)
    assert not {one.indices for one in first} & {one.indices for one in second}
    assert second[0].score >= first[0].score


def test_a_space_without_neighbours_ends() -> None:
    """Every schedule of a tiny space is scored once, and then there is no child left."""
    space = SearchSpace(
        layers=("a", "b"), choices=((Choice(1.0), Choice(0.5)),) * 2, layer_tokens=(10, 10), operator="tome",
        operator_forms=("matched",),
    )  # fmt: skip

    class Few:
        measured = False

        def costs(self, indices: np.ndarray) -> np.ndarray:
            found: np.ndarray = 10.0 - indices.sum(axis=1)
            return found

        def reachable(self) -> tuple[float, float]:
            return 8.0, 10.0

    screening = Screening(
        space=space, budgets=[Budget(name="gflops", table=Few(), limit=9.5)],
        score=each(lambda indices, images: float(indices[0])), net=own, few=FEW, seed=0,
    )  # fmt: skip
    found = screening.run(starts=[], known=[], schedules=50, promoted=10)
    assert {one.indices for one in found} <= {(0, 1), (1, 0), (1, 1)}
    assert found[0].indices == (0, 1)


def test_the_model_orders_schedules_that_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    rows = rng.permutation(ALL)[:200]
    scores = np.array([harm(row) for row in rows])
    model = Surrogate(SPACE)
    model.fit(rows[:100], scores[:100])
    assert kendalltau(model.predict(rows[100:]), scores[100:]).statistic > 0.8


def test_schedules_that_make_one_network_are_scored_once() -> None:
    """The first two choices of the first layer keep the same tokens."""
    seen: list[Hashable] = []

    def net(indices: np.ndarray) -> Hashable:
        return (max(1, int(indices[0])), *indices[1:].tolist())

    def score(indices: np.ndarray, images: int | None) -> float:
        if images is not None:
            seen.append(net(indices))
        return harm(indices)

    screening = Screening(space=SPACE, budgets=[budget(60.0)], score=each(score), net=net, few=FEW, seed=0)
    found = screening.run(starts=[], known=[], schedules=80, promoted=8)
    assert len(seen) == len(set(seen))
    assert len({net(np.array(one.indices)) for one in found}) == 8


def test_of_schedules_that_do_the_same_the_cheapest_is_proposed() -> None:
    """Nothing is read behind the last layer: merging there saves and harms nothing."""

    def score(indices: np.ndarray, images: int | None) -> float:
        return harm(np.array([*indices[:-1], 0]))

    screening = Screening(space=SPACE, budgets=[budget(60.0)], score=each(score), net=own, few=FEW, seed=0)
    found = screening.run(starts=[], known=[], schedules=160, promoted=6)
    assert len({round(one.score, 9) for one in found}) == 6
    same = [row for row in screening.scores if row[:-1] == found[0].indices[:-1]]
    costs = Costs().costs(np.array(same))
    assert Costs().costs(np.array([found[0].indices]))[0] <= costs.max()


def test_baselines_of_sizes_that_are_not_searched_are_no_parents() -> None:
    sized = replace(SPACE, img_sizes=(64, 48, 32), searched_sizes=2)
    tables = [Costs(), Scaled(0.6), Scaled(0.3)]
    limit = Budget(name="gflops", table=SizedCosts(tables=tables, searched=2), limit=50.0)
    scored: list[int] = []

    def score(indices: np.ndarray, images: int | None) -> float:
        scored.append(int(indices[-1]))
        return harm(indices[:-1]) + 0.1 * float(indices[-1])

    screening = Screening(space=sized, budgets=[limit], score=each(score), net=own, few=FEW, seed=0)
    small = np.array([0] * LAYERS + [2])
    found = screening.run(starts=[small], known=[], schedules=80, promoted=4)
    assert set(scored) == {0, 1}
    assert {one.indices[-1] for one in found} <= {0, 1}


def test_about_a_quarter_of_the_search_images_sieves_in_whole_batches_of_64() -> None:
    assert [few_images(number) for number in (20, 64, 200, 256, 512, 2000)] == [20, 64, 64, 64, 128, 512]
    # Four parents, twice at the start; two of each eight of the 85 % that are no start.
    assert scored_images(160, 4, 512) == 160 * 128 + (2 * 4 + 34) * 512
    assert scored_images(160, 4, 512, calibration=32) == 160 * (128 + 32) + (2 * 4 + 34) * (512 + 32)
    assert scored_images(160, 4, 512, ranged=True) == 160 * 128 + 6 * 512
    assert scored_images(160, 4, 512, ranged=True, workers=3) == 54 * 128 + 2 * 512
    assert scored_images(160, 4, 512, workers=2) == 80 * 128 + (4 + 17) * 512
    assert scored_images(160, 4, 512, workers=64) == 20 * 128 + (4 + 17) * 512, "eight and then two at a time"
