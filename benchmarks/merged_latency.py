"""Latency of merged nets beside their GFLOPs: every form of LTM, ToMe at equal GFLOPs, pooling, and the bound.

Claim:    latency follows GFLOPs in ViT, at batch 16 partly in MobileViT and Swin, at batch 1 hardly.
Command:  python benchmarks/merged_latency.py
Duration: an hour
Result:   benchmarks/results/merged_latency.json
Page:     docs/benchmarks/costs.md

One keep ratio in all layers, 224 px unless a name ends in another size (NAME@PIXELS), channels last, eager, one
thread; masks cluster by content, as in trained weights. `free` is a merge that costs nothing, the upper bound. ToMe
merges by a schedule of the same GFLOPs as the form beside it.

All nets of a backbone take turns call by call. A latency is the minimum over rounds of the median of a round, the
spread the middle half of the plain net's medians. The clock counts the seconds that the thread ran, so that a busy
machine disturbs less (`--clock wall`: elapsed seconds). Freed memory is kept, as in `ltmsearch profile`.
"""

import argparse
import time
from typing import Any

import torch
from harness.arguments import add_backbones, benchmark_parser, parse
from harness.merged_nets import EQUAL, FORMS, at_size, make_nets
from harness.records import settings_of, write_results
from harness.tables import console, print_table
from harness.timing import relative_spread, round_medians

from ltmsearch.engine.runtime import keep_freed_memory

BACKBONES = (
    *("mobilevit_xs", "mobilevit_s", "efficientvit_b1", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"),
    *("vit_small_patch14_dinov2@112", "vit_small_patch14_dinov2@224"),
)
CALLS = 15
"""Calls of each net in a round at batch 1; fewer of larger batches."""
CLOCKS = {"cpu": time.thread_time, "wall": time.perf_counter}


def measure(backbone: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Latencies and costs of one backbone at one batch size, over those of the plain net."""
    made = make_nets(backbone, args.keep)
    _, size = at_size(backbone)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    runs = {name: lambda net=net: net(images) for name, net in made.nets.items()}
    with torch.inference_mode():
        medians = round_medians(runs, rounds=args.rounds, calls=max(1, CALLS // batch), clock=CLOCKS[args.clock])
    plain = min(medians["plain"])
    latency = {name: min(values) / plain for name, values in medians.items()}
    share = {name: (1 - latency[name]) / (1 - made.cost[name]) for name in FORMS}
    fastest = min(FORMS, key=latency.__getitem__)
    return {
        "medians_ms": medians,
        "spread": relative_spread(medians["plain"]),
        "over_plain": latency,
        "gflops_over_plain": made.cost,
        "share": share,
        "best_share": max(share.values()),
        "free_share": (1 - latency["free"]) / (1 - made.cost[fastest]),
        "tome": made.tome,
        "fastest": fastest,
        "over_tome": {name: latency[name] / latency[made.tome[name]] for name in FORMS},
    }


def print_result(backbone: str, batch: int, result: dict[str, Any]) -> None:
    """Print the table of one backbone at one batch size, and what its best form reaches."""
    rows = []
    for name in (*FORMS, "pool", "free"):
        cost, latency = result["gflops_over_plain"].get(name), result["over_plain"][name]
        cells = [f"{latency:.2f}", "" if cost is None else f"{cost:.2f}"]
        if name in FORMS:
            differ = result["gflops_over_plain"][result["tome"][name]] / cost - 1
            note = "" if abs(differ) <= EQUAL else " (not equal)"
            cells += [f"{result['share'][name]:.2f}", f"{result['over_tome'][name]:.2f}", f"{differ:+.2%}{note}"]
        rows.append([name, *cells, *[""] * (5 - len(cells))])
    title = f"{backbone}, batch {batch}: plain {min(result['medians_ms']['plain']):.1f} ms ± {result['spread']:.0%}"
    headings = ("net", "latency", "GFLOPs", "share of the FLOPs reduction", "over ToMe", "GFLOPs of ToMe")
    print_table(title, headings, rows)
    over = result["over_tome"][result["fastest"]]
    console.print(
        f"fastest: {result['fastest']}, {over:.2f} of ToMe at equal GFLOPs; largest share {result['best_share']:.2f}, "
        f"of the free merge {result['free_share']:.2f}\n"
    )


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, BACKBONES)
    parser.add_argument("--keep", type=float, default=0.5, help="keep ratio of all layers")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    args = parse(parser, backbones=["mobilevit_xxs"], batch_sizes=[1], rounds=2)
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    results: dict[str, dict[str, Any]] = {}
    for backbone in args.backbones:
        for batch in args.batch_sizes:
            result = results.setdefault(backbone, {})[str(batch)] = measure(backbone, batch, args)
            print_result(backbone, batch, result)
    path = args.out / "merged_latency.json"
    write_results(path, settings=settings_of(args), freed_memory_kept=kept, backbones=results)


if __name__ == "__main__":
    main()
