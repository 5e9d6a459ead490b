"""Do merged nets run as fast as their GFLOPs say? Plain, LTM in every form, ToMe at equal GFLOPs, and the bound.

    python benchmarks/merged_latency.py [--backbones B …] [--keep 0.5] [--batch-sizes 1 16] [--rounds 5] [--profile]

One keep ratio in all layers, 224 px, channels_last, eager, one thread; masks cluster by content, as in trained weights.
`by rule` takes per layer the form that is fastest there: dense (soft) where its products are few, local elsewhere.
`free` is a merge that costs nothing (the first P tokens, and back nothing), which no merge can beat: the upper bound.
ToMe merges by a schedule of the same GFLOPs as the form beside it; what difference remains is printed.

All nets of a backbone take turns call by call, with the order reversed each time; a latency is the minimum over rounds
of the median of a round, the spread the middle half of the plain net's medians. The clock counts the seconds
that the one thread ran (`--clock wall`: those that passed), so that a busy machine disturbs less. Ratios to the plain
net travel; milliseconds are of this machine.

Bars: (a) at the largest batch some form turns 0.8 of its FLOPs reduction into latency; (b) at the smallest batch some
form is not slower than the plain net; (c) at each batch the fastest form is not slower than ToMe at equal GFLOPs. What
lies above by no more than the spread is told as even.
Memory that is freed is kept, as in `ltmsearch profile`; `--memory plain` leaves that to the C library.
`--profile` tells by kind of work where the time and the FLOPs of the plain and the merged net go.
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ltmsearch.costs import CostModel, cost_model, traced_macs_by_module
from ltmsearch.engine.runtime import keep_freed_memory
from ltmsearch.merging import Merge, MergeOperator
from ltmsearch.models import MERGING, attached_operators, create_subnet
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Form, MergeSchedule

BACKBONES = ("mobilevit_xs", "mobilevit_s", "efficientvit_b1", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")
SIZE = (224, 224)
FORMS: tuple[Form, ...] = ("soft", "hard", "matched")
DENSE_BELOW = 4e6
"""Below so many multiply-adds of Aᵀ Z, over images, windows and groups, the soft form is the fastest: see `by_rule`."""
EQUAL = 0.01
"""GFLOPs that differ by this share or less are equal."""
SHARE = 0.8
"""Of the FLOPs reduction that is to arrive as latency reduction."""
CALLS = 15
"""Of each net in a round, at batch 1; fewer of larger batches."""
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.thread_time, "wall": time.perf_counter}
NORMS = (nn.BatchNorm2d, nn.LayerNorm)
KINDS = ("convolution", "norm, activation", "attention", "MLP", "merging", "rest")


class FreeMerge(Merge):
    """Hands nothing back."""

    def unmerge_change(self, before: Tensor, change: Tensor) -> Tensor:
        return before


class FreeMerging(MergeOperator):
    """Keeps the first P tokens: the shapes of a merge without its work."""

    forms = ("soft",)

    def forward(self, tokens_in: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        count = tokens(target)
        return FreeMerge(tokens=tokens_in[:, :, :count], sizes=sizes[:, :count], assignment=None)  # type: ignore[arg-type]


def free_net(backbone: str, layers: tuple[str, ...], keep: float) -> nn.Module:
    """The merged net of one keep ratio, whose merges cost nothing."""
    net = create_subnet(backbone, keep_ratios={"*": keep})
    for layer, operator in attached_operators(net, layers).items():
        free = FreeMerging(0)
        free.keep_ratio = operator.keep_ratio
        net.get_submodule(layer).add_module(MERGING, free)
    return net


def by_rule(costs: CostModel, keep: float, batch: int) -> dict[str, Form]:
    """The fastest form per layer: soft where B·W·G·N·P·D is small, else by index.

    Without an N×P matrix a merge takes about ten small calls more, and saves 2·N·P·D multiply-adds per group. Of the
    two forms by index matching makes fewer calls; in front of a convolution (`filled`) tokens must stay on the grid.
    """
    grids = costs.grids(MergeSchedule.uniform(costs.layers, keep, "ltm"))
    forms: dict[str, Form] = {}
    for chain in costs.chains:
        for layer in chain.layers:
            n, p = (tokens(grid) for grid in grids[layer.name])
            dense = batch * layer.windows * layer.groups * n * p * layer.dim < DENSE_BELOW
            forms[layer.name] = "soft" if dense else "hard" if layer.filled else "matched"
    return forms


def equal_tome(costs: CostModel, macs: int) -> MergeSchedule:
    """ToMe's schedule whose cost is nearest: one keep ratio up to some layer and another from there on."""
    ratios = np.round(np.arange(0.3, 1.0, 0.02), 2)
    uniform = {float(r): costs.macs(MergeSchedule.uniform(costs.layers, float(r), "tome")) for r in ratios}
    best = min(uniform, key=lambda r: abs(uniform[r] - macs))
    layers = costs.layers
    mixed = [
        MergeSchedule(
            keep_ratios={**dict.fromkeys(layers[:k], best), **dict.fromkeys(layers[k:], other)}, operator="tome"
        )
        for other in uniform
        for k in range(1, len(layers) + 1)
    ]
    return min(mixed, key=lambda schedule: abs(costs.macs(schedule) - macs))


def equal_name(shares: dict[str, float], wanted: float) -> str:
    """The ToMe net of those there are whose cost is that already, to half of what counts as equal; else empty."""
    known = (n for n, share in shares.items() if n.startswith("tome") and abs(share / wanted - 1) <= EQUAL / 2)
    return next(known, "")


def nets_of(backbone: str, keep: float, batch: int) -> tuple[dict[str, nn.Module], dict[str, float], dict[str, str]]:
    """All nets by name; the cost of each as a share of the plain net's; and for each form the ToMe net of its cost."""
    plain = create_subnet(backbone)
    costs, tome = cost_model(backbone, plain, SIZE), cost_model(backbone, plain, SIZE, "tome")
    nets, shares, equals = {"plain": plain}, {"plain": 1.0}, dict[str, str]()
    ltm: dict[str, Form | dict[str, Form]] = {form: form for form in FORMS}
    for name, forms in {**ltm, "by rule": by_rule(costs, keep, batch)}.items():
        nets[name] = create_subnet(backbone, keep_ratios={"*": keep}, forms=forms, mask_start="content")  # type: ignore[arg-type]
        by_layer = dict.fromkeys(costs.layers, forms) if isinstance(forms, str) else forms
        schedule = MergeSchedule(
            keep_ratios=dict.fromkeys(costs.layers, keep), operator="ltm", forms=by_layer  # type: ignore[arg-type]
        )  # fmt: skip
        macs = costs.macs(schedule)
        shares[name] = macs / costs.base_macs
        equals[name] = equal_name(shares, shares[name])
        if not equals[name]:
            other, equals[name] = equal_tome(tome, macs), f"tome {len(nets)}"
            nets[equals[name]] = create_subnet(backbone, keep_ratios=dict(other.keep_ratios), operator="tome")
            shares[equals[name]] = tome.macs(other) / costs.base_macs
    pool = cost_model(backbone, plain, SIZE, "pool")
    nets["pool"] = create_subnet(backbone, keep_ratios={"*": keep}, operator="pool")
    shares["pool"] = pool.macs(MergeSchedule.uniform(costs.layers, keep, "pool")) / costs.base_macs
    nets["free"] = free_net(backbone, costs.layers, keep)
    for net in nets.values():
        net.eval().to(memory_format=torch.channels_last)
    return nets, shares, equals


def latencies(nets: dict[str, nn.Module], images: Tensor, rounds: int, clock: str) -> dict[str, list[float]]:
    """Medians in milliseconds, one per round; nets take turns call by call, so that all see the machine alike."""
    medians: dict[str, list[float]] = {name: [] for name in nets}
    now = CLOCKS[clock]
    with torch.inference_mode():
        for net in nets.values():
            net(images)
        for number in range(rounds):
            spent: dict[str, list[float]] = {name: [] for name in nets}
            for turn in range(max(1, CALLS // len(images))):
                for name in list(nets)[:: 1 if (number + turn) % 2 == 0 else -1]:
                    start = now()
                    nets[name](images)
                    spent[name].append(1e3 * (now() - start))
            for name, values in spent.items():
                medians[name].append(float(np.median(values)))
    return medians


def judge(times: dict[str, float], shares: dict[str, float], equals: dict[str, str]) -> dict[str, Any]:
    """What the bars ask, of one backbone at one batch size, from latencies and costs over the plain net's."""
    forms = (*FORMS, "by rule")
    turned = {name: (1 - times[name]) / (1 - shares[name]) for name in forms}
    fastest = min(forms, key=times.__getitem__)
    against = {name: times[name] / times[equals[name]] for name in forms}
    return {
        "turned": turned, "most turned": max(forms, key=turned.__getitem__), "fastest": fastest, "over tome": against,
        "bound": (1 - times["free"]) / (1 - shares[fastest]),
    }  # fmt: skip


def label_of(path: str, module: nn.Module) -> str | None:
    """What kind of work everything inside a module belongs to, where that is one."""
    name = path.rpartition(".")[2]
    known = {MERGING: "merging", "attn": "attention", "mlp": "MLP"}
    return "attention" if type(module).__name__ == "LiteMLA" else known.get(name)


def labelled(module: nn.Module, label: str) -> None:
    """Have a module's work recorded under a label."""
    scopes: list[Any] = []

    def enter(*_: Any) -> None:
        scopes.append(record_function(label))
        scopes[-1].__enter__()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(lambda *_: scopes.pop().__exit__(None, None, None))


def kind_of(op: str, labels: set[str]) -> str:
    """The kind of work of one operator call inside labelled modules."""
    if "merging" in labels:
        return "merging"
    if "conv" in op:
        return "convolution"
    if any(part in op for part in ("norm", "silu", "gelu", "hardswish", "relu")):
        return "norm, activation"
    return "attention" if "attention" in labels or "attention" in op else "MLP" if "MLP" in labels else "rest"


def time_by_kind(net: nn.Module, images: Tensor, runs: int) -> dict[str, float]:
    """Share of the time by kind, from torch.profiler; unmerging counts as merging."""
    for path, module in net.named_modules():
        label = label_of(path, module)
        if label:
            labelled(module, label)
    unmerge_change = Merge.unmerge_change

    def recorded(merge: Merge, before: Tensor, change: Tensor) -> Tensor:
        with record_function("merging"):
            return unmerge_change(merge, before, change)

    Merge.unmerge_change = recorded  # type: ignore[method-assign]
    try:
        with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(runs):
                net(images)
    finally:
        Merge.unmerge_change = unmerge_change  # type: ignore[method-assign]
    spent: Counter[str] = Counter()
    for event in profiler.events():
        parent, labels = event.cpu_parent, set()
        while parent is not None:
            labels.add(parent.name)
            parent = parent.cpu_parent
        if event.name.startswith("aten::"):
            spent[kind_of(event.name, labels)] += event.self_cpu_time_total
    return {kind: spent[kind] / spent.total() for kind in KINDS}


def macs_by_kind(net: nn.Module) -> dict[str, float]:
    """Share of the multiply-adds by kind."""
    counted, found = traced_macs_by_module(net, SIZE), Counter[str]()
    for path, module in net.named_modules():
        label = label_of(path, module)
        if isinstance(module, nn.Conv2d):
            found["convolution"] += counted[path]
        elif isinstance(module, NORMS):
            found["norm, activation"] += counted[path]
        elif label:
            within = [n for n, m in module.named_modules() if isinstance(m, (*NORMS, nn.Conv2d))]
            found[label] += counted[path] - sum(counted[f"{path}.{n}"] for n in within)
    found["rest"] = counted[""] - found.total()
    return {kind: found[kind] / counted[""] for kind in KINDS}


def processor() -> str:
    """The processor's model name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_bars(result: dict[int, dict[str, Any]]) -> None:
    """One line per bar."""
    small, large = min(result), max(result)
    judged, name = result[large]["judged"], result[large]["judged"]["most turned"]
    turned = judged["turned"][name]
    told = "met" if turned >= SHARE else "MISSED"
    print(f"  (a) batch {large}: {turned:.2f} of the FLOPs reduction ({name}), bound {judged['bound']:.2f}: {told}")
    name = result[small]["judged"]["fastest"]
    over = result[small]["over plain"][name]
    print(f"  (b) batch {small}: {over:.3f} of the plain net ({name}): {_verdict(over, result[small])}")
    for batch, at in result.items():
        name = at["judged"]["fastest"]
        over = at["judged"]["over tome"][name]
        print(f"  (c) batch {batch}: {over:.3f} of ToMe at equal GFLOPs ({name}): {_verdict(over, at)}", flush=True)


def _verdict(ratio: float, at: dict[str, Any]) -> str:
    return "met" if ratio <= 1 else "even" if ratio <= 1 + at["spread"] else "MISSED"


def measure(backbone: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times one backbone at one batch size, and prints its table."""
    nets, shares, equals = nets_of(backbone, args.keep, batch)
    images = torch.randn(batch, 3, *SIZE).to(memory_format=torch.channels_last)
    medians = latencies(nets, images, args.rounds, args.clock)
    plain = min(medians["plain"])
    over = {name: min(values) / plain for name, values in medians.items()}
    spread = float(np.subtract(*np.percentile(medians["plain"], [75, 25]))) / plain
    print(f"\n{backbone}, batch {batch}: plain {plain:.1f} ms, spread {spread:.1%}")
    print(f"{'':18}{'FLOPs saved':>12}{'time saved':>12}{'share':>8}{'over tome':>11}{'GFLOPs of tome differ':>23}")
    judged = judge(over, shares, equals)
    for name in (*FORMS, "by rule", "pool", "free"):
        saved, share = 1 - over[name], shares.get(name)
        cells = (
            f"{'':12}{saved:12.1%}" if share is None else f"{1 - share:12.1%}{saved:12.1%}{saved / (1 - share):8.2f}"
        )
        if name in judged["over tome"] and share is not None:
            differ = shares[equals[name]] / share - 1
            note = "" if abs(differ) <= EQUAL else " not equal"
            cells += f"{judged['over tome'][name]:11.3f}{differ:23.2%}{note}"
        print(f"{name:18}{cells}", flush=True)
    result = {
        "medians_ms": medians,
        "over plain": over,
        "gflops over plain": shares,
        "judged": judged,
        "spread": spread,
    }
    if args.profile:
        runs = max(1, round(2000 / plain))
        best = judged["fastest"]
        result["time by kind"] = {name: time_by_kind(nets[name], images, runs) for name in ("plain", best)}
        result["macs by kind"] = {name: macs_by_kind(create_subnet(backbone) if name == "plain" else nets[name])
                                  for name in ("plain", best)}  # fmt: skip
        print(f"{'shares by kind':32}" + "".join(f"{kind:>18}" for kind in KINDS))
        for what in ("time by kind", "macs by kind"):
            for name, kinds in result[what].items():
                print(f"{what + ', ' + name:32}" + "".join(f"{kinds[kind]:18.1%}" for kind in KINDS), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--memory", choices=["kept", "plain"], default="kept")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/merged_latency.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = args.memory == "kept" and keep_freed_memory()
    machine = {
        "processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__,
        "threads": torch.get_num_threads(), "clock": args.clock,
        "freed memory": "kept" if kept else "as the C library does",
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for backbone in args.backbones:
        results[backbone] = {batch: measure(backbone, batch, args) for batch in args.batch_sizes}
        print_bars(results[backbone])
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"keep": args.keep, "results": results, "machine": machine}, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
