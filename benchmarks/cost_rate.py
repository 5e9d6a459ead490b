"""How fast schedules are costed: the vectorised table, the formula one by one, and fvcore's trace of a built subnet.

    python benchmarks/cost_rate.py [--backbone mobilevit_s] [--seconds 3] [--json FILE]

Prints a table and writes JSON. One thread; the same random schedules for all three; every count is compared.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch

from ltmsearch.costs import cost_model, traced_macs
from ltmsearch.models import create_subnet, get_adapter
from ltmsearch.schedules.space import SearchSpace, SpaceFile


def rate(count: Callable[[int], int], seconds: float, repeats: int = 5) -> list[float]:
    """Schedules a second in each of several repeats; `count(i)` costs a batch and returns how many."""
    rates = []
    for _ in range(repeats):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / repeats:
            done += count(done)
        rates.append(done / (time.perf_counter() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilevit_s")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=3.0, help="per method")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/cost_rate.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    size = (args.img_size, args.img_size)
    costs = cost_model(args.backbone, timm.create_model(args.backbone), size)
    family = get_adapter(args.backbone).family
    space = SearchSpace.build(SpaceFile.load(None, family=family), costs.layer_grids, reduces_cost=costs.reduces_cost)
    table = costs.table(space.choices)
    points = space.random(np.random.default_rng(0), 10_000)
    schedules = [space.schedule(point) for point in points[:2000]]

    by_table = table.costs(points)
    few = list(range(8))
    subnets = [
        create_subnet(args.backbone, keep_ratios=schedules[i].keep_ratios, forms=schedules[i].forms) for i in few
    ]
    for i in few:
        assert by_table[i] == costs.macs(schedules[i]) == traced_macs(subnets[i], size)

    methods: dict[str, Callable[[int], int]] = {
        "table, batches of 10,000": lambda _: len(table.costs(points)),
        "formula, one by one": lambda done: costs.macs(schedules[done % len(schedules)]) and 1,
        "fvcore trace, net already built": lambda done: traced_macs(subnets[done % len(few)], size) and 1,
    }
    results = {name: rate(count, args.seconds) for name, count in methods.items()}
    slowest = float(np.median(results["fvcore trace, net already built"]))
    print(f"{args.backbone} at {args.img_size} px, {len(space.layers)} layers, one thread; schedules a second")
    print(f"{'':34}{'median':>12}{'min':>12}{'max':>12}{'x fvcore':>12}")
    for name, rates in results.items():
        median = float(np.median(rates))
        print(f"{name:34}{median:12,.1f}{min(rates):12,.1f}{max(rates):12,.1f}{median / slowest:12,.0f}")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "backbone": args.backbone, "img_size": args.img_size, "schedules_per_second": results,
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip
    args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
