"""Train a small segmentation network on a plain and on merging backbones, and compare cost and scores.

A ViT of four blocks and a head of 1×1 convolutions are trained together, from scratch, on images drawn here. All
networks of a seed start from the same weights of the backbone and the head, and see the same batches.
"""

import argparse
import time
from collections.abc import Iterator
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ltmsearch  # noqa: F401  registers `ltm_<backbone>` with timm
from ltmsearch.costs import traced_macs

BACKBONE = "vit_tiny_patch16_224"
SIZES: dict[str, Any] = {"img_size": 64, "patch_size": 8, "depth": 4, "embed_dim": 96, "num_heads": 3}
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"keep_ratios": None},
    "ltm hard, 0.85": {"keep_ratios": 0.85, "operator": "ltm", "forms": "hard"},
    "ltm matched, 0.85": {"keep_ratios": 0.85, "operator": "ltm", "forms": "matched"},
    "tome, 0.85": {"keep_ratios": 0.85, "operator": "tome"},
    "ltm matched, late 0.4": {"keep_ratios": {"blocks.[23]": 0.4}, "operator": "ltm", "forms": "matched"},
    "ltm hard, 0.7": {"keep_ratios": 0.7, "operator": "ltm", "forms": "hard"},
    "ltm matched, 0.7": {"keep_ratios": 0.7, "operator": "ltm", "forms": "matched"},
    "tome, 0.7": {"keep_ratios": 0.7, "operator": "tome"},
}
"""Name in the table → arguments of `timm.create_model`; a number is the keep ratio of each of the four blocks."""
COLOURS = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]])
"""Of the background and of three classes of objects."""
NOISE = 1.0
"""Standard deviation of the noise over the colours."""
OBJECTS = 4
"""Per image; later ones cover earlier ones."""
EDGE = 3
"""A pixel at most this far, in rows and in columns, from a pixel of another class is at an edge."""


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Discs and squares on noise: (count, 3, H, W) images, and the (count, H, W) class of every pixel."""
    side = SIZES["img_size"]
    axis = torch.arange(side) + 0.5
    mask = torch.zeros(count, side, side, dtype=torch.long)
    for _ in range(OBJECTS):
        x, y, radius, round_ = torch.rand(4, count, 1, 1, generator=generator)
        dx, dy = (axis[None, None, :] - x * side).abs(), (axis[None, :, None] - y * side).abs()
        distance = torch.where(round_ < 0.5, (dx**2 + dy**2).sqrt(), torch.maximum(dx, dy))
        label = torch.randint(1, len(COLOURS), (count, 1, 1), generator=generator)
        mask = torch.where(distance < side * (0.1 + 0.15 * radius), label, mask)
    noise = torch.randn(count, 3, side, side, generator=generator)
    return COLOURS[mask].permute(0, 3, 1, 2) + NOISE * noise, mask


class Segmenter(nn.Module):
    """A backbone with `features_only=True` under a head: a 1×1 convolution per level, enlarged and summed."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        info: Any = backbone.feature_info
        self.head = nn.ModuleList(nn.Conv2d(channels, classes, 1) for channels in info.channels())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, classes, H, W) logits."""
        levels = [conv(level) for conv, level in zip(self.head, self.backbone(images), strict=True)]
        enlarged = [F.interpolate(level, size=images.shape[2:], mode="bilinear") for level in levels]
        return torch.stack(enlarged).sum(dim=0)


def build(merging: dict[str, Any], *, levels: list[int], seed: int) -> Segmenter:
    """A network whose weights depend on the seed alone, except for those of merging operators.

    `levels`: numbers of the blocks whose output the head reads.
    """
    torch.manual_seed(seed)
    plain = Segmenter(timm.create_model(BACKBONE, features_only=True, out_indices=levels, **SIZES), len(COLOURS))
    backbone = timm.create_model(
        f"ltm_{BACKBONE}",
        features_only=True,
        out_indices=levels,
        mask_start="place",  # the masks start for a training from scratch
        **SIZES,
        **merging,
    )
    network = Segmenter(backbone, len(COLOURS))
    network.load_state_dict(plain.state_dict())  # which has no weights of merging operators: they stay as they are
    return network


def train(network: Segmenter, *, steps: int, batch_size: int, seed: int) -> None:
    """Train all weights by AdamW, with a cosine schedule after a short warm-up, on new images in every step."""
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1)
    network.train()
    for _ in range(steps):
        images, mask = draw(batch_size, generator)
        loss = F.cross_entropy(network(images), mask)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


class Scores(NamedTuple):
    """On held-out images, in percent."""

    iou: float
    """Mean over the classes of intersection over union, the background included."""
    pixels: float
    """Share of the pixels that are right."""
    edges: float
    """The same, of the pixels at edges."""


@torch.no_grad()
def score(network: Segmenter, batches: Iterator[tuple[Tensor, Tensor]]) -> Scores:
    """Score a network; intersections and unions are summed over all images first."""
    network.eval()
    counts = torch.zeros(len(COLOURS), len(COLOURS))  # true class, predicted class
    edge_right, edge_pixels = 0, 0
    for images, mask in batches:
        found = network(images).argmax(dim=1)
        counts += torch.bincount(len(COLOURS) * mask.flatten() + found.flatten(), minlength=len(COLOURS) ** 2).view(
            len(COLOURS), -1
        )
        highest, lowest = (s * F.max_pool2d(s * mask.float(), 2 * EDGE + 1, stride=1, padding=EDGE) for s in (1, -1))
        edge = highest != lowest
        edge_right += int((found == mask)[edge].sum())
        edge_pixels += int(edge.sum())
    right = counts.diagonal()
    iou = right / (counts.sum(dim=0) + counts.sum(dim=1) - right)
    shares = (float(iou.mean()), float(right.sum() / counts.sum()), edge_right / edge_pixels)
    return Scores(*(100 * share for share in shares))


@torch.no_grad()
def times(networks: dict[str, Segmenter], *, batch_size: int, rounds: int) -> dict[str, float]:
    """Median processor time of a forward pass of one batch, in ms; the networks take turns."""
    images, _ = draw(batch_size, torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds + 1):
        for name, network in networks.items():
            start = time.process_time()
            network.eval()(images)
            taken[name].append(1000 * (time.process_time() - start))
    return {name: median(values[1:]) for name, values in taken.items()}  # the first round warms up


def with_error(values: list[float]) -> str:
    """Mean and its standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{error}"


def main() -> None:
    """Train every network with every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150, help="training steps of a network")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of a network")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step")
    parser.add_argument("--held-out", type=int, default=512, help="images to score")
    parser.add_argument(
        "--levels",
        type=int,
        nargs="+",
        choices=range(SIZES["depth"]),
        default=list(range(SIZES["depth"])),
        help="blocks whose output the head reads",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # processor time is then the time of a forward pass on a quiet machine

    side = SIZES["img_size"]
    networks = {name: build(merging, levels=args.levels, seed=0) for name, merging in NETWORKS.items()}
    gflops = {name: traced_macs(network, (side, side), in_chans=3) / 1e9 for name, network in networks.items()}
    ms = times(networks, batch_size=args.batch_size, rounds=21)
    print(f"{'network':22} GFLOPs  ms/batch  {'mean IoU':13} {'pixels':13} edges")
    for name, merging in NETWORKS.items():
        scores = []
        for seed in range(args.seeds):
            network = build(merging, levels=args.levels, seed=seed)
            train(network, steps=args.steps, batch_size=args.batch_size, seed=seed)
            held_out = torch.Generator().manual_seed(1)  # other images than those of any training
            sizes = [args.batch_size] * max(1, args.held_out // args.batch_size)
            scores.append(score(network, (draw(size, held_out) for size in sizes)))
        iou, pixels, edges = (with_error(list(column)) for column in zip(*scores, strict=True))
        print(f"{name:22} {gflops[name]:6.4f}  {ms[name]:8.1f}  {iou:13} {pixels:13} {edges}", flush=True)


if __name__ == "__main__":
    main()
