"""How far operators take a trained network from itself at equal cost, before and after their masks are trained.

Claim:    LTM's matched form stays closer to the plain network than ToMe, without training, and closer still with it.
Command:  python benchmarks/operator_distance.py --backbone vit_small_patch14_dinov2 --checkpoint WEIGHTS
              --data-dir IMAGES --img-size 112 --splits validation test
          python benchmarks/operator_distance.py --backbone mobilevit_xxs --checkpoint WEIGHTS --img-size 128
Duration: about an hour each, one thread
Result:   benchmarks/results/operator_distance_<backbone>.json
Page:     docs/benchmarks/training.md

Every operator merges with one keep ratio in all layers, the largest within each share of the plain network's multiply-
adds; the cost of the masks is counted. First nothing is trained; the gradient form's steps are fitted to training
images, as always where weights are given. Then the backbone stays frozen, and only the masks learn to reproduce the
plain network's classes (KL divergence) on training images. All nets see the same held-out images, of which none is
used to fit anything here. Differences to ToMe as published are paired by image.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from harness.arguments import add_data_dir, add_seeds, benchmark_parser, parse
from harness.distances import distances, open_images, summary
from harness.operator_nets import operator_nets
from harness.records import settings_of, write_results
from harness.selections import SELECTIONS
from harness.tables import print_table
from timm.utils import ParseKwargs
from torch import Tensor

from ltmsearch.costs import backbone_costs
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.linear_probe import fit_classifiers, probe_images
from ltmsearch.engine.mask_fit import fit_layer
from ltmsearch.engine.optimizers import make_optimizer, set_rates
from ltmsearch.engine.runtime import Runtime
from ltmsearch.merging import BipartiteSoftMatching, LearnableTokenMerging, Merge, MergeShape, register_operator
from ltmsearch.merging.assignment import HardAssignment
from ltmsearch.merging.matching import average, match, matching_macs
from ltmsearch.models import attached_operators, output_and_own_loss
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Form, MergeSchedule

PUBLISHED = "tome"
RUNTIME = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="fp32")
BATCH = 64


class BipartiteSoftMatchingOfAllHeads(BipartiteSoftMatching):
    """ToMe that compares the keys of all heads instead of their mean."""

    name: ClassVar[str] = "tome all heads"

    def forward(self, tokens_in: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        assert keys is not None
        count = tokens(target)
        assignment = HardAssignment(match(keys.detach().flatten(2), sizes, count), count)
        merged, merged_sizes = average(tokens_in, sizes, assignment)
        return Merge(tokens=merged, sizes=merged_sizes, assignment=assignment)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        return matching_macs(shape.n, shape.p, shape.heads * shape.key_dim)


def network(args: argparse.Namespace, operator: str, classes: int) -> Supernet:
    kwargs = {"num_classes": classes, "img_size": args.img_size, **args.model_kwargs}
    if args.backbone.startswith(("mobilevit", "efficientvit")):
        kwargs.pop("img_size")
    return Supernet(args.backbone, operator=operator, checkpoint=args.checkpoint, **kwargs).eval()


@torch.inference_mode()
def predict(net: Supernet, schedule: MergeSchedule, held_out: Sequence[ImageData]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the held-out images, and their labels."""
    log_p, labels = [], []
    with net.active(schedule):
        for data in held_out:
            for images, targets in data.validation_batches(batch_size=BATCH):
                log_p.append(net(RUNTIME.images(images)).float().log_softmax(dim=1))
                labels.append(targets)
    return torch.cat(log_p), torch.cat(labels)


def fit_steps(net: Supernet, schedule: MergeSchedule, data: ImageData, seed: int) -> None:
    """Fit the gradient form's steps to training images, as a training from given weights does; see `fit_layer`."""
    with net.active(schedule):
        for operator in attached_operators(net.model, net.layers).values():
            if isinstance(operator, LearnableTokenMerging):
                fit_layer(net.model, operator, data, RUNTIME, seed=seed)


def train_masks(net: Supernet, schedule: MergeSchedule, data: ImageData, args: argparse.Namespace, seed: int) -> None:
    """Train the operators alone to reproduce the plain network, along a linear decay of their rate."""
    net.requires_grad_(False).eval()  # statistics of batch norms and stochastic depth stay as in the plain network
    for operator in net.operators().values():
        operator.requires_grad_(True).train()
    optimizer = make_optimizer(net, "adamw", lr=args.lr, weight_decay=0.0)
    batches = data.train_batches(batch_size=args.batch_size, steps=args.steps, seed=seed)
    for step, (images, _) in enumerate(batches):
        inputs = RUNTIME.images(images)
        with torch.no_grad():
            plain = net(inputs).log_softmax(dim=1)
        with net.active(schedule):
            logits, own_loss = output_and_own_loss(net, inputs, step / args.steps)
        set_rates(optimizer, backbone=0.0, masks=args.lr * (1 - step / args.steps))
        loss = F.kl_div(logits.log_softmax(dim=1), plain, log_target=True, reduction="batchmean")
        (loss if own_loss is None else loss + own_loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    net.eval()


def compare(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Results of one seed: share → net → cost, keep ratio, and its distance untrained and trained."""
    held_out = [open_images(args, seed, split) for split in args.splits or [None]]
    data = held_out[0]
    trained = network(args, PUBLISHED, data.num_classes)
    if trained.new_classifiers:
        images = probe_images(data, seed=seed)
        fit_classifiers(trained.model, list(trained.new_classifiers), data, RUNTIME, images=images)
    weights = trained.model.state_dict()
    plain, labels = predict(trained, trained.schedule, held_out)
    top1 = 100 * (plain.argmax(1) == labels).float().mean().item()
    results: dict[str, Any] = {"plain_top1": top1, "images": len(labels)}
    for share in args.shares:
        rows: dict[str, Any] = {}
        published: dict[str, list[float]] = {}
        for net in args.nets:
            costs = backbone_costs(
                args.backbone, args.img_size, net.operator, num_classes=data.num_classes, **args.model_kwargs
            )
            schedule = net.schedule(costs, share)
            supernet = network(args, net.operator, data.num_classes)
            supernet.model.load_state_dict(weights)
            if net.form == "gradient":
                fit_steps(supernet, schedule, data, seed)
            untrained = distances(predict(supernet, schedule, held_out)[0], plain, labels)
            published = published or untrained
            row = {
                "share": costs.macs(schedule) / costs.base,
                "keep_ratio": schedule.keep_ratio(costs.layers[0]),
                "untrained": summary(untrained, published, "tome"),
            }
            if args.steps and any(list(operator.parameters()) for operator in supernet.operators().values()):
                train_masks(supernet, schedule, data, args, seed)
                row["trained"] = summary(
                    distances(predict(supernet, schedule, held_out)[0], plain, labels), published, "tome"
                )
            rows[str(net)] = row
            print(share, net, row, flush=True)
        results[f"{share:g}"] = rows
    return results


def show(results: dict[str, Any], args: argparse.Namespace) -> None:
    for seed, result in results.items():
        rows = []
        for share in args.shares:
            for net, row in result[f"{share:g}"].items():
                for state in ("untrained", "trained"):
                    if state in row:
                        numbers = [
                            f"{row[state][name][0]:{sign}.{digits}f} ± {row[state][name][1]:.{digits}f}"
                            for name, sign, digits in (
                                ("kl", "", 4), ("kl_less_tome", "+", 4), ("top1_difference", "+", 1),
                                ("agreement", "", 1),
                            )
                        ]  # fmt: skip
                        rows.append([f"{net}, {state}", f"{row['share']:.3f}", f"{row['keep_ratio']:.3f}", *numbers])
        columns = ("operator", "cost", "keep ratio", "KL", "less ToMe's", "top-1 less plain's", "agreement %")
        print_table(f"seed {seed}: {result['images']} images, plain {result['plain_top1']:.1f} %", columns, rows)


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data_dir(parser)
    add_seeds(parser, 1)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224", help="timm name")
    parser.add_argument("--checkpoint", type=Path, help="trained weights; a classifier that they lack is fitted")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs, help="timm's arguments")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--crop-mode", default="squash", help="preparation of images, as in timm")
    parser.add_argument("--splits", nargs="+", help="splits of held-out images; default: validation")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.35], help="of the plain cost")
    parser.add_argument("--nets", nargs="+", default=[], metavar="OPERATOR[:FORM]", help="default: all, in every form")
    parser.add_argument("--steps", type=int, default=300, help="of the masks' training; 0: none")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4, help="rate of a backbone; masks have ten times this")
    parser.add_argument("--val-images", type=int, help="held-out images per split; default: all")
    args = parse(parser, steps=2, batch_size=4, val_images=16, shares=[0.9], splits=None)
    for variant in (BipartiteSoftMatchingOfAllHeads, *SELECTIONS):
        register_operator(variant)
    args.nets = operator_nets(args.nets or [PUBLISHED, "tome all heads", "ltm", "select", "pool"])
    torch.set_num_threads(1)
    results = {str(seed): compare(args, seed) for seed in range(args.seeds)}
    show(results, args)
    settings = {**settings_of(args), "nets": list(map(str, args.nets))}
    write_results(args.out / f"operator_distance_{args.backbone}.json", settings=settings, results=results)


if __name__ == "__main__":
    main()
