"""Every family side by side: what the plain net costs, what merging reaches, what its mask costs, and the latency.

    python benchmarks/families.py [--backbones B …] [--keep 0.5] [--batch-sizes 1 16] [--rounds 5]

GFLOPs at 224 px by the counting rule. Latencies on one CPU thread, all variants of a backbone interleaved round by
round with the order reversed each time: the minimum over rounds of the median of a round, and as spread the middle half
of the medians. Ratios to the plain net travel; milliseconds are of this machine. Prints tables and writes JSON.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from ltmsearch.backbones import create_subnet, get_adapter
from ltmsearch.costs import GIGA, CostModel, cost_model
from ltmsearch.costs.macs import merge_macs
from ltmsearch.merging import get_operator
from ltmsearch.schedule import Choice, Form, MergeSchedule
from ltmsearch.space import SearchSpace, SpaceFile

BACKBONES = ("mobilevit_xs", "mobilevit_s", "efficientvit_b1", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")
FORMS: tuple[Form, ...] = ("soft", "hard")
VARIANTS: dict[str, tuple[str, Form | None]] = {
    "ltm soft": ("ltm", "soft"), "ltm hard": ("ltm", "hard"), "ltm matched": ("ltm", "matched"),
    "tome": ("tome", None), "pool": ("pool", None),
}  # fmt: skip


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
        SpaceFile.load(None, family=get_adapter(backbone).family), costs.layer_grids, pays=costs.pays
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


def latencies(nets: dict[str, torch.nn.Module], images: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Medians in milliseconds, one per round, of all nets interleaved."""
    medians: dict[str, list[float]] = {name: [] for name in nets}
    with torch.inference_mode():
        for net in nets.values():
            net(images)
        for number in range(rounds):
            for name in list(nets)[:: 1 if number % 2 == 0 else -1]:
                timer = Timer("net(images)", globals={"net": nets[name], "images": images}, num_threads=1)
                medians[name].append(1e3 * timer.blocked_autorange(min_run_time=0.4).median)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/families.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts = {backbone: count(backbone, (224, 224)) for backbone in args.backbones}
    print("GFLOPs at 224 px; in brackets the share of masks, merges and unmerges")
    print(f"{'':30}{'base':>8}{'lowest':>8}" + "".join(f"{f'{f} {r}':>16}" for f in FORMS for r in (0.75, 0.5)))
    for backbone, c in counts.items():
        cells = "".join(f"{c[f'{f} {r}']:9.3f} ({c[f'{f} {r} mask']:4.1%})" for f in FORMS for r in (0.75, 0.5))
        print(f"{backbone:30}{c['base']:8.4f}{c['reachable']:8.4f}{cells}", flush=True)
    print(f"\nlatency at keep ratio {args.keep:g} in all layers over the plain net's, one thread; ms of the plain net")
    print(
        f"{'':30}{'batch':>6}{'ms':>9}{'spread':>8}"
        + "".join(f"{name:>12}" for name in VARIANTS)
        + f"{'GFLOPs':>9}{'hard':>7}"
    )
    times: dict[str, Any] = {}
    for backbone in args.backbones:
        nets = {"base": create_subnet(backbone)}
        for name, (operator, form) in VARIANTS.items():
            nets[name] = create_subnet(backbone, keep_ratios={"*": args.keep}, operator=operator, forms=form)
        for net in nets.values():
            net.eval().to(memory_format=torch.channels_last)
        costs = cost_model(backbone, create_subnet(backbone), (224, 224))
        shares = [
            costs.gflops(MergeSchedule.uniform(costs.layers, args.keep, "ltm", form)) * GIGA / costs.base_macs
            for form in FORMS
        ]
        for batch in args.batch_sizes:
            images = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
            medians = latencies(nets, images, args.rounds)
            times.setdefault(backbone, {})[batch] = medians
            base = min(medians["base"])
            low, high = np.percentile(medians["base"], [25, 75])
            cells = "".join(f"{min(medians[name]) / base:12.2f}" for name in VARIANTS)
            print(
                f"{backbone:30}{batch:6}{base:9.1f}{(high - low) / base:8.0%}{cells}{shares[0]:9.2f}{shares[1]:7.2f}",
                flush=True,
            )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.machine(), "torch": torch.__version__, "load": os.getloadavg()[0]}
    args.json.write_text(json.dumps({"gflops": counts, "latency_ms": times, "machine": machine}, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
