"""Every family side by side: what the plain net costs, what merging reaches, and what its masks cost.

    python benchmarks/families.py [--backbones B …]

GFLOPs at 224 px by the counting rule; their latencies are measured by `merged_latency.py`. Prints a table and writes
JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ltmsearch.costs import GIGA, CostModel, cost_model
from ltmsearch.costs.macs import merge_macs
from ltmsearch.merging import get_operator
from ltmsearch.models import create_subnet, get_adapter
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace, SpaceFile

BACKBONES = ("mobilevit_xs", "mobilevit_s", "efficientvit_b1", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")
FORMS: tuple[Form, ...] = ("soft", "hard")


def mask_share(costs: CostModel, schedule: MergeSchedule) -> float:
    """Masks, merges and unmerges as a share of a schedule's cost."""
    grids, total = costs.grids(schedule), 0
    for chain in costs.chains:
        for layer in chain.layers:
            choice = Choice(schedule.keep_ratio(layer.name), schedule.form(layer.name))
            total += merge_macs(chain, layer, get_operator(costs.operator), grids[layer.name][0], choice)
    return total / costs.macs(schedule)


def count(backbone: str, size: tuple[int, int]) -> dict[str, Any]:
    """GFLOPs of one backbone."""
    plain = create_subnet(backbone)
    costs = cost_model(backbone, plain, size)
    space = SearchSpace.build(
        SpaceFile.load(None, family=get_adapter(backbone).family), costs.layer_grids, reduces_cost=costs.reduces_cost
    )
    result: dict[str, Any] = {
        "base": costs.base_macs / GIGA,
        "reachable": costs.table(space.choices).reachable()[0] / GIGA,
    }
    for form in FORMS:
        for ratio in (0.75, 0.5):
            schedule = MergeSchedule.uniform(costs.layers, ratio, "ltm", form)
            result[f"{form} {ratio}"] = costs.gflops(schedule)
            result[f"{form} {ratio} mask"] = mask_share(costs, schedule)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/families.json"))
    args = parser.parse_args()
    counts = {}
    print("GFLOPs at 224 px; in brackets the share of masks, merges and unmerges")
    print(f"{'':30}{'base':>8}{'lowest':>8}" + "".join(f"{f'{f} {r}':>16}" for f in FORMS for r in (0.75, 0.5)))
    for backbone in args.backbones:
        counts[backbone] = c = count(backbone, (224, 224))
        cells = "".join(f"{c[f'{f} {r}']:9.3f} ({c[f'{f} {r} mask']:4.1%})" for f in FORMS for r in (0.75, 0.5))
        print(f"{backbone:30}{c['base']:8.4f}{c['reachable']:8.4f}{cells}", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(counts, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
