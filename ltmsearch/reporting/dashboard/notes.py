"""Notes of a study and of its trials: Markdown from plain records."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ltmsearch.config.objective import MEASURES, CostAxis, tokens_text
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.costs import CostModel
from ltmsearch.errors import printable
from ltmsearch.reporting.findings import Findings, sentences
from ltmsearch.reporting.front_table import make_front_table
from ltmsearch.reporting.numbers import breaks_budget, trial_facts
from ltmsearch.schedules.grid import tokens
from ltmsearch.schedules.schedule import THRESHOLDS, MergeSchedule, amount_of
from ltmsearch.search.records import TrialRecord

LAST_LINE = "*ltmsearch replaces the text above when it scores again. Text that you write below this line stays.*"
"""Last line of every note."""

_STATES = {
    "over budget": "rejected by its cost, which is over the budget; not trained.",
    "below range": "rejected by its cost, which is below the range of budgets; not trained.",
    "failed": "failed; the attribute `failure` has the reason.",
}


@dataclass(frozen=True, kw_only=True)
class LayerTokens:
    """Token counts of one layer under a schedule."""

    layer: str
    keep_ratio: float
    form: str
    """`soft`, `hard`, `matched` or `gradient`; empty without merging."""
    whole: int
    """Tokens in the plain network, per window if there are windows."""
    before: float
    """A mean where images differ, like the next."""
    after: float
    windows: int


def layer_tokens(costs: CostModel, schedule: MergeSchedule, kept_shares: Mapping[str, float]) -> list[LayerTokens]:
    """Token counts of every layer that may merge, in network order.

    `kept_shares`: those of the trial's record; they are needed where images differ.
    """
    passed: Mapping[str, tuple[float, float]] = costs.tokens(schedule)
    if schedule.operator in THRESHOLDS:
        passed, left = {}, float(tokens(costs.chains[0].grid))
        for layer in costs.layers:
            passed[layer] = left, left * kept_shares.get(layer, 1.0)
            left = passed[layer][1]
    return [
        LayerTokens(
            layer=shape.name,
            keep_ratio=schedule.keep_ratio(shape.name),
            form=costs.choice(schedule, shape.name).form or "" if passed[shape.name][1] < passed[shape.name][0] else "",
            whole=tokens(chain.grid),
            before=passed[shape.name][0],
            after=passed[shape.name][1],
            windows=shape.windows,
        )
        for chain in costs.chains
        for shape in chain.layers
    ]


def share_kept(layers: Sequence[LayerTokens]) -> float:
    """Mean share of the plain network's tokens in the outputs of the layers."""
    return sum(layer.after / layer.whole for layer in layers) / len(layers)


def trial_note(
    record: TrialRecord, layers: Sequence[LayerTokens], axis: CostAxis, *, base_gflops: float, on_front: bool
) -> str:
    """Note of one trial: its result, costs, scores and schedule."""
    lines = [f"**{_escaped(record.label or record.kind)}**: {_result(record, on_front)}", ""]
    lines += _table(("cost and score", ""), _facts(record, layers, axis, base_gflops))
    windows = " (per window)" if any(layer.windows > 1 for layer in layers) else ""
    rows = [
        (
            layer.layer,
            f"{layer.keep_ratio:g}",
            layer.form or "none",
            f"{tokens_text(layer.before)} → {tokens_text(layer.after)}",
        )
        for layer in layers
    ]
    headings = ("layer", amount_of(record.schedule.operator), "merging", f"tokens{windows}")
    lines += ["", "**Schedule**", "", *_table(headings, rows)]
    return _ended(lines)


def study_note(
    settings: ResolvedSettings,
    records: Iterable[TrialRecord],
    findings: Findings,
    *,
    base_gflops: float,
    link: Callable[[int], str],
) -> str:
    """Note of a study: its front if there is one, its settings, and an explanation of the page.

    `link` turns the number of a trial into its address in the dashboard.
    """
    front = make_front_table(records, settings.axis, findings.verdict)
    lines = [f"## {settings.backbone} with {settings.operator} merging", ""]
    if front.front:
        rows = [
            (
                f"[{row.cells['trial']}]({link(row.trial)})",
                *(_escaped(row.cells[name]) for name in front.columns[1:]),
                (f"{_escaped(row.label)}: " if row.label else "") + " \\| ".join(row.keep_ratios.values()),
            )
            for row in front.rows
        ]
        lines += [_escaped(" ".join(sentences(findings))), ""]
        lines += [f"### {front.title}", "", *_table((*front.columns, front.amounts), rows)]
        for caption in front.captions:
            lines += ["", _escaped(caption)]
    else:
        lines.append("The front is shown here at the end of the search, when its candidates are rescored.")
    lines += ["", "### Settings", "", *_table(("setting", ""), _settings(settings, base_gflops))]
    return _ended([*lines, "", "### Reading this page", "", *_reading(settings.axis)])


def updated_note(note: str, present: str) -> str | None:
    """A new note with the text that a person wrote below the last line of the present one; None to leave that.

    It is left if nothing changed, or if a person removed the last line. Without a note, `present` is empty.
    """
    _, line, own = present.partition(LAST_LINE)
    if present.strip() and not line:
        return None
    new = note.rstrip("\n") + (own if own.strip() else "\n")
    return None if new == present else new


def _result(record: TrialRecord, on_front: bool) -> str:
    if record.state != "scored":
        return _STATES[record.state]
    if not record.feasible:
        return "scored for comparison, over the budget."
    if on_front:
        return "on the front."
    return "within the budget, not on the front." if record.rescored_loss is not None else "within the budget."


def _facts(
    record: TrialRecord, layers: Sequence[LayerTokens], axis: CostAxis, base_gflops: float
) -> list[tuple[str, str]]:
    facts = dict(trial_facts(record))
    facts["GFLOPs"] += f" ({record.gflops / base_gflops:.0%} of the plain network)"
    if breaks_budget(record, axis):
        facts["ms per batch, measured"] += " **over the budget**"
    facts["tokens"] = f"{share_kept(layers):.0%} kept on average, {tokens_text(layers[-1].after)} after the last layer"
    return list(facts.items())


def _settings(settings: ResolvedSettings, base_gflops: float) -> list[tuple[str, str]]:
    rows = [("data", _escaped(str(settings.data_dir if settings.dataset == "folder" else settings.dataset)))]
    if settings.budget_gflops is not None:
        lowest = "" if settings.lowest_gflops is None else f"{settings.lowest_gflops:g} to "
        plain = f"plain network: {base_gflops:.4f}"
        rows.append(("budget", f"{lowest}{settings.budget_gflops:g} GFLOPs at {settings.img_size} px ({plain})"))
    if settings.budget_ms is not None:
        rows.append(("budget", f"{settings.budget_ms:g} {settings.axis.title}"))
    if settings.split_layer is not None:
        rows.append(("split layer", settings.split_layer))
    steps, scored = f"{settings.proxy_steps} steps at {settings.proxy_img_size} px", settings.search_images
    again = f"best {settings.rescore_candidates} and the baselines on up to {settings.rescore_images} validation images"
    rows += [
        ("trials", f"{settings.trials}, each {steps}, scored on up to {scored} training images"),
        ("rescored", again),
        ("reported", f"the same networks on up to {settings.report_images} images that chose nothing"),
        ("sampler, seed", f"{settings.sampler}, {settings.seed}"),
    ]
    return rows


def _reading(axis: CostAxis) -> list[str]:
    costs = " and ".join(each.title for each in axis.axes)
    sent = "" if axis.second is None else "`tokens_sent` (after the split layer), "
    return [
        "* **A trial** is a schedule. Its parameters are indices of choices, 0 for no merging; its note lists the "
        "keep ratios and forms, and its files are the schedule and the recipe for `ltmsearch train`.",
        f"* **Its values**, all minimised, are {MEASURES[axis.measure]} in nats, on the search images when it ran, "
        f"with the shared weights of that time, and {costs}. Finalists are scored again at the end with the final "
        "weights, on validation images: the front is the one above and in the plot *Front with the final weights*, "
        "not the *best trials* of this page. What is reported of them, top-1 and agreement, comes from images that "
        "neither search nor choice saw.",
        "* **Infeasible** trials (grey) are over a budget. **Pruned** trials were rejected by their cost and not "
        "trained. The plain network is scored for comparison at any cost.",
        "* **Attributes** of a trial: `gflops` and `gflops_sd` (over images, where they differ), `latency_ms` "
        "(predicted), `tokens_kept` (mean share of the plain network's tokens over layers), `tokens_last` (after the "
        f"last layer), {sent}`ib_weight`, `supernet_version` "
        "(number of updates of the shared weights), `top1` (%), `top1_se`, `loss` and `kl` (nats) when it ran, `kind` "
        "and `label`.",
    ]


def _escaped(text: str) -> str:
    # The dashboard renders Markdown and HTML.
    return re.sub(r"([\\`*_\[\]<>|&~#])", r"\\\1", printable(text))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table. Each cell ends with a wide space, since the dashboard leaves none between cells."""
    spaced = [[f"{cell}\u2003" for cell in cells] for cells in (headings, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (spaced[0], [":---"] * len(headings), *spaced[1:])]


def _ended(lines: Sequence[str]) -> str:
    return "\n".join([*lines, "", "---", "", LAST_LINE, ""])
