"""Screening: hundreds of schedules scored with the shared weights as they are, to propose the few that are trained.

An evolution at equal cost: it starts from baselines and random schedules of the band that the budget asks for, keeps
the best as parents, and takes merging from one layer to give it to another. A model of the scores decides which
children are scored on few images; those that are promising there are scored on all images, and only these become
parents or are proposed. Costs are exact throughout.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ltmsearch.costs import Budget, band_schedules, in_budget_range, within_budgets
from ltmsearch.costs.budget import BAND
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.surrogate import Surrogate

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
LEVELS = 4
"""Budgets at which the screening is aimed, one after the other, in a range of budgets."""
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
        progress: Receives the number of schedules scored so far.
    """

    space: SearchSpace
    budgets: Sequence[Budget]
    score: Scorer
    net: Callable[[np.ndarray], Hashable]
    few: int
    seed: int
    progress: Callable[[int], None] = lambda done: None

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.scores: dict[Row, float] = {}
        """Schedule → score on few images; of those that make one network, the first."""
        self._nets: dict[Hashable, Row] = {}

    def run(
        self, *, starts: Iterable[np.ndarray], known: Iterable[np.ndarray], schedules: int, promoted: int
    ) -> list[Promoted]:
        """Score about so many schedules on few images, and propose some of them, best first at each level.

        Args:
            starts: (L,) indices of schedules to start from, such as baselines, the most important first; those outside
                the budgets are left out.
            known: Schedules that need no proposal, since they are trials already.
        """
        levels = self._levels(promoted)
        tried = {self.net(indices) for indices in known}
        # Baselines may have image sizes that are not searched.
        starts = [row for indices in starts if ((row := np.asarray(indices)) <= self.space.cheapest).all()]
        found: list[Promoted] = []
        for place, budgets in enumerate(levels):
            number = promoted // len(levels) + (place < promoted % len(levels))
            best = self._at_level(budgets, starts, tried, -(-schedules // len(levels)), number)
            tried |= {self.net(np.array(one.indices)) for one in best}
            starts += [np.array(one.indices) for one in best[:1]]
            found += best
        return found

    def _levels(self, promoted: int) -> list[list[Budget]]:
        """The budgets, and for a range those at each level of it, from the highest."""
        first, *others = self.budgets
        if not first.minimum:
            return [list(self.budgets)]
        number = max(1, min(LEVELS, promoted))
        limits = np.linspace(first.limit, first.minimum, number, endpoint=False)
        return [[replace(first, limit=float(limit), minimum=0.0), *others] for limit in limits]

    def _at_level(
        self,
        budgets: Sequence[Budget],
        starts: Sequence[np.ndarray],
        tried: set[Hashable],
        schedules: int,
        promoted: int,
    ) -> list[Promoted]:
        band = band_schedules(self.space, budgets, rng=self.rng)
        # A level near the lower end of a range has a band that reaches below it.
        inside = in_budget_range(self.budgets, band)
        band = band[inside] if inside.any() else band
        lowest = max(min(BAND * budgets[0].limit, float(budgets[0].table.costs(band).min())), self.budgets[0].minimum)
        model = Surrogate(self.space)
        usable = [start for start in starts if within_budgets(budgets, start[None])[0]]
        usable = usable[: max(1, round(STARTS_SHARE * schedules))]
        end = len(self.scores) + schedules
        drawn = band[: max(GENERATION, round(START_SHARE * schedules))]
        pool: dict[Row, float] = {}
        self._score([*usable, *drawn], pool, end)
        sure = self._decide(pool, {}, DECIDING * max(PARENTS, promoted))
        while len(self.scores) < end:
            before = len(self.scores)
            children = self._children(sure, budgets, lowest)
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
        return self._promoted(sure, budgets, tried, promoted)

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
            self.progress(len(self.scores))
        pool |= {row: self.scores[row] for row in found}

    def _decide(self, pool: dict[Row, float], sure: dict[Row, float], number: int) -> dict[Row, float]:
        """The scores on all images, with those of the best of a pool added."""
        order = sorted((row for row in pool if row not in sure), key=lambda row: (pool[row], row))[:number]
        return sure | dict(zip(order, self.score([np.array(row) for row in order], None), strict=True))

    def _promoted(
        self, sure: dict[Row, float], budgets: Sequence[Budget], tried: set[Hashable], number: int
    ) -> list[Promoted]:
        """The best schedules, of equal scores the cheapest: layers behind which nothing is read merge for nothing."""
        rows = np.array(list(sure))
        costs = dict(zip(sure, budgets[0].table.costs(rows).tolist(), strict=True))
        found: dict[float, Promoted] = {}
        for row in sorted(sure, key=lambda row: (costs[row], row)):
            indices = np.array(row)
            if self.net(indices) not in tried and in_budget_range(self.budgets, indices[None])[0]:
                found.setdefault(round(sure[row], SAME_DIGITS), Promoted(indices=row, score=sure[row]))
        return sorted(found.values(), key=lambda one: (one.score, one.indices))[:number]

    def _children(self, pool: dict[Row, float], budgets: Sequence[Budget], lowest: float) -> np.ndarray:
        """(C, I) new schedules of the band, made from the best of the pool, in random order."""
        parents = np.array(sorted(pool, key=lambda row: (pool[row], row))[:PARENTS])
        rows = parents[self.rng.integers(len(parents), size=CHILDREN)]
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
        rows = rows[within_budgets(budgets, rows) & (budgets[0].table.costs(rows) >= lowest)]
        rows = rows[self.rng.permutation(len(rows))]
        new = {net: place for place, row in enumerate(rows) if (net := self.net(row)) not in self._nets}
        return rows[list(new.values())]


def _row(indices: np.ndarray) -> Row:
    return tuple(int(i) for i in indices)


def few_images(images: int) -> int:
    """Number of the search images, of so many, on which every schedule is scored first."""
    return min(images, max(FEWEST, round(FEW_SHARE * images)))


def scored_images(schedules: int, promoted: int, images: int, *, calibration: int = 0, workers: int = 1) -> int:
    """About how many images a round of screening puts through networks, one after the other.

    Args:
        images: Search images.
        calibration: Images for BatchNorm statistics, before each score.
        workers: Workers that score at the same time.
    """
    deciding = math.ceil(DECIDING * (max(PARENTS, promoted) + (1 - START_SHARE) * schedules / GENERATION))
    sieving, deciding = math.ceil(schedules / min(workers, GENERATION)), math.ceil(deciding / min(workers, DECIDING))
    return sieving * (few_images(images) + calibration) + deciding * (images + calibration)
