"""The files of a study's results: tables, plots and report."""

from pathlib import Path
from typing import Any

from ltmsearch.callbacks import Callbacks
from ltmsearch.io.figures import write_drawing
from ltmsearch.reporting.findings import Findings, findings_of, write_findings
from ltmsearch.reporting.html import write_page
from ltmsearch.reporting.layer_plot import height, layers_figure
from ltmsearch.reporting.pareto_plot import front_figure
from ltmsearch.search.records import FRONT, TRIALS, TrialRecord, front_table, trials_table, write_csv
from ltmsearch.search.run import Run
from ltmsearch.search.timing import Clock

FINDINGS = "findings.json"


def write_plots(
    records: list[TrialRecord], findings: Findings, folder: Path, title: str, *, callbacks: Callbacks, png: bool = True
) -> None:
    """Write `front.html` and `layers.html`, and where a browser is found, `front.png` and `layers.png`.

    A front with a second cost is also drawn over that, as `front_tokens`.
    """
    axis = findings.axis
    shown: dict[str, Any] = {"title": title, "verdict": findings.verdict, "curves": findings.curves}
    drawn = {
        "front": (front_figure(records, axis=axis, **shown), 620),
        "layers": (layers_figure(findings, title=title), height(findings)),
    }
    if axis.second is not None:
        drawn["front_tokens"] = (front_figure(records, axis=axis.swapped, **shown), 620)
    for name, (figure, size) in drawn.items():
        note = write_drawing(figure, folder, name, title=title, height=size, png=png)
        if note:
            callbacks.note(note)
            png = False  # a browser that is missing or hangs is tried only once


def write_results(run: Run, callbacks: Callbacks, clock: Clock | None = None) -> None:
    """Write everything that follows from the trials and times of a study: tables, findings, two plots and the report.

    The clock of a running study is saved before the report reads the times.
    """
    settings, records, folder = run.settings, run.trials, run.folder
    write_csv(trials_table(records), folder / TRIALS)
    write_csv(front_table(records, settings.axis), folder / FRONT)
    findings = findings_of(run)
    write_findings(findings, folder / FINDINGS)
    title = f"{settings.backbone}, {settings.operator} merging, {settings.dataset}"
    write_plots(records, findings, folder, title, callbacks=callbacks)
    if clock is not None:
        clock.save()
    write_page(run)  # last, to include the time of everything else
