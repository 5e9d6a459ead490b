"""Hours, traffic and largest useful number of workers of a search of ImageNet's size, by formula from rates.

Claim:    by published rates a front costs about a twentieth of the training of one of its recipes.
Command:  python benchmarks/cluster_plan.py [--training-rate 2000 --scoring-rate 9000]
Duration: seconds
Result:   benchmarks/results/cluster_plan.json
Page:     docs/howto/cluster.md

    training  = batch × (sandwich steps × subnets + trials × proxy steps)                                 images
    teacher   = batch × (sandwich steps + proxy steps) + search + validation + report                      images
    screening = schedules × (calibration + search / 4) + decided × (calibration + search)                  images
    scoring   = trials × (calibration + search) + candidates × (2 × calibration + validation + report)     images
    hours     = alone + screening + max(trials × seconds of a trial / workers, trials × driver's seconds of a trial)

Decided are the schedules that screening scores on all search images (`scored_images` of `search/screening.py`), two at
a time, after eight at a time on a quarter of them: so many workers take part. Warm-up, teacher and scoring again run in
the driver alone. Networks without BatchNorm need no calibration, which is counted for all. Rates are images per second
of the plain net on one GPU; the built-in ones are timm's published rates of one RTX 3090 in mixed precision
(https://github.com/huggingface/pytorch-image-models/tree/main/results: benchmark-infer-amp-nhwc-pt240-cu124-rtx3090.csv
and benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv). mobilevit_s is published at 256 px and scaled to 224 by its
multiply-adds; training of efficientvit_b1 is not published and taken as a quarter of scoring. The driver's seconds grow
with the number of weights: fixed seconds and seconds per million parameters are those of `driver_cost.py`.
"""

import argparse
from typing import Any

from harness.arguments import add_backbones, benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.tables import print_table

from ltmsearch.models.supernet import Supernet
from ltmsearch.search.screening import scored_images
from ltmsearch.search.trial import parameters

RATES = {
    "mobilevit_s": (733.0 * 2.03 / 1.55, 2588.55 * 2.03 / 1.55),
    "efficientvit_b1": (7214.92 / 4, 7214.92),
    "vit_small_patch16_224": (1057.92, 4616.6),
    "swin_tiny_patch4_window7_224": (648.69, 2008.94),
    "swin_base_patch4_window7_224": (281.0, 882.78),
}
"""Images per second of training and scoring at 224 px."""
DRIVER, PER_MILLION = 0.203, 0.0169
"""Seconds of a driver's processor per trial: fixed, and for each million parameters."""
WORKERS = (1, 8, 64, 256)
EPOCHS, IMAGES = 300, 1_281_167
"""Training of one recipe."""
STUDY = {
    "trials": 1000,
    "batch_size": 128,
    "sandwich_steps": 5000,
    "sandwich_subnets": 2,
    "proxy_steps": 100,
    "screened_schedules": 4000,
    "calibration_images": 1024,
    "search_images": 2000,
    "rescore_candidates": 100,
    "rescore_images": 10_000,
    "report_images": 10_000,
}
"""Settings of docs/howto/cluster.md."""


def plan(millions: float, rates: tuple[float, float], args: argparse.Namespace) -> dict[str, Any]:
    """Hours and GPU-hours of one front."""
    training, scoring = rates
    one, final = args.calibration_images + args.search_images, args.rescore_images + args.report_images
    warm_up = args.batch_size * args.sandwich_steps * args.sandwich_subnets
    teacher = args.batch_size * (args.sandwich_steps + args.proxy_steps) + args.search_images + final
    again = args.rescore_candidates * (2 * args.calibration_images + final)
    trial = args.batch_size * args.proxy_steps / training + one / scoring
    alone = warm_up / training + (teacher + again) / scoring
    schedules, screened = args.screened_schedules, {"calibration": args.calibration_images}
    screening = {
        n: scored_images(schedules, args.trials, args.search_images, **screened, workers=n) / scoring for n in WORKERS
    }
    driver = args.driver_seconds + args.driver_seconds_per_million * millions
    return {
        "rates": rates,
        "parameters": round(1e6 * millions),
        "trial_seconds": trial,
        "alone_hours": alone / 3600,
        "driver_seconds": driver,
        "gpu_hours": (alone + screening[1] + args.trials * trial) / 3600,
        "hours": {n: (alone + screening[n] + args.trials * max(trial / n, driver)) / 3600 for n in WORKERS},
        "most_workers": int(trial / driver),
        "recipe_gpu_hours": EPOCHS * IMAGES / training / 3600,
        "megabits_per_trial": 8 * 4 * millions,
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, list(RATES), only=True)
    parser.add_argument("--training-rate", type=float, help="images per second, for all backbones")
    parser.add_argument("--scoring-rate", type=float, help="images per second, for all backbones")
    parser.add_argument("--driver-seconds", type=float, default=DRIVER, help="fixed seconds of a trial")
    parser.add_argument("--driver-seconds-per-million", type=float, default=PER_MILLION, help="seconds for weights")
    for name, default in STUDY.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    args = parse(parser, backbones=["mobilevit_s"])
    plans, rows = {}, []
    for name in args.backbones:
        size = sum(value.numel() for value in parameters(Supernet(name, num_classes=1000)).values())
        rates = args.training_rate or RATES[name][0], args.scoring_rate or RATES[name][1]
        plans[name] = each = plan(size / 1e6, rates, args)
        hours = (f"{each['hours'][n]:.2f}" for n in WORKERS)
        cells = [
            f"{rates[0]:,.0f}, {rates[1]:,.0f}",
            f"{each['trial_seconds']:.1f}",
            f"{each['gpu_hours']:.1f}",
            *hours,
        ]
        cells += [f"{each['alone_hours']:.2f}", f"{each['driver_seconds']:.2f}", str(each["most_workers"])]
        rows.append([name, *cells, f"{each['recipe_gpu_hours']:.0f}", f"{each['megabits_per_trial']:.0f}"])
    gpus = (f"h, {n} GPUs" for n in WORKERS)
    headings = ("images/s", "s a trial", "GPU-hours", *gpus, "alone", "driver, s", "most workers", "one recipe", "Mbit")
    print_table("one front", ("backbone", *headings), rows)
    write_results(args.out / "cluster_plan.json", settings=settings_of(args), plans=plans)


if __name__ == "__main__":
    main()
