"""Final scores: the candidates for the front with the final shared weights, on more images than in their trials."""

import logging
from collections.abc import Hashable, Sequence
from typing import Any

from ltmsearch.callbacks import Callbacks
from ltmsearch.engine.evaluation import Score, agreement
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.optuna_records import COSTS, SCORES
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.rescoring import same_nets, select_candidates
from ltmsearch.search.setup import StudyContext

_log = logging.getLogger(__name__)


def final_scores(context: StudyContext, records: Sequence[TrialRecord], callbacks: Callbacks) -> dict[str, Any]:
    """Score the candidates among a study's trials with the supernet's present weights.

    The plain network's predictions, from the same weights and images, give the agreement of each. Costs that depend on
    the image are measured again, with these weights.

    Returns:
        `SCORES` → trial → values in the order of `RESCORED`, and `COSTS` → trial → fields of a record.
    """
    settings, net = context.settings, context.proxy_costs.network_key
    plain = MergeSchedule.uniform(context.space.layers, 1.0, settings.operator)
    groups = same_nets(records, lambda record: net(record.schedule))
    candidates = select_candidates([group[0] for group in groups], settings.rescore_candidates, settings.axis.costs)
    callbacks.phase("final scores", len(candidates))
    scores: dict[str, list[float]] = {}
    costs: dict[str, dict[str, Any]] = {}
    by_net: dict[Hashable, Score] = {}
    for done, record in enumerate(candidates):
        callbacks.advance(done, record.name)
        for schedule in (plain, record.schedule):  # the plain network is usually a candidate: one pass for both
            if net(schedule) not in by_net:
                by_net[net(schedule)] = context.evaluator.score(schedule, images=settings.rescore_images)
        score = by_net[net(record.schedule)]
        agreed, agreed_se = agreement(score.predictions, by_net[net(plain)].predictions)
        _log.info(
            "%s scored again: top-1 %.2f ± %.2f %%, loss %.4f, agreement %.2f ± %.2f %%",
            record.name, score.top1, score.top1_se, score.loss, agreed, agreed_se,
        )  # fmt: skip
        for same in next(group for group in groups if group[0] is record):
            scores[str(same.trial)] = [score.top1, score.top1_se, score.loss, agreed, agreed_se]
            if context.measured is not None:
                costs[str(same.trial)] = context.measured.record(context.space.indices(same.schedule))
    callbacks.advance(len(candidates))
    return {SCORES: scores, COSTS: costs} if costs else {SCORES: scores}
