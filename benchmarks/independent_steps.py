"""Steps that a net needs to come as near to its base alone as shared weights and a trial bring it.

Claim:    twelve steps from the base bring schedules as near to it as the warm-up and a trial of three steps do.
Command:  python benchmarks/independent_steps.py --work FOLDER (that of search_quality.py, whose nets it uses)
Duration: ten minutes of one thread
Result:   benchmarks/results/independent_steps.json
Page:     docs/benchmarks/search.md
"""

from typing import Any

import numpy as np
from harness.arguments import add_work, benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.search_methods import TrialLog, logged
from harness.search_study import QUICK, SavedNets, add_search_options, prepare_study, uniform_line
from harness.statistics import mean_sd
from harness.tables import print_table
from harness.timing import Seconds

from ltmsearch.search.trial import parameters


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_work(parser)
    add_search_options(parser)
    parser.set_defaults(proxy_steps=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 12, 36], help="steps of training alone")
    parser.add_argument("--schedules", type=int, default=5)
    args = parse(parser, **QUICK, steps=[0, 1], schedules=2)
    folder = args.work / args.backbone / "seed-0"
    folder.mkdir(parents=True, exist_ok=True)
    context = prepare_study(args, 0)
    nets, space = SavedNets(context, folder, 0, args), context.space
    log = TrialLog(context, nets.base_net())
    drawn = [space.cheapest, *uniform_line(context)[:1], *space.random(np.random.default_rng(0), args.schedules)]
    results: dict[str, dict[str, Any]] = {}
    for start, steps in [("warm", args.proxy_steps), *(("base", steps) for steps in args.steps)]:
        trained = logged(context, log, proxy_steps=max(1, steps))
        nets.load(start)
        weights, before = parameters(trained.supernet), Seconds.now()
        scores = [
            trained.evaluate(weights, space.schedule(indices), seed=7, steps=steps).score
            for indices in drawn[: args.schedules]
        ]
        seconds = (Seconds.now() - before).processor / args.schedules
        found: dict[str, list[Any]] = {key: [getattr(score, key) for score in scores] for key in ("kl", "loss", "top1")}
        results[f"{start}, {steps} steps"] = {**found, "seconds": seconds}
    rows = [
        [name, mean_sd(each["kl"], 3), mean_sd(each["loss"], 3), mean_sd(each["top1"]), f"{each['seconds']:.2f}"]
        for name, each in results.items()
    ]
    headings = ("start and steps", "KL", "loss", "top-1", "seconds of each")
    print_table(f"{args.backbone}: mean ± sd of {args.schedules} schedules", headings, rows)
    write_results(args.out / "independent_steps.json", settings=settings_of(args), trials=results)


if __name__ == "__main__":
    main()
