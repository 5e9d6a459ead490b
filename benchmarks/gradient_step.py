"""The mask as a gradient step on IBB: does the step of a merge descend the bound, on images that nothing was fitted to?

Claim:    the step of `gradient` has a cosine above 0.2 with −∇_G IBB and lowers IBB in at least nine of ten layers of a
          trained network; the masks of the other forms do not.
Command:  python benchmarks/gradient_step.py --backbone NAME --checkpoint WEIGHTS --img-size 112 [--data-dir IMAGES]
Duration: five minutes, one thread
Result:   benchmarks/results/gradient_step.json
Page:     docs/benchmarks/training.md

Each layer merges alone in an otherwise plain network, so that all forms start from the same tokens. Clusters, Q and the
scores of clusters come from training images, by the mask of the area prior; everything else from validation images.

IBB is stated without its first term, which no mask changes, and for two choices of the points that belong to clusters:
single merged tokens (`tokens`), whose gradient the step is but for the labels, which it does not know, and all merged
tokens of an image as one point (`image`), as in the paper. The cosine is between G after the step minus the prior, and
the direction in which a normalised mask descends fastest: −G·(∇ − its mean under G), column by column.

Additive steps, normalise(G − η ∇) as in the paper, of several lengths are compared with the multiplicative ones by what
they do to the network: the distance (1 − cosine) of its pooled features from the plain network's, where both lower IBB
equally (linear between lengths).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness.arguments import add_data_dir, benchmark_parser, parse
from harness.ib_bounds import Bound, fit_bounds, inputs_of, mask_of, pooled_by_mask
from harness.records import read_results, settings_of, write_results
from harness.tables import print_table
from timm.utils import ParseKwargs
from torch import Tensor

from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.mask_fit import LayerInputs, StepFit
from ltmsearch.engine.runtime import Runtime, find_device
from ltmsearch.merging.ib_step import BETA, changed_mask, expected_scores, mask_gradient, memberships, step_down
from ltmsearch.models import attached_operators, input_config
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.grid import tokens
from ltmsearch.schedules.schedule import Form

BATCH = 32
OTHERS: tuple[Form, ...] = ("soft", "hard", "matched")
ADDITIVE = (0.03, 0.1, 0.3)
"""Lengths of additive steps over that of the mask."""
MULTIPLES = (0.3, 1.0, 3.0)
"""Lengths of multiplicative steps, as multiples of the fitted η."""
RULES = (*(f"gradient η×{multiple:g}" for multiple in MULTIPLES), *(f"additive {length:g}" for length in ADDITIVE))
STEP = "gradient η×1"


def mask_after(given: LayerInputs, fit: StepFit, rule: str) -> Tensor:
    """(B, N, P) mask after one step by one of `RULES`."""
    prior, products = given.prior, given.units @ fit.centroids.T
    inside = memberships(torch.bmm(prior.transpose(-2, -1), products), fit.centroids, BETA)
    gradient = mask_gradient(products, inside, expected_scores(inside, fit.scores, fit.readout), BETA)
    if rule in RULES[: len(MULTIPLES)]:
        rate = torch.tensor(MULTIPLES[RULES.index(rule)] * fit.rate)
        return changed_mask(given.log_prior, given.log_sizes, step_down(None, gradient, prior, rate))
    # Without the part that normalising takes back, clamped at zero.
    gradient = gradient - gradient.mean(dim=1, keepdim=True)
    length = ADDITIVE[RULES.index(rule) - len(MULTIPLES)]
    scale = length * prior.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
    moved = (prior - scale[:, None, None] * gradient).clamp_min(0)
    return moved / moved.sum(dim=1, keepdim=True)


def masks_of_form(
    net: Supernet, layer: str, form: Form, ratio: float, data: ImageData, runtime: Runtime
) -> Iterator[Tensor]:
    """(B, N, P) masks of another form, batch by batch."""
    operator = attached_operators(net.model, net.layers)[layer]
    for given in inputs_of(net, layer, ratio, data.validation_batches(batch_size=BATCH), runtime, form):
        yield mask_of(operator.forward(*given.arguments), given.arguments[1])


def measure(given: LayerInputs, masks: dict[str, Tensor], bounds: dict[str, Bound]) -> dict[str, Any]:
    """Per rule or form and bound: each image's IBB before and after, and the cosine of the step with −∇IBB."""
    prior, units, labels = given.prior, given.units, given.labels
    out: dict[str, Any] = {}
    for name, bound in bounds.items():
        before, gradient = bound(prior, units, labels), bound.gradient(prior, units, labels)
        downhill = -prior * (gradient - (prior * gradient).sum(dim=1, keepdim=True))
        for rule, mask in masks.items():
            cosine = F.cosine_similarity((mask - prior).flatten(1), downhill.flatten(1))
            after = bound(mask, units, labels)
            lower = 100 * (after < before).float()
            out[f"{rule}/{name}"] = {"before": before, "after": after, "cosine": cosine, "lower_percent": lower}
    return out


def means(parts: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over all images."""
    return {
        key: {name: torch.cat([part[key][name] for part in parts]).mean().item() for name in parts[0][key]}
        for key in parts[0]
    }


def distances(
    net: Supernet, layer: str, fit: StepFit, images: Tensor, found: dict[str, Any], args: argparse.Namespace
) -> dict[str, float]:
    """Distance from the plain network's features after a merge by each rule, and of additive steps at equal IBB."""
    plain = pooled_by_mask(net, layer, args.ratio, images, None)

    def distance(rule: str) -> float:
        def mask(given: LayerInputs) -> Tensor:
            return given.prior if rule == "prior" else mask_after(given, fit, rule)

        return float(1 - F.cosine_similarity(pooled_by_mask(net, layer, args.ratio, images, mask), plain).mean())

    def fall(rule: str) -> float:
        part = found[f"{rule}/tokens"]
        return float(part["before"] - part["after"])

    out = {rule: distance(rule) for rule in ("prior", *RULES)}
    additive = RULES[len(MULTIPLES) :]
    falls, far = [0.0, *(fall(rule) for rule in additive)], [out[rule] for rule in ("prior", *additive)]
    return {**out, "additive at equal IBB": float(np.interp(fall(STEP), falls, far))}


def run_layer(net: Supernet, layer: str, data: ImageData, runtime: Runtime, args: argparse.Namespace) -> dict[str, Any]:
    """Fit one layer to training images, and measure it on validation images."""
    numbers = data.training_sample(args.fit_images, seed=args.seed)
    batches = data.ordered_batches(numbers, batch_size=BATCH)
    fitted = list(inputs_of(net, layer, args.ratio, batches, runtime))
    fit, bounds = fit_bounds(fitted, data.num_classes, args.clusters, args.seed)
    before, after = (tokens(grid) for grid in fitted[0].arguments[2:4])
    others = {form: list(masks_of_form(net, layer, form, after / before, data, runtime)) for form in OTHERS}
    parts = []
    for number, given in enumerate(
        inputs_of(net, layer, args.ratio, data.validation_batches(batch_size=BATCH), runtime)
    ):
        masks = {rule: mask_after(given, fit, rule) for rule in RULES}
        masks |= {form: masks_of[number] for form, masks_of in others.items()}
        parts.append(measure(given, masks, bounds))
    found = means(parts)
    images, _ = next(data.validation_batches(batch_size=args.distance_images))
    far = distances(net, layer, fit, runtime.images(images), found, args)
    return {"grids": fitted[0].arguments[2:4], "rate": fit.rate, "bounds": found, "distances": far}


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data_dir(parser)
    parser.add_argument("--backbone", default="mobilevit_xxs", help="timm name")
    parser.add_argument("--checkpoint", type=Path, help="trained weights; without them the figures mean little")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs, help="timm's arguments")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=0.6, help="keep ratio of the layer")
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--fit-images", type=int, default=512)
    parser.add_argument("--val-images", type=int, default=512)
    parser.add_argument("--distance-images", type=int, default=64, help="images for the distances of features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parse(parser, fit_images=48, val_images=32, distance_images=8, img_size=96)
    sizes = {"img_size": args.img_size, "val_images": args.val_images, "calibration_images": 32, "seed": args.seed}
    dataset = "folder" if args.data_dir else "digits"
    data = load_data(dataset=dataset, data_dir=args.data_dir, **sizes, **input_config(args.backbone))
    kwargs = {"num_classes": data.num_classes, "img_size": args.img_size, **args.model_kwargs}
    net = Supernet(args.backbone, checkpoint=args.checkpoint, mask_start="content", **kwargs).eval()
    runtime = Runtime(device=find_device(args.device), dtype=torch.float32, reason="exact cosines")
    runtime.prepare(net)
    layers = {layer: run_layer(net, layer, data, runtime, args) for layer in net.layers}
    path = args.out / "gradient_step.json"
    print_results(layers)
    write_results(path, **(read_results(path) | {args.backbone: {"settings": settings_of(args), "layers": layers}}))


def print_results(layers: dict[str, Any]) -> None:
    for bound, of in (("tokens", "single merged tokens"), ("image", "all merged tokens of an image as one point")):
        columns = [f"{name}: {text}" for name in ("gradient", *OTHERS) for text in ("cos", "Δ·1e3", "lower %")]
        rows = []
        for layer, result in layers.items():
            parts = [result["bounds"][f"{name}/{bound}"] for name in (STEP, *OTHERS)]
            change = [
                (f"{p['cosine']:+.2f}", f"{1e3 * (p['after'] - p['before']):+.1f}", f"{p['lower_percent']:.0f}")
                for p in parts
            ]
            rows.append([layer, f"{parts[0]['before']:.3f}", *(text for cells in change for text in cells)])
        print_table(f"IBB of {of}, before and after one step, on unseen images", ("layer", "before", *columns), rows)
    names = ("prior", STEP, "additive at equal IBB")
    rows = [[layer, *(f"{result['distances'][name]:.4f}" for name in names)] for layer, result in layers.items()]
    print_table("distance of pooled features from the plain network's", ("layer", *names), rows)


if __name__ == "__main__":
    main()
