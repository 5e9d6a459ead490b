"""A merge schedule: keep ratio and form of every layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import cycle
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar, get_args

from ltmsearch.errors import InputError, unknown_name

Form = Literal["soft", "hard", "matched"]
"""Form of a merge. `soft`: each token is distributed over nearby merged tokens by a matrix; `hard`: it goes to one of
them, by index; `matched`: the most similar tokens are joined, wherever they are."""

Value = TypeVar("Value")


class Choice(NamedTuple):
    """Keep ratio and form of one layer."""

    keep_ratio: float
    """In (0, 1]; 1 is the plain layer."""
    form: Form | None = None
    """None: the operator's default."""

    def __str__(self) -> str:
        return f"{self.keep_ratio:g} {self.form}" if self.form else f"{self.keep_ratio:g}"


@dataclass(frozen=True, kw_only=True)
class MergeSchedule:
    """Keep ratios and forms by layer, and the merging operator. Equality does not depend on the order of layers.

    Raises:
        InputError: If a keep ratio is not a number in (0, 1], or a form is unknown.
    """

    keep_ratios: Mapping[str, float]
    """Layer name (timm module path) → keep ratio in (0, 1]; other layers keep every token."""
    operator: str = "ltm"
    """Name of a merging operator: see `ltmsearch.merging.OPERATORS`."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """Layer name → form; other layers have the operator's default. Forms of layers that do not merge are removed."""

    def __post_init__(self) -> None:
        for layer, ratio in self.keep_ratios.items():
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
                raise InputError(f"keep ratios must be in (0, 1], but layer {layer} has {ratio!r}")
        for layer, form in self.forms.items():
            if form not in get_args(Form):
                raise InputError(f"forms must be {', '.join(get_args(Form))}, but layer {layer} has {form!r}")
        frozen = {layer: float(ratio) for layer, ratio in self.keep_ratios.items()}
        forms = {layer: form for layer, form in self.forms.items() if frozen.get(layer, 1.0) < 1.0}
        object.__setattr__(self, "keep_ratios", MappingProxyType(frozen))
        object.__setattr__(self, "forms", MappingProxyType(forms))

    def __hash__(self) -> int:
        return hash((self.operator, frozenset(self.keep_ratios.items()), frozenset(self.forms.items())))

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy cannot be pickled; schedules travel to other processes.
        ratios, forms = dict(self.keep_ratios), dict(self.forms)
        return partial(MergeSchedule, keep_ratios=ratios, operator=self.operator, forms=forms), ()

    @classmethod
    def uniform(
        cls, layers: Iterable[str], keep_ratio: float, operator: str = "ltm", form: Form | None = None
    ) -> "MergeSchedule":
        """The same keep ratio and form at every layer."""
        ratios = dict.fromkeys(layers, keep_ratio)
        return cls(keep_ratios=ratios, operator=operator, forms=dict.fromkeys(ratios, form) if form else {})

    @classmethod
    def from_list(
        cls, layers: Sequence[str], keep_ratios: Sequence[float], operator: str = "ltm", form: Form | None = None
    ) -> "MergeSchedule":
        """One keep ratio per layer in the backbone's order, or a single one for all.

        Raises:
            InputError: If the number of ratios is neither one nor the number of layers.
        """
        if len(keep_ratios) not in (1, len(layers)):
            raise InputError(
                f"keep ratios must be one for all layers or one per layer, but got {len(keep_ratios)} "
                f"for {len(layers)} layers"
            )
        ratios = dict(zip(layers, cycle(keep_ratios)))
        return cls(keep_ratios=ratios, operator=operator, forms=dict.fromkeys(ratios, form) if form else {})

    @classmethod
    def from_mapping(
        cls,
        layers: Sequence[str],
        keep_ratios: Mapping[str, float],
        operator: str = "ltm",
        forms: Mapping[str, Form] | None = None,
    ) -> "MergeSchedule":
        """A schedule over exactly `layers` from names or patterns; layers without a match do not merge.

        Args:
            layers: The backbone's layers.
            keep_ratios: Layer name or shell pattern (`stages.2.*`) → keep ratio. Later entries win.
            operator: Name of the merging operator.
            forms: Layer name or shell pattern → form. Later entries win.

        Raises:
            InputError: If a name or pattern matches no layer.
        """
        ratios: dict[str, float] = dict.fromkeys(layers, 1.0) | _by_layer(layers, keep_ratios)
        return cls(keep_ratios=ratios, operator=operator, forms=_by_layer(layers, forms or {}))

    def keep_ratio(self, layer: str) -> float:
        """Keep ratio of a layer; 1.0 if the schedule has none."""
        return self.keep_ratios.get(layer, 1.0)

    def form(self, layer: str) -> Form | None:
        """Form of a layer; None for the operator's default."""
        return self.forms.get(layer)

    @property
    def merging_layers(self) -> tuple[str, ...]:
        """Layers with a keep ratio below 1.0."""
        return tuple(layer for layer, ratio in self.keep_ratios.items() if ratio < 1.0)


def _by_layer(layers: Sequence[str], by_pattern: Mapping[str, Value]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pattern, value in by_pattern.items():
        hits = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not hits:
            raise unknown_name("layer", pattern, layers)
        found.update(dict.fromkeys(hits, value))
    return found
