"""The chapters on the nets that were tried: their layers, their latency, their information terms."""

from collections.abc import Mapping, Sequence

from ltmsearch.config.objective import CostAxis
from ltmsearch.io.figures import figure_json
from ltmsearch.reporting.convergence import agreement, information, mean_error, predicted_and_measured
from ltmsearch.reporting.findings import Findings
from ltmsearch.reporting.html.charts import for_page, information_figure, latency_figure
from ltmsearch.reporting.html.parts import Chapter, Plot, called, counted, four_digits, plain_table, with_error
from ltmsearch.reporting.layer_plot import layers_figure
from ltmsearch.reporting.pareto_plot import breaks_budget
from ltmsearch.search.records import TrialRecord


def layers_chapter(findings: Findings, axis: CostAxis) -> Chapter:
    if not findings.layers:
        return Chapter(anchor="layers", heading="Layer by layer", paragraphs=("There is no trial yet.",))
    words = (
        "A row for each layer, in the order of the net. Left: what each point of the front keeps there, cheapest "
        "first; white is plain, and the darker, the fewer tokens are kept. Middle: what merging there adds to the "
        "loss, with one standard error each way; vermilion where that can be told from zero, grey where not. Right: "
        "the GFLOPs it saves."
    )
    importance = findings.importance
    rows = []
    for effect in importance.layers:
        merging = sum(record.schedule.keep_ratios[effect.layer] < 1 for record in findings.front)
        rows.append(
            (
                effect.layer, f"{merging} of {len(findings.front)}",
                None if effect.keep_ratio is None else f"{effect.keep_ratio:.3g}",
                None if effect.loss is None else f"{effect.loss.value:+.4f} ± {effect.loss.se:.4f}",
                None if effect.top1 is None else f"{effect.top1.value:+.1f} ± {effect.top1.se:.1f}",
                None if effect.gflops_saved is None else f"{effect.gflops_saved.value:.4f}",
                "yes" if effect.distinct else "no",
            )
        )  # fmt: skip
    headings = (
        "layer", "merges in points of the front", "keep ratio", "adds to the loss, nats", "adds to top-1, points",
        "GFLOPs saved", "told from zero",
    )  # fmt: skip
    # Headings of the columns stand above the plot; the words that the picture alone has are the page's.
    figure = for_page(layers_figure(findings, title="", axis=axis), top=40)
    kept = f"{len(findings.always)} merge in every point of the front, {len(findings.never)} in none"
    plot = Plot(
        anchor="plot-layers", figure=figure_json(figure), height=40 + 24 * max(len(findings.layers), 8) + 105,
        alternative=f"Keep ratios of {counted(len(findings.layers), 'layer')}: {kept}.", least_width=820,
    )  # fmt: skip
    table = plain_table("What merging at each layer does", headings, rows)
    return Chapter(anchor="layers", heading="Layer by layer", paragraphs=(words,), plots=(plot,), tables=(table,))


def latency_chapter(records: Sequence[TrialRecord], axis: CostAxis, front: set[int]) -> Chapter:
    pairs, heading = predicted_and_measured(records, axis), "Predicted against measured latency"
    if not pairs:
        words = "Nothing was timed at the close: the latency is another machine's, or the run was stopped before."
        return Chapter(anchor="latency", heading=heading, paragraphs=(words,))
    of_front = [pair for pair in pairs if pair.record.trial in front]
    off = f"off by {mean_error(of_front or pairs):.1%} on average"
    words = (
        "The search goes by predicted latency; at its close the nets of the front (ringed) and the plain one were "
        "timed end to end. On the dashed line both are equal; below it a net is slower than predicted. Bars are one "
        "standard error of the measurement, dotted lines the budget. "
        f"Predictions {'for the front ' * bool(of_front)}were {off}."
    )
    rows = [
        (
            p.record.trial, called(p.record), f"{p.y:.2f}", with_error(p.x, p.record.latency_measured_se_ms, 2),
            f"{p.y / p.x - 1:+.1%}".replace("-", "−"), "yes" if breaks_budget(p.record, axis) else "",
        )
        for p in pairs
    ]  # fmt: skip
    headings = ("trial", "kind", "predicted, ms", "measured, ms", "difference", "over budget")
    plot = Plot(
        anchor="plot-latency", figure=figure_json(latency_figure(pairs, axis, front)), height=520, most_width=600,
        alternative=f"Predicted against measured milliseconds of {counted(len(pairs), 'net')}: {off}.",
    )  # fmt: skip
    table = plain_table("Nets timed at the close", headings, rows)
    return Chapter(anchor="latency", heading=heading, paragraphs=(words,), plots=(plot,), tables=(table,))


_TERMS: Mapping[str, tuple[str, str]] = {
    "mi_x": ("I(X̃;X)", "what the features keep of the image"),
    "mi_y": ("I(X̃;Y)", "what they tell of the class"),
    "ibb": ("IBB", "the bound of their difference that the IB loss lowers"),
}


def information_chapter(records: Sequence[TrialRecord]) -> Chapter:
    plots, told, names = [], [], []
    for term, (name, meaning) in _TERMS.items():
        pairs = information(records, term)
        if not pairs:
            continue
        found = agreement(pairs)
        figure = figure_json(information_figure(pairs, name))
        alternative = f"Top-1 against {name}: {found}."
        plots.append(Plot(anchor=f"plot-{term}", figure=figure, alternative=alternative, height=340))
        told.append(f"{name}, {meaning}: {found}.")
        names.append(term)
    heading = "Information bottleneck against accuracy"
    if not plots:
        return Chapter(anchor="information", heading=heading, paragraphs=("No trial has information terms.",))
    words = (
        "One panel for each information term, in nats, of the validation images' features after a trial's training; "
        "top-1 is that of the same moment. Marks are those of the front's plot: circles are searched, squares start-up "
        "trials, diamonds baselines. A term that goes with accuracy orders the trials as top-1 does (tau near 1) "
        "or in reverse (near −1)."
    )
    scored = [r for r in sorted(records, key=lambda r: r.trial) if any(getattr(r, name) is not None for name in names)]
    rows = [
        (
            r.trial, called(r), *(four_digits(getattr(r, name)) for name in names), four_digits(r.ib_weight),
            with_error(r.top1, r.top1_se),
        )
        for r in scored
    ]  # fmt: skip
    headings = ("trial", "kind", *(_TERMS[name][0] for name in names), "IB weight", "top-1 when it ran, %")
    table = plain_table("Information terms, in nats", headings, rows)
    paragraphs = (words, " ".join(told))
    return Chapter(anchor="information", heading=heading, paragraphs=paragraphs, plots=tuple(plots), tables=(table,))
