"""What a backbone costs, layer by layer: records and tables of `ltmsearch space` and `ltmsearch cost`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ltmsearch.backbones import create_backbone, create_subnet, get_adapter
from ltmsearch.costs import GIGA, CostModel, cost_model, traced_macs
from ltmsearch.merging import get_operator
from ltmsearch.schedule import MergeSchedule
from ltmsearch.space import SearchSpace, SpaceFile


@dataclass(frozen=True, kw_only=True)
class ScheduleCost:
    """The cost of one schedule."""

    backbone: str
    img_size: int
    operator: str
    keep_ratios: dict[str, float]
    gflops: float
    """By formula."""
    gflops_traced: float
    """fvcore's count of the built subnet."""
    base_gflops: float
    """Of the plain net."""
    tokens: dict[str, tuple[int, int]]
    """Layer name → tokens before and after its merge."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LayerSavings:
    """What one layer costs, and what merging there alone saves."""

    name: str
    tokens: int
    gflops: float
    """Of the plain layer."""
    share: float
    """Of the plain net's cost."""
    savings: dict[float, float]
    """Keep ratio → GFLOPs saved in the whole net when only this layer merges; negative where it costs more."""


@dataclass(frozen=True, kw_only=True)
class SpaceCost:
    """A search space and its costs."""

    backbone: str
    img_size: int
    operator: str
    base_gflops: float
    lowest_gflops: float
    highest_gflops: float
    schedules: int
    layers: list[LayerSavings]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _plain_costs(backbone: str, img_size: int, operator: str, num_classes: int = 1000) -> CostModel:
    get_operator(operator)
    model = create_backbone(backbone, num_classes=num_classes)
    return cost_model(backbone, model, (img_size, img_size), operator)


def describe_cost(
    backbone: str, *, keep: Sequence[float], img_size: int, operator: str, num_classes: int
) -> ScheduleCost:
    """Count one schedule by formula and by tracing.

    Args:
        backbone: timm name.
        keep: One keep ratio for all layers, or one per layer.
        img_size: Side of the images, in pixels.
        operator: Merging operator.
        num_classes: Width of the classifier.

    Raises:
        InputError: For an unknown name, or keep ratios that do not fit.
    """
    costs = _plain_costs(backbone, img_size, operator, num_classes)
    schedule = MergeSchedule.from_list(costs.layers, keep, operator)
    subnet = create_subnet(backbone, keep_ratios=schedule.keep_ratios, operator=operator, num_classes=num_classes)
    return ScheduleCost(
        backbone=backbone,
        img_size=img_size,
        operator=operator,
        keep_ratios=dict(schedule.keep_ratios),
        gflops=costs.gflops(schedule),
        gflops_traced=traced_macs(subnet, (img_size, img_size)) / GIGA,
        base_gflops=costs.base_macs / GIGA,
        tokens=costs.tokens(schedule),
    )


def describe_space(backbone: str, *, img_size: int, operator: str, space: str | None) -> SpaceCost:
    """A backbone's layers, what merging at each saves, and the range of costs.

    Raises:
        InputError: For an unknown name, or a search-space file that does not fit.
    """
    costs = _plain_costs(backbone, img_size, operator)
    built = SearchSpace.build(SpaceFile.load(space or get_adapter(backbone).family), costs.layer_grids, operator)
    low, high = costs.table(built.choices).reachable()
    layers = []
    plain = costs.plain_layer_macs()
    for name, options in zip(built.layers, built.choices, strict=True):
        alone = {r: costs.macs(MergeSchedule(keep_ratios={name: r}, operator=operator)) for r in options if r < 1}
        rows, columns = costs.layer_grids[name]
        layers.append(
            LayerSavings(
                name=name,
                tokens=rows * columns,
                gflops=plain[name] / GIGA,
                share=plain[name] / costs.base_macs,
                savings={ratio: (costs.base_macs - macs) / GIGA for ratio, macs in alone.items()},
            )
        )
    return SpaceCost(
        backbone=backbone,
        img_size=img_size,
        operator=operator,
        base_gflops=costs.base_macs / GIGA,
        lowest_gflops=low / GIGA,
        highest_gflops=high / GIGA,
        schedules=built.size,
        layers=layers,
    )


def print_cost(console: Console, record: ScheduleCost) -> None:
    """One line of totals, and tokens by layer."""
    console.print(
        f"{record.backbone} at {record.img_size} px, {record.operator}: {record.gflops:.4f} GFLOPs "
        f"({record.gflops / record.base_gflops:.0%} of the plain net's {record.base_gflops:.4f}; "
        f"traced {record.gflops_traced:.4f})",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("layer", "keep ratio", "tokens before", "tokens after", box=None)
    for name, (before, after) in record.tokens.items():
        table.add_row(name, f"{record.keep_ratios[name]:g}", str(before), str(after))
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    _print_rule(console)


def print_space(console: Console, record: SpaceCost) -> None:
    """Totals, and per layer what merging there alone saves."""
    console.print(
        f"{record.backbone} at {record.img_size} px, {record.operator}: plain {record.base_gflops:.4f} GFLOPs; "
        f"{record.schedules:,} schedules reach {record.lowest_gflops:.4f} to {record.highest_gflops:.4f}",
        highlight=False,
        soft_wrap=True,
    )
    ratios = sorted({ratio for layer in record.layers for ratio in layer.savings}, reverse=True)
    table = Table("layer", "tokens", "share", *(f"{ratio:g}" for ratio in ratios), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in record.layers:
        cells = [_saving(layer.savings.get(ratio)) for ratio in ratios]
        table.add_row(layer.name, str(layer.tokens), f"{layer.share:.1%}", *cells)
    console.print(table)
    console.print(
        "Numbers under a keep ratio: change of the net's MFLOPs when only this layer merges;"
        " [red]+[/red] costs more than it saves. A dash: the same tokens as another ratio.",
        highlight=False,
    )
    _print_rule(console)


def _saving(gflops: float | None) -> str:
    if gflops is None:
        return "-"
    change = -1000 * gflops
    return f"[red]{change:+.1f}[/red]" if change > 0 else f"{change:+.1f}"


def _print_rule(console: Console) -> None:
    console.print("One multiply-add counts as one FLOP; attention products and masks are counted.", highlight=False)
