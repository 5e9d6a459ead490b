"""Where a merged token stands in a network with rotary positions: at the mean of its places, or at the one it kept.

Claim:    none of the two is closer to the plain network, beyond noise; ltmsearch takes the mean.
Command:  python benchmarks/rotary_positions.py --data-dir IMAGES --checkpoint WEIGHTS --img-size 112
              --model-kwargs patch_size=14 init_values=1.0 --ratios 0.9 0.8
          python benchmarks/rotary_positions.py (a small network from scratch, which hardly learns: 17 % of digits)
Duration: about ten minutes each, one thread
Result:   benchmarks/results/rotary_positions.json
Page:     docs/benchmarks/training.md

A plain network is trained briefly from scratch, or loaded and given a classifier by a linear probe. It then merges
without any further training, by the same schedules, under two rules for the places of merged tokens: the size-weighted
mean, as ltmsearch computes it, and the place of the token that the others joined (of equal sizes, the one at the odd
number, to which bipartite matching sends the others). Both rules see the same weights, images and masks of the first
merge. The distance to the plain network is the KL divergence of the classes, in nats; differences are paired by image.
"""

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from harness.arguments import add_data_dir, add_seeds, benchmark_parser, parse
from harness.loops import train_plain
from harness.records import settings_of, write_results
from harness.statistics import differences, standard_error
from harness.tables import print_table
from timm.utils import ParseKwargs
from torch import Tensor

from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.linear_probe import fit_classifiers, probe_images
from ltmsearch.engine.runtime import Runtime, find_device
from ltmsearch.engine.stopwatch import choose_runtime
from ltmsearch.merging import Merge
from ltmsearch.merging.assignment import HardAssignment
from ltmsearch.models import input_config, transformer
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule

FORMS: tuple[tuple[str, Form | None], ...] = (("ltm", "soft"), ("ltm", "hard"), ("ltm", "matched"), ("tome", None))
SMALL = {"patch_size": 8, "embed_dim": 192, "num_heads": 3, "depth": 6}
"""The network that is trained from scratch: small enough for one thread."""


def kept_places(places: Tensor, sizes: Tensor, merge: Merge) -> Tensor:
    """The (B, P, 2) places of the largest of the tokens in each merged token; of equal ones, one at an odd number."""
    assignment: Any = merge.assignment
    if isinstance(assignment, HardAssignment):
        shares = F.one_hot(assignment.position, assignment.count).float()
    else:
        shares = assignment.shares
    odd = torch.arange(shares.shape[1], device=shares.device) % 2
    weight = shares * (sizes + 0.5 * odd)[..., None]
    kept = weight.argmax(dim=1)  # (B, P)
    return places.expand(len(kept), -1, -1).gather(1, kept[..., None].expand(-1, -1, 2))


RULES: dict[str, Callable[[Tensor, Tensor, Merge], Tensor]] = {"mean": transformer.mean_places, "kept": kept_places}


def trained_nets(data: ImageData, seed: int, args: argparse.Namespace) -> tuple[dict[str, Supernet], Runtime]:
    """One net per operator, with the same weights."""
    torch.manual_seed(seed)
    kwargs = args.model_kwargs if args.checkpoint else {**SMALL, **args.model_kwargs}
    kwargs = {"num_classes": data.num_classes, "img_size": args.img_size, **kwargs}
    trained = Supernet(args.backbone, operator="tome", checkpoint=args.checkpoint, **kwargs)
    images = next(data.train_batches(batch_size=args.batch_size, steps=1, seed=seed))[0]
    runtime = choose_runtime(find_device(args.device), "fp32", trained, images, train=False)
    runtime.prepare(trained)
    if args.checkpoint:
        fit_classifiers(trained.model, ["head"], data, runtime, images=probe_images(data, seed=seed))
    else:
        plan = {"steps": args.steps, "batch_size": args.batch_size, "lr": args.lr, "first_img_size": args.img_size}
        train_plain(trained, data, runtime, seed=seed, **plan)
    other = Supernet(args.backbone, operator="ltm", mask_start="content", **kwargs)
    other.model.load_state_dict(trained.model.state_dict())
    runtime.prepare(other)
    return {"tome": trained.eval(), "ltm": other.eval()}, runtime


@torch.inference_mode()
def log_probabilities(net: Supernet, data: ImageData, runtime: Runtime) -> tuple[Tensor, Tensor]:
    outputs, labels = [], []
    for images, targets in data.validation_batches(batch_size=64):
        outputs.append(net(runtime.images(images)).float().log_softmax(dim=-1).cpu())
        labels.append(targets)
    return torch.cat(outputs), torch.cat(labels)


def distances(
    net: Supernet, schedule: MergeSchedule, data: ImageData, runtime: Runtime, plain: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Per rule, the KL divergence of each image from the plain network, agreement and top-1 in percent."""
    out: dict[str, Any] = {"plain_top1": _percent(plain.argmax(1) == labels)}
    for name, rule in RULES.items():
        with patch.object(transformer, "mean_places", rule), net.active(schedule):
            merged, _ = log_probabilities(net, data, runtime)
        out[name] = {
            "kl": (plain.exp() * (plain - merged)).sum(dim=1).tolist(),
            "agreement": _percent(merged.argmax(1) == plain.argmax(1)),
            "top1": _percent(merged.argmax(1) == labels),
        }
    return out


def _percent(hits: Tensor) -> float:
    return 100 * hits.float().mean().item()


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data_dir(parser)
    add_seeds(parser, 1)
    parser.add_argument("--backbone", default="vit_small_patch16_rope_224", help="timm name")
    parser.add_argument("--checkpoint", type=Path, help="trained weights; the classifier is fitted by a linear probe")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs, help="timm's arguments")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.9, 0.8, 0.7], help="keep ratio of every block")
    parser.add_argument("--val-images", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    args = parse(parser, steps=2, batch_size=4, val_images=32, ratios=[0.7])
    results: dict[str, Any] = {}
    rows = []
    for seed in range(args.seeds):
        data = load_data(
            dataset="folder" if args.data_dir else "digits",
            data_dir=args.data_dir,
            img_size=args.img_size,
            **input_config(args.backbone),
            val_images=args.val_images,
            calibration_images=32,
            seed=seed,
        )
        nets, runtime = trained_nets(data, seed, args)
        plain, labels = log_probabilities(nets["tome"], data, runtime)
        for (operator, form), ratio in product(FORMS, args.ratios):
            net = nets[operator]
            schedule = MergeSchedule.uniform(net.layers, ratio, operator, form)
            result = distances(net, schedule, data, runtime, plain, labels)
            name = f"{operator} {form or ''}".strip()
            gap = differences(result["mean"]["kl"], result["kept"]["kl"])
            rows.append(
                [
                    f"{name}, keep {ratio:g} in each block, seed {seed}",
                    *(f"{np.mean(result[rule]['kl']):.4f}" for rule in RULES),
                    f"{np.mean(gap):+.4f} ± {standard_error(gap):.4f}",
                    *(f"{result[rule]['agreement']:.1f}" for rule in RULES),
                    f"{result['plain_top1']:.1f}",
                    *(f"{result[rule]['top1']:.1f}" for rule in RULES),
                ]
            )
            for rule in RULES:
                result[rule]["kl"] = float(np.mean(result[rule]["kl"]))
            result["kl_difference"] = [float(np.mean(gap)), standard_error(gap)]
            results.setdefault(name, {}).setdefault(f"{ratio:g}", {})[seed] = result
    columns = ("KL, mean", "KL, kept", "mean − kept ± SE", "agreement, mean", "kept", "top-1: plain", "mean", "kept")
    print_table("distance to the plain network on held-out images", ("merges", *columns), rows)
    write_results(args.out / "rotary_positions.json", settings=settings_of(args), results=results)


if __name__ == "__main__":
    main()
