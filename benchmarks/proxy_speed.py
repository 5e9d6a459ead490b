"""Proxy training against a plain loop over the same subnet: images per second.

    python benchmarks/proxy_speed.py [--backbones B …] [--keep 0.5] [--rounds 7] [--steps 4] [--threads 2]

The plain loop is what anyone would write with timm and torch in float32: contiguous images, `torch.optim.AdamW` as it
comes, cross-entropy, backward, step. Batch and image size are those of `ltmsearch run` on a CPU. Each of the two runs
in a process of its own, since freed memory is kept for a whole process or not at all. Rounds alternate between them
with the order reversed each time; shown are the fastest and the median round, and the ratio of each. Ratios travel
between machines of one kind; images per second are of this one. Prints a table and writes JSON.
"""

import argparse
import json
import os
import platform
import time
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.config.settings import StudySettings
from ltmsearch.engine.evaluation import preserve_batchnorm
from ltmsearch.engine.runtime import Runtime, choose_runtime
from ltmsearch.engine.steps import LABEL_SMOOTHING, WEIGHT_DECAY, proxy_train
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

BACKBONES = ("mobilevit_s", "vit_tiny_patch16_224", "efficientvit_b0", "swin_tiny_patch4_window7_224")
CLASSES, LR = 10, 2e-4

Batches = list[tuple[Tensor, Tensor]]


def plain_loop(net: nn.Module, batches: Batches) -> None:
    """Training as anyone would write it."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    net.train()
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels, label_smoothing=LABEL_SMOOTHING).backward()
        optimizer.step()


def rounds(which: str, backbone: str, args: argparse.Namespace, pipe: Connection) -> None:
    """In a process of its own: say what is run, then seconds of a round for every message that comes."""
    torch.set_num_threads(args.threads)
    settings = StudySettings.make(backbone=backbone, budget_gflops=1.0).resolved("cpu")
    size = settings.proxy_img_size
    shape = (args.batch_size or settings.batch_size, 3, size, size)
    torch.manual_seed(0)
    supernet = Supernet(backbone, num_classes=CLASSES)
    schedule = MergeSchedule.uniform(supernet.layers, args.keep, form=args.form)
    batches = [(torch.randn(shape), torch.randint(CLASSES, shape[:1])) for _ in range(args.steps)]
    about, run = "fp32, channels first", partial(plain_loop, supernet.extract(schedule), batches)
    if which == "ours":
        runtime = choose_runtime(torch.device("cpu"), "auto", supernet, batches[0][0])
        runtime.prepare(supernet)
        about, run = str(runtime), partial(ours, supernet, schedule, batches, runtime)
    pipe.send({"shape": shape, "images": shape[0] * args.steps, "runtime": about})
    while pipe.recv():
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)


def ours(supernet: Supernet, schedule: MergeSchedule, batches: Batches, runtime: Runtime) -> None:
    """Training as a trial does it."""
    with preserve_batchnorm(supernet):
        proxy_train(supernet, schedule, batches, lr=LR, runtime=runtime)


def measure(backbone: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each round of both."""
    context, pipes, processes = get_context("spawn"), {}, []
    for which in ("plain", "ours"):
        pipes[which], theirs = context.Pipe()
        processes.append(context.Process(target=rounds, args=(which, backbone, args, theirs), daemon=True))
        processes[-1].start()
    about = {which: pipe.recv() for which, pipe in pipes.items()}
    seconds: dict[str, list[float]] = {which: [] for which in pipes}
    for number in range(args.rounds + 1):
        for which in list(pipes)[:: 1 if number % 2 else -1]:
            pipes[which].send(True)
            spent = pipes[which].recv()
            if number:  # the first round warms up
                seconds[which].append(spent)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return {"images": about["ours"]["images"], "about": about, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--form", default="soft")
    parser.add_argument("--batch-size", type=int, help="default: that of `ltmsearch run`")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/proxy_speed.json"))
    args = parser.parse_args()
    load, results = os.getloadavg()[0], {}
    print("images per second: fastest round, median; ratio of the fastest, of the medians; spread of the rounds")
    for backbone in args.backbones:
        results[backbone] = result = measure(backbone, args)
        plain, ours = result["seconds"]["plain"], result["seconds"]["ours"]
        rates = [result["images"] / figure(rounds) for rounds in (plain, ours) for figure in (min, median)]
        ratios = [min(plain) / min(ours), median(plain) / median(ours)]
        low, _, high = quantiles([one / other for one, other in zip(plain, ours, strict=True)])
        print(
            f"{backbone:30} plain {rates[0]:6.1f} {rates[1]:6.1f}   ours {rates[2]:6.1f} {rates[3]:6.1f}   "
            f"{ratios[0]:.2f}x {ratios[1]:.2f}x   middle half of the rounds' ratios {low:.2f} to {high:.2f}",
            flush=True,
        )
    machine = {"processor": platform.machine(), "torch": torch.__version__, "threads": args.threads, "load": load}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    record = {"keep": args.keep, "form": args.form, "results": results, "machine": machine}
    args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
