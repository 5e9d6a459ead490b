"""The search and merged networks on a GPU: rates, latency, memory, full memory, two workers on one GPU.

Claim:    on a GPU merged networks are as much faster at large batches as their FLOPs promise.
Command:  python benchmarks/gpu.py
Duration: meant to take eight minutes on a GPU, not measured; random weights and the built-in digits: no network
Result:   benchmarks/results/gpu.json
Page:     docs/benchmarks/costs.md

Sections, each skipped by name where the machine lacks what it measures:

    training     images a second of a training step: fp32 or bf16, contiguous or channels last, compiled or not
    latency      plain and merged networks at batch 1, 16 and 256, eager and compiled, with the peak of the memory
    throughput   ViT-S with ToMe's constant r = 13 beside LTM's matched form; ToMe (https://arxiv.org/abs/2210.09461)
                 reports about twice the images a second of the plain network, for larger ViTs
    search       seconds and trials a second of `ltmsearch run` in fp32 and bf16, by one worker, and by two on one GPU
    full memory  a trial whose batch does not fit: it is repeated with half of it

The networks of a section take turns call by call; a figure is the best median of the rounds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from harness.arguments import SMALL_STUDY, add_settings, benchmark_parser, parse, study_settings
from harness.commands import call_ltmsearch
from harness.full_memory import full_memory
from harness.records import settings_of, write_results
from harness.tables import console, leaves, print_table
from harness.timing import in_own_process, round_medians
from torch import Tensor, nn

from ltmsearch.costs import GIGA, cost_model
from ltmsearch.engine.runtime import find_device, free_memory, synchronize
from ltmsearch.models import create_subnet
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.timing import ELSEWHERE, SCORING, TRAINING

NO_GPU = "no CUDA device"
SECTIONS = ("training", "latency", "throughput", "search", "full memory")
TOME_R = 13
QUICK: dict[str, Any] = {
    **{"backbone": "vit_tiny_patch16_224", "img_size": 64, "batch_sizes": [1, 2], "train_batch": 2, "rounds": 1},
    **{"calls": 1, "settings": SMALL_STUDY, "compiled": False, "merges": 1},
}


def per_call(
    run: Callable[[], Any], device: torch.device, *, dtype: torch.dtype = torch.float32, train: bool = False
) -> Callable[[], None]:
    """A call that waits for the device, in a number format, with gradients or without."""
    lower = torch.autocast(device.type, dtype=dtype) if dtype != torch.float32 else nullcontext()

    def call() -> None:
        with nullcontext() if train else torch.inference_mode(), lower:
            loss = run()
        if train:
            loss.backward()  # gradients add up, as in a step of several batches
        synchronize(device)

    return call


def rates(runs: dict[str, Callable[[], None]], images: int, args: argparse.Namespace) -> dict[str, float]:
    """Images a second of each."""
    medians = round_medians(runs, rounds=args.rounds, calls=args.calls, clock=time.perf_counter)
    return {name: 1e3 * images / min(values) for name, values in medians.items()}


def images_of(number: int, size: int, device: torch.device, layout: torch.memory_format) -> Tensor:
    """(number, 3, size, size) random images on a device, in a memory layout."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, size, size, generator=generator).to(device).contiguous(memory_format=layout)


def training(device: torch.device, args: argparse.Namespace) -> dict[str, float]:
    """Images a second of a training step of the plain network, without an optimizer."""
    runs = {}
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    variants = [(dtype, layout, False) for dtype in (torch.float32, torch.bfloat16) for layout in layouts]
    variants += [(torch.bfloat16, "channels last", True)] * args.compiled
    labels = torch.zeros(args.train_batch, dtype=torch.long, device=device)
    for dtype, layout, compiled in variants:
        net = create_subnet(args.backbone, img_size=args.img_size).to(device).to(memory_format=layouts[layout]).train()
        step = torch.compile(net, dynamic=False) if compiled else net
        images = images_of(args.train_batch, args.img_size, device, layouts[layout])
        name = f"{str(dtype)[6:]}, {layout}" + ", compiled" * compiled
        runs[name] = per_call(partial(loss_of, step, images, labels), device, dtype=dtype, train=True)
    return rates(runs, args.train_batch, args)


def loss_of(net: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net(images), labels)


def merged_nets(args: argparse.Namespace) -> dict[str, tuple[nn.Module, float]]:
    """Plain network, ToMe, and LTM's matched form, all but the plain one with r merges per layer; GFLOPs over plain."""
    plain = create_subnet(args.backbone, img_size=args.img_size)
    nets = {"plain": (plain, 1.0)}
    for operator in ("tome", "ltm"):
        costs = cost_model(args.backbone, plain, (args.img_size, args.img_size), operator)
        schedule = MergeSchedule.uniform(costs.layers, -args.merges, operator)
        net = create_subnet(
            args.backbone, keep_ratios=-args.merges, operator=operator, mask_start="content", img_size=args.img_size
        )
        nets[operator] = net, costs.macs(schedule) / costs.base
    return nets


def latency(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and peak memory of activations of plain and merged networks in bf16, by batch size."""
    found: dict[str, Any] = {}
    nets: dict[str, Any] = {name: net.to(device).eval() for name, (net, _) in merged_nets(args).items()}
    kinds: dict[str, Any] = (
        {f"{name}, compiled": torch.compile(net, dynamic=False) for name, net in nets.items()} if args.compiled else {}
    )
    for batch in args.batch_sizes:
        images = images_of(batch, args.img_size, device, torch.channels_last)
        runs = {
            name: per_call(partial(net, images), device, dtype=torch.bfloat16)
            for name, net in {**nets, **kinds}.items()
        }
        row = {name: batch / rate for name, rate in rates(runs, batch, args).items()}
        found[str(batch)] = {name: {"ms": 1e3 * seconds} for name, seconds in row.items()}
        if device.type != "cuda":
            continue
        for name, run in runs.items():
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)  # the weights of all networks, and the images
            run()
            found[str(batch)][name]["activations_mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return found


def throughput(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Images a second in bf16 at the largest batch, beside the GFLOPs over the plain network's."""
    batch, nets = max(args.batch_sizes), merged_nets(args)
    images = images_of(batch, args.img_size, device, torch.channels_last)
    runs = {}
    for name, (net, _) in nets.items():
        net.to(device).eval()
        runs[name] = per_call(partial(net, images), device, dtype=torch.bfloat16)
    found = rates(runs, batch, args)
    return {name: {"images_per_second": rate, "gflops_over_plain": nets[name][1]} for name, rate in found.items()}


def study_options(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a study of the base network at 0.7 of its cost."""
    plain = create_subnet(args.backbone, img_size=args.img_size)
    costs = cost_model(args.backbone, plain, (args.img_size, args.img_size))
    common = {"backbone": args.backbone, "img_size": args.img_size, "device": str(device), "sampler": "random"}
    return common | {"budget_gflops": round(0.7 * costs.base / GIGA, 4)} | study_settings(args)


def search(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part of a search, and trials a second while they run; with workers, also while they start."""
    found: dict[str, Any] = {}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in study_options(device, args).items()]
    kinds = {"fp32": ["--precision=fp32"], "bf16": ["--precision=bf16"]}
    if device.type == "cuda":
        kinds["bf16, two workers"] = ["--precision=bf16", "--workers=2"]
    for name, more in kinds.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "run")
            call_ltmsearch(["run", "--quiet", f"--out={folder}", *options, *more], Path(scratch, "run.log"))
            (stint,) = json.loads((folder / "times.json").read_text())["stints"]
            done = int((pd.read_csv(folder / "trials.csv").state == "scored").sum())
        parts = stint["seconds"]
        busy = parts[ELSEWHERE] if ELSEWHERE in parts else parts[TRAINING] + parts[SCORING]
        found[name] = {"parts": parts, "trials": done, "trials_per_second": done / busy}
    if device.type != "cuda":
        console.print(f"two workers on one GPU: skipped ({NO_GPU})")
    return found


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="timm name of a ViT")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--merges", type=int, default=TOME_R, help="r: tokens that each layer merges")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--train-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--point", help="options of the trial with full memory, as JSON: used by the benchmark itself")
    add_settings(parser)
    parser.set_defaults(settings=("trials=24", "base_steps=100", "sandwich_steps=100"))
    args = parse(parser, **QUICK)
    if args.point:
        print(json.dumps(full_memory(json.loads(args.point))))
        return
    device = find_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    console.print(f"{name}, torch {torch.__version__}; meant to take eight minutes on a GPU")
    results: dict[str, Any] = {}
    measures = {"training": training, "latency": latency, "throughput": throughput, "search": search}
    for section in args.sections:
        console.print(f"measuring {section} …")
        torch._dynamo.reset()
        free_memory(device)
        if section in measures:
            results[section] = measures[section](device, args)
        elif device.type != "cuda":
            console.print(f"{section}: skipped ({NO_GPU})")
        else:
            results[section] = in_own_process(__file__, **study_options(device, args))
        print_section(section, results.get(section))
        write_results(args.out / "gpu.json", settings=settings_of(args), device=name, sections=results)


def print_section(section: str, found: Any) -> None:
    """Print the figures of a section, a row for each."""
    if found:
        print_table(section, ("", ""), [(name, f"{value:.4g}") for name, value in leaves(found)])


if __name__ == "__main__":
    main()
