"""Baselines that a careful person would set by hand, fitted to the budget from below.

One ratio for all layers in every form, one number of tokens for all layers (ToMe's r), one ratio for the first layers
only, the plain network on smaller images, and one ratio for all layers on smaller images. Their ratios become choices
of the search space, so that a baseline is a point of it like any other, and the search may use them too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from ltmsearch.costs import CostModel
from ltmsearch.schedules.grid import tokens
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile

RATIOS = np.round(np.arange(0.9975, 0.05, -0.0025), 4)
"""Ratios that are tried; steps of a quarter percent are finer than a token of any usual network."""
EARLY_SHARES = (0.25, 0.5)
"""Shares of the layers, counted from the first, that merge in the last kind of baseline."""
RANGE_LEVELS = 4
"""Budgets in a range to which one ratio for all layers is fitted, the ends included."""
NEAR = 0.8
"""A baseline costs at least this share of its budget; one that cannot is left out."""


class Baseline(BaseModel):
    """A choice for the first layers, or for all, on images of a size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    keep_ratio: float
    form: Form | None = None
    first_layers: int | None = None
    """Number of layers that merge; None: all."""
    img_size: int | None = None
    """Image side in pixels; None: the network's own."""

    def indices(self, space: SearchSpace) -> np.ndarray:
        """(I,) choice indices; a layer without the choice has the nearest one, or does not merge."""
        merging = len(space.layers) if self.first_layers is None else self.first_layers
        found = space.plain
        if self.img_size is not None:
            found[-1] = space.img_sizes.index(self.img_size)
        if self.keep_ratio == 1:
            return found
        for place, options in enumerate(space.choices[:merging]):
            wanted = Choice(self.keep_ratio, self.form if len(space.operator_forms) > 1 else None)
            exact = options.index(wanted) if wanted in options else None
            found[place] = space.nearest_choice(place, self.keep_ratio, self.form) if exact is None else exact
        return found


def fit_baselines(
    file: SpaceFile, costs: CostModel, budget: float, lowest: float | None, smaller: Mapping[int, CostModel]
) -> list[Baseline]:
    """The baselines of a budget, in multiply-adds; those of the highest, and one ratio per level, of a range.

    Args:
        file: Its layers and forms count, but not its ratios.
        costs: Costs at the image size of the budget.
        budget: Most multiply-adds.
        lowest: Lower end of a range of budgets; None: a single budget.
        smaller: Costs at smaller image sizes, from the largest.
    """
    fitted = BaselineFit(file, costs)
    levels = [budget] if lowest is None else list(np.linspace(budget, lowest, RANGE_LEVELS))
    found = [one for form in fitted.forms for level in levels for one in fitted.uniform(level, form)]
    found += [*fitted.count(budget), *(one for share in EARLY_SHARES for one in fitted.early(budget, share))]
    found += _on_smaller_images(file, smaller, budget)
    return list({(one.keep_ratio, one.form, one.first_layers, one.img_size): one for one in found}.values())


def _on_smaller_images(file: SpaceFile, smaller: Mapping[int, CostModel], budget: float) -> Iterator[Baseline]:
    """The plain network on the largest images within the budget, and one ratio at each size above it."""
    for size, costs in smaller.items():
        if costs.base <= budget:
            yield Baseline(label=f"plain at {size} px", keep_ratio=1.0, img_size=size)
            return
        fit = BaselineFit(file, costs)
        for one in fit.uniform(budget, fit.forms[0]):
            yield one.model_copy(update={"label": f"{one.label} at {size} px", "img_size": size})


def with_choices(file: SpaceFile, baselines: Sequence[Baseline]) -> SpaceFile:
    """The same file, with the baselines' ratios and numbers as further choices of every layer that may merge."""
    ratios = tuple(dict.fromkeys(one.keep_ratio for one in baselines if 0 < one.keep_ratio < 1))
    counts = tuple(dict.fromkeys(int(one.keep_ratio) for one in baselines if one.keep_ratio < 0))

    def widened(keep_ratios: tuple[float, ...], keep_counts: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
        if set(keep_ratios + keep_counts) == {1.0}:
            return {}
        return {
            "keep_ratios": tuple(dict.fromkeys(keep_ratios + ratios)),
            "keep_counts": tuple(dict.fromkeys(keep_counts + counts)),
        }

    rules = tuple(rule.model_copy(update=widened(rule.keep_ratios, rule.keep_counts)) for rule in file.layers)
    return file.model_copy(update=widened(file.keep_ratios, file.keep_counts) | {"layers": rules})


class BaselineFit:
    """Fits one kind of baseline after the other."""

    def __init__(self, file: SpaceFile, costs: CostModel) -> None:
        self.file, self.costs = file, costs
        self.offers = {layer: file.choices_of(layer, costs.operator) for layer in costs.layers}
        offered = {form for offer in self.offers.values() for form in offer.forms}
        several = len(costs.forms) > 1
        self.forms: tuple[Form | None, ...] = tuple(f for f in costs.forms if f in offered) if several else (None,)
        self._saves: dict[tuple[str, float, Form | None], bool] = {}
        self._ladders: dict[tuple[float, Form | None, int], list[tuple[int, float]]] = {}

    def schedule(self, baseline: Baseline) -> MergeSchedule:
        """The schedule of a baseline at the image size of the costs: layers that save nothing do not merge."""
        layers = self.costs.layers[: baseline.first_layers]
        found = self._schedule(baseline.keep_ratio, baseline.form, layers)
        return replace(found, img_size=baseline.img_size)

    def cheapest_uniform(self, form: Form | None) -> int:
        """Least cost of one ratio for all layers."""
        return min(cost for cost, _ in self._ladder(RATIOS.tolist(), form, self.costs.layers))

    def uniform(self, budget: float, form: Form | None) -> Iterator[Baseline]:
        ratio = self._costliest(RATIOS.tolist(), budget, form, self.costs.layers)
        if ratio is not None:
            named = "" if form == self.forms[0] else f" {form}"
            yield Baseline(label=f"uniform {ratio:g}{named}", keep_ratio=ratio, form=form)

    def count(self, budget: float) -> Iterator[Baseline]:
        most = max(map(tokens, self.costs.layer_grids.values())) // 2
        number = self._costliest([-float(n) for n in range(1, most + 1)], budget, self.forms[0], self.costs.layers)
        if number is not None:
            label = f"{-number:g} token{'s' * (number < -1)} per layer"
            yield Baseline(label=label, keep_ratio=number, form=self.forms[0])

    def early(self, budget: float, share: float) -> Iterator[Baseline]:
        first = max(1, round(share * len(self.costs.layers)))
        ratio = self._costliest(RATIOS.tolist(), budget, self.forms[0], self.costs.layers[:first])
        if ratio is not None and first < len(self.costs.layers):
            label = f"{ratio:g} in the first {f'{first} layers' if first > 1 else 'layer'}"
            yield Baseline(label=label, keep_ratio=ratio, form=self.forms[0], first_layers=first)

    def _costliest(
        self, amounts: Sequence[float], budget: float, form: Form | None, layers: Sequence[str]
    ) -> float | None:
        """Of amounts in the order of falling costs, the one with the highest cost within a budget; None if far off."""
        ladder = self._ladder(amounts, form, layers)
        within = [(cost, amount) for cost, amount in ladder if NEAR * budget <= cost <= budget]
        return max(within, key=lambda one: one[0])[1] if within else None

    def _ladder(
        self, amounts: Sequence[float], form: Form | None, layers: Sequence[str]
    ) -> Sequence[tuple[int, float]]:
        """Cost and amount of each; kept, since several budgets are fitted from the same costs."""
        key = (amounts[0], form, len(layers))
        if key not in self._ladders:
            self._ladders[key] = [(self.costs.macs(self._schedule(each, form, layers)), each) for each in amounts]
        return self._ladders[key]

    def _schedule(self, amount: float, form: Form | None, layers: Sequence[str]) -> MergeSchedule:
        ratios = {layer: amount if self._may(layer, amount, form) else 1.0 for layer in layers}
        forms = {} if form is None else dict.fromkeys(layers, form)
        return MergeSchedule(keep_ratios=ratios, operator=self.costs.operator, forms=forms)

    def _may(self, layer: str, amount: float, form: Form | None) -> bool:
        """Whether a layer may merge so, and saves something by it."""
        offer = self.offers[layer]
        if set(offer.keep_ratios) == {1.0} or (form is not None and form not in offer.forms):
            return False
        key = (layer, amount, form)
        if key not in self._saves:  # kinds of baselines try the same ratios
            self._saves[key] = self.costs.reduces_cost(layer, Choice(amount, form))
        return self._saves[key]
