"""Latency of compiled nets: plain and merged, in eager torch and under `torch.compile`.

Claim:    a merged net compiles as one graph; compiled, it beats the plain net where it does so in eager torch.
Command:  python benchmarks/compiled_latency.py
Duration: 20 minutes; a net takes half a minute to two minutes to compile
Result:   benchmarks/results/compiled_latency.json
Page:     docs/benchmarks/costs.md

One keep ratio in all layers, the default form of the family, 224 px unless a name ends in another size, fp32,
contiguous, one thread, random weights, masks by content. `fullgraph=True`: a net that does not compile as one graph
ends the benchmark. The nets of a backbone take turns call by call; a latency is the minimum over rounds of the median
of a round, the spread the middle half of the eager plain net's medians. The clock counts the seconds that the thread
ran.
"""

import argparse
import time
from typing import Any

import torch
from harness.arguments import add_backbones, benchmark_parser, parse
from harness.merged_nets import at_size
from harness.records import settings_of, write_results
from harness.tables import print_table
from harness.timing import relative_spread, round_medians
from torch._dynamo.testing import CompileCounterWithBackend

from ltmsearch.engine.runtime import keep_freed_memory
from ltmsearch.models import create_subnet
from ltmsearch.schedules.schedule import Form

FORMS: dict[str, Form] = {
    "mobilevit_s": "matched",
    "efficientvit_b1": "soft",
    "swin_tiny_patch4_window7_224": "matched",
    "vit_small_patch16_224": "matched",
    "vit_small_patch14_dinov2@112": "matched",
    "vit_small_patch14_dinov2@224": "matched",
}
"""Backbones, of which some have an image size, and the default form of their family."""
HEADINGS = (
    *("net", "batch", "plain", "merged", "plain, compiled", "merged, compiled", "merged over plain, both compiled"),
    *("graphs", "to compile", "difference"),
)
CALLS = 10
"""Calls of each net in a round at batch 1; fewer of larger batches."""


def measure(backbone: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Latencies of one backbone at one batch size, over that of the plain net in eager torch."""
    name, size = at_size(backbone)
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    runs, seconds, differences, graphs = {}, {}, {}, {}
    with torch.inference_mode():
        for kind, keep in (("plain", None), ("merged", args.keep)):
            torch.manual_seed(0)
            merging: dict[str, Any] = {"keep_ratios": keep, "forms": FORMS[backbone], "mask_start": "content"}
            net = create_subnet(name, img_size=size, **merging).eval()
            torch._dynamo.reset()
            counter = CompileCounterWithBackend("inductor")
            compiled = torch.compile(net, fullgraph=True, backend=counter)
            start = time.perf_counter()
            logits = compiled(images)
            seconds[kind] = time.perf_counter() - start
            differences[kind], graphs[kind] = float((logits - net(images)).abs().max()), counter.frame_count
            runs[kind] = lambda net=net: net(images)
            runs[f"{kind}, compiled"] = lambda compiled=compiled: compiled(images)
        calls = max(2, CALLS // batch)
        medians = round_medians(runs, rounds=args.rounds, calls=calls, clock=time.thread_time)
    least = {name: min(values) for name, values in medians.items()}
    return {
        "medians_ms": medians,
        "spread": relative_spread(medians["plain"]),
        "over_plain": {name: value / least["plain"] for name, value in least.items()},
        "merged_over_plain_compiled": least["merged, compiled"] / least["plain, compiled"],
        "seconds_to_compile": seconds,
        "graphs": graphs,
        "largest_difference": differences,
    }


def row(backbone: str, batch: int, result: dict[str, Any]) -> list[str]:
    """Table row of one backbone at one batch size."""
    return [
        backbone,
        str(batch),
        f"{min(result['medians_ms']['plain']):.1f} ms ± {result['spread']:.0%}",
        *(f"{result['over_plain'][name]:.2f}" for name in ("merged", "plain, compiled", "merged, compiled")),
        f"{result['merged_over_plain_compiled']:.2f}",
        str(result["graphs"]["merged"]),
        f"{result['seconds_to_compile']['merged']:.0f} s",
        f"{result['largest_difference']['merged']:.0e}",
    ]


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, list(FORMS), only=True)
    parser.add_argument("--keep", type=float, default=0.5, help="keep ratio of all layers")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    args = parse(parser, backbones=["vit_small_patch16_224"], batch_sizes=[1], rounds=2)
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    results: dict[str, dict[str, Any]] = {}
    rows = []
    for backbone in args.backbones:
        for batch in args.batch_sizes:
            result = results.setdefault(backbone, {})[str(batch)] = measure(backbone, batch, args)
            rows.append(row(backbone, batch, result))
            print_table("latency over the plain net's in eager torch", HEADINGS, rows)
    path = args.out / "compiled_latency.json"
    write_results(path, settings=settings_of(args), freed_memory_kept=kept, backbones=results)


if __name__ == "__main__":
    main()
