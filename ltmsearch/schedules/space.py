"""The search space: possible keep ratios and forms of each layer, and weights of the IB loss.

Read from `search_spaces/<family>.yaml`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ltmsearch.errors import InputError, check_choice, shortened
from ltmsearch.io.presets import find_file
from ltmsearch.io.yaml_models import load
from ltmsearch.schedules.grid import Grid, target_grid, tokens
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule

ZERO_SHARE = 1 / 5
"""Share of an IB weight's range, on a log scale, that means zero."""


def _low_and_high(weights: tuple[float, ...]) -> tuple[float, ...]:
    if len(weights) != 2 or not 1e-6 <= weights[0] < weights[1] <= 1e6:
        raise ValueError("must be [low, high] with 1e-6 <= low < high <= 1e6")
    return weights


KeepRatios = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
Forms = Annotated[tuple[Form, ...], Field(min_length=1)]


class LayerRule(BaseModel):
    """Keep ratios, and optionally forms, of the layers that match a pattern."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pattern: str
    """Layer name or shell pattern, e.g. `stages.2.*`."""
    keep_ratios: KeepRatios
    """Choices; 1.0 (no merge) is always one."""
    forms: Forms | None = None
    """Forms; None: those of the file."""


class SpaceFile(BaseModel):
    """Content of a search-space file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1]
    family: str
    keep_ratios: KeepRatios
    """Choices of layers without a rule."""
    forms: Forms = ("soft", "hard")
    """Forms, for operators with more than one."""
    ib_weight: Annotated[tuple[float, ...], AfterValidator(_low_and_high)] | None = None
    """Lowest and highest weight of the IB loss, besides zero. None: no IB loss."""
    layers: tuple[LayerRule, ...] = ()
    """Exceptions; the first match applies."""

    @classmethod
    def load(cls, name: str | None, *, family: str) -> "SpaceFile":
        """Load a file, or a built-in one by its name; None: that of the family.

        Raises:
            InputError: If it is missing, breaks a rule, or is for another family.
        """
        path = find_file("search_spaces", name or family)
        file = load(cls, path)
        if file.family != family:
            raise InputError(
                f"{path}: family must be that of the backbone, {family}, but got {shortened(repr(file.family))}"
            )
        return file

    def choices_of(self, layer: str) -> tuple[tuple[float, ...], tuple[Form, ...]]:
        """Keep ratios and forms of one layer, as in the file."""
        for rule in self.layers:
            if fnmatchcase(layer, rule.pattern):
                return rule.keep_ratios, self.forms if rule.forms is None else rule.forms
        return self.keep_ratios, self.forms


@dataclass(frozen=True, kw_only=True)
class IBWeights:
    """Possible weights of the IB loss: log-uniform between two limits, or zero.

    Samplers do not support a mixture of a range and a point, so numbers below `low` mean zero.
    """

    low: float
    """Lowest weight except zero."""
    high: float

    @property
    def floor(self) -> float:
        """Smallest number that means zero."""
        return self.low * (self.low / self.high) ** (ZERO_SHARE / (1 - ZERO_SHARE))

    @property
    def zero(self) -> float:
        """Geometric mean of the numbers that mean zero."""
        return math.sqrt(self.floor * self.low)

    def weight(self, number: float) -> float:
        """Weight for a number between `floor` and `high`."""
        return number if number >= self.low else 0.0

    def draw(self, rng: np.random.Generator) -> float:
        """Draw a number, log-uniform."""
        return min(self.high, self.floor * (self.high / self.floor) ** rng.random())


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Layers of one backbone and their choices. A point is one choice index per layer, and an IB weight."""

    layers: tuple[str, ...]
    """Layer names in the order of execution."""
    choices: tuple[tuple[Choice, ...], ...]
    """Choices per layer, from no merge (index 0) to the smallest keep ratio; within a ratio, the soft form first."""
    operator: str = "ltm"
    operator_forms: tuple[Form, ...] = ("soft", "hard", "matched")
    """Forms of the operator; the first is its default."""
    ib_weights: IBWeights | None = None
    """Weights of the IB loss; None: no IB loss."""

    def __post_init__(self) -> None:
        _check_forms(self.operator_forms)

    @classmethod
    def build(
        cls,
        file: SpaceFile,
        layer_grids: Mapping[str, Grid],
        operator: str = "ltm",
        operator_forms: Sequence[Form] = ("soft", "hard", "matched"),
        *,
        reduces_cost: Callable[[str, Choice], bool],
    ) -> "SearchSpace":
        """Build the space of a file for a backbone at one image size.

        Of keep ratios with the same grid of tokens, the nearest to it is kept.

        Args:
            file: The choices.
            layer_grids: Layer name → its full grid, in the order of execution.
            operator: Name of the merging operator.
            operator_forms: Forms of the operator, its default first.
            reduces_cost: Whether a merge at a layer saves more than it costs; other choices are removed.

        Raises:
            InputError: If a rule of the file matches no layer.
        """
        for rule in file.layers:
            if not any(fnmatchcase(layer, rule.pattern) for layer in layer_grids):
                raise InputError(
                    f"patterns of a search space must match a layer of the backbone, but got {rule.pattern!r}; "
                    f"its layers are {', '.join(layer_grids)}"
                )
        return cls(
            layers=tuple(layer_grids),
            choices=tuple(
                tuple(
                    choice
                    for choice in layer_choices(*file.choices_of(layer), grid, operator_forms)
                    if choice.keep_ratio == 1 or reduces_cost(layer, choice)
                )
                for layer, grid in layer_grids.items()
            ),
            operator=operator,
            operator_forms=tuple(operator_forms),
            ib_weights=IBWeights(low=file.ib_weight[0], high=file.ib_weight[1]) if file.ib_weight else None,
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
        """The schedule of (L,) choice indices."""
        taken = {n: options[int(i)] for n, options, i in zip(self.layers, self.choices, indices, strict=True)}
        first = self.operator_forms[0]
        return MergeSchedule(
            keep_ratios={layer: choice.keep_ratio for layer, choice in taken.items()},
            operator=self.operator,
            forms={layer: choice.form for layer, choice in taken.items() if choice.form not in (None, first)},
        )

    def indices(self, schedule: MergeSchedule) -> np.ndarray:
        """(L,) choice indices of a schedule; raises ValueError if the space does not contain it."""
        forms = self.operator_forms
        indices = []
        for layer, options in zip(self.layers, self.choices, strict=True):
            ratio = schedule.keep_ratio(layer)
            several = ratio < 1 and len(forms) > 1
            indices.append(options.index(Choice(ratio, schedule.form(layer) or forms[0] if several else None)))
        return np.array(indices)

    @property
    def forms(self) -> tuple[Form | None, ...]:
        """Forms of all choices, in the operator's order; (None,) if it has only one."""
        offered = {choice.form for options in self.choices for choice in options if choice.keep_ratio < 1}
        return tuple(form for form in self.operator_forms if form in offered) or (None,)

    def nearest(self, keep_ratio: float, form: Form | None = None) -> np.ndarray:
        """(L,) indices of the choice nearest to a keep ratio at every layer, in `form` if that layer offers it."""
        _check_forms(() if form is None else (form,))

        def distance(choice: Choice) -> tuple[float, bool]:
            return abs(choice.keep_ratio - keep_ratio), choice.form != form

        return np.array([options.index(min(options, key=distance)) for options in self.choices])

    def random(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """(number, L) random indices, from no merge to the smallest ratios.

        The layers of a schedule vary around a common level. Schedules of independent draws would nearly all have the
        same cost, and be far too cheap if merges accumulate.
        """
        level = rng.uniform(-0.1, 1.1, size=(number, 1))
        position = np.clip(level + rng.normal(0.0, 0.3, size=(number, len(self.layers))), 0.0, 1.0)
        return np.rint(position * self.cheapest).astype(np.int64)

    def digest(self) -> str:
        """Short hash of layers, choices, operator and IB weights."""
        content: list[Any] = [self.layers, self.choices, self.operator]
        if self.ib_weights is not None:
            content.append([self.ib_weights.low, self.ib_weights.high])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def layer_choices(
    keep_ratios: Sequence[float], forms: Sequence[Form], grid: Grid, operator_forms: Sequence[Form]
) -> tuple[Choice, ...]:
    """Choices of a layer on `grid`: no merge, and each distinct ratio in each form that file and operator share.

    The `forms` of the file are ignored for an operator with a single one.
    """
    _check_forms((*forms, *operator_forms))
    offered: list[Form | None] = [None]
    if len(operator_forms) > 1:
        offered = [form for form in operator_forms if form in forms]
    ratios = [ratio for ratio in distinct_ratios(keep_ratios, grid) if ratio < 1]
    return (Choice(1.0), *(Choice(ratio, form) for ratio in ratios for form in offered))


def _check_forms(forms: Sequence[Form]) -> None:
    for form in forms:
        check_choice("the form of a merge", form, Form)


def distinct_ratios(ratios: Sequence[float], grid: Grid) -> tuple[float, ...]:
    """Keep ratios with different grids, from 1.0 downwards."""
    by_grid: dict[Grid, float] = {grid: 1.0}
    for ratio in sorted(ratios, reverse=True):
        target = target_grid(grid, ratio)
        share = tokens(target) / tokens(grid)
        if target not in by_grid or (target != grid and abs(ratio - share) < abs(by_grid[target] - share)):
            by_grid[target] = ratio
    return tuple(sorted(by_grid.values(), reverse=True))


def colliding_ratios(space: SearchSpace, layer_grids: Mapping[str, Grid]) -> dict[str, list[tuple[float, ...]]]:
    """Groups of keep ratios that have the same grid at another image size, e.g. that of proxy training, by layer.

    `layer_grids`: layer name → its full grid at that size.
    """
    result = {}
    for layer, options in zip(space.layers, space.choices, strict=True):
        groups: dict[Grid, list[float]] = {}
        for ratio in dict.fromkeys(choice.keep_ratio for choice in options):
            groups.setdefault(target_grid(layer_grids[layer], ratio), []).append(ratio)
        same = [tuple(group) for group in groups.values() if len(group) > 1]
        if same:
            result[layer] = same
    return result
