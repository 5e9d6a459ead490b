"""The README's command, measured: wall time, peak memory, the front, and its costs counted again by fvcore.

    python benchmarks/main_job.py [--data-dir DIR] [--seed 0] [--repeat] [--json FILE]

Runs `ltmsearch run --backbone mobilevit_s --budget-gflops 1.2` in an empty folder, with `--repeat` a second time to
compare the fronts. Prints a table and writes JSON. Times are of this machine; ratios and scores travel.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch

from ltmsearch import load_recipe
from ltmsearch.costs import traced_macs

BACKBONE, BUDGET = "mobilevit_s", 1.2


def run(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """One run of the command: seconds, peak MiB, and its tables."""
    start = time.perf_counter()
    subprocess.run(["ltmsearch", "run", "--quiet", "--out", str(folder), *arguments], check=True)
    seconds = time.perf_counter() - start
    # The largest child so far; the runs are alike, so that of one is that of all.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "seconds": seconds,
        "peak_mib": peak,
        "front": pd.read_csv(folder / "front.csv"),
        "trials": pd.read_csv(folder / "trials.csv"),
    }


def counted_again(folder: Path, front: pd.DataFrame) -> list[float]:
    """GFLOPs of every point of a front: the recipe's network built by timm and traced by fvcore."""
    counts = []
    for trial in front.trial:
        recipe = load_recipe(folder / "recipes" / f"{trial}.yaml")
        model = timm.create_model(recipe.model, **recipe.model_kwargs())
        counts.append(traced_macs(model, (recipe.img_size, recipe.img_size)) / 1e9)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", action="store_true", help="run twice and compare the fronts")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/main_job.json"))
    args = parser.parse_args()

    arguments = [f"--backbone={BACKBONE}", f"--budget-gflops={BUDGET}", f"--seed={args.seed}"]
    if args.data_dir:
        arguments.append(f"--data-dir={args.data_dir}")
    with tempfile.TemporaryDirectory() as scratch:
        runs = [run(Path(scratch, str(i)), arguments) for i in range(2 if args.repeat else 1)]
        front, trials = runs[0]["front"], runs[0]["trials"]
        counts = counted_again(Path(scratch, "0"), front)

    baselines = trials[(trials.kind == "baseline") & trials.rescored_top1.notna()]
    print(f"{'net':>12} {'GFLOPs':>8} {'by fvcore':>10} {'top-1':>12}")
    for row, count in zip(front.itertuples(), counts, strict=True):
        print(f"{row.trial:12} {row.gflops:8.4f} {count:10.4f} {row.top1:6.1f} ± {row.top1_se:.1f}")
    for row in baselines.itertuples():
        print(f"{row.label:>12} {row.gflops:8.4f} {'':>10} {row.rescored_top1:6.1f} ± {row.rescored_top1_se:.1f}")
    assert all(count == gflops <= BUDGET for count, gflops in zip(counts, front.gflops, strict=True))
    print(
        f"{os.cpu_count()} cores; " + "; ".join(f"{r['seconds']:.0f} s, {r['peak_mib']:.0f} MiB at most" for r in runs)
    )
    same = all(r["front"].equals(front) for r in runs)
    if args.repeat:
        print("the two fronts are the same" if same else "THE TWO FRONTS DIFFER")

    args.json.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": ["ltmsearch", "run", *arguments],
        "runs": [{"seconds": r["seconds"], "peak_mib": r["peak_mib"]} for r in runs],
        "same_front": same if args.repeat else None,
        "front": front.to_dict("records"),
        "traced_gflops": counts,
        "baselines": baselines[["label", "gflops", "rescored_top1", "rescored_top1_se"]].to_dict("records"),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__},
    }
    args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
