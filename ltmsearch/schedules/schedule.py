"""A merge schedule: keep ratio and form of every layer, and the image size at which they apply."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import cycle
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar

from ltmsearch.errors import InputError, check_choice, shortened, unknown_name
from ltmsearch.schedules.grid import check_keep_ratio

Form = Literal["soft", "hard", "matched", "gradient", "select"]
"""Form of a merge. `soft`: each token is distributed over nearby merged tokens by a matrix; `hard`: it goes to one of
them, by index; `matched`: the most similar tokens are joined, wherever they are; `gradient`: as soft, by a matrix that
steps down the gradient of an information-bottleneck bound, from layer to layer; `select`: the best tokens stay."""

THRESHOLDS = frozenset({"threshold"})
"""Operators that join what is alike enough. The number that their schedules give a layer is the least cosine of two
tokens that merge, in place of a keep ratio, and how many tokens are kept depends on the image."""

Value = TypeVar("Value")


def amount_of(operator: str) -> str:
    """What the number is that a schedule of that operator gives a layer: a threshold or a keep ratio."""
    return "threshold" if operator in THRESHOLDS else "keep ratio"


class Choice(NamedTuple):
    """Keep ratio and form of one layer."""

    keep_ratio: float
    """In (0, 1], where 1 is the plain layer; or a negative integer, the number of tokens that the layer removes. For
    the operators of `THRESHOLDS` a threshold in (0, 1]."""
    form: Form | None = None
    """None: the default of operator and family."""

    def __str__(self) -> str:
        return f"{self.keep_ratio:g} {self.form}" if self.form else f"{self.keep_ratio:g}"


@dataclass(frozen=True, kw_only=True)
class MergeSchedule:
    """Keep ratios and forms by layer, and the merging operator. Equality does not depend on the order of layers.

    Raises:
        InputError: If a keep ratio is neither in (0, 1] nor a negative integer, a threshold is not in (0, 1], a form is
            unknown, or one of both is no mapping.
    """

    keep_ratios: Mapping[str, float]
    """Layer name (timm module path) → keep ratio in (0, 1], or a negative integer, the number of tokens that the layer
    removes, at most half; for the operators of `THRESHOLDS` a threshold. Other layers keep every token."""
    operator: str = "ltm"
    """Name of a merging operator: see `ltmsearch.merging.OPERATORS`."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """Layer name → form; other layers have the default of operator and family. Forms of layers that do not merge are
    removed."""
    img_size: int | None = None
    """Image side in pixels at which the network runs; None: the one that it is built for."""

    def __post_init__(self) -> None:
        for what, given in (("keep ratios", self.keep_ratios), ("forms", self.forms)):
            _checked_mapping(what, given, " (MergeSchedule.uniform takes one for all)")
        if not isinstance(self.operator, str):
            raise InputError(f"the operator of a schedule must be a name, but got {self.operator!r}")
        frozen = {
            layer: _checked_ratio(ratio, f"layer {layer}", self.operator) for layer, ratio in self.keep_ratios.items()
        }
        for layer, form in self.forms.items():
            check_choice(f"the form of layer {layer}", form, Form)
        forms = {layer: form for layer, form in self.forms.items() if frozen.get(layer, 1.0) < 1.0}
        object.__setattr__(self, "keep_ratios", MappingProxyType(frozen))
        object.__setattr__(self, "forms", MappingProxyType(forms))

    def __hash__(self) -> int:
        return hash((self.operator, frozenset(self.keep_ratios.items()), frozenset(self.forms.items()), self.img_size))

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy cannot be pickled; schedules travel to other processes.
        ratios, forms = dict(self.keep_ratios), dict(self.forms)
        parts = partial(MergeSchedule, keep_ratios=ratios, forms=forms)
        return partial(parts, operator=self.operator, img_size=self.img_size), ()

    @classmethod
    def uniform(
        cls, layers: Iterable[str], keep_ratio: float, operator: str = "ltm", form: Form | None = None
    ) -> "MergeSchedule":
        """The same keep ratio and form at every layer."""
        ratios = dict.fromkeys(layers, _checked_ratio(keep_ratio, "every layer", operator))
        return cls(keep_ratios=ratios, operator=operator, forms=_everywhere(ratios, form))

    @classmethod
    def from_list(
        cls,
        layers: Sequence[str],
        keep_ratios: Sequence[float] | float,
        operator: str = "ltm",
        form: Form | None = None,
    ) -> "MergeSchedule":
        """One keep ratio per layer in the backbone's order, or a single one for all.

        Raises:
            InputError: If the number of ratios is neither one nor the number of layers, or they are no list.
        """
        if _is_number(keep_ratios):
            keep_ratios = [keep_ratios]
        if isinstance(keep_ratios, str | Mapping) or not isinstance(keep_ratios, Iterable):
            raise InputError(f"keep ratios must be a list of numbers or one number, but got {_shown(keep_ratios)}")
        if len(keep_ratios) not in (1, len(layers)):
            raise InputError(
                f"keep ratios must be one for all layers or one per layer, but got {len(keep_ratios)} "
                f"for {len(layers)} layers"
            )
        ratios = dict(zip(layers, cycle(keep_ratios)))
        return cls(keep_ratios=ratios, operator=operator, forms=_everywhere(ratios, form))

    @classmethod
    def from_mapping(
        cls,
        layers: Sequence[str],
        keep_ratios: Mapping[str, float] | float,
        operator: str = "ltm",
        forms: Mapping[str, Form] | Form | None = None,
    ) -> "MergeSchedule":
        """A schedule over exactly `layers` from names or patterns; layers without a match do not merge.

        Args:
            layers: The backbone's layers.
            keep_ratios: Layer name or shell pattern (`stages.2.*`) → keep ratio, of which later entries win; or one
                keep ratio for all layers.
            operator: Name of the merging operator.
            forms: Layer name or shell pattern → form, of which later entries win; or one form for all layers.

        Raises:
            InputError: If a name or pattern matches no layer, or a keep ratio or form is invalid.
        """
        if _is_number(keep_ratios):
            keep_ratios = dict.fromkeys(layers, _checked_ratio(keep_ratios, "every layer", operator))
        if forms is None or isinstance(forms, str):
            forms = _everywhere(layers, forms)
        given = _checked_mapping("keep ratios", keep_ratios, ", or be one number for all layers")
        given_forms = _checked_mapping("forms", forms, ", or be one form for all layers")
        ratios: dict[str, float] = dict.fromkeys(layers, 1.0) | _by_layer(layers, given)
        return cls(keep_ratios=ratios, operator=operator, forms=_by_layer(layers, given_forms))

    def keep_ratio(self, layer: str) -> float:
        """Keep ratio of a layer; 1.0 if the schedule has none."""
        return self.keep_ratios.get(layer, 1.0)

    def form(self, layer: str) -> Form | None:
        """Form of a layer; None for the default of operator and family."""
        return self.forms.get(layer)

    @property
    def merging_layers(self) -> tuple[str, ...]:
        """Layers that do not keep every token."""
        return tuple(layer for layer, ratio in self.keep_ratios.items() if ratio < 1.0)


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number of any type, as NumPy has its own, but no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _checked_ratio(ratio: object, where: str, operator: str) -> float:
    rule = "keep ratios must be in (0, 1], or negative integers (tokens to remove)"
    if operator in THRESHOLDS:
        rule = f"thresholds of {operator} merging must be in (0, 1]"
    try:
        if not _is_number(ratio) or (ratio < 0 and operator in THRESHOLDS):
            raise ValueError
        check_keep_ratio(ratio)
    except ValueError:
        raise InputError(f"{rule}, but {where} has {_shown(ratio)}") from None
    return float(ratio)


def _checked_mapping(what: str, value: object, otherwise: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{what} must be given by layer, as in {{'blocks.1': …}}{otherwise}, but got {_shown(value)}")
    for name in value:
        if not isinstance(name, str):
            raise InputError(f"{what} must be given by the names of layers, but got {_shown(name)}")
    return value


def _everywhere(layers: Iterable[str], form: Form | None) -> dict[str, Form]:
    if form is None:
        return {}
    check_choice("the form of a merge", form, Form)
    return dict.fromkeys(layers, form)


def _shown(value: object) -> str:
    return shortened(repr(value))


def _by_layer(layers: Sequence[str], by_pattern: Mapping[str, Value]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pattern, value in by_pattern.items():
        hits = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not hits:
            raise unknown_name("layer", pattern, layers)
        found.update(dict.fromkeys(hits, value))
    return found
