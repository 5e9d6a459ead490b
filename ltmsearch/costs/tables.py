"""Costs that are sums over layers, for multiply-adds and latency, and their tables for a whole space.

The cost of a schedule is that of the plain network plus one difference per layer, which depends on the incoming grid
and the layer's choice.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ltmsearch.merging import get_operator
from ltmsearch.models import Chain, LayerShape
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule


@dataclass(frozen=True, kw_only=True)
class ChainedCosts(ABC):
    """Costs of one backbone at one image size under one operator, in a unit of the subclass."""

    chains: tuple[Chain, ...]
    """Shapes of the layers."""
    operator: str = "ltm"
    default_form: Form
    """Form of layers for which a schedule names none."""
    base: Any
    """Cost of the plain network."""

    @abstractmethod
    def step(self, chain: Chain, layer: LayerShape, grid: Grid, choice: Choice) -> float:
        """Cost of a layer on the incoming `grid`, with its share of the unmerge, less that of the plain layer."""

    @abstractmethod
    def after_chain(self, chain: Chain, grid: Grid) -> float:
        """Cost behind a chain with outgoing `grid`, less that of the plain network, if merges are not undone."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names in the order of execution."""
        return tuple(layer.name for chain in self.chains for layer in chain.layers)

    @property
    def layer_grids(self) -> dict[str, Grid]:
        """Full grid of each layer."""
        return {layer.name: chain.grid for chain in self.chains for layer in chain.layers}

    @property
    def forms(self) -> tuple[Form, ...]:
        """Forms of the operator, the default first."""
        return self.default_form, *(form for form in get_operator(self.operator).forms if form != self.default_form)

    @property
    def sequences(self) -> tuple[tuple[str, ...], ...]:
        """Names of the layers through which merges accumulate, by sequence."""
        return tuple(tuple(layer.name for layer in chain.layers) for chain in self.chains)

    def cost(self, schedule: MergeSchedule) -> Any:
        """Cost of a schedule."""
        total = self.base
        for chain in self.chains:
            grid = chain.grid
            for layer in chain.layers:
                choice = self.choice(schedule, layer.name)
                total += self.step(chain, layer, grid, choice)
                grid = self.outgoing(layer, grid, choice)
            if not chain.unmerges:
                total += self.after_chain(chain, grid)
        return total

    def choice(self, schedule: MergeSchedule, layer: str) -> Choice:
        """A layer's choice in a schedule, with an explicit form."""
        return Choice(schedule.keep_ratio(layer), schedule.form(layer) or self.default_form)

    def outgoing(self, layer: LayerShape, grid: Grid, choice: Choice) -> Grid:
        """The grid to which a choice merges the incoming `grid` of a layer; see `MergeOperator.target`."""
        return layer.target(get_operator(self.operator), grid, choice.keep_ratio, choice.form or self.default_form)

    def target(self, layer: str, choice: Choice) -> Grid:
        """The grid to which a choice merges a layer's full grid."""
        chain, shape = self._found(layer)
        return self.outgoing(shape, chain.grid, choice)

    def _found(self, name: str) -> tuple[Chain, LayerShape]:
        return next((chain, layer) for chain in self.chains for layer in chain.layers if layer.name == name)

    def grids(self, schedule: MergeSchedule) -> dict[str, tuple[Grid, Grid]]:
        """Incoming and outgoing grid of each layer."""
        result = {}
        for chain in self.chains:
            grid = chain.grid
            for layer in chain.layers:
                target = self.outgoing(layer, grid, self.choice(schedule, layer.name))
                result[layer.name] = (grid, target)
                grid = target
        return result

    def tokens(self, schedule: MergeSchedule) -> dict[str, tuple[int, int]]:
        """Number of tokens before and after the merge of each layer, (N, P)."""
        return {name: (tokens(grid), tokens(target)) for name, (grid, target) in self.grids(schedule).items()}

    def kept_shares(self, schedule: MergeSchedule) -> dict[str, float]:
        """Share of its tokens that a layer keeps, P/N, where the keep ratio is a number of tokens to remove."""
        counted = {layer for layer, ratio in schedule.keep_ratios.items() if ratio < 0}
        return {layer: p / n for layer, (n, p) in self.tokens(schedule).items() if layer in counted}

    def tokens_sent(self, schedule: MergeSchedule, layer: str) -> float:
        """Tokens of one image that leave the device after a layer, with those that never merge."""
        chain, shape = self._found(layer)
        return shape.windows * tokens(self.grids(schedule)[layer][1]) + chain.prefix

    def network_key(self, schedule: MergeSchedule) -> Hashable:
        """Key that is equal for schedules with the same grids and forms, which are the same network at this size."""
        if get_operator(self.operator).adaptive:
            return tuple(self.choice(schedule, layer) for layer in self.layers)
        return tuple(
            (grid, target, self.choice(schedule, layer).form if target != grid else None)
            for layer, (grid, target) in self.grids(schedule).items()
        )

    def merge_macs(self, chain: Chain, layer: LayerShape, grid: Grid, choice: Choice) -> int:
        """Multiply-adds of mask, merge and unmerge of a layer; zero if it does not merge."""
        target = self.outgoing(layer, grid, choice)
        if target == grid:
            return 0
        operator, form = get_operator(self.operator), choice.form or self.default_form
        shape = layer.merge_shape(grid, target)
        macs = operator.merge_macs(shape, form)
        if chain.unmerges:
            macs += operator.unmerge_macs(shape, form)
        return layer.windows * macs

    def cost_at_one_layer(self, layer: str, choice: Choice) -> Any:
        """Cost of the network in which only one layer merges."""
        return self.cost(MergeSchedule.uniform([layer], choice.keep_ratio, self.operator, choice.form))

    def reduces_cost(self, layer: str, choice: Choice) -> bool:
        """Whether a merge at only one layer saves more than it costs."""
        return bool(self.cost_at_one_layer(layer, choice) < self.base)

    def table(self, choices: Sequence[Sequence[Choice]]) -> "CostTable":
        """Costs of all schedules with one of `choices[i]` at layer i."""
        step, move, starts = [], [], []
        by_layer = dict(zip(self.layers, choices, strict=True))
        for chain in self.chains:
            entering = [chain.grid]
            for index, layer in enumerate(chain.layers):
                options = by_layer[layer.name]
                targets = [[self.outgoing(layer, grid, option) for option in options] for grid in entering]
                leaving = list(dict.fromkeys(target for row in targets for target in row))
                costs = [[self.step(chain, layer, grid, option) for option in options] for grid in entering]
                if not chain.unmerges and index + 1 == len(chain.layers):
                    for row, row_targets in zip(costs, targets, strict=True):
                        row[:] = [c + self.after_chain(chain, t) for c, t in zip(row, row_targets, strict=True)]
                step.append(np.array(costs))
                move.append(np.array([[leaving.index(target) for target in row] for row in targets]))
                starts.append(index == 0)
                entering = leaving
        return CostTable(base=self.base, step=tuple(step), move=tuple(move), starts=tuple(starts))


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of a finite space, vectorised: schedules are rows of choice indices.

    The possible incoming grids of each layer are numbered. `step[l][g, c]` is the cost of layer l for grid g and choice
    c, less that of the plain layer; `move[l][g, c]` is the number of the outgoing grid at the next layer. Integers
    remain integers.
    """

    base: float
    """Cost of the plain network."""
    step: tuple[np.ndarray, ...]
    """Per layer: (grids in, choices) int64 or float64."""
    move: tuple[np.ndarray, ...]
    """Per layer: (grids in, choices) int64."""
    starts: tuple[bool, ...]
    """Per layer: whether it is the first of a chain, with grid number 0."""
    measured: ClassVar[bool] = False
    """See `Costs`."""

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """(S,) costs of (S, L) choice indices."""
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
        """Smallest and largest cost of the space, by dynamic programming over the grids."""
        return self._extreme(np.min), self._extreme(np.max)

    def _extreme(self, pick: Callable[..., np.ndarray]) -> Any:
        total = np.asarray(self.base)
        rest = np.zeros(0)  # per grid: best cost of the rest of the chain
        layers = list(zip(self.step, self.move, self.starts, strict=True))
        for index, (step, move, start) in reversed(list(enumerate(layers))):
            last = index + 1 == len(layers) or layers[index + 1][2]
            rest = pick(step if last else step + rest[move], axis=1)
            if start:
                total = total + rest[0]
        return total.item()
