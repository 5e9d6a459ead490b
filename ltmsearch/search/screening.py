"""Screening: hundreds of schedules scored with the shared weights as they are, to propose the few that are trained.

An evolution: it starts from baselines and random schedules of the band that the budget asks for, keeps the best as
parents, and takes merging from one layer to give it to another. A model of the scores decides which children are scored
on few images; those that are promising there are scored on all images, and only these are proposed. For a range of
budgets the parents are the front of scores and costs, and the range is divided into parts that get equal shares of the
work. Costs are exact throughout.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltmsearch.costs import Budget, band_schedules, in_budget_range, spread_order, within_budgets
from ltmsearch.costs.budget import BAND, PARTS
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.surrogate import LEAST_SCORE, Surrogate

Row = tuple[int, ...]
"""Choice indices of a schedule, one per layer."""
Scorer = Callable[[Sequence[np.ndarray], int | None], list[float]]
"""Scores of several (L,) choice indices on the first images of the search split, or on all: less is better."""

FEW_SHARE, FEWEST = 1 / 4, 64
"""Share of the search images on which every schedule is scored first, and its least number."""
START_SHARE = 0.15
"""Share of the schedules that are drawn at random from the band, beside the baselines."""
PARENTS = 4
"""Schedules from which children are made: the best on all images."""
CHILDREN = 512
"""Children of which the model chooses, in each generation."""
GENERATION = 8
"""Schedules that are scored between two fits of the model."""
UNGUIDED = 2
"""Of these, children drawn without the model."""
DECIDING = 2
"""Schedules of a generation that are scored on all images, if they are promising; at the start, so many times more."""
PROMISING = 1.02
"""Score on few images up to which a schedule is promising, as a multiple of that of the best one on all images."""
RANGE_START_SHARE = 0.3
"""The same as `START_SHARE` in a range of budgets."""
RANGE_DECIDING = 1.5
"""Schedules that are scored on all images in a range of budgets, as a multiple of those that are proposed."""
SAME_DIGITS = 9
"""Decimals to which scores of schedules that do the same agree."""
MOVES = (1, 1, 2, 3)
"""Numbers of layers that a child takes merging from, to give it to as many others; drawn evenly."""
STARTS_SHARE = 0.5
"""Largest share of the schedules that are given to start from, so that new ones are scored in every round."""


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """A schedule that screening proposes for training."""

    indices: Row
    score: float
    """On all search images, with the weights of the screening."""


@dataclass(kw_only=True)
class Screening:
    """One round of screening.

    Args:
        score: Scores schedules; its calls take nearly all of the time.
        net: Key that is equal for choices that make the same network, such as ratios that keep the same tokens.
        few: Number of images on which every schedule is scored first: see `few_images`.
        progress: Receives the number of schedules scored so far, and what is done besides.
    """

    space: SearchSpace
    budgets: Sequence[Budget]
    score: Scorer
    net: Callable[[np.ndarray], Hashable]
    few: int
    seed: int
    progress: Callable[[int, str], None] = lambda done, status: None

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.scores: dict[Row, float] = {}
        """Schedule → score on few images; of those that make one network, the first."""
        self._nets: dict[Hashable, Row] = {}

    def run(
        self, *, starts: Iterable[np.ndarray], known: Iterable[np.ndarray], schedules: int, promoted: int
    ) -> list[Promoted]:
        """Score about so many schedules on few images, and propose some of them: see `_near_budget`, `_over_range`.

        Args:
            starts: (L,) indices of schedules to start from, such as baselines, the most important first; those outside
                the budgets are left out.
            known: Schedules that need no proposal, since they are trials already.
        """
        tried = {self.net(indices) for indices in known}
        # Baselines may have image sizes that are not searched.
        starts = [row for indices in starts if ((row := np.asarray(indices)) <= self.space.cheapest).all()]
        starts = [start for start in starts if in_budget_range(self.budgets, start[None])[0]]
        starts = starts[: max(1, round(STARTS_SHARE * schedules))]
        search = self._over_range if self.budgets[0].minimum else self._near_budget
        return search(starts, tried, schedules, promoted)

    def _near_budget(
        self, starts: Sequence[np.ndarray], tried: set[Hashable], schedules: int, promoted: int
    ) -> list[Promoted]:
        """The best schedules that cost nearly as much as the budget allows, best first."""
        band = band_schedules(self.space, self.budgets, rng=self.rng)
        lowest = min(BAND * self.budgets[0].limit, float(self.budgets[0].table.costs(band).min()))
        model = Surrogate(self.space)
        end = len(self.scores) + schedules
        drawn = band[: max(GENERATION, round(START_SHARE * schedules))]
        pool: dict[Row, float] = {}
        self._score([*starts, *drawn], pool, end)
        sure = self._decide(pool, {}, DECIDING * max(PARENTS, promoted))
        while len(self.scores) < end:
            before = len(self.scores)
            children = self._children(sorted(sure, key=lambda row: (sure[row], row))[:PARENTS], lowest)
            if len(children):
                model.fit(np.array(list(self.scores)), np.array(list(self.scores.values())))
                guided = children[np.argsort(model.predict(children), kind="stable")]
                made: dict[Row, float] = {}
                self._score([*guided[: GENERATION - UNGUIDED], *children[:UNGUIDED]], made, end)
                best = min(sure, key=lambda row: (sure[row], row))
                promising = {row: few for row, few in made.items() if few <= PROMISING * self.scores[best]}
                sure = self._decide(promising, sure, DECIDING)
                pool |= made
            if len(self.scores) == before:
                break  # every neighbour of the best is known
        # Fewer than are wanted may have been promising.
        new = {row for row in sure if self.net(np.array(row)) not in tried}
        sure = self._decide({r: s for r, s in pool.items() if r not in sure}, sure, max(0, promoted - len(new)))
        return self._new(sure, tried)[:promoted]

    def _over_range(
        self, starts: Sequence[np.ndarray], tried: set[Hashable], schedules: int, promoted: int
    ) -> list[Promoted]:
        """The best schedules of all costs in the range, in an order that covers it ever more finely."""
        band, model = band_schedules(self.space, self.budgets, rng=self.rng), Surrogate(self.space)
        end = len(self.scores) + schedules
        drawn = band[: max(GENERATION, round(RANGE_START_SHARE * schedules))]
        pool: dict[Row, float] = {}
        self._score([*starts, *drawn], pool, end)
        while len(self.scores) < end:
            before = len(self.scores)
            front = [row for row, excess in zip(pool, self._excess(pool, pool), strict=True) if excess <= 0]
            children = self._children(front, self.budgets[0].minimum)
            if len(children):
                model.fit(np.array(list(self.scores)), np.array(list(self.scores.values())))
                expected = dict(zip(map(_row, children), np.exp(model.predict(children)).tolist(), strict=True))
                guided = children[self._by_part(children, self._excess(expected, pool))]
                self._score([*guided[: GENERATION - UNGUIDED], *children[:UNGUIDED]], pool, end)
            if len(self.scores) == before:
                break
        new = {row: score for row, score in pool.items() if self.net(np.array(row)) not in tried}
        if not new:
            return []
        order = self._by_part(np.array(list(new)), self._excess(new, pool))[: round(RANGE_DECIDING * promoted)]
        rows = list(new)
        sure = self._decide({rows[place]: new[rows[place]] for place in order}, {}, len(order))
        if not (found := self._new(sure, tried)):
            return []
        best = np.array([one.indices for one in found])
        chosen = self._by_part(best, self._excess({one.indices: one.score for one in found}, sure))[:promoted]
        by_cost = chosen[np.argsort(self.budgets[0].table.costs(best[chosen]), kind="stable")]
        return [found[by_cost[place]] for place in spread_order(len(by_cost))]

    def _excess(self, scores: Mapping[Row, float], others: Mapping[Row, float]) -> np.ndarray:
        """Logarithm of scores over the best other score that costs no more; at most 0 on the front of the others."""
        table = self.budgets[0].table
        costs, known = table.costs(np.array(list(scores))), table.costs(np.array(list(others)))
        order = np.argsort(known, kind="stable")
        least = np.minimum.accumulate(np.array(list(others.values()))[order])
        place = np.searchsorted(known[order], costs, side="right") - 1
        ratio = np.array(list(scores.values())) / np.where(place < 0, np.inf, least[np.maximum(place, 0)])
        excess: np.ndarray = np.log(np.maximum(ratio, LEAST_SCORE))
        return excess

    def _by_part(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Order of (S, I) schedules by their values: first the least of each part of the range, then the second."""
        first = self.budgets[0]
        share = (first.table.costs(rows) - first.minimum) / (first.limit - first.minimum)
        part = np.minimum(np.floor(share * PARTS), PARTS - 1)
        order = np.argsort(values, kind="stable")
        turn = np.zeros(len(rows), dtype=int)
        for number in np.unique(part):
            members = order[part[order] == number]
            turn[members] = np.arange(len(members))
        return np.lexsort((values, turn))

    def _score(self, rows: Iterable[np.ndarray], pool: dict[Row, float], end: int) -> None:
        """Score schedules on few images, into a pool."""
        found: list[Row] = []
        new: list[Row] = []
        for indices in rows:
            net = self.net(indices)
            if net not in self._nets:
                if len(self.scores) + len(new) >= end:
                    break
                self._nets[net] = _row(indices)
                new.append(self._nets[net])
            found.append(self._nets[net])
        for begin in range(0, len(new), GENERATION):
            part = new[begin : begin + GENERATION]
            self.scores |= zip(part, self.score([np.array(row) for row in part], self.few), strict=True)
            self.progress(len(self.scores), "")
        pool |= {row: self.scores[row] for row in found}

    def _decide(self, pool: dict[Row, float], sure: dict[Row, float], number: int) -> dict[Row, float]:
        """The scores on all images, with those of the best of a pool added."""
        order = sorted((row for row in pool if row not in sure), key=lambda row: (pool[row], row))[:number]
        for begin in range(0, len(order), GENERATION):
            self.progress(len(self.scores), f"({begin} of the best {len(order)} on all images)")
            part = order[begin : begin + GENERATION]
            sure = sure | dict(zip(part, self.score([np.array(row) for row in part], None), strict=True))
        self.progress(len(self.scores), "")
        return sure

    def _new(self, sure: dict[Row, float], tried: set[Hashable]) -> list[Promoted]:
        """Schedules that are no trials yet, best first, of equal scores the cheapest.

        Layers behind which nothing is read merge for nothing.
        """
        rows = np.array(list(sure))
        costs = dict(zip(sure, self.budgets[0].table.costs(rows).tolist(), strict=True))
        found: dict[float, Promoted] = {}
        for row in sorted(sure, key=lambda row: (costs[row], row)):
            indices = np.array(row)
            if self.net(indices) not in tried and in_budget_range(self.budgets, indices[None])[0]:
                found.setdefault(round(sure[row], SAME_DIGITS), Promoted(indices=row, score=sure[row]))
        return sorted(found.values(), key=lambda one: (one.score, one.indices))

    def _children(self, parents: Sequence[Row], lowest: float) -> np.ndarray:
        """(C, I) new schedules within the budgets that cost at least `lowest`, made from parents, in random order."""
        rows = np.array(parents)[self.rng.integers(len(parents), size=CHILDREN)]
        layers, most = rows.shape[1], self.space.cheapest
        movable = np.flatnonzero(most)
        for child in rows:
            for _ in range(self.rng.choice(MOVES)):
                step = 1 if self.rng.random() < 0.7 else 2
                child[self.rng.choice(movable)] -= step
                child[self.rng.choice(movable)] += step
            if self.rng.random() < 0.5:
                child[self.rng.choice(movable)] += self.rng.choice([-1, 1])
        rows = np.unique(np.clip(rows, 0, most), axis=0).reshape(-1, layers)
        rows = rows[within_budgets(self.budgets, rows) & (self.budgets[0].table.costs(rows) >= lowest)]
        rows = rows[self.rng.permutation(len(rows))]
        new = {net: place for place, row in enumerate(rows) if (net := self.net(row)) not in self._nets}
        return rows[list(new.values())]


def _row(indices: np.ndarray) -> Row:
    return tuple(int(i) for i in indices)


def few_images(images: int) -> int:
    """Number of the search images, of so many, on which every schedule is scored first.

    A multiple of `FEWEST`, so that whole batches of them are scored again with all images, and may be shared.
    """
    return min(images, max(1, round(FEW_SHARE * images / FEWEST)) * FEWEST)


def scored_images(
    schedules: int, promoted: int, images: int, *, ranged: bool = False, calibration: int = 0, workers: int = 1
) -> int:
    """About how many images a round of screening puts through networks, one after the other.

    Args:
        images: Search images.
        ranged: Whether there is a range of budgets.
        calibration: Images for BatchNorm statistics, before each score.
        workers: Workers that score at the same time.
    """
    deciding = math.ceil(DECIDING * (max(PARENTS, promoted) + (1 - START_SHARE) * schedules / GENERATION))
    together = DECIDING
    if ranged:
        deciding = min(schedules, round(RANGE_DECIDING * promoted))
        together = min(deciding, GENERATION)
    sieving, deciding = math.ceil(schedules / min(workers, GENERATION)), math.ceil(deciding / min(workers, together))
    return sieving * (few_images(images) + calibration) + deciding * (images + calibration)
