"""Chapters of a report on the answers to reported images: against the best baseline, and images that change."""

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.examples import EXAMPLES, answers_digest, changes_of, read_examples
from ltmsearch.reporting.findings import Findings
from ltmsearch.reporting.html.charts import intervals_figure
from ltmsearch.reporting.html.elements import Chapter, Plot, make_table, named
from ltmsearch.reporting.numbers import costs_text, counted, points
from ltmsearch.search.run import Run


def against_chapter(findings: Findings, axis: CostAxis) -> list[Chapter]:
    """Every network of the front and every other baseline less the best baseline; empty without both."""
    verdict = findings.verdict
    if verdict is None or verdict.comparison is None or not verdict.against:
        return []
    best = verdict.comparison.baseline
    above = [record for record, difference in verdict.against if difference.interval()[0] > 0]
    below = [record for record, difference in verdict.against if difference.interval()[1] < 0]
    words = (
        f"Top-1 on {verdict.images} reported images less that of the best baseline within the budget, trial "
        f"{best.trial} ({best.label}, {costs_text(best, axis)}), image by image: points of the front, the best "
        "searched schedule and the other baselines (diamonds), from the cheapest. Bars are 95 % intervals, each by "
        "itself; one that crosses the line at 0 says that these images do not tell the two apart. Cheaper networks "
        "save more, which this plot does not show."
    )
    rows = [
        (*named(record), costs_text(record, axis), points(d.value, d.se), *(points(end) for end in d.interval()))
        for record, d in verdict.against
    ]
    headings = ("trial", "kind", "cost", "less the best baseline, points", "from", "to (95 %)")
    plot = Plot(
        anchor="plot-against",
        figure=intervals_figure(verdict.against, axis),
        alternative=f"{counted(len(rows), 'network')} less {best.label}: {len(above)} above it, {len(below)} below.",
        height=110 + 40 * len(rows),
        least_width=500,
    )
    table = make_table("Networks less the best baseline", headings, rows)
    heading = "Against the best baseline"
    return [Chapter(anchor="against", heading=heading, paragraphs=(words,), plots=(plot,), tables=(table,))]


def examples_chapter(run: Run) -> list[Chapter]:
    """Images whose answer changes, and some whose does not; empty where the run has no pictures."""
    shown, answers = read_examples(run.folder / EXAMPLES), run.answers
    if shown is None or answers is None or shown.trial not in answers.trials:
        return []
    if shown.digest != answers_digest(answers, shown.trial):  # an interrupted call has scored again since
        return []
    found = changes_of(answers, shown.trial)
    words = (
        f"Trial {shown.trial} answers {found.changed} of {counted(found.images, 'reported image')} otherwise than the "
        f"plain network: {found.lost} were right and are wrong now, {found.won} the reverse, {found.other} are wrong "
        "in both. First some of these, then some whose answer stays. Beside each image are its tokens after a few of "
        "the layers that merge: outlined patches are one token, in their mean colour."
    )
    heading = "Images whose answers change"
    return [Chapter(anchor="examples", heading=heading, paragraphs=(words,), examples=shown.examples)]
