"""Costs of a backbone by layer: records and tables of `ltmsearch space` and `ltmsearch cost`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from ltmsearch.costs import GIGA, CostModel, backbone_costs, traced_macs
from ltmsearch.io.console_tables import make_table, print_in_parts, print_line
from ltmsearch.merging import check_form
from ltmsearch.models import create_subnet, get_adapter
from ltmsearch.schedules.grid import tokens
from ltmsearch.schedules.schedule import THRESHOLDS, Choice, MergeSchedule, amount_of
from ltmsearch.schedules.space import SearchSpace, layer_choices
from ltmsearch.schedules.space_file import SpaceFile

HALF = 0.5
"""Share of the tokens that a layer keeps by the lowest threshold."""
COUNTING_RULE = "One multiply-add counts as one FLOP; attention products and masks are counted."


@dataclass(frozen=True, kw_only=True)
class ScheduleCost:
    """The cost of one schedule."""

    backbone: str
    img_size: int
    operator: str
    keep_ratios: dict[str, float]
    forms: dict[str, str]
    """Layer name → form, where layers merge and the operator has several."""
    gflops: float
    """By formula."""
    gflops_traced: float
    """fvcore's count of the built subnet."""
    base_gflops: float
    """Cost of the plain network."""
    tokens: dict[str, tuple[int, int]]
    """Layer name → tokens before and after its merge."""


@dataclass(frozen=True, kw_only=True)
class MergeBalance:
    """Costs and savings of a merge at only one layer."""

    keep_ratio: float
    form: str
    mask_gflops: float
    """Cost of mask, merge and unmerge."""
    saved_gflops: float
    """Savings in the rest of the network."""
    offered: bool
    """Whether the space contains it: it must save more than it costs."""


@dataclass(frozen=True, kw_only=True)
class LayerBalance:
    """Cost of one layer, and costs and savings of merges at only this layer."""

    name: str
    tokens: int
    """Tokens of one window before the merge."""
    gflops: float
    share: float
    """Share of the plain network's cost."""
    merges: list[MergeBalance]
    """Every keep ratio of the search-space file in every form."""


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
    layers: list[LayerBalance]


def describe_cost(
    backbone: str, *, keep: Sequence[float], img_size: int, operator: str, form: str | None, **timm_kwargs: Any
) -> ScheduleCost:
    """Count one schedule by formula and by tracing; `keep` has one ratio for all layers, or one per layer.

    `timm_kwargs` are of `timm.create_model`, such as `num_classes`.

    Raises:
        InputError: For an unknown name, or keep ratios that do not fit.
    """
    given = None if form is None else check_form(operator, form)
    costs = backbone_costs(backbone, img_size, operator, **timm_kwargs)
    default = costs.default_form if len(costs.forms) > 1 else None
    schedule = MergeSchedule.from_list(costs.layers, keep, operator, given or default)
    subnet = create_subnet(
        backbone,
        keep_ratios=schedule.keep_ratios,
        operator=operator,
        forms=schedule.forms,
        img_size=img_size,
        **timm_kwargs,
    )
    return ScheduleCost(
        backbone=backbone,
        img_size=img_size,
        operator=operator,
        keep_ratios=dict(schedule.keep_ratios),
        forms=dict(schedule.forms),
        gflops=costs.gflops(schedule),
        gflops_traced=traced_macs(subnet, (img_size, img_size)) / GIGA,
        base_gflops=costs.base / GIGA,
        tokens=costs.tokens(schedule),
    )


def describe_space(backbone: str, *, img_size: int, operator: str, space: str | None, **timm_kwargs: Any) -> SpaceCost:
    """Describe a backbone's layers, costs and savings of merges at each, and the range of costs.

    Of operators that merge by threshold, costs depend on the image: described are the merges of half of the tokens, the
    most that are possible, as keep ratio 0.5.

    `timm_kwargs`: see `describe_cost`.

    Raises:
        InputError: For an unknown name, or a search-space file that does not fit.
    """
    file = SpaceFile.load(space, family=get_adapter(backbone).family)
    costs = backbone_costs(backbone, img_size, operator, **timm_kwargs)
    if operator in THRESHOLDS:  # whatever they are, at most half of the tokens merge
        file = file.with_thresholds({layer: [HALF] for layer in costs.layers if file.thresholds_of(layer) != (1.0,)})
    built = SearchSpace.build(file, costs)
    low, high = costs.table(built.choices).reachable()
    plain = costs.plain_layer_macs()
    layers = []
    for name, offered in zip(built.layers, built.choices, strict=True):
        grid = costs.layer_grids[name]
        possible = layer_choices(costs, name, file.choices_of(name, operator))
        layers.append(
            LayerBalance(
                name=name,
                tokens=tokens(grid),
                gflops=plain[name] / GIGA,
                share=plain[name] / costs.base,
                merges=[_balance(costs, name, choice, offered=choice in offered) for choice in possible[1:]],
            )
        )
    return SpaceCost(
        backbone=backbone,
        img_size=img_size,
        operator=operator,
        base_gflops=costs.base / GIGA,
        lowest_gflops=low / GIGA,
        highest_gflops=high / GIGA,
        schedules=built.size,
        layers=layers,
    )


def _balance(costs: CostModel, layer: str, choice: Choice, *, offered: bool) -> MergeBalance:
    overhead, saved = costs.merge_balance(layer, choice)
    return MergeBalance(
        keep_ratio=choice.keep_ratio,
        form=choice.form or costs.default_form,
        mask_gflops=overhead / GIGA,
        saved_gflops=saved / GIGA,
        offered=offered,
    )


def print_cost(console: Console, record: ScheduleCost) -> None:
    """Print totals, and tokens by layer."""
    print_line(
        console,
        f"{record.backbone} at {record.img_size} px, {record.operator}: {record.gflops:.4f} GFLOPs "
        f"({record.gflops / record.base_gflops:.0%} of the plain net's {record.base_gflops:.4f}; "
        f"traced {record.gflops_traced:.4f})",
        wrap=True,
    )
    table = make_table("layer", amount_of(record.operator), "tokens before", "tokens after", box=None)
    for name, (before, after) in record.tokens.items():
        ratio, form = record.keep_ratios[name], record.forms.get(name, "")
        table.add_row(name, f"{ratio:g} {form}".strip(), str(before), str(after))
    console.print(table)
    print_line(console, COUNTING_RULE, wrap=True)


def print_space(console: Console, record: SpaceCost) -> None:
    """Print totals, and costs and savings of merges at each layer."""
    adaptive = record.operator in THRESHOLDS
    reach = f"{record.schedules:,} schedules reach {record.lowest_gflops:.4f} to {record.highest_gflops:.4f}"
    if adaptive:
        reach = (
            f"costs depend on the image, and are {record.lowest_gflops:.4f} where every layer merges half of its tokens"
        )
    print_line(
        console,
        f"{record.backbone} at {record.img_size} px, {record.operator}: plain {record.base_gflops:.4f} GFLOPs; {reach}",
        wrap=True,
    )
    ratios = sorted({merge.keep_ratio for layer in record.layers for merge in layer.merges}, reverse=True)
    print_in_parts(console, ratios, lambda some: _balance_table(record.layers, some))
    if adaptive:
        console.print("A layer merges at most half of its tokens, keep ratio 0.5, and pays for matching in any case.")
    console.print(
        "Per keep ratio, in MFLOPs: saving in the rest of the network if only this layer merges, and cost of mask, "
        "merge and unmerge in each form. [red]Red!:[/red] costs more than it saves, not in the search space. "
        "A dash: same tokens as another ratio.",
        highlight=False,
    )
    print_line(console, COUNTING_RULE, wrap=True)


def _balance_table(layers: Sequence[LayerBalance], ratios: Sequence[float]) -> Table:
    table = make_table("layer", "tokens", "share", "", *(f"{ratio:g}" for ratio in ratios), box=None)
    table.columns[3].justify = "left"
    for group in _similar_layers(layers):
        layer = group[0]
        name = layer.name if len(group) == 1 else f"{layer.name} … {group[-1].name.rpartition('.')[2]}"
        share = f"{layer.share:.1%}" if len(group) == 1 else f"{len(group)}×{layer.share:.1%}"
        saved = {merge.keep_ratio: f"{1000 * merge.saved_gflops:.1f}" for merge in layer.merges}
        table.add_row(name, str(layer.tokens), share, "saves", *(saved.get(ratio, "-") for ratio in ratios))
        for form in dict.fromkeys(merge.form for merge in layer.merges):
            costs = {merge.keep_ratio: _cost(merge) for merge in layer.merges if merge.form == form}
            table.add_row("", "", "", form, *(costs.get(ratio, "-") for ratio in ratios))
    return table


def _similar_layers(layers: Sequence[LayerBalance]) -> list[list[LayerBalance]]:
    """Consecutive layers of a stage that differ only in their names."""
    runs = groupby(layers, key=lambda layer: (layer.name.rpartition(".")[0], replace(layer, name="")))
    return [list(run) for _, run in runs]


def _cost(merge: MergeBalance) -> str:
    text = f"{1000 * merge.mask_gflops:.1f}"
    return text if merge.offered else f"[red]{text}![/red]"
