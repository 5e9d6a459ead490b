"""Exact multiply-adds of any schedule in microseconds, without building or tracing a subnet.

The plain net is traced once. What a schedule changes is the sum, over its layers, of terms that depend on the grid that
comes in and the grid that goes on, so that the whole cost is a walk along each chain of layers. The result equals
fvcore's count of the built subnet as an integer.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ltmsearch.backbones import Chain, LayerShape, create_backbone, get_adapter, operators_of
from ltmsearch.costs.traced import traced_macs
from ltmsearch.grid import Grid, target_grid, tokens
from ltmsearch.merging import MergeOperator, get_operator
from ltmsearch.schedule import Choice, MergeSchedule

GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Costs of one backbone at one image size under one operator."""

    base_macs: int
    """Multiply-adds of the plain net."""
    chains: tuple[Chain, ...]
    """The shapes of its layers."""
    operator: str = "ltm"
    """Name of the merging operator."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names in the order of execution."""
        return tuple(layer.name for chain in self.chains for layer in chain.layers)

    @property
    def layer_grids(self) -> dict[str, Grid]:
        """The full grid that each layer sees in the plain net."""
        return {layer.name: chain.grid for chain in self.chains for layer in chain.layers}

    def macs(self, schedule: MergeSchedule) -> int:
        """Multiply-adds of one image under a schedule, an exact integer."""
        operator = get_operator(self.operator)
        total = self.base_macs
        for chain in self.chains:
            grid = chain.grid
            for layer in chain.layers:
                choice = Choice(schedule.keep_ratio(layer.name), schedule.form(layer.name) or operator.forms[0])
                target = target_grid(grid, choice.keep_ratio)
                total += layer_macs(chain, layer, operator, grid, choice) - plain_macs(layer, chain.grid)
                grid = target
            if not chain.unmerges:
                total += chain.macs_behind(grid) - chain.macs_behind(chain.grid)
        return total

    def gflops(self, schedule: MergeSchedule) -> float:
        """`macs` in units of 1e9."""
        return self.macs(schedule) / GIGA

    def plain_layer_macs(self) -> dict[str, int]:
        """What each layer costs in the plain net."""
        return {layer.name: plain_macs(layer, chain.grid) for chain in self.chains for layer in chain.layers}

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

    def merge_balance(self, layer: str, choice: Choice) -> tuple[int, int]:
        """What a merge at one layer alone costs, and what it saves behind itself.

        Args:
            layer: Its name.
            choice: Keep ratio and form.

        Returns:
            Multiply-adds of mask, merge and unmerge, and those that the plain net computes more than this one beside
            them.
        """
        operator = get_operator(self.operator)
        for chain in self.chains:
            for shape in chain.layers:
                if shape.name == layer:
                    overhead = merge_macs(chain, shape, operator, chain.grid, choice)
                    schedule = MergeSchedule.uniform([layer], choice.keep_ratio, self.operator, choice.form)
                    return overhead, self.base_macs - self.macs(schedule) + overhead
        raise ValueError(f"`layer` must be one of {', '.join(self.layers)}, but got {layer=}.")

    def pays(self, layer: str, choice: Choice) -> bool:
        """Whether a merge at one layer alone saves more than it costs."""
        overhead, saved = self.merge_balance(layer, choice)
        return saved > overhead

    def net(self, schedule: MergeSchedule) -> Hashable:
        """Equal for schedules that are the same network at this image size: same grids, merged in the same forms."""
        first = get_operator(self.operator).forms[0]
        return tuple(
            (grid, target, (schedule.form(layer) or first) if target != grid else None)
            for layer, (grid, target) in self.grids(schedule).items()
        )

    def table(self, choices: Sequence[Sequence[Choice]]) -> "CostTable":
        """Costs of all schedules that take one of `choices[i]` at layer i."""
        return CostTable.build(self, choices)


def plain_macs(layer: LayerShape, grid: Grid) -> int:
    """Cost of a layer that does not merge."""
    return layer.macs_before(grid) + layer.macs_after(grid)


def layer_macs(chain: Chain, layer: LayerShape, operator: type[MergeOperator], grid: Grid, choice: Choice) -> int:
    """Cost of a layer on `grid` that takes a choice, its share of the unmerge included."""
    target = target_grid(grid, choice.keep_ratio)
    return layer.macs_before(grid) + layer.macs_after(target) + merge_macs(chain, layer, operator, grid, choice)


def merge_macs(chain: Chain, layer: LayerShape, operator: type[MergeOperator], grid: Grid, choice: Choice) -> int:
    """Cost of the mask, the merge and the unmerge of a layer, zero where nothing merges."""
    target = target_grid(grid, choice.keep_ratio)
    if target == grid:
        return 0
    shape, form = layer.merge_shape(grid, target), choice.form or operator.forms[0]
    macs = operator.merge_macs(shape, form)
    if chain.unmerges:
        macs += operator.unmerge_macs(shape, form)
    return layer.windows * macs


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of a finite space, vectorised: schedules are rows of choice indices.

    The grids that can reach a layer are numbered. `step[l][g, c]` is the cost of layer l when grid g comes in and
    choice c is taken, relative to the plain layer; `move[l][g, c]` is the number, at the next layer, of the grid that
    goes on.
    """

    base_macs: int
    """Multiply-adds of the plain net."""
    step: tuple[np.ndarray, ...]
    """Per layer: (grids in, choices) int64."""
    move: tuple[np.ndarray, ...]
    """Per layer: (grids in, choices) int64."""
    starts: tuple[bool, ...]
    """Per layer: whether a new chain begins, on grid number 0."""

    @classmethod
    def build(cls, model: CostModel, choices: Sequence[Sequence[Choice]]) -> "CostTable":
        """Fill the tables.

        Args:
            model: The cost model.
            choices: Per layer, in the order of execution, what it may be.

        Raises:
            ValueError: If there is not one list of choices per layer.
        """
        if len(choices) != len(model.layers):
            raise ValueError(f"`choices` must have one entry per layer ({len(model.layers)}), got {len(choices)}.")
        operator = get_operator(model.operator)
        step, move, starts = [], [], []
        by_layer = iter(choices)
        for chain in model.chains:
            entering = [chain.grid]
            for index, layer in enumerate(chain.layers):
                options = next(by_layer)
                plain = plain_macs(layer, chain.grid)
                targets = [[target_grid(grid, option.keep_ratio) for option in options] for grid in entering]
                leaving = list(dict.fromkeys(target for row in targets for target in row))
                costs = [
                    [layer_macs(chain, layer, operator, grid, option) - plain for option in options]
                    for grid in entering
                ]
                if not chain.unmerges and index + 1 == len(chain.layers):
                    full = chain.macs_behind(chain.grid)
                    for row, row_targets in zip(costs, targets, strict=True):
                        row[:] = [c + chain.macs_behind(t) - full for c, t in zip(row, row_targets, strict=True)]
                step.append(np.array(costs, dtype=np.int64))
                move.append(np.array([[leaving.index(target) for target in row] for row in targets]))
                starts.append(index == 0)
                entering = leaving
        return cls(base_macs=model.base_macs, step=tuple(step), move=tuple(move), starts=tuple(starts))

    def macs(self, indices: np.ndarray) -> np.ndarray:
        """Multiply-adds of many schedules.

        Args:
            indices: (S, L) choice index per schedule and layer.

        Returns:
            (S,) int64.
        """
        total = np.full(len(indices), self.base_macs, dtype=np.int64)
        grid = np.zeros(len(indices), dtype=np.int64)
        for layer, (step, move, start) in enumerate(zip(self.step, self.move, self.starts, strict=True)):
            if start:
                grid[:] = 0
            choice = indices[:, layer]
            total += step[grid, choice]
            grid = move[grid, choice]
        return total

    def reachable(self) -> tuple[int, int]:
        """The smallest and the largest cost of any schedule of the space, by dynamic programming over the grids."""
        return self._extreme(np.min), self._extreme(np.max)

    def _extreme(self, pick: Callable[..., np.ndarray]) -> int:
        total = self.base_macs
        rest = np.zeros(0, dtype=np.int64)  # per grid: the best cost of the rest of the chain from there on
        layers = list(zip(self.step, self.move, self.starts, strict=True))
        for index, (step, move, start) in reversed(list(enumerate(layers))):
            last = index + 1 == len(layers) or layers[index + 1][2]
            rest = pick(step if last else step + rest[move], axis=1)
            if start:
                total += int(rest[0])
        return total


def cost_model(backbone: str, model: nn.Module, img_size: Grid, operator: str = "ltm") -> CostModel:
    """Trace a net once and read off the shapes of its layers.

    Args:
        backbone: timm name.
        model: The backbone, plain or with operators that are all inactive, with its final classifier.
        img_size: (rows, columns) in pixels.
        operator: Name of the merging operator whose costs are wanted.

    Raises:
        ValueError: If some layer of the model merges.
    """
    adapter = get_adapter(backbone)
    active = [name for name, op in operators_of(model, adapter.layers(model)).items() if op.keep_ratio < 1]
    if active:
        raise ValueError(f"`model` must be plain to be traced as the base, but it merges at {', '.join(active)}.")
    get_operator(operator)
    return CostModel(base_macs=traced_macs(model, img_size), chains=adapter.chains(model, img_size), operator=operator)


def backbone_costs(backbone: str, img_size: int, operator: str = "ltm", **timm_kwargs: Any) -> CostModel:
    """The cost model of a backbone at square images, from timm's plain net built anew.

    Args:
        backbone: timm name.
        img_size: Side in pixels.
        operator: Name of the merging operator whose costs are wanted.
        timm_kwargs: Passed to `timm.create_model`, e.g. `num_classes`.

    Raises:
        InputError: For an unknown backbone or operator.
    """
    get_operator(operator)
    model = create_backbone(backbone, img_size=img_size, **get_adapter(backbone).any_size, **timm_kwargs)
    return cost_model(backbone, model, (img_size, img_size), operator)
