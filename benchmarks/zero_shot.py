"""What merging costs in accuracy before anything is trained to it, in every family.

    python benchmarks/zero_shot.py [--backbones B …] [--data-dir DIR] [--steps 600] [--seeds 0 1] [--device auto]

Trains each plain backbone briefly from scratch (AdamW; networks that a CPU cannot train in minutes are made narrower by
timm's own arguments, see NARROWER), then scores it with merging inserted and nothing trained: LTM in each form at the
start that trained weights call for (`content`), at the other one (`place`), ToMe and pooling, at each keep ratio. In a
ViT, where merges accumulate, merging takes place in three blocks (at a quarter, half and three quarters of the depth),
and with --everywhere in all of them too.

The figures of docs/benchmarks/training.md:
--backbones mobilevit_xs --steps 350 --batch-size 16 --lr 1e-3 --base-img-size 64;
--backbones efficientvit_b0; --backbones vit_tiny_patch16_224 --steps 1100 --everywhere; each on one thread.

All variants see the same weights, calibration and validation images. Prints a table and writes JSON.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.evaluation import Score, preserve_batchnorm, recalibrate, score
from ltmsearch.engine.runtime import Runtime, choose_runtime, find_device
from ltmsearch.engine.steps import WarmUp, warm_up
from ltmsearch.merging import MaskStart
from ltmsearch.models import get_adapter, input_config
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule

BACKBONES = ("mobilevit_xs", "efficientvit_b0", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
NARROWER: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)},
}
VARIANTS: dict[str, tuple[str, MaskStart, Form | None]] = {
    "ltm soft": ("ltm", "content", "soft"),
    "ltm hard": ("ltm", "content", "hard"),
    "ltm matched": ("ltm", "content", "matched"),
    "ltm soft, place": ("ltm", "place", "soft"),
    "ltm hard, place": ("ltm", "place", "hard"),
    "tome": ("tome", "auto", None),
    "pool": ("pool", "auto", None),
}
"""Name → operator, start, form."""


def model_kwargs(backbone: str, data: ImageData, args: argparse.Namespace) -> dict[str, Any]:
    """timm's arguments."""
    return {"num_classes": data.num_classes, "img_size": args.img_size, **NARROWER.get(backbone, {})}


def train(backbone: str, data: ImageData, seed: int, args: argparse.Namespace) -> tuple[Supernet, Runtime]:
    """The plain net after a brief training."""
    torch.manual_seed(seed)
    supernet = Supernet(backbone, **model_kwargs(backbone, data, args))
    images = next(data.train_batches(batch_size=args.batch_size, steps=1, seed=seed))[0]
    runtime = choose_runtime(find_device(args.device), "auto", supernet, images)
    runtime.prepare(supernet)
    plan = WarmUp(
        base_steps=args.steps, base_img_size=args.base_img_size, sandwich_steps=0, subnets=0, lr=args.lr
    )  # fmt: skip
    plain = MergeSchedule.uniform(supernet.layers, 1.0)
    batches = data.train_batches(batch_size=args.batch_size, steps=args.steps, seed=seed)
    for _ in warm_up(supernet, plan, batches=batches, cheapest=plain, draw=lambda _: plain, seed=seed, runtime=runtime):
        pass
    return supernet, runtime


def scored(supernet: Supernet, schedule: MergeSchedule, data: ImageData, runtime: Runtime) -> Score:
    """Top-1 under a schedule, BatchNorm recalibrated for it."""
    with supernet.active(schedule), preserve_batchnorm(supernet):
        recalibrate(supernet, data.calibration_batches(batch_size=32), runtime)
        return score(supernet, data.validation_batches(batch_size=32), runtime)


def merging_layers(supernet: Supernet, everywhere: bool) -> list[str]:
    """Where to merge: all layers, or where nothing is undone three."""
    layers = list(supernet.layers)
    if everywhere or get_adapter(supernet.backbone).family != "vit":
        return layers
    return [layers[len(layers) * quarter // 4] for quarter in (1, 2, 3)]


def measure(backbone: str, data: ImageData, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One backbone, one seed: top-1 of the plain net, and of every variant at every keep ratio."""
    start = time.perf_counter()
    trained, runtime = train(backbone, data, seed, args)
    plain = scored(trained, MergeSchedule.uniform(trained.layers, 1.0), data, runtime)
    weights = {n: v for n, v in trained.model.state_dict().items() if ".merging." not in n}
    result: dict[str, Any] = {"base": plain.top1, "se": plain.top1_se, "images": plain.images, "runtime": str(runtime)}
    for name, (operator, mask_start, form) in VARIANTS.items():
        net = Supernet(backbone, operator=operator, mask_start=mask_start, **model_kwargs(backbone, data, args))
        net.model.load_state_dict(weights)
        runtime.prepare(net)
        for ratio in args.ratios:
            for everywhere in (False, True) if args.everywhere else (False,):
                layers = merging_layers(net, everywhere)
                schedule = MergeSchedule.uniform(layers, ratio, operator, form)
                key = f"{ratio:g}" + (", everywhere" if everywhere and layers != merging_layers(net, False) else "")
                result.setdefault(key, {})[name] = scored(net, schedule, data, runtime).top1
    result["seconds"] = time.perf_counter() - start
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--base-img-size", type=int, default=112, help="images grow from this size")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5])
    parser.add_argument("--everywhere", action="store_true")
    parser.add_argument("--val-images", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/zero_shot.json"))
    args = parser.parse_args()
    results: dict[str, dict[int, dict[str, Any]]] = {}
    where = args.data_dir.name if args.data_dir else "digits"
    print(f"top-1 at {args.img_size} px on {where}, {args.steps} steps of {args.batch_size}, nothing trained to merge")
    print(f"{'':43}{'base':>12}" + "".join(f"{name:>17}" for name in VARIANTS))
    for backbone in args.backbones:
        config = input_config(backbone)
        for seed in args.seeds:
            data = load_data(
                dataset="folder" if args.data_dir else "digits", data_dir=args.data_dir, img_size=args.img_size,
                mean=config["mean"], std=config["std"], interpolation=config["interpolation"],
                crop_pct=config["crop_pct"], val_images=args.val_images, calibration_images=128, seed=seed,
            )  # fmt: skip
            result = measure(backbone, data, seed, args)
            results.setdefault(backbone, {})[seed] = result
            for key in (key for key, value in result.items() if isinstance(value, dict)):
                base = f"{result['base']:.1f} ±{result['se']:.1f}"
                cells = "".join(f"{result[key][name]:17.1f}" for name in VARIANTS)
                what, ratio = f"{backbone}, seed {seed}", key.replace(", everywhere", " all")
                print(f"{what:34.34} {ratio:>8}{base:>12}{cells}", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    record = {"settings": {k: str(v) for k, v in vars(args).items()}, "torch": torch.__version__, "results": results}
    args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
