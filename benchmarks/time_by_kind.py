"""Time and multiply-adds of plain and merged nets by kind of work.

Claim:    where latency does not follow GFLOPs, work that merging does not touch takes the time.
Command:  python benchmarks/time_by_kind.py
Duration: ten minutes
Result:   benchmarks/results/time_by_kind.json
Page:     docs/benchmarks/costs.md

Nets as in `merged_latency.py`: one keep ratio in all layers, 224 px unless a name ends in another size (NAME@PIXELS),
eager, one thread; torch.profiler. `--precision bf16`: under autocast, as where trials are scored.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from harness.arguments import add_backbones, benchmark_parser, parse
from harness.merged_nets import at_size
from harness.records import settings_of, write_results
from harness.tables import print_table
from timm.models.efficientvit_mit import LiteMLA
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ltmsearch.costs import traced_macs_by_module
from ltmsearch.engine.runtime import keep_freed_memory
from ltmsearch.merging import Merge
from ltmsearch.merging.assignment import HardAssignment, SoftAssignment
from ltmsearch.models import MERGING, create_subnet, swin
from ltmsearch.models.swin import KeyedWindowAttention, MergingSwinBlock

BACKBONES = (
    "mobilevit_xs",
    "mobilevit_s",
    "efficientvit_b1",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch14_dinov2@112",
)
NORMS = (nn.BatchNorm2d, nn.LayerNorm)
LABELS = ("merging", "attention", "MLP", "norm")
"""Names under which a profile records modules and methods."""
KINDS = ("convolution", "norm, activation", "attention", "MLP", "merging", "rest")


def module_kind(path: str, module: nn.Module) -> str | None:
    """Kind that everything inside a module belongs to, where there is one."""
    known = {MERGING: "merging", "attn": "attention", "mlp": "MLP"}
    return "attention" if isinstance(module, LiteMLA) else known.get(path.rpartition(".")[2])


def operator_kind(operator: str, label: str | None) -> str:
    """Kind of one operator call; `label`: the innermost one around it."""
    if label == "merging":
        return "merging"
    if "conv" in operator:
        return "convolution"
    if label == "norm" or any(part in operator for part in ("norm", "silu", "gelu", "hardswish", "relu")):
        return "norm, activation"
    if label == "attention" or "attention" in operator:
        return "attention"
    return "MLP" if label == "MLP" else "rest"


def label_module(module: nn.Module, label: str) -> None:
    """Record a module's work under a label."""
    scopes: list[Any] = []

    def enter(*_: Any) -> None:
        scopes.append(record_function(label))
        scopes[-1].__enter__()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(lambda *_: scopes.pop().__exit__(None, None, None))


@contextmanager
def methods_recorded() -> Iterator[None]:
    """Record what hooks do not see: the way back to tokens as merging, attention that gives its keys as attention."""
    methods: tuple[tuple[Any, str, str], ...] = (
        (SoftAssignment, "spread", "merging"),
        (HardAssignment, "spread", "merging"),
        (Merge, "unmerge_change", "merging"),
        (KeyedWindowAttention, "forward", "attention"),
        (swin, "change_in_windows", "merging"),
        (MergingSwinBlock, "_keys", "merging"),
    )

    def recorded(method: Callable[..., Tensor], label: str) -> Callable[..., Tensor]:
        def call(*args: Any, **options: Any) -> Tensor:
            with record_function(label):
                return method(*args, **options)

        return call

    own = [getattr(kind, name) for kind, name, _ in methods]
    try:
        for (kind, name, label), method in zip(methods, own, strict=True):
            setattr(kind, name, recorded(method, label))
        yield
    finally:
        for (kind, name, _), method in zip(methods, own, strict=True):
            setattr(kind, name, method)


def time_by_kind(net: nn.Module, images: Tensor, runs: int, *, bf16: bool) -> dict[str, float]:
    """Share of the time by kind; unmerging, and windows cut for merging, count as merging."""
    for path, module in net.named_modules():
        if kind := "norm" if isinstance(module, NORMS) else module_kind(path, module):
            label_module(module, kind)
    with methods_recorded(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        net(images)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(runs):
                net(images)
    spent: Counter[str] = Counter()
    for event in profiler.events():
        parent = event.cpu_parent
        while parent is not None and parent.name not in LABELS:
            parent = parent.cpu_parent
        if event.name.startswith("aten::"):
            spent[operator_kind(event.name, parent and parent.name)] += event.self_cpu_time_total
    return {kind: spent[kind] / spent.total() for kind in KINDS}


def macs_by_kind(net: nn.Module, size: int) -> dict[str, float]:
    """Share of the multiply-adds by kind."""
    counted, found = traced_macs_by_module(net, (size, size)), Counter[str]()
    for path, module in net.named_modules():
        kind = module_kind(path, module)
        if isinstance(module, nn.Conv2d):
            found["convolution"] += counted[path]
        elif isinstance(module, NORMS):
            found["norm, activation"] += counted[path]
        elif kind:
            inside = [name for name, part in module.named_modules() if isinstance(part, (*NORMS, nn.Conv2d))]
            found[kind] += counted[path] - sum(counted[f"{path}.{name}"] for name in inside)
    found["rest"] = counted[""] - found.total()
    return {kind: found[kind] / counted[""] for kind in KINDS}


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, BACKBONES)
    parser.add_argument("--keep", type=float, default=0.5, help="keep ratio of all layers")
    parser.add_argument("--form", default="matched", help="form of the merged net")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--runs", type=int, default=10, help="calls that are profiled")
    args = parse(parser, backbones=["mobilevit_xxs"], batch_sizes=[1], runs=1)
    torch.set_num_threads(1)
    keep_freed_memory()
    bf16 = args.precision == "bf16"
    results: dict[str, Any] = {}
    merging: dict[str, Any]
    rows = []
    for given in args.backbones:
        backbone, size = at_size(given)
        for name, ratio in (("plain", None), ("merged", args.keep)):
            merging = {"keep_ratios": {"*": ratio}, "forms": args.form, "mask_start": "content"}
            net = create_subnet(backbone, img_size=size, **(merging if ratio else {})).eval()
            shares = {"multiply-adds": macs_by_kind(net, size)}
            net.to(memory_format=torch.channels_last)
            for batch in args.batch_sizes:
                images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
                shares[f"time at batch {batch}"] = time_by_kind(net, images, args.runs, bf16=bf16)
            results.setdefault(given, {})[name] = shares
            rows += [
                [f"{given}, {name}, {what}", *(f"{by[kind]:.1%}" for kind in KINDS)] for what, by in shares.items()
            ]
    print_table("shares by kind of work", ("net", *KINDS), rows)
    name = "time_by_kind.json" if args.precision == "fp32" else f"time_by_kind_{args.precision}.json"
    write_results(args.out / name, settings=settings_of(args), backbones=results)


if __name__ == "__main__":
    main()
