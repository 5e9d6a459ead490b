"""The search space: which keep ratios each layer may take. Read from `search_spaces/<family>.yaml`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from ltmsearch.errors import InputError
from ltmsearch.grid import Grid, target_grid, tokens
from ltmsearch.schedule import MergeSchedule
from ltmsearch.shipped import find_file
from ltmsearch.yamlfile import check, read_yaml

SCHEMA = 1


class LayerRule(BaseModel):
    """Keep ratios of the layers that a pattern matches."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pattern: str
    """Layer name or shell pattern, e.g. `stages.2.*`."""
    keep_ratios: tuple[float, ...]
    """Choices; 1.0 (plain) is always one."""

    @field_validator("keep_ratios")
    @classmethod
    def _in_range(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        return _checked(ratios)


class SpaceFile(BaseModel):
    """What a search-space file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int
    """Version of the format, `SCHEMA`."""
    family: str
    """The family of backbones the file is for."""
    keep_ratios: tuple[float, ...]
    """Choices of every layer that no rule matches."""
    layers: tuple[LayerRule, ...] = ()
    """Exceptions; the first that matches a layer holds."""

    @field_validator("schema_version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version != SCHEMA:
            raise ValueError(f"this ltmsearch reads version {SCHEMA}")
        return version

    @field_validator("keep_ratios")
    @classmethod
    def _in_range(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        return _checked(ratios)

    @classmethod
    def load(cls, name: str) -> "SpaceFile":
        """Read a file, or a shipped one by its name.

        Raises:
            InputError: If it is missing or breaks a rule.
        """
        path = find_file("search_spaces", name)
        return check(cls, read_yaml(path), str(path))

    def ratios_of(self, layer: str) -> tuple[float, ...]:
        """The choices of one layer, as written."""
        for rule in self.layers:
            if layer == rule.pattern or fnmatchcase(layer, rule.pattern):
                return rule.keep_ratios
        return self.keep_ratios


def _checked(ratios: tuple[float, ...]) -> tuple[float, ...]:
    wrong = [ratio for ratio in ratios if not 0 < ratio <= 1]
    if wrong or not ratios:
        raise ValueError("keep ratios must be one or more numbers in (0, 1]")
    return ratios


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Layers of one backbone and the keep ratios each may take. A point is one choice index per layer."""

    layers: tuple[str, ...]
    """Layer names in the order of execution."""
    choices: tuple[tuple[float, ...], ...]
    """Per layer its keep ratios, from 1.0 (index 0, plain) downwards."""
    operator: str = "ltm"
    """Name of the merging operator."""

    @classmethod
    def build(cls, file: SpaceFile, layer_grids: Mapping[str, Grid], operator: str = "ltm") -> "SearchSpace":
        """The space of a file on a backbone at one image size.

        Choices that give the same grid of tokens at a layer are one choice: the nearest to it stays.

        Args:
            file: The choices.
            layer_grids: Layer name → the full grid it sees, in the order of execution.
            operator: Name of the merging operator.

        Raises:
            InputError: If a rule of the file matches no layer.
        """
        for rule in file.layers:
            if not any(fnmatchcase(layer, rule.pattern) for layer in layer_grids):
                raise InputError(f"the search space's pattern {rule.pattern!r} matches no layer of the backbone")
        return cls(
            layers=tuple(layer_grids),
            choices=tuple(distinct_ratios(file.ratios_of(layer), grid) for layer, grid in layer_grids.items()),
            operator=operator,
        )

    @property
    def size(self) -> int:
        """Number of schedules."""
        return int(np.prod([len(options) for options in self.choices], dtype=object))

    @property
    def cheapest(self) -> np.ndarray:
        """(L,) indices of the smallest keep ratio at every layer."""
        return np.array([len(options) - 1 for options in self.choices])

    def schedule(self, indices: Sequence[int] | np.ndarray) -> MergeSchedule:
        """The schedule of one choice index per layer."""
        ratios = {layer: options[int(i)] for layer, options, i in zip(self.layers, self.choices, indices, strict=True)}
        return MergeSchedule(keep_ratios=ratios, operator=self.operator)

    def indices(self, keep_ratios: Mapping[str, float]) -> np.ndarray:
        """(L,) choice indices of keep ratios that the space holds; layers that are not named are plain.

        Raises:
            ValueError: If a keep ratio is not among its layer's choices.
        """
        return np.array(
            [options.index(keep_ratios.get(n, 1.0)) for n, options in zip(self.layers, self.choices, strict=True)]
        )

    def nearest(self, keep_ratio: float) -> np.ndarray:
        """(L,) indices of the choice nearest to one keep ratio at every layer."""
        return np.array([int(np.argmin(np.abs(np.array(options) - keep_ratio))) for options in self.choices])

    def random(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """(number, L) random indices that spread from plain to the smallest ratios.

        Each schedule has a level of its own about which its layers vary. Independent draws per layer would nearly all
        cost about the same, and where merges accumulate nearly all be far too cheap.
        """
        level = rng.uniform(-0.1, 1.1, size=(number, 1))
        position = np.clip(level + rng.normal(0.0, 0.3, size=(number, len(self.layers))), 0.0, 1.0)
        return np.rint(position * self.cheapest).astype(np.int64)

    def digest(self) -> str:
        """Short hash of layers, choices and operator: equal spaces have equal digests."""
        content = json.dumps([self.layers, self.choices, self.operator])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def distinct_ratios(ratios: Sequence[float], grid: Grid) -> tuple[float, ...]:
    """Keep ratios that give different grids, 1.0 first and downwards."""
    by_grid: dict[Grid, float] = {grid: 1.0}
    for ratio in sorted(ratios, reverse=True):
        target = target_grid(grid, ratio)
        share = tokens(target) / tokens(grid)
        if target not in by_grid or (target != grid and abs(ratio - share) < abs(by_grid[target] - share)):
            by_grid[target] = ratio
    return tuple(sorted(by_grid.values(), reverse=True))


def indistinct_choices(space: SearchSpace, layer_grids: Mapping[str, Grid]) -> dict[str, list[tuple[float, ...]]]:
    """Choices of a layer that look alike on other grids, e.g. at the smaller images of proxy training.

    Args:
        space: The space.
        layer_grids: Layer name → its full grid there.

    Returns:
        Layer name → groups of keep ratios that give one grid; layers without such groups are left out.
    """
    result = {}
    for layer, options in zip(space.layers, space.choices, strict=True):
        groups: dict[Grid, list[float]] = {}
        for ratio in options:
            groups.setdefault(target_grid(layer_grids[layer], ratio), []).append(ratio)
        alike = [tuple(group) for group in groups.values() if len(group) > 1]
        if alike:
            result[layer] = alike
    return result
