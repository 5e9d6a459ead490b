"""Exported nets in onnxruntime: agreement with torch, file size, and latency beside the unmerged net's.

    python benchmarks/onnx_latency.py [--backbones B …] [--keep 0.5] [--batch-sizes 1 16] [--rounds 5] [--work DIR]

Every net at 224 px with one keep ratio in all layers, exported as `ltmsearch export --onnx` does it, the unmerged net
too. Latencies on one thread, all nets of a backbone interleaved round by round with the order reversed each time: the
minimum over rounds of the median of a round, and as spread the middle half of the unmerged net's medians. Ratios to the
unmerged net travel; milliseconds are of this machine. Prints a table and writes JSON.

Exporting takes a minute or so per net; with --work the files are kept there and not made again.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.benchmark import Timer

from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.io.files import write_atomic
from ltmsearch.models import create_subnet
from ltmsearch.programs import export_onnx
from ltmsearch.programs.onnx import open_onnx
from ltmsearch.schedules.schedule import Form, MergeSchedule

SIZE = 224
BACKBONES: dict[str, tuple[Form, ...]] = {
    "mobilevit_s": ("soft", "hard"),
    "vit_small_patch16_224": ("soft", "hard", "matched"),
    "swin_tiny_patch4_window7_224": ("soft", "hard"),
    "efficientvit_b1": ("soft", "hard"),
}
"""Backbone → the forms that are measured."""
BASE = "base"


def export(backbone: str, form: Form | None, keep: float, work: Path) -> dict[str, Any]:
    """One net as an ONNX file in `work`, and what was found of it; read back where it was made before."""
    name = f"{backbone}-{form}-{keep:g}" if form else f"{backbone}-{BASE}"
    note = work / f"{name}.json"
    if not note.exists():
        torch.manual_seed(0)
        net = create_subnet(backbone, keep_ratios={"*": keep} if form else None, forms=form)
        check = export_onnx(net, work / f"{name}.onnx", img_size=SIZE)
        costs = backbone_costs(backbone, SIZE, "ltm")
        schedule = MergeSchedule.uniform(costs.layers, keep if form else 1.0, "ltm", form)
        about = {
            **asdict(check.agreement), "file": check.path.name, "bytes": check.bytes, "nodes": check.nodes,
            "opset": check.opset, "runtime": check.runtime, "gflops": costs.macs(schedule) / GIGA,
        }  # fmt: skip
        write_atomic(note, json.dumps(about))
    about = json.loads(note.read_text())
    return {key: about[key] for key in about if key != "batch_sizes"}


def latencies(files: dict[str, Path], batch: int, rounds: int) -> dict[str, list[float]]:
    """Medians in milliseconds, one per round, of all files interleaved."""
    nets = {name: open_onnx(path, threads=1) for name, path in files.items()}
    images = torch.randn(batch, 3, SIZE, SIZE)
    medians: dict[str, list[float]] = {name: [] for name in nets}
    for net in nets.values():
        net(images)
    for number in range(rounds):
        for name in list(nets)[:: 1 if number % 2 == 0 else -1]:
            timer = Timer("net(images)", globals={"net": nets[name], "images": images}, num_threads=1)
            medians[name].append(1e3 * timer.blocked_autorange(min_run_time=0.4).median)
    return medians


def table_of(results: dict[str, Any], batches: list[int], keep: float) -> Table:
    """One line per net."""
    table = Table(title=f"onnxruntime, one thread, {SIZE} px, keep ratio {keep:g} in all layers; × is of the same base")
    table.add_column("net", no_wrap=True)
    for column in ("MB", "nodes", "difference", "GFLOPs", "×"):
        table.add_column(column, justify="right")
    for batch in batches:
        table.add_column(f"ms at {batch}", justify="right")
        table.add_column("×", justify="right")
        table.add_column("spread", justify="right")
    for backbone, result in results.items():
        base = result["nets"][BASE]
        for name, net in result["nets"].items():
            cells = [
                backbone if name == BASE else f"  {name}", f"{net['bytes'] / 1e6:.1f}", str(net["nodes"]),
                f"{net['difference']:.1e}", f"{net['gflops']:.3f}", f"{net['gflops'] / base['gflops']:.2f}",
            ]  # fmt: skip
            for batch in batches:
                medians = result["latency_ms"][str(batch)]
                own, of_base = min(medians[name]), min(medians[BASE])
                low, high = np.percentile(medians[BASE], [25, 75])
                cells += [f"{own:.1f}", f"{own / of_base:.2f}", f"{(high - low) / of_base:.0%}" if name == BASE else ""]
            table.add_row(*cells, end_section=name == list(result["nets"])[-1])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder that keeps the ONNX files")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/onnx_latency.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=max(Console().width, 140))
    with TemporaryDirectory() as temporary:
        work: Path = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        results: dict[str, Any] = {}
        for backbone in args.backbones:
            nets = {}
            for form in (None, *BACKBONES[backbone]):
                console.print(f"{backbone} {form or BASE}: exporting", highlight=False)
                nets[form or BASE] = export(backbone, form, args.keep, work)
            results[backbone] = {"nets": nets, "latency_ms": {}}
        for backbone, result in results.items():
            files = {name: work / net["file"] for name, net in result["nets"].items()}
            for batch in args.batch_sizes:
                console.print(f"{backbone} at batch {batch}: measuring", highlight=False)
                result["latency_ms"][str(batch)] = latencies(files, batch, args.rounds)
    console.print(table_of(results, args.batch_sizes, args.keep))
    versions = {name: version(name) for name in ("torch", "timm", "onnx", "onnxscript", "onnxruntime")}
    machine = {"processor": platform.machine(), "load": os.getloadavg()[0], **versions}
    record = {"img_size": SIZE, "keep": args.keep, "threads": 1, "results": results, "machine": machine}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.json, json.dumps(record, indent=2) + "\n")
    console.print(f"written: {args.json}", highlight=False)


if __name__ == "__main__":
    main()
