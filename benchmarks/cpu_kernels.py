"""Kernels that torch chooses for bf16 training on a CPU, and those that `ltmsearch` takes instead.

Claim:    forward and backward passes of attention and of convolutions in groups under bf16 autocast are faster with
          engine/cpu_kernels.py than without.
Command:  python benchmarks/cpu_kernels.py
Duration: a minute
Result:   benchmarks/results/cpu_kernels.json
Page:     docs/benchmarks/search.md

One thread, batch 16 at 112 px; a pass is forward and backward. Both ways take turns call by call; medians of each
round, in seconds that the thread ran. *fp32* is the same without autocast. *Overhead* is what the mode adds to a call
that it does not change.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from harness.arguments import benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.tables import print_table
from harness.timing import relative_spread, round_medians
from torch import Tensor

from ltmsearch.engine.cpu_kernels import CpuKernels

WAYS = ("torch, bf16", "ltmsearch, bf16", "fp32")


def operations(batch: int) -> dict[str, Callable[[], Tensor]]:
    """Operations of the families, on inputs that want gradients."""

    def wanted(*shape: int) -> Tensor:
        return torch.randn(*shape).requires_grad_()

    vit = [wanted(batch, 6, 65, 64) for _ in range(3)]
    swin = [wanted(16 * batch, 3, 49, 32) for _ in range(3)]
    image, depthwise = wanted(batch, 96, 56, 56), wanted(96, 1, 3, 3)
    narrow, kernel = wanted(batch, 24, 28, 28), wanted(48, 24, 1, 1)
    return {
        "attention of 65 tokens, 6 heads": lambda: F.scaled_dot_product_attention(vit[0], vit[1], vit[2]),
        "attention in 16 windows of 49 tokens, 3 heads": lambda: F.scaled_dot_product_attention(
            swin[0], swin[1], swin[2]
        ),
        "depthwise 3×3 convolution, stride 2, 96 channels": lambda: F.conv2d(
            image, depthwise, stride=2, padding=1, groups=96
        ),
        "1×1 convolution, 24 to 48 channels (unchanged)": lambda: F.conv2d(narrow, kernel),
    }


def one_pass(operation: Callable[[], Tensor], way: str) -> None:
    """Forward and backward."""
    modes: list[AbstractContextManager[Any]] = []
    if way != "fp32":
        modes.append(torch.autocast("cpu", dtype=torch.bfloat16))
    if way == "ltmsearch, bf16":
        modes.append(CpuKernels())
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        out = operation()
    out.float().sum().backward()


def overhead_us(calls: int) -> float:
    """Microseconds that the mode adds to a call."""
    x = torch.zeros(1)

    def add() -> None:
        for _ in range(calls):
            torch.add(x, x)

    def inside() -> None:
        with CpuKernels():
            add()

    medians = round_medians({"plain": add, "mode": inside}, rounds=3, calls=5, clock=time.thread_time)
    return 1e3 * (min(medians["mode"]) - min(medians["plain"])) / calls


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parse(parser, batch_size=2, rounds=1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results, rows = {}, []
    for name, operation in operations(args.batch_size).items():
        runs = {way: lambda way=way, run=operation: one_pass(run, way) for way in WAYS}
        medians = round_medians(runs, rounds=args.rounds, calls=7, clock=time.thread_time)
        results[name] = medians
        cells = [f"{min(medians[way]):.1f} ± {relative_spread(medians[way]):.0%}" for way in WAYS]
        rows.append([name, *cells, f"{min(medians[WAYS[0]]) / min(medians[WAYS[1]]):.2f}"])
    print_table("milliseconds a pass ± middle half", ("operation", *WAYS, "times as fast"), rows)
    overhead = overhead_us(2000)
    print(f"overhead: {overhead:.1f} µs a call")
    write_results(args.out / "cpu_kernels.json", settings=settings_of(args), medians_ms=results, overhead_us=overhead)


if __name__ == "__main__":
    main()
