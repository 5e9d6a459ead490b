"""Seconds until `ltmsearch` prints its help, its version, or an error: new processes, in turns.

Claim:    `ltmsearch --help` takes less than 0.3 s, since no command is imported before it is called.
Command:  python benchmarks/start_up.py
Duration: half a minute
Result:   benchmarks/results/start_up.json
Page:     docs/benchmarks/index.md

`python` alone is the lower bound. The commands take turns; the first turn, which fills the caches of the disk, does not
count.
"""

import subprocess
import sys
import time
from statistics import median

from harness.arguments import benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.tables import print_table
from harness.timing import alternating

LTMSEARCH = [sys.executable, "-m", "ltmsearch"]
CALLS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "ltmsearch --help": [*LTMSEARCH, "--help"],
    "ltmsearch --version": [*LTMSEARCH, "--version"],
    "ltmsearch run --help": [*LTMSEARCH, "run", "--help"],
    "ltmsearch train --help": [*LTMSEARCH, "train", "--help"],
    "ltmsearch run (an error)": [*LTMSEARCH, "run"],
}


def seconds(call: list[str]) -> float:
    """Wall time of a process."""
    start = time.perf_counter()
    subprocess.run(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--turns", type=int, default=15)
    args = parse(parser, turns=1)
    taken: dict[str, list[float]] = {name: [] for name in CALLS}
    for turn in range(args.turns + 1):
        for name in alternating(CALLS, turn):
            taken[name].append(seconds(CALLS[name]))
    counted = {name: sorted(each[1:]) for name, each in taken.items()}
    rows = [[name, f"{each[0]:.2f}", f"{median(each):.2f}", f"{each[-1]:.2f}"] for name, each in counted.items()]
    print_table("seconds of a process", ("command", "least", "median", "most"), rows)
    write_results(args.out / "start_up.json", settings=settings_of(args), seconds=counted)


if __name__ == "__main__":
    main()
