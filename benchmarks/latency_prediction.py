"""Predicted against measured latency of random schedules that the predictor never saw.

Claim:    a latency profile predicts the latency of a schedule to a few percent and ranks schedules.
Command:  python benchmarks/latency_prediction.py [--rounds 4 for ViT and Swin]
Duration: a quarter of an hour per backbone
Result:   benchmarks/results/latency_prediction.json
Page:     docs/benchmarks/costs.md

Per backbone a latency profile is made as `ltmsearch profile` makes it. Then random schedules are timed end to end
beside the plain net. Reported: mean absolute error, and Kendall's τ of predicted and measured latency over all pairs
and over those that differ by more than twice the noise; beside them the same figures of two halves of the measurement
(the noise floor) and τ of GFLOPs. On one CPU thread the clock is the thread's processor time.
"""

import argparse
from typing import Any

import numpy as np
from harness.arguments import add_backbones, benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.statistics import kendall_beyond_noise, tau_b
from harness.tables import print_table

from ltmsearch.callbacks import Callbacks
from ltmsearch.latency.build import build_profile, profile_space, target_costs
from ltmsearch.latency.measurement import InterleavedTimer
from ltmsearch.latency.runtimes import open_runner
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.models import get_adapter
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space_file import SpaceFile

BACKBONES = ("mobilevit_s", "efficientvit_b1", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")
COLUMNS = {
    "built in": "{seconds:.0f} s",
    "latency over plain": "{range[0]:.2f} to {range[1]:.2f}",
    "error": "{error:.1%}",
    "error of halves": "{halves_error:.1%}",
    "τ beyond noise": "{tau:.2f}",
    "pairs": "{pairs}",
    "τ": "{tau_all:.2f}",
    "τ of halves": "{halves_tau:.2f}",
    "τ of GFLOPs": "{gflops_tau:.2f}",
}
"""Heading -> cell."""


def measure_halves(target: LatencyTarget, supernet: Any, schedules: list[MergeSchedule], rounds: int) -> np.ndarray:
    """(2, schedules) latencies over the plain net's from two halves of the measurement."""
    plain, timers = MergeSchedule.uniform(supernet.layers, 1.0), []
    with open_runner(target, supernet) as runner:
        for half in range(2):
            timer = InterleavedTimer(runner, plain, device=target.device, threads=target.threads, seed=half)
            for _ in timer.sample(schedules, rounds // 2):
                pass
            timers.append(timer)
    return np.array([[t.measurement(s).ms / t.measurement(plain).ms for s in schedules] for t in timers])


def compare(backbone: str, args: argparse.Namespace) -> dict[str, Any]:
    """Predicted and measured latencies of one backbone, and their agreement."""
    target = LatencyTarget.local(
        device=args.device, batch_size=args.batch_size, runtime=args.runtime, threads=args.threads
    )
    file = SpaceFile.load(None, family=get_adapter(backbone).family)
    profile = build_profile(backbone, "ltm", file, target, Callbacks())
    supernet, costs = target_costs(backbone, "ltm", target)
    space = profile_space(file, costs)
    rows = np.unique(space.random(np.random.default_rng(args.seed), 4 * args.schedules), axis=0)
    rows = np.random.default_rng(args.seed).permutation(rows[rows.any(axis=1)])[: args.schedules]
    schedules = [space.schedule(row) for row in rows]
    halves = measure_halves(target, supernet, schedules, args.rounds)
    measured = halves.mean(axis=0)
    # One standard error for all schedules: two values of one schedule alone could not show it.
    noise = np.full(len(measured), np.sqrt(np.mean((halves[0] - halves[1]) ** 2)) / 2)
    predicted = profile.model(costs).table(space.choices).costs(rows) / profile.plain.ms
    tau, pairs = kendall_beyond_noise(predicted, measured, noise)
    gflops = np.array([costs.macs(schedule) for schedule in schedules])
    return {
        "target": str(target),
        "seconds": profile.seconds,
        "plain_ms": profile.plain.ms,
        "range": [float(measured.min()), float(measured.max())],
        "error": float(np.mean(np.abs(predicted / measured - 1))),
        "tau": tau,
        "pairs": pairs,
        "tau_all": tau_b(predicted, measured),
        "halves_error": float(np.mean(np.abs(halves[0] / halves[1] - 1))),
        "halves_tau": tau_b(halves[0], halves[1]),
        "gflops_tau": kendall_beyond_noise(gflops, measured, noise)[0],
        "predicted": predicted,
        "halves": halves,
        "gflops": gflops,
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, BACKBONES)
    parser.add_argument("--schedules", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10, help="samples of each schedule, an even number")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=1)
    args = parse(parser, backbones=["mobilevit_xxs"], schedules=6, rounds=2)
    results = {backbone: compare(backbone, args) for backbone in args.backbones}
    rows = [[name, *(cell.format(**result) for cell in COLUMNS.values())] for name, result in results.items()]
    title = f"{args.schedules} random schedules on " + "; ".join({r["target"] for r in results.values()})
    print_table(title, ("backbone", *COLUMNS), rows)
    write_results(args.out / "latency_prediction.json", settings=settings_of(args), backbones=results)


if __name__ == "__main__":
    main()
