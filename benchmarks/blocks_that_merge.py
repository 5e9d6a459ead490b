"""Which blocks may merge: the searched schedule beside simple ones, with the shared weights of the searches.

Claim:    in a small Swin merges in every second block, behind shifted attention, cost fewer answers than in the others.
Command:  python benchmarks/blocks_that_merge.py --work FOLDER --backbone swin_tiny_patch4_window7_224 …, all options
              as in search_gain.py before it, whose folder this reads
Duration: two minutes
Result:   benchmarks/results/blocks_that_merge.json
Page:     docs/benchmarks/search.md

No training: networks are scored on the reported images with the shared weights at the end of each search, and compared
with the searched schedule by top-1, paired by image (digits are clustered by glyph).
"""

from statistics import mean
from typing import Any

import numpy as np
from harness.arguments import benchmark_parser, parse, study_settings
from harness.gain_findings import gain
from harness.gain_options import QUICK, add_gain_options
from harness.gain_study import GainStudy
from harness.records import settings_of, write_results
from harness.statistics import mean_sd
from harness.tables import print_table

from ltmsearch.engine.paired import Difference
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.run import Run

SEARCHED = "searched"


def schedules(study: GainStudy, share: float, few: float, more: float) -> dict[str, MergeSchedule]:
    """The searched schedule, one ratio in all layers, and few tokens in every second layer only."""
    trial = study.search(share)["nets"][SEARCHED]
    found = next(each.schedule for each in Run.open(study.run_folder(share)).trials if each.trial == trial)
    layers, operator = study.context.evaluator.supernet.layers, found.operator
    halves = {
        name: MergeSchedule(keep_ratios=dict.fromkeys(layers[first::2], few), operator=operator)
        for first, name in enumerate(("first, third, …", "second, fourth, …"))
    }
    return {SEARCHED: found, f"{more:g} in all": MergeSchedule.uniform(layers, more, operator)} | {
        f"{few:g} in the {name}": schedule for name, schedule in halves.items()
    }


def compare(study: GainStudy, share: float, few: float, more: float) -> dict[str, Any]:
    """Cost, top-1 and paired difference to the searched schedule of each network of one search seed."""
    context, answers = study.context, study.answers(share)
    context.evaluator.supernet.load_state_dict(study.shared_weights(share))
    nets = schedules(study, share, few, more)
    predicted = {name: [context.evaluator.score(each, "report").predictions] for name, each in nets.items()}
    return {
        name: {
            "cost": context.costs_at(each).macs(each) / context.costs.base,
            "top1": 100 * float((predicted[name][0] == answers.labels).mean()),
            "less_searched": vars(gain(predicted[name], predicted[SEARCHED], answers)),
        }
        for name, each in nets.items()
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_gain_options(parser)
    parser.add_argument("--few", type=float, default=0.25, help="keep ratio in every second layer")
    parser.add_argument("--more", type=float, default=0.5, help="keep ratio in all layers")
    args = parse(parser, **QUICK)
    studies = [GainStudy(args, seed, study_settings(args)) for seed in range(args.seeds)]
    results = {f"{share:g}": [compare(each, share, args.few, args.more) for each in studies] for share in args.shares}
    rows = []
    for share, seeds in results.items():
        for name in seeds[0]:
            each = [seed[name] for seed in seeds]
            less = [Difference(**one["less_searched"]) for one in each]
            whole = Difference(value=mean(d.value for d in less), se=float(np.sqrt(np.mean([d.se**2 for d in less]))))
            cost, top1 = mean(one["cost"] for one in each), mean_sd([one["top1"] for one in each])
            rows.append([share, name, f"{cost:.3f}", top1, "" if name == SEARCHED else str(whole)])
    print_table("before fine-tuning", ("share", "network", "cost", "top-1, %", "less the searched"), rows)
    write_results(args.out / "blocks_that_merge.json", settings=settings_of(args), shares=results)


if __name__ == "__main__":
    main()
