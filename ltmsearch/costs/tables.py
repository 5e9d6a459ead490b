"""Costs that a schedule changes layer by layer: multiply-adds and latency walk along the same chains.

What a schedule costs is what the plain net costs, plus one difference per layer that depends on the grid that comes in
and the choice that is taken. So a cost is a walk along each chain of layers, and the costs of a whole space are tables.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltmsearch.merging import get_operator
from ltmsearch.models import Chain, LayerShape
from ltmsearch.schedules.grid import Grid, target_grid, tokens
from ltmsearch.schedules.schedule import Choice, MergeSchedule


@dataclass(frozen=True, kw_only=True)
class ChainedCosts(ABC):
    """Costs of one backbone at one image size under one operator. The unit is the subclass's."""

    chains: tuple[Chain, ...]
    """The shapes of its layers."""
    operator: str = "ltm"
    """Name of the merging operator."""

    @property
    @abstractmethod
    def base(self) -> float:
        """Cost of the plain net."""

    @abstractmethod
    def step(self, chain: Chain, layer: LayerShape, grid: Grid, choice: Choice) -> float:
        """What a layer costs more than in the plain net, its share of the unmerge included.

        Args:
            chain: The chain it is in.
            layer: Its shape.
            grid: The grid that comes in.
            choice: What it is.
        """

    @abstractmethod
    def after_chain(self, chain: Chain, grid: Grid) -> float:
        """What the net costs more behind a chain that leaves `grid`, where nothing is undone."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names in the order of execution."""
        return tuple(layer.name for chain in self.chains for layer in chain.layers)

    @property
    def layer_grids(self) -> dict[str, Grid]:
        """The full grid that each layer sees in the plain net."""
        return {layer.name: chain.grid for chain in self.chains for layer in chain.layers}

    def cost(self, schedule: MergeSchedule) -> Any:
        """Cost of a schedule, by a walk along the chains."""
        total: Any = self.base
        for chain in self.chains:
            grid = chain.grid
            for layer in chain.layers:
                choice = self.choice(schedule, layer.name)
                total += self.step(chain, layer, grid, choice)
                grid = target_grid(grid, choice.keep_ratio)
            if not chain.unmerges:
                total += self.after_chain(chain, grid)
        return total

    def choice(self, schedule: MergeSchedule, layer: str) -> Choice:
        """What a schedule makes of a layer, its form named."""
        return Choice(schedule.keep_ratio(layer), schedule.form(layer) or get_operator(self.operator).forms[0])

    def grids(self, schedule: MergeSchedule) -> dict[str, tuple[Grid, Grid]]:
        """For every layer the grid that comes in and the grid that goes on."""
        result = {}
        for chain in self.chains:
            grid = chain.grid
            for layer in chain.layers:
                target = target_grid(grid, schedule.keep_ratio(layer.name))
                result[layer.name] = (grid, target)
                grid = target
        return result

    def tokens(self, schedule: MergeSchedule) -> dict[str, tuple[int, int]]:
        """For every layer the number of tokens before and after its merge, (N, P)."""
        return {name: (tokens(grid), tokens(target)) for name, (grid, target) in self.grids(schedule).items()}

    def network_key(self, schedule: MergeSchedule) -> Hashable:
        """Equal for schedules that are the same network at this image size: same grids, merged in the same forms."""
        return tuple(
            (grid, target, self.choice(schedule, layer).form if target != grid else None)
            for layer, (grid, target) in self.grids(schedule).items()
        )

    def cost_at_one_layer(self, layer: str, choice: Choice) -> Any:
        """Cost of the net in which only one layer takes a choice and all others are plain.

        Raises:
            ValueError: If there is no such layer.
        """
        if layer not in self.layers:
            raise ValueError(f"`layer` must be one of {', '.join(self.layers)}, but got {layer=}.")
        return self.cost(MergeSchedule.uniform([layer], choice.keep_ratio, self.operator, choice.form))

    def reduces_cost(self, layer: str, choice: Choice) -> bool:
        """Whether a merge at one layer alone saves more than it costs."""
        return bool(self.cost_at_one_layer(layer, choice) < self.base)

    def table(self, choices: Sequence[Sequence[Choice]]) -> "CostTable":
        """Costs of all schedules that take one of `choices[i]` at layer i."""
        return CostTable.build(self, choices)


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of a finite space, vectorised: schedules are rows of choice indices.

    The grids that can reach a layer are numbered. `step[l][g, c]` is the cost of layer l when grid g comes in and
    choice c is taken, relative to the plain layer; `move[l][g, c]` is the number, at the next layer, of the grid that
    goes on. Whole numbers stay whole.
    """

    base: float
    """Cost of the plain net."""
    step: tuple[np.ndarray, ...]
    """Per layer: (grids in, choices) int64 or float64."""
    move: tuple[np.ndarray, ...]
    """Per layer: (grids in, choices) int64."""
    starts: tuple[bool, ...]
    """Per layer: whether a new chain begins, on grid number 0."""

    @classmethod
    def build(cls, model: ChainedCosts, choices: Sequence[Sequence[Choice]]) -> "CostTable":
        """Fill the tables.

        Args:
            model: The costs.
            choices: Per layer, in the order of execution, what it may be.

        Raises:
            ValueError: If there is not one list of choices per layer.
        """
        if len(choices) != len(model.layers):
            raise ValueError(f"`choices` must have one entry per layer ({len(model.layers)}), got {len(choices)}.")
        step, move, starts = [], [], []
        by_layer = iter(choices)
        for chain in model.chains:
            entering = [chain.grid]
            for index, layer in enumerate(chain.layers):
                options = next(by_layer)
                targets = [[target_grid(grid, option.keep_ratio) for option in options] for grid in entering]
                leaving = list(dict.fromkeys(target for row in targets for target in row))
                costs = [[model.step(chain, layer, grid, option) for option in options] for grid in entering]
                if not chain.unmerges and index + 1 == len(chain.layers):
                    for row, row_targets in zip(costs, targets, strict=True):
                        row[:] = [c + model.after_chain(chain, t) for c, t in zip(row, row_targets, strict=True)]
                step.append(np.array(costs))
                move.append(np.array([[leaving.index(target) for target in row] for row in targets]))
                starts.append(index == 0)
                entering = leaving
        return cls(base=model.base, step=tuple(step), move=tuple(move), starts=tuple(starts))

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """Costs of many schedules.

        Args:
            indices: (S, L) choice index per schedule and layer.

        Returns:
            (S,), of whole numbers where all costs are.
        """
        total = np.full(len(indices), self.base)
        grid = np.zeros(len(indices), dtype=np.int64)
        for layer, (step, move, start) in enumerate(zip(self.step, self.move, self.starts, strict=True)):
            if start:
                grid[:] = 0
            choice = indices[:, layer]
            total += step[grid, choice]
            grid = move[grid, choice]
        return total

    def reachable(self) -> tuple[Any, Any]:
        """The smallest and the largest cost of any schedule of the space, by dynamic programming over the grids."""
        return self._extreme(np.min), self._extreme(np.max)

    def _extreme(self, pick: Callable[..., np.ndarray]) -> Any:
        total = np.asarray(self.base)
        rest = np.zeros(0)  # per grid: the best cost of the rest of the chain from there on
        layers = list(zip(self.step, self.move, self.starts, strict=True))
        for index, (step, move, start) in reversed(list(enumerate(layers))):
            last = index + 1 == len(layers) or layers[index + 1][2]
            rest = pick(step if last else step + rest[move], axis=1)
            if start:
                total = total + rest[0]
        return total.item()
