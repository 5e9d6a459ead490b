"""The verdict of a study: does the searched schedule beat the best baseline, and which schedule should its user take?

Networks are chosen by the measure on validation images and compared on the reported images, which neither search nor
choice saw: paired, by top-1. Intervals are of 95 %.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from ltmsearch.config.objective import CostAxis
from ltmsearch.engine.paired import Difference
from ltmsearch.search.answers import Answers
from ltmsearch.search.records import TrialRecord, has_own_size, select_front

Reason = Literal["within tolerance", "not told apart", "best"]
"""Why a schedule is recommended: it loses less than the tolerance; it is the cheapest that cannot be told apart from
the best; or it is the best, and all cheaper ones are worse."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best searched schedule beside the best baseline within the budget, both by the measure."""

    searched: TrialRecord
    baseline: TrialRecord
    difference: Difference
    """Top-1 of the searched one less that of the baseline, in points."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The schedule to take."""

    trial: TrialRecord
    reason: Reason
    loss: Difference
    """Its top-1 less the plain network's, in points."""
    best: TrialRecord
    """The best schedule of the front by the measure."""
    points: int
    """Number of points of the front that it was chosen from."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a study found."""

    images: int
    """Number of reported images."""
    tolerance: float
    """Loss of top-1 against the plain network that its user accepts, in points."""
    comparison: Comparison | None
    """None without a final score of a searched schedule and of a baseline within the budget."""
    recommendation: Recommendation | None
    """None without a front."""
    smaller_images: Comparison | None = None
    """A baseline on smaller images that is better than the best of the front, first, and that one; None where image
    sizes are searched, or there is none."""
    against: tuple[tuple[TrialRecord, Difference], ...] = ()
    """Points of the front, the best searched schedule and other baselines within the budget, and their top-1 less that
    of the best baseline, in points; the cheapest first."""
    not_better: frozenset[int] = frozenset()
    """Trials of the front whose top-1 is not significantly higher than that of a cheaper one. With two costs, cheaper
    means at most as costly by both."""

    @property
    def recommended(self) -> int | None:
        """Number of the recommended trial."""
        return None if self.recommendation is None else self.recommendation.trial.trial

    def as_json(self) -> dict[str, Any]:
        """The verdict as a JSON object, in points of top-1; null for an unknown error."""
        found, best = self.comparison, self.recommendation
        compared = found and {
            "searched": found.searched.trial,
            "baseline": found.baseline.trial,
            "difference": found.difference.value,
            "se": _finite(found.difference.se),
            "interval": [_finite(end) for end in found.difference.interval()],
        }
        recommended = best and {
            "trial": best.trial.trial,
            "reason": best.reason,
            "difference_to_plain": best.loss.value,
            "se": _finite(best.loss.se),
        }
        return {
            "images": self.images,
            "tolerance": self.tolerance,
            "recommendation": recommended,
            "searched_less_best_baseline": compared,
            "baseline_on_smaller_images": self.smaller_images
            and {
                "trial": self.smaller_images.searched.trial,
                "difference_to_best_of_front": self.smaller_images.difference.value,
                "se": _finite(self.smaller_images.difference.se),
            },
            "not_better_than_cheaper": sorted(self.not_better),
        }


def judge(records: Iterable[TrialRecord], answers: Answers, axis: CostAxis, *, tolerance: float) -> Verdict:
    """Compare the finalists of a study, and choose among its front.

    The front is tested in a fixed order, from the costliest point to the cheapest, until a test fails, so that all
    tests together keep the confidence of one (Maurer, Hothorn and Lehmacher, 1995: a priori ordered hypotheses). With
    two costs, the choice is among the front of the first.
    """
    known = [r for r in records if r.trial in answers.trials]
    front, comparison = select_front(known, axis), _compare(known, answers, axis)
    return Verdict(
        images=len(answers.labels),
        tolerance=tolerance,
        comparison=comparison,
        against=() if comparison is None else _against(known, front, comparison, answers, axis),
        smaller_images=_smaller_images(known, front, answers, axis),
        recommendation=_recommend(select_front(front, replace(axis, second=None)), answers, axis, tolerance),
        not_better=frozenset(
            one.trial
            for one in front
            if any(_is_cheaper(other, one, axis) and not _is_better(one, other, answers) for other in front)
        ),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _measured(record: TrialRecord, axis: CostAxis) -> float:
    value = record.rescored(axis.measure)
    assert value is not None, record
    return value


def _is_cheaper(one: TrialRecord, other: TrialRecord, axis: CostAxis) -> bool:
    pairs = list(zip(one.costs(axis.costs), other.costs(axis.costs), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _is_better(one: TrialRecord, other: TrialRecord, answers: Answers) -> bool:
    return answers.is_above(0, one.trial, other.trial)


def _compare(known: Sequence[TrialRecord], answers: Answers, axis: CostAxis) -> Comparison | None:
    final = [r for r in known if r.feasible and r.rescored(axis.measure) is not None and not r.is_plain]
    final = [r for r in final if has_own_size(r, axis)]
    searched = [r for r in final if r.kind != "baseline"]
    baselines = [r for r in final if r.kind == "baseline"]
    if not searched or not baselines:
        return None
    one, other = (min(rivals, key=lambda r: (_measured(r, axis), r.trial)) for rivals in (searched, baselines))
    difference = answers.difference(one.trial, other.trial)
    return Comparison(searched=one, baseline=other, difference=difference)


def _against(
    known: Sequence[TrialRecord], front: Sequence[TrialRecord], best: Comparison, answers: Answers, axis: CostAxis
) -> tuple[tuple[TrialRecord, Difference], ...]:
    others = [r for r in known if r.kind == "baseline" and r.feasible and r.rescored(axis.measure) is not None]
    rivals = {r.trial: r for r in [*front, best.searched, *others] if r is not best.baseline}
    return tuple(
        (r, answers.difference(r.trial, best.baseline.trial))
        for r in sorted(rivals.values(), key=lambda r: (r.cost(axis.name), r.trial))
    )


def _smaller_images(
    known: Sequence[TrialRecord], front: Sequence[TrialRecord], answers: Answers, axis: CostAxis
) -> Comparison | None:
    """The best baseline on smaller images, where they are not searched and it is better than the best of the front."""
    others = [r for r in known if not has_own_size(r, axis) and r.feasible and r.rescored(axis.measure) is not None]
    if not others or not front:
        return None
    smaller = min(others, key=lambda r: (_measured(r, axis), r.trial))
    if _measured(smaller, axis) >= _measured(front[0], axis):
        return None
    difference = answers.difference(smaller.trial, front[0].trial)
    return Comparison(searched=smaller, baseline=front[0], difference=difference)


def _recommend(
    front: Sequence[TrialRecord], answers: Answers, axis: CostAxis, tolerance: float
) -> Recommendation | None:
    """Choose from the front of one cost, best and costliest first."""
    if not front:
        return None
    best, *cheaper = front
    others = [r for r in front if not r.is_plain]  # the plain network loses nothing: no evidence
    reason: Reason = "best"
    if within := list(takewhile(lambda r: answers.is_above(-tolerance, r.trial), others)):
        chosen, reason = within[-1], "within tolerance"
    elif alike := list(takewhile(lambda r: not _is_better(best, r, answers), cheaper)):
        chosen, reason = alike[-1], "not told apart"
    else:
        chosen = best
    loss = answers.difference(chosen.trial)
    return Recommendation(trial=chosen, reason=reason, loss=loss, best=best, points=len(front))


def verdict_sentences(verdict: Verdict, axis: CostAxis) -> list[str]:
    """The verdict in a few sentences: first the recommendation, then the comparison with the best baseline."""
    lines = []
    if (best := verdict.recommendation) is not None:
        lines.append(_recommendation_words(best, verdict, axis))
    if (found := verdict.comparison) is not None:
        lines.append(_comparison_words(found))
    if (smaller := verdict.smaller_images) is not None:
        name = _name(smaller.searched, axis.text(smaller.searched.cost(axis.name)))
        lines.append(
            f"Smaller images do better by the measure: {name} less {_name(smaller.baseline)} is {smaller.difference} "
            "points of top-1. Search them with --search-img-size auto."
        )
    return lines


def _recommendation_words(best: Recommendation, verdict: Verdict, axis: CostAxis) -> str:
    trial, images = best.trial, f"{verdict.images} images"
    plain = trial.is_plain
    cost = axis.text(trial.cost(axis.name))
    take = f"Take {f'the plain network ({cost})' if plain else _name(trial, cost)}"
    if plain and best.points == 1:
        return f"{take}: no other schedule is on the front."
    loss = f": before training by its recipe, its top-1 is {best.loss} points against the plain network's" * (not plain)
    if best.reason == "within tolerance":
        return f"{take}{loss}, a loss below {verdict.tolerance:g} points with 95 % confidence ({images})."
    why = "the best of the front, because cheaper ones are worse"
    if best.points == 1:
        why = "the only point of the front"
    elif best.reason == "not told apart":
        why = f"the cheapest that {images} do not tell apart from the best, {_name(best.best)}"
    return f"{take}, {why}{loss}. No schedule is shown to lose less than {verdict.tolerance:g} points."


def _comparison_words(found: Comparison) -> str:
    low, high = found.difference.interval()
    words = "The search is not told apart from the best baseline within the budget"
    if low > 0:
        words = "The search beats the best baseline within the budget"
    elif high < 0:
        words = "The best baseline within the budget beats the search"
    interval = f"95 % interval {low:+z.1f} to {high:+z.1f}".replace("-", "−")
    difference = f"{_name(found.searched)} less {_name(found.baseline)} is {found.difference} points of top-1"
    return f"{words}: {difference} ({interval})."


def _name(record: TrialRecord, *facts: str) -> str:
    """Number of a trial, and in brackets the name that a baseline has beside it, and facts."""
    beside = ", ".join(filter(None, (record.label, *facts)))
    return f"trial {record.trial}" + (f" ({beside})" if beside else "")
