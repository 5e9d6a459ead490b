"""Ranking of schedules by shared weights against training each of them alone.

Claim:    scores with shared weights rank a small ViT's schedules as separate trainings do.
Command:  python benchmarks/rank_fidelity.py --work FOLDER --seeds 2 --backbones mobilevit_xxs
          python benchmarks/rank_fidelity.py --work FOLDER --seeds 3 --backbones vit_tiny_patch16_224
Duration: two hours of one thread
Result:   benchmarks/results/rank_fidelity.json and .html
Page:     docs/benchmarks/search.md

Schedules are drawn from the family's search space, half spread over all costs, half within ±2 % of the middle one. The
truth: per seed a plain net is trained, then from it every schedule's own subnet on the same images in the same order;
a schedule's truth is the mean over seeds. The prediction: a supernet of another seed scores every schedule on other
validation images (with --data-dir on the same ones), by top-1, by cross-entropy, and by KL divergence from the plain
net, which are the two measures that a search can minimise.

τ is Kendall's τ-b with a 95 % interval of 1,000 bootstraps over schedules and seeds. The ceiling is the mean τ of a
perfect predictor, since the truth is noisy too. Regret is the top-1 that the schedule of the best score lacks.
"""

import argparse
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from harness.arguments import add_backbones, add_data_dir, add_seeds, add_work, benchmark_parser, parse
from harness.figures import BLUE, ORANGE, Panel, Series, draw, save_figure
from harness.rank_nets import RankStudy, Sizes, Variant
from harness.records import read_results, write_json, write_results
from harness.statistics import rank_agreement, rank_reliability, regret
from harness.tables import print_table

from ltmsearch.costs import GIGA
from ltmsearch.data.loading import ImageData

SIZES = {
    "mobilevit_xxs": Sizes(img_size=80, base_steps=800, tune_steps=50, tune_lr=5e-4, shared_steps=800),
    "vit_tiny_patch16_224": Sizes(img_size=80, base_steps=600, tune_steps=40, tune_lr=3e-4),
}
QUICK = {"base_steps": 2, "tune_steps": 1, "shared_steps": 2, "schedules": 6, "val_images": 64, "img_size": 64}
VARIANTS = (
    Variant(name="α 0, default steps", images=None),
    Variant(name="α 0, no steps", steps=0, images=None),
    Variant(name="α 0.25", share=0.25),
    Variant(name="α 0, 16 steps", steps=16),
    Variant(name="calibration 128", calibration=128),
    Variant(name="calibration 512", calibration=512),
    Variant(name="no sandwich, no steps", sandwich=False, steps=0),
)
DRAWN = "α 0.25, when run"
"""Score that the sampler of a study sees; drawn in the figure."""
FIRST_SUPERNET = 100
"""Seed of the first supernet; those of the truth begin at 0."""
NUMBERS = (256, 512, 1000)
"""Numbers of validation images that a variant is scored on, where it has so many."""
MEASURES = ("top-1", "loss", "KL")


def measures(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """`MEASURES` of (nets, images, classes) logits, the plain net's last; (nets - 1,) each."""
    log_p = torch.from_numpy(logits).double().log_softmax(dim=-1).numpy()
    top1 = 100 * (logits.argmax(axis=-1) == labels).mean(axis=1)
    loss = -log_p[:, np.arange(len(labels)), labels].mean(axis=1)
    divergence = (np.exp(log_p[-1]) * (log_p[-1] - log_p)).sum(axis=-1).mean(axis=1)
    return {name: each[:-1] for name, each in zip(MEASURES, (top1, loss, divergence), strict=True)}


def more_is_better(name: str, values: np.ndarray) -> np.ndarray:
    """Values of a measure, negated where less is better."""
    return -values if name in ("loss", "KL") else values


def labels_of(data: ImageData) -> np.ndarray:
    """(images,) labels of the validation images."""
    return data.validation.labels[[index for index, _ in data.validation_keys]]


def predictors(study: RankStudy, args: argparse.Namespace) -> dict[tuple[str, str], np.ndarray]:
    """(Score, measure) -> (supernets, schedules) values."""
    costs = study.context.costs
    tokens = [[after for _, after in costs.tokens(schedule).values()] for schedule in study.schedules]
    found: dict[tuple[str, str], list[np.ndarray]] = {
        ("GFLOPs", ""): [np.array([costs.gflops(schedule) for schedule in study.schedules])],
        ("tokens at the last layer", ""): [np.array([kept[-1] for kept in tokens])],
        ("tokens, mean of layers", ""): [np.array([np.mean(kept) for kept in tokens])],
    }
    calibrates = any(isinstance(m, torch.nn.BatchNorm2d) for m in study.context.evaluator.supernet.modules())
    variants = [v for v in VARIANTS if calibrates or v.calibration == VARIANTS[0].calibration]
    for seed in range(FIRST_SUPERNET, FIRST_SUPERNET + args.supernets):
        labels = labels_of(study.context.evaluator.data if args.data_dir else study.prepare(seed).evaluator.data)
        for name, logits in study.shared(seed, variants).items():
            for number in [n for n in NUMBERS if n <= logits.shape[1]] or [logits.shape[1]]:
                key = (
                    name if number in (512, logits.shape[1]) and logits.shape[1] <= 512 else f"{name}, {number} images"
                )
                for measure, values in measures(logits[:, :number], labels[:number]).items():
                    found.setdefault((key, measure), []).append(values)
    return {key: np.stack(values) for key, values in found.items()}


def compare(study: RankStudy, args: argparse.Namespace) -> dict[str, Any]:
    """Truth, scores, and their agreement for one backbone."""
    labels, costs = labels_of(study.context.evaluator.data), study.context.costs
    alone = [measures(study.alone(seed), labels) for seed in range(args.seeds)]
    truth = {name: np.stack([each[name] for each in alone]) for name in MEASURES[:2]}
    gflops, number = np.array([costs.gflops(s) for s in study.schedules]), len(study.schedules)
    subsets = {"all": np.arange(number), "comparable": np.arange(number - number // 2, number)}
    scores = []
    for (score, measure), values in predictors(study, args).items():
        row: dict[str, Any] = {"score": score, "measure": measure, "values": values}
        ordered = more_is_better(measure, values)
        for subset, columns in subsets.items():
            row[subset] = {
                name: rank_agreement(ordered[:, columns], more_is_better(name, each[:, columns]), gflops[columns])
                for name, each in truth.items()
            }
            top1 = truth["top-1"].mean(axis=0)[columns]
            row[subset]["regret"] = float(np.mean([regret(each[columns], top1, gflops[columns]) for each in ordered]))
        scores.append(row)
    return {
        "sizes": asdict(study.sizes),
        "seeds": args.seeds,
        "supernets": args.supernets,
        "schedules": [
            {"gflops": cost, "keep_ratios": dict(schedule.keep_ratios), "forms": dict(schedule.forms)}
            for cost, schedule in zip(gflops, study.schedules, strict=True)
        ],
        "plain_gflops": costs.base / GIGA,
        "truth": truth,
        "reliability": {
            subset: {name: rank_reliability(each[:, columns]) for name, each in truth.items()}
            for subset, columns in subsets.items()
        },
        "scores": scores,
    }


def interval(agreement: dict[str, Any], value: str = "tau", ends: str = "interval") -> str:
    """τ with the ends of its interval."""
    low, high = agreement[ends]
    return f"{agreement[value]:.2f} [{low:.2f}, {high:.2f}]"


def print_tables(backbone: str, result: dict[str, Any]) -> None:
    """Print the reliability of the truth, and the agreement of each score with it."""
    rows = []
    for subset, by_measure in result["reliability"].items():
        for name, each in by_measure.items():
            if each:
                shares = f"{each['reliability']:.2f}", f"{each['tau_between_seeds']:.2f}"
                ceiling = interval(each, "ceiling", "ceiling_interval")
                rows.append([f"{subset}, {name}", f"{each['sd']:.3f}", f"{each['se']:.3f}", *shares, ceiling])
    headings = ("truth", "sd", "standard error", "reliability", "τ between seeds", "ceiling of τ")
    print_table(f"{backbone}: truth of {result['seeds']} seeds", headings, rows)
    rows = []
    for row in result["scores"]:
        cells = [
            f"{row['score']}, {row['measure']}",
            interval(row["all"]["loss"]),
            f"{max(row['all']['loss']['p']):.3f}",
        ]
        cells += [interval(row["comparable"]["loss"]), interval(row["all"]["top-1"]), f"{row['all']['regret']:.2f}"]
        rows.append(cells)
    headings = ("score", "τ with the loss", "p", "comparable cost", "τ with top-1", "regret, points")
    print_table(f"{backbone}: agreement with the truth", headings, rows)


def figure(results: dict[str, Any]) -> go.Figure:
    """Cross-entropy of a study's trials against the truth's; bars are the truth's standard error."""
    panels = []
    for backbone, result in results.items():
        row = next(row for row in result["scores"] if (row["score"], row["measure"]) == (DRAWN, "loss"))
        x, y = np.mean(row["values"], axis=0), np.mean(result["truth"]["loss"], axis=0)
        error, half = result["reliability"]["all"]["loss"].get("se", 0.0), len(x) - len(x) // 2
        looks = {"spread over all costs": (slice(half), BLUE), "comparable cost": (slice(half, None), ORANGE)}
        series = [
            Series(x=x[some], y=y[some], color=color, name=name, mode="markers", error_y=[error] * len(x[some]))
            for name, (some, color) in looks.items()
        ]
        title = f"{backbone}: τ {interval(row['all']['loss'])}"
        axes: dict[str, Any] = {
            "x_axis": {"title": "cross-entropy, shared weights"},
            "y_axis": {"title": "cross-entropy, alone"},
        }
        panels.append(Panel(title=title, series=series, **axes))
    return draw("Scores with shared weights against nets trained alone", panels, columns=len(panels))


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_work(parser)
    add_backbones(parser, list(SIZES), only=True)
    add_data_dir(parser)
    add_seeds(parser, 3)
    parser.add_argument("--supernets", type=int, default=1)
    args = parse(parser, backbones=["mobilevit_xxs"], seeds=2)
    for backbone in args.backbones:
        sizes = replace(SIZES[backbone], **(QUICK if args.quick else {}))
        calibration = 64 if args.quick else max(variant.calibration for variant in VARIANTS)
        study = RankStudy(backbone, sizes, args.work / backbone, args.data_dir, calibration)
        write_json(args.work / f"{backbone}.json", compare(study, args))
        print_tables(backbone, read_results(args.work / f"{backbone}.json"))
    results = {name: read_results(args.work / f"{name}.json") for name in SIZES}
    results = {name: result for name, result in results.items() if result}
    write_results(args.out / "rank_fidelity.json", backbones=results)
    save_figure(figure(results), args.out, "rank_fidelity", title="Rank fidelity", height=520)


if __name__ == "__main__":
    main()
