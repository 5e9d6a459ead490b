"""Predicted against measured latency: 50 random schedules per family that the predictor never saw.

    python benchmarks/latency_prediction.py [--backbones B …] [--schedules 50] [--rounds 10] [--batch-size 1]

For each backbone at 224 px a latency profile is made as `ltmsearch profile` makes it, always anew, and says how long
that took. Then random schedules, drawn as a study draws them, are timed end to end beside the plain net. Reported are
the mean absolute error of the prediction, and Kendall's tau between predicted and measured latency: of all pairs, and
of those that differ by more than the noise, which is two standard errors of their difference. Beside them stands the
noise floor: the error and tau between two halves of the same measurement, and tau of GFLOPs with the measured latency.
On one CPU thread the clock is the thread's processor time. Prints a table and writes JSON.
"""

import argparse
import json
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltmsearch.callbacks import Callbacks
from ltmsearch.latency.build import build_profile, profile_space, target_costs
from ltmsearch.latency.measurement import Session
from ltmsearch.latency.runtimes import open_stage
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.models import get_adapter
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SpaceFile

BACKBONES = ("mobilevit_s", "efficientvit_b1", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")


def kendall(a: np.ndarray, b: np.ndarray, noise: np.ndarray | None = None) -> tuple[float, int]:
    """Kendall's tau over the pairs whose second values differ by more than twice the noise, and their number."""
    signs = []
    for i, j in combinations(range(len(a)), 2):
        if noise is not None and abs(b[i] - b[j]) <= 2 * np.hypot(noise[i], noise[j]):
            continue
        signs.append(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]))
    return (float(np.mean(signs)) if signs else float("nan")), len(signs)


def check(backbone: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one backbone."""
    target = LatencyTarget.here(
        device=args.device, batch_size=args.batch_size, runtime=args.runtime, threads=args.threads
    )
    file = SpaceFile.load(None, family=get_adapter(backbone).family)
    profile = build_profile(backbone, "ltm", file, target, Callbacks())
    supernet, costs = target_costs(backbone, "ltm", target)
    space = profile_space(file, costs)
    rows = np.unique(space.random(np.random.default_rng(args.seed), 4 * args.schedules), axis=0)
    rows = np.random.default_rng(args.seed).permutation(rows[rows.any(axis=1)])[: args.schedules]
    schedules = [space.schedule(row) for row in rows]
    plain = MergeSchedule.uniform(costs.layers, 1.0)
    sessions = []
    with open_stage(target, supernet) as stage:
        for half in range(2):
            session = Session(stage, plain, device=target.device, threads=target.threads, seed=half)
            for _ in session.visit_all(schedules, args.rounds // 2):
                pass
            sessions.append(session)
    halves = np.array([[s.reading(schedule).ms / s.reading(plain).ms for schedule in schedules] for s in sessions])
    errors = np.array([[s.reading(schedule).error for schedule in schedules] for s in sessions])
    measured = halves.mean(axis=0)
    # From how far the halves lie apart, over all schedules: of two values alone it could not be known for each.
    noise = np.full(len(measured), np.sqrt(np.mean((halves[0] - halves[1]) ** 2)) / 2)
    table = profile.model(costs).table(space.choices)
    predicted = table.costs(rows) / profile.plain.ms
    tau, pairs = kendall(predicted, measured, noise)
    gflops = np.array([costs.macs(schedule) for schedule in schedules])
    return {
        "target": str(target), "seconds": profile.seconds, "subnets": len(profile.subnets), "load": profile.load,
        "plain_ms": profile.plain.ms, "range": [float(measured.min()), float(measured.max())],
        "error": float(np.mean(np.abs(predicted / measured - 1))), "cross_check": profile.check.error,
        "tau": tau, "pairs": pairs, "tau_all": kendall(predicted, measured)[0],
        "noise": float(np.mean(noise / measured)), "floor_error": float(np.mean(np.abs(halves[0] / halves[1] - 1))),
        "floor_tau": kendall(halves[0], halves[1])[0], "tau_gflops": kendall(gflops, measured, noise)[0],
        "predicted": predicted.tolist(), "halves": halves.tolist(), "errors": errors.tolist(),
        "gflops": gflops.tolist(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--schedules", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10, help="visits to each schedule, an even number")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/latency_prediction.json"))
    args = parser.parse_args()
    print(
        f"{'':30}{'built in':>10}{'range':>12}{'error':>8}{'floor':>8}{'tau':>7}{'pairs':>7}{'tau, all':>10}"
        f"{'floor':>7}{'GFLOPs':>8}"
    )
    results = {}
    for backbone in args.backbones:
        r = results[backbone] = check(backbone, args)
        print(
            f"{backbone:30}{r['seconds']:8.0f} s{r['range'][0]:7.2f}–{r['range'][1]:.2f}{r['error']:8.1%}"
            f"{r['floor_error']:8.1%}{r['tau']:7.2f}{r['pairs']:7}{r['tau_all']:10.2f}{r['floor_tau']:7.2f}"
            f"{r['tau_gflops']:8.2f}",
            flush=True,
        )
    print("\n".join({f"on {r['target']}" for r in results.values()}))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpus": os.cpu_count(), "torch": torch.__version__, "load": os.getloadavg()[0]}
    args.json.write_text(json.dumps({"results": results, "machine": machine}, indent=1) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
