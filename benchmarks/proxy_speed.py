"""Proxy training of a trial against a plain training loop over the same subnet: images per second.

Claim:    a trial trains up to twice as many images per second as a plain fp32 loop.
Command:  python benchmarks/proxy_speed.py --rounds 5
Duration: a quarter of an hour
Result:   benchmarks/results/proxy_speed.json
Page:     docs/benchmarks/search.md

The plain loop is float32 with contiguous images and the defaults of `torch.optim.AdamW`. Batch and image size are those
of `ltmsearch run` on a CPU. Each loop runs in a process of its own, since freed memory is kept for a whole process or
not at all. Rounds alternate between them with the order reversed each time.
"""

import argparse
import time
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from harness.arguments import add_backbones, benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.statistics import mean_sd
from harness.tables import print_table
from harness.timing import alternating
from torch import Tensor, nn

from ltmsearch.config.settings import StudySettings
from ltmsearch.engine.evaluation import preserve_batchnorm
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.steps import LABEL_SMOOTHING, WEIGHT_DECAY, proxy_train
from ltmsearch.engine.stopwatch import choose_runtime
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

BACKBONES = ("mobilevit_s", "vit_tiny_patch16_224", "efficientvit_b0", "swin_tiny_patch4_window7_224")
LOOPS = ("plain", "proxy")
CLASSES, LR = 10, 2e-4

Batches = list[tuple[Tensor, Tensor]]


def plain_loop(net: nn.Module, batches: Batches) -> None:
    """Train without any of the package's means."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    net.train()
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels, label_smoothing=LABEL_SMOOTHING).backward()
        optimizer.step()


def proxy_loop(supernet: Supernet, schedule: MergeSchedule, batches: Batches, runtime: Runtime) -> None:
    """Train as a trial does."""
    with preserve_batchnorm(supernet):
        proxy_train(supernet, schedule, batches, lr=LR, runtime=runtime)


def serve_rounds(loop: str, backbone: str, args: argparse.Namespace, pipe: Connection) -> None:
    """Send a description of the loop, then the seconds of a round for every True received."""
    torch.set_num_threads(args.threads)
    settings = StudySettings.make(backbone=backbone, budget_gflops=1.0).resolved("cpu")
    size = args.img_size or settings.proxy_img_size
    shape = (args.batch_size or settings.batch_size, 3, size, size)
    torch.manual_seed(0)
    supernet = Supernet(backbone, num_classes=CLASSES)
    schedule = MergeSchedule.uniform(supernet.layers, args.keep, form=args.form)
    batches = [(torch.randn(shape), torch.randint(CLASSES, shape[:1])) for _ in range(args.steps)]
    about, run = "fp32, channels first", partial(plain_loop, supernet.extract(schedule), batches)
    if loop == "proxy":
        runtime = choose_runtime(torch.device("cpu"), "auto", supernet, batches[0][0], train=True)
        runtime.prepare(supernet)
        about, run = str(runtime), partial(proxy_loop, supernet, schedule, batches, runtime)
    pipe.send({"shape": shape, "images": shape[0] * args.steps, "runtime": about})
    while pipe.recv():
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)


def measure(backbone: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each round of both loops."""
    context, pipes, processes = get_context("spawn"), {}, []
    for loop in LOOPS:
        pipes[loop], theirs = context.Pipe()
        processes.append(context.Process(target=serve_rounds, args=(loop, backbone, args, theirs), daemon=True))
        processes[-1].start()
    about = {loop: pipe.recv() for loop, pipe in pipes.items()}
    seconds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    for number in range(args.rounds + 1):
        for loop in alternating(LOOPS, number):
            pipes[loop].send(True)
            spent = pipes[loop].recv()
            if number:  # the first round warms up
                seconds[loop].append(spent)
    for loop, process in zip(LOOPS, processes, strict=True):
        pipes[loop].send(False)
        process.join()
    return {"images": about["proxy"]["images"], "about": about, "seconds": seconds}


def row(backbone: str, result: dict[str, Any]) -> list[str]:
    """Table row of one backbone."""
    plain, proxy = (result["seconds"][loop] for loop in LOOPS)
    rates = [f"{result['images'] / least(each):.1f}" for each in (plain, proxy) for least in (min, median)]
    ratios = [one / other for one, other in zip(plain, proxy, strict=True)]
    fastest, middle = min(plain) / min(proxy), median(plain) / median(proxy)
    return [backbone, *rates, f"{fastest:.2f}", f"{middle:.2f}", mean_sd(ratios, 2)]


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, BACKBONES)
    parser.add_argument("--keep", type=float, default=0.5, help="keep ratio of all layers")
    parser.add_argument("--form", default="soft")
    parser.add_argument("--batch-size", type=int, help="default: that of `ltmsearch run`")
    parser.add_argument("--img-size", type=int, help="default: that of `ltmsearch run`")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--threads", type=int, default=2)
    args = parse(parser, backbones=["mobilevit_xxs"], rounds=2, steps=1, threads=1, img_size=64)
    results = {backbone: measure(backbone, args) for backbone in args.backbones}
    headings = ("plain, fastest", "median", "proxy, fastest", "median", "× fastest", "× median", "× of rounds")
    title = f"images per second, {args.threads} threads, {args.rounds} rounds; ratios are proxy over plain"
    print_table(title, ("backbone", *headings), [row(*each) for each in results.items()])
    write_results(args.out / "proxy_speed.json", settings=settings_of(args), backbones=results)


if __name__ == "__main__":
    main()
