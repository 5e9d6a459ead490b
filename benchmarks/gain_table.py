"""What a user gains: ways to make a pretrained network cheaper, side by side within the same cost.

Claim:    within half of its cost the searched schedule keeps more of a fine-tuned ViT's accuracy than one keep ratio.
Command:  python benchmarks/gain_table.py --work FOLDER --checkpoint WEIGHTS --data-dir IMAGES --folds 3
Duration: half an hour to an hour of one thread for each share and seed
Result:   benchmarks/results/gain_table.json and .md
Page:     docs/benchmarks/search.md

The plain network of a seed is the given one, with a fitted classifier, then fine-tuned whole on labels (LP-FT). Each
way gives a schedule within the cost (harness/gain_ways.py):

    plain, smaller images        the network itself, on the largest images within the cost: most are well below it
    one ratio, best image size   one keep ratio in all layers, at the best of some image sizes
    ToMe, constant r             r tokens less in each layer, in the last ones r - 1, no learned part; our operator,
                                 whose tokens keep their order
    one ratio, best form         one keep ratio in the best form of LTM, full image size
    best of all baselines        these and further ones of the search (search/baselines.py), in LTM
    learned by gradient          harness/learned_schedule.py, full image size, on the images that score trials
    searched                     `ltmsearch run`, at the full image size, and over image sizes

By hand, the best candidate is that of the least KL divergence from the plain network on validation images, by the plain
network's own weights. A search chooses by its shared weights, after sandwich steps, which it then does not use: all are
compared without training and after the same fine-tuning, by distillation, from the plain network's own weights, on
images that no way has seen. The last row starts from the study's weights instead, as `train --init RUN` does.

One thread and one number format for all. Minutes are those of choosing a schedule, after set-up, in the fastest seed:
others may have had a busy machine. Latencies are of seed 0: torch eager in seconds that the thread ran, and the
exported network in onnxruntime; all networks of a share take turns. KL is the mean divergence from the plain network
on the reported images, in nats. Errors are over images, standard deviations over seeds, which differ in data, plain
network and search. With `--folds` each seed reports other images, all of them together every image once; the training
images of folds overlap.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from harness.arguments import benchmark_parser, parse, study_settings
from harness.gain_findings import Answered, gain, pooled
from harness.gain_options import QUICK, add_gain_options
from harness.gain_ways import SEARCHED, SHARED, WAYS, FineTuned, Ways
from harness.records import finished, refuse_other_options, settings_of, write_results
from harness.statistics import mean_sd
from harness.tables import markdown_table, print_table
from harness.timing import round_medians

from ltmsearch.engine.evaluation import log_probabilities
from ltmsearch.engine.paired import Difference
from ltmsearch.engine.runtime import has_bf16
from ltmsearch.io.files import write_atomic
from ltmsearch.programs import export_onnx
from ltmsearch.programs.onnx import open_onnx
from ltmsearch.schedules.schedule import MergeSchedule

PLAIN = "plain network"
BATCHES = (1, 16)
RUNTIMES = ("torch", "onnxruntime")


def compare(ways: Ways, nets: FineTuned, share: float) -> dict[str, Any]:
    """Every way at a share of the cost: its schedule, answers, and what the search over image sizes has more."""
    found, study = ways.schedules(share), ways.sized
    runs = {way: nets.answers(way, share, about) for way, about in found.items()}
    answers = study.answers(share)
    plain = plain_answers(ways)
    out: dict[str, Any] = {PLAIN: {"gflops": study.plain_gflops, "top1": top1([plain], answers.labels)}}
    searched = {when: answered(runs[SEARCHED], when) for when in ("predicted_before", "predicted")}
    for way, about in found.items():
        own = {when: answered(runs[way], when) for when in searched}
        before, after = own.values()
        out[way] = about | {
            "top1_before": top1(before, answers.labels),
            "top1": top1(after, answers.labels),
            "agreement_before": top1(before, plain),
            "agreement": top1(after, plain),
            "kl_before": mean(run["kl_before"] for run in runs[way]),
            "kl": mean(run["kl"] for run in runs[way]),
            "training_seconds": mean(run["seconds"] for run in runs[way]),
            "searched_less": {when: vars(gain(searched[when], own[when], answers)) for when in own},
            "less_plain": {when: vars(gain(own[when], [plain] * len(after), answers)) for when in own},
        }
    return {"ways": out, "images": len(answers.labels)}


def plain_answers(ways: Ways) -> np.ndarray:
    """Classes that the plain network predicts on the reported images."""
    study = ways.sized

    def predict() -> list[int]:
        batches = study.reported(None)
        found: list[int] = log_probabilities(study.teacher, batches, study.context.evaluator.scoring).argmax(1).tolist()
        return found

    return np.array(finished(study.folder / "plain.json", predict))


def answered(runs: list[dict[str, Any]], when: str) -> Answered:
    """Predicted classes by training seed."""
    return [np.array(run[when]) for run in runs]


def top1(predicted: Answered, labels: np.ndarray) -> float:
    """Percent of the images with these labels, mean over training seeds."""
    return float(np.mean([100 * (each == labels).mean() for each in predicted]))


def latencies(ways: Ways, share: float, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Network → milliseconds a batch, by runtime and batch size."""
    args, folder = ways.args, ways.sized.place(share)
    nets, sides = {PLAIN: ways.sized.teacher}, {PLAIN: args.img_size}
    for way, about in ((way, about) for way, about in found.items() if way != SHARED):
        schedule = MergeSchedule(**about["schedule"])
        study = ways.tome if schedule.operator == "tome" else ways.sized
        nets[way] = study.context.evaluator.supernet.extract(schedule).eval()
        sides[way] = schedule.img_size or args.img_size
    exported = {}
    for place, (way, net) in enumerate(nets.items()):
        path = folder / f"{place}.onnx"
        export_onnx(net.float().cpu(), path, img_size=sides[way])
        exported[way] = open_onnx(path, threads=1)
    out: dict[str, dict[str, float]] = {way: {} for way in nets}
    for runtime, programs in (("torch", nets), ("onnxruntime", exported)):
        for batch in BATCHES:
            images = {way: torch.randn(batch, 3, side, side) for way, side in sides.items()}
            runs = {way: partial(programs[way], images[way]) for way in nets}
            clock = time.thread_time if runtime == "torch" else time.perf_counter
            with torch.inference_mode():
                medians = round_medians(runs, rounds=3, calls=max(3, 24 // batch), clock=clock)
            for way, values in medians.items():
                out[way][f"{runtime}, batch {batch}"] = min(values)
    return out


def score_rows(share: str, seeds: list[dict[str, Any]], *, folds: bool) -> list[list[str]]:
    """A row of each way: its scores."""
    plain = [seed["ways"][PLAIN] for seed in seeds]
    score = mean_sd([each["top1"] for each in plain])
    table = [[share, PLAIN, "1.000", score, "", "", "", score, "", "", ""]]
    for way in WAYS:
        own = [seed["ways"][way] for seed in seeds if way in seed["ways"]]
        if not own:
            continue
        few = f" ({len(own)} of {len(seeds)} seeds)" if len(own) < len(seeds) else ""
        cells = [share, way + few, f"{mean(each['gflops'] for each in own) / plain[0]['gflops']:.3f}"]
        for when, suffix in (("predicted_before", "_before"), ("predicted", "")):
            differences = [Difference(**each["searched_less"][when]) for each in own]
            less = pooled(differences, folds=folds) if way != SEARCHED else ""
            cells += [mean_sd([each[f"{key}{suffix}"] for each in own]) for key in ("top1", "agreement")]
            cells += [f"{mean(each[f'kl{suffix}'] for each in own):.3f}", less]
        table.append(cells)
    return table


def time_rows(share: str, seeds: list[dict[str, Any]], ms: dict[str, dict[str, float]]) -> list[list[str]]:
    """A row of each network: its latencies, and the minutes to find it."""
    table = []
    for way, values in ms.items():
        found = [seed["ways"][way]["seconds"] for seed in seeds if way != PLAIN and way in seed["ways"]]
        table.append([share, way, *(f"{value:.1f}" for value in values.values())])
        table[-1].append(f"{min(found) / 60:.1f}" if found else "")
    return table


SCORES = (
    *("share", "network", "cost", "top-1 without training", "agreement", "KL", "searched less it"),
    *("top-1 fine-tuned", "agreement", "KL", "searched less it"),
)
TIMES = ("share", "network", *(f"{name}, batch {batch}, ms" for name in RUNTIMES for batch in BATCHES), "minutes")


def run_seed(args: argparse.Namespace, seed: int) -> tuple[Ways, dict[str, dict[str, Any]]]:
    """All shares of one seed."""
    precision = "bf16" if has_bf16(torch.device("cpu")) else "fp32"
    ways = Ways(args, seed, {"device": "cpu", "precision": precision} | study_settings(args))
    nets = FineTuned(ways)
    return ways, {f"{share:g}": compare(ways, nets, share) for share in args.shares}


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_gain_options(parser)
    parser.add_argument("--learning-steps", type=int, default=100, help="steps of the learned schedule")
    parser.set_defaults(base_tuning_steps=300, train_seeds=1)
    args = parse(parser, **QUICK, learning_steps=2, base_tuning_steps=2)
    os.environ["OMP_NUM_THREADS"] = "1"  # which studies then take as requested
    torch.set_num_threads(1)
    few = ("seeds", "shares", "train_seeds", "quick")  # may grow while parts are kept
    refuse_other_options(args.work, {name: value for name, value in settings_of(args).items() if name not in few})
    seeds = [run_seed(args, seed) for seed in range(args.seeds)]
    first, results = seeds[0][0], {}
    tables: dict[tuple[str, ...], list[list[str]]] = {SCORES: [], TIMES: []}
    for share in seeds[0][1]:
        each = [found[share] for _, found in seeds]
        fits = {way: about for way, about in each[0]["ways"].items() if way != PLAIN}
        path: Path = first.sized.place(float(share)) / "latencies.json"
        ms = finished(path, partial(latencies, first, float(share), fits))
        results[share] = {"seeds": each, "latency_ms": ms}
        tables[SCORES] += score_rows(share, each, folds=args.folds >= args.seeds)
        tables[TIMES] += time_rows(share, each, ms)
    title = f"{args.backbone}, {args.img_size} px, {args.seeds} seeds, each with {args.train_seeds} training seeds"
    title += f", a fold of {args.folds} reported by each" if args.folds else ""
    title += "; top-1 in percent, mean ± sd over seeds"
    for headings, table in tables.items():
        print_table(title, headings, table)
    pages = "\n\n".join((title, *(markdown_table(*each) for each in tables.items())))
    write_atomic(args.out / "gain_table.md", f"{pages}\n")
    write_results(args.out / "gain_table.json", settings=settings_of(args), shares=results)


if __name__ == "__main__":
    main()
