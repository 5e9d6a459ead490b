"""What a finished study of the benchmarks found, as JSON, and differences between networks' answers."""

import math
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np

from ltmsearch.config.objective import Measure
from ltmsearch.engine.paired import Difference, mean_with_error
from ltmsearch.reporting.findings import findings_of, verdict_lines
from ltmsearch.search.answers import Answers
from ltmsearch.search.records import TrialRecord, plain_network
from ltmsearch.search.run import Run
from ltmsearch.search.timing import Times

Answered = list[np.ndarray]
"""Predicted classes of the reported images, by training seed."""


def described(run: Run) -> dict[str, Any]:
    """A finished study as JSON: the networks to compare, and their differences on the reported images."""
    findings, answers, axis = findings_of(run), run.answers, run.settings.axis
    assert answers is not None
    assert findings.verdict is not None
    compared = findings.verdict.comparison
    if compared is None:
        raise SystemExit(f"{run.folder} has no searched schedule or no baseline within the budget: use more trials")
    baselines = [record for record in run.trials if record.kind == "baseline" and record.trial in answers.trials]
    rivals = [record for record in baselines if record.feasible and not record.is_plain]
    size, plain = compared.searched.schedule.img_size, plain_network(run.trials)
    assert plain is not None
    nets = {"searched": compared.searched, "best baseline": compared.baseline}
    same = [record for record in rivals if record.schedule.img_size == size]
    groups = {
        "best baseline at this size": same,
        "best baseline at another size": [record for record in rivals if record not in same],
        "one count per layer": [record for record in same if min(record.schedule.keep_ratios.values()) < 0],
    }
    for name, members in groups.items():
        best = min(members, key=lambda r: (r.rescored(axis.measure) or 0.0, r.trial), default=compared.baseline)
        if best is not compared.baseline or (members and name == "one count per layer"):
            nets[name] = best
    return {
        "nets": {name: record.trial for name, record in nets.items()},
        "trials": [_net(record, axis.measure) for record in (compared.searched, plain, *rivals)],
        "plain_top1": answers.top1().value,
        "images": len(answers.labels),
        "less_baselines": {each.name: vars(answers.difference(compared.searched.trial, each.trial)) for each in rivals},
        "verdict": verdict_lines(findings),
        "seconds": Times.load(run.folder).seconds,
    }


def _net(record: TrialRecord, measure: Measure) -> dict[str, Any]:
    values = ("trial", "kind", "label", "gflops", "report_top1", "difference", "difference_se", "agreement")
    return {
        **{name: getattr(record, name) for name in values},
        measure: record.rescored(measure),
        "img_size": record.schedule.img_size,
        "keep_ratios": dict(record.schedule.keep_ratios),
        "forms": dict(record.schedule.forms),
    }


def gain(one: Answered, other: Answered, answers: Answers) -> Difference:
    """Top-1 of a network less that of another, in points: mean over training seeds, paired by image and seed."""
    labels = answers.labels
    hits = [(a == labels).astype(float) - (b == labels) for a, b in zip(one, other, strict=True)]
    found = mean_with_error(100 * np.mean(hits, axis=0), answers.groups)
    return replace(found, se=math.hypot(found.se, 100 / answers.independent))  # as `Answers.difference`


def pooled(each: list[Difference], *, folds: bool = False) -> str:
    """Mean over search seeds ± its standard error over images, and the standard deviation over seeds.

    The error is that of one seed where all report the same images; `folds`: each reports other images.
    """
    if not each:
        return ""
    values = [one.value for one in each]
    error = float(np.sqrt(np.mean([one.se**2 for one in each]) / (len(each) if folds else 1)))
    whole = Difference(value=mean(values), se=error)
    return f"{whole}" + (f" (sd {np.std(values, ddof=1):.1f})" if len(values) > 1 else "")
