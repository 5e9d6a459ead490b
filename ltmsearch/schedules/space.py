"""The search space: possible keep ratios and forms of each layer, and weights of the IB loss."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np

from ltmsearch.errors import InputError, check_choice
from ltmsearch.schedules.grid import Grid, kept_share, on_grid, tokens
from ltmsearch.schedules.schedule import THRESHOLDS, Choice, Form, MergeSchedule
from ltmsearch.schedules.space_file import Offer, SpaceFile

IMG_SIZE = "img_size"
"""Name of the index of the image size; no layer is called so."""
ZERO_SHARE = 1 / 5
"""Share of an IB weight's range, on a log scale, that means zero."""


class Layers(Protocol):
    """What a space must know of a backbone at one image size."""

    @property
    def operator(self) -> str:
        """Name of the merging operator."""
        ...

    @property
    def forms(self) -> tuple[Form, ...]:
        """Forms of the operator, the default first."""
        ...

    @property
    def layer_grids(self) -> dict[str, Grid]:
        """Layer name → its full grid, in the order of execution."""
        ...

    @property
    def sequences(self) -> tuple[tuple[str, ...], ...]:
        """Names of the layers through which merges accumulate, by sequence."""
        ...

    def target(self, layer: str, choice: Choice) -> Grid:
        """The grid to which a choice merges a layer's full grid."""
        ...

    def reduces_cost(self, layer: str, choice: Choice) -> bool:
        """Whether a merge at only one layer saves more than it costs."""
        ...


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
    """Layers of one backbone and their choices. A point is one choice index per layer, and an IB weight.

    Shapes: L layers; I indices of a schedule, L or with image sizes L + 1.
    """

    layers: tuple[str, ...]
    """Layer names in the order of execution."""
    choices: tuple[tuple[Choice, ...], ...]
    """Choices per layer, from no merge (index 0) to the fewest tokens; of one number, the default form first."""
    layer_tokens: tuple[int, ...]
    """Tokens of each layer's full grid."""
    operator: str = "ltm"
    operator_forms: tuple[Form, ...] = ("soft", "hard", "matched", "gradient")
    """Forms of the operator; the first is the default."""
    ib_weights: IBWeights | None = None
    """Weights of the IB loss; None: no IB loss."""
    img_sizes: tuple[int, ...] = ()
    """Image sides in pixels, the network's own first, if there are smaller ones: then a schedule has one more index,
    behind those of the layers. Sizes that are searched come before those that only baselines have."""
    searched_sizes: int = 1
    """Number of the sizes that are searched, the network's own included."""

    def __post_init__(self) -> None:
        _check_forms(self.operator_forms)

    @classmethod
    def build(
        cls, file: SpaceFile, layers: Layers, *, reduces_cost: Callable[[str, Choice], bool] | None = None
    ) -> "SearchSpace":
        """Build the space of a file for a backbone at one image size.

        Of keep ratios that keep the same tokens, the nearest to their share is kept.

        Args:
            file: The choices.
            layers: The backbone's layers, such as its cost model.
            reduces_cost: Whether a merge at a layer saves more than it costs; other choices are removed. None: that of
                `layers`.

        Raises:
            InputError: If a rule of the file matches no layer, or offers forms that cannot follow each other.
        """
        grids, worthwhile = layers.layer_grids, reduces_cost or layers.reduces_cost
        for rule in file.layers:
            if not any(fnmatchcase(layer, rule.pattern) for layer in grids):
                raise InputError(
                    f"patterns of a search space must match a layer of the backbone, but got {rule.pattern!r}; "
                    f"its layers are {', '.join(grids)}"
                )
        choices = {
            layer: tuple(
                choice
                for choice in layer_choices(layers, layer, file.choices_of(layer, layers.operator))
                if choice.keep_ratio == 1 or worthwhile(layer, choice)
            )
            for layer in grids
        }
        for sequence in layers.sequences:
            _check_sequence(layers, {layer: choices[layer] for layer in sequence})
        return cls(
            layers=tuple(grids),
            choices=tuple(choices.values()),
            layer_tokens=tuple(map(tokens, grids.values())),
            operator=layers.operator,
            operator_forms=layers.forms,
            ib_weights=IBWeights(low=file.ib_weight[0], high=file.ib_weight[1]) if file.ib_weight else None,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each index of a schedule: its layer, or `IMG_SIZE`."""
        return (*self.layers, *([IMG_SIZE] if self.img_sizes else []))

    @property
    def options(self) -> tuple[int, ...]:
        """Number of values of each index, those included that only baselines have."""
        return (*map(len, self.choices), *([len(self.img_sizes)] if self.img_sizes else []))

    @property
    def size(self) -> int:
        """Number of schedules that are searched."""
        return int(np.prod([len(options) for options in self.choices], dtype=object)) * self.searched_sizes

    @property
    def plain(self) -> np.ndarray:
        """(I,) indices of the plain network."""
        return np.zeros(len(self.names), dtype=int)

    @property
    def cheapest(self) -> np.ndarray:
        """(I,) indices of the choice that keeps the fewest tokens of its full grid, at every layer, and the last size
        that is searched."""
        sizes = [self.searched_sizes - 1] if self.img_sizes else []
        return np.array([len(options) - 1 for options in self.choices] + sizes)

    def schedule(self, indices: Sequence[int] | np.ndarray) -> MergeSchedule:
        """The schedule of (I,) choice indices."""
        own = indices[: len(self.layers)]
        taken = {n: options[int(i)] for n, options, i in zip(self.layers, self.choices, own, strict=True)}
        size = int(indices[-1]) if self.img_sizes else 0
        return MergeSchedule(
            keep_ratios={layer: choice.keep_ratio for layer, choice in taken.items()},
            operator=self.operator,
            forms={layer: choice.form for layer, choice in taken.items() if choice.form is not None},
            img_size=self.img_sizes[size] if size else None,
        )

    def indices(self, schedule: MergeSchedule) -> np.ndarray:
        """(I,) choice indices of a schedule; raises ValueError if the space does not contain it."""
        forms = self.operator_forms
        indices = []
        for layer, options in zip(self.layers, self.choices, strict=True):
            ratio = schedule.keep_ratio(layer)
            several = ratio < 1 and len(forms) > 1
            indices.append(options.index(Choice(ratio, schedule.form(layer) or forms[0] if several else None)))
        if self.img_sizes:
            indices.append(self.img_sizes.index(schedule.img_size or self.img_sizes[0]))
        return np.array(indices)

    @property
    def forms(self) -> tuple[Form | None, ...]:
        """Forms of all choices, in the operator's order; (None,) if it has only one."""
        offered = {choice.form for options in self.choices for choice in options if choice.keep_ratio < 1}
        return tuple(form for form in self.operator_forms if form in offered) or (None,)

    def nearest(self, keep_ratio: float, form: Form | None = None) -> np.ndarray:
        """(I,) indices of the choice nearest to a keep ratio at every layer, in `form` if that layer offers it."""
        found = [self.nearest_choice(layer, keep_ratio, form) for layer in range(len(self.layers))]
        return np.array(found + [0] * bool(self.img_sizes))

    def nearest_choice(self, layer: int, keep_ratio: float, form: Form | None = None, *, merging: bool = False) -> int:
        """Index of one layer's choice whose share of kept tokens is nearest to that of a keep ratio.

        Of choices with this share, one in `form` comes first, then one with the very ratio. `merging`: leave the plain
        layer out, unless it is the only choice.
        """
        _check_forms(() if form is None else (form,))
        n, options = self.layer_tokens[layer], self.choices[layer]
        wanted = kept_share(n, keep_ratio)

        def distance(index: int) -> tuple[float, bool, bool]:
            ratio, own = options[index]
            return abs(kept_share(n, ratio) - wanted), own != form, ratio != keep_ratio

        return min(range(1 if merging and len(options) > 1 else 0, len(options)), key=distance)

    def random(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """(number, I) random indices, from no merge to the smallest ratios.

        The layers of a schedule vary around a common level. Schedules of independent draws would nearly all have the
        same cost, and be far too cheap if merges accumulate. Image sizes are drawn evenly.
        """
        level = rng.uniform(-0.1, 1.1, size=(number, 1))
        position = np.clip(level + rng.normal(0.0, 0.3, size=(number, len(self.layers))), 0.0, 1.0)
        rows = np.rint(position * self.cheapest[: len(self.layers)]).astype(np.int64)
        if not self.img_sizes:
            return rows
        return np.concatenate([rows, rng.integers(self.searched_sizes, size=(number, 1))], axis=1)

    def digest(self) -> str:
        """Short hash of layers, choices, operator, image sizes and IB weights."""
        content: list[Any] = [self.layers, self.choices, self.operator]
        if self.ib_weights is not None:
            content.append([self.ib_weights.low, self.ib_weights.high])
        if self.img_sizes:
            content.append([self.img_sizes, self.searched_sizes])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def layer_choices(layers: Layers, layer: str, offer: Offer) -> tuple[Choice, ...]:
    """Choices of a layer: no merge, and each form that file and operator share with each number of tokens it keeps.

    From the most tokens to the fewest. The forms of the file are ignored for an operator with a single one.
    """
    _check_forms((*offer.forms, *layers.forms))
    offered = [form for form in layers.forms if form in offer.forms] if len(layers.forms) > 1 else [layers.forms[0]]
    if layers.operator in THRESHOLDS:  # each is a choice of its own, since what it keeps depends on the image
        return (Choice(1.0), *(Choice(value) for value in sorted(set(offer.keep_ratios) - {1.0}, reverse=True)))
    found = []
    for place, form in enumerate(offered):
        for ratio, target in _distinct_ratios(offer.keep_ratios, layers, layer, form).items():
            choice = Choice(ratio, form if len(layers.forms) > 1 else None)
            found.append((-tokens(target), place, choice))
    return (Choice(1.0), *(choice for *_, choice in sorted(found)))


def _check_forms(forms: Sequence[Form]) -> None:
    for form in forms:
        check_choice("the form of a merge", form, Form)


def _distinct_ratios(ratios: Sequence[float], layers: Layers, layer: str, form: Form) -> dict[float, Grid]:
    """Keep ratios below 1 that merge a layer's full grid to different grids, and these grids.

    Behind a merge that leaves the grid a layer gets fewer tokens, of which ratios and numbers that agree on the full
    grid keep different ones: there all are distinct.
    """
    grid = layers.layer_grids[layer]
    n = tokens(grid)
    first = any(layer == sequence[0] for sequence in layers.sequences)
    by_grid: dict[tuple[Grid, float], tuple[float, float]] = {}
    for ratio in sorted(ratios, reverse=True):  # counts, which are negative, behind shares
        target = layers.target(layer, Choice(ratio, form))
        off = abs(kept_share(n, ratio) - tokens(target) / n)
        key = (target, 0.0 if first or on_grid(target) else ratio)
        if target != grid and (key not in by_grid or off < by_grid[key][0]):
            by_grid[key] = off, ratio
    return {ratio: target for (target, _), (_, ratio) in by_grid.items()}


def _check_sequence(layers: Layers, choices: dict[str, tuple[Choice, ...]]) -> None:
    """Raise an InputError if merges accumulate and one that needs a grid can follow one that leaves it."""
    left: tuple[str, Choice] | None = None
    for layer, options in choices.items():
        for choice in options[1:]:
            stays = on_grid(layers.target(layer, choice))
            if stays and left is not None and left[0] != layer:
                raise InputError(
                    f"forms of a search space must not need a grid behind a form that leaves it, but {layer} offers "
                    f"{choice.form} behind {left[1].form} at {left[0]}, whose merges it builds on: give these layers "
                    "forms that all keep the grid (soft, hard, gradient) or only matched"
                )
        left = left or next(((layer, c) for c in options[1:] if not on_grid(layers.target(layer, c))), None)


def colliding_ratios(space: SearchSpace, layers: Layers) -> dict[str, list[tuple[float, ...]]]:
    """Groups of keep ratios that keep the same tokens at another image size, e.g. that of proxy training, by layer.

    `layers`: the backbone at that size. Layers behind a merge that leaves the grid get other numbers of tokens than the
    full grid has, and are left out.
    """
    result: dict[str, list[tuple[float, ...]]] = {}
    if space.operator in THRESHOLDS:
        return result
    for layer, options in zip(space.layers, space.choices, strict=True):
        if any(layer in sequence[1:] for sequence in layers.sequences) and not all(
            on_grid(layers.target(layer, choice)) for choice in options
        ):
            continue
        groups: dict[tuple[Form, Grid], list[float]] = {}
        for choice in options:
            # No merge, which has no form, is the same network as a ratio that keeps the whole grid.
            forms = space.forms if choice.keep_ratio == 1 else (choice.form,)
            for form in (form or space.operator_forms[0] for form in forms):
                target = layers.target(layer, Choice(choice.keep_ratio, form))
                groups.setdefault((form, target), []).append(choice.keep_ratio)
        same = dict.fromkeys(tuple(group) for group in groups.values() if len(group) > 1)
        if same:
            result[layer] = list(same)
    return result
