"""Top-1 after merging is put into trained nets that were not trained to merge.

Claim:    merging costs a few points in hybrids; in a ViT the matched form and ToMe lose least.
Command:  python benchmarks/zero_shot.py --backbones vit_tiny_patch16_224 --steps 1100 --everywhere
          python benchmarks/zero_shot.py --backbones efficientvit_b0
          python benchmarks/zero_shot.py --backbones mobilevit_xs --steps 350 --batch-size 16 --lr 1e-3
              --base-img-size 64
Duration: ten minutes to half an hour each, one thread
Result:   benchmarks/results/zero_shot.json
Page:     docs/benchmarks/training.md

Each plain backbone is trained briefly from scratch and then scored with merging inserted: the forms of LTM, ToMe and
pooling at each keep ratio. In a ViT, where merges accumulate, three blocks merge (at a quarter, half and three quarters
of the depth), and with --everywhere all of them too. All variants see the same weights, calibration and validation
images.
"""

import argparse
from itertools import product
from typing import Any

import torch
from harness.arguments import add_backbones, add_data_dir, add_seeds, benchmark_parser, parse
from harness.loops import train_plain
from harness.records import settings_of, write_results
from harness.tables import print_table

from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.evaluation import Score, preserve_batchnorm, recalibrate, score
from ltmsearch.engine.runtime import Runtime, find_device
from ltmsearch.engine.stopwatch import choose_runtime
from ltmsearch.models import get_adapter, input_config
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule

BACKBONES = ("mobilevit_xs", "efficientvit_b0", "vit_tiny_patch16_224")
VARIANTS: dict[str, tuple[str, Form | None]] = {
    "ltm soft": ("ltm", "soft"),
    "ltm hard": ("ltm", "hard"),
    "ltm matched": ("ltm", "matched"),
    "tome": ("tome", None),
    "pool": ("pool", None),
}
"""Name -> operator, form."""


def train(backbone: str, data: ImageData, seed: int, args: argparse.Namespace) -> tuple[Supernet, Runtime]:
    """Train the plain net briefly."""
    torch.manual_seed(seed)
    supernet = Supernet(backbone, num_classes=data.num_classes, img_size=args.img_size)
    images = next(data.train_batches(batch_size=args.batch_size, steps=1, seed=seed))[0]
    runtime = choose_runtime(find_device(args.device), "auto", supernet, images)
    runtime.prepare(supernet)
    plan = {"steps": args.steps, "batch_size": args.batch_size, "lr": args.lr, "first_img_size": args.base_img_size}
    train_plain(supernet, data, runtime, seed=seed, **plan)
    return supernet, runtime


def merged_score(supernet: Supernet, schedule: MergeSchedule, data: ImageData, runtime: Runtime) -> Score:
    """Score under a schedule, with BatchNorm recalibrated for it."""
    with supernet.active(schedule), preserve_batchnorm(supernet):
        recalibrate(supernet, data.calibration_batches(batch_size=32), runtime)
        return score(supernet, data.validation_batches(batch_size=32), runtime)


def merging_layers(supernet: Supernet, everywhere: bool) -> list[str]:
    """All layers, or three of them in a ViT."""
    layers = list(supernet.layers)
    if everywhere or get_adapter(supernet.backbone).family != "vit":
        return layers
    return [layers[len(layers) * quarter // 4] for quarter in (1, 2, 3)]


def measure(backbone: str, data: ImageData, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Top-1 of one backbone and seed: the plain net's, and every variant's at every keep ratio."""
    trained, runtime = train(backbone, data, seed, args)
    plain = merged_score(trained, MergeSchedule.uniform(trained.layers, 1.0), data, runtime)
    weights = {name: value for name, value in trained.model.state_dict().items() if ".merging." not in name}
    merged: dict[str, dict[str, float]] = {}
    for name, (operator, form) in VARIANTS.items():
        start: dict[str, Any] = {"mask_start": "content"} if operator == "ltm" else {}
        net = Supernet(backbone, operator=operator, num_classes=data.num_classes, img_size=args.img_size, **start)
        net.model.load_state_dict(weights)
        runtime.prepare(net)
        for ratio, everywhere in product(args.ratios, (False, True) if args.everywhere else (False,)):
            layers = merging_layers(net, everywhere)
            schedule = MergeSchedule.uniform(layers, ratio, operator, form)
            key = f"keep {ratio:g}, {len(layers)} layers"
            merged.setdefault(key, {})[name] = merged_score(net, schedule, data, runtime).top1
    return {"plain": plain.top1, "se": plain.top1_se, "images": plain.images, "merged": merged}


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_backbones(parser, BACKBONES)
    add_data_dir(parser)
    add_seeds(parser, 1)
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--base-img-size", type=int, default=112, help="images grow from this size")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5])
    parser.add_argument("--everywhere", action="store_true")
    parser.add_argument("--val-images", type=int, default=512)
    parser.add_argument("--device", default="auto")
    small = {"steps": 2, "batch_size": 4, "val_images": 32, "img_size": 64, "base_img_size": 64}
    args = parse(parser, backbones=["mobilevit_xxs"], ratios=[0.5], **small)
    results: dict[str, dict[int, dict[str, Any]]] = {}
    rows = []
    for backbone, seed in product(args.backbones, range(args.seeds)):
        data = load_data(
            dataset="folder" if args.data_dir else "digits",
            data_dir=args.data_dir,
            img_size=args.img_size,
            **input_config(backbone),
            val_images=args.val_images,
            calibration_images=128,
            seed=seed,
        )
        result = results.setdefault(backbone, {})[seed] = measure(backbone, data, seed, args)
        for key, by_variant in result["merged"].items():
            cells = (f"{by_variant[name]:.1f}" for name in VARIANTS)
            rows.append([f"{backbone}, seed {seed}, {key}", f"{result['plain']:.1f} ± {result['se']:.1f}", *cells])
    title = f"top-1 at {args.img_size} px, {args.steps} steps of {args.batch_size} images, ± standard error"
    print_table(title, ("net", "plain", *VARIANTS), rows)
    write_results(args.out / "zero_shot.json", settings=settings_of(args), backbones=results)


if __name__ == "__main__":
    main()
