"""A merge schedule: the keep ratio of every layer, one point of a search space."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from ltmsearch.errors import InputError, unknown_name


@dataclass(frozen=True, kw_only=True)
class MergeSchedule:
    """Keep ratios by layer, and the operator that merges.

    Equal schedules are equal objects with equal hashes, whatever the order their layers were given in.

    Raises:
        InputError: If a keep ratio is not a number in (0, 1].
    """

    keep_ratios: Mapping[str, float]
    """Layer name (timm module path) → keep ratio in (0, 1]; a layer that is not named keeps every token."""
    operator: str = "ltm"
    """Name of a merging operator: see `ltmsearch.merging.OPERATORS`."""

    def __post_init__(self) -> None:
        for layer, ratio in self.keep_ratios.items():
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
                raise InputError(f"keep ratios must be in (0, 1], but layer {layer} has {ratio!r}")
        frozen = {layer: float(ratio) for layer, ratio in self.keep_ratios.items()}
        object.__setattr__(self, "keep_ratios", MappingProxyType(frozen))

    def __hash__(self) -> int:
        return hash((self.operator, frozenset(self.keep_ratios.items())))

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy cannot be pickled; schedules travel to other processes.
        return _rebuild, (dict(self.keep_ratios), self.operator)

    @classmethod
    def uniform(cls, layers: Iterable[str], keep_ratio: float, operator: str = "ltm") -> "MergeSchedule":
        """The same keep ratio at every layer."""
        return cls(keep_ratios=dict.fromkeys(layers, keep_ratio), operator=operator)

    @classmethod
    def from_list(cls, layers: Sequence[str], keep_ratios: Sequence[float], operator: str = "ltm") -> "MergeSchedule":
        """One keep ratio per layer in the backbone's order, or a single one for all.

        Raises:
            InputError: If the number of ratios is neither one nor the number of layers.
        """
        if len(keep_ratios) == 1:
            return cls.uniform(layers, keep_ratios[0], operator)
        if len(keep_ratios) != len(layers):
            raise InputError(
                f"keep ratios must be one for all layers or one per layer, but got {len(keep_ratios)} "
                f"for {len(layers)} layers"
            )
        return cls(keep_ratios=dict(zip(layers, keep_ratios, strict=True)), operator=operator)

    @classmethod
    def from_mapping(
        cls, layers: Sequence[str], keep_ratios: Mapping[str, float], operator: str = "ltm"
    ) -> "MergeSchedule":
        """A schedule over exactly `layers` from names or patterns; layers that none matches stay plain.

        Args:
            layers: The backbone's layers.
            keep_ratios: Layer name or shell pattern (`stages.2.*`) → keep ratio. Later entries win.
            operator: Name of the merging operator.

        Raises:
            InputError: If a name or pattern matches no layer.
        """
        ratios = dict.fromkeys(layers, 1.0)
        for pattern, ratio in keep_ratios.items():
            hits = [layer for layer in layers if layer == pattern or fnmatchcase(layer, pattern)]
            if not hits:
                raise unknown_name("layer", pattern, layers)
            ratios.update(dict.fromkeys(hits, ratio))
        return cls(keep_ratios=ratios, operator=operator)

    def keep_ratio(self, layer: str) -> float:
        """The keep ratio of one layer; 1.0 when the schedule does not name it."""
        return self.keep_ratios.get(layer, 1.0)

    @property
    def merging_layers(self) -> tuple[str, ...]:
        """The layers whose keep ratio is below 1.0, in the order given."""
        return tuple(layer for layer, ratio in self.keep_ratios.items() if ratio < 1.0)


def _rebuild(keep_ratios: dict[str, float], operator: str) -> MergeSchedule:
    return MergeSchedule(keep_ratios=keep_ratios, operator=operator)
