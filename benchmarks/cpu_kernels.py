"""Kernels that torch chooses for bf16 training on a CPU, and those that `ltmsearch` takes instead.

Claim:    under bf16 autocast attention and convolutions in groups train faster with engine/cpu_kernels.py than without.
Command:  python benchmarks/cpu_kernels.py
Duration: a minute
Result:   benchmarks/results/cpu_kernels.json
Page:     docs/benchmarks/search.md

One thread; shapes of ViT-S, Swin-T and FastViT at 112 px. Activations come in bf16, weights in fp32, as in a network
under autocast; the last way is fp32 throughout. All ways take turns call by call; a time is the median over rounds of
the median of a round, in seconds that the thread ran. *Overhead* is what the mode adds to a call that it does not
change.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from harness.arguments import benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.tables import print_table
from harness.timing import relative_spread, round_medians
from torch import Tensor

from ltmsearch.engine.cpu_kernels import CpuKernels

TORCH, OURS, FP32 = "torch, bf16", "ltmsearch, bf16", "fp32"
WAYS = (TORCH, OURS, FP32)
Operation = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def operations(batch: int, dtype: torch.dtype) -> dict[str, Operation]:
    """Operations of the families, with inputs that want gradients; activations in `dtype`."""

    def activation(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape).requires_grad_()

    depthwise = partial(F.conv2d, stride=2, padding=1, groups=96)
    attend = F.scaled_dot_product_attention
    return {
        "attention of 65 tokens, 6 heads": (attend, tuple(activation(batch, 6, 65, 64) for _ in range(3))),
        "attention in 16 windows of 49 tokens an image, 3 heads": (
            attend,
            tuple(activation(16 * batch, 3, 49, 32) for _ in range(3)),
        ),
        "depthwise 3×3 convolution, stride 2, 96 channels": (
            depthwise,
            (activation(batch, 96, 56, 56), weight(96, 1, 3, 3)),
        ),
        "1×1 convolution, 24 to 48 channels (not replaced)": (
            F.conv2d,
            (activation(batch, 24, 28, 28), weight(48, 24, 1, 1)),
        ),
    }


def one_pass(operation: Operation, way: str, *, backward: bool) -> None:
    """Forward, and backward if wanted."""
    run, inputs = operation
    modes: list[AbstractContextManager[Any]] = []
    if way != FP32:
        modes.append(torch.autocast("cpu", dtype=torch.bfloat16))
    if way == OURS:
        modes.append(CpuKernels())
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        out = run(*inputs)
    if backward:
        torch.autograd.grad(out, inputs, torch.ones_like(out))


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
    return 1e3 * (median(medians["mode"]) - median(medians["plain"])) / calls


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parse(parser, batch_size=2, rounds=1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    by_way = {way: operations(args.batch_size, torch.float32 if way == FP32 else torch.bfloat16) for way in WAYS}
    results: dict[str, Any] = {}
    rows = []
    for name in by_way[TORCH]:
        for part, backward in (("forward", False), ("forward and backward", True)):
            runs = {way: partial(one_pass, by_way[way][name], way, backward=backward) for way in WAYS}
            medians = round_medians(runs, rounds=args.rounds, calls=7, clock=time.thread_time)
            results.setdefault(name, {})[part] = medians
            cells = [f"{median(medians[way]):.1f} ± {relative_spread(medians[way]):.0%}" for way in WAYS]
            rows.append([f"{name}, {part}", *cells, f"{median(medians[TORCH]) / median(medians[OURS]):.2f}"])
    print_table("milliseconds ± middle half of the rounds", ("operation", *WAYS, "times as fast"), rows)
    overhead = overhead_us(2000)
    print(f"overhead: {overhead:.1f} µs a call")
    write_results(args.out / "cpu_kernels.json", settings=settings_of(args), medians_ms=results, overhead_us=overhead)


if __name__ == "__main__":
    main()
