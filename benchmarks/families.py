"""GFLOPs that merging saves in each family, and the share that masks, merges and unmerges take of the rest.

Claim:    uniform LTM at keep ratio 0.5 saves a sixth of the GFLOPs of a hybrid backbone and most of a ViT's.
Command:  python benchmarks/families.py
Duration: half a minute
Result:   benchmarks/results/families.json
Page:     docs/benchmarks/costs.md
"""

from typing import Any

from harness.arguments import add_backbones, benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.tables import print_table

from ltmsearch.costs import GIGA, CostModel, cost_model
from ltmsearch.models import create_subnet, get_adapter
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile

BACKBONES = ("mobilevit_xs", "mobilevit_s", "efficientvit_b1", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")
SIZE = (224, 224)
UNIFORM: tuple[tuple[Form, float], ...] = (("soft", 0.75), ("soft", 0.5), ("hard", 0.75), ("hard", 0.5))


def merging_share(costs: CostModel, schedule: MergeSchedule) -> float:
    """Masks, merges and unmerges as a share of a schedule's cost."""
    grids, total = costs.grids(schedule), 0
    for chain in costs.chains:
        for layer in chain.layers:
            choice = Choice(schedule.keep_ratio(layer.name), schedule.form(layer.name))
            total += costs.merge_macs(chain, layer, grids[layer.name][0], choice)
    return total / costs.macs(schedule)


def count(backbone: str) -> dict[str, Any]:
    """GFLOPs of one backbone: plain, at its cheapest, and with uniform schedules."""
    costs = cost_model(backbone, create_subnet(backbone), SIZE)
    file = SpaceFile.load(None, family=get_adapter(backbone).family)
    space = SearchSpace.build(file, costs)
    counts: dict[str, Any] = {
        "plain": costs.base / GIGA,
        "cheapest": costs.table(space.choices).reachable()[0] / GIGA,
    }
    for form, ratio in UNIFORM:
        schedule = MergeSchedule.uniform(costs.layers, ratio, "ltm", form)
        counts[f"{form} {ratio}"] = {"gflops": costs.gflops(schedule), "merging": merging_share(costs, schedule)}
    return counts


def row(backbone: str, counts: dict[str, Any]) -> list[str]:
    """Row of the table."""
    uniform = [counts[f"{form} {ratio}"] for form, ratio in UNIFORM]
    cells = [f"{each['gflops']:.3f} ({each['merging']:.1%})" for each in uniform]
    return [backbone, f"{counts['plain']:.4f}", f"{counts['cheapest']:.4f}", *cells]


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, BACKBONES)
    args = parse(parser, backbones=["mobilevit_xs"])
    counts = {backbone: count(backbone) for backbone in args.backbones}
    headings = ("backbone", "plain", "cheapest", *(f"{form} {ratio}" for form, ratio in UNIFORM))
    title = "GFLOPs at 224 px; in brackets the share of masks, merges and unmerges"
    print_table(title, headings, [row(*each) for each in counts.items()])
    write_results(args.out / "families.json", settings=settings_of(args), backbones=counts)


if __name__ == "__main__":
    main()
