"""Searched schedules against the baselines that a person sets by hand, at equal cost, before and after fine-tuning.

Claim:    at equal cost the searched schedule beats the best baseline set by hand.
Command:  python benchmarks/search_gain.py --work FOLDER --backbone vit_small_patch14_dinov2 --checkpoint WEIGHTS
              --data-dir IMAGES --img-size 112
Duration: hours of one thread: a search and up to four fine-tunings for each share, seed and training seed
Result:   benchmarks/results/search_gain.json and .md
Page:     docs/benchmarks/search.md

Per seed the plain network is the given one, whose classifier is fitted if it lacks one (without a checkpoint: a network
trained for --base-steps). For each share of its cost `ltmsearch run` searches from its weights. The best searched
schedule and the best baseline are those of its verdict: by KL divergence on validation images. They are compared by
top-1 on the reported images, which neither search nor choice saw, paired by image (digits are clustered by glyph):

    before  with the shared weights of the study, from its answers.csv
    after   from these weights, fine-tuned by distillation from the plain network for --train-steps; all networks of a
            study see the same images in the same order. The plain network is the teacher, and stays as it is

Standard errors are over images, of one seed (root mean square over seeds); the standard deviation is over search seeds,
whose values are means over training seeds. A difference shown to differ from zero must exceed both.
"""

from statistics import mean
from typing import Any

import numpy as np
from harness.arguments import benchmark_parser, parse, study_settings
from harness.gain_findings import Answered, gain, pooled
from harness.gain_options import QUICK, add_gain_options
from harness.gain_study import GainStudy
from harness.records import settings_of, write_results
from harness.statistics import mean_sd
from harness.tables import markdown_table, print_table

from ltmsearch.engine.paired import Difference
from ltmsearch.io.files import write_atomic

PLAIN = "plain"
SIZES = ("best baseline at this size", "best baseline at another size")
"""Only where they are not the best baseline; compared before fine-tuning only."""
RIVALS = ("best baseline", *SIZES, "one count per layer", PLAIN)
"""One count per layer is ToMe's constant r."""


def compare(study: GainStudy, share: float) -> dict[str, Any]:
    """One search: its networks before and after fine-tuning, and the searched one less each rival."""
    found, answers = study.search(share), study.answers(share)
    trials: dict[str, int] = found["nets"]
    runs = {name: study.tuned(share, trial) for name, trial in trials.items() if name not in SIZES}
    before = {name: [answers.trials[trial]] for name, trial in trials.items()} | {PLAIN: [answers.plain]}
    after: dict[str, Answered] = {
        name: [np.array(each["predicted"]) for each in tuned] for name, tuned in runs.items()
    } | {PLAIN: [answers.plain] * study.args.train_seeds}
    less: dict[str, dict[str, Any]] = {}
    for name in (name for name in RIVALS if name in before):
        less[name] = {"before": vars(gain(before["searched"], before[name], answers))}
        if name in after:
            pairs = list(zip(after["searched"], after[name], strict=True))
            less[name]["after"] = vars(gain(after["searched"], after[name], answers))
            less[name]["after_by_training_seed"] = [gain([one], [other], answers).value for one, other in pairs]
    return {
        **found,
        "less": less,
        "tuned": {
            name: {
                "top1": [100 * float((np.array(each["predicted"]) == answers.labels).mean()) for each in tuned],
                **{key: [each[key] for each in tuned] for key in ("kl_before", "kl", "seconds")},
            }
            for name, tuned in runs.items()
        },
    }


def pooled_over(seeds: list[dict[str, Any]], rival: str, when: str) -> str:
    """The searched network less a rival: see `pooled`."""
    known = [seed["less"].get(rival, {}) for seed in seeds]
    return pooled([Difference(**one[when]) for one in known if when in one])


def divergence_saved(seeds: list[dict[str, Any]], rival: str) -> str:
    """Percent of a rival's divergence after fine-tuning that the searched schedule saves; paired by training seed."""
    pairs = [(seed["tuned"]["searched"]["kl"], seed["tuned"][rival]["kl"]) for seed in seeds if rival in seed["tuned"]]
    return mean_sd([mean(100 - 100 * a / b for a, b in zip(*pair, strict=True)) for pair in pairs], sign=True)


def gain_rows(results: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """A row for each share and rival."""
    rows = []
    for share, seeds in results.items():
        for rival in RIVALS:
            cells = [pooled_over(seeds, rival, when) for when in ("before", "after")]
            if any(cells):
                rows.append([share, rival, *cells, divergence_saved(seeds, rival)])
    return rows


def net_rows(results: dict[str, list[dict[str, Any]]], plain_gflops: float) -> list[list[str]]:
    """A row for each share and network: its name in every seed, cost, and scores."""
    rows = []
    for share, seeds in results.items():
        for name in seeds[0]["nets"]:
            own = [seed for seed in seeds if name in seed["nets"]]
            trials = [next(t for t in seed["trials"] if t["trial"] == seed["nets"][name]) for seed in own]
            labels = ", ".join(dict.fromkeys(t["label"] for t in trials if t["label"]))
            about = [share, name + (f" ({labels})" if labels and labels != name else "")]
            cost = mean(t["gflops"] for t in trials) / plain_gflops
            cells = [f"{cost:.3f}", mean_sd([t["report_top1"] for t in trials])]
            tuned = [seed["tuned"][name] for seed in own if name in seed["tuned"]]
            for key, digits in (("kl_before", 4), ("kl", 4), ("top1", 1)):
                cells.append(mean_sd([mean(each[key]) for each in tuned], digits) if tuned else "")
            rows.append([*about, *cells])
    return rows


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_gain_options(parser)
    args = parse(parser, **QUICK)
    studies = [GainStudy(args, seed, study_settings(args)) for seed in range(args.seeds)]
    results = {f"{share:g}": [compare(study, share) for study in studies] for share in args.shares}
    first = next(iter(results.values()))
    images, top1 = first[0]["images"], mean_sd(seed["plain_top1"] for seed in first)
    title = f"{args.backbone}: {images} reported images, plain network {top1} %; {args.seeds} seeds"
    tables = {
        "The searched schedule less others: points of top-1 ± standard error (sd over seeds)": (
            ("share of the cost", "searched less", "before fine-tuning", "after", "KL saved after, %"),
            gain_rows(results),
        ),
        "Networks on the reported images, before and after fine-tuning: means ± sd over seeds": (
            ("share of the cost", "network", "cost", "top-1 before", "KL before", "KL after", "top-1 after"),
            net_rows(results, studies[0].plain_gflops),
        ),
    }
    for heading, (columns, rows) in tables.items():
        print_table(f"{title}. {heading}", columns, rows)
    pages = [f"{title}.", *(f"{heading}:\n\n{markdown_table(*table)}" for heading, table in tables.items())]
    write_atomic(args.out / "search_gain.md", "\n\n".join(pages) + "\n")
    write_results(args.out / "search_gain.json", settings=settings_of(args), shares=results)


if __name__ == "__main__":
    main()
