"""What a search of ImageNet's size takes on 1 to 256 GPUs: hours, traffic, memory; by formula, from rates.

    python benchmarks/cluster_plan.py [--measure] [--training-rate 2000 --scoring-rate 9000] [--trials 1000] …

The settings are those of the command in docs/howto/cluster.md. With images as the unit of work:

    training = batch × (sandwich steps × (2 + subnets) + trials × proxy steps)
    scoring  = trials × (calibration + validation) + candidates × (calibration + images of scoring again)
    GPU-hours = training / training rate + scoring / scoring rate

WarmUpRun up and scoring again run in the driver alone, trials on all workers, as fast as the driver hands them out:

    hours = alone + max(trials × seconds a trial / workers, trials × the driver's seconds a trial)

Rates are images per second of the plain net on one GPU. Published ones are timm's (`results/benchmark-infer-amp-nhwc-
pt240-cu124-rtx3090.csv` and `benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv` of pytorch-image-models): one RTX 3090,
mixed precision. That of mobilevit_s is stated at 256 px and taken to 224 by the multiply-adds; that of training
efficientvit_b1 is not stated and taken as a quarter of scoring, as the others have 3.1 to 4.4. Subnets have fewer
multiply-adds, and what lies ahead of the first layer is not trained: both are left out. --training-rate and
--scoring-rate put in another machine's. With --measure the rates of this machine's processor are measured, on one
thread, per second of processor time.

The driver's seconds a trial are those of `cluster_simulation.py` (benchmarks/results/cluster.json): what moving, saving
and sending weights takes grows with their number.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.engine.runtime import step_seconds
from ltmsearch.io.files import write_atomic
from ltmsearch.models.supernet import Supernet
from ltmsearch.search.setup import prepare_evaluator
from ltmsearch.search.trial import parameters

RESULTS = Path("benchmarks/results")
RTX_3090 = {
    "mobilevit_s": (733.0 * 2.03 / 1.55, 2588.55 * 2.03 / 1.55), "efficientvit_b1": (7214.92 / 4, 7214.92),
    "vit_small_patch16_224": (1057.92, 4616.6), "swin_tiny_patch4_window7_224": (648.69, 2008.94),
    "swin_base_patch4_window7_224": (281.0, 882.78),
}  # fmt: skip
"""Images per second of training and scoring at 224 px."""
BUDGETS = {
    "mobilevit_s": 1.2, "efficientvit_b1": 0.45, "vit_small_patch16_224": 3.7, "swin_tiny_patch4_window7_224": 3.8,
    "swin_base_patch4_window7_224": 12.0,
}  # fmt: skip
WORKERS = (1, 8, 64, 256)
EPOCHS, IMAGES = 300, 1_281_167
"""Of the training of one recipe."""


def work(args: argparse.Namespace) -> dict[str, int]:
    """Images of each kind of work."""
    again = args.calibration_images + args.rescore_images
    return {
        "warm_up": args.batch_size * args.sandwich_steps * (2 + args.subnets),
        "trial_training": args.batch_size * args.proxy_steps,
        "trial_scoring": args.calibration_images + args.val_images,
        "again": args.rescore_candidates * again,
    }


def driver_seconds(constants: dict[str, Any], size: int) -> float:
    """The driver's processor seconds a trial for so many shared parameters."""
    charges, measured = constants["charges"], constants["weights"]["parameters"]
    fixed = constants["fits"]["256"]["done"] - charges["weights"] - charges["ray"]
    return float(fixed + (charges["weights"] + charges["ray"]) * size / measured)


def plan(backbone: str, rates: tuple[float, float], args: argparse.Namespace, driver: float) -> dict[str, Any]:
    """Hours, GPU-hours and traffic of one front."""
    images, (training, scoring) = work(args), rates
    trial = images["trial_training"] / training + images["trial_scoring"] / scoring
    alone = images["warm_up"] / training + images["again"] / scoring
    hours = {n: (alone + args.trials * max(trial / n, driver)) / 3600 for n in WORKERS}
    return {
        "rates": rates, "trial_seconds": trial, "alone_hours": alone / 3600, "driver_seconds": driver,
        "gpu_hours": (alone + args.trials * trial) / 3600, "hours": hours, "most_workers": int(trial / driver),
        "training_one_recipe_gpu_hours": EPOCHS * IMAGES / training / 3600,
    }  # fmt: skip


def measured(backbone: str) -> tuple[float, float]:
    """Images per processor second of one thread, training and scoring, at 224 px."""
    settings = StudySettings.make(
        backbone=backbone, budget_gflops=BUDGETS[backbone], proxy_img_size=224, batch_size=4, precision="fp32",
        device="cpu", val_images=16, rescore_images=16, calibration_images=16,
    )  # fmt: skip
    torch.set_num_threads(1)
    evaluator = prepare_evaluator(settings.resolved("cpu"), Callbacks())
    images = next(evaluator.data.train_batches(batch_size=4, steps=1, seed=0))[0]
    rates = []
    for train in (True, False):
        before = time.process_time()
        step_seconds(evaluator.runtime, evaluator.supernet, images, train=train)
        rates.append(4 * len(images) / (time.process_time() - before))
    return rates[0], rates[1]


def traffic(sizes: dict[str, int], hourly: float) -> dict[str, dict[str, float]]:
    """Megabytes of weights, and megabits a second each way at so many trials an hour."""
    return {
        name: {"megabytes": 4e-6 * size, "megabits_a_second": 8 * 4e-6 * size * hourly / 3600}
        for name, size in sizes.items()
    }


def report(results: dict[str, Any], hourly: float) -> None:
    """The tables."""
    console, options = Console(width=150), results["options"]
    console.print(f"images: {results['work']}, {options['trials']} trials")
    table = Table(
        "backbone", "images/s training, scoring", "s a trial", "GPU-hours", *(f"h, {n} GPUs" for n in WORKERS),
        "of it alone", "driver, s a trial", "most workers", "GPU-hours of one recipe", title="One front",
    )  # fmt: skip
    for name, each in results["plans"].items():
        table.add_row(
            name, " ".join(f"{rate:,.0f}" for rate in each["rates"]), f"{each['trial_seconds']:.1f}",
            f"{each['gpu_hours']:.1f}", *(f"{each['hours'][n]:.2f}" for n in WORKERS), f"{each['alone_hours']:.2f}",
            f"{each['driver_seconds']:.2f}", str(each["most_workers"]), f"{each['training_one_recipe_gpu_hours']:.0f}",
        )  # fmt: skip
    console.print(table)
    table = Table("backbone", "parameters", "MB", f"Mbit/s each way at {hourly:,.0f} trials/h", title="Weights")
    for name, each in results["traffic"].items():
        table.add_row(
            name, f"{results['parameters'][name]:,}", f"{each['megabytes']:.1f}", f"{each['megabits_a_second']:.0f}"
        )
    console.print(table)
    for name, (training, scoring) in results.get("measured", {}).items():
        console.print(f"{name}: {training:.1f} images per processor second in training, {scoring:.1f} in scoring")


def main() -> None:
    """Compute, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="this machine's processor too")
    parser.add_argument("--backbones", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--training-rate", type=float, help="images per second, of all that are named")
    parser.add_argument("--scoring-rate", type=float)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--sandwich-steps", type=int, default=5000)
    parser.add_argument("--subnets", type=int, default=1)
    parser.add_argument("--proxy-steps", type=int, default=100)
    parser.add_argument("--calibration-images", type=int, default=1024)
    parser.add_argument("--val-images", type=int, default=10_000)
    parser.add_argument("--rescore-candidates", type=int, default=100)
    parser.add_argument("--rescore-images", type=int, default=50_000)
    parser.add_argument("--hourly", type=float, default=3600.0, help="trials an hour, of the traffic")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    path = args.out / "cluster_plan.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    constants = json.loads((args.out / "cluster.json").read_text())["constants"]
    sizes, plans = {}, {}
    for name in args.backbones:
        supernet = Supernet(name, num_classes=1000)
        sizes[name] = sum(value.numel() for value in parameters(supernet).values())
        rates = args.training_rate or RTX_3090[name][0], args.scoring_rate or RTX_3090[name][1]
        plans[name] = plan(name, rates, args, driver_seconds(constants, sizes[name]))
    results: dict[str, Any] = {
        "options": {name: value for name, value in vars(args).items() if name != "out"}, "work": work(args),
        "parameters": sizes, "plans": plans, "traffic": traffic(sizes, args.hourly),
        "measured": before.get("measured", {}) | ({name: measured(name) for name in sizes} if args.measure else {}),
    }  # fmt: skip
    write_atomic(path, json.dumps(results, indent=1) + "\n")
    report(results, args.hourly)


if __name__ == "__main__":
    main()
