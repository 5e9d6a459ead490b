"""Search-space files: the keep ratios, thresholds and forms that a layer may have (`search_spaces/<family>.yaml`)."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ltmsearch.errors import InputError, shortened
from ltmsearch.io.presets import find_file
from ltmsearch.io.yaml_models import load
from ltmsearch.schedules.schedule import THRESHOLDS, Form


def _low_and_high(weights: tuple[float, ...]) -> tuple[float, ...]:
    if len(weights) != 2 or not 1e-6 <= weights[0] < weights[1] <= 1e6:
        raise ValueError("must be [low, high] with 1e-6 <= low < high <= 1e6")
    return weights


KeepRatios = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
KeepCounts = tuple[Annotated[int, Field(lt=0)], ...]
Thresholds = KeepRatios
Forms = Annotated[tuple[Form, ...], Field(min_length=1)]


class Offer(NamedTuple):
    """What a file offers one layer."""

    keep_ratios: tuple[float, ...]
    """Shares of the tokens in (0, 1], and negative integers: tokens to remove; or thresholds in (0, 1]."""
    forms: tuple[Form, ...]


class LayerRule(BaseModel):
    """Keep ratios, and optionally forms, of the layers that match a pattern."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pattern: str
    """Layer name or shell pattern, e.g. `stages.2.*`."""
    keep_ratios: KeepRatios
    """Choices; 1.0 (no merge) is always one."""
    keep_counts: KeepCounts = ()
    """Further choices: tokens that the layer removes, at most half, as negative integers such as -8."""
    thresholds: Thresholds | None = None
    """Choices for operators that merge by threshold; None: those of the file."""
    forms: Forms | None = None
    """Forms; None: those of the file."""


class SpaceFile(BaseModel):
    """Content of a search-space file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1]
    family: str
    keep_ratios: KeepRatios
    """Choices of layers without a rule."""
    keep_counts: KeepCounts = ()
    """Further choices of these layers: tokens that the layer removes, at most half, as negative integers such as -8."""
    thresholds: Thresholds | None = None
    """Choices of these layers, in place of both, for operators that merge by threshold: cosines in (0, 1]; 1.0 (no
    merge) is always one. None: those at which a layer keeps these shares on average, measured when a study begins."""
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

    def choices_of(self, layer: str, operator: str) -> Offer:
        """Keep ratios, or thresholds, and forms of one layer, as in the file.

        Raises:
            InputError: If the operator merges by threshold and the file has none.
        """
        rule = self._rule(layer)
        forms = self.forms if rule is None or rule.forms is None else rule.forms
        if operator not in THRESHOLDS:
            return Offer(self.ratios_of(layer), forms)
        thresholds = self.thresholds_of(layer)
        if thresholds is None:
            raise InputError(
                f"a search space for {operator} merging must have `thresholds`, cosines in (0, 1] such as "
                f"[1.0, 0.95, 0.9], but that of family {self.family!r} has none for {layer}"
            )
        return Offer(thresholds, forms)

    def ratios_of(self, layer: str) -> tuple[float, ...]:
        """Shares of the tokens in (0, 1] that a layer may keep, and negative integers: tokens to remove."""
        chosen = self._rule(layer) or self
        return chosen.keep_ratios + chosen.keep_counts

    def thresholds_of(self, layer: str) -> tuple[float, ...] | None:
        """Thresholds of one layer; None where the file leaves them to a measurement."""
        rule = self._rule(layer)
        if rule is not None and rule.thresholds is None and set(self.ratios_of(layer)) == {1.0}:
            return (1.0,)  # the rule keeps merging out of the layer
        return self.thresholds if rule is None or rule.thresholds is None else rule.thresholds

    def with_thresholds(self, measured: Mapping[str, Sequence[float]]) -> "SpaceFile":
        """The same file, with thresholds for some layers, in place of its own."""
        rules = [
            LayerRule(pattern=layer, keep_ratios=(1.0,), thresholds=(1.0, *values))
            for layer, values in measured.items()
        ]
        return self.model_copy(update={"layers": (*rules, *self.layers)})

    def _rule(self, layer: str) -> LayerRule | None:
        return next((rule for rule in self.layers if fnmatchcase(layer, rule.pattern)), None)
