"""Notes of a study and of its trials, as Markdown made of plain records."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ltmsearch.config.objective import CostAxis
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.costs import CostModel
from ltmsearch.errors import printable
from ltmsearch.reporting.findings import find, sentences
from ltmsearch.reporting.pareto_plot import breaks_budget
from ltmsearch.schedules.grid import tokens
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.records import TrialRecord, form_key, select_front, select_references

OWN_WORDS = "*ltmsearch writes what stands above anew when it scores again. What you write below this line stays.*"
"""Last line of every note."""

_STATES = {
    "over budget": "Rejected by its cost alone, which is over the budget. It was never trained.",
    "below range": "Rejected by its cost alone, which is below the range of budgets. It was never trained.",
    "failed": "Failed: the attribute `failure` says why.",
}


@dataclass(frozen=True, kw_only=True)
class LayerTokens:
    """What a schedule makes of one layer."""

    layer: str
    keep_ratio: float
    form: str
    """`soft`, `hard` or `matched`; empty where nothing merges."""
    whole: int
    """Tokens in the plain net, of one window where there are windows."""
    before: int
    """Tokens that come in."""
    after: int
    """Tokens that go on."""
    windows: int


def layer_tokens(costs: CostModel, schedule: MergeSchedule) -> list[LayerTokens]:
    """Every layer that may merge, in the order of the net."""
    passed = costs.tokens(schedule)
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


def kept(layers: Sequence[LayerTokens]) -> float:
    """Share of the plain net's tokens that layers pass on, their average."""
    return sum(layer.after / layer.whole for layer in layers) / len(layers)


def trial_note(
    record: TrialRecord, layers: Sequence[LayerTokens], axis: CostAxis, *, base_gflops: float, on_front: bool
) -> str:
    """The note of one trial: how it stands, its costs and scores, its schedule layer by layer.

    Args:
        record: The trial.
        layers: Its schedule.
        axis: What the front weighs against top-1.
        base_gflops: Of the plain net.
        on_front: Whether the re-scored front holds it.
    """
    lines = [f"**{_as_it_is(record.label or record.kind)}**: {_standing(record, on_front)}", ""]
    lines += _table(("cost and score", ""), _facts(record, layers, axis, base_gflops))
    windows = " (of each window)" if any(layer.windows > 1 for layer in layers) else ""
    rows = [
        (layer.layer, f"{layer.keep_ratio:g}", layer.form or "plain", f"{layer.before} → {layer.after}")
        for layer in layers
    ]
    lines += ["", "**Schedule**", "", *_table(("layer", "keep ratio", "form", f"tokens{windows}"), rows)]
    return _ended(lines)


def _standing(record: TrialRecord, on_front: bool) -> str:
    if record.state != "scored":
        return _STATES[record.state]
    if not record.feasible:
        return "scored for comparison, over the budget."
    if on_front:
        return "on the front."
    return "within the budget, not on the front." if record.rescored_top1 is not None else "within the budget."


def _facts(
    record: TrialRecord, layers: Sequence[LayerTokens], axis: CostAxis, base_gflops: float
) -> list[tuple[str, str]]:
    facts = [("GFLOPs", f"{record.gflops:.4f} ({record.gflops / base_gflops:.0%} of the plain net's)")]
    if record.latency_ms is not None:
        facts.append(("ms per batch, predicted", f"{record.latency_ms:.2f}"))
    if record.latency_measured_ms is not None:
        error = "" if record.latency_measured_se_ms is None else f" ± {record.latency_measured_se_ms:.2f}"
        over = " **over the budget**" if breaks_budget(record, axis) else ""
        facts.append(("ms per batch, measured", f"{record.latency_measured_ms:.2f}{error}{over}"))
    facts.append(("tokens", f"{kept(layers):.0%} kept on average, {layers[-1].after} behind the last layer"))
    if record.rescored_top1 is not None:
        top1 = _score(record.rescored_top1, record.rescored_top1_se, record.rescored_loss)
        top1 += "" if record.expected_top1 is None else f", so {record.expected_top1:.1f} % expected"
        facts.append((f"score with the final weights (version {record.rescored_version})", top1))
    if record.top1 is not None:
        then = f"score when it ran (weights version {record.supernet_version})"
        facts.append((then, _score(record.top1, record.top1_se, record.loss)))
    if record.mi_x is not None and record.mi_y is not None and record.ibb is not None:
        facts.append(("I(X̃;X), I(X̃;Y), IB bound", f"{record.mi_x:.3g}, {record.mi_y:.3g}, {record.ibb:.3g} nats"))
    facts += [] if record.ib_weight is None else [("IB weight", f"{record.ib_weight:.3g}")]
    return facts


def _score(top1: float, top1_se: float | None, loss: float | None) -> str:
    error, also = "" if top1_se is None else f" ± {top1_se:.1f}", "" if loss is None else f", loss {loss:.4f}"
    return f"{top1:.1f}{error} %{also}"


def study_note(
    settings: ResolvedSettings, records: Iterable[TrialRecord], *, base_gflops: float, link: Callable[[int], str]
) -> str:
    """The note of a study: its front once there is one, its settings, and how the page reads.

    Args:
        settings: Of the study.
        records: All its trials.
        base_gflops: Of the plain net.
        link: Where the dashboard shows the trial of a number.
    """
    records, axis = list(records), settings.axis
    front = select_front(records, axis.name)
    lines = [f"## {settings.backbone} with {settings.operator} merging", ""]
    if front:
        lines += _front(records, front, axis, link)
        lines += ["", " ".join(sentences(find(records, axis.name)))]
    else:
        lines.append("The front stands here once the candidates for it are scored again, at the end of the search.")
    lines += ["", "### Settings", "", *_table(("setting", ""), _settings(settings, base_gflops))]
    lines += ["", "### How this page reads", "", *_reading(axis)]
    return _ended(lines)


def _front(
    records: list[TrialRecord], front: Sequence[TrialRecord], axis: CostAxis, link: Callable[[int], str]
) -> list[str]:
    latency = axis.name == "latency_ms"
    headings = ("trial", "GFLOPs", *(("ms, predicted", "measured") if latency else ()), "top-1 %", "loss", "expected")
    rows = []
    for record in [*front, *(r for r in select_references(records) if r not in front)]:
        score = record.score
        assert score is not None, record
        times: tuple[str, ...] = ()
        if latency:
            measured = "" if record.latency_measured_ms is None else f"{record.latency_measured_ms:.2f}"
            times = (f"{record.cost(axis.name):.2f}", measured + ("!" if breaks_budget(record, axis) else ""))
        stages = " \\| ".join(ratios for _, ratios in record.by_stage())
        name = f"[{record.trial}]({link(record.trial)})"
        words = f"{_as_it_is(record.label)}{'' if record.feasible else ' (over budget)'}: " if record.label else ""
        loss = "" if score.loss is None else f"{score.loss:.4f}"
        top1 = f"{score}{'' if score.rescored else '*'}"
        expected = "" if record.expected_top1 is None else f"{record.expected_top1:.1f}"
        rows.append((name, f"{record.gflops:.4f}", *times, top1, loss, expected, words + stages))
    lines = [f"### Front: {len(front)} of {len(records)} trials", ""]
    lines += _table((*headings, f"keep ratios{form_key(front)}, \\| between stages"), rows)
    if any(record.expected_top1 is not None for record in front):
        lines += ["", "expected: the mean of top-1 and what the loss lets expect; the front goes by it"]
    if any("*" in row[-4] for row in rows):
        lines += ["", "\\* scored when the trial ran, not with the final weights"]
    if any(breaks_budget(record, axis) for record in front):
        lines += ["", "! predicted within the budget, but measured over it"]
    return lines


def _settings(settings: ResolvedSettings, base_gflops: float) -> list[tuple[str, str]]:
    rows = [("data", _as_it_is(str(settings.data_dir if settings.dataset == "folder" else settings.dataset)))]
    if settings.budget_gflops is not None:
        lowest = "" if settings.lowest_gflops is None else f"{settings.lowest_gflops:g} to "
        plain = f"the plain net has {base_gflops:.4f}"
        rows.append(("budget", f"{lowest}{settings.budget_gflops:g} GFLOPs at {settings.img_size} px ({plain})"))
    if settings.budget_ms is not None:
        rows.append(("budget", f"{settings.budget_ms:g} {settings.axis.title}"))
    steps, size = settings.proxy_steps, settings.proxy_img_size
    rows += [
        ("trials", f"{settings.trials}, each {steps} steps at {size} px, scored on {settings.val_images} images"),
        ("scored again", f"best {settings.rescore_candidates} and the baselines on {settings.rescore_images} images"),
        ("sampler, seed", f"{settings.sampler}, {settings.seed}"),
    ]
    return rows


def _reading(axis: CostAxis) -> list[str]:
    return [
        "* **A trial** is a schedule. Its parameters are numbers of choices, 0 for a plain layer; its note says which "
        "keep ratio and form they stand for, and its files are the schedule and the recipe for `ltmsearch train`.",
        f"* **Its values** are top-1 when it ran, with the shared weights of that moment, and {axis.title}. Early "
        "trials saw younger weights, so the candidates are scored again at the end: the front is the one above and "
        "in the plot *Front with the final weights*, not what this page calls best trials. Notes hold both scores.",
        "* **Infeasible** trials (grey) are over a budget. **Pruned** ones were rejected by their cost before any "
        "training. The plain net is scored for comparison, whatever it costs.",
        "* **Attributes** of a trial: `gflops`, `latency_ms` (predicted), `tokens_kept` (share of the plain net's "
        "tokens, the average over layers), `tokens_last` (behind the last layer), `ib_weight`, `supernet_version` "
        "(how often the shared weights had moved), `top1_se` and `loss` when it ran, `kind` and `label`.",
    ]


def _as_it_is(text: str) -> str:
    """A name that comes from elsewhere, so that nothing in it is Markdown or HTML; the dashboard renders both."""
    return re.sub(r"([\\`*_\[\]<>|&~#])", r"\\\1", printable(text))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table. The dashboard leaves no room between cells, so that each ends with a wide space."""
    spaced = [[f"{cell}\u2003" for cell in cells] for cells in (headings, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (spaced[0], [":---"] * len(headings), *spaced[1:])]


def _ended(lines: Sequence[str]) -> str:
    return "\n".join([*lines, "", "---", "", OWN_WORDS, ""])


def renewed(note: str, present: str) -> str | None:
    """A note in the place of the present one, with what a person wrote below the last line of that; None to leave it.

    It is left where it is the same, and where a person took the last line away.

    Args:
        note: As it is to be.
        present: As it stands; empty where there is none.
    """
    _, line, own = present.partition(OWN_WORDS)
    if present.strip() and not line:
        return None
    new = note.rstrip("\n") + (own if own.strip() else "\n")
    return None if new == present else new
