"""Whether images should keep numbers of tokens of their own: thresholds beside equal numbers, at equal mean cost.

Claim:    at equal mean cost, thresholds that are measured layer by layer come as close to the plain network as matching
          with equally many tokens in all images, and one threshold for all layers does not.
Command:  python benchmarks/threshold.py --checkpoint WEIGHTS --data-dir IMAGES --splits validation test
Duration: about a quarter of an hour, one thread
Result:   benchmarks/results/threshold.json, threshold.png
Page:     docs/benchmarks/training.md

Nothing is trained. `threshold` has the thresholds at which all layers keep one share of their tokens on average, and
`common` one threshold for all layers; either is chosen such that the mean cost of training images is a share of the
plain network's multiply-adds. Beside each stand `matched` and `tome` with one keep ratio in all layers, the largest
within the mean cost of the held-out images, of which all outputs are. Differences are paired by image.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.arguments import add_data_dir, benchmark_parser, parse
from harness.distances import distances, open_images, summary
from harness.figures import BLUE, GREEN, GREY, ORANGE, Drawing, Panel, Series, draw, save_figure
from harness.records import settings_of, write_results
from harness.tables import print_table
from timm.utils import ParseKwargs
from torch import Tensor

from ltmsearch.costs import CostModel, backbone_costs, image_costs
from ltmsearch.engine.image_costs import COST_BATCH, COST_IMAGES, measure_costs, whole_tokens
from ltmsearch.engine.linear_probe import fit_classifiers, probe_images
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.thresholds import thresholds_at
from ltmsearch.models import counted
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule

FIXED: dict[str, tuple[str, Form | None]] = {"matched": ("ltm", "matched"), "tome": ("tome", None)}
"""Name → operator and form with equally many tokens in all images."""
RATIOS = np.arange(0.2, 1.0, 0.002)
STEPS = 10
"""Halvings of the interval of a share or a threshold."""
BINS = 16
RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="")


class Case:
    """One network with its images."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.held_out = [open_images(args, 0, split) for split in args.splits or [None]]
        self.data = self.held_out[0]
        first = self.network("threshold")
        if first.new_classifiers:
            images = probe_images(self.data, seed=0)
            fit_classifiers(first.model, list(first.new_classifiers), self.data, RUNTIME, images=images)
        self.nets = {"threshold": first}
        for operator, _ in FIXED.values():
            self.nets[operator] = self.network(operator)
            self.nets[operator].model.load_state_dict(first.model.state_dict(), strict=False)
        sample = self.data.training_sample(COST_IMAGES, seed=0)
        self.sample = [images for images, _ in self.data.ordered_batches(sample, batch_size=COST_BATCH)]
        self.plain, self.labels, _ = self.predict(first, first.schedule)

    def network(self, operator: str) -> Supernet:
        kwargs = {"num_classes": self.data.num_classes, "img_size": self.args.img_size, **self.args.model_kwargs}
        checkpoint = self.args.checkpoint
        return Supernet(self.args.backbone, operator=operator, checkpoint=checkpoint, any_size=False, **kwargs).eval()

    def costs(self, operator: str) -> CostModel:
        classes = self.data.num_classes
        return backbone_costs(
            self.args.backbone, self.args.img_size, operator, num_classes=classes, **self.args.model_kwargs
        )

    @torch.inference_mode()
    def predict(self, net: Supernet, schedule: MergeSchedule) -> tuple[Tensor, Tensor, np.ndarray]:
        """Log-probabilities and labels of the held-out images, and tokens kept after each layer by threshold."""
        log_p, labels = [], []
        with net.active(schedule), counted(self.args.backbone, net.model) as counts:
            for data in self.held_out:
                for images, targets in data.validation_batches(batch_size=64):
                    log_p.append(net(RUNTIME.images(images)).log_softmax(dim=1))
                    labels.append(targets)
        return torch.cat(log_p), torch.cat(labels), counts.kept(whole_tokens(self.costs(net.operator)))

    def mean_cost(self, schedule: MergeSchedule) -> float:
        """Mean multiply-adds of the training images by thresholds."""
        net = self.nets["threshold"]
        with net.active(schedule):
            costs = self.costs("threshold")
            found = measure_costs(self.args.backbone, net.model, costs, schedule, self.sample, RUNTIME)
        return float(found.macs.mean())

    def per_layer(self, share: float) -> MergeSchedule:
        net = self.nets["threshold"]
        found = thresholds_at(net, dict.fromkeys(net.layers, (share,)), self.sample[0], RUNTIME)
        return MergeSchedule(keep_ratios={layer: value for layer, (value,) in found.items()}, operator="threshold")

    def common(self, threshold: float) -> MergeSchedule:
        return MergeSchedule.uniform(self.nets["threshold"].layers, threshold, "threshold")

    def within(self, make: Callable[[float], MergeSchedule], budget: float, low: float, high: float) -> MergeSchedule:
        """The schedule of the largest number whose mean cost is within the budget."""
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.mean_cost(make(middle)) <= budget else (low, middle)
        return make(low)


def compare(case: Case, share: float) -> dict[str, Any]:
    """Rows by name: cost, kept tokens, and distance from the plain network, at about one share of its cost."""
    rows: dict[str, Any] = {}
    budget, costs = share * case.costs("threshold").base, case.costs("threshold")
    for name, make, low in (("threshold", case.per_layer, 0.5), ("common", case.common, 0.9)):
        schedule = case.within(make, budget, low, 1 - 1e-6)
        log_p, _, kept = case.predict(case.nets["threshold"], schedule)
        measured = image_costs(costs, schedule, kept)
        shares, last = measured.macs / costs.base, kept[:, -1]
        others = {other: fixed(case, other, float(measured.macs.mean())) for other in FIXED}
        found, reference = distances(log_p, case.plain, case.labels), others["matched"][1]
        rows[name] = {
            "cost": float(shares.mean()),
            "cost_sd": float(shares.std()),
            "cost_on_training_images": case.mean_cost(schedule) / costs.base,
            "thresholds": list(schedule.keep_ratios.values()),
            "tokens_kept": {"mean": measured.tokens, "last": histogram(last), "quantiles": quantiles(last)},
            **summary(found, reference, "matched"),
            **{other: cost | summary(each, reference, "matched") for other, (cost, each) in others.items()},
        }
        print(share, name, rows[name], flush=True)
    return rows


def fixed(case: Case, name: str, budget: float) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Cost and results of the costliest uniform schedule within a budget; all images keep equally many tokens."""
    operator, form = FIXED[name]
    costs = case.costs(operator)
    tried = [MergeSchedule.uniform(costs.layers, float(r), operator, form) for r in RATIOS]
    schedule = max((each for each in tried if costs.macs(each) <= budget), key=costs.macs)
    log_p, _, _ = case.predict(case.nets[operator], schedule)
    cost = {"cost": costs.macs(schedule) / costs.base, "keep_ratio": schedule.keep_ratio(costs.layers[0])}
    return cost, distances(log_p, case.plain, case.labels)


def histogram(counts: np.ndarray) -> dict[str, list[int]]:
    """Images by tokens after the last layer."""
    images, edges = np.histogram(counts, bins=min(BINS, int(np.ptp(counts)) + 1))
    return {"images": images.tolist(), "from": np.ceil(edges[:-1]).astype(int).tolist()}


def quantiles(counts: Sequence[int] | np.ndarray) -> dict[str, float]:
    return {f"{share:g}": float(np.quantile(counts, share)) for share in (0.0, 0.05, 0.5, 0.95, 1.0)}


def show(results: dict[str, Any]) -> None:
    for share, found in results.items():
        rows = []
        for name, row in found.items():
            kept = row["tokens_kept"]["quantiles"]
            tokens = " ".join(f"{kept[each]:g}" for each in ("0.05", "0.5", "0.95"))
            rows.append([name, f"{row['cost']:.3f} (sd {row['cost_sd']:.3f})", tokens, *numbers(row)])
            rows += [[f"  {other}", f"{row[other]['cost']:.3f}", "", *numbers(row[other])] for other in FIXED]
        heads = ("", "mean cost", "tokens left, 5/50/95 %", "KL", "less matched's", "top-1 less plain's", "agreement %")
        print_table(f"{share} of the plain cost", heads, rows)


def drawing(results: dict[str, Any]) -> Drawing:
    """Distance by mean cost, and how many images keep how many tokens."""
    by_share: dict[str, Any] = results["results"]
    rows = [found["threshold"] for found in by_share.values()]
    series = {"threshold": rows, "one threshold": [found["common"] for found in by_share.values()]}
    series |= {name: [row[name] for row in rows] for name in FIXED}
    lines = [
        Series(x=[p["cost"] for p in points], y=[p["kl"][0] for p in points], color=color, name=name)
        for (name, points), color in zip(series.items(), (BLUE, ORANGE, GREEN, GREY), strict=True)
    ]
    counts = []
    for share, dash in zip(by_share, ("solid", "dash", "dot", "dashdot") * len(rows), strict=False):
        row = by_share[share]["threshold"]
        last, name = row["tokens_kept"]["last"], f"threshold at {share}"
        widths = np.diff([*last["from"], row["tokens_kept"]["quantiles"]["1"] + 1])
        middles = np.array(last["from"]) + (widths - 1) / 2
        images = np.array(last["images"]) / widths
        counts.append(Series(x=middles.tolist(), y=images.tolist(), color=BLUE, dash=dash, name=name, size=5))
    panels = [
        Panel(
            title="Distance from the plain network",
            series=lines,
            x_axis={"title": "mean cost, of the plain network's"},
            y_axis={"title": "KL divergence, nats", "type": "log", "tickvals": [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]},
        ),
        Panel(
            title="Tokens left, by the share of the cost",
            series=counts,
            x_axis={"title": "tokens"},
            y_axis={"title": "images with this many"},
        ),
    ]
    figure = draw("Numbers of tokens by image", panels)
    return Drawing(figure=figure, stem="threshold", title="Numbers of tokens by image")


def numbers(row: dict[str, Any]) -> list[str]:
    columns = (("kl", "", 4), ("kl_less_matched", "+", 4), ("top1_difference", "+", 1), ("agreement", "", 1))
    return [f"{row[n][0]:{sign}.{digits}f} ± {row[n][1]:.{digits}f}" for n, sign, digits in columns]


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data_dir(parser)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2", help="timm name of a ViT")
    parser.add_argument("--checkpoint", type=Path, help="trained weights; a classifier that they lack is fitted")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs, help="timm's arguments")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--crop-mode", default="squash", help="preparation of images, as in timm")
    parser.add_argument("--splits", nargs="+", help="splits of held-out images; default: validation")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.35], help="of the plain cost")
    parser.add_argument("--val-images", type=int, help="held-out images per split; default: all")
    small = {"depth": 2, "embed_dim": 64, "num_heads": 2}
    args = parse(parser, val_images=16, shares=[0.8], img_size=56, model_kwargs=small)
    torch.set_num_threads(1)
    case = Case(args)
    top1 = 100 * (case.plain.argmax(1) == case.labels).float().mean().item()
    by_share = {f"{share:g}": compare(case, share) for share in args.shares}
    show(by_share)
    about = {"settings": settings_of(args), "images": len(case.labels), "plain_top1": top1}
    results = {**about, "results": by_share}
    write_results(args.out / "threshold.json", **results)
    save_figure(drawing(results), args.out)


if __name__ == "__main__":
    main()
