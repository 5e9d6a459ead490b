"""The report as one HTML file: the template filled in, everything escaped, plotly's JavaScript inside once."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.io.figures import PLOT_SETTINGS, plotly_script
from ltmsearch.io.files import write_atomic
from ltmsearch.reporting.findings import Findings
from ltmsearch.reporting.html.head import make_head
from ltmsearch.reporting.html.nets import information_chapter, latency_chapter, layers_chapter
from ltmsearch.reporting.html.parts import Chapter
from ltmsearch.reporting.html.search import (
    front_chapter,
    growth_chapter,
    scores_chapter,
    settings_chapter,
    times_chapter,
)
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.timing import Times

PAGE = "report.html"
"""Name of the file in a run directory."""

# The keyboard stops at every button: of eight plots each keeps those for a picture and for the first view.
_BUTTONS = ("zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d")


def write_page(
    records: Sequence[TrialRecord], settings: ResolvedSettings, findings: Findings, times: Times, folder: Path
) -> Path:
    """Writes `report.html`, which needs no network and no other file; see `write_atomic` for how.

    Args:
        records: All trials of a study.
        settings: Of the study.
        findings: Of the records.
        times: Of the run; without stints where it was made before times were kept.
        folder: The run directory.

    Raises:
        OSError: The folder cannot be written.
    """
    return write_atomic(folder / PAGE, page_text(records, settings, findings, times))


def make_chapters(
    records: Sequence[TrialRecord], settings: ResolvedSettings, findings: Findings, times: Times
) -> list[Chapter]:
    """All that is told of a run below its head, in the order of the page; arguments as for `write_page`."""
    axis, front = settings.axis, {record.trial for record in findings.front}
    latency = [latency_chapter(records, axis, front)] if axis.name == "latency_ms" else []
    return [
        front_chapter(records, findings, axis),
        growth_chapter(records, axis),
        layers_chapter(findings, axis),
        *latency,
        information_chapter(records),
        scores_chapter(records, front),
        times_chapter(records, times),
        settings_chapter(settings, times),
    ]


def page_text(records: Sequence[TrialRecord], settings: ResolvedSettings, findings: Findings, times: Times) -> str:
    """The HTML of a report; arguments as for `write_page`."""
    environment = Environment(
        loader=PackageLoader("ltmsearch.reporting.html", "template"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    told = make_chapters(records, settings, findings, times)
    return environment.get_template("report.html").render(
        head=make_head(records, settings, findings, times),
        chapters=told,
        plots=[plot for chapter in told for plot in chapter.plots],
        plot_settings=PLOT_SETTINGS | {"modeBarButtonsToRemove": [*PLOT_SETTINGS["modeBarButtonsToRemove"], *_BUTTONS]},
        plotly_script=plotly_script(),
    )
