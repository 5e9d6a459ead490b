"""Exported nets in onnxruntime, in fp32 and int8: agreement with torch, size, and latency beside the unmerged net's.

Claim:    exported merged nets compute what torch computes and run faster, except in EfficientViT; int8 multiplies that.
Command:  python benchmarks/onnx_latency.py
Duration: half an hour; exporting takes about a minute per net
Result:   benchmarks/results/onnx_latency.json
Page:     docs/benchmarks/costs.md

One keep ratio in all layers at 224 px unless a name ends in another size (NAME@PIXELS), exported as `ltmsearch export
--onnx --int8` does it. One thread; the nets of a backbone take turns call by call. A latency is the minimum over
rounds of the median of a round.
"""

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from harness.arguments import add_backbones, add_work, benchmark_parser, parse
from harness.merged_nets import at_size
from harness.records import finished, settings_of, write_results
from harness.tables import print_table
from harness.timing import relative_spread, round_medians

from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.models import create_subnet
from ltmsearch.programs import export_onnx
from ltmsearch.programs.int8 import quantize_onnx
from ltmsearch.programs.onnx import open_onnx
from ltmsearch.schedules.schedule import Form, MergeSchedule

FORMS: dict[str, tuple[Form, ...]] = {
    "mobilevit_s": ("soft", "matched"),
    "vit_small_patch16_224": ("soft", "hard", "matched"),
    "swin_tiny_patch4_window7_224": ("soft", "matched"),
    "efficientvit_b1": ("soft", "hard"),
    "vit_small_patch14_dinov2@112": ("matched",),
    "vit_small_patch14_dinov2@224": ("matched",),
}
UNMERGED = "unmerged"
INT8 = "int8"


def export(name: str, form: Form | None, keep: float, path: Path) -> dict[str, Any]:
    """Export one net; its size, cost, and agreement with torch."""
    print(f"exporting {path.name}", flush=True)
    torch.manual_seed(0)
    backbone, size = at_size(name)
    net = create_subnet(backbone, keep_ratios={"*": keep} if form else None, forms=form, img_size=size)
    check = export_onnx(net, path, img_size=size)
    costs = backbone_costs(backbone, size, "ltm")
    schedule = MergeSchedule.uniform(costs.layers, keep if form else 1.0, "ltm", form)
    about = {"file": path.name, "bytes": check.bytes, "nodes": check.nodes, "opset": check.opset}
    return {**about, "gflops": costs.macs(schedule) / GIGA, "difference": check.difference}


def quantize(net: dict[str, Any], source: Path, path: Path) -> dict[str, Any]:
    """Quantise the file of an exported net; its size, the number of its products in int8, and the cost as before."""
    products = quantize_onnx(source, path)
    return {"file": path.name, "bytes": path.stat().st_size, "int8_products": products, "gflops": net["gflops"]}


def measure(files: dict[str, Path], size: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Median milliseconds per round of each file."""
    nets = {name: open_onnx(path, threads=1) for name, path in files.items()}
    images = torch.randn(batch, 3, size, size)
    runs = {name: lambda net=net: net(images) for name, net in nets.items()}
    return round_medians(runs, rounds=rounds, calls=max(2, 20 // batch))


def rows(backbone: str, nets: dict[str, Any], latencies: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Table rows of one backbone."""
    result = []
    for name, net in nets.items():
        exact = [str(net["nodes"]), f"{net['difference']:.1e}"] if "nodes" in net else ["", ""]
        cells = [f"{net['bytes'] / 1e6:.1f}", *exact, f"{net['gflops']:.3f}"]
        for medians in latencies.values():
            own, plain = min(medians[name]), min(medians[UNMERGED])
            spread = f" (spread {relative_spread(medians[UNMERGED]):.0%})" if name == UNMERGED else ""
            cells.append(f"{own:.1f} ms, {own / plain:.2f}{spread}")
        result.append([f"{backbone}, {name}", *cells])
    return result


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, list(FORMS), only=True)
    add_work(parser)
    parser.add_argument("--keep", type=float, default=0.5, help="keep ratio of all layers")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    args = parse(parser, backbones=["mobilevit_s"], batch_sizes=[1], rounds=2)
    torch.set_num_threads(1)
    table, results = [], {}
    for backbone in args.backbones:
        nets, files = {}, {}
        for form in (None, *FORMS[backbone]):
            name = form or UNMERGED
            stem = f"{backbone}-{name}" + (f"-{args.keep:g}" if form else "")
            files[name] = args.work / f"{stem}.onnx"
            nets[name] = finished(args.work / f"{stem}.json", partial(export, backbone, form, args.keep, files[name]))
            quantized, path = f"{name}, {INT8}", args.work / f"{stem}-{INT8}.onnx"
            nets[quantized] = finished(path.with_suffix(".json"), partial(quantize, nets[name], files[name], path))
            files[quantized] = path
        latencies = {str(batch): measure(files, at_size(backbone)[1], batch, args.rounds) for batch in args.batch_sizes}
        results[backbone] = {"nets": nets, "latency_ms": latencies}
        table += rows(backbone, nets, latencies)
    batches = (f"batch {batch}: latency, over unmerged" for batch in args.batch_sizes)
    title = f"onnxruntime, one thread, keep ratio {args.keep:g} in all layers"
    print_table(title, ("net", "MB", "nodes", "difference from torch", "GFLOPs", *batches), table)
    onnx = {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    write_results(args.out / "onnx_latency.json", settings=settings_of(args), onnx_versions=onnx, backbones=results)


if __name__ == "__main__":
    main()
