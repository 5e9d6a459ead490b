"""Schedules costed per second: by the vectorised table, by the formula one by one, and by fvcore's trace of a net.

Claim:    the cost table is millions of times faster than a trace, and counts the same.
Command:  python benchmarks/cost_rate.py
Duration: half a minute
Result:   benchmarks/results/cost_rate.json
Page:     docs/benchmarks/costs.md

One thread; the same random schedules for all three methods; the three counts of some schedules are compared.
"""

import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from harness.arguments import benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.tables import print_table

from ltmsearch.costs import cost_model, traced_macs
from ltmsearch.models import create_subnet, get_adapter
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile

REPEATS = 5
TABLE, FORMULA, TRACE = "table, batches of 10,000", "formula, one by one", "fvcore trace, net already built"


def rates(count: Callable[[int], int], seconds: float) -> list[float]:
    """Schedules per second in each repeat; `count(i)` costs a batch and returns its size."""
    measured = []
    for _ in range(REPEATS):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / REPEATS:
            done += count(done)
        measured.append(done / (time.perf_counter() - start))
    return measured


def methods(backbone: str, img_size: int, compared: int) -> dict[str, Callable[[int], int]]:
    """Functions that cost a batch and return its size; the counts of `compared` schedules must be equal."""
    size = (img_size, img_size)
    costs = cost_model(backbone, timm.create_model(backbone), size)
    file = SpaceFile.load(None, family=get_adapter(backbone).family)
    space = SearchSpace.build(file, costs)
    table = costs.table(space.choices)
    points = space.random(np.random.default_rng(0), 10_000)
    schedules = [space.schedule(point) for point in points[:2000]]
    by_table = table.costs(points)
    nets = [create_subnet(backbone, keep_ratios=s.keep_ratios, forms=s.forms) for s in schedules[:compared]]
    for net, schedule, counted in zip(nets, schedules, by_table, strict=False):
        assert counted == costs.macs(schedule) == traced_macs(net, size)
    return {
        TABLE: lambda _: len(table.costs(points)),
        FORMULA: lambda done: costs.macs(schedules[done % len(schedules)]) and 1,
        TRACE: lambda done: traced_macs(nets[done % len(nets)], size) and 1,
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", default="mobilevit_s")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each method")
    parser.add_argument("--compared", type=int, default=8, help="schedules that all three methods count")
    args = parse(parser, backbone="mobilevit_xxs", img_size=64, seconds=0.5, compared=2)
    torch.set_num_threads(1)
    measured = {
        name: rates(count, args.seconds) for name, count in methods(args.backbone, args.img_size, args.compared).items()
    }
    slowest = float(np.median(measured[TRACE]))
    rows = [
        [name, f"{np.median(each):,.1f}", f"{min(each):,.1f}", f"{max(each):,.1f}", f"{np.median(each) / slowest:,.0f}"]
        for name, each in measured.items()
    ]
    title = f"{args.backbone} at {args.img_size} px, one thread: schedules per second"
    print_table(title, ("method", "median", "least", "most", "× fvcore"), rows)
    write_results(args.out / "cost_rate.json", settings=settings_of(args), schedules_per_second=measured)


if __name__ == "__main__":
    main()
