"""Scoring of schedules in a screening: what each part of a fast score is worth.

Claim:    a screening scores schedules several times as fast as plain passes in fp32, one schedule after the other.
Command:  python benchmarks/scoring_speed.py
Duration: a quarter of an hour
Result:   benchmarks/results/scoring_speed.json
Page:     docs/benchmarks/search.md

A screening proposes schedules for one budget, by real scores. The scores that it asks for are then computed again, in
the same order, by each way in turn, a generation at a time; every way keeps its own caches. Each way has what those
before it have:

    plain     fp32, batches of 32 images, every schedule from the image on
    format    the number format that a study settles on this machine
    batches   as many images per forward pass as a study takes by default
    prefix    the outputs before the first layer are kept
    layers    and those of the layers, for schedules that agree up to them

The last three give equal scores. The weights, which are random unless a checkpoint is given, decide which schedules are
proposed.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.arguments import add_data_dir, benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.tables import print_table
from harness.timing import alternating

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import backbone_costs
from ltmsearch.search.initial_trials import initial_trials
from ltmsearch.search.screening import Screening, few_images
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.trial import Evaluator

WAYS = ("plain", "format", "batches", "prefix", "layers")
PLAIN_BATCH = 32
Call = tuple[list[np.ndarray], int | None]
"""Choice indices that are scored together, and the number of images."""


class NoCache:
    """Keeps nothing."""

    bytes = 0

    @contextmanager
    def replay(self, *key: Any) -> Iterator[None]:
        """Reuse nothing."""
        yield


def evaluators(context: StudyContext) -> dict[str, Evaluator]:
    """An evaluator for each way, of the same supernet."""
    whole = context.evaluator
    small = whole.settings.model_copy(update={"scoring_batch_size": PLAIN_BATCH})
    fp32 = replace(whole.scoring, dtype=torch.float32)
    found = {"plain": replace(whole, settings=small, scoring=fp32), "format": replace(whole, settings=small)}
    found |= {name: replace(whole) for name in WAYS[2:]}
    for name, evaluator in found.items():
        # The caches are cached properties, which an entry of the same name replaces.
        if name != "layers":
            evaluator.__dict__["layer_cache"] = NoCache()
        if name not in ("prefix", "layers"):
            evaluator.__dict__["prefix_cache"] = NoCache()
    return found


def record_calls(context: StudyContext, schedules: int) -> list[Call]:
    """What a screening asks for."""
    calls: list[Call] = []

    def score(rows: Sequence[np.ndarray], images: int | None) -> list[float]:
        if rows:
            calls.append((list(rows), images))
        return [context.evaluator.screening_score(context.space.schedule(row), images) for row in rows]

    rng = np.random.default_rng(context.settings.seed)
    Screening(
        space=context.space,
        budgets=context.budgets,
        score=score,
        net=lambda indices: context.proxy_key(context.space.schedule(indices)),
        few=few_images(context.evaluator.data.search_size),
        seed=context.settings.seed,
    ).run(starts=[one.indices for one in initial_trials(context, rng)], known=[], schedules=schedules, promoted=12)
    return calls


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data_dir(parser)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2", help="timm name")
    parser.add_argument("--checkpoint", type=Path, help="weights; default: random ones")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--share", type=float, default=0.5, help="budget, of the plain cost")
    parser.add_argument("--schedules", type=int, default=96)
    parser.add_argument("--search-images", type=int, default=256)
    args = parse(parser, backbone="vit_tiny_patch16_224", img_size=64, schedules=16, search_images=32)
    plain = backbone_costs(args.backbone, args.img_size, num_classes=10).base / 1e9
    size = dict.fromkeys(("img_size", "proxy_img_size", "base_img_size"), args.img_size)
    settings = StudySettings.make(
        "benchmark",
        **size,
        backbone=args.backbone,
        checkpoint=None if args.checkpoint is None else str(args.checkpoint),
        data_dir=None if args.data_dir is None else str(args.data_dir),
        budget_gflops=args.share * plain,
        search_images=args.search_images,
        objective="loss",
    )
    context = prepare(settings, Callbacks())
    calls = record_calls(context, args.schedules)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    ways = evaluators(context)
    for turn, (rows, images) in enumerate(calls):
        scores = {}
        for name in alternating(WAYS, turn):
            begun = time.perf_counter()
            scores[name] = [ways[name].screening_score(context.space.schedule(row), images) for row in rows]
            seconds[name].append(time.perf_counter() - begun)
        assert scores["layers"] == scores["prefix"] == scores["batches"]
    scored = sum(len(rows) for rows, _ in calls)
    number = sum(len(rows) * (images or args.search_images) for rows, images in calls)
    spent = {name: sum(each) for name, each in seconds.items()}
    memory = {name: (ways[name].layer_cache.bytes) / 2**20 for name in WAYS}
    table, before = [], spent["plain"]
    for name in WAYS:
        rates = f"{scored / spent[name]:.2f}", f"{number / spent[name]:.0f}"
        gains = f"{spent['plain'] / spent[name]:.2f}", f"{before / spent[name]:.2f}"
        table.append([name, *rates, *gains, f"{memory[name]:.0f}"])
        before = spent[name]
    conditions = str(context.conditions)
    title = f"{args.backbone} at {args.img_size} px, {args.share:g} of its cost: {scored} scores of {number} images"
    headings = ("way", "scores a second", "images a second", "times plain", "times the way before", "MiB of layers")
    print_table(f"{title}; {conditions}", headings, table)
    result = {"scores": scored, "images": number, "seconds": spent, "layer_mib": memory, "by_call": seconds}
    write_results(args.out / "scoring_speed.json", settings=settings_of(args), conditions=conditions, **result)


if __name__ == "__main__":
    main()
