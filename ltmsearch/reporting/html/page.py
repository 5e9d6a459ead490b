"""The report as one HTML file: the filled template, everything escaped, with plotly's JavaScript."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.io.figures import PLOT_SETTINGS, figure_json, plotly_script
from ltmsearch.io.files import write_atomic
from ltmsearch.reporting.findings import Findings, findings_of, front_lines, verdict_lines
from ltmsearch.reporting.front_table import FrontRow, make_front_table
from ltmsearch.reporting.html.chapters import make_chapters
from ltmsearch.reporting.html.elements import DataTable, make_table
from ltmsearch.reporting.numbers import counted, duration
from ltmsearch.search.run import Run
from ltmsearch.search.timing import Times

PAGE = "report.html"
"""File name in a run directory."""

# The Tab key stops at every button: each of eight plots keeps those for a picture and for the first view.
_BUTTONS = ("zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d")


@dataclass(frozen=True, kw_only=True)
class Head:
    """Summary above the chapters."""

    title: str
    verdict: str
    """One paragraph; empty before the final scores."""
    findings: str
    """One paragraph."""
    front: DataTable | None
    """None without any scored trial."""
    schedules: DataTable | None
    """Keep ratios of the same rows by stage."""
    captions: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    """Name and value."""


def make_head(run: Run, findings: Findings, times: Times) -> Head:
    """Compute the summary of a run's report."""
    settings = run.settings
    table = make_front_table(run.trials, settings.axis, findings.verdict)
    groups = (table.front, table.baselines)
    measured = [[(_name(row), *(row.cells[each] for each in table.columns[1:])) for row in rows] for rows in groups]
    schedules = [[(_name(row), *row.keep_ratios.values()) for row in rows] for rows in groups]
    stages = tuple(table.rows[0].keep_ratios) if table.rows else ()
    return Head(
        title=f"{settings.backbone} with {settings.operator} merging",
        verdict=" ".join(verdict_lines(findings)),
        findings=" ".join(front_lines(findings)),
        front=make_table(table.title, table.columns, *measured) if table.rows else None,
        schedules=make_table(f"Their {table.amounts}", ("trial", *stages), *schedules) if table.rows else None,
        captions=table.captions,
        facts=tuple(_facts(run, times)),
    )


def _name(row: FrontRow) -> str:
    return ", ".join(filter(None, (row.cells["trial"], row.label)))


def page_text(run: Run) -> str:
    """HTML of a run's report."""
    environment = Environment(
        loader=PackageLoader("ltmsearch.reporting.html", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_json"] = figure_json
    times, findings = Times.load(run.folder), findings_of(run)
    return environment.get_template("report.html").render(
        head=make_head(run, findings, times),
        chapters=make_chapters(run, findings, times),
        plot_settings=PLOT_SETTINGS | {"modeBarButtonsToRemove": [*PLOT_SETTINGS["modeBarButtonsToRemove"], *_BUTTONS]},
        plotly_script=plotly_script(),
    )


def write_page(run: Run) -> Path:
    """Write `report.html` atomically; it needs no network and no other file."""
    return write_atomic(run.folder / PAGE, page_text(run))


def _facts(run: Run, times: Times) -> list[tuple[str, str]]:
    settings = run.settings
    states = Counter(record.state for record in run.trials)
    words = {"over budget": "rejected over the budget", "below range": "rejected below the range"}
    trials = ", ".join(f"{number} {words.get(state, state)}" for state, number in states.items()) or "none yet"
    started, took = "not recorded", "not recorded"
    if times.stints:
        started = f"{times.stints[0].started:%Y-%m-%d %H:%M %z}"
        if len(times.stints) > 1:
            resumed = counted(len(times.stints) - 1, "time")
            started += f", resumed {resumed}, last {times.stints[-1].started:%Y-%m-%d %H:%M %z}"
        took = duration(times.total)
    folder = settings.data_dir
    return [
        ("Study", str(settings.study)),
        ("Backbone", settings.backbone),
        ("Merging operator", settings.operator),
        ("Data", settings.dataset if folder is None else f"{settings.dataset}: {Path(folder).name}"),
        ("Budget", _budget(settings)),
        *([("Split layer", settings.split_layer)] if settings.split_layer is not None else []),
        ("Image size", f"{settings.img_size} px for costs, {settings.proxy_img_size} px for training and scoring"),
        *([("New classifier", str(run.probe).removeprefix("classifier "))] if run.probe is not None else []),
        ("Trials", trials),
        ("Started", started),
        ("Duration", took),
    ]


def _budget(settings: ResolvedSettings) -> str:
    budgets = []
    if settings.budget_ms is not None:
        batch = "" if settings.latency_profile else f" of {settings.latency_batch}"
        budgets.append(f"{settings.budget_ms:g} ms per batch{batch}")
    if settings.budget_gflops is not None:
        lowest = "" if settings.lowest_gflops is None else f"{settings.lowest_gflops:g} to "
        budgets.append(f"{lowest}{settings.budget_gflops:g} GFLOPs per image (one multiply-add = one FLOP)")
    return " and ".join(budgets)
