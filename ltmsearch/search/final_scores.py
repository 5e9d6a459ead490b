"""Final scores: the finalists with the final shared weights, on images that scored no trial.

Validation images choose the front. The reported images are answered by the same networks, and choose nothing.
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltmsearch.callbacks import Callbacks
from ltmsearch.engine.evaluation import Score
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.answers import UNREADABLE, Answers, known_error
from ltmsearch.search.optuna_records import COSTS, SCORES
from ltmsearch.search.records import TrialRecord, select_front
from ltmsearch.search.rescoring import same_nets, select_candidates
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.trial import Evaluator

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinalScore:
    """Scores of one network on the images that choose and on those that are reported."""

    chosen: Score
    reported: Score


def final_scores(
    context: StudyContext, records: Sequence[TrialRecord], callbacks: Callbacks
) -> tuple[dict[str, Any], Answers]:
    """Score the candidates among a study's trials with the supernet's present weights.

    They are compared with the teacher, or without one with the plain network of the same weights. Costs that depend on
    the image are measured again, with these weights.

    Returns:
        `SCORES` → trial → fields of a record and `COSTS` → trial → fields of a record; and the answers to the reported
        images.
    """
    settings, net, axis = context.settings, context.proxy_key, context.settings.axis
    groups = same_nets(records, lambda record: net(record.schedule))
    candidates = select_candidates([group[0] for group in groups], settings.rescore_candidates, axis)
    callbacks.phase("final scores", len(candidates))
    by_net: dict[Hashable, FinalScore] = {}
    for done, record in enumerate(candidates):
        callbacks.advance(done, record.name)
        by_net[net(record.schedule)] = _score(context.evaluator, record.schedule)
    callbacks.advance(len(candidates))
    plain = MergeSchedule.uniform(context.space.layers, 1.0, settings.operator)
    if net(plain) not in by_net and context.evaluator.teacher.of("report") is None:
        by_net[net(plain)] = _score(context.evaluator, plain)
    found = {
        same.trial: by_net[net(record.schedule)]
        for record in candidates
        for group in groups
        for same in group
        if group[0] is record
    }
    answers = _answers(context.evaluator, found, by_net.get(net(plain)))
    scores = {str(trial): _fields(trial, score, answers) for trial, score in found.items()}
    if context.measured is None:
        return {SCORES: scores}, answers
    schedules = {record.trial: record.schedule for record in records if record.trial in found}
    costs = {str(t): context.measured.record(context.space.indices(s)) for t, s in schedules.items()}
    return {SCORES: scores, COSTS: costs}, answers


def time_front(
    context: StudyContext, records: Sequence[TrialRecord], known: Mapping[str, Any], callbacks: Callbacks
) -> dict[str, list[float]]:
    """Time the networks of the front and the plain one end to end, where latency has a budget and is measured here.

    Returns:
        Trial → milliseconds and their standard error, of those that are not `known`.
    """
    latency = context.latency
    if latency is None or not latency.can_measure:
        return {}
    wanted = [*select_front(records, context.settings.axis), *(r for r in records if r.label == "plain")]
    schedules = {r.trial: r.schedule for r in wanted if str(r.trial) not in known}
    if not schedules:
        return {}
    readings = latency.measure(list(schedules.values()), callbacks)
    return {str(t): [readings[s].ms, readings[s].ms * readings[s].error] for t, s in schedules.items()}


def _score(evaluator: Evaluator, schedule: MergeSchedule) -> FinalScore:
    return FinalScore(chosen=evaluator.score(schedule, "validation"), reported=evaluator.score(schedule, "report"))


def _answers(evaluator: Evaluator, found: dict[int, FinalScore], plain: FinalScore | None) -> Answers:
    labels = np.concatenate([labels.numpy() for _, labels in evaluator.held_out("report")])
    taught = evaluator.teacher.of("report")
    if taught is not None:
        reference = taught.argmax(dim=1).numpy()
    else:
        assert plain is not None
        reference = plain.reported.predictions
    answers = {trial: score.reported.predictions for trial, score in found.items()}
    if {len(rows) for rows in answers.values()} - {len(labels)} or len(reference) != len(labels):
        raise InputError(UNREADABLE)
    return Answers(labels=labels, groups=evaluator.data.report_groups(), plain=reference, trials=answers)


def _fields(trial: int, score: FinalScore, answers: Answers) -> dict[str, float | None]:
    """Fields of a record."""
    top1, difference, agreed = answers.top1(trial), answers.difference(trial), answers.agreement(trial)
    _log.info(
        "trial %d scored again: loss %.4f; reported: top-1 %s %%, less the plain network's %s",
        trial, score.chosen.loss, top1, difference,
    )  # fmt: skip
    return {
        "rescored_loss": score.chosen.loss,
        "rescored_kl": score.chosen.kl,
        "report_top1": top1.value,
        "report_top1_se": known_error(top1.se),
        "difference": difference.value,
        "difference_se": known_error(difference.se),
        "agreement": agreed.value,
        "agreement_se": known_error(agreed.se),
    }
