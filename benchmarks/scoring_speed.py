"""Scoring of schedules in a screening: with shared layers, with the shared prefix alone, and one by one.

Claim:    schedules that agree up to a layer share the work up to it.
Command:  python benchmarks/scoring_speed.py
Duration: fifteen minutes
Result:   benchmarks/results/scoring_speed.json
Page:     docs/benchmarks/search.md

A screening proposes schedules for one budget, by real scores. The scores that it asks for are then computed again, in
the same order, by each way in turn, a generation at a time; every way keeps its own caches. All give equal scores. The
weights, which are random unless a checkpoint is given, decide which schedules are proposed.

    one by one    every schedule from the image on
    prefix        the outputs before the first layer are kept
    layers        and those of the layers, for schedules that agree up to them
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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

WAYS = ("one by one", "prefix", "layers")
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
    found = {name: replace(context.evaluator) for name in WAYS}
    for name, evaluator in found.items():
        # The caches are cached properties, which an entry of the same name replaces.
        if name != "layers":
            evaluator.__dict__["layer_cache"] = NoCache()
        if name == "one by one":
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
        assert scores["layers"] == scores["prefix"] == scores["one by one"]
    scored = sum(len(rows) for rows, _ in calls)
    number = sum(len(rows) * (images or args.search_images) for rows, images in calls)
    spent = {name: sum(each) for name, each in seconds.items()}
    memory = {name: (ways[name].layer_cache.bytes) / 2**20 for name in WAYS}
    table = []
    for name in WAYS:
        rates = f"{scored / spent[name]:.2f}", f"{number / spent[name]:.0f}"
        table.append([name, *rates, f"{spent['one by one'] / spent[name]:.2f}", f"{memory[name]:.0f}"])
    title = f"{args.backbone} at {args.img_size} px, {args.share:g} of its cost: {scored} scores of {number} images"
    print_table(title, ("way", "scores a second", "images a second", "times one by one", "MiB of layers"), table)
    result = {"scores": scored, "images": number, "seconds": spent, "layer_mib": memory, "by_call": seconds}
    write_results(args.out / "scoring_speed.json", settings=settings_of(args), **result)


if __name__ == "__main__":
    main()
