"""Layers of no network: what a search space asks of a backbone, as a table."""

from collections.abc import Callable
from dataclasses import dataclass

from ltmsearch.merging import get_operator
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.schedule import Choice, Form


@dataclass(frozen=True, kw_only=True)
class FakeLayers:
    """See `ltmsearch.schedules.space.Layers`. Every layer is a sequence of its own unless `chained`."""

    layer_grids: dict[str, Grid]
    operator: str = "ltm"
    default_form: Form | None = None
    """None: the operator's first."""
    chained: tuple[tuple[str, ...], ...] = ()
    needs_grid: bool = False
    pays: Callable[[str, Choice], bool] = lambda layer, choice: True

    @property
    def forms(self) -> tuple[Form, ...]:
        forms = get_operator(self.operator).forms
        first = self.default_form or forms[0]
        return first, *(form for form in forms if form != first)

    @property
    def sequences(self) -> tuple[tuple[str, ...], ...]:
        alone = (layer for layer in self.layer_grids if not any(layer in names for names in self.chained))
        return *self.chained, *((layer,) for layer in alone)

    def target(self, layer: str, choice: Choice) -> Grid:
        form = choice.form or self.forms[0]
        return get_operator(self.operator).target(
            self.layer_grids[layer], choice.keep_ratio, form, needs_grid=self.needs_grid
        )

    def reduces_cost(self, layer: str, choice: Choice) -> bool:
        return self.pays(layer, choice)
